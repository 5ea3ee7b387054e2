"""The values that xenpm's functions take and return."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple
from uuid import UUID

__all__ = [
    "Device",
    "DomainEvent",
    "DomainEventKind",
    "DomainInfo",
    "DomainRef",
    "DomainState",
    "DomainType",
    "PciCondition",
    "PciDevice",
    "Permission",
    "Phase",
    "Resumption",
    "Saving",
    "ShutdownReason",
    "Sleep",
    "Step",
    "Support",
    "Suspension",
    "VcpuInfo",
    "XenbusState",
]


#: What dom0's clock may gain without a sleep, for Xen sets it after S3 by the real-time clock, in
#: full seconds: up to 2.8 s was seen (docs/host-sleep.rst).  Below this nothing can be told.
SHORTEST_SLEEP_NS = 4_000_000_000


class DomainType(enum.Enum):
    """The kind of a guest, as xl's ``type=`` names it."""

    PV = "pv"
    PVH = "pvh"
    HVM = "hvm"


class ShutdownReason(enum.IntEnum):
    """Why a domain left the scheduler: ``SHUTDOWN_*`` of Xen's public/sched.h."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


class DomainState(enum.Enum):
    """What a domain is doing; when several hold, the one furthest down in this list."""

    RUNNING = "running"  #: on a CPU, or waiting for one or for an event
    PAUSED = "paused"  #: by the toolstack, without the guest's knowledge
    SUSPENDED = "suspended"  #: by itself, through the suspend hypercall; its memory is in place
    SHUTDOWN = "shutdown"  #: powered off, rebooted or stopped otherwise, not yet destroyed
    CRASHED = "crashed"  #: crashed (or its watchdog fired), not yet destroyed
    DYING = "dying"  #: being destroyed


class Phase(enum.Enum):
    """How far the suspend conversation with a guest has come."""

    IDLE = "idle"  #: nothing was asked of the guest yet
    REQUESTED = "requested"  #: ``control/shutdown`` is ``suspend``; can be taken back
    ACKNOWLEDGED = "acknowledged"  #: the guest has taken it; it may suspend at any moment
    SUSPENDED = "suspended"  #: shut down with reason suspend, memory in place


class DomainEventKind(enum.Enum):
    """What has become of a domain."""

    APPEARED = "appeared"  #: it is there, and has its name
    SUSPENDED = "suspended"  #: it sits in the suspend hypercall
    RESUMED = "resumed"  #: it has left that
    GONE = "gone"  #: it was destroyed, or is just being destroyed


class DomainInfo(NamedTuple):
    """What the hypervisor says of a domain: ``xc_domaininfo_t`` of xenctrl.h."""

    domid: int  #: its number on this host
    handle: bytes  #: the UUID as 16 bytes
    type: DomainType  #: PV, PVH or HVM
    dying: bool  #: it is being destroyed
    shutdown: bool  #: it has left the scheduler for good, until resumed or destroyed
    shutdown_code: int  #: the ``SHUTDOWN_*`` number; meaningful only when `shutdown`
    paused: bool  #: by the toolstack
    blocked: bool  #: all its vCPUs wait for events
    running: bool  #: one of its vCPUs is on a CPU
    runs_xenstore: bool  #: it is the xenstore domain: xenstored runs in it, and not in dom0
    vcpus_online: int  #: how many vCPUs are in use
    max_vcpu_id: int  #: the highest vCPU number it may have
    memory_kib: int  #: what it has now
    max_memory_kib: int  #: what it may have
    cpu_time_ns: int  #: what all its vCPUs have used since it was made
    cpupool: int  #: the CPU pool that it runs in

    @property
    def uuid(self) -> UUID:
        """The UUID that the toolstack gave the domain."""
        return UUID(bytes=self.handle)

    @property
    def shutdown_reason(self) -> ShutdownReason | None:
        """Why it shut down; None while it has not, or for a code Xen has no name for."""
        if not self.shutdown or self.shutdown_code not in _SHUTDOWN_CODES:
            return None
        return ShutdownReason(self.shutdown_code)

    @property
    def suspended(self) -> bool:
        """Whether it sits in the suspend hypercall and can be resumed."""
        return self.shutdown and self.shutdown_code == ShutdownReason.SUSPEND and not self.dying

    @property
    def state(self) -> DomainState:
        """The one word for what the flags say."""
        if self.dying:
            return DomainState.DYING
        if self.shutdown:
            if self.shutdown_code == ShutdownReason.SUSPEND:
                return DomainState.SUSPENDED
            if self.shutdown_code in (ShutdownReason.CRASH, ShutdownReason.WATCHDOG):
                return DomainState.CRASHED
            return DomainState.SHUTDOWN
        return DomainState.PAUSED if self.paused else DomainState.RUNNING


_SHUTDOWN_CODES = frozenset(int(reason) for reason in ShutdownReason)


class VcpuInfo(NamedTuple):
    """What the hypervisor says of a vCPU: ``xc_vcpuinfo_t`` of xenctrl.h."""

    online: bool  #: the guest uses it
    blocked: bool  #: it waits for an event
    cpu_time_ns: int  #: what it has used since the domain was made


class Permission(NamedTuple):
    """One entry of a xenstore node's permissions; the first entry is the owner's.

    In the first entry `domid` owns the node, and `read` and `write` hold for everybody who is not
    listed.
    """

    domid: int
    read: bool
    write: bool


class DomainRef(NamedTuple):
    """Which domain: what xenpm holds on to, so that a reused domid is never mistaken for it."""

    domid: int
    handle: bytes
    name: str

    @property
    def uuid(self) -> UUID:
        """The UUID that the toolstack gave the domain."""
        return UUID(bytes=self.handle)

    def __str__(self) -> str:
        return f"{self.name} (domain {self.domid})" if self.name else f"domain {self.domid}"


class DomainEvent(NamedTuple):
    """Something that has become of a domain; see `Host.events`."""

    kind: DomainEventKind  #: what
    domain: DomainRef  #: of whom

    def __str__(self) -> str:
        return f"{self.domain}: {self.kind.value}"


class XenbusState(enum.IntEnum):
    """How far one end of a split device is: ``XenbusState*`` of Xen's public/io/xenbus.h."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2  #: the backend waits for the frontend
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


