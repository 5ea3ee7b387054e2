"""The values that xenpm's functions take and return."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from uuid import UUID

__all__ = [
    "DomainInfo",
    "DomainRef",
    "DomainState",
    "DomainType",
    "Permission",
    "Phase",
    "Resumption",
    "ShutdownReason",
    "Suspension",
]


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


@dataclass(frozen=True)
class Result:
    """What a verb of a domain came to."""

    domain: DomainRef

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        values = asdict(self)
        values["domain"] = {
            "domid": self.domain.domid,
            "name": self.domain.name,
            "uuid": str(self.domain.uuid),
        }
        return values


@dataclass(frozen=True)
class Suspension(Result):
    """A domain that has been suspended, and how long each phase took."""

    request_ns: int  #: from the start of the conversation until the request stood in xenstore
    acknowledge_ns: int  #: from the request until the guest was seen to have taken it
    suspend_ns: int  #: from there until it was seen to have left the scheduler

    @property
    def total_ns(self) -> int:
        """From the start of the conversation until the domain was suspended."""
        return self.request_ns + self.acknowledge_ns + self.suspend_ns

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        return {**super().to_dict(), "total_ns": self.total_ns}


@dataclass(frozen=True)
class Resumption(Result):
    """A domain that has been resumed in place."""

    cooperative: bool  #: the guest kept its event channels, grants and connections
    total_ns: int  #: from the call until hypervisor and xenstore had both taken it
