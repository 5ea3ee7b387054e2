"""Resuming a guest that starts over: its suspend hypercall returns 0, and it rebuilds everything.

For that it must be given fresh ground: each frontend/backend pair is walked back to its start while
the guest is still suspended; then its event channels are reset, store and console get new ones, and
it is introduced to xenstored anew.  See public/io/xenbus.h, ``XEN_DOMCTL_soft_reset`` of
public/domctl.h and ``XS_INTRODUCE`` of docs/misc/xenstore.txt.

A note in xenstore (`reinit_note`), written before anything that cannot be undone, says what is
being done.  Whoever finds a guest with such a note finishes the work: each step can be done again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from . import heavy, protocol
from .actions import (
    AllocateChannel,
    Cancelled,
    Clock,
    DiscardEvents,
    GetRemote,
    Introduce,
    List,
    Lock,
    Machine,
    Pause,
    Read,
    Remove,
    ResetChannels,
    ResumeDomain,
    ResumeStore,
    SeedGrants,
    SetParam,
    SoftReset,
    Unpause,
    Wait,
    Wake,
    Watch,
    Write,
    look,
)
from .devices import served_by, used_by, with_states
from .errors import (
    CALL_ERRORS,
    CallError,
    HypercallError,
    NoSuchDomain,
    NotSuspended,
    ReinitNotSupported,
    ResumeError,
    XenError,
    store_error,
)
from .pci import number, shown
from .policy import POLICY
from .protocol import reinit_note, started_over, supports_cooperative_resume, suspend_channel
from .types import (
    Device,
    DomainInfo,
    DomainRef,
    DomainType,
    Resumption,
    Step,
    Support,
    XenbusState,
)

# The two rings that every domain has from the beginning: directories of its home in xenstore.
_ENDS = ("store", "console")
_EVTCHN_PARAMS = {"store": 2, "console": 18}  # HVM_PARAM_*_EVTCHN of public/hvm/params.h
_LARGEST = 999_999_999  # of a port or frame number
_LAST_DOMID = 0x7FEF  # DOMID_FIRST_RESERVED of public/xen.h comes after it

_MOST_ROUNDS = 1000  # each takes up to a kilobyte
_MS = 1_000_000
_LONGEST_PAUSE_NS = 1000 * _MS

# The kinds whose frontends in Linux connect anew after the hypercall has returned 0.
_RECONNECTING = frozenset({"vbd", "vif", "vfb", "vkbd", "vtpm", "console"})

# What the note says is being done; with it, whether the pause in between is ours.
_DEVICES, _GROUND, _RUN = "devices", "ground", "run"
_OURS, _THEIRS = "unpause", "keep-paused"


_AT_WORK = "are still at work for it"
_LOST_ON_THE_WAY = (
    "it is still suspended, and its devices are on the way back to their start, so it can no "
    "longer be resumed cooperatively. When the cause is mended, resume it with cooperative=False "
    "again; if it cannot be, destroy it"
)
_HALF_WAY = (
    "and its memory is whole. When the cause is mended, resume it with cooperative=False again; do "
    "not unpause it"
)


class _Ring(NamedTuple):
    """What xenstore says of the store's ring or of the console's."""

    port: int
    gfn: int
    served_by: int


class _Reinit:
    """One reinitialisation; `run` is the machine."""

    def __init__(self, domain: DomainRef, now: Clock, timeout_ns: int, *, force: bool) -> None:
        self.domain = domain
        self.now = now
        self.timeout_ns = timeout_ns
        self.force = force
        self.pv = False
        self.home = f"/local/domain/{domain.domid}"
        self.note = reinit_note(domain)
        self.devices: list[Device] = []
        self.using: tuple[str, ...] = ()  # those that were connected before
        self.rings: dict[str, _Ring] = {}
        self.watched: set[str] = set()
        self.problems: list[str] = []
        self.steps: list[Step] = []
        self.step = ""
        self.step_began = 0
        self.deadline = 0  # of the backends
        self.ours = True  # the pause that the domain is under while its ground is laid
        self.inherited = False  # it was that of another process, which did not end this

    # -- the conversation

    def run(self, reason: str) -> Machine[Resumption]:
        if not (yield Lock(self.domain.domid)):
            raise self.error("another process is suspending or resuming it at this moment")
        try:
            return (yield from self.start_over(reason))
        except Exception:
            yield from protocol.let_go(self.domain)
            raise

    def start_over(self, reason: str) -> Machine[Resumption]:
        began = self.now()
        info = yield from self.look()
        before = yield from started_over(self.domain, info)
        doing = before.doing
        self.check_state(info, doing)
        self.pv = info.type is DomainType.PV
        self.inherited = doing in (_GROUND, _RUN) and before.pause == _OURS
        self.ours = self.inherited or not info.paused
        self.using = before.using
        if info.suspended:
            yield from protocol.check_not_saved(self.domain)
            try:
                yield from self.prepare(info, doing)
            except ReinitNotSupported as error:
                if not doing:
                    raise
                raise self.half_closed(error.message) from error
            if not doing:
                self.using = tuple(map(_name, filter(_connected, self.devices)))
            if info.type is DomainType.HVM:
                self.devices = [each for each in self.devices if not _served_by_model(each)]
            yield from self.walk_back(begun=doing != "")
            if info.type is DomainType.HVM:
                yield from self.rebuild()
            else:
                yield from self.clear()
                yield from self.lay_ground()
        elif doing == _GROUND and not self.pv:  # a PV domain leaves its suspension at the end of it
            try:
                yield from self.read_rings()
            except ReinitNotSupported as error:
                raise self.error(f"{error.message}; it is paused half-way, {_HALF_WAY}") from error
            yield from self.lay_ground()
        if info.type is not DomainType.HVM:
            yield from self.let_run()
        yield from protocol.let_go(self.domain, whatever=True)
        running = self.now()
        # one that stays paused connects nothing
        problems = self.problems + ((yield from self.see_connected()) if self.ours else [])
        return Resumption(
            self.domain,
            cooperative=False,
            total_ns=running - began,
            check_ns=self.now() - running,
            problems=tuple(problems),
            reason=reason,
            steps=tuple(self.steps),
        )

    def look(self) -> Machine[DomainInfo]:
        info: DomainInfo | None = yield from look(self.domain)
        if info is None:
            raise NoSuchDomain(f"{self.domain} is gone")
        return info

    def look_after(self, error: CallError) -> Machine[DomainInfo]:
        """How it is after a call has failed."""
        try:
            return (yield from self.look())
        except CALL_ERRORS as second:
            raise self.error(
                f"{error}; then {second}, so its state is unknown (step {self.step}). When the "
                "cause is mended, resume it with cooperative=False again; do not unpause it"
            ) from error

    def error(self, message: str) -> ResumeError:
        return ResumeError(self.domain, message)

    def begin(self, name: str) -> None:
        """Name the step that begins here."""
        self.end()
        self.step, self.step_began = name, self.now()

    def end(self) -> None:
        if self.step:
            self.steps.append(Step(self.step, self.now() - self.step_began))
        self.step = ""

    def put(self, path: str, value: bytes) -> Write:
        return Write(path, value, self.home)

    def write_note(self, doing: str) -> Write:
        words = [doing, _OURS if self.ours else _THEIRS, *self.using]
        return self.put(self.note, " ".join(words).encode())

    # -- before anything is touched

    def check_state(self, info: DomainInfo, doing: str) -> None:
        """Refuse a domain that is neither suspended nor left paused in the middle."""
        if doing not in ("", _DEVICES, _GROUND, _RUN):
            raise self.error(
                f"the note that it is being started over makes no sense: {doing[:60]!r}. "
                f"Nothing was touched; if nobody is at it: xenstore-rm {self.note}"
            )
        if info.suspended:
            return
        if not doing:
            raise NotSuspended(self.domain, f"is not suspended but {info.state.value}")
        if info.dying or info.shutdown:
            raise NotSuspended(
                self.domain, f"is {info.state.value}, in the middle of being started over"
            )
        if info.type is DomainType.HVM and info.paused:
            raise self.error(
                "is paused in the middle of being started over by libxl. Wait for the process that "
                "does it; if there is none any more, what is left of it cannot go on: destroy it, "
                "and create it anew"
            )
        if doing == _DEVICES or not info.paused:
            raise self.error(
                "was set running by somebody else in the middle of being started over, with its "
                "devices closed: reboot or destroy it. "
                f"If it works all the same: xenstore-rm {self.note}"
            )

    def prepare(self, info: DomainInfo, doing: str = "") -> Machine[None]:
        """Everything that can be refused before anything is touched, or anything more."""
        allowed = self.force or doing != ""
        if info.type is DomainType.PV and not allowed:
            raise ReinitNotSupported(
                self.domain,
                "is a PV guest, and such a one registers an area for each vCPU with Xen, which Xen "
                "lets it do but once: started over, Linux panics. Nothing was touched; where it "
                "can, resume it cooperatively, and with force=True only if you know that its "
                "kernel does no such thing",
            )
        if info.type is DomainType.HVM and not allowed:
            raise ReinitNotSupported(
                self.domain,
                "is an HVM guest: only libxl can start it over, with a new device model, and "
                "destroys it should that fail. Nothing was touched; where it can, resume it "
                "cooperatively, and with force=True if that may happen",
            )
        if info.type is DomainType.HVM and info.paused and doing:
            raise self.error(
                "is paused, as it is while libxl starts it over. Wait for the process that does "
                "it; if there is none any more: unpause it, and resume it again"
            )
        if info.type is DomainType.HVM and info.paused:
            raise ReinitNotSupported(
                self.domain,
                "is paused, and libxl would set it running when it starts it over. Nothing was "
                "touched; unpause it first",
            )
        domid = self.domain.domid
        yield from self.read_rings()
        unreadable: list[str] = []
        devices = yield from used_by(domid, unreadable)
        serves = yield from served_by(domid, unreadable)
        if unreadable:
            raise ReinitNotSupported(self.domain, f"xenstore makes no sense: {unreadable[0]}")
        if serves:
            raise ReinitNotSupported(
                self.domain,
                f"is the backend of others' devices ({serves[0]} of domain "
                f"{serves[0].frontend_domid}), and backends do not start over",
            )
        # The first console has no states: xenconsoled finds its new channel in xenstore.
        self.devices = [each for each in devices if (each.kind, each.devid) != ("console", 0)]
        yield from self.check_known()
        if doing:  # it is too late to refuse what has no backend any more, which nothing can use
            gone = [each for each in self.devices if each.backend_state is None]
            self.devices = [each for each in self.devices if each not in gone]
            self.problems += [f"{each} has no backend any more" for each in gone]
            self.using = tuple(name for name in self.using if name not in map(_name, gone))
        for device in self.devices:
            yield from self.check_device(device)
        if info.type is not DomainType.HVM:
            self.check_ports()

    def check_known(self) -> Machine[None]:
        """Refuse a guest with frontends that libxl knows nothing of; they would not be closed."""
        known = {each.frontend for each in self.devices}
        for kind in (yield List(f"{self.home}/device")):
            if kind == "suspend":
                continue
            for devid in (yield List(f"{self.home}/device/{kind}")):
                frontend = f"{self.home}/device/{kind}/{devid}"
                if frontend not in known:
                    raise ReinitNotSupported(
                        self.domain,
                        f"has {frontend}, of which libxl knows nothing (in /libxl): another "
                        "toolstack may have made it. Nothing was touched",
                    )

    def read_rings(self) -> Machine[None]:
        """What xenstore says of both rings; after the reset it would be too late to find out."""
        servers = {
            "store": "/tool/xenstored/domid",  # missing unless it runs in a domain of its own
            "console": f"{self.home}/console/backend-id",
        }
        for end in _ENDS:
            self.rings[end] = _Ring(
                (yield from self.read_number(f"{self.home}/{end}/port", 1, _LARGEST)),
                (yield from self.read_number(f"{self.home}/{end}/ring-ref", 1, _LARGEST)),
                (yield from self.read_number(servers[end], 0, _LAST_DOMID, missing=0)),
            )

    def check_ports(self) -> None:
        ports = [self.rings[end].port for end in _ENDS]
        if sorted(ports) != [1, 2]:
            # These are what Xen gives out after a reset, and Linux goes on with the console's.
            raise ReinitNotSupported(
                self.domain,
                f"its store and console have the event channels {ports[0]} and {ports[1]}, which "
                "it could not be given again. Nothing was touched",
            )

    def read_number(
        self, path: str, least: int, most: int, *, missing: int | None = None
    ) -> Machine[int]:
        """A number of the toolstack's in xenstore; `missing`, if told, when there is none."""
        value = yield Read(path)
        if value is None and missing is not None:
            return missing
        found = None if value is None else number(value, most)
        if found is None or found < least:
            raise ReinitNotSupported(
                self.domain,
                f"xenstore makes no sense: {path} is {shown(value)}. Nothing was touched",
            )
        return found

    def check_device(self, device: Device) -> Machine[None]:
        if device.kind not in _RECONNECTING:
            raise ReinitNotSupported(
                self.domain,
                f"its {device} would not come back: Linux does not connect a {device.kind} anew",
            )
        if device.backend_state is None:
            raise ReinitNotSupported(
                self.domain,
                f"its {device} has no backend: is domain {device.backend_domid} gone?",
            )
        if (yield Read(f"{device.backend}/online")) == b"0":
            raise ReinitNotSupported(
                self.domain, f"its {device} is being unplugged; wait until that is done"
            )

    # -- while the guest is suspended

    def walk_back(self, *, begun: bool) -> Machine[None]:
        """Walk each device back to where a frontend begins to connect.

        Args:
            begun: whether another process has begun with it, so that devices may be closed.
        """
        self.begin(_DEVICES)
        self.deadline = self.now() + self.timeout_ns
        pause_ns = 50 * _MS
        again = False
        try:
            yield self.write_note(_DEVICES)
            for device in self.devices:
                yield from self.watch(f"{device.backend}/state")
            busy = yield from self.not_fresh(self.devices)
        except CALL_ERRORS as error:
            if begun:
                raise self.half_closed(str(error)) from error
            yield from self.take_back_note(error)
            raise
        try:
            while busy:
                yield from self.close(busy, again=again)
                again = True
                yield from self.discard_events()
                busy = yield from self.not_fresh(busy)
                if not busy:
                    break
                # A backend is still at requests of the guest, and will write into its memory.  It
                # lets go of the ring when it is asked to close after that, and tells nobody when.
                until = self.now() + pause_ns
                if until >= self.deadline:
                    raise self.stuck(_AT_WORK, busy)
                while self.now() < until:
                    yield from self.wait(until)
                pause_ns = min(2 * pause_ns, _LONGEST_PAUSE_NS)
        except CALL_ERRORS as error:
            raise self.half_closed(str(error)) from error

    def take_back_note(self, error: CallError) -> Machine[None]:
        """Remove the note when all is as it was, so that the guest can be resumed either way."""
        try:
            yield Remove(self.note)
        except CALL_ERRORS as second:
            raise self.error(
                f"{error}; it is still suspended and as it was, but a note that it is being "
                f"started over may stand, for it could not be removed ({second}). "
                f"Resume it with cooperative=False, or any way after: xenstore-rm {self.note}"
            ) from error

    def close(self, devices: Iterable[Device], *, again: bool) -> Machine[None]:
        """Have backends close, and wait for a frontend again.

        One that is closed only does the latter: told to close once more, it would at times be on
        its way when the next state comes.

        Args:
            devices: theirs.
            again: whether they have done it before, and were still at work after that.
        """
        open_ = [each for each in devices if each.backend_state is not XenbusState.CLOSED]
        yield from self.shut(open_, _AT_WORK if again else "do not close")
        for device in devices:
            yield self.put(f"{device.frontend}/state", b"%d" % XenbusState.INITIALISING)
        problem = _AT_WORK if again else "do not open again"
        yield from self.wait_for(_begun(devices), XenbusState.INIT_WAIT, problem)

    def shut(self, devices: Iterable[Device], problem: str) -> Machine[None]:
        begun = _begun(devices)
        for state in (XenbusState.CLOSING, XenbusState.CLOSED):
            for device in begun:
                yield self.put(f"{device.frontend}/state", b"%d" % state)
        yield from self.wait_for(begun, XenbusState.CLOSED, problem)

    def wait_for(
        self, devices: Iterable[Device], state: XenbusState, problem: str
    ) -> Machine[None]:
        while True:
            late = []
            for device in devices:
                if (yield from with_states(device, [])).backend_state is not state:
                    late.append(device)
            if not late:
                return
            if self.now() >= self.deadline:
                raise self.stuck(problem, late)
            yield from self.wait(self.deadline)

    def wait(self, until: int) -> Machine[None]:
        try:
            yield Wait(self.domain, until)
        except Cancelled:
            raise self.half_closed("its resume was cancelled") from None
        yield from self.look()

    def not_fresh(self, devices: Iterable[Device]) -> Machine[list[Device]]:
        """The devices that are not where a frontend begins, or whose backend holds their ring."""
        left = []
        for each in devices:
            device = yield from with_states(each, [])
            fresh = (
                device.frontend_state is XenbusState.INITIALISING
                and device.backend_state in (XenbusState.INITIALISING, XenbusState.INIT_WAIT)
                and not (yield from self.bound(device))
            )
            if not fresh:
                left.append(device)
        return left

    def bound(self, device: Device) -> Machine[bool]:
        """Whether the backend is bound to one of the frontend's event channels."""
        directories = [device.frontend]
        for name in (yield List(device.frontend)):
            if name.startswith("queue-"):
                directories.append(f"{device.frontend}/{name}")
        for directory in directories:
            for name in (yield List(directory)):
                if not name.startswith("event-channel"):
                    continue
                value = yield Read(f"{directory}/{name}")
                if value and value.isdigit() and len(value) < 10:
                    remote = yield from self.remote(int(value))
                    if remote == device.backend_domid:
                        return True
        return False

    def remote(self, port: int) -> Machine[int | None]:
        try:
            remote: int | None = yield GetRemote(self.domain.domid, port)
        except HypercallError as error:
            if error.errno != errno.EINVAL:
                raise
            return None  # the guest has written a number that is no port
        return remote

    def stuck(self, problem: str, devices: Iterable[Device]) -> ResumeError:
        names = ", ".join(f"{each} (in domain {each.backend_domid})" for each in devices)
        return self.half_closed(
            f"after {self.timeout_ns / 1e9:.3g} s the backends {problem}: {names}"
        )

    def half_closed(self, why: str) -> ResumeError:
        return self.error(f"{why}; {_LOST_ON_THE_WAY}")

    def clear(self) -> Machine[None]:
        """Pause it, and clear what Xen has of it; a PVH domain leaves its suspension with that."""
        self.begin("reset")
        try:
            info = yield from self.look()  # its toolstack may have paused or unpaused it meanwhile
            self.ours = self.inherited or not info.paused
            yield self.write_note(_GROUND)
            if not info.paused:
                yield Pause(self.domain.domid)
            if not self.pv:
                yield SoftReset(self.domain.domid)
        except CALL_ERRORS as error:
            raise (yield from self.not_cleared(error)) from error

    def not_cleared(self, error: CallError) -> Machine[ResumeError]:
        """The error for a domain that could not be cleared; our pause is taken back."""
        info = yield from self.look_after(error)
        if not info.suspended:
            if info.paused and not (info.shutdown or info.dying):  # it was done all the same
                return self.error(f"{error}; yet it was done: it is paused, {_HALF_WAY}")
            return self.error(f"{error}; it has ended with that: it is {info.state.value}")
        if self.ours and info.paused:
            try:
                yield Unpause(self.domain.domid)
                yield self.write_note(_DEVICES)  # a pause that it has from now on is not ours
            except CALL_ERRORS as second:
                return self.half_closed(f"{error}; then {second}, so it is also paused")
        return self.half_closed(str(error))

    def rebuild(self) -> Machine[None]:
        """Have libxl do the rest with an HVM guest."""
        domid = self.domain.domid
        try:
            # libxl waits for those that are not closed, and nobody else would close them
            yield from self.shut(self.devices, "do not close")
            policy = yield Read(f"{self.home}/{POLICY}")  # libxl makes its directory anew
            yield Pause(domid)  # it must not run before it has a device model
        except CALL_ERRORS as error:
            raise self.half_closed(str(error)) from error
        self.begin("libxl")
        try:
            yield from heavy.start_over(self.domain, self.now)
        except XenError as error:
            raise (yield from self.not_rebuilt(error)) from error
        if policy is not None:
            try:
                yield self.put(f"{self.home}/{POLICY}", policy)
            except CALL_ERRORS as error:
                self.problems.append(f"its {POLICY} in xenstore, {policy!r}, is lost: {error}")
        info = yield from self.look()
        if info.paused:
            try:
                yield Unpause(domid)
            except CALL_ERRORS as error:
                raise self.error(
                    f"{error}; it has started over, but is paused: unpause it"
                ) from error
        self.end()

    def not_rebuilt(self, error: XenError) -> Machine[ResumeError]:
        """The error for an HVM guest that libxl could not start over."""
        info: DomainInfo | None = yield from look(self.domain)
        if info is None or info.dying:
            return self.error(f"{error}; libxl has destroyed it with that")
        if not info.suspended:
            return self.error(
                f"{error}; what is left of it cannot go on: destroy it, and create it anew"
            )
        try:
            yield Unpause(self.domain.domid)
        except CALL_ERRORS as second:
            return self.half_closed(f"{error}; then {second}, so it is also paused")
        return self.half_closed(str(error))

    # -- while the guest is paused

    def lay_ground(self) -> Machine[None]:
        """Give it what a new domain has, beginning with no event channels at all."""
        try:
            yield from self.channels()
        except CALL_ERRORS as error:
            raise self.error(
                f"{error}; it is paused in the middle of being started over (step {self.step}), "
                f"{_HALF_WAY}"
            ) from error

    def channels(self) -> Machine[None]:
        domid = self.domain.domid
        self.begin("channels")
        yield ResetChannels(domid)
        ports = {}
        for end in sorted(_ENDS, key=lambda end: self.rings[end].port):  # each gets what it had
            ports[end] = yield AllocateChannel(domid, self.rings[end].served_by)
            if not self.pv:
                yield SetParam(domid, _EVTCHN_PARAMS[end], ports[end])
        self.begin("grants")
        yield SeedGrants(
            domid,
            is_hvm=not self.pv,
            console_gfn=self.rings["console"].gfn,
            xenstore_gfn=self.rings["store"].gfn,
            console_domid=self.rings["console"].served_by,
            xenstore_domid=self.rings["store"].served_by,
        )
        self.begin("store")
        yield self.put(f"{self.home}/control/shutdown", b"")
        yield Introduce(domid, self.rings["store"].gfn, ports["store"])
        if (yield GetRemote(domid, ports["store"])) is None:
            raise HypercallError(
                "xs_introduce_domain", errno.EIO, "xenstored did not bind the event channel"
            )
        if (yield Read(suspend_channel(self.domain))):  # it is gone with the others
            yield self.put(suspend_channel(self.domain), b"")
        for end in _ENDS:  # xenconsoled looks again when its node is written
            yield self.put(f"{self.home}/{end}/port", b"%d" % ports[end])
        yield from self.discard_events()
        if self.pv:
            yield ResumeDomain(domid, cooperative=False)

    def discard_events(self) -> Machine[None]:
        """Take the events that its watches have fired meanwhile, until there are no more.

        Its ring is small.  When it is full xenstored waits in the middle of a message; oxenstored
        also after an introduction, and the guest would take the rest of it for the next one.
        """
        gfn = self.rings["store"].gfn
        quiet = 0
        for _ in range(_MOST_ROUNDS):
            quiet = 0 if (yield DiscardEvents(self.domain.domid, gfn)) else quiet + 1
            if quiet == 2:
                return
            yield Read(self.home)  # having answered, xenstored has written what had room
        raise store_error("xs_read", errno.EBUSY, "it does not stop writing to the guest")

    def let_run(self) -> Machine[None]:
        domid = self.domain.domid
        self.begin(_RUN)
        try:
            yield self.write_note(_RUN)
            yield ResumeStore(domid)
            info = yield from self.look()
            if self.ours and info.paused:
                yield Unpause(domid)
        except CALL_ERRORS as error:
            info = yield from self.look_after(error)
            if not info.paused:
                raise self.note_stands(error) from error
            raise self.error(
                f"{error}; its reinitialisation is done but for this: it is paused; resume it with "
                "cooperative=False again"
            ) from error
        try:
            yield Remove(self.note)
        except CALL_ERRORS as error:
            raise self.note_stands(error) from error
        self.end()

    def note_stands(self, error: CallError) -> ResumeError:
        return self.error(
            f"runs again, but the note of its reinitialisation stands ({error}): "
            f"xenstore-rm {self.note}"
        )

    # -- while the guest runs

    def see_connected(self) -> Machine[list[str]]:
        """Wait until its devices are connected again; what is not as it was, in words.

        Suspended before that it would stay: Linux freezes its processes first, and one that waits
        for a disk cannot be frozen, while the disk's driver waits for the end of the freezing.
        """
        self.deadline = self.now() + self.timeout_ns
        try:
            devices = yield from used_by(self.domain.domid, [], states=False)
            late = [each for each in devices if _name(each) in self.using]
            for device in late:
                yield from self.watch(f"{device.frontend}/state")
                yield from self.watch(f"{device.backend}/state")
            while True:
                left = []
                for each in late:
                    device = yield from with_states(each, [])
                    if not _connected(device):
                        left.append(device)
                late = left
                if not late:
                    return []
                if self.now() >= self.deadline:
                    return [f"{each} has not connected again" for each in late]
                wake: Wake = yield Wait(self.domain, self.deadline)
                if wake.domain:
                    return ["it has shut down or is gone since it was resumed"]
        except Cancelled:
            return ["whether its devices connect again was not waited for"]
        except CALL_ERRORS as error:
            return [f"its devices could not be looked at: {error}"]

    def watch(self, path: str) -> Machine[None]:
        if path not in self.watched:
            self.watched.add(path)
            yield Watch(path)