@dataclass(frozen=True)
class Device:
    """A split device: its frontend in one domain, its backend in another."""

    kind: str  #: as libxl names it: ``vbd``, ``vif``, ``9pfs``, ``vkbd``, ``console``, ...
    devid: int  #: its number among those of its kind in the frontend's domain
    frontend_domid: int  #: who uses it
    backend_domid: int  #: who serves it
    frontend: str  #: the frontend's directory in xenstore
    backend: str  #: the backend's
    frontend_state: XenbusState | None = None  #: None: it has none
    backend_state: XenbusState | None = None  #: None: it has none

    def __str__(self) -> str:
        return f"{self.kind} {self.devid}"


@dataclass(frozen=True)
class PciDevice:
    """A PCI device of the host that is passed through to a domain."""

    address: str  #: on the host, as ``0000:00:10.0``
    virtual_address: str | None  #: where the guest sees it; None when nobody has said
    state: XenbusState | None  #: its own within the PCI backend; None: it has none
    backend_state: XenbusState | None  #: of the domain's PCI backend, one for all its devices
    options: dict[str, str]  #: ``msitranslate``, ``power_mgmt``, ``permissive``, ``rdm_policy``

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class PciCondition:
    """How a passed-through PCI device is, as its configuration space on the host tells it."""

    address: str  #: on the host, as ``0000:00:10.0``
    present: bool  #: it answers configuration reads
    in_use: bool = False  #: a driver has switched it on: it decodes addresses and may do DMA
    interrupts: str | None = None  #: what is enabled: ``msi-x``, ``msi`` or ``intx``
    power_state: str | None = None  #: ``D0`` to ``D3``; None when it has no power management
    link_width: int | None = None  #: lanes of its PCI Express link; None when it has no such link
    backend_state: XenbusState | None = None  #: of the domain's PCI backend


def plain(value: Any) -> Any:
    """A value as ``json.dumps`` takes it: enumerations by their names."""
    if isinstance(value, DomainRef):
        return {"domid": value.domid, "name": value.name, "uuid": str(value.uuid)}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return value


@dataclass(frozen=True)
class Result:
    """What a verb of a domain came to."""

    domain: DomainRef

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True)
class Suspension(Result):
    """A domain that has been suspended, and how long each phase took."""

    request_ns: int  #: from the start of the conversation until the request stood in xenstore
    acknowledge_ns: int  #: from the request until the guest was seen to have taken it
    suspend_ns: int  #: from there until it was seen to have left the scheduler
    pci: tuple[PciCondition, ...] = ()  #: its passed-through devices, as they were before
    serves: tuple[Device, ...] = ()  #: the devices of others that it is the backend of, before
    model_ns: int = 0  #: from there until its device model was stopped; 0: it has none

    @property
    def total_ns(self) -> int:
        """From the start of the conversation until the domain was suspended, with its model."""
        return self.request_ns + self.acknowledge_ns + self.suspend_ns + self.model_ns

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        return {**super().to_dict(), "total_ns": self.total_ns}


