"""The conversations with a guest, as state machines without I/O.

Each is a machine of `xenpm.actions`; everything that can go wrong between host and guest is decided
in this module, and for a guest that starts over in `xenpm.reinit`.

The protocol with the guest is Xen's docs/misc/xenstore-paths (``~/control/shutdown``) and the
``SHUTDOWN_suspend`` of public/sched.h.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from . import model
from .actions import (
    Cancelled,
    Clock,
    FindSaver,
    GetParam,
    HoldWatchers,
    LetWatchersGo,
    ListHeld,
    Lock,
    Machine,
    NotifySuspend,
    Read,
    Remove,
    ResumeDomain,
    ResumeStore,
    SendTrigger,
    SuspendCancel,
    Swap,
    Wait,
    Wake,
    Watch,
    Write,
    look,
)
from .devices import served_by
from .errors import (
    CALL_ERRORS,
    AlreadySuspended,
    CallError,
    HypercallError,
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
    TransactionConflict,
    XenError,
)
from .pci import conditions, number, pci_devices, problems, settled, shown
from .types import (
    Device,
    DomainInfo,
    DomainRef,
    DomainType,
    PciCondition,
    Phase,
    Resumption,
    Support,
    Suspension,
    XenbusState,
    plain,
)

_log = logging.getLogger("xenpm.protocol")

E = TypeVar("E", bound=SuspendError)

# public/hvm/params.h
HVM_PARAM_CALLBACK_IRQ = 0
HVM_PARAM_ACPI_S_STATE = 14

_NS = 1_000_000_000
#: how long a guest has when nobody says; Linux gives up freezing its processes after 20 s
TIMEOUT_NS = 30 * _NS
#: the same for a driver domain, which has hardware to quiesce as well
DRIVER_TIMEOUT_NS = 60 * _NS
#: how long the guest's drivers have for bringing passed-through devices back
_DEVICES_NS = 10 * _NS
_LOOK_AGAIN_NS = _NS // 20  # nothing tells when a register of a device changes
#: how long a process of xl has for being stopped, and how often that is looked at: nothing tells
_STOP_NS, _STOPPED_NS = _NS, _NS // 500

#: ``XEN_DOMCTL_SENDTRIGGER_*`` of public/domctl.h that Xen has
TRIGGERS = {"power": 3, "sleep": 4, "nmi": 0}
S3RESUME = "s3resume"
LAST_VCPU = 8191  # of any domain: HVM_MAX_VCPUS and MAX_VIRT_CPUS of Xen are not above that

_MOST_PORT = 131_071  # EVTCHN_FIFO_NR_CHANNELS of public/event_channel.h, less one

_FREE = (None, b"")  # what control/shutdown holds while nobody asks anything of the guest

_WHOSE = (
    "Resume it only if you know that nobody is saving or migrating it: "
    "resumed in the middle of that, it can ruin its disks"
)


def _seconds(ns: int) -> str:
    seconds = ns / _NS
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def reinit_note(domain: DomainRef) -> str:
    """The node that says that the domain is being started over, and how far that has come."""
    return f"/local/domain/{domain.domid}/xenpm/reinit"


def suspend_channel(domain: DomainRef) -> str:
    """The node in which a guest may offer an event channel for asking it to suspend."""
    return f"/local/domain/{domain.domid}/device/suspend/event-channel"


class StartingOver(NamedTuple):
    """What the note of a domain that is being started over says."""

    doing: str = ""  #: the step; empty when it is not being started over
    pause: str = ""  #: whose its pause is
    using: tuple[str, ...] = ()  #: its devices that were connected before, as "vbd/51712"


def started_over(domain: DomainRef, info: DomainInfo) -> Machine[StartingOver]:
    """How far the domain has come in being started over, by a process that did not end it."""
    value: bytes | None = yield Read(reinit_note(domain))
    doing, pause, *using = [*(value or b"").decode("ascii", "replace").split(), "", ""]
    if doing == "run" and (info.suspended or not info.paused):
        return StartingOver()  # only the note was not removed
    return StartingOver(doing, pause, tuple(filter(None, using)))


def forget_start(domain: DomainRef, info: DomainInfo) -> Machine[None]:
    """Remove the note of a start that has ended; beside a pause it would seem not to have."""
    note = (yield Read(reinit_note(domain))) or b""
    if note.startswith(b"run ") and not info.paused and not info.suspended:
        yield Remove(reinit_note(domain))


def supports_cooperative_resume(domain: DomainRef, info: DomainInfo) -> Machine[Support]:
    """Whether the guest's suspend hypercall can return 1, and what tells so."""
    if (yield from started_over(domain, info)).doing:
        return Support(False, "it is in the middle of being started over")
    if info.type is DomainType.PV:
        vm = (yield Read(f"/local/domain/{domain.domid}/vm")) or b""
        path = (
            (yield Read(f"{vm.decode('ascii', 'replace')}/image/kernel"))
            if vm.startswith(b"/vm/")
            else None
        )
        can = None if path is None else (yield SuspendCancel(path.decode("utf-8", "replace")))
        if can is None:
            return Support(True, "it is a PV guest; its kernel image does not show its notes")
        note = "has" if can else "has no"
        return Support(can, f"it is a PV guest, whose kernel image {note} note SUSPEND_CANCEL")
    if info.type is DomainType.HVM and not (yield GetParam(domain.domid, HVM_PARAM_CALLBACK_IRQ)):
        return Support(True, "it is an HVM guest without PV drivers: it has made no hypercall")
    if not (yield GetParam(domain.domid, HVM_PARAM_CALLBACK_IRQ)):
        return Support(False, "it has set up no interrupt for Xen's events")
    return Support(True, f"it is a {info.type.name} guest that has set up an interrupt for events")


