"""What the machine must offer: the interfaces between the library and Xen.

The compiled layer has them for a real host; a fake host has them for unit tests.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .types import DomainInfo, Ending, Permission, Sleep, VcpuInfo

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = [
    "DeviceModels",
    "Hypervisor",
    "Job",
    "Jobs",
    "Journal",
    "Kernels",
    "Locks",
    "PciBus",
    "Poller",
    "Ports",
    "Power",
    "Store",
    "Watchers",
]


class Hypervisor(Protocol):
    """What `xenpm._ext.xenctrl.Xenctrl` does; see there for each method."""

    def close(self) -> None: ...
    def version(self) -> tuple[int, int]: ...
    def domain_info(self, domid: int) -> DomainInfo | None: ...
    def domain_list(self) -> list[DomainInfo]: ...
    def vcpu_info(self, domid: int, vcpu: int) -> VcpuInfo: ...
    def pause(self, domid: int) -> None: ...
    def unpause(self, domid: int) -> None: ...
    def send_trigger(self, domid: int, trigger: int, vcpu: int) -> None: ...
    def resume(self, domid: int, cooperative: bool) -> None: ...
    def hvm_param_get(self, domid: int, param: int) -> int: ...
    def hvm_param_set(self, domid: int, param: int, value: int) -> None: ...
    def evtchn_alloc_unbound(self, domid: int, remote_domid: int) -> int: ...
    def evtchn_remote(self, domid: int, port: int) -> int | None: ...
    def suspend_evtchn_notify(self, domid: int, port: int) -> None: ...
    def store_ring_discard(self, domid: int, gfn: int) -> int: ...
    def evtchn_reset(self, domid: int) -> None: ...
    def soft_reset(self, domid: int) -> None: ...
    def gnttab_seed(
        self,
        domid: int,
        *,
        is_hvm: bool,
        console_gfn: int,
        xenstore_gfn: int,
        console_domid: int,
        xenstore_domid: int,
    ) -> None: ...


class Store(Protocol):
    """What `xenpm._ext.xenstore.Xenstore` does; see there for each method."""

    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def read(self, path: str, transaction: int = 0) -> bytes: ...
    def write(self, path: str, value: bytes, transaction: int = 0) -> None: ...
    def remove(self, path: str, transaction: int = 0) -> None: ...
    def list(self, path: str, transaction: int = 0) -> builtins.list[str]: ...
    def set_permissions(
        self, path: str, permissions: builtins.list[Permission], transaction: int = 0
    ) -> None: ...
    def transaction_start(self) -> int: ...
    def transaction_end(self, transaction: int, abort: bool = False) -> None: ...
    def watch(self, path: str, token: str) -> None: ...
    def unwatch(self, path: str, token: str) -> None: ...
    def check_watch(self) -> tuple[str, str] | None: ...
    def introduce_domain(self, domid: int, gfn: int, port: int) -> None: ...
    def resume_domain(self, domid: int) -> None: ...


class Locks(Protocol):
    """One lock per domain, shared by all processes that use xenpm on this host."""

    def acquire(self, domid: int) -> bool:
        """Take the domain's lock; False when somebody else has it.  Never waits."""

    def release(self, domid: int) -> None:
        """Give the domain's lock back."""

    def close(self) -> None:
        """Give all locks back."""


class PciBus(Protocol):
    """The PCI devices of the host."""

    def config(self, address: str) -> bytes | None:
        """The configuration space of a device, 64 bytes or more; None when it is not there."""


class Kernels(Protocol):
    """The kernel images that guests are booted from."""

    def suspend_cancel(self, path: str) -> bool | None:
        """Whether an image says that its suspend may be cancelled; None when it does not show."""


class Power(Protocol):
    """The sleep states of the machine."""

    def states(self) -> tuple[str, ...]:
        """The states that the kernel offers, as ``mem`` for ACPI S3."""

    def sleep(self, state: str) -> Sleep:
        """Put the machine to sleep, and say after its wake-up what tells that it has slept."""


class Journal(Protocol):
    """The record of a host suspend under way; it outlives the process, and not the machine."""

    def read(self) -> list[dict[str, Any]]:
        """What has been noted; empty when nothing is under way."""

    def begin(self, entry: dict[str, Any]) -> None:
        """Make a new one, whole or not at all."""

    def add(self, entry: dict[str, Any]) -> None:
        """Note something, before what it says is done."""

    def end(self) -> None:
        """Remove it: everything is put back."""


class Job(Protocol):
    """A program or a function under way outside of the engine; a `xenpm.actions.Child`."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """One of them is readable when `work` has something to do; none once it has ended."""

    @property
    def output(self) -> str:
        """The end of what a program has written so far."""

    def work(self) -> None:
        """Take what it has written, and see whether it has ended; never waits."""

    def signal(self, signum: int) -> None:
        """Send a signal to a program and all that it has started; nothing to do for a function."""

    def result(self) -> Ending:
        """How it has ended."""

    def close(self) -> None:
        """Let go of it; what still runs is killed, as far as it can be."""


class Jobs(Protocol):
    """Programs and functions beside the engine's one thread."""

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], leave: bool = False
    ) -> Job:
        """Start a program, without a terminal, in a session of its own.

        With `leave` it runs on when it is let go of.
        """

    def call(self, function: Callable[[], object]) -> Job:
        """Start a function in a thread of its own."""


class DeviceModels(Protocol):
    """The device models of HVM guests."""

    def ask(self, domid: int, command: str) -> Job:
        """Give a model a command, if any, and ask then how it is.

        The job's result has the state as `output`; or what went wrong as `error`, with an errno as
        `status`, which is EAGAIN when too many others wait for the model.
        """


class Watchers(Protocol):
    """The toolstack's processes: those that look after domains, and those that save them.

    The former take a suspension for the end of their domain.
    """

    def hold(self, domid: int, handle: bytes) -> bool:
        """Stop those of a domain; False while one of them still runs."""

    def let_go(self, domid: int, handle: bytes) -> None:
        """Let those of a domain go on that are held, by whatever process of xenpm."""

    def held(self) -> list[tuple[int, bytes]]:
        """The domains of which some are held: domid and handle."""

    def saver(self, domid: int, name: str) -> str:
        """The process that saves or migrates a domain, in words; empty when none is found."""


class Poller(Protocol):
    """The clock, and waiting."""

    def now_ns(self) -> int:
        """A clock that only goes forward, in nanoseconds."""

    def wait(self, fd: int, timeout_ns: int, others: Sequence[int] = ()) -> None:
        """Return once `fd` or one of the others is readable, on `wake`, or after `timeout_ns`."""

    def listen(
        self,
        loop: AbstractEventLoop,
        fds: Sequence[int],
        until_ns: int,
        ready: Callable[[], None],
    ) -> Callable[[], None]:
        """Have a loop call `ready` once, when one of `fds` is readable or at a time of `now_ns`.

        What is returned stops that; there is at most one listening at a time.
        """

    def wake(self) -> None:
        """End the present or next `wait` at once; may be called from a signal handler."""

    def close(self) -> None:
        """Give back what the poller holds."""


@dataclass
class Ports:
    """Everything that a `Host` stands on."""

    hypervisor: Hypervisor
    store: Store
    locks: Locks
    poller: Poller
    pci: PciBus
    kernels: Kernels
    power: Power
    jobs: Jobs
    journal: Journal
    models: DeviceModels
    watchers: Watchers

    def close(self) -> None:
        """Close all of them."""
        self.store.close()
        self.hypervisor.close()
        self.locks.close()
        self.poller.close()
