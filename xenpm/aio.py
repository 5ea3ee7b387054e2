"""The verbs of `xenpm.Domain` and `xenpm.Host` for asyncio.

Example::

    from xenpm import aio

    async with aio.Host() as host:
        web = await host.domain("web1")
        async with web.suspended():
            await snapshot_its_disks()

The same conversations, results and exceptions as in `xenpm`, from the same state machines; the
event loop waits for xenstore's descriptor.  There is no thread, and any number of calls may be
under way on one host at once.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import sleep
from .actions import Machine
from .connection import DEFAULT_BACKEND_TIMEOUT, BaseConnection, PathLike, Reference
from .domain import DEFAULT_LATE_TIMEOUT, BaseDomain
from .engine import DeferredSignals, Task, name_unsafe
from .errors import XenError
from .events import Observer
from .heavy import Progress
from .hooks import Hook
from .host import BaseHost, explaining, outcomes, terms_of
from .plan import Plan
from .policy import Rule, Settings
from .ports import Ports
from .sleep import Report
from .topology import Topology, read_topology
from .types import DomainEvent, DomainRef, Resumption, Saving, Suspension

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Domain", "Host"]

T = TypeVar("T")
Undo = Callable[[Any], Machine[Any]]

_log = logging.getLogger("xenpm.aio")


class _Call:
    """The machines that one coroutine has started and waits for."""

    def __init__(
        self, undo: Undo | None, ended: asyncio.Future[None], tasks: list[Task[Any]]
    ) -> None:
        self.tasks = tasks
        self.undo = undo
        self.undoing: list[tuple[Task[Any], Task[Any]]] = []  # what had succeeded, and its undoing
        self.cancelled = False
        self.failure: Exception | None = None  # of the engine itself
        self.ended = ended

    @property
    def done(self) -> bool:
        """Whether all that it has started has ended."""
        return all(task.done for task in self.tasks + [undoing for _, undoing in self.undoing])


class Connection(BaseConnection):
    """A connection on which an event loop waits; for that loop's thread."""

    def __init__(self, ports: Ports | None = None) -> None:
        # weakly, for the default connections are kept as long as their loops
        self._loop = weakref.ref(asyncio.get_running_loop())
        super().__init__(ports)
        self._calls: list[_Call] = []
        self._closing = False
        self._stop_listening: Callable[[], None] | None = None

    @classmethod
    def default(cls) -> Connection:
        """The running loop's own connection, opened when first needed."""
        loop = asyncio.get_running_loop()
        connection = _of_loop.get(loop)
        if connection is None or connection.stale:
            connection = _of_loop[loop] = cls()
        return connection

    async def close(self) -> None:
        """Cancel what is under way, wait until each guest is safe, and close the connection."""
        if self._closed or self.is_parents:
            return
        if self._closing:  # by somebody else, who is waiting
            await self._all_ended()
            return
        self._closing = True
        try:
            with self._step():
                for call in self._calls:
                    call.failure = XenError("cancelled, for the connection to Xen was closed")
                    self._cancel(call)
            await self._all_ended()
        finally:
            self._closed = True
            try:
                with self._step():
                    self._engine.drop_all()
            finally:
                self.ports.close()

    async def _all_ended(self) -> None:
        while self._calls:
            await asyncio.wait([call.ended for call in self._calls])

    async def run(
        self,
        machines: Iterable[Machine[T]],
        undo: Undo | None = None,
        *,
        to_the_end: bool = False,
        tasks: list[Task[T]] | None = None,
    ) -> list[Task[T]]:
        """Run machines to their ends, all at once; the finished tasks, in the same order.

        Cancelling waits until the machines are safe and what had succeeded is undone.  Cancelling
        once more ends this coroutine: the loop goes on with the rest.

        Args:
            machines: what to run.
            undo: what undoes something that has succeeded.
            to_the_end: do not cancel the machines when this is cancelled.
            tasks: becomes the tasks, for a caller who asks also when this is cancelled.
        """
        self.check()
        if self._closing and not to_the_end:  # what makes a guest safe may still begin
            raise ValueError("this connection to Xen is being closed")
        if asyncio.get_running_loop() is not self._loop():
            raise RuntimeError(
                "this connection to Xen belongs to another event loop: give each loop a Host of "
                "its own"
            )
        call = _Call(
            undo, asyncio.get_running_loop().create_future(), [] if tasks is None else tasks
        )
        try:
            with self._step():
                self.let_forgotten_go()
                self._calls.append(call)
                for machine in machines:
                    call.tasks.append(self._engine.start(machine))
            await asyncio.wait([call.ended])
        except BaseException:  # cancelled, or interrupted by what a signal handler raises
            if not to_the_end:
                with self._step():
                    self._cancel(call)
            await asyncio.wait([call.ended])
            raise
        if call.failure is not None:
            raise call.failure
        return call.tasks

    async def suspend(
        self, domains: Iterable[DomainRef], timeout: float | None, late_timeout: float
    ) -> list[Task[Suspension]]:
        """Suspend domains, all at once; resumed when cancelled.  See `protocol.suspend`."""
        return await self.run(self.suspensions(domains, timeout, late_timeout), self.inverse)

    def _cancel(self, call: _Call) -> None:
        """The caller does not want the results any more."""
        call.cancelled = True
        for task in call.tasks:
            self._engine.cancel(task)
        if call.ended.done():  # all had ended, but the caller has not heard of it
            call.ended = call.ended.get_loop().create_future()
            self._calls.append(call)

    @contextmanager
    def _step(self) -> Iterator[None]:
        """Within: the engine goes on.  At the end, hand out what has ended, and listen again.

        Signal handlers are held back, so that none raises in the middle of a machine.
        """
        with DeferredSignals(_nobody_waits):
            if self._stop_listening is not None:
                self._stop_listening()
                self._stop_listening = None
            try:
                yield
            finally:
                self._hand_out()
                self._listen()

    def _ready(self) -> None:
        """Something has come, or a deadline has passed."""
        self._stop_listening = None
        with self._step():
            try:
                self._engine.dispatch()
            except Exception as failure:
                self._fail(failure)

    def _hand_out(self) -> None:
        """End the calls whose machines have ended; undo what a cancelled one came to."""
        for call in [call for call in self._calls if call.done]:
            if call.cancelled and call.undo is not None and not call.undoing:
                call.undoing = [
                    (task, self._engine.start(call.undo(task.result())))
                    for task in call.tasks
                    if task.succeeded
                ]
        for call in [call for call in self._calls if call.done]:
            self._calls.remove(call)
            if call.cancelled:
                name_unsafe(call.tasks)
            for task, undoing in call.undoing:
                if undoing.error is not None:
                    _log.error("cancelled, %s not undone: %s", task.result().domain, undoing.error)
            call.ended.set_result(None)

    def _listen(self) -> None:
        loop = self._loop()
        if loop is None or self._engine.idle:
            return
        try:
            self._stop_listening = self.ports.poller.listen(
                loop,
                (self.ports.store.fileno(), *self._engine.descriptors),
                self._engine.next_deadline_ns,
                self._ready,
            )
        except Exception as failure:  # nobody would be woken any more
            self._drop(failure)
            self._hand_out()

    def _fail(self, failure: Exception) -> None:
        """The engine itself has failed: cancel everything; it may fail again: drop everything."""
        if any(call.failure is not None for call in self._calls):
            self._drop(failure)
            return
        for call in self._calls:
            call.failure = failure
            self._cancel(call)

    def _drop(self, failure: Exception) -> None:
        self._engine.drop_all()
        for call in self._calls:
            call.failure = call.failure or failure