def _continue_model(domain: DomainRef, now: Clock) -> Machine[int]:
    """Continue the device model of a suspended guest; how long that took, in nanoseconds."""
    began = now()
    answer = yield from model.ask(domain, "cont", now)
    info = yield from look(domain)  # also because time has passed
    if info is None:
        raise NoSuchDomain(f"{domain} is gone")
    if not info.suspended:
        raise NotSuspended(domain, f"is not suspended any more but {info.state.value}")
    if answer.status != model.RUNNING:
        raise ResumeError(
            domain,
            f"is still suspended, for its device model (QEMU) {answer}, and it must not run "
            "without that. Resume it when the model answers again",
        )
    return now() - began


def check_not_saved(domain: DomainRef) -> Machine[None]:
    """Refuse to resume a domain that somebody else saves or migrates.

    Raises:
        ResumeError: who it is.
    """
    saver = yield FindSaver(domain.domid, domain.name)
    if saver:
        raise ResumeError(
            domain,
            f"is being saved or migrated at this moment, by {saver}: resumed in the middle of "
            "that, it may run twice and ruin its disks. Nothing was touched",
        )


def hold_watchers(domain: DomainRef, now: Clock) -> Machine[None]:
    """See to it that xl does not take a suspension for the domain's end."""
    until = now() + _STOP_NS
    while True:
        try:
            standing = yield HoldWatchers(domain.domid, domain.handle)
        except XenError as error:  # no reason to keep a guest awake
            _log.warning("%s: xl will not look after it any more: %s", domain, error)
            return
        if standing:
            return
        if now() >= until:
            _log.warning(
                "%s: the process of xl that looks after it does not stop, and perhaps will not "
                "look after it any more",
                domain,
            )
            return
        yield Wait(domain, now() + _STOPPED_NS)


def let_go(domain: DomainRef, *, whatever: bool = False) -> Machine[None]:
    """Have xl's process look after the domain again; unless that is suspended, or `whatever`."""
    try:
        info = None if whatever else (yield from look(domain))
        if info is None or not info.suspended:
            yield LetWatchersGo(domain.domid, domain.handle)
    except XenError as error:
        _log.warning("%s: whether xl looks after it again is unknown: %s", domain, error)


def let_forgotten_go() -> Machine[None]:
    """Have xl's processes go on that are held for domains which are not suspended.

    A process of xenpm that was killed has left them, or somebody else has resumed or destroyed the
    domain.
    """
    try:
        for domid, handle in (yield ListHeld()):
            domain = DomainRef(domid, handle, "")
            info = yield from look(domain)
            if info is not None and info.suspended:
                continue  # and who resumes it at this moment needs the lock
            if info is None or (yield Lock(domid)):  # else one is at it
                yield from let_go(domain)
    except XenError as error:
        _log.warning("whether a process of xl is held for nothing is unknown: %s", error)


