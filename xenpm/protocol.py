"""The conversations with a guest, as state machines without I/O.

A machine is a generator: it yields an `Action`, is sent the action's result (or thrown its error),
and returns what the conversation came to.  `xenpm.engine` performs the actions, for one machine or
for many, so everything that can go wrong between host and guest is decided in this module alone.

The protocol with the guest is Xen's docs/misc/xenstore-paths (``~/control/shutdown``) and the
``SHUTDOWN_suspend`` of public/sched.h.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar, Union

from .errors import (
    CALL_ERRORS,
    AlreadySuspended,
    NoSuchDomain,
    NotSuspended,
    ResumeError,
    SuspendCancelled,
    SuspendError,
    SuspendInProgress,
    SuspendInterrupted,
    SuspendNotAcknowledged,
    SuspendNotCompleted,
    SuspendNotSupported,
)
from .types import DomainInfo, DomainRef, DomainType, Phase, Resumption, Suspension

T = TypeVar("T")

HVM_PARAM_CALLBACK_IRQ = 0  # public/hvm/params.h
HVM_PARAM_ACPI_S_STATE = 14

_NS = 1_000_000_000
_FREE = (None, b"")  # what control/shutdown holds while nobody asks anything of the guest


class Lock(NamedTuple):
    """Take the domain's lock until the machine ends; results in whether it was free."""

    domid: int


class GetInfo(NamedTuple):
    """Results in the domain's `DomainInfo`, or None when there is no such domain."""

    domid: int


class GetParam(NamedTuple):
    """Results in the value of a HVM parameter."""

    domid: int
    param: int


class Read(NamedTuple):
    """Results in the value of a xenstore node, or None when there is no such node."""

    path: str


class Swap(NamedTuple):
    """Write `value` to a node in a transaction, if its value is one of `expected`.

    Results in the value that was found (None: no such node).  A node that has to be made belongs to
    domain `owner`; it is not made when the node `home` is gone.
    """

    path: str
    expected: Collection[bytes | None]
    value: bytes
    owner: int
    home: str


class Watch(NamedTuple):
    """Watch a xenstore node until the machine ends."""

    path: str


class Wait(NamedTuple):
    """Results in a `Wake`; the only action at which a machine can be thrown `Cancelled`."""

    domain: DomainRef
    until_ns: int


class ResumeDomain(NamedTuple):
    """Let a suspended domain run on."""

    domid: int
    cooperative: bool


class ResumeStore(NamedTuple):
    """Tell xenstored that the domain runs again."""

    domid: int


Action = Union[
    Lock, GetInfo, GetParam, Read, Swap, Watch, Wait, ResumeDomain, ResumeStore
]  # fmt: skip
Machine = Generator[Action, Any, T]
Clock = Callable[[], int]


class Wake(NamedTuple):
    """What ended a `Wait`; several may have come together."""

    store: bool = False  #: a watched node may have changed
    domain: bool = False  #: the domain has shut down or is gone; `info` is what it is now
    info: DomainInfo | None = None
    timed_out: bool = False
    cancelled: bool = False


class Cancelled(Exception):
    """Thrown into a machine: the caller does not want the result any more."""


def _seconds(ns: int) -> str:
    return f"{ns / _NS:.3g} s"


def identify(domain: DomainRef, info: DomainInfo | None) -> DomainInfo | None:
    """`info` if it is of `domain`; None when that is gone, even if its domid has been reused."""
    return info if info is not None and info.handle == domain.handle else None


def _look(domain: DomainRef) -> Machine[DomainInfo | None]:
    return identify(domain, (yield GetInfo(domain.domid)))


