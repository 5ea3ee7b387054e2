"""The whole host goes to sleep and comes back: a transaction over all its guests.

Like the conversations with one guest it is a machine without I/O.  For each guest it starts another
one: down, at the moment when no guest that is still up depends on it; up again, at the moment when
all that it depends on runs.  A journal has a line before each thing that a killed process would
leave half done.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from . import heavy, protocol, reinit
from .actions import (
    Cancel,
    Cancelled,
    Child,
    Clock,
    EnterSleep,
    GetSleepStates,
    GetVcpu,
    Join,
    JournalAdd,
    JournalBegin,
    JournalEnd,
    JournalRead,
    ListDomains,
    Lock,
    Machine,
    Pause,
    Start,
    Swap,
    Unpause,
    Wait,
    look,
)
from .devices import used_by
from .errors import (
    CALL_ERRORS,
    HostSuspendError,
    JournalError,
    NoSuchDomain,
    NotPermitted,
    NotSuspended,
    ResumeError,
    SaveError,
    SleepFailed,
    SuspendCancelled,
    SuspendError,
    SuspendInterrupted,
    XenError,
)
from .hooks import Hook, HookEvent, HookPoint, HookResult, run_hooks
from .plan import Plan, PlanEntry, decide
from .policy import OnFailure, OnHookFailure, Policy, Settings
from .timeline import HOST, Span, Timeline, columns, printable
from .topology import Topology, read_topology
from .types import (
    Device,
    DomainInfo,
    DomainRef,
    DomainState,
    Phase,
    Resumption,
    Saving,
    Sleep,
    Suspension,
    XenbusState,
    plain,
)

__all__ = ["DomainReport", "Outcome", "Report", "resume_domains", "suspend"]

T = TypeVar("T")

_log = logging.getLogger("xenpm.sleep")

_NS = 1_000_000_000
_LATE_NS = 30 * _NS  # how long a guest that took the request is watched over, as `Domain.suspend`
_PAUSED_INSTEAD_NS = _NS  # the same for one that is paused then: paused it cannot suspend
_BACKENDS_NS = 30 * _NS  # as `Domain.resume`
_HEALTH_NS = 10 * _NS  # what a guest has for being as it was
_LOOK_AGAIN_NS = _NS // 20  # nothing tells when a vCPU has run
_LONG_NS = 86_400 * _NS  # for waits whose ends have deadlines of their own
_PARTS = ("request", "acknowledge", "suspend", "model")  # of a suspension; not all have the last
_HOST_LOCK = 0  # domain 0 is never suspended by itself: its lock is the host's


@dataclass(frozen=True)
class Terms:
    """What holds for a whole host suspend, or for its undoing."""

    settings: Settings  #: the deadlines, and what a hook's failure means
    hooks: Sequence[Hook]  #: what is called before and after
    tell: Callable[[str], None]  #: gets what happens, in words, when it happens


class Outcome(enum.Enum):
    """What has become of a domain."""

    UNTOUCHED = "untouched"  #: its turn did not come
    LEFT = "left"  #: as it was, as the plan says
    SUSPENDED = "suspended"  #: by us; it is down
    PAUSED = "paused"  #: by us; it is down
    SAVED = "saved"  #: by us, to a file, and destroyed
    FAILED = "failed"  #: it could not be suspended, and runs
    RUNNING = "running"  #: it was down, and has been brought back
    GONE = "gone"  #: it has shut down, crashed or been destroyed meanwhile
    LOST = "lost"  #: it is still down, for it could not be brought back


_UP = {Outcome.PAUSED: "unpause", Outcome.SAVED: "restore"}  # how each is brought back, in a word


@dataclass
class DomainReport:
    """The story of one domain."""

    entry: PlanEntry
    outcome: Outcome = Outcome.UNTOUCHED  #: what it is now
    error: XenError | None = None  #: why it was not suspended
    suspension: Suspension | None = None  #: how long it took; None: it was not suspended
    saving: Saving | None = None  #: its file; None: it was not saved
    restored: DomainRef | None = None  #: what the domain is since it was made anew of its file
    resumption: Resumption | None = None  #: how it was resumed; None: it was not
    hooks: list[HookResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  #: what is not as it should be, in words

    @property
    def domain(self) -> DomainRef:
        """Which domain; one that was saved is a new one since."""
        return self.restored or self.entry.domain

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        return {
            **plain(self.entry),
            "outcome": self.outcome.value,
            "error": self.error and type(self.error).__name__,
            "message": self.error and str(self.error),
            "suspension": self.suspension and self.suspension.to_dict(),
            "saving": self.saving and self.saving.to_dict(),
            "restored": plain(self.restored),
            "resumption": self.resumption and self.resumption.to_dict(),
            "hooks": plain(self.hooks),
            "problems": self.problems,
        }


@dataclass
class Report:
    """The story of a host suspend, or of the half of it that was asked for."""

    state: str  #: the sleep state; empty when somebody else puts the machine to sleep
    domains: dict[int, DomainReport]  #: by domid
    timeline: Timeline = field(default_factory=Timeline)
    sleep: Sleep | None = None  #: None: the machine was not put to sleep
    hooks: list[HookResult] = field(default_factory=list)  #: the host's own
    host_problems: list[str] = field(default_factory=list)  #: those of no single domain

    @property
    def problems(self) -> list[str]:
        """All that is not as it should be, in words; empty when all is well."""
        return self.host_problems + [
            f"{each.domain}: {problem}"
            for each in self.domains.values()
            for problem in each.problems
        ]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        return {
            "state": self.state,
            "domains": [each.to_dict() for each in self.domains.values()],
            "sleep": plain(self.sleep),
            "hooks": plain(self.hooks),
            "problems": self.problems,
            "timeline": self.timeline.to_dict(),
        }

    def to_text(self) -> str:
        """The same for the terminal: a line for each domain, the sleep, then what is wrong."""
        return "\n".join([*columns(self.to_rows()), *self.remarks])

    def to_rows(self) -> list[tuple[str, ...]]:
        """A row of a table for each domain: who, what became of it, its policy, how long."""
        return [
            (printable(str(each.domain)), each.outcome.value, each.entry.policy.value, _took(each))
            for each in self.domains.values()
        ]

    @property
    def remarks(self) -> list[str]:
        """The lines below the table: the sleep, then what is wrong."""
        slept = [] if self.sleep is None else [_slept(self.sleep)]
        return [*slept, *(f"PROBLEM: {printable(each)}" for each in self.problems)]


def _took(report: DomainReport) -> str:
    words = []
    if report.suspension is not None:
        words.append(f"suspended in {_ms(report.suspension.total_ns)}")
    if report.saving is not None:
        words.append(f"saved in {_ms(report.saving.total_ns)}")
    if report.resumption is not None:
        words.append(f"resumed in {_ms(report.resumption.total_ns)}")
    return ", ".join(words) or (report.entry.reason if not report.entry.goes_down else "")


def _slept(sleep: Sleep) -> str:
    by = ", ".join(sleep.woken_by)
    if sleep.wakeup_irq is not None:
        by = ", ".join(filter(None, [by, f"interrupt {sleep.wakeup_irq} {sleep.wakeup_irq_name}"]))
    woken = f"; woken by {by.rstrip()}" if by else "; the kernel does not know what woke it"
    return f"the machine slept for {sleep.slept_ns / _NS:.1f} s ({sleep.state}){woken}"


def _timeout_ns(entry: PlanEntry) -> int | None:
    return None if entry.timeout is None else int(entry.timeout * _NS)


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"


@dataclass
class _Domain:
    """What the transaction itself knows of one domain, besides its report."""

    report: DomainReport
    down: bool = False  # it is to be brought back
    asked: Policy | None = None  # what is being done with it, or was when a process was killed
    hooked: bool = False  # its hooks have been told that it goes down
    # it took the request, or that could not be taken back: it may suspend as soon as it runs
    may_suspend_late: bool = False
    connected: tuple[str, ...] = ()  # the backends of its devices that were connected before
    vcpu_ns: dict[int, int] = field(default_factory=dict)  # what its vCPUs had used while down
    since_ns: int = 0  # when it went down, if by this process
    replayed: bool = False  # it went down by one that was killed, perhaps just after resuming it

    used: set[tuple[str, int]] = field(default_factory=set)  # its devices that were connected

    @property
    def domain(self) -> DomainRef:
        return self.report.domain

    def missing(self, what: str) -> None:
        """It is not there any more as it was."""
        self.down = False
        self.report.outcome = Outcome.GONE
        self.report.problems.append(what)

    def lost(self, why: object) -> None:
        """It could not be brought back, which can be tried again."""
        self.report.outcome = Outcome.LOST
        self.report.problems.append(str(why))


class _Transaction:
    """One host suspend, or what is left of one."""

    def __init__(
        self,
        state: str,
        entries: Iterable[PlanEntry],
        terms: Terms,
        directory: Path,
        now: Clock,
    ) -> None:
        self.state = state
        self.terms = terms
        self.settings = terms.settings
        self.directory = directory
        self.now = now
        self.domains = {
            entry.domain.domid: _Domain(
                DomainReport(entry, Outcome.UNTOUCHED if entry.goes_down else Outcome.LEFT)
            )
            for entry in entries
        }
        self.report = Report(state, {domid: each.report for domid, each in self.domains.items()})
        self.failures: dict[DomainRef, XenError] = {}
        self.stops: list[str] = []  # why the host is not to sleep, or did not
        self.cancelled = False

    def tell(self, text: str, level: int = logging.INFO) -> None:
        """Say what happens, when it happens."""
        _log.log(level, "%s", text)
        try:
            self.terms.tell(text)
        except Exception:  # of the caller's: nobody's guests stay down for a full terminal
            _log.exception("progress could not be told")

    def span(self, row: str, what: str, began: int, detail: str = "", failed: bool = False) -> None:
        """Something has ended now."""
        self.report.timeline.add(Span(row, what, began, self.now(), detail, failed))

    def note(self, **entry: Any) -> Machine[bool]:
        """Add to the journal; whether it could be written.  If not, the host is not to sleep."""
        try:
            yield JournalAdd(entry)
        except JournalError as error:
            self.stop(str(error))
            return False
        return True

    def note_done(self, each: _Domain, event: str) -> Machine[None]:
        """Add to the journal what need not be done again, should this process be killed."""
        try:
            domid, outcome = each.report.entry.domain.domid, each.report.outcome.value
            yield JournalAdd({"event": event, "domid": domid, "outcome": outcome})
        except JournalError as error:
            self.report.host_problems.append(str(error))

    def stop(self, why: str) -> None:
        """The host is not to sleep."""
        self.stops.append(why)
        self.tell(why, logging.ERROR)

    @property
    def ends(self) -> bool:
        """Whether all is to be undone."""
        return self.cancelled or bool(self.stops)

    # -- going down

    def go_down(self) -> Machine[None]:
        """Suspend or pause all that is to go down, each when its turn comes."""
        until = self.now() + int(self.settings.timeout * _NS)
        yield from self.host_hooks(HookPoint.HOST_PRE)
        began = self.now()
        running: dict[int, Child] = {}
        try:
            yield from self.all_down(running, until)
        except Exception as error:  # whatever it is, the guests come back
            self.failed(error)
        for child in running.values():
            yield Cancel(child)
        yield from self.all_ended(running.values())
        self.span(HOST, "suspend", began, "; ".join(self.stops), failed=self.ends)

    def all_down(self, running: dict[int, Child], until: int) -> Machine[None]:
        """Start one machine for each domain that is to go down, until all have ended."""
        waiting = {d: each for d, each in self.domains.items() if each.report.entry.goes_down}
        up = set(waiting)
        while (running or waiting) and not self.ends:
            for domid in [d for d, e in waiting.items() if not up & set(e.report.entry.after)]:
                running[domid] = yield Start(self.one_down(waiting.pop(domid)))
            if not (yield from self.joined(running.values(), until)) and not self.cancelled:
                slow = ", ".join(str(self.domains[domid].domain) for domid in running)
                self.stop(f"not all was down after {self.settings.timeout:g} s: {slow} is not")
            for domid in [d for d, child in running.items() if child.done]:
                self.ended(running.pop(domid))
                up.discard(domid)

    def joined(self, children: Collection[Child], until: int) -> Machine[bool]:
        """Wait for one of them; False when time is up or the caller has cancelled."""
        try:
            return bool((yield Join(tuple(children), until)))
        except Cancelled:
            self.cancelled = True
            return False

    def all_ended(self, children: Iterable[Child], each: _Domain | None = None) -> Machine[None]:
        """Wait for all of them, whatever the caller wants: they have deadlines of their own."""
        for child in children:
            while not child.done:
                yield from self.joined((child,), self.now() + _LONG_NS)
            self.ended(child, each)

    def ended(self, child: Child, each: _Domain | None = None) -> None:
        """One of our machines has ended; it has told what it came to, unless it has a fault."""
        try:
            child.result()
        except Exception as error:  # it must not keep the other guests down
            self.failed(error, each)

    def failed(self, error: Exception, each: _Domain | None = None) -> None:
        """Something has failed that nobody has seen to."""
        _log.error("a part of a host suspend has failed", exc_info=error)
        known = isinstance(error, XenError)
        why = str(error) if known else f"xenpm failed in the middle: {error!r}"
        if each is None:
            self.stop(why)
        elif each.down or each.asked:
            each.lost(why)
        else:
            each.report.problems.append(why)

    def host_hooks(self, point: HookPoint, result: str = "") -> Machine[None]:
        event = HookEvent(point, self.state, None, result)
        try:
            yield from self.call_hooks(event, HOST, self.report.hooks)
        except Cancelled:
            self.cancelled = True

    def call_hooks(self, event: HookEvent, row: str, results: list[HookResult]) -> Machine[bool]:
        """Call all hooks; whether they let the host sleep."""
        fine = True
        for hook in self.terms.hooks:
            began = self.now()
            timeout_ns = int(self.settings.hook_timeout * _NS)
            (result,) = yield from run_hooks((hook,), event, self.now, timeout_ns)
            results.append(result)
            self.span(row, "hook", began, f"{result.name} {event.point.value}", result.failed)
            if not result.failed:
                continue
            self.report.host_problems.append(str(result))
            self.tell(str(result), logging.WARNING)
            before = event.point in (HookPoint.HOST_PRE, HookPoint.DOMAIN_PRE)
            if before and self.settings.on_hook_failure is OnHookFailure.UNDO:
                self.stop(f"{result}; so the host does not sleep")
                fine = False
        return fine

    def one_down(self, each: _Domain) -> Machine[None]:
        """Suspend or pause one domain; what comes of it is in its report."""
        domid, how = each.domain.domid, each.report.entry.policy
        if self.terms.hooks and not (yield from self.note(event="hooked", domid=domid)):
            return
        each.hooked = True
        event = HookEvent(HookPoint.DOMAIN_PRE, self.state, each.domain)
        try:
            if not (yield from self.call_hooks(event, str(each.domain), each.report.hooks)):
                return
        except Cancelled:
            return
        if not (yield from self.note(event="asked", domid=domid, how=how.value)):
            return
        each.asked = how
        if how is Policy.PAUSE:
            yield from self.pause(each)
        elif how is Policy.SAVE:
            yield from self.save(each)
        else:
            yield from self.suspend(each)
        if each.down or not each.may_suspend_late:
            each.asked = None  # else it is looked at again when the others come back

    def suspend(self, each: _Domain) -> Machine[None]:
        domain, entry, report = each.domain, each.report.entry, each.report
        began = self.now()
        late_ns = _PAUSED_INSTEAD_NS if entry.on_failure is OnFailure.PAUSE else _LATE_NS
        machine = protocol.suspend(domain, self.now, _timeout_ns(entry), late_ns)
        gone = yield from self.attempt(each, "suspend", machine)
        if gone is None:
            return
        devices, done = gone
        report.outcome, report.suspension, each.down = Outcome.SUSPENDED, done, True
        each.connected = tuple(device.backend for device in devices)
        each.since_ns = self.now()
        parts = ((part, getattr(done, f"{part}_ns")) for part in _PARTS)
        detail = ", ".join(f"{part} {_ms(ns)}" for part, ns in parts if part != "model" or ns)
        self.span(str(domain), "suspend", began, detail)
        yield from self.note(event="down", domid=domain.domid, connected=each.connected)
        self.tell(f"{domain}: suspended in {_ms(done.total_ns)}")

    def save(self, each: _Domain) -> Machine[None]:
        domain = each.domain
        began = self.now()
        timeout_ns = _timeout_ns(each.report.entry)
        machine = heavy.save(domain, self.file_of(each), self.now, timeout_ns)
        gone = yield from self.attempt(each, "save", machine)
        if gone is None:
            return
        devices, done = gone
        each.used = {(device.kind, device.devid) for device in devices}
        yield from self.is_saved(each, done)
        self.span(str(domain), "save", began, f"{done.size_bytes >> 20} MiB")
        self.tell(f"{domain}: saved to {done.path} in {_ms(done.total_ns)}")

    def attempt(
        self, each: _Domain, what: str, machine: Machine[T]
    ) -> Machine[tuple[list[Device], T] | None]:
        """Run what takes a domain down: its devices that were connected, and what came of it.

        None when it has failed; all that follows from that is done then.
        """
        began = self.now()
        try:
            devices: tuple[Device, ...] = yield from used_by(each.domain.domid, [])
            return [device for device in devices if _connected(device)], (yield from machine)
        except (NoSuchDomain, SuspendInterrupted) as error:
            self.missing(each, error)
        except XenError as error:
            yield from self.not_suspended(each, error)
        failure = str(each.report.error or "")
        self.span(str(each.domain), what, began, failure, failed=True)
        return None

    def missing(self, each: _Domain, error: XenError) -> None:
        """It is not there any more, and was to go down."""
        each.missing(_words(error))
        self.tell(str(error), logging.WARNING)
        if each.report.entry.on_failure is OnFailure.UNDO:
            self.failures[each.domain] = error
            self.stop(f"{error}; so the host does not sleep")

    def is_saved(self, each: _Domain, done: Saving) -> Machine[None]:
        each.report.outcome, each.report.saving, each.down = Outcome.SAVED, done, True
        each.since_ns = self.now()
        yield from self.note(event="saved", domid=done.domain.domid, size_bytes=done.size_bytes)

    def file_of(self, each: _Domain) -> Path:
        return self.directory / f"{each.report.entry.domain.uuid}.save"

    def not_suspended(self, each: _Domain, error: XenError) -> Machine[None]:
        """It could not be suspended: pause it instead, or have all undone."""
        report = each.report
        report.error, report.outcome = error, Outcome.FAILED
        each.may_suspend_late = not _settled(error)
        if isinstance(error, SuspendCancelled):
            return
        if isinstance(error, ResumeError) and (yield from self.seems_down(each)):
            # perhaps with its device model: it is to be resumed with the others
            report.outcome, each.down = Outcome.SUSPENDED, True
            yield from self.note(event="down", domid=each.domain.domid, connected=())
        if report.entry.on_failure is OnFailure.UNDO:
            self.failures[each.domain] = error
            self.stop(str(error))
            return
        if each.down:
            self.tell(f"{error}; it stays so until the host has slept", logging.WARNING)
            report.problems.append(f"its suspension has failed: {_words(error)}")
            return
        if each.asked is Policy.SAVE and each.may_suspend_late:
            report.problems.append(f"could perhaps not be saved: {_words(error)}")
            return
        pause, late = Policy.PAUSE.value, each.may_suspend_late
        note = self.note(event="asked", domid=each.domain.domid, how=pause, late=late)
        if (yield from note):
            self.tell(f"{error}; it is paused instead", logging.WARNING)
            if (yield from self.pause(each)):
                report.problems.append(f"was paused, for it could not be suspended: {error}")

    def seems_down(self, each: _Domain) -> Machine[bool]:
        """Whether a domain is suspended, as far as that is known; it is looked at again later."""
        try:
            info = yield from look(each.domain)
        except CALL_ERRORS:
            return True
        return info is not None and info.suspended

    def pause(self, each: _Domain) -> Machine[bool]:
        """Take it off the CPUs; whether that was possible."""
        began = self.now()
        domain = each.domain
        try:
            if (yield from look(domain)) is None:
                self.missing(each, NoSuchDomain(f"{domain} is gone"))
                return False
            devices: tuple[Device, ...] = yield from used_by(domain.domid, [])
            each.connected = tuple(d.backend for d in devices if _connected(d))
            yield Pause(domain.domid)
        except CALL_ERRORS as error:
            each.report.error, each.report.outcome = each.report.error or error, Outcome.FAILED
            self.failures[domain] = error
            self.stop(f"{domain} cannot be paused: {error}")
            return False
        each.report.outcome, each.down, each.since_ns = Outcome.PAUSED, True, self.now()
        self.span(str(domain), "pause", began)
        yield from self.note(event="down", domid=domain.domid, connected=each.connected)
        self.tell(f"{domain}: paused")
        return True

    # -- in between

    def check_newcomers(self) -> Machine[None]:
        """See whether there are domains of which the plan knows nothing."""
        known = {(domid, each.domain.handle) for domid, each in self.domains.items()}
        infos: list[DomainInfo] = yield ListDomains()
        new = {
            info.domid
            for info in infos
            if info.domid != 0 and not info.dying and (info.domid, info.handle) not in known
        }
        if not new:
            return
        topology: Topology = yield from read_topology()
        for member in topology.members:
            if member.domain.domid not in new:
                continue
            who = f"{member.domain} was created meanwhile"
            policy, reason, _ = yield from decide(member, self.settings, {}, topology)
            if policy is Policy.ABORT:
                self.stop(f"{who}: {reason}")
            elif member.owns and policy not in (Policy.PAUSE, Policy.LEAVE):
                what = topology.driver_domain(member.domain.domid)
                self.stop(f"{who}, and {what}, which is not quiesced")
            else:
                self.report.host_problems.append(f"{who}: Xen stops it, and it is not told")

    def go_to_sleep(self) -> Machine[None]:
        """Put the machine to sleep, unless the caller has cancelled meanwhile."""
        yield from self.joined((), self.now())  # hears of the signals that have come
        if self.ends or not (yield from self.note(event="sleep")):
            return
        self.tell(f"all guests are down, the machine goes to sleep ({self.state})")
        try:
            slept: Sleep = yield EnterSleep(self.state)
        except (SleepFailed, NotPermitted) as error:
            self.report.sleep = getattr(error, "sleep", None)
            self.stop(str(error))
            return
        self.report.sleep = slept
        self.report.timeline.add_sleep(slept)
        self.tell(_slept(slept))
        for problem in slept.problems:
            self.stop(problem)

    # -- coming up

    def come_up(self) -> Machine[None]:
        """Bring everything back, each domain when all that it needs is up; failures are noted."""
        began = self.now()
        waiting = {
            domid: each
            for domid, each in self.domains.items()
            if each.down or each.asked or each.hooked
        }
        running: dict[int, Child] = {}
        afterwards: list[tuple[Child, _Domain]] = []
        down = set(waiting)
        while running or waiting:
            for domid in [d for d, e in waiting.items() if not down & set(e.report.entry.needs)]:
                running[domid] = yield Start(self.one_up(waiting.pop(domid)))
            yield from self.joined(running.values(), self.now() + _LONG_NS)
            for domid in [d for d, child in running.items() if child.done]:
                self.ended(running.pop(domid), self.domains[domid])
                down.discard(domid)
                # beside the others, which need not wait for that
                each = self.domains[domid]
                afterwards.append(((yield Start(self.look_after(each))), each))
        self.span(HOST, "undo" if self.ends else "resume", began, failed=bool(self.lost))
        for child, each in afterwards:
            yield from self.all_ended([child], each)

    def one_up(self, each: _Domain) -> Machine[None]:
        """Bring one domain back; what cannot be is noted, and can be tried again."""
        if not each.down and not each.asked:
            return
        report, row = each.report, str(each.domain)
        began, was = self.now(), Outcome.UNTOUCHED
        if each.since_ns:
            self.span(row, report.outcome.value, each.since_ns)
        try:
            if each.asked and not each.down:
                yield from self.take_back(each)
            if each.down:
                was = report.outcome
                yield from self.lift(each)
        except NoSuchDomain as error:
            each.missing(_words(error))
        except XenError as error:
            each.lost(_words(error))
        failed = report.outcome in (Outcome.LOST, Outcome.GONE)
        if failed:
            self.tell(f"{each.domain}: {report.problems[-1]}", logging.ERROR)
        if failed or was is not Outcome.UNTOUCHED:
            self.span(row, _UP.get(was, "resume"), began, failed=failed)
        if report.outcome is not Outcome.LOST:
            each.down, each.asked = False, None
            yield from self.note_done(each, "up")

    def lift(self, each: _Domain) -> Machine[None]:
        """Bring back one domain that is down."""
        try:
            if each.report.outcome is Outcome.PAUSED:
                yield from self.unpause(each)
            elif each.report.outcome is Outcome.SAVED:
                yield from self.restore(each)
            else:
                yield from self.resume(each)
        except NotSuspended as error:
            info = yield from look(each.domain)
            if info is None or info.state not in (DomainState.RUNNING, DomainState.PAUSED):
                each.missing(_why(info) if info else str(error))
                return
            each.report.outcome = Outcome.RUNNING
            if not each.replayed:
                each.report.problems.append("somebody else has resumed it")

    def count_vcpus(self, each: _Domain) -> Machine[None]:
        """What its vCPUs have used is to have grown afterwards; see `check_health`."""
        was_paused = each.report.outcome is Outcome.PAUSED
        try:
            used = yield from self.vcpus(each)
        except CALL_ERRORS as error:
            each.report.problems.append(f"whether its vCPUs run again cannot be seen: {error}")
            return
        # of one that was paused, those with nothing to do may go on having nothing to do
        each.vcpu_ns = {n: ns for n, (ns, blocked) in used.items() if not (was_paused and blocked)}

    def resume(self, each: _Domain) -> Machine[None]:
        yield from self.count_vcpus(each)
        done = yield from reinit.resume(each.domain, self.now, _BACKENDS_NS, None, False)
        each.report.outcome, each.report.resumption = Outcome.RUNNING, done
        each.report.problems += done.problems
        way = "" if done.cooperative else " by starting over"
        self.tell(f"{each.domain}: resumed{way} in {_ms(done.total_ns)}")

    def restore(self, each: _Domain) -> Machine[None]:
        """Make a domain anew of its file, unless a process that was killed has come so far."""
        before, report = each.report.entry.domain, each.report
        for info in (yield ListDomains()):
            if info.handle == before.handle and not (info.paused or info.shutdown or info.dying):
                report.outcome = Outcome.RUNNING
                report.restored = DomainRef(info.domid, info.handle, before.name)
                try:
                    left = yield from heavy.remove(self.file_of(each), self.now)
                except CALL_ERRORS as error:
                    left = f"{self.file_of(each)}: whether it is removed is unknown: {error}"
                report.problems += [left] if left else []
                return
        size_bytes = 0 if report.saving is None else report.saving.size_bytes
        began, timeout_ns = self.now(), heavy.default_timeout_ns(size_bytes)
        restored = yield from heavy.restore(self.file_of(each), self.now, timeout_ns, remove=True)
        report.outcome, report.restored = Outcome.RUNNING, restored
        devices: tuple[Device, ...] = yield from used_by(restored.domid, [])
        each.connected = tuple(d.backend for d in devices if (d.kind, d.devid) in each.used)
        self.tell(f"{restored}: restored in {_ms(self.now() - began)}")

    def unpause(self, each: _Domain) -> Machine[None]:
        domain = each.domain
        info = yield from look(domain)
        if info is None:
            raise NoSuchDomain(f"{domain} is gone")
        if info.paused:
            yield from self.count_vcpus(each)
            yield Unpause(domain.domid)
            self.tell(f"{domain}: unpaused")
        elif not each.replayed:
            each.report.problems.append("somebody else has unpaused it")
        each.report.outcome = Outcome.RUNNING
        if each.may_suspend_late:
            yield from self.withdraw(each)

    def watch_late(self, each: _Domain) -> Machine[bool]:
        """Resume a guest that has taken a request before, should it suspend now; whether it did."""
        until = self.now() + _LATE_NS
        while True:
            info = yield from look(each.domain)
            if info is not None and info.suspended:
                yield from self.resume(each)
                return True
            if info is None or info.shutdown or info.dying or self.now() >= until:
                return False
            yield Wait(each.domain, until)

    def take_back(self, each: _Domain) -> Machine[None]:
        """What was being done with it has not ended, for a kill or a fault: see how far it came."""
        domain, report = each.domain, each.report
        if each.asked is Policy.SAVE:
            yield from self.finish_save(each)
            return
        info = yield from look(domain)
        if info is None:
            each.missing("is gone")
            return
        if each.asked is Policy.PAUSE and (info.paused or not each.may_suspend_late):
            each.down = info.paused
            report.outcome = Outcome.PAUSED if info.paused else Outcome.UNTOUCHED
            return
        if info.suspended:
            each.down, report.outcome = True, Outcome.SUSPENDED
        else:
            yield from self.withdraw(each)

    def withdraw(self, each: _Domain) -> Machine[None]:
        """Take the request back, or resume the guest, should it suspend now."""
        domain = each.domain
        home = f"/local/domain/{domain.domid}"
        try:
            found = yield Swap(f"{home}/control/shutdown", (b"suspend",), b"", domain.domid, home)
            if found == b"suspend" or (yield from self.watch_late(each)):
                return
            if each.may_suspend_late:
                each.report.problems.append(
                    "took the request to suspend, and still runs: should it suspend yet, resume it"
                )
        except XenError as error:
            each.lost(f"whether it may yet suspend is unknown: {_words(error)}")

    def finish_save(self, each: _Domain) -> Machine[None]:
        """See whether the file of a domain was completed; if not, it runs again."""
        try:
            done = yield from heavy.finish_save(each.domain, self.file_of(each), self.now)
        except NoSuchDomain as error:
            each.missing(_words(error))
        except SaveError as error:
            each.report.error = error
            if not error.state_known:
                each.lost(_words(error))
        else:
            yield from self.is_saved(each, done)

    def look_after(self, each: _Domain) -> Machine[None]:
        """See whether a domain is well again, then tell its hooks."""
        report = each.report
        if report.outcome is Outcome.RUNNING:
            began = self.now()
            count = len(report.problems)
            yield from self.check_health(each)
            self.span(str(each.domain), "check", began, failed=len(report.problems) > count)
            for problem in report.problems[count:]:
                self.tell(f"{each.domain}: {problem}", logging.ERROR)
        if each.hooked:
            result = "; ".join(report.problems) or "ok"
            event = HookEvent(HookPoint.DOMAIN_POST, self.state, each.domain, result)
            yield from self.call_hooks(event, str(each.domain), report.hooks)
            if self.terms.hooks and report.outcome is not Outcome.LOST:
                yield from self.note_done(each, "told")

    def vcpus(self, each: _Domain) -> Machine[dict[int, tuple[int, bool]]]:
        """What each vCPU in use has had of the CPUs in nanoseconds, and whether it is blocked."""
        info = yield from look(each.domain)
        found = {}
        for number in range(0 if info is None else info.max_vcpu_id + 1):
            vcpu = yield GetVcpu(each.domain.domid, number)
            if vcpu.online:
                found[number] = vcpu.cpu_time_ns, vcpu.blocked
        return found

    def check_health(self, each: _Domain) -> Machine[None]:
        """Wait until the vCPUs have run and the devices are connected; what is not is noted."""
        report, domain = each.report, each.domain
        until = self.now() + _HEALTH_NS
        try:
            while True:
                info = yield from look(domain)
                if info is None or info.shutdown or info.dying:
                    each.missing(f"{_why(info)}, after it was brought back")
                    return
                used = yield from self.vcpus(each)
                idle = [n for n, ns in each.vcpu_ns.items() if n not in used or used[n][0] <= ns]
                devices = {d.backend: d for d in (yield from used_by(domain.domid, []))}
                apart = [
                    path
                    for path in each.connected
                    if path not in devices or not _connected(devices[path])
                ]
                fine = not info.paused and not idle and not apart
                if fine or self.now() >= until:
                    break
                yield Wait(domain, min(until, self.now() + _LOOK_AGAIN_NS))
        except CALL_ERRORS as error:
            report.problems.append(f"whether it is well could not be seen: {error}")
            return
        if info.paused:
            report.problems.append("is paused, by somebody else")
        else:
            report.problems += [f"its vCPU {number} does not run" for number in idle]
        report.problems += [
            f"its {devices.get(path, path)} is not connected again" for path in apart
        ]

    # -- the whole

    def bring_back(self) -> Machine[None]:
        """Come up, tell the hooks, and remove the journal unless it is needed for trying again."""
        try:
            yield from self.come_up()
        except Exception as error:  # the journal stays, and with it what is still down
            self.failed(error)
        for each in self.domains.values():
            if (each.down or each.asked) and each.report.outcome is not Outcome.LOST:
                each.lost("was not brought back")
        result = "; ".join([*self.stops, *self.report.problems]) or "ok"
        yield from self.host_hooks(HookPoint.HOST_POST, result)
        if self.lost:
            return
        try:
            yield JournalEnd()
        except JournalError as error:
            self.report.host_problems.append(str(error))

    @property
    def lost(self) -> list[DomainReport]:
        """The domains that are still down."""
        return [each for each in self.report.domains.values() if each.outcome is Outcome.LOST]

    def replay(self, note: dict[str, Any]) -> None:
        """What a line of the journal says has become of a domain."""
        if "domid" not in note:
            return
        each = self.domains[note["domid"]]
        if note["event"] == "hooked":
            each.hooked = True
        elif note["event"] == "told":
            each.hooked = False
        elif note["event"] == "asked":
            each.may_suspend_late = bool(note.get("late"))
            each.asked = Policy(note["how"])
        elif note["event"] == "down":
            each.down = each.replayed = True
            each.connected = tuple(note["connected"])
            paused = each.asked is Policy.PAUSE
            each.report.outcome = Outcome.PAUSED if paused else Outcome.SUSPENDED
        elif note["event"] == "saved":
            each.down = each.replayed = True
            each.report.outcome = Outcome.SAVED
            domain, path = each.report.entry.domain, str(self.file_of(each))
            each.report.saving = Saving(domain, path, int(note["size_bytes"]), 0)
        elif note["event"] == "up":
            each.down, each.asked = False, None
            each.report.outcome = Outcome(note["outcome"])
            if each.report.outcome is Outcome.GONE:
                each.report.problems.append("was gone already when it was to be brought back")


def _connected(device: Device) -> bool:
    return device.frontend_state is device.backend_state is XenbusState.CONNECTED


def _settled(error: XenError | None) -> bool:
    """Whether a domain whose suspension has failed surely runs on."""
    if isinstance(error, SuspendError):
        return error.state_known and error.phase is not Phase.ACKNOWLEDGED
    return error is None or isinstance(error, CALL_ERRORS)


def _words(error: XenError) -> str:
    """What has happened, without the name of the domain."""
    return str(getattr(error, "message", error))


def _why(info: DomainInfo | None) -> str:
    """Why a domain does not run any more."""
    if info is None or info.dying:
        return "was destroyed"
    reason = info.shutdown_reason
    name = str(info.shutdown_code) if reason is None else reason.name.lower()
    return f"has shut down with reason {name}"


def suspend(state: str, planning: Machine[Plan], terms: Terms, now: Clock) -> Machine[Report]:
    """Suspend the guests, put the machine to sleep, bring the guests back.

    Args:
        state: what is written to ``/sys/power/state``; empty: stop when all guests are down, for
            the caller puts the machine to sleep and has them brought back later.
        planning: gives what is to happen to each domain, when nobody else can suspend this host.
        terms: what holds for the whole.
        now: a monotonic clock in nanoseconds.

    Raises:
        HostSuspendError: refused by the plan or the kernel, and nothing was touched; or not slept,
            or interrupted, and all that was down has been brought back, as far as that was
            possible; or something did not come back.
        JournalError: it cannot be written, or another host suspend is under way or was left
            unfinished; nothing was touched.
        HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
    """
    if state and state not in (offered := (yield GetSleepStates())):
        raise HostSuspendError(
            f"the kernel does not offer the sleep state {state!r} but "
            f"{' '.join(offered) or 'none at all'}; nothing was touched"
        )
    yield from _take_host()
    if (yield JournalRead()):
        raise JournalError(
            "guests are down already, by a host suspend that was interrupted or that waits for "
            "resume-domains, or its journal could not be removed: "
            "'python -m xenpm host resume-domains' puts that right"
        )
    plan = yield from planning
    if plan.refusals:
        raise HostSuspendError("the host must not sleep: " + "; ".join(plan.refusals))
    directory = terms.settings.save_directory
    self = _Transaction(state, plan.entries, terms, directory, now)
    begin = {"event": "plan", "state": state, "entries": plain(plan.entries)}
    yield JournalBegin({**begin, "save_directory": str(directory)})
    try:
        yield from self.go_down()
        if not self.ends:
            yield from self.check_newcomers()
        if not self.ends and not state:
            if (yield from self.note(event="handed over")):
                return self.report
        elif not self.ends:
            yield from self.go_to_sleep()
    except Exception as error:  # whatever it is, the guests come back
        self.failed(error)
    yield from self.bring_back()
    if not self.ends and not self.lost:
        return self.report
    slept = self.report.sleep is not None and self.report.sleep.verified
    what = "slept" if slept else "did not sleep"
    why = ["it was interrupted"] if self.cancelled else []
    why += [*self.stops, *(f"{each.domain} {each.problems[-1]}" for each in self.lost)]
    raise HostSuspendError(
        f"the host {what}: {'; '.join(why)}",
        self.failures,
        rolled_back=not self.lost,
        report=self.report,
    )


def _take_host() -> Machine[None]:
    if not (yield Lock(_HOST_LOCK)):
        raise JournalError("another process is suspending or resuming this host at this moment")


def resume_domains(terms: Terms, now: Clock, *, only_interrupted: bool) -> Machine[Report | None]:
    """Bring back what a host suspend has left down: one that was told to, or one that was killed.

    Results in None when there is nothing to bring back.

    Args:
        terms: as for `suspend`.
        now: a monotonic clock in nanoseconds.
        only_interrupted: leave alone what is down on purpose.

    Raises:
        HostSuspendError: not everything came back; the journal stays, so it can be tried again.
        JournalError: the journal makes no sense, or another process is at it; or the guests are
            down on purpose.
        HypercallError, StoreError, NotPermitted: a call to Xen failed.
    """
    yield from _take_host()
    notes: list[dict[str, Any]] = yield JournalRead()
    if not notes:
        return None
    try:
        entries = [PlanEntry.of(each) for each in notes[0]["entries"]]
        directory = Path(notes[0]["save_directory"])
        self = _Transaction(notes[0]["state"], entries, terms, directory, now)
        for note in notes[1:]:
            self.replay(note)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JournalError(
            f"the journal makes no sense ({error!r}): look with 'python -m xenpm list' which "
            "guests are suspended or paused, put them back by hand, and remove it"
        ) from error
    if only_interrupted and notes[-1].get("event") == "handed over":
        raise JournalError(
            "the guests are down on purpose, by suspend-domains: if the machine is not about to "
            "sleep, 'python -m xenpm host resume-domains' brings them back"
        )
    yield from self.bring_back()
    if self.lost:
        raise HostSuspendError(
            "not everything came back: " + "; ".join(self.report.problems),
            rolled_back=False,
            report=self.report,
        )
    return self.report