_of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Connection] = (
    weakref.WeakKeyDictionary()
)


def _nobody_waits() -> None:
    """What wakes a blocking wait, of which there is none here."""


class Domain(BaseDomain[Connection]):
    """One Xen domain; `xenpm.Domain` for asyncio.

    The properties are the same; they ask Xen at once and never wait.  Every method is a coroutine.

    It stands on the running event loop's own connection to Xen, opened when first needed; a `Host`
    gives domains on its own.

    Args:
        reference: as for `xenpm.Domain`.

    Raises:
        RuntimeError: no event loop is running.
        NoSuchDomain: no domain is called so.
        NotXenHost, NotPermitted, LibraryMismatch: see `xenpm.Host`.
    """

    def __init__(self, reference: Reference) -> None:
        self._connection = Connection.default()
        self._ref = self._connection.find(reference)

    @overload
    async def suspend(
        self,
        *,
        lightweight: Literal[True] = True,
        timeout: float | None = None,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
    ) -> Suspension: ...

    @overload
    async def suspend(
        self,
        *,
        lightweight: Literal[False],
        path: PathLike,
        timeout: float | None = None,
        progress: Progress = None,
    ) -> Saving: ...

    async def suspend(
        self,
        *,
        lightweight: bool = True,
        path: PathLike | None = None,
        timeout: float | None = None,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
        progress: Progress = None,
    ) -> Suspension | Saving:
        """Have the guest suspend itself, its memory staying in place or going to a file.

        Takes, gives and raises what `xenpm.Domain.suspend` does.

        When the coroutine is cancelled, a request that the guest has not taken is taken back.  A
        guest that has taken it is watched over, for at most `late_timeout` seconds, and resumed as
        soon as it has suspended; so is one that had suspended already.  Only then `CancelledError`
        is raised.  Cancelled once more, the coroutine ends at once, and the event loop watches on.
        The heavy way is undone, too, unless the file is complete.
        """
        if lightweight is False:
            machine = self._saving(path, timeout, late_timeout, progress)
            (saved,) = await self._connection.run([machine])
            return saved.result()
        self._check_light(lightweight, path, progress)
        (task,) = await self._connection.suspend([self._ref], timeout, late_timeout)
        return task.result()

    async def resume(
        self,
        *,
        cooperative: bool | None = None,
        timeout: float = DEFAULT_BACKEND_TIMEOUT,
        force: bool = False,
    ) -> Resumption:
        """Let the suspended guest continue where it stopped.

        Takes, gives and raises what `xenpm.Domain.resume` does.

        When the coroutine is cancelled, a guest that runs already is not looked at any further; one
        that is being started over stays suspended if its devices were not closed yet, which
        resuming it again with ``cooperative=False`` makes up for.
        """
        machines = self._connection.resumptions([self._ref], cooperative, timeout, force)
        (task,) = await self._connection.run(machines)
        return task.result()

    @asynccontextmanager
    async def suspended(
        self,
        *,
        timeout: float | None = None,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
    ) -> AsyncIterator[Suspension]:
        """Suspend it lightly for the length of an ``async with`` block; it is always resumed.

        Takes and raises what `suspend` and `resume` do.  Cancelling does not end the resuming.
        """
        self._check_resumable()
        suspension = await self.suspend(timeout=timeout, late_timeout=late_timeout)
        try:
            yield suspension
        finally:
            machines = self._connection.resumptions([self._ref])
            (task,) = await self._connection.run(machines, to_the_end=True)
            task.result()

    async def pause(self) -> None:
        """Take it off the CPUs without its knowledge: see `xenpm.Domain.pause`."""
        self._pause()

    async def unpause(self) -> None:
        """Undo one `pause`: see `xenpm.Domain.unpause`."""
        self._unpause()

    async def trigger(self, what: str, *, vcpu: int = 0) -> None:
        """Press one of its buttons, or wake it from its own sleep: see `xenpm.Domain.trigger`."""
        machine = self._connection.triggering(self._ref, what, vcpu)
        (task,) = await self._connection.run([machine])
        task.result()