def _resume_in_place(domain: DomainRef) -> Machine[None]:
    """Resume a domain that was just seen to be suspended, cooperatively."""
    try:
        yield ResumeDomain(domain.domid, True)
    except CALL_ERRORS as error:
        raise ResumeError(
            domain, f"is still suspended, for the hypervisor did not resume it: {error}"
        ) from error
    try:
        yield ResumeStore(domain.domid)
    except CALL_ERRORS as error:
        raise ResumeError(
            domain,
            f"runs again, but xenstored could not be told ({error}): "
            "its next shutdown will fire no @releaseDomain",
        ) from error


def resume(domain: DomainRef, now: Clock) -> Machine[Resumption]:
    """Resume a suspended domain in place.

    Raises:
        NoSuchDomain: it is gone.
        NotSuspended: it is not suspended; nothing was touched.
        ResumeError: somebody else is at it, or a call failed.
    """
    began = now()
    if not (yield Lock(domain.domid)):
        raise ResumeError(domain, "another process is suspending or resuming it at this moment")
    info = yield from _look(domain)
    if info is None:
        raise NoSuchDomain(f"{domain} is gone")
    if not info.suspended:
        raise NotSuspended(domain, f"is not suspended but {info.state.value}")
    yield from _resume_in_place(domain)
    return Resumption(domain, cooperative=True, total_ns=now() - began)


