"""The command line: ``python -m xenpm list | suspend | resume | restore | ...``.

Exit codes: 0 all done; 1 a domain could not be suspended or resumed, or a configuration is wrong;
2 wrong usage; 3 no Xen host here, or not root; 4 no such domain, nothing was touched; 130, 143 and
129 interrupted by Ctrl-C, SIGTERM and SIGHUP.

Results go to standard output.  What failed, and after an interruption each guest that could not be
put back, is named on standard error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import xenpm

from . import completion, systemd, terminal
from .connection import DEFAULT_BACKEND_TIMEOUT, timeout_ns
from .domain import DEFAULT_LATE_TIMEOUT, Domain
from .errors import (
    ConfigError,
    HostSuspendError,
    LibraryMismatch,
    NoSuchDomain,
    NotPermitted,
    NotXenHost,
    SuspendError,
    SuspendInterrupted,
    SuspendNotCompleted,
    XenError,
)
from .host import Host
from .policy import Rule, parse_rule
from .protocol import LAST_VCPU, S3RESUME, TRIGGERS
from .sleep import Report
from .timeline import printable
from .types import DomainRef, Resumption, Saving, Suspension, plain

if TYPE_CHECKING:
    from . import config

_Tell = Optional[Callable[[str], None]]  #: gets what happens, in words

EXIT_FAILED = 1
EXIT_NO_HOST = 3
EXIT_NO_DOMAIN = 4


class _Version(argparse.Action):
    """Show the version, which takes long to find, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """What argparse calls when the option is given."""
        _print(f"xenpm {xenpm.__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xenpm",
        description="Power management of Xen guests: light suspend, resume in place.",
        epilog="Exit codes: 0 done, 1 a domain failed or a configuration is wrong, 2 wrong usage, "
        "3 no Xen host or not root, 4 no such domain, 130/143/129 interrupted.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show program's version number and exit"
    )
    _add_verbose(parser, default=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON instead of text")
    _add_verbose(common, default=argparse.SUPPRESS)  # or it would undo one before the verb
    domains = argparse.ArgumentParser(add_help=False)
    domains.add_argument(
        "domains", nargs="+", type=_reference, metavar="DOMAIN", help="domid, name or UUID"
    )

    listing = verbs.add_parser("list", parents=[common], help="show the domains of this host")
    listing.set_defaults(run=_list)

    suspend = verbs.add_parser(
        "suspend", parents=[common, domains], help="have guests suspend themselves"
    )
    suspend.add_argument(
        "-L",
        "--lightweight",
        action="store_true",
        help="leave their memory in place",
    )
    suspend.add_argument(
        "--heavy",
        type=_path,
        metavar="FILE",
        help="write one guest's memory to this file, as 'xl save' does, and destroy the domain",
    )
    suspend.add_argument(
        "--timeout",
        type=_timeout,
        metavar="SECONDS",
        help="how long each guest has (default: 30, and 60 for a driver domain; with --heavy 600, "
        "and 300 for each GiB)",
    )
    suspend.add_argument(
        "--late-timeout",
        type=_timeout,
        default=DEFAULT_LATE_TIMEOUT,
        metavar="SECONDS",
        help="how long to watch over one that took the request and missed that "
        "(default: %(default)g); it is resumed if it suspends late",
    )
    suspend.set_defaults(run=_suspend)

    restoring = verbs.add_parser(
        "restore",
        parents=[common],
        help="bring back a guest from the file of suspend --heavy or 'xl save'",
    )
    restoring.add_argument("path", type=_path, metavar="FILE", help="it stays as it is")
    restoring.add_argument(
        "--timeout",
        type=_timeout,
        metavar="SECONDS",
        help="how long it may take (default: 600, and 300 for each GiB)",
    )
    restoring.set_defaults(run=_restore)

    resume = verbs.add_parser(
        "resume", parents=[common, domains], help="let suspended guests continue"
    )
    resume.add_argument(
        "--reinit",
        action="store_true",
        help="have them start over and connect to everything anew, instead of where they can "
        "going on as if nothing had been",
    )
    resume.add_argument(
        "--timeout",
        type=_timeout,
        default=DEFAULT_BACKEND_TIMEOUT,
        metavar="SECONDS",
        help="how long the backends of one that starts over have for closing (default: "
        "%(default)g)",
    )
    resume.set_defaults(run=_resume)

    triggering = verbs.add_parser(
        "trigger", parents=[common], help="press a guest's power or sleep button, or wake it"
    )
    triggering.add_argument(
        "domain", type=_reference, metavar="DOMAIN", help="its domid, name or UUID"
    )
    triggering.add_argument(
        "trigger", choices=[*TRIGGERS, S3RESUME], help="which button, or what wakes it"
    )
    triggering.add_argument(
        "--vcpu",
        type=_vcpu,
        default=0,
        metavar="NUMBER",
        help="which vCPU gets an NMI (default: %(default)s)",
    )
    triggering.set_defaults(run=_trigger)

    topology = verbs.add_parser(
        "topology",
        parents=[common],
        help="show who is whose backend, and the order of suspending that follows",
    )
    topology.add_argument("--dot", action="store_true", help="print a graph for Graphviz")
    topology.set_defaults(run=_topology)

    configurations = verbs.add_parser(
        "config", parents=[common], help="tell which configurations will be driver domains"
    )
    configurations.add_argument(
        "paths",
        nargs="+",
        type=_path,
        metavar="PATH",
        help="files for xl, or directories of such, as /etc/xen/auto",
    )
    configurations.add_argument(
        "--assignable",
        action="store_true",
        help="also look whether this host can give them their PCI devices (needs root on Xen)",
    )
    configurations.set_defaults(run_without_host=_config)

    completing = verbs.add_parser(
        "completion", help="print what has a shell complete these commands"
    )
    completing.add_argument(
        "what",
        choices=["bash", "fish", "zsh", "domains"],
        help="a script for that shell to source; or only the names of the domains, for scripts",
    )
    completing.set_defaults(run_without_host=_completion)

    host = verbs.add_parser("host", help="put the whole host to sleep, guests first")
    host_verbs = host.add_subparsers(dest="host_verb", metavar="VERB", required=True)
    ruled = argparse.ArgumentParser(add_help=False)
    ruled.add_argument(
        "--rule",
        action="append",
        default=[],
        type=_rule,
        metavar="DOMAIN=RULE",
        help="what is to be done with a domain, before all that is configured: suspend, pause, "
        "save, leave or abort, timeout=SECONDS, on-failure=pause or undo; as web1='pause' or "
        "web1='timeout=60 on-failure=undo'; may be given several times",
    )
    reported = argparse.ArgumentParser(add_help=False)
    reported.add_argument(
        "--report",
        type=_path,
        metavar="FILE",
        help="write the whole report as JSON; 'python -m xenpm.plot' draws it, on any machine",
    )
    reported.add_argument(
        "--trace", type=_path, metavar="FILE", help="write the timeline, for chrome://tracing"
    )
    reported.add_argument(
        "--picture",
        type=_picture,
        metavar="FILE",
        help="draw the timeline, as .svg or .png (needs matplotlib: pip install 'xenpm[plot]')",
    )
    reported.add_argument("-q", "--quiet", action="store_true", help="do not tell what happens")
    planning = host_verbs.add_parser(
        "plan", parents=[common, ruled], help="show what would be done, in which order, and why"
    )
    planning.set_defaults(run=_host_plan)
    sleeping = host_verbs.add_parser(
        "suspend",
        parents=[common, ruled, reported],
        help="suspend the guests, put the machine to sleep, and bring everything back",
    )
    sleeping.add_argument(
        "state", nargs="?", default="mem", help="as in /sys/power/state (default: mem, ACPI S3)"
    )
    sleeping.set_defaults(run=_host_suspend)
    going_down = host_verbs.add_parser(
        "suspend-domains",
        parents=[common, ruled, reported],
        help="suspend the guests, for somebody else who puts the machine to sleep; "
        "succeeds when all are down, each as its rule says",
    )
    going_down.set_defaults(run=_host_suspend_domains)
    coming_up = host_verbs.add_parser(
        "resume-domains",
        parents=[common, reported],
        help="bring back what suspend-domains, or a killed host suspend, has left down",
    )
    coming_up.set_defaults(run=_host_resume_domains)
    recovering = host_verbs.add_parser(
        "recover",
        parents=[common, reported],
        help="bring back what a killed host suspend has left down, but nothing that "
        "suspend-domains has suspended on purpose",
    )
    recovering.set_defaults(run=_host_recover)
    installing = host_verbs.add_parser(
        "install-systemd",
        help="have 'systemctl suspend' and a closed lid suspend the guests, too",
    )
    installing.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="write below this directory, and tell nothing to the systemd that runs",
    )
    installing.add_argument("--remove", action="store_true", help="remove what was installed")
    installing.set_defaults(run_without_host=_install_systemd)
    return parser