@dataclass(frozen=True)
class Saving(Result):
    """A domain that has been saved to a file, and destroyed."""

    path: str  #: the file
    size_bytes: int  #: how long it is
    total_ns: int  #: from the call until the domain was destroyed


@dataclass(frozen=True)
class Support:
    """Whether a domain can do something, with what tells so; true or false by itself."""

    supported: bool
    evidence: str  #: why, in words

    def __bool__(self) -> bool:
        return self.supported


@dataclass(frozen=True)
class Step:
    """One step of a resume, and how long it took."""

    name: str
    ns: int


@dataclass(frozen=True)
class Resumption(Result):
    """A domain that has been resumed in place."""

    cooperative: bool  #: the guest kept its event channels, grants and connections
    total_ns: int  #: from the call until hypervisor and xenstore had both taken it
    pci: tuple[PciCondition, ...] = ()  #: its passed-through devices, as they are again
    serves: tuple[Device, ...] = ()  #: the devices of others that it is the backend of
    check_ns: int = 0  #: how long its devices were watched after that
    problems: tuple[str, ...] = ()  #: what of its devices is not as it was, in words
    reason: str = ""  #: why this way of resuming was taken
    steps: tuple[Step, ...] = ()  #: what was done, in order; empty for a cooperative resume
    model_ns: int = 0  #: how much of it continuing its device model took; 0: it has none


class Ending(NamedTuple):
    """How a program, a function or a conversation beside the engine has ended."""

    status: int | None  #: a program's exit status, or minus the signal that ended it; an errno
    error: str = ""  #: what a function raised, or why there is no status, in words
    output: str = ""  #: the end of what a program has written, both streams together; an answer


@dataclass(frozen=True)
class Sleep:
    """A write to ``/sys/power/state`` that has returned, and what tells whether the machine slept.

    The monotonic clock stands still while the machine sleeps: `began_ns` and `ended_ns` are close
    together however long it slept.  Counters are pairs, before and after; None where the kernel
    has none.
    """

    state: str  #: what was written
    began_ns: int  #: monotonic clock, before the write
    ended_ns: int  #: monotonic clock, after it
    slept_ns: int  #: by how much CLOCK_BOOTTIME has grown more than CLOCK_MONOTONIC
    successes: tuple[int, int] | None = None  #: sleeps that the kernel counts
    failures: tuple[int, int] | None = None  #: attempts that it counts as failed
    failed_device: str = ""  #: which device's driver refused last, if an attempt failed
    failed_errno: int = 0  #: with which error
    failed_step: str = ""  #: in which step: ``freeze``, ``suspend``, ``suspend_noirq``, ...
    woken_by: tuple[str, ...] = ()  #: wake-up sources that counted an event meanwhile
    wakeup_irq: int | None = None  #: the interrupt that ended the sleep
    wakeup_irq_name: str = ""  #: as ``/proc/interrupts`` names it

    @property
    def verified(self) -> bool:
        """Whether the machine really slept."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """What speaks against it, in words."""
        found = []
        if self.failures is not None and self.failures[1] > self.failures[0]:
            found.append(f"the kernel counts a failed attempt{self.refusal}")
        if self.successes is not None and self.successes[1] <= self.successes[0]:
            found.append("the kernel has not counted a sleep")
        if self.slept_ns < SHORTEST_SLEEP_NS:
            found.append(
                "the write may have returned without a sleep: the clock has gained only "
                f"{self.slept_ns / 1e9:.1f} s, which cannot be told from nothing"
            )
        return tuple(found)

    @property
    def refusal(self) -> str:
        """What the kernel says of the last failed attempt, to be put behind words; may be empty."""
        if not (self.failed_device or self.failed_step):
            return ""
        by = f" by {self.failed_device}" if self.failed_device else ""
        step = f" in step {self.failed_step}" if self.failed_step else ""
        code = errno.errorcode.get(abs(self.failed_errno), str(self.failed_errno))
        return f" (refused{by}{step}, {code})"