@dataclass
class _Suspend:
    """One suspend conversation; `run` is the machine."""

    domain: DomainRef
    now: Clock
    timeout_ns: int
    late_timeout_ns: int
    phase: Phase = Phase.IDLE
    failure: Exception | None = None  # the call that failed on the way
    began: int = 0
    requested: int = 0
    acknowledged: int = 0

    @property
    def home(self) -> str:
        return f"/local/domain/{self.domain.domid}"

    @property
    def path(self) -> str:
        return f"{self.home}/control/shutdown"

    def swap(self, expected: Collection[bytes | None], value: bytes) -> Swap:
        return Swap(self.path, expected, value, owner=self.domain.domid, home=self.home)

    def error(self, kind: type[SuspendError], message: str) -> SuspendError:
        elapsed = (self.now() - self.began) / _NS
        return kind(self.domain, message, phase=self.phase, elapsed=elapsed)

    def interrupted(self, info: DomainInfo | None) -> SuspendInterrupted:
        """The error for a domain that is gone or has shut down for another reason."""
        if info is None or info.dying:
            what, reason = "was destroyed", None
        else:
            reason = info.shutdown_reason
            name = str(info.shutdown_code) if reason is None else reason.name.lower()
            what = f"has shut down with reason {name}"
        before = "" if self.phase is Phase.IDLE else " while it was being suspended"
        error = SuspendInterrupted(
            self.domain,
            what + before,
            phase=self.phase,
            elapsed=(self.now() - self.began) / _NS,
        )
        error.reason = reason
        return error

    def run(self) -> Machine[Suspension]:
        self.began = self.now()
        yield from self.prepare()
        try:
            yield from self.request()
            return (yield from self.converse(self.began + self.timeout_ns))
        except CALL_ERRORS as error:
            return (yield from self.abandon(error))

    def prepare(self) -> Machine[None]:
        """Everything that can be refused before anything is touched."""
        domid = self.domain.domid
        if domid == 0:
            raise self.error(
                SuspendNotSupported, "is domain 0, the host's own; it sleeps with the machine"
            )
        if not (yield Lock(domid)):
            raise self.error(
                SuspendInProgress, "another process is suspending or resuming it at this moment"
            )
        info = yield from _look(self.domain)
        if info is None:
            raise NoSuchDomain(f"{self.domain} is gone")
        if info.suspended:
            raise self.error(AlreadySuspended, "is suspended already; resume it first")
        if info.dying or info.shutdown:
            raise self.interrupted(info)
        if (yield Read(f"{self.home}/control/feature-suspend")) == b"0":
            raise self.error(
                SuspendNotSupported,
                "its kernel says that it cannot suspend (control/feature-suspend is 0)",
            )
        if info.type is DomainType.HVM:
            if not (yield GetParam(domid, HVM_PARAM_CALLBACK_IRQ)):
                raise self.error(
                    SuspendNotSupported, "runs no PV drivers (yet), so it cannot be asked"
                )
            if (yield GetParam(domid, HVM_PARAM_ACPI_S_STATE)):
                raise self.error(
                    SuspendNotSupported, "sleeps in an ACPI state of its own; wake it first"
                )

    def request(self) -> Machine[None]:
        yield Watch(self.path)
        found = yield self.swap(_FREE, b"suspend")
        if found not in _FREE:
            raise self.error(
                SuspendInProgress,
                f"somebody else has asked it for {found.decode('utf-8', 'replace')!r} already. "
                f"If nobody is at it any more, clear that: xenstore-write {self.path} ''",
            )
        self.phase = Phase.REQUESTED
        self.requested = self.now()

    def take_back(self) -> Machine[bool]:
        """Take the request back, unless the guest has taken it; says whether it was taken back."""
        found = yield self.swap((b"suspend",), b"")
        if found == b"suspend":
            return True
        if found is None:
            yield from self.put_back()
        else:
            self.acknowledge()
        return False

    def acknowledge(self) -> None:
        if self.phase is Phase.REQUESTED:
            self.phase = Phase.ACKNOWLEDGED
            self.acknowledged = self.now()

    def converse(
        self, deadline: int, ending: type[SuspendError] | None = None
    ) -> Machine[Suspension]:
        """From the request to the end, whatever that is.

        With `ending` the result is not wanted any more: that is the error to raise at the end.
        """
        while True:
            try:
                wake: Wake = yield Wait(self.domain, deadline)
            except Cancelled:
                wake = Wake(cancelled=True)
            info, looked = wake.info, wake.domain
            if wake.store and self.phase is Phase.REQUESTED:
                value = yield Read(self.path)
                if value is None:
                    yield from self.put_back()
                elif value != b"suspend":
                    self.acknowledge()
            if not looked and (wake.timed_out or wake.cancelled):
                # An event may have been missed: the guest's own state has the last word.
                info = yield from _look(self.domain)
                looked = True
            if looked:
                if info is None or info.dying:
                    raise self.interrupted(info)
                if info.suspended:
                    if ending is None and not wake.cancelled:
                        return (yield from self.suspended())
                    yield from self.undo(ending or SuspendCancelled)
                if info.shutdown:
                    raise self.interrupted(info)
            if ending is not None:
                if wake.timed_out:
                    why = "" if self.failure is None else f"{self.failure}; it "
                    raise self.error(
                        ending,
                        f"{why}took the request to suspend, and still runs "
                        f"{_seconds(self.now() - self.began)} after it; "
                        "it may yet suspend: should it, resume it",
                    ) from self.failure
            elif wake.timed_out or wake.cancelled:
                if self.phase is Phase.REQUESTED and (yield from self.take_back()):
                    yield from self.taken_back(wake)
                ending = SuspendCancelled if wake.cancelled else SuspendNotCompleted
                deadline = self.now() + self.late_timeout_ns

    def clear(self) -> Machine[None]:
        """A guest that suspended without taking the request must not find it when it resumes."""
        if self.phase is Phase.REQUESTED:
            yield from self.take_back()

    def put_back(self) -> Machine[None]:
        """Some guests acknowledge by removing the node: put it back, with its permissions."""
        yield self.swap((None,), b"")
        # If all its nodes are gone, this is no answer but the domain's destruction.
        if (yield Read(self.home)) is not None:
            self.acknowledge()

    def suspended(self) -> Machine[Suspension]:
        yield from self.clear()
        self.acknowledge()
        self.phase = Phase.SUSPENDED
        return Suspension(
            self.domain,
            request_ns=self.requested - self.began,
            acknowledge_ns=self.acknowledged - self.requested,
            suspend_ns=self.now() - self.acknowledged,
        )

    def undo(self, ending: type[SuspendError]) -> Machine[NoReturn]:
        """The guest has suspended when nobody wants it any more: it must not stay dead."""
        yield from self.clear()
        self.phase = Phase.SUSPENDED
        yield from _resume_in_place(self.domain)
        if ending is SuspendCancelled:
            raise self.error(ending, "its suspension was cancelled; it has been resumed")
        if ending is SuspendError:
            message = f"{self.failure}; it suspended all the same, and has been resumed"
            raise self.error(ending, message) from self.failure
        error = SuspendNotCompleted(
            self.domain,
            f"suspended only after the deadline of {_seconds(self.timeout_ns)}; "
            "it has been resumed. Give it a longer timeout",
            phase=self.phase,
            elapsed=(self.now() - self.began) / _NS,
        )
        error.resumed_late = True
        raise error

    def taken_back(self, wake: Wake) -> Machine[NoReturn]:
        """The request is no longer there: one more look, then say so."""
        info = yield from _look(self.domain)
        if info is not None and info.suspended:
            yield from self.undo(SuspendCancelled if wake.cancelled else SuspendNotCompleted)
        if info is None or info.shutdown or info.dying:
            raise self.interrupted(info)
        if wake.cancelled:
            raise self.error(
                SuspendCancelled, "its suspension was cancelled; the request has been taken back"
            )
        advice = (
            "It is paused: unpause it first"
            if info.paused
            else "Is its kernel up, with Xen's suspend support?"
        )
        raise self.error(
            SuspendNotAcknowledged,
            f"did not take the request to suspend within {_seconds(self.timeout_ns)}; "
            f"the request has been taken back, nothing has changed. {advice}",
        )

    def abandon(self, error: Exception) -> Machine[Suspension]:
        """A call failed in the middle: leave the guest running if that is still possible."""
        if self.phase is Phase.IDLE:
            raise error
        self.failure = error
        try:
            back = self.phase is Phase.REQUESTED and (yield from self.take_back())
            info = yield from _look(self.domain)
            if info is not None and info.suspended:
                yield from self.undo(SuspendError)
            if info is None or info.shutdown or info.dying:
                raise self.interrupted(info) from error
            if not back:
                return (yield from self.converse(self.now() + self.late_timeout_ns, SuspendError))
        except CALL_ERRORS as second:
            raise self.error(
                SuspendError,
                f"{error}; its state is unknown ({second}); it may yet suspend: should it, "
                "resume it",
            ) from error
        raise self.error(SuspendError, f"{error}; the request has been taken back") from error