class _Events(AsyncIterator[DomainEvent]):
    """What becomes of the domains; an error or a cancellation does not end it."""

    def __init__(self, connection: Connection, observer: Observer) -> None:
        self._connection = connection
        self._observer = observer

    async def __anext__(self) -> DomainEvent:
        while not self._observer.events:
            machine = self._observer.wait(self._connection.ports.poller.now_ns)
            (task,) = await self._connection.run([machine])
            task.result()
        return self._observer.events.popleft()


class Host(BaseHost[Domain]):
    """The Xen host that this process runs on; `xenpm.Host` for asyncio.

    It belongs to the event loop that runs when it is made, and is closed by `close` or at the end
    of an ``async with`` block.  Every method but `events` is a coroutine.

    Args:
        ports: what to stand on instead of the real Xen, for tests.

    Raises:
        RuntimeError: no event loop is running.
        NotXenHost, NotPermitted, LibraryMismatch, XenError: see `xenpm.Host`.
    """

    _connection: Connection

    def __init__(self, *, ports: Ports | None = None) -> None:
        self._connection = Connection(ports)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; closing it again does nothing.

        What is under way is cancelled, and waited for until its guests are safe.  Cancelled itself,
        this closes at once, and the log names the guests that are no longer watched over.
        """
        await self._connection.close()

    async def domain(self, reference: Reference) -> Domain:
        """The domain that a domid, a name or a UUID means now: see `xenpm.Host.domain`."""
        return Domain._on(self._connection, reference)

    async def restore(
        self, path: PathLike, *, timeout: float | None = None, progress: Progress = None
    ) -> Domain:
        """Make a domain of the file of a saved one, and let it run: see `xenpm.restore`.

        When the coroutine is cancelled, nothing is left but the file, unless the domain runs.
        """
        machine = self._connection.restoring(path, timeout, progress)
        (task,) = await self._connection.run([machine])
        return await self.domain(task.result())

    async def domains(self) -> list[Domain]:
        """All domains but domain 0, by rising domid: see `xenpm.Host.domains`."""
        return [
            Domain._on(self._connection, ref)
            for ref in self._connection.domains()
            if ref.domid != 0
        ]

    async def topology(self) -> Topology:
        """Who is whose backend at this moment: see `xenpm.Host.topology`."""
        return self._connection.look(read_topology())

    async def plan(
        self, *, rules: Mapping[Domain, Rule] | None = None, settings: Settings | None = None
    ) -> Plan:
        """What `suspend` would do with each domain, and why: see `xenpm.Host.plan`."""
        return self._connection.look(self._planning(rules, settings))

    def events(self) -> AsyncIterator[DomainEvent]:
        """What becomes of the domains, from this call on, for ``async for``.

        See `xenpm.Host.events`; here all else goes on meanwhile.  What is cancelled while it waits
        for an event, as by ``asyncio.wait_for``, can wait for that event again.
        """
        observer = Observer()
        self._connection.look(observer.look())
        observer.events.clear()
        return _Events(self._connection, observer)

    async def suspend(
        self,
        state: str = "mem",
        *,
        rules: Mapping[Domain, Rule] | None = None,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report:
        """Put the whole machine to sleep, its guests first, and bring everything back.

        Takes, gives and raises what `xenpm.Host.suspend` does.  When the coroutine is cancelled,
        all that was done is undone, and only then `CancelledError` is raised; its ``__cause__`` is
        the `HostSuspendError` that tells what came of it.
        """
        if not state:
            raise ValueError("a sleep state must not be empty")
        return await self._suspend(state, rules, settings, hooks, progress)

    async def suspend_domains(
        self,
        *,
        rules: Mapping[Domain, Rule] | None = None,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report:
        """Suspend the guests, for somebody else who puts the machine to sleep.

        Takes, gives and raises what `xenpm.Host.suspend_domains` does; cancelled as `suspend`.
        """
        return await self._suspend("", rules, settings, hooks, progress)

    async def resume_domains(
        self,
        *,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report | None:
        """Bring back what is down: see `xenpm.Host.resume_domains`.

        Cancelling does not end it: the guests come back first.
        """
        return await self._resume(settings, hooks, progress, only_interrupted=False)

    async def recover(
        self,
        *,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report | None:
        """Bring back what a host suspend that was killed has left down: see `xenpm.Host.recover`.

        Cancelling does not end it: the guests come back first.
        """
        return await self._resume(settings, hooks, progress, only_interrupted=True)

    async def _suspend(
        self,
        state: str,
        rules: Mapping[Domain, Rule] | None,
        settings: Settings | None,
        hooks: Sequence[Hook],
        progress: Callable[[str], None] | None,
    ) -> Report:
        terms = terms_of(settings, hooks, progress)
        now = self._connection.ports.poller.now_ns

        def undo(_: Report) -> Machine[Report | None]:
            return sleep.resume_domains(terms, now, only_interrupted=False)

        machine = self._suspending(state, rules, terms)
        tasks: list[Task[Report]] = []
        with explaining(tasks, hands_over=not state):
            await self._connection.run([machine], None if state else undo, tasks=tasks)
        return tasks[0].result()

    async def _resume(
        self,
        settings: Settings | None,
        hooks: Sequence[Hook],
        progress: Callable[[str], None] | None,
        *,
        only_interrupted: bool,
    ) -> Report | None:
        now = self._connection.ports.poller.now_ns
        terms = terms_of(settings, hooks, progress)
        machine = sleep.resume_domains(terms, now, only_interrupted=only_interrupted)
        tasks: list[Task[Report | None]] = []
        with explaining(tasks):
            await self._connection.run([machine], tasks=tasks)
        return tasks[0].result()

    async def suspend_each(
        self,
        domains: Iterable[Domain],
        *,
        timeout: float | None = None,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
    ) -> dict[Domain, Suspension | XenError]:
        """Suspend several guests lightly, all at once, each for itself.

        Takes and gives what `xenpm.Host.suspend_each` does.  Cancelling undoes all, as it does for
        `Domain.suspend`.
        """
        chosen = self._chosen(domains)
        refs = [domain.ref for domain in chosen]
        return outcomes(chosen, await self._connection.suspend(refs, timeout, late_timeout))

    async def resume_each(
        self,
        domains: Iterable[Domain],
        *,
        cooperative: bool | None = None,
        timeout: float = DEFAULT_BACKEND_TIMEOUT,
    ) -> dict[Domain, Resumption | XenError]:
        """Resume several suspended guests, all at once: see `xenpm.Host.resume_each`."""
        chosen = self._chosen(domains)
        refs = [domain.ref for domain in chosen]
        machines = self._connection.resumptions(refs, cooperative, timeout)
        return outcomes(chosen, await self._connection.run(machines))