def resume_in_place(domain: DomainRef) -> Machine[None]:
    """Resume a domain that was just seen to be suspended, cooperatively."""
    try:
        yield ResumeDomain(domain.domid, True)
    except CALL_ERRORS as error:
        raise ResumeError(
            domain,
            f"is still suspended, for the hypervisor did not resume it: {error}. "
            "Resume it when the cause is mended",
        ) from error
    yield from let_go(domain, whatever=True)
    try:
        yield ResumeStore(domain.domid)
    except CALL_ERRORS as error:
        raise ResumeError(
            domain,
            f"runs again, but xenstored could not be told ({error}): "
            "its next shutdown will fire no @releaseDomain",
        ) from error


def resume(domain: DomainRef, now: Clock) -> Machine[Resumption]:
    """Resume a suspended domain in place, and see that its passed-through devices come back.

    Raises:
        NoSuchDomain: it is gone.
        NotSuspended: it is not suspended; nothing was touched.
        ResumeError: somebody else is at it, its device model does not go on, or a call failed.
    """
    if not (yield Lock(domain.domid)):
        raise ResumeError(domain, "another process is suspending or resuming it at this moment")
    try:
        return (yield from _resume(domain, now))
    except Exception:
        yield from let_go(domain)
        raise


def _resume(domain: DomainRef, now: Clock) -> Machine[Resumption]:
    began = now()
    info = yield from look(domain)
    if info is None:
        raise NoSuchDomain(f"{domain} is gone")
    if not info.suspended:
        raise NotSuspended(domain, f"is not suspended but {info.state.value}")
    yield from check_not_saved(domain)
    if (yield from started_over(domain, info)).doing:
        raise ResumeError(
            domain,
            "is in the middle of being started over, and its devices may be closed already: "
            "resume it with cooperative=False",
        )
    if info.type is DomainType.PVH and not (yield GetParam(domain.domid, HVM_PARAM_CALLBACK_IRQ)):
        raise ResumeError(
            domain,
            "has set up no interrupt for Xen's events, so its hypercall could not be told that it "
            "was cancelled. Nothing was touched; resume it with cooperative=False",
        )
    model_ns = 0
    if info.type is DomainType.HVM:
        model_ns = yield from _continue_model(domain, now)
    yield from resume_in_place(domain)
    resumed = now()
    check = _Check(domain, now, resumed + _DEVICES_NS)
    try:
        yield from check.run()
    except CALL_ERRORS as error:
        check.problems.append(f"its devices could not be looked at: {error}")
    return Resumption(
        domain,
        cooperative=True,
        total_ns=resumed - began,
        pci=check.pci,
        serves=check.serves,
        check_ns=now() - resumed,
        problems=tuple(check.problems),
        model_ns=model_ns,
    )


def _inspect(domain: DomainRef) -> Machine[tuple[tuple[PciCondition, ...], tuple[Device, ...]]]:
    """The devices that a domain has and serves; both are empty unless it is a driver domain."""
    unreadable: list[str] = []
    devices = yield from pci_devices(domain.domid, unreadable)
    pci = yield from conditions(devices)
    serves = yield from served_by(domain.domid, unreadable)
    for each in unreadable:
        # a guest may write nonsense there, and is not to hold up the host's sleep with it
        _log.warning("%s: %s", domain, each)
    return pci, serves


def _record(domain: DomainRef, address: str = "") -> str:
    """Where a suspension notes how the passed-through devices were; only dom0 writes there."""
    # as libxl writes it, for xenstore allows no such characters
    node = address.replace(":", "-").replace(".", "-")
    return f"/local/domain/{domain.domid}/xenpm/pci/{node}".rstrip("/")


def _recorded(text: bytes | None) -> PciCondition | None:
    """What such a record says; None when it says nothing that makes sense, for the guest runs."""
    if text is None:
        return None
    try:
        values = json.loads(text)
        if values["backend_state"] is not None:
            values["backend_state"] = XenbusState[values["backend_state"].upper()]
        return PciCondition(**values)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        _log.warning("how a PCI device was before makes no sense (%r): %s", error, shown(text))
        return None


