"""What a conversation may ask for: the vocabulary of machines without I/O.

A machine is a generator: it yields an `Action`, is sent the action's result (or thrown its error),
and returns what it came to.  `xenpm.engine` performs the actions, for one machine or for many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, Union

from .ports import Job
from .types import DomainInfo, DomainRef

T = TypeVar("T")


class Lock(NamedTuple):
    """Take the domain's lock until the machine ends; results in whether it was free."""

    domid: int


class GetInfo(NamedTuple):
    """Results in the domain's `DomainInfo`, or None when there is no such domain."""

    domid: int


class ListDomains(NamedTuple):
    """Results in the `DomainInfo` of every domain, by rising domid."""


class GetParam(NamedTuple):
    """Results in the value of a HVM parameter."""

    domid: int
    param: int


class Read(NamedTuple):
    """Results in the value of a xenstore node, or None when there is no such node."""

    path: str


class List(NamedTuple):
    """Results in the names of a xenstore node's children; empty also when there is no such node."""

    path: str


class Write(NamedTuple):
    """Set the value of a xenstore node; it is made when it is not there.

    With `home`, in a transaction: nothing is written when that node is gone.
    """

    path: str
    value: bytes
    home: str = ""


class Remove(NamedTuple):
    """Remove a xenstore node and all below it; nothing to do when there is no such node."""

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

    domain: DomainRef | None  # None: only for the nodes that are watched
    until_ns: int


class Child(Protocol):
    """Another machine or a `Job` under way, as the one that has started it sees it."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> Any:
        """What it returned; raises what it raised."""


class Start(NamedTuple):
    """Start another machine beside this one; results in its `Child`."""

    machine: Machine[Any]


class Join(NamedTuple):
    """Wait for the first of some machines or jobs to end; results in whether one has in time.

    A machine can be thrown `Cancelled` here, as at a `Wait`.
    """

    children: tuple[Child, ...]
    until_ns: int
    domain: DomainRef | None = None  # that is not safe meanwhile


class Cancel(NamedTuple):
    """Tell another machine that its result is not wanted any more; it goes on until it is safe."""

    child: Child


class Run(NamedTuple):
    """Start a program; results in its `Job`, which is let go of when this machine ends.

    It is killed then, unless it is one to `leave`, which comes to a good end by itself.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    leave: bool = False


class Call(NamedTuple):
    """Start a function in a thread; results in its `Job`, let go of when this machine ends."""

    function: Callable[[], object]


class Signal(NamedTuple):
    """Send a signal to a job that was `Run`, and to all that it has started."""

    job: Job
    signum: int


class LetGo(NamedTuple):
    """Let go of a job before this machine ends."""

    job: Job


class AskModel(NamedTuple):
    """Give a domain's device model a command, if any, and ask how it is; results in a `Job`."""

    domid: int
    command: str


class HoldWatchers(NamedTuple):
    """Stop the toolstack's processes that look after a domain; results in whether they stand."""

    domid: int
    handle: bytes


class LetWatchersGo(NamedTuple):
    """Let those of a domain go on, if they are held."""

    domid: int
    handle: bytes


class FindSaver(NamedTuple):
    """Results in the process that saves or migrates a domain, in words; empty: none is found."""

    domid: int
    name: str


class ListHeld(NamedTuple):
    """Results in the domid and handle of each domain whose watchers are held."""


class SendTrigger(NamedTuple):
    """Press one of a domain's buttons: ``XEN_DOMCTL_SENDTRIGGER_*``."""

    domid: int
    trigger: int
    vcpu: int


class JournalRead(NamedTuple):
    """Results in what the journal of a host suspend says; empty when none is under way."""


class JournalBegin(NamedTuple):
    """Begin the journal of a host suspend."""

    entry: dict[str, Any]


class JournalAdd(NamedTuple):
    """Note something in the journal, before what it says is done."""

    entry: dict[str, Any]


class JournalEnd(NamedTuple):
    """Remove the journal: everything is put back."""


class GetVcpu(NamedTuple):
    """Results in the `VcpuInfo` of one vCPU of a domain."""

    domid: int
    vcpu: int


class GetSleepStates(NamedTuple):
    """Results in the sleep states that the kernel offers."""


class EnterSleep(NamedTuple):
    """Put the machine to sleep; results, after its wake-up, in a `Sleep`.  Nothing else goes on."""

    state: str


class PciConfig(NamedTuple):
    """Results in the configuration space of a PCI device of the host, or None: it is not there."""

    address: str


class SuspendCancel(NamedTuple):
    """Results in whether a kernel image says that its suspend may be cancelled; None: unknown."""

    path: str


class NotifySuspend(NamedTuple):
    """Ask a guest to suspend over the event channel that it offers for that."""

    domid: int
    port: int


class ResumeDomain(NamedTuple):
    """Let a suspended domain run on."""

    domid: int
    cooperative: bool


class ResumeStore(NamedTuple):
    """Tell xenstored that the domain runs again."""

    domid: int


class Pause(NamedTuple):
    """Pause a domain once more."""

    domid: int


class Unpause(NamedTuple):
    """Undo one `Pause`."""

    domid: int


class SoftReset(NamedTuple):
    """Clear a suspended, paused PVH domain's event channels and vCPU areas, and its suspension."""

    domid: int


class ResetChannels(NamedTuple):
    """Close all event channels of a paused domain."""

    domid: int


class AllocateChannel(NamedTuple):
    """Results in a new port of the domain that `remote_domid` may bind."""

    domid: int
    remote_domid: int


class GetRemote(NamedTuple):
    """Results in the domid at the other end of a port, or None when it is bound to nobody."""

    domid: int
    port: int


class SetParam(NamedTuple):
    """Set a HVM parameter."""

    domid: int
    param: int
    value: int


class SeedGrants(NamedTuple):
    """Grant the console's and the store's page to those who serve them."""

    domid: int
    is_hvm: bool
    console_gfn: int
    xenstore_gfn: int
    console_domid: int
    xenstore_domid: int


class DiscardEvents(NamedTuple):
    """Take what xenstored has written to a domain that does not run; results in how many bytes."""

    domid: int
    gfn: int


class Introduce(NamedTuple):
    """Have xenstored connect to the domain anew."""

    domid: int
    gfn: int
    port: int


Action = Union[
    Lock, GetInfo, ListDomains, GetParam, Read, List, Write, Remove, Swap, Watch, Wait,
    Start, Join, Cancel, Run, Call, Signal, LetGo, AskModel, SendTrigger,
    HoldWatchers, LetWatchersGo, ListHeld, FindSaver,
    GetVcpu, GetSleepStates, EnterSleep,
    JournalRead, JournalBegin, JournalAdd, JournalEnd,
    PciConfig, SuspendCancel, NotifySuspend,
    ResumeDomain, ResumeStore, Pause, Unpause, SoftReset, ResetChannels, AllocateChannel, GetRemote,
    SetParam, SeedGrants, Introduce, DiscardEvents,
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


def identify(domain: DomainRef, info: DomainInfo | None) -> DomainInfo | None:
    """`info` if it is of `domain`; None when that is gone, even if its domid has been reused."""
    return info if info is not None and info.handle == domain.handle else None


def look(domain: DomainRef) -> Machine[DomainInfo | None]:
    """What the hypervisor says of the domain now; None when it is gone."""
    return identify(domain, (yield GetInfo(domain.domid)))