def suspend(
    domain: DomainRef, now: Clock, timeout_ns: int, late_timeout_ns: int
) -> Machine[Suspension]:
    """Ask a guest to suspend and wait until it has, its memory staying in place.

    What cancelling does depends on the phase: a request that the guest has not taken is taken back;
    once it has been taken the guest may suspend at any moment, so it is watched for
    `late_timeout_ns` more and resumed if it does.  The same holds when the deadline passes.

    Args:
        domain: which domain.
        now: a monotonic clock in nanoseconds.
        timeout_ns: how long the guest has, from now on.
        late_timeout_ns: how long to watch over a guest that took the request and missed that.

    Raises:
        NoSuchDomain: it is gone.
        AlreadySuspended, SuspendInProgress, SuspendNotSupported: refused; nothing was touched.
        SuspendNotAcknowledged: the request has been taken back; nothing has changed.
        SuspendNotCompleted: taken, and not suspended in time; resumed if it suspended late.
        SuspendInterrupted: crashed, rebooted, powered off or destroyed meanwhile.
        SuspendCancelled: `Cancelled` was thrown into the machine.
        ResumeError: it suspended late and could not be resumed.
        SuspendError: a call to Xen failed in the middle; the message says what state it is in.
    """
    return _Suspend(domain, now, timeout_ns, late_timeout_ns).run()