def _name(device: Device) -> str:
    return f"{device.kind}/{device.devid}"


def _begun(devices: Iterable[Device]) -> list[Device]:
    """Those whose backends have begun; others have nothing to close, and may hear no frontend."""
    return [each for each in devices if each.backend_state is not XenbusState.INITIALISING]


def _served_by_model(device: Device) -> bool:
    """Whether an HVM guest's device model is the backend, which ends when libxl starts it over."""
    return device.backend.split("/")[-3] in {"qdisk", "vkbd", "vfb"}


def _connected(device: Device) -> bool:
    return device.frontend_state is device.backend_state is XenbusState.CONNECTED


def resume(
    domain: DomainRef, now: Clock, timeout_ns: int, cooperative: bool | None, force: bool
) -> Machine[Resumption]:
    """Resume a suspended domain in place: cooperatively where the guest can, else by starting over.

    To start a guest over is to give it fresh ground.  What was begun so by a process that did not
    end it, is finished.

    Args:
        domain: which domain.
        now: a monotonic clock in nanoseconds.
        timeout_ns: how long its backends have for closing, when it starts over.
        cooperative: True or False when the caller wants one way and no other.
        force: start over also a PV guest.

    Raises:
        NoSuchDomain: it is gone.
        NotSuspended: it is not suspended; nothing was touched.
        ReinitNotSupported: the guest or one of its devices cannot; nothing was touched.
        ResumeError: somebody else is at it, a backend does not close, or a call failed; the
            message says what state the guest is in.
        HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
    """
    info = yield from look(domain)
    if info is None:
        yield from protocol.let_go(domain)
        raise NoSuchDomain(f"{domain} is gone")
    doing = (yield from started_over(domain, info)).doing
    chosen = False
    if doing and not cooperative:
        reason = f"a process that started it over did not end that; it was at {doing!r}"
    elif cooperative is not None:
        reason = "asked for"
    else:
        support = yield from supports_cooperative_resume(domain, info)
        cooperative, reason, chosen = support.supported, support.evidence, True
    if cooperative:
        return replace((yield from protocol.resume(domain, now)), reason=reason)
    try:
        return (yield from _Reinit(domain, now, timeout_ns, force=force).run(reason))
    except ReinitNotSupported as error:
        if not chosen:
            raise
        raise ReinitNotSupported(
            domain, f"cannot be resumed cooperatively ({reason}), and {error.message}"
        ) from error


def supports_reinit(domain: DomainRef, info: DomainInfo) -> Machine[Support]:
    """Whether the guest can be started over, and what tells so."""
    check = _Reinit(domain, lambda: 0, 0, force=False)
    try:
        yield from check.prepare(info)
    except ReinitNotSupported as error:
        return Support(False, error.message)
    kinds = sorted({each.kind for each in check.devices})
    return Support(
        True, f"it is a {info.type.name} guest; devices: {', '.join(kinds) if kinds else 'none'}"
    )