def _add_verbose(parser: argparse.ArgumentParser, *, default: bool | str) -> None:
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default,
        help="log what Xen's libraries say",
    )


def _reference(text: str) -> str:
    """A domain named on the command line."""
    if not text:
        raise argparse.ArgumentTypeError("a domain's name must not be empty")
    return text


def _path(text: str) -> Path:
    """A file or directory named on the command line."""
    if not text:  # which pathlib takes for the directory that we are in
        raise argparse.ArgumentTypeError("a path must not be empty")
    return Path(text)


def _picture(text: str) -> Path:
    """The file of a picture, named on the command line."""
    path = _path(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r}: a picture is a .svg or a .png file")
    try:
        importlib.import_module("xenpm.plot")
    except ImportError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def _rule(text: str) -> tuple[str, Rule]:
    """A rule for one domain, given on the command line."""
    domain, equals, rule = text.partition("=")
    if not domain or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not DOMAIN=RULE")
    try:
        return domain, parse_rule(rule, "RULE")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _timeout(text: str) -> float:
    """A timeout given on the command line."""
    try:
        seconds = float(text)
        timeout_ns(seconds, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return seconds


def _vcpu(text: str) -> int:
    if not text.isdecimal() or int(text) > LAST_VCPU:
        raise argparse.ArgumentTypeError(f"must be the number of a vCPU, not {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.verb == "suspend":
        if options.lightweight == bool(options.heavy):
            parser.error(
                "suspend: give -L (--lightweight), which leaves the guests' memory in place, or "
                "--heavy FILE, which writes it to disk"
            )
        if options.heavy and len(options.domains) != 1:
            parser.error("suspend: --heavy FILE takes one domain")
    if options.verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    # With a handler that raises, these put everything back like Ctrl-C does.
    before = {
        signum: signal.signal(signum, _terminate)
        for signum in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is signal.SIG_DFL  # nohup ignores SIGHUP, and so do we
    }
    try:
        if "run_without_host" in options:
            code = int(options.run_without_host(options))
        else:
            with Host() as host:
                code = int(options.run(host, options))
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more; Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except NoSuchDomain as error:
        return _complain(error, EXIT_NO_DOMAIN)
    except (NotXenHost, NotPermitted, LibraryMismatch) as error:
        return _complain(error, EXIT_NO_HOST)
    except XenError as error:
        return _complain(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code


def _terminate(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


def _complain(problem: object, code: int) -> int:
    terminal.on(sys.stderr).bad(f"xenpm: {problem}")
    return code


def _print(text: str) -> None:
    terminal.Plain(sys.stdout).line(text)


def _install_systemd(options: argparse.Namespace) -> int:
    if not options.remove:
        _print(f"{systemd.install(options.root)} is installed and enabled")
    elif systemd.remove(options.root):
        _print(f"{systemd.UNIT} is removed")
    else:
        _print(f"{systemd.UNIT} is not installed: nothing was touched")
    return 0


def _completion(options: argparse.Namespace) -> int:
    scripts = {"bash": completion.bash, "fish": completion.fish, "zsh": completion.zsh}
    if options.what in scripts:
        kinds = completion.Kinds({_reference}, {_rule}, {_path, _picture, Path})
        _print(scripts[options.what](_parser(), kinds).rstrip())
        return 0
    with Host() as host:
        for domain in host.domains():
            _print(printable(domain.name))
    return 0


def _list(host: Host, options: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    for domain in host.domains():
        try:
            info = domain.info
        except NoSuchDomain:  # destroyed since the list was made
            continue
        rows.append(
            {
                "domid": domain.domid,
                "name": domain.name,
                "uuid": str(domain.uuid),
                "type": info.type.value,
                "vcpus": info.vcpus_online,
                "memory_kib": info.memory_kib,
                "state": info.state.value,
                "shutdown_reason": info.shutdown_reason and info.shutdown_reason.name.lower(),
            }
        )
    if options.json:
        _print(json.dumps(rows, indent=2))
        return 0
    table: list[tuple[str, ...]] = [("DOMID", "NAME", "TYPE", "VCPUS", "MEMORY", "STATE")]
    for row in rows:
        memory = f"{row['memory_kib'] // 1024} MiB"
        table.append(
            (str(row["domid"]), row["name"], row["type"], str(row["vcpus"]), memory, row["state"])
        )
    terminal.on(sys.stdout).table(table, right={0, 3, 4})
    return 0


def _topology(host: Host, options: argparse.Namespace) -> int:
    topology = host.topology()
    for member in topology.members:
        for each in member.unreadable:
            _complain(f"{member.domain}: xenstore makes no sense: {each}", EXIT_FAILED)
    if options.json:
        _print(json.dumps(topology.to_dict(), indent=2))
    elif options.dot:
        _print(topology.to_dot().rstrip())
    else:
        for line in topology.to_tree():
            _print(line)
        for cycle in topology.cycles:
            _print("cycle, to be suspended together: " + ", ".join(map(str, cycle)))
        _order("suspend", topology.suspend_order())
        _order("resume", topology.resume_order())
    return EXIT_FAILED if any(member.unreadable for member in topology.members) else 0


def _order(verb: str, steps: list[tuple[DomainRef, ...]]) -> None:
    names = (" ".join(ref.name or str(ref.domid) for ref in step) for step in steps)
    _print(f"{verb}: " + ", then ".join(names))


def _suspend(host: Host, options: argparse.Namespace) -> int:
    domains = _chosen(host, options.domains)
    if options.heavy:
        return _save(domains[0], options)
    with terminal.on(sys.stderr).story("suspending"):
        outcomes = host.suspend_each(
            domains, timeout=options.timeout, late_timeout=options.late_timeout
        )
    return _report(outcomes, options.json, "suspended")


def _save(domain: Domain, options: argparse.Namespace) -> int:
    outcome: Saving | XenError
    with terminal.on(sys.stderr).meter(f"saving {domain.name}") as progress:
        try:
            outcome = domain.suspend(
                lightweight=False, path=options.heavy, timeout=options.timeout, progress=progress
            )
        except XenError as error:
            outcome = error
    return _report({domain: outcome}, options.json, f"saved to {options.heavy}")


def _restore(host: Host, options: argparse.Namespace) -> int:
    with terminal.on(sys.stderr).meter(f"restoring {options.path}") as progress:
        domain = host.restore(options.path, timeout=options.timeout, progress=progress)
    if options.json:
        _print(json.dumps(plain(domain.ref), indent=2))
    else:
        _print(f"{domain.ref}: restored from {options.path}")
    return 0


def _resume(host: Host, options: argparse.Namespace) -> int:
    domains = _chosen(host, options.domains)
    with terminal.on(sys.stderr).story("resuming"):
        outcomes = host.resume_each(
            domains, cooperative=False if options.reinit else None, timeout=options.timeout
        )
    return _report(outcomes, options.json, "resumed")


def _trigger(host: Host, options: argparse.Namespace) -> int:
    domain = host.domain(options.domain)
    domain.trigger(options.trigger, vcpu=options.vcpu)
    if options.json:
        _print(json.dumps(plain(domain.ref), indent=2))
    else:
        _print(f"{domain.ref}: {options.trigger} triggered")
    return 0


def _chosen(host: Host, references: list[str]) -> list[Domain]:
    """The domains meant, each once; looked up before anything is touched."""
    return list(dict.fromkeys(host.domain(reference) for reference in references))


def _done(outcome: Suspension | Saving | Resumption, done: str) -> str:
    if not isinstance(outcome, Resumption) or outcome.cooperative:
        return done
    steps = ", ".join(f"{step.name} {step.ns / 1e6:.1f} ms" for step in outcome.steps)
    return f"{done} by starting over ({outcome.reason}; {steps})"


def _report(
    outcomes: Mapping[Domain, Suspension | Saving | Resumption | XenError], as_json: bool, done: str
) -> int:
    failed = False
    rows: list[dict[str, Any]] = []
    for domain, outcome in outcomes.items():
        if isinstance(outcome, XenError):
            failed = True
            row: dict[str, Any] = {
                "domain": {"domid": domain.domid, "name": domain.name, "uuid": str(domain.uuid)},
                "ok": False,
                "error": type(outcome).__name__,
                "message": str(outcome),
            }
            if isinstance(outcome, SuspendError):
                row.update(phase=outcome.phase.value, elapsed=outcome.elapsed)
            if isinstance(outcome, SuspendNotCompleted):
                row["resumed_late"] = outcome.resumed_late
            if isinstance(outcome, SuspendInterrupted):
                row["reason"] = outcome.reason and outcome.reason.name.lower()
            if not as_json:
                _complain(outcome, EXIT_FAILED)
        else:
            row = {"ok": True, **outcome.to_dict()}
            if not as_json:
                took = f"in {outcome.total_ns / 1e6:.1f} ms"
                terminal.on(sys.stdout).good(f"{domain.ref}: {_done(outcome, done)} {took}")
            if isinstance(outcome, Resumption):
                for problem in outcome.problems:
                    _complain(f"{domain.ref}: {problem}", 0)
        rows.append(row)
    if as_json:
        _print(json.dumps(rows, indent=2))
    return EXIT_FAILED if failed else 0


def _rules(host: Host, options: argparse.Namespace) -> dict[Domain, Rule]:
    return {host.domain(reference): rule for reference, rule in options.rule}


@contextmanager
def _progress(options: argparse.Namespace) -> Iterator[_Tell]:
    """Tells on standard error what happens; standard output is for the result."""
    for name in ("xenpm.sleep", "xenpm.hooks"):  # or Python would print their warnings, too
        logging.getLogger(name).addHandler(logging.NullHandler())
    if options.quiet:
        yield None
        return
    with terminal.on(sys.stderr).story(f"host {options.host_verb}") as tell:
        yield tell


def _show_table(rows: list[tuple[str, ...]], remarks: list[str], head: bool) -> None:
    """Show what a plan or a report says, as its own text does."""
    shown = terminal.on(sys.stdout)
    shown.table(rows, head=head)
    for remark in remarks:
        shown.line(remark)


def _host_plan(host: Host, options: argparse.Namespace) -> int:
    plan = host.plan(rules=_rules(host, options))
    if options.json:
        _print(json.dumps(plan.to_dict(), indent=2))
    else:
        _show_table(plan.to_rows(), plan.remarks, head=True)
    return EXIT_FAILED if plan.refusals else 0


def _host_suspend(host: Host, options: argparse.Namespace) -> int:
    report = _told(
        lambda progress: host.suspend(
            options.state, rules=_rules(host, options), progress=progress
        ),
        options,
    )
    return EXIT_FAILED if report is None or report.problems else 0


def _host_suspend_domains(host: Host, options: argparse.Namespace) -> int:
    report = _told(
        lambda progress: host.suspend_domains(rules=_rules(host, options), progress=progress),
        options,
    )
    # 0 also with problems: all guests are down, each as its rule says, and the machine may sleep
    return EXIT_FAILED if report is None else 0


def _host_resume_domains(host: Host, options: argparse.Namespace) -> int:
    return _bring_back(host.resume_domains, options)


def _host_recover(host: Host, options: argparse.Namespace) -> int:
    return _bring_back(host.recover, options)


def _bring_back(verb: Callable[..., Report | None], options: argparse.Namespace) -> int:
    nothing = False

    def bring_back(progress: _Tell) -> Report | None:
        nonlocal nothing
        report = verb(progress=progress)
        nothing = report is None
        return report

    report = _told(bring_back, options)
    if nothing:
        _print("null" if options.json else "nothing is down: there is nothing to bring back")
        return 0
    return EXIT_FAILED if report is None or report.problems else 0


def _told(call: Callable[[_Tell], Report | None], options: argparse.Namespace) -> Report | None:
    """Show the report of a host suspend, also of one that failed; None then."""
    interruption: BaseException | None = None
    try:
        with _progress(options) as progress:
            shown = report = call(progress)
    except HostSuspendError as error:
        shown, report = error.report, None
        _complain(error, EXIT_FAILED)
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error.__cause__, HostSuspendError):
            raise
        interruption, shown, report = error, error.__cause__.report, None
        _complain(error.__cause__, EXIT_FAILED)
    if shown is not None:
        if options.json:
            _print(json.dumps(shown.to_dict(), indent=2))
        else:
            _show_table(shown.to_rows(), shown.remarks, head=False)
        try:
            if options.report:
                options.report.write_text(json.dumps(shown.to_dict(), indent=2))
            if options.trace:
                options.trace.write_text(json.dumps(shown.timeline.to_chrome_trace()))
            if options.picture and len(shown.timeline):
                importlib.import_module("xenpm.plot").draw(shown.timeline, options.picture)
        except OSError as error:
            _complain(f"all else is done, but the timeline cannot be written: {error}", EXIT_FAILED)
            report = None
    if interruption is not None:
        raise interruption
    return report


def _config(options: argparse.Namespace) -> int:
    files = xenpm.config
    results: dict[str, config.DomainConfig | ConfigError] = {}
    for path in options.paths:
        read = files.read_directory(path) if os.path.isdir(path) else files.read_files([path])
        results.update(read.results)
    configurations = files.Configurations(results)
    free = files.assignable() if options.assignable else None
    rows = []
    for source, result in results.items():
        error = result if isinstance(result, ConfigError) else _fault(result, free)
        row: dict[str, Any] = {"source": source, "ok": error is None}
        if isinstance(result, files.DomainConfig):
            row.update(result.to_dict())
            for warning in result.warnings:
                _complain(warning, 0)
        if error is not None:
            _complain(error, EXIT_FAILED)
            row.update(
                error=type(error).__name__,
                message=error.what,
                line=error.line,
                column=error.column,
            )
        rows.append(row)
    domains = [domain.to_dict() for domain in configurations.driver_domains().values()]
    if options.json:
        _print(json.dumps({"files": rows, "domains": domains}, indent=2))
    else:
        _show(configurations)
    return 0 if all(row["ok"] for row in rows) else EXIT_FAILED


def _fault(found: config.DomainConfig, free: list[config.PciSpec] | None) -> ConfigError | None:
    """Why a domain could not be started from a configuration that can be read."""
    try:
        found.check(free)
    except ConfigError as error:
        return error
    return None


def _show(configurations: config.Configurations) -> None:
    table: list[tuple[str, ...]] = [("NAME", "TYPE", "DRIVER DOMAIN", "WHY", "SERVED BY", "FILE")]
    for name, domain in configurations.driver_domains().items():
        answer = {True: "yes", False: "no", None: "unknown"}[domain.known]
        why = str(domain)
        if domain.known is None:
            why = f"{', '.join(domain.unreadable)} may name it"
        named = [each for each in configurations.configs if each.name == name]
        for each in named:
            served = ", ".join(
                f"{b.domain} ({b.kind} {b.device}".rstrip() + ")" for b in each.backends
            )
            table.append((name, each.type.value, answer, why or "-", served or "-", each.source))
        if not named:
            table.append((name, "-", answer, why, "-", "-"))
    terminal.on(sys.stdout).table(table)
