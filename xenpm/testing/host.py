"""The host: what there is of guests, devices and programs, and connections to it."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable

from xenpm.connection import standing_on
from xenpm.ports import Ports
from xenpm.types import DomainInfo, DomainType

from .calls import Calls, Port
from .clock import SECOND
from .devices import FakeCard, FakePci
from .guests import FakeGuest
from .hypervisor import FakeHypervisor
from .jobs import FakeJob, FakeJobs, FakeProgram
from .models import FakeModels
from .power import FakePower
from .store import FakeStore, FakeXenstored, StoreConnection
from .watchers import FakeWatchers

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Handle

NEVER_NS = 1 << 61  #: later than anything that a test waits for
_LOOK_AGAIN = 0.001  # seconds
_ROUNDS = 10


class FakeXen(Calls):
    """The host: its domains, its xenstored, its clock; `ports` gives a connection to it.

    Attributes:
        guests: the domains other than domain 0, by domid.
        store: xenstored.
        toolstack: a connection of dom0's own to it.
        locks: who holds which domain's lock.
        cards: the PCI devices of the host, by address.
        kernels: the images that show whether their suspend may be cancelled, by path.
        sleep_states: those that the machine offers.
        sleep_ns: how long the machine sleeps; 0: it does not.
        held: the guests whose watchers (processes of xl) are held, by domid and handle, and since
            when.
        savers: who saves a guest or migrates it, in words, by domid.
        stopping_ns: how long it takes until such a process stands.
        programs: what can be started on the host, as `FakeProgram`, by path.
        started: the commands that were, with their environments.
        now_ns, call_ns: the virtual time, and how much of it a call through the ports takes.
        calls: how often each method of the ports was called.
    """

    def __init__(self, version: tuple[int, int] = (4, 17)) -> None:
        super().__init__()
        self.version = version
        self.guests: dict[int, FakeGuest] = {}
        self.store = FakeXenstored()
        self.toolstack = StoreConnection(self.store)
        self.toolstack.write("/local/domain/0/name", b"Domain-0")
        self.locks: dict[int, FakeLocks] = {}
        self.cards: dict[str, FakeCard] = {}
        self.kernels: dict[str, bool] = {}
        self.sleep_states = ("freeze", "mem")
        self.sleep_ns = 60 * SECOND
        self.held: dict[tuple[int, bytes], int] = {}
        self.savers: dict[int, str] = {}
        self.stopping_ns = 0
        self.programs: dict[str, FakeProgram] = {}
        self.hanging: list[object] = []  # what a function gives back when it is to hang as a job
        self.started: list[tuple[tuple[str, ...], dict[str, str]]] = []
        self.jobs: list[FakeJob] = []
        self.journal: list[dict[str, Any]] = []  # of a host suspend
        self.listening: dict[FakePoller, int] = {}  # in an event loop; until when at the latest
        self._next_domid = 1

    def ports(self) -> Ports:
        """A new connection to this host."""
        store = FakeStore(self)
        return Ports(
            FakeHypervisor(self),
            store,
            FakeLocks(self),
            FakePoller(self, store),
            FakePci(self),
            FakeKernels(self),
            FakePower(self),
            FakeJobs(self),
            FakeJournal(self),
            FakeModels(self),
            FakeWatchers(self),
        )

    def add_guest(self, name: str, *, domid: int | None = None, **script: Any) -> FakeGuest:
        """Build a domain.

        Args:
            name: what it is called; several may be called the same.
            domid: its number; the next free one when None.
            script: `uuid`, `type`, `vcpus`, `memory_kib`, `feature_suspend` (None: no such node),
                `hvm_params`, `runs_xenstore`, and how it suspends: `acknowledge_ns` after the
                request (None: never), by "writing", "deleting" the node or "nothing"
                (`acknowledge_by`), and `suspend_ns` after that (None: never) shuts down with the
                reason `shuts_down_for`: a suspension, or a crash, a power-off, a reboot.
        """
        if domid is None:
            domid = self._next_domid
        self._next_domid = max(self._next_domid, domid + 1)
        if domid in self.guests:
            raise ValueError(f"domain {domid} is there already")
        guest = self.guests[domid] = FakeGuest(self, domid, name, **script)
        guest.script = script
        return guest

    @property
    def xl_is_misled(self) -> bool:
        """Whether this release's xl takes a suspension for the end of a domain."""
        return self.version < (4, 20)

    # -- what the hypervisor answers

    def infos(self) -> list[DomainInfo]:
        """All domains, by rising domid."""
        zero = DomainInfo(
            domid=0,
            handle=bytes(16),
            type=DomainType.PV,
            dying=False,
            shutdown=False,
            shutdown_code=0,
            paused=False,
            blocked=False,
            running=True,
            runs_xenstore=False,
            vcpus_online=1,
            max_vcpu_id=0,
            memory_kib=1 << 20,
            max_memory_kib=1 << 20,
            cpu_time_ns=self.now_ns,
            cpupool=0,
        )
        return [zero, *(self.guests[domid].info for domid in sorted(self.guests))]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within: every `xenpm.Host` and `xenpm.Domain` of this process stands on this host.

        Those that are given ports, or were made before, stay where they are.
        """
        with standing_on(self.ports):
            yield

    def check(self) -> None:
        """Fail when something was done to a guest that a real one does not survive.

        Raises:
            AssertionError: what was done to which guest.
        """
        for guest in self.guests.values():
            assert not guest.corrupted, f"{guest.name}: {guest.corrupted}"

    # -- what is left behind

    @property
    def watches(self) -> list[tuple[str, str]]:
        """All watches of dom0's programs that stand in the store."""
        return [
            watch
            for connection in self.store.connections
            if connection.domid == 0 and not connection.is_kernel
            for watch in connection.watches
        ]

    @property
    def open_transactions(self) -> int:
        """How many transactions were begun and not ended."""
        return sum(len(connection.transactions) for connection in self.store.connections)