@dataclass
class _Check:
    """A look at the devices of a domain that has just been resumed."""

    domain: DomainRef
    now: Clock
    deadline: int
    pci: tuple[PciCondition, ...] = ()
    serves: tuple[Device, ...] = ()
    problems: list[str] = field(default_factory=list)

    def run(self) -> Machine[None]:
        """Wait until the guest's drivers have brought its devices back, or the deadline passes."""
        before: dict[str, PciCondition | None] = {}
        while True:
            self.pci, self.serves = yield from _inspect(self.domain)
            for each in self.pci:
                if each.address not in before:
                    before[each.address] = _recorded(
                        (yield Read(_record(self.domain, each.address)))
                    )
            if self.now() >= self.deadline or all(
                settled(before[each.address], each) for each in self.pci
            ):
                break
            try:
                again = min(self.now() + _LOOK_AGAIN_NS, self.deadline)
                wake: Wake = yield Wait(self.domain, again)
            except Cancelled:
                self.problems.append("whether its devices came back was not waited for")
                break
            if wake.domain:
                self.problems.append("it has shut down or is gone since it was resumed")
                return
        for each in self.pci:
            self.problems += problems(before[each.address], each)
        for device in self.serves:
            ends = (device.frontend_state, device.backend_state)
            if ends.count(XenbusState.CONNECTED) == 1:
                states = [plain(state) or "missing" for state in ends]
                self.problems.append(
                    f"{device} of domain {device.frontend_domid}, which it serves, is not "
                    f"connected: the frontend is {states[0]}, the backend {states[1]}"
                )
        if self.pci:
            yield Remove(_record(self.domain))


