"""Domains, and the scripts that their kernels follow."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any
from uuid import UUID

from xenpm.errors import hypercall_error
from xenpm.types import DomainInfo, DomainType, Permission, ShutdownReason

from .clock import MS, Action
from .devices import CONNECTED, FakeBackend, FakeCard
from .models import FakeModel
from .store import StoreConnection

if TYPE_CHECKING:
    from .host import FakeXen

# HVM_PARAM_* of public/hvm/params.h
CALLBACK_IRQ, STORE_EVTCHN, CONSOLE_EVTCHN = 0, 2, 18


class FakeGuest:
    """A domain, and the script that its kernel follows; made by `FakeXen.add_guest`.

    Attributes:
        domid, name, uuid: what it is called.
        suspensions: how often it has suspended.
        resumptions: how often it was resumed.
        pause_count: how often it is paused and not yet unpaused.
        gone: whether it was destroyed.
        request: what asks it to suspend or to shut down, as it stands in xenstore.
        corrupted: what was done to it that a real guest does not survive; empty is well.
    """

    def __init__(
        self,
        xen: FakeXen,
        domid: int,
        name: str,
        *,
        uuid: UUID | None = None,
        type: DomainType = DomainType.PVH,  # noqa: A002
        vcpus: int = 1,
        memory_kib: int = 256 * 1024,
        acknowledge_ns: int | None = 1 * MS,
        acknowledge_by: str = "writing",
        suspend_ns: int | None = 40 * MS,
        shuts_down_for: ShutdownReason = ShutdownReason.SUSPEND,
        feature_suspend: bytes | None = b"1",
        hvm_params: dict[int, int] | None = None,
        runs_xenstore: bool = False,
    ) -> None:
        self.script: dict[str, Any] = {}  # what it was built with; `FakeXen.add_guest` says
        if acknowledge_by not in ("writing", "deleting", "nothing"):
            raise ValueError(f"a guest acknowledges by no {acknowledge_by!r}")
        self.xen = xen
        self.domid = domid
        self.name = name
        self.uuid = UUID(int=(0xFA4E << 112) | domid) if uuid is None else uuid
        self.type = type
        self.vcpus = vcpus
        self.memory_kib = memory_kib
        self.acknowledge_ns = acknowledge_ns
        self.acknowledge_by = acknowledge_by
        self.suspend_ns = suspend_ns
        self.shuts_down_for = shuts_down_for
        self.feature_suspend = feature_suspend
        self.hvm_params = {
            CALLBACK_IRQ: 1,
            STORE_EVTCHN: 1,
            CONSOLE_EVTCHN: 2,
            **(hvm_params or {}),
        }
        self.runs_xenstore = runs_xenstore
        # the domain's state
        self.gone = False
        self.dying = False
        self.shutdown_code: int | None = None
        self.pause_count = 0
        self.watched = True  # whether a process of xl looks after it
        # its history
        self.suspensions = 0
        self.resumptions = 0
        self.pressed: list[int] = []  # its buttons: XEN_DOMCTL_SENDTRIGGER_*
        self.corrupted = ""  # what was done to it that a guest does not survive
        # its event channels: who is at the other end; None: nobody yet
        self.channels: dict[int, int | None] = {1: 0, 2: 0}
        self.suspend_port = 0  # the one that it offers
        self.over = False  # its suspend hypercall is going to return 0
        self.seeded = False
        self.ring_bytes = 0  # that xenstored has for it and that it has not taken
        self.restarts = 0
        self.stuck_vcpus: set[int] = set()  # that do not run
        # its hardware
        self.model = FakeModel(self) if type is DomainType.HVM else None
        self.cards: dict[str, FakeCard] = {}
        self.backends: list[FakeBackend] = []
        # its kernel
        self._asked = False
        self._paused_work: list[Action] = []
        self._build()

    @property
    def home(self) -> str:
        """Its directory in xenstore."""
        return f"/local/domain/{self.domid}"

    @property
    def request_path(self) -> str:
        """The node through which it is asked to suspend."""
        return f"{self.home}/control/shutdown"

    @property
    def request(self) -> bytes | None:
        """What that node holds; None when it is not there."""
        node = self.xen.store.nodes.get(self.request_path)
        return None if node is None else node.value

    @property
    def suspended(self) -> bool:
        """Whether it sits in the suspend hypercall."""
        return not self.gone and self.shutdown_code == ShutdownReason.SUSPEND

    @property
    def watcher_held(self) -> bool:
        """Whether the process of xl that looks after it is held."""
        return (self.domid, self.uuid.bytes) in self.xen.held

    @property
    def running(self) -> bool:
        """Whether it lives and is not shut down; it may be paused."""
        return not self.gone and not self.dying and self.shutdown_code is None

    @property
    def info(self) -> DomainInfo:
        """What the hypervisor says of it."""
        down = self.shutdown_code is not None
        return DomainInfo(
            domid=self.domid,
            handle=self.uuid.bytes,
            type=self.type,
            dying=self.dying,
            shutdown=down,
            shutdown_code=self.shutdown_code or 0,
            paused=self.pause_count > 0,
            blocked=not down,
            running=False,
            runs_xenstore=self.runs_xenstore,
            vcpus_online=self.vcpus,
            max_vcpu_id=self.vcpus - 1,
            memory_kib=self.memory_kib,
            max_memory_kib=self.memory_kib,
            cpu_time_ns=self.xen.now_ns,
            cpupool=0,
        )

    # -- what it is given

    def give_card(self, address: str, **card: Any) -> FakeCard:
        """Pass a PCI device through to it, as libxl and pciback do it."""
        toolstack, home = self.xen.toolstack, f"/local/domain/0/backend/pci/{self.domid}/0"
        number = len(self.cards)
        toolstack.write(f"{home}/state", b"4")
        toolstack.write(f"{home}/num_devs", b"%d" % (number + 1))
        toolstack.write(f"{home}/key-{number}", address.encode())
        toolstack.write(f"{home}/dev-{number}", address.encode())
        toolstack.write(f"{home}/vdev-{number}", b"0000:00:%02x.00" % number)
        toolstack.write(f"{home}/state-{number}", b"3")
        toolstack.write(f"{home}/opts-{number}", b"msitranslate=0,power_mgmt=0,permissive=0")
        given = self.cards[address] = self.xen.cards[address] = FakeCard(**card)
        return given

    def give_device(
        self, kind: str, devid: int, server: int = 0, backend: str = "", **script: Any
    ) -> FakeBackend:
        """Give it a split device whose backend is in domain `server`, connected."""
        toolstack = self.xen.toolstack
        back = f"/local/domain/{server}/backend/{backend or kind}/{self.domid}/{devid}"
        front = f"{self.home}/device/{kind}/{devid}"
        for path in (front, f"/libxl/{self.domid}/device/{kind}/{devid}"):
            toolstack.write(f"{path}/backend", back.encode())
        toolstack.write(f"/libxl/{self.domid}/device/{kind}/{devid}/frontend", front.encode())
        toolstack.write(f"{back}/frontend", front.encode())
        toolstack.write(f"{front}/state", CONNECTED)
        toolstack.write(f"{back}/state", CONNECTED)
        toolstack.write(f"{back}/online", b"1")
        port = max(self.channels) + 1
        self.channels[port] = server
        toolstack.write(f"{front}/event-channel", b"%d" % port)
        served = FakeBackend(self, server, front, back, port, **script)
        self.backends.append(served)
        return served

    # -- what may happen to it

    def suspend(self) -> None:
        """It makes the suspend hypercall."""
        if self.running:
            self.suspensions += 1
            for card in self.cards.values():
                card.sleep()
            self.shut_down(ShutdownReason.SUSPEND)

    def crash(self) -> None:
        """Its kernel panics."""
        self.shut_down(ShutdownReason.CRASH)

    def power_off(self) -> None:
        """It powers off; nobody destroys it."""
        self.shut_down(ShutdownReason.POWEROFF)

    def reboot(self, after_ns: int = 50 * MS) -> None:
        """It reboots: the toolstack destroys it and builds it anew under another domid."""

        def rebuild() -> None:
            self.destroy()
            self.xen.add_guest(self.name, **{**self.script, "uuid": self.uuid})

        self.shut_down(ShutdownReason.REBOOT)
        self.xen.after(after_ns, rebuild)

    def shut_down(self, reason: int) -> None:
        """It leaves the scheduler."""
        if self.running:
            self.shutdown_code = int(reason)
            self.look_after()
            self.xen.store.has_shut_down(self.domid)

    def look_after(self) -> None:
        """The process of xl that looks after it sees how it is, unless that is held."""
        if self.suspended and self.xen.xl_is_misled and not self.watcher_held:
            self.watched = False

    def destroy(self, teardown_ns: int = 0, dying_ns: int = 0) -> None:
        """The toolstack destroys it, as libxl does: pauses it, empties xenstore, kills it.

        Args:
            teardown_ns: how long it is still there without its nodes in xenstore.
            dying_ns: how long it is dying before its domid is free.
        """
        if self.gone or self.dying:
            return
        self.pause_count += 1
        self.xen.toolstack.remove(self.home)
        for path in (f"/libxl/{self.domid}", f"/local/domain/0/backend/pci/{self.domid}"):
            if path in self.xen.store.nodes:
                self.xen.toolstack.remove(path)
        self.xen.after(teardown_ns, lambda: self._kill(dying_ns))

    # -- what the hypervisor does to it

    def pause(self) -> None:
        """One more pause."""
        self.pause_count += 1

    def unpause(self) -> None:
        """One pause less; without any, it goes on with what it was at."""
        self.pause_count = max(0, self.pause_count - 1)
        if self.pause_count == 0:
            if self.over and self.running:
                self._start_over()
            work, self._paused_work = self._paused_work, []
            for step in work:
                self.xen.after(0, lambda step=step: self._step(step))  # type: ignore[misc]

    def resume(self, cooperative: bool) -> None:
        """XEN_DOMCTL_resumedomain, with what libxc does around it; harmful unless suspended."""
        if not self.suspended:
            self.corrupted = "resumed when it was not suspended"
        elif not cooperative and (self.type is not DomainType.PV or 3 in self.channels):
            self.corrupted = "told to start over without being given fresh ground"
        elif not cooperative:
            self.over = True
        elif self.model is not None and self.model.status != "running":
            self.corrupted = "told to go on without its device model"
        elif not self.over and any(
            backend.state not in (CONNECTED, b"") for backend in self.backends
        ):
            self.corrupted = "told to go on with devices that were closed"
        self.resumptions += 1
        self.shutdown_code = None
        self._asked = False
        for card in self.cards.values():
            card.wake(self.xen)

    def press(self, trigger: int, vcpu: int) -> None:
        """XEN_DOMCTL_sendtrigger."""
        if trigger and self.type is DomainType.PV:
            raise hypercall_error("xc_domain_send_trigger", errno.EINVAL)
        if vcpu >= self.vcpus:
            raise hypercall_error("xc_domain_send_trigger", errno.ESRCH)
        self.pressed.append(trigger)

    def soft_reset(self) -> None:
        """XEN_DOMCTL_soft_reset."""
        if self.type is DomainType.PV:
            self.shutdown_code = ShutdownReason.CRASH
            self.corrupted = "reset as only PVH guests can be"
        if not self.suspended or not self.pause_count:
            raise hypercall_error("xc_domain_soft_reset", errno.EINVAL)
        self.channels.clear()
        self.shutdown_code = None
        self.over, self.seeded, self._asked = True, False, False

    def reset_channels(self) -> None:
        """EVTCHNOP_reset."""
        if not self.pause_count:
            raise hypercall_error("xc_evtchn_reset", errno.EINVAL)
        self.channels.clear()

    def allocate_channel(self) -> int:
        """EVTCHNOP_alloc_unbound: the lowest free port."""
        port = next(port for port in range(1, 4096) if port not in self.channels)
        self.channels[port] = None
        return port

    def introduce(self, gfn: int, port: int) -> None:
        """XS_INTRODUCE on a domain that xenstored knows: it binds the new channel."""
        assert gfn == 0xFEFFC
        if self.channels.get(port, 0) is None:
            self.channels[port] = 0
        self._connection.watches.clear()

    # -- its kernel

    def _start_over(self) -> None:
        """Its suspend hypercall returns 0: it uses what it was given."""
        self.over = False
        self.restarts += 1
        store, console = self.hvm_params[STORE_EVTCHN], self.hvm_params[CONSOLE_EVTCHN]
        if (
            (store, console) != (1, 2)
            or self.channels.get(store) != 0
            or console not in (self.channels)
        ):
            self.corrupted = f"started over with the channels {self.channels}"
        elif not self.seeded:
            self.corrupted = "started over without grants for its store and console"
        elif self.xen.store.shut_down.get(self.domid):
            self.corrupted = "started over while xenstored takes it for suspended"
        elif self.xen.store.nodes[f"{self.home}/store/port"].value != b"1":
            self.corrupted = "started over with another port in xenstore"
        elif self.ring_bytes > 1000:
            self.corrupted = "started over with xenstored in the middle of a message to it"
        self.ring_bytes = 0
        for backend in self.backends:
            backend.frontend_starts(self)
        self._connection.watch(self.request_path, "shutdown")

    def _build(self) -> None:
        toolstack = self.xen.toolstack
        mine = [Permission(self.domid, read=False, write=False)]
        toolstack.write(self.home, b"")
        readable = [Permission(0, read=False, write=False), Permission(self.domid, True, False)]
        toolstack.set_permissions(self.home, readable)
        toolstack.write(f"{self.home}/name", self.name.encode("utf-8", "surrogateescape"))
        toolstack.write(f"{self.home}/store/port", b"1")
        toolstack.write(f"{self.home}/store/ring-ref", b"%d" % 0xFEFFC)
        toolstack.write(f"{self.home}/console/port", b"2")
        toolstack.write(f"{self.home}/console/ring-ref", b"%d" % 0xFEFFF)
        toolstack.write(f"{self.home}/vm", b"/vm/%s" % str(self.uuid).encode())
        toolstack.write(self.request_path, b"")
        toolstack.set_permissions(self.request_path, mine)
        if self.feature_suspend is not None:
            toolstack.write(f"{self.home}/control/feature-suspend", self.feature_suspend)
        self.xen.store.introduce(self.domid)
        self._connection = StoreConnection(self.xen.store, self.domid, self._request_changed)
        self._connection.watch(self.request_path, "shutdown")

    def _kill(self, dying_ns: int) -> None:
        self.dying = True
        self._connection.close()
        if dying_ns:
            self.xen.after(dying_ns, self._vanish)
        else:
            self._vanish()
        self.xen.store.release(self.domid)

    def _vanish(self) -> None:
        self.gone = True
        if self.xen.guests.get(self.domid) is self:
            del self.xen.guests[self.domid]

    def _later(self, delay_ns: int, step: Action) -> None:
        self.xen.after(delay_ns, lambda: self._step(step))

    def _step(self, step: Action) -> None:
        """Go on, if the guest is alive; when it is paused, later."""
        if not self.running:
            return
        if self.pause_count:
            self._paused_work.append(step)
        else:
            step()

    def _request_changed(self) -> None:
        self._connection.events.clear()
        if self.request == b"suspend" and not self._asked and self.acknowledge_ns is not None:
            self._asked = True
            self._later(self.acknowledge_ns, self.acknowledge)

    def offer_channel(self) -> int:
        """Offer an event channel for asking it to suspend, as classic PV kernels do."""
        self.suspend_port = self.allocate_channel()
        path = f"{self.home}/device/suspend/event-channel"
        self.xen.toolstack.write(path, b"%d" % self.suspend_port)
        return self.suspend_port

    def notified(self, port: int) -> None:
        """Its event channel fires."""
        if port != self.suspend_port or port not in self.channels:
            raise hypercall_error("xc_suspend_evtchn_init_exclusive", errno.EINVAL)
        if self.suspend_ns is not None:
            self._later(self.suspend_ns, self._answer)

    def acknowledge(self) -> None:
        """It takes the request, if there still is one."""
        self._asked = False
        if self.request != b"suspend":
            return
        if self.acknowledge_by == "writing":
            self._connection.write(self.request_path, b"")
        elif self.acknowledge_by == "deleting":
            self._connection.remove(self.request_path)
        if self.suspend_ns is not None:
            self._later(self.suspend_ns, self._answer)

    def _answer(self) -> None:
        """It does what it does for a request to suspend."""
        if self.shuts_down_for is ShutdownReason.SUSPEND:
            self.suspend()
        elif self.shuts_down_for is ShutdownReason.REBOOT:
            self.reboot()
        else:
            self.shut_down(self.shuts_down_for)