class FakeJournal(Port):
    """`xenpm.ports.Journal` in the host's memory; it outlives this connection."""

    def read(self) -> builtins.list[dict[str, Any]]:
        """What has been noted."""
        with self._call("journal_read"):
            return json.loads(json.dumps(self._xen.journal))  # type: ignore[no-any-return]

    def begin(self, entry: dict[str, Any]) -> None:
        """Make a new one."""
        with self._call("journal_begin"):
            assert not self._xen.journal
            self._xen.journal.append(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """Note something."""
        with self._call("journal_add"):
            assert self._xen.journal
            self._xen.journal.append(entry)

    def end(self) -> None:
        """Remove it."""
        with self._call("journal_end"):
            self._xen.journal.clear()


class FakeKernels(Port):
    """`xenpm.ports.Kernels` on the fake host."""

    def suspend_cancel(self, path: str) -> bool | None:
        """Whether an image says that its suspend may be cancelled."""
        with self._call("suspend_cancel"):
            return self._xen.kernels.get(path)


class FakeLocks(Port):
    """`xenpm.ports.Locks` on the fake host."""

    def acquire(self, domid: int) -> bool:
        """Take a domain's lock, unless another connection has it."""
        with self._call("acquire"):
            return self._xen.locks.setdefault(domid, self) is self

    def release(self, domid: int) -> None:
        """Give a domain's lock back."""
        with self._call("release"):
            if self._xen.locks.get(domid) is self:
                del self._xen.locks[domid]

    def close(self) -> None:
        """Give all locks back."""
        super().close()
        for domid in [domid for domid, owner in self._xen.locks.items() if owner is self]:
            del self._xen.locks[domid]


class FakePoller(Port):
    """`xenpm.ports.Poller` on the fake host: waiting makes virtual time pass."""

    def __init__(self, xen: FakeXen, store: FakeStore) -> None:
        super().__init__(xen)
        self._store = store
        self._woken = False
        self._failure: Exception | None = None  # of something that happened in a loop's step

    def now_ns(self) -> int:
        """The virtual time; raises what an action of the test has raised in an event loop."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return self._xen.now_ns

    def wait(self, fd: int, timeout_ns: int, others: Sequence[int] = ()) -> None:
        """Let things happen until there is an event in the store, a `wake`, or time is up.

        Of the jobs whose descriptors are the others, one that ends is such an event.
        """
        assert fd == self._store.fileno()
        with self._call("wait"):
            deadline = self._xen.now_ns + timeout_ns
            while not (self._woken or self._has_come(others)):
                if not self._xen.run_next(deadline):
                    assert timeout_ns < NEVER_NS, "nothing is going to happen that would end this"
                    self._xen.now_ns = max(self._xen.now_ns, deadline)
                    break
            self._woken = False

    def listen(
        self,
        loop: AbstractEventLoop,
        fds: Sequence[int],
        until_ns: int,
        ready: Callable[[], None],
    ) -> Callable[[], None]:
        """Let things happen, one by one, and call `ready` when `wait` would return.

        In between the loop goes round some times, for the coroutines that have just been woken.
        Time never passes the earliest moment for which somebody listens.
        """
        assert self._store.fileno() in fds
        handle: Handle
        rounds = 0

        def stop() -> None:
            handle.cancel()
            self._xen.listening.pop(self, None)

        def step() -> None:
            nonlocal handle, rounds
            rounds += 1
            with self._xen.mutex:
                over = self._has_come(fds) or self._xen.now_ns >= until_ns
                earliest = min(self._xen.listening.values())
                try:
                    happened = over or rounds % _ROUNDS or self._xen.run_next(earliest)
                except Exception as failure:  # for the caller, who would wait in vain
                    self._failure = failure
                    happened = over = True
                if happened:
                    handle = loop.call_soon(step)
                elif earliest < NEVER_NS:
                    self._xen.now_ns = max(self._xen.now_ns, earliest)
                    handle = loop.call_soon(step)
                else:  # until the test makes something happen
                    handle = loop.call_later(_LOOK_AGAIN, step)
            if over:
                stop()
                ready()

        with self._call("listen"):
            self._xen.listening[self] = until_ns
            handle = loop.call_soon(step)
        return stop

    def _has_come(self, others: Sequence[int]) -> bool:
        """Whether there is an event in the store, or a job has ended whose descriptor is there."""
        return bool(self._store.connection.events) or any(
            job.ending is not None for job in self._xen.jobs if set(job.descriptors) & set(others)
        )

    def wake(self) -> None:
        """End the present or next `wait`."""
        self._woken = True