@dataclass
class _Suspend:
    """One suspend conversation; `run` is the machine."""

    domain: DomainRef
    now: Clock
    timeout_ns: int  # 0: as long as its kind should have
    late_timeout_ns: int
    phase: Phase = Phase.IDLE
    began: int = 0
    requested: int = 0
    acknowledged: int = 0
    deadline: int = 0
    pci: tuple[PciCondition, ...] = ()
    serves: tuple[Device, ...] = ()
    has_model: bool = False
    model_told: bool = False  # to stop; perhaps it has not
    unstopped: model.Answer | None = None  # what came of it, if that was not right
    # once the result is not wanted any more: what to raise in the end
    ending: type[SuspendError] | None = None
    failure: Exception | None = None  # the call that failed on the way

    @property
    def home(self) -> str:
        return f"/local/domain/{self.domain.domid}"

    @property
    def path(self) -> str:
        return f"{self.home}/control/shutdown"

    def swap(self, expected: Collection[bytes | None], value: bytes) -> Swap:
        return Swap(self.path, expected, value, owner=self.domain.domid, home=self.home)

    def error(self, kind: type[E], message: str) -> E:
        elapsed = (self.now() - self.began) / _NS
        error = kind(self.domain, message, phase=self.phase, elapsed=elapsed)
        if self.failure is not None:
            error.__cause__ = self.failure
        return error

    def run(self) -> Machine[Suspension]:
        self.began = self.now()
        yield from self.take_lock()
        try:
            yield from self.prepare()
            yield from self.hold_watchers()
            try:
                yield from self.request()
                return (yield from self.converse())
            except CALL_ERRORS as error:
                return (yield from self.go_on_after(error))
        except Exception:
            yield from let_go(self.domain)
            raise

    def take_lock(self) -> Machine[None]:
        domid = self.domain.domid
        if domid == 0:
            raise self.error(
                SuspendNotSupported, "is domain 0, the host's own; it sleeps with the machine"
            )
        if not (yield Lock(domid)):
            raise self.error(
                SuspendInProgress, "another process is suspending or resuming it at this moment"
            )

    def prepare(self) -> Machine[None]:
        """Everything that can be refused before anything is touched."""
        info = yield from self.fit()
        if info.type is DomainType.PV:
            support = yield from supports_cooperative_resume(self.domain, info)
            if not support:
                raise self.error(
                    SuspendNotSupported,
                    f"could not be resumed in place: {support.evidence}. Save it, or pause it",
                )
        self.has_model = info.type is DomainType.HVM
        if self.has_model:
            yield from self.check_model()
        self.pci, self.serves = yield from _inspect(self.domain)
        if self.timeout_ns == 0:
            self.timeout_ns = DRIVER_TIMEOUT_NS if self.pci or self.serves else TIMEOUT_NS
        self.deadline = self.began + self.timeout_ns

    def fit(self) -> Machine[DomainInfo]:
        """What the domain is; refuses one that cannot suspend now or must not."""
        info = yield from look(self.domain)
        if info is None:
            raise NoSuchDomain(f"{self.domain} is gone")
        if (yield from started_over(self.domain, info)).doing:
            raise self.error(
                SuspendInProgress,
                "is in the middle of being started over, by a process that did not end that: "
                "first finish it, with resume(cooperative=False)",
            )
        suspended = self.has_suspended(info)
        saver = yield FindSaver(self.domain.domid, self.domain.name)
        if saver:
            raise self.error(
                SuspendInProgress,
                f"is being saved or migrated at this moment, by {saver}. Let that end",
            )
        if suspended:
            raise self.error(
                AlreadySuspended,
                f"is suspended already, by xenpm or in a save or migration. {_WHOSE}",
            )
        yield from self.check_fitness(info)
        return info

    def check_fitness(self, info: DomainInfo) -> Machine[None]:
        """Refuse a domain that cannot suspend or must not."""
        if info.runs_xenstore:
            raise self.error(
                SuspendNotSupported, "runs xenstored; without that the whole host would hang"
            )
        target = yield Read(f"{self.home}/target")
        if target is not None:
            raise self.error(
                SuspendNotSupported,
                "is the stub domain that emulates devices for domain "
                f"{target.decode('utf-8', 'replace')!r}, which would hang without it",
            )
        if (yield Read(f"{self.home}/control/feature-suspend")) == b"0":
            raise self.error(
                SuspendNotSupported,
                "its kernel says that it cannot suspend (control/feature-suspend is 0)",
            )
        if info.type is DomainType.PVH and not (
            yield GetParam(self.domain.domid, HVM_PARAM_CALLBACK_IRQ)
        ):
            # libxc would not set the value that its suspend hypercall returns
            raise self.error(
                SuspendNotSupported,
                "has set up no interrupt for Xen's events (yet), so it could not be resumed",
            )

    def check_model(self) -> Machine[None]:
        """Refuse an HVM guest that hears no request, and one whose model could not be stopped."""
        if (yield GetParam(self.domain.domid, HVM_PARAM_ACPI_S_STATE)):
            raise self.error(
                SuspendNotSupported,
                "sleeps by itself (ACPI S3), and hears no request: leave it asleep, or wake it "
                "first, with trigger('s3resume')",
            )
        if not (yield GetParam(self.domain.domid, HVM_PARAM_CALLBACK_IRQ)):
            raise self.error(
                SuspendNotSupported,
                "is an HVM guest without PV drivers (it has set up no interrupt for Xen's events), "
                "so nothing in it hears a request. Pause it, or save it",
            )
        answer = yield from model.ask(self.domain, "", self.now)
        if answer.cancelled:
            raise self.error(SuspendCancelled, "its suspension was cancelled; nothing was touched")
        if answer.error:
            raise self.error(
                SuspendError,
                f"its device model (QEMU) {answer}, and so could not be stopped with it. "
                "Nothing was touched",
            )
        if answer.status != model.RUNNING:
            raise self.error(
                SuspendInProgress,
                f"its device model (QEMU) {answer} while it runs: somebody else is at it, or has "
                "stopped the model. Nothing was touched",
            )

    def hold_watchers(self) -> Machine[None]:
        try:
            yield from hold_watchers(self.domain, self.now)
        except Cancelled:
            raise self.error(
                SuspendCancelled, "its suspension was cancelled; nothing was touched"
            ) from None

    def request(self) -> Machine[None]:
        offered = yield Read(suspend_channel(self.domain))
        port = None if offered is None else number(offered, _MOST_PORT)
        if port and (yield from self.request_by_event(port)):
            # An event cannot be taken back, and a guest does not answer it but by suspending.
            self.phase = Phase.ACKNOWLEDGED
            self.requested = self.acknowledged = self.now()
            return
        yield Watch(self.path)
        try:
            found = yield self.swap(_FREE, b"suspend")
        except CALL_ERRORS as error:
            yield from self.make_sure_it_does_not_stand(error)
            raise
        self.check_free(found)
        self.phase = Phase.REQUESTED
        self.requested = self.now()

    def request_by_event(self, port: int) -> Machine[bool]:
        """Ask through the event channel that the guest offers; False when it is none."""
        self.check_free((yield Read(self.path)))
        try:
            yield NotifySuspend(self.domain.domid, port)
        except HypercallError as error:
            if error.errno == errno.EBUSY:
                raise self.error(
                    SuspendInProgress,
                    "somebody else is using its event channel for suspending, as a save or a "
                    "migration does. Let that end",
                ) from error
            if error.errno != errno.EINVAL:
                raise
            # A guest may write there what it likes, and is not to hold up the host's sleep with it.
            path = suspend_channel(self.domain)
            _log.warning("%s: %s could not be used as an event channel", self.domain, path)
            return False
        return True

    def check_free(self, found: bytes | None) -> None:
        """Refuse a guest of which something is asked already."""
        if found not in _FREE:
            raise self.error(
                SuspendInProgress,
                f"somebody else has asked it for {(found or b'').decode('utf-8', 'replace')!r} "
                "already. If nobody is at it any more, clear that: "
                f"xenstore-write {self.path} ''",
            )

    def make_sure_it_does_not_stand(self, error: CallError) -> Machine[None]:
        """A commit whose answer was lost may have written the request."""
        if error.call != "xs_transaction_end" or isinstance(error, TransactionConflict):
            return
        self.failure = error
        try:
            yield self.swap((b"suspend",), b"")
        except CALL_ERRORS as second:
            raise self.unknown(second) from error

    def converse(self) -> Machine[Suspension]:
        """Wait for what the guest does, from the request to the end, whatever that is."""
        while True:
            wake = yield from self.wait()
            if wake.store and self.phase is Phase.REQUESTED:
                yield from self.read_answer()
            over = wake.timed_out or wake.cancelled
            if wake.domain or over:
                # An event may have been missed: the guest's own state has the last word.
                info = wake.info if wake.domain else (yield from look(self.domain))
                if self.has_suspended(info):
                    if wake.cancelled and self.ending is None:
                        self.ending = SuspendCancelled
                    return (yield from self.suspended())
            if not over:
                continue
            if self.ending is None:
                yield from self.give_up(SuspendCancelled if wake.cancelled else SuspendNotCompleted)
            elif wake.timed_out:
                why = "" if self.failure is None else f"{self.failure}; it "
                raise self.error(
                    self.ending,
                    f"{why}took the request to suspend, and still runs "
                    f"{_seconds(self.now() - self.began)} after it; "
                    "it may yet suspend: should it, resume it",
                )

    def wait(self) -> Machine[Wake]:
        try:
            wake: Wake = yield Wait(self.domain, self.deadline)
        except Cancelled:
            wake = Wake(cancelled=True)
        return wake

    def has_suspended(self, info: DomainInfo | None) -> bool:
        """Whether it has; raises when it is gone or has shut down for another reason."""
        if info is None or info.dying:
            what, reason = "was destroyed", None
        elif info.shutdown and not info.suspended:
            reason = info.shutdown_reason
            name = str(info.shutdown_code) if reason is None else reason.name.lower()
            what = f"has shut down with reason {name}"
        else:
            return info.suspended
        before = "" if self.phase is Phase.IDLE else " while it was being suspended"
        error = self.error(SuspendInterrupted, what + before)
        error.reason = reason
        raise error

    def read_answer(self) -> Machine[None]:
        """See whether the guest has taken the request."""
        value = yield Read(self.path)
        if value is None:
            yield from self.put_back()
        elif value != b"suspend":
            self.acknowledge()

    def put_back(self) -> Machine[None]:
        """Some guests acknowledge by removing the node: put it back, with its permissions."""
        yield self.swap((None,), b"")
        # If all its nodes are gone, this is no answer but the domain's destruction.
        if (yield Read(self.home)) is not None:
            self.acknowledge()

    def acknowledge(self) -> None:
        if self.phase is Phase.REQUESTED:
            self.phase = Phase.ACKNOWLEDGED
            self.acknowledged = self.now()

    def take_back(self) -> Machine[bool]:
        """Take the request back, unless the guest has taken it; says whether it was taken back."""
        if self.phase is not Phase.REQUESTED:
            return False
        found = yield self.swap((b"suspend",), b"")
        if found == b"suspend":
            return True
        if found is None:
            yield from self.put_back()
        else:
            self.acknowledge()
        return False

    def suspended(self) -> Machine[Suspension]:
        """It has suspended.  Unless that is wanted, it must not stay so."""
        if (yield from self.take_back()):
            raise (yield from self.not_by_us())
        self.acknowledge()
        self.phase = Phase.SUSPENDED
        suspended = self.now()
        if self.ending is None and self.has_model:
            yield from self.stop_model()
        if self.ending is None:
            stopped = self.now()
            for each in self.pci:
                record = json.dumps(plain(each)).encode()
                yield Write(_record(self.domain, each.address), record, self.home)
            return Suspension(
                self.domain,
                request_ns=self.requested - self.began,
                acknowledge_ns=self.acknowledged - self.requested,
                suspend_ns=suspended - self.acknowledged,
                pci=self.pci,
                serves=self.serves,
                model_ns=stopped - suspended if self.has_model else 0,
            )
        if self.model_told:
            yield from _continue_model(self.domain, self.now)
        yield from resume_in_place(self.domain)
        if self.unstopped is not None:
            raise self.error(
                SuspendError,
                f"its device model (QEMU) {self.unstopped} when it was told to stop, so it has "
                "been resumed",
            )
        if self.ending is SuspendNotCompleted:
            late = self.error(
                SuspendNotCompleted,
                f"suspended only after the deadline of {_seconds(self.timeout_ns)}; "
                "it has been resumed. Give it a longer timeout",
            )
            late.resumed_late = True
            raise late
        if self.ending is SuspendCancelled:
            raise self.error(self.ending, "its suspension was cancelled; it has been resumed")
        raise self.error(
            self.ending, f"{self.failure}; it suspended all the same, and has been resumed"
        )

    def stop_model(self) -> Machine[None]:
        """The guest has suspended: stop its device model.  If that fails, it must not stay so."""
        self.model_told = True
        answer = yield from model.ask(self.domain, "stop", self.now)
        if not self.has_suspended((yield from look(self.domain))):  # or raises: time has passed
            answer = yield from model.ask(self.domain, "cont", self.now)
            without = "" if answer.status == model.RUNNING else f"; its device model {answer}"
            raise self.error(
                SuspendInProgress,
                f"had suspended, and somebody else has resumed it at that moment{without}",
            )
        if answer.status != model.PAUSED:
            self.ending, self.unstopped = SuspendError, answer

    def give_up(self, ending: type[SuspendError]) -> Machine[None]:
        """The result is not wanted any more: take the request back, or watch on for a while."""
        if self.ending is None:  # never longer than both timeouts together
            self.deadline = min(self.now(), self.deadline) + self.late_timeout_ns
        self.ending = ending
        if not (yield from self.take_back()):
            return
        info = yield from look(self.domain)
        if self.has_suspended(info):
            raise (yield from self.not_by_us())
        if ending is SuspendNotCompleted:
            advice = (
                "It is paused: unpause it first"
                if info is not None and info.paused
                else "Is its kernel up, with Xen's suspend support?"
            )
            raise self.error(
                SuspendNotAcknowledged,
                f"did not take the request to suspend within {_seconds(self.timeout_ns)}; "
                f"the request has been taken back, nothing has changed. {advice}",
            )
        why = "its suspension was cancelled" if self.failure is None else str(self.failure)
        raise self.error(ending, f"{why}; the request has been taken back")

    def go_on_after(self, failure: CallError) -> Machine[Suspension]:
        """A call failed in the middle: leave the guest running, if that is still possible."""
        if self.phase is Phase.IDLE:
            raise failure
        self.failure = failure
        try:
            yield from self.give_up(SuspendError)
            if self.has_suspended((yield from look(self.domain))):
                return (yield from self.suspended())
            return (yield from self.converse())
        except CALL_ERRORS as second:
            raise self.unknown(second) from failure

    def not_by_us(self) -> Machine[SuspendError]:
        """The error for a guest that suspended and had not taken our request: leave it alone."""
        # Whoever did it resumes it without us, or destroys it.
        yield from let_go(self.domain, whatever=True)
        return self.error(
            SuspendInProgress,
            "is suspended, but without having taken the request, which has been taken back: "
            f"somebody else is saving or migrating it. {_WHOSE}",
        )

    def unknown(self, second: Exception) -> SuspendError:
        """The error when after a failed call another one fails."""
        stands = (
            ""
            if self.phase is Phase.ACKNOWLEDGED
            else f" The request may still stand; clear it: xenstore-write {self.path} ''"
        )
        error = self.error(
            SuspendError,
            f"{self.failure}; then {second}; so its state is unknown, and it may yet suspend: "
            f"should it, resume it.{stands}",
        )
        error.state_known = False
        return error


