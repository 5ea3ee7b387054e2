"""Configurations of running driver domains, and libxl beside children of the process."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import xenpm
from xenpm import ConfigError, config
from xenpm._ext.xenlight import Xenlight

from .guest import run

SCENE = "card"
CARD = "0000:00:10.0"
SPARE = "0000:00:1f.3"  # the board's SMBus controller, which nobody needs here
GUESTS = Path("/root/guests")
# -- running domains


def test_running_domains(host: xenpm.Host) -> None:
    listed = {entry["domid"]: entry["config"] for entry in json.loads(run("xl", "list", "-l"))}
    for domain in host.domains():
        live = config.of(domain)
        assert live == config.from_json(json.dumps(listed[domain.domid]))
        assert live.uuid == domain.uuid
        assert live.type == domain.type
        file = config.read(GUESTS / f"{domain.name}.cfg")
        assert live.name == file.name
        assert [each.address for each in live.pci] == [each.address for each in file.pci]
        assert live.backends == file.backends


def test_assignable() -> None:
    owner = config.read(GUESTS / "card.cfg")
    owner.check()
    with pytest.raises(ConfigError, match=f"card.cfg:.*{CARD} is not assignable"):
        owner.check(config.assignable())  # a running domain has it
    spare = config.parse(f"name = 'spare'\nkernel = '/k'\npci = ['{SPARE}']\n")
    run("xl", "pci-assignable-add", SPARE)
    try:
        found = config.assignable()
        assert [str(each) for each in found] == run("xl", "pci-assignable-list").split()
        spare.check(found)
    finally:
        run("xl", "pci-assignable-remove", SPARE)
    with pytest.raises(ConfigError, match="xl pci-assignable-add"):
        spare.check(config.assignable())


def test_domain_that_is_gone(host: xenpm.Host) -> None:
    nobody = host.domain(xenpm.DomainRef(999, bytes(16), "nobody"))
    with pytest.raises(xenpm.NoSuchDomain):
        config.of(nobody)
    somebody = host.domain("plain").ref
    with pytest.raises(xenpm.NoSuchDomain):
        config.of(host.domain(somebody._replace(handle=bytes(16))))
    with Xenlight() as context, pytest.raises(xenpm.XenlightError) as caught:
        context.domain_configuration(999)
    assert caught.value.call == "libxl_retrieve_domain_configuration"
    assert caught.value.detail


@contextmanager
def being_changed(domain: xenpm.Domain) -> Iterator[None]:
    """Within: another toolstack holds libxl's lock of the domain's devices."""
    name = f"userdata-l.{domain.domid}.{domain.uuid}.libxl-device-changes-lock"
    with Path("/var/lib/xen", name).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_domain_that_somebody_else_changes(host: xenpm.Host) -> None:
    """libxl would fork a child to wait for the lock, without a deadline."""
    plain = host.domain("plain")
    with being_changed(plain), pytest.raises(xenpm.XenlightError) as caught:
        config.of(plain)
    assert caught.value.errno == 16  # EBUSY
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert config.of(plain).name == "plain"


# -- contexts


def disposition() -> tuple[object, str]:
    """What becomes of SIGCHLD: Python's handler, and the masks of caught and ignored signals."""
    masks = re.findall(r"^Sig(?:Ign|Cgt|Blk):.*$", Path("/proc/self/status").read_text(), re.M)
    return signal.getsignal(signal.SIGCHLD), str(masks)


@pytest.mark.parametrize("handled", [False, True])
def test_sigchld_stays_python_s(host: xenpm.Host, handled: bool) -> None:
    plain = host.domain("plain")
    children: list[int] = []

    def handler(_signum: int, _frame: object) -> None:
        children.append(1)

    before = signal.signal(signal.SIGCHLD, handler if handled else signal.SIG_DFL)
    try:
        expected = disposition()
        with Xenlight() as one, Xenlight() as two:
            for context in (one, two, one):
                context.domain_configuration(plain.domid)
                with being_changed(plain), pytest.raises(xenpm.XenlightError):
                    context.domain_configuration(plain.domid)
                context.assignable_pci()
                assert disposition() == expected
                assert subprocess.run(["sh", "-c", "exit 3"], check=False).returncode == 3
                pid = os.posix_spawn("/bin/true", ["true"], os.environ)
                assert os.waitpid(pid, 0) == (pid, 0)
        assert disposition() == expected
        assert len(children) == (6 if handled else 0)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_asyncio_beside_contexts(host: xenpm.Host) -> None:
    domids = [domain.domid for domain in host.domains()]
    signals: list[int] = []

    async def child(code: int) -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {code}")
        return await process.wait()

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, signals.append, 1)
        with Xenlight() as context:
            children = [loop.create_task(child(code)) for code in range(5)]
            for domid in domids:
                await loop.run_in_executor(None, context.domain_configuration, domid)
                context.domain_configuration(domid)
            codes = await asyncio.wait_for(asyncio.gather(*children), 60)
        loop.remove_signal_handler(signal.SIGCHLD)
        return codes

    assert asyncio.run(main()) == list(range(5))
    assert signals


def test_contexts_leave_nothing_behind(host: xenpm.Host) -> None:
    domid = host.domain("card").domid
    for _ in range(2):  # the first fills caches
        descriptors = sorted(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with Xenlight() as context:
                context.domain_configuration(domid)
            assert context.closed
            with pytest.raises(ValueError, match="closed"):
                context.domain_configuration(domid)
        Xenlight().domain_configuration(domid)  # collected without having been closed
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def test_context_in_a_forked_child() -> None:
    with Xenlight() as context:
        pid = os.fork()
        if pid == 0:
            try:
                context.assignable_pci()
            except RuntimeError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert isinstance(context.assignable_pci(), list)


def test_exit_with_open_context(host: xenpm.Host) -> None:
    program = "from xenpm._ext.xenlight import Xenlight; x = Xenlight(); x.domain_configuration(1)"
    program = program.replace("(1)", f"({host.domain('card').domid})")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- the command line


def test_command_line(tmp_path: Path) -> None:
    for path in GUESTS.glob("*.cfg"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    command: Callable[..., subprocess.CompletedProcess[str]] = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "xenpm", "config", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    done = command(str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^card +pv +yes +owns {CARD} ", done.stdout, re.M)
    done = command("--assignable", str(tmp_path))
    assert done.returncode == 1
    assert re.search(r"card\.cfg:\d+:\d+: pci: 0000:00:10.0 is not assignable", done.stderr)