def suspend(
    domain: DomainRef, now: Clock, timeout_ns: int | None, late_timeout_ns: int
) -> Machine[Suspension]:
    """Ask a guest to suspend and wait until it has, its memory staying in place.

    What cancelling does depends on the phase: a request that the guest has not taken is taken back;
    once it has been taken the guest may suspend at any moment, so it is watched for
    `late_timeout_ns` more and resumed if it does.  The same holds when the deadline passes.

    Args:
        domain: which domain.
        now: a monotonic clock in nanoseconds.
        timeout_ns: how long the guest has, from now on; None: as long as its kind should have.
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
        HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
    """
    return _Suspend(domain, now, timeout_ns or 0, late_timeout_ns).run()


def trigger(domain: DomainRef, what: str, vcpu: int, now: Clock) -> Machine[None]:
    """Press one of a domain's buttons, or wake it from its own sleep.

    Args:
        domain: which domain.
        what: one of `TRIGGERS`, or `S3RESUME`.
        vcpu: which vCPU gets an NMI.
        now: a monotonic clock in nanoseconds.

    Raises:
        NoSuchDomain: it is gone.
        XenError: it has no such button, does not sleep, somebody else is at it, or its device
            model did not wake it.
        HypercallError, NotPermitted: the call failed; nothing was touched.
    """
    if not (yield Lock(domain.domid)):
        raise XenError(f"{domain}: another process is suspending or resuming it at this moment")
    info = yield from look(domain)
    if info is None:
        raise NoSuchDomain(f"{domain} is gone")
    if what != "nmi" and info.type is not DomainType.HVM:
        raise XenError(
            f"{domain}: is a {info.type.name} guest, and only HVM guests have ACPI. "
            "Nothing was touched"
        )
    if what in TRIGGERS:
        yield SendTrigger(domain.domid, TRIGGERS[what], vcpu)
        return
    if not (yield GetParam(domain.domid, HVM_PARAM_ACPI_S_STATE)):
        raise XenError(f"{domain}: does not sleep (ACPI S3), so there is nothing to wake")
    answer = yield from model.ask(domain, "system_wakeup", now)
    if answer.error:
        raise XenError(f"{domain}: its device model (QEMU) {answer}, and has not woken it")


def check_saving(domain: DomainRef) -> Machine[DomainType]:
    """What kind of domain it is; refuses one that cannot be saved to a file.

    Raises:
        NoSuchDomain: it is gone.
        AlreadySuspended, SuspendInProgress, SuspendNotSupported: refused.
        HypercallError, StoreError, NotPermitted: a call to Xen failed.
    """
    self = _Suspend(domain, lambda: 0, 0, 0)
    if domain.domid == 0:
        raise self.error(SuspendNotSupported, "is domain 0, the host's own")
    info = yield from self.fit()
    if info.paused:
        raise self.error(SuspendNotSupported, "is paused, and could not answer: unpause it first")
    self.check_free((yield Read(self.path)))
    pci, serves = yield from _inspect(domain)
    if pci:
        what = ", ".join(each.address for each in pci)
        raise self.error(SuspendNotSupported, f"has {what} passed through, which no file can hold")
    if serves:
        what = ", ".join(f"{each} of domain {each.frontend_domid}" for each in serves)
        raise self.error(
            SuspendNotSupported, f"serves {what}, which would lose that: it would be destroyed"
        )
    return info.type


def take_back(domain: DomainRef, now: Clock) -> Machine[Phase]:
    """Take back the request of a suspension that failed, whoever made it.

    A guest that took it is watched, and may suspend in the end: then the phase is "suspended", and
    it has to be resumed.

    Raises:
        SuspendInterrupted: it has crashed, rebooted, powered off or was destroyed.
        HypercallError, StoreError, NotPermitted: a call to Xen failed.
    """
    self = _Suspend(domain, now, 0, 0, Phase.ACKNOWLEDGED, began=now())
    found = yield self.swap((b"suspend",), b"")
    until = now() + TIMEOUT_NS
    while not self.has_suspended((yield from look(domain))):
        if found == b"suspend":
            return Phase.REQUESTED
        if now() >= until:
            return Phase.ACKNOWLEDGED
        self.deadline = until
        yield from self.wait()
    return Phase.SUSPENDED
