"""Drives any number of machines of `xenpm.actions` over one xenstore connection, in one thread.

`Engine` performs actions and hands out events; it never waits.  `run` is the loop around it for
callers that may block.
"""

from __future__ import annotations

import errno
import logging
import signal
import threading
import traceback

# that of `signal` makes an enum of each answer, which takes longer than all else before a request
from _signal import getsignal as _getsignal  # type: ignore[import-not-found]
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, Callable, Generic, TypeVar, cast

from .actions import (
    Action,
    AllocateChannel,
    AskModel,
    Call,
    Cancel,
    Cancelled,
    DiscardEvents,
    EnterSleep,
    FindSaver,
    GetInfo,
    GetParam,
    GetRemote,
    GetSleepStates,
    GetVcpu,
    HoldWatchers,
    Introduce,
    Join,
    JournalAdd,
    JournalBegin,
    JournalEnd,
    JournalRead,
    LetGo,
    LetWatchersGo,
    List,
    ListDomains,
    ListHeld,
    Lock,
    Machine,
    NotifySuspend,
    Pause,
    PciConfig,
    Read,
    Remove,
    ResetChannels,
    ResumeDomain,
    ResumeStore,
    Run,
    SeedGrants,
    SendTrigger,
    SetParam,
    Signal,
    SoftReset,
    Start,
    SuspendCancel,
    Swap,
    Unpause,
    Wait,
    Wake,
    Watch,
    Write,
    identify,
)
from .errors import (
    CALL_ERRORS,
    CallError,
    HostSuspendError,
    NoSuchDomain,
    NoSuchNode,
    SuspendCancelled,
    SuspendNotAcknowledged,
    TransactionConflict,
    XenError,
)
from .ports import Job, Ports
from .types import DomainInfo, Permission, Phase, Result

T = TypeVar("T")
R = TypeVar("R", bound=Result)
_log = logging.getLogger("xenpm.engine")

_DOMAINS = "@releaseDomain"  # fires when any domain shuts down or is destroyed
_CONFLICTS = 100  # that many lost races for one node mean that something is wrong


class DeferredSignals:
    """Holds Python's signal handlers back, so that none raises in the middle of a conversation.

    `deliver` runs the handlers of the signals that have come, at a moment of the caller's choosing.
    What the first of them to raise raised is kept in `interruption`, and raised at the end.

    Python runs handlers in the main thread of the main interpreter only: elsewhere there is nothing
    to hold back.
    """

    _SIGNALS = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: list[tuple[int, FrameType | None]] = []
        self.interruption: BaseException | None = None

    def deliver(self) -> bool:
        """Run the handlers of what has arrived; whether one raised this time."""
        raised = False
        while self._arrived:
            signum, frame = self._arrived.pop(0)
            try:
                self._handlers[signum](signum, frame)
            except BaseException as error:
                raised = True
                self.interruption = self.interruption or error
        return raised

    def _arrive(self, signum: int, frame: FrameType | None) -> None:
        self._arrived.append((signum, frame))
        self._wake()

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        try:
            for signum in [each for each in self._SIGNALS if callable(_getsignal(each))]:
                self._handlers[signum] = _getsignal(signum)
                signal.signal(signum, self._arrive)
        except BaseException as error:
            if _is_refusal(error):
                self._handlers.clear()
                return self
            self.interruption = error  # by a handler that is not held back yet
            self.__exit__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._put_back()
        self.deliver()
        if self.interruption is not None:
            raise self.interruption

    def _put_back(self) -> None:
        while True:
            try:
                for signum, handler in self._handlers.items():
                    signal.signal(signum, handler)
            except BaseException as error:  # by a handler that is back already
                self.interruption = self.interruption or error
            else:
                return


def _is_refusal(error: BaseException) -> bool:
    """Whether it is `signal.signal`'s own, as in a sub-interpreter, and not one of a handler's."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and frame.f_code is signal.signal.__code__


class Task(Generic[T]):
    """One machine under way in an engine."""

    def __init__(self, machine: Machine[T], token: str) -> None:
        self.machine = machine
        self.token = token
        self.wait: Wait | None = None  # set while the machine waits
        self.join: Join | None = None  # set while it waits for others
        self.done = False
        self.error: Exception | None = None
        self.watches: list[str] = []
        self.locks: list[int] = []
        self.jobs: list[Job] = []
        self._result: T | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the machine has ended well."""
        return self.done and self.error is None

    def result(self) -> T:
        """What the machine returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return cast(T, self._result)

    def finish(self, result: T | None, error: Exception | None) -> None:
        """The machine has ended."""
        self.wait = self.join = None
        self.done = True
        self._result, self.error = result, error


class Engine:
    """Performs the machines' actions and hands xenstore's events out to those who wait."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self._tasks: dict[str, Task[Any]] = {}  # by token; those under way
        self._numbers = 0
        self._watching = False
        self._joined: list[Task[Any]] = []  # those for whom another has ended
        # what needs no task: anybody may ask for it
        self._perform: dict[type, Callable[[Any], Any]] = {
            GetInfo: lambda action: ports.hypervisor.domain_info(action.domid),
            ListDomains: lambda _: ports.hypervisor.domain_list(),
            GetParam: lambda action: ports.hypervisor.hvm_param_get(*action),
            Read: lambda action: self._read(action.path),
            List: self._list,
            Write: self._write,
            Remove: self._remove,
            Swap: self._swap,
            PciConfig: lambda action: ports.pci.config(action.address),
            GetVcpu: lambda action: ports.hypervisor.vcpu_info(*action),
            JournalRead: lambda _: ports.journal.read(),
            JournalBegin: lambda action: ports.journal.begin(action.entry),
            JournalAdd: lambda action: ports.journal.add(action.entry),
            JournalEnd: lambda _: ports.journal.end(),
            GetSleepStates: lambda _: ports.power.states(),
            EnterSleep: lambda action: ports.power.sleep(action.state),
            Signal: lambda action: action.job.signal(action.signum),
            LetGo: lambda action: action.job.close(),
            HoldWatchers: lambda action: ports.watchers.hold(*action),
            LetWatchersGo: lambda action: ports.watchers.let_go(*action),
            FindSaver: lambda action: ports.watchers.saver(*action),
            ListHeld: lambda _: ports.watchers.held(),
            SendTrigger: lambda action: ports.hypervisor.send_trigger(*action),
            SuspendCancel: lambda action: ports.kernels.suspend_cancel(action.path),
            NotifySuspend: lambda action: ports.hypervisor.suspend_evtchn_notify(*action),
            ResumeDomain: lambda action: ports.hypervisor.resume(*action),
            ResumeStore: lambda action: ports.store.resume_domain(action.domid),
            Pause: lambda action: ports.hypervisor.pause(action.domid),
            Unpause: lambda action: ports.hypervisor.unpause(action.domid),
            SoftReset: lambda action: ports.hypervisor.soft_reset(action.domid),
            ResetChannels: lambda action: ports.hypervisor.evtchn_reset(action.domid),
            AllocateChannel: lambda action: ports.hypervisor.evtchn_alloc_unbound(*action),
            GetRemote: lambda action: ports.hypervisor.evtchn_remote(*action),
            SetParam: lambda action: ports.hypervisor.hvm_param_set(*action),
            SeedGrants: lambda action: ports.hypervisor.gnttab_seed(**action._asdict()),
            DiscardEvents: lambda action: ports.hypervisor.store_ring_discard(*action),
            Introduce: lambda action: ports.store.introduce_domain(*action),
        }
        self._perform_for: dict[type, Callable[[Task[Any], Any], Any]] = {
            Lock: self._lock,
            Watch: self._watch,
            Start: lambda _, action: self._begin(action.machine),
            Cancel: lambda _, action: self._cancel(action.child),
            Run: lambda task, action: self._own(task, ports.jobs.run(*action)),
            Call: lambda task, action: self._own(task, ports.jobs.call(action.function)),
            AskModel: lambda task, action: self._own(task, ports.models.ask(*action)),
        }

    @property
    def idle(self) -> bool:
        """Whether no machine is under way."""
        return not self._tasks

    @property
    def next_deadline_ns(self) -> int:
        """When the first of the waiting machines is to be woken at the latest."""
        waits = [task.wait or task.join for task in self._tasks.values()]
        return min(wait.until_ns for wait in waits if wait is not None)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What is to be waited for besides xenstore: the jobs that are under way."""
        return tuple(fd for job in self._jobs() for fd in job.descriptors)

    def look(self, machine: Machine[T]) -> T:
        """Run a machine that only looks: it takes no lock, watches nothing and never waits."""
        value: object = None
        error: Exception | None = None
        while True:
            try:
                action = machine.send(value) if error is None else machine.throw(error)
            except StopIteration as stop:
                return cast(T, stop.value)
            value = error = None
            try:
                value = self._perform[type(action)](action)
            except CALL_ERRORS as failure:
                error = failure

    def start(self, machine: Machine[T]) -> Task[T]:
        """Run a machine up to its first wait."""
        task = self._begin(machine)
        self._advance_joined()
        return task

    def cancel(self, task: Task[Any]) -> None:
        """Tell a machine that its result is not wanted any more; it goes on until it is safe."""
        self._cancel(task)
        self._advance_joined()

    def _begin(self, machine: Machine[T]) -> Task[T]:
        self._numbers += 1
        task = Task(machine, f"xenpm/{self._numbers}")
        self._tasks[task.token] = task
        self._advance(task)
        return task

    def _cancel(self, task: Task[Any]) -> None:
        if task.wait is not None or task.join is not None:
            self._advance(task, error=Cancelled())

    def _advance_joined(self) -> None:
        """Go on with those for whom another has ended; here, so that none advances within one."""
        while self._joined:
            task = self._joined.pop(0)
            if task.join is not None:
                self._advance(task, True)

    def drop_all(self) -> None:
        """Drop all machines where they are, and name their guests."""
        for task in list(self._tasks.values()):
            waits = task.wait or task.join
            if waits is not None and waits.domain is not None:
                _log.warning(
                    "%s: no longer watched over; it may yet suspend: should it, resume it",
                    waits.domain,
                )
            task.machine.close()
            self._finish(task, None, Cancelled())
        self._joined.clear()

    def dispatch(self) -> None:
        """Hand out all events that have come and all deadlines that have passed; never waits."""
        self._dispatch()
        self._advance_joined()

    def _dispatch(self) -> None:
        for job in self._jobs():
            job.work()
        stores: set[str] = set()
        domains: dict[int, DomainInfo] | None = None
        failure: CallError | None = None
        try:
            while (event := self.ports.store.check_watch()) is not None:
                stores.add(event[1])
            if _DOMAINS in stores:
                # One hypercall serves all machines, however many wait.
                infos = self.ports.hypervisor.domain_list()
                domains = {info.domid: info for info in infos}
        except CALL_ERRORS as error:
            failure = error
        now = self.ports.poller.now_ns()
        for task in list(self._tasks.values()):
            if task.join is not None:
                if any(child.done for child in task.join.children):
                    self._advance(task, True)
                elif now >= task.join.until_ns:
                    self._advance(task, False)
            if task.wait is None:
                continue
            if failure is not None:  # who waits for others hears of it from them, if at all
                self._advance(task, error=failure)
                continue
            wake = Wake(store=task.token in stores, timed_out=now >= task.wait.until_ns)
            domain = task.wait.domain
            if domains is not None and domain is not None:
                info = identify(domain, domains.get(domain.domid))
                if info is None or info.shutdown or info.dying:
                    wake = wake._replace(domain=True, info=info)
            if wake.store or wake.domain or wake.timed_out:
                self._advance(task, wake)

    def _advance(
        self, task: Task[Any], value: object = None, error: Exception | None = None
    ) -> None:
        """Send a machine what it waits for, and perform what it asks until it waits again."""
        task.wait = task.join = None
        while True:
            action: Action
            try:
                action = task.machine.send(value) if error is None else task.machine.throw(error)
            except StopIteration as stop:
                self._finish(task, stop.value, None)
                return
            except Exception as failure:
                self._finish(task, None, failure)
                return
            value = error = None
            try:
                if isinstance(action, Wait):
                    self._watch_domains()
                    task.wait = action
                    return
                if isinstance(action, Join):
                    if not any(child.done for child in action.children):
                        task.join = action
                        return
                    value = True
                elif type(action) in self._perform_for:
                    value = self._perform_for[type(action)](task, action)
                else:
                    value = self._perform[type(action)](action)
            except Exception as failure:
                error = failure

    def _finish(self, task: Task[Any], result: object, error: Exception | None) -> None:
        task.finish(result, error)
        del self._tasks[task.token]
        self._joined += [
            other
            for other in self._tasks.values()
            if other.join is not None and task in other.join.children
        ]
        try:
            for path in task.watches:
                self.ports.store.unwatch(path, task.token)
            if self._watching and not self._tasks:
                self.ports.store.unwatch(_DOMAINS, _DOMAINS)
                self._watching = False
        except CALL_ERRORS as failure:
            # The outcome stands; a connection that cannot unwatch fails its next request anyway.
            _log.warning("could not remove a watch: %s", failure)
        for job in task.jobs:
            job.close()
        for domid in task.locks:
            try:
                self.ports.locks.release(domid)
            except XenError as failure:  # the outcome stands
                _log.warning("could not give a lock back: %s", failure)

    def _watch_domains(self) -> None:
        if not self._watching:
            self.ports.store.watch(_DOMAINS, _DOMAINS)
            self._watching = True

    def _lock(self, task: Task[Any], action: Lock) -> bool:
        # The file's locks exclude other engines only, not this one's own machines.
        if any(action.domid in other.locks for other in self._tasks.values()):
            return False
        if not self.ports.locks.acquire(action.domid):
            return False
        task.locks.append(action.domid)
        return True

    def _jobs(self) -> list[Job]:
        return [job for task in self._tasks.values() for job in task.jobs if not job.done]

    def _own(self, task: Task[Any], job: Job) -> Job:
        task.jobs.append(job)
        return job

    def _watch(self, task: Task[Any], action: Watch) -> None:
        self.ports.store.watch(action.path, task.token)
        task.watches.append(action.path)

    def _read(self, path: str, transaction: int = 0) -> bytes | None:
        try:
            return self.ports.store.read(path, transaction)
        except NoSuchNode:
            return None

    def _list(self, action: List) -> list[str]:
        try:
            return self.ports.store.list(action.path)
        except NoSuchNode:
            return []

    def _remove(self, action: Remove) -> None:
        with suppress(NoSuchNode):
            self.ports.store.remove(action.path)

    def _write(self, action: Write) -> None:
        if not action.home:
            self.ports.store.write(action.path, action.value)
            return

        def write(transaction: int) -> tuple[bool, None]:
            there = self._read(action.home, transaction) is not None
            if there:
                self.ports.store.write(action.path, action.value, transaction)
            return there, None

        self._transact(action.path, write)

    def _swap(self, action: Swap) -> bytes | None:
        store = self.ports.store

        def swap(transaction: int) -> tuple[bool, bytes | None]:
            found = self._read(action.path, transaction)
            if found not in action.expected:
                return False, found
            # A domain that is being destroyed must not get its nodes back.
            if found is None and self._read(action.home, transaction) is None:
                return False, found
            store.write(action.path, action.value, transaction)
            if found is None:
                owner = Permission(action.owner, read=False, write=False)
                store.set_permissions(action.path, [owner], transaction)
            return True, found

        return self._transact(action.path, swap)

    def _transact(self, path: str, body: Callable[[int], tuple[bool, T]]) -> T:
        """Run `body` in a transaction, again after conflicts; it says whether to commit."""
        store = self.ports.store
        for _ in range(_CONFLICTS):
            transaction = store.transaction_start()
            try:
                commit, result = body(transaction)
            except BaseException:
                with suppress(*CALL_ERRORS):  # then it ends with the connection
                    store.transaction_end(transaction, abort=True)
                raise
            try:
                store.transaction_end(transaction, abort=not commit)
            except TransactionConflict:
                continue
            return result
        raise TransactionConflict(
            "xs_transaction_end", errno.EAGAIN, f"{path} changed {_CONFLICTS} times under us"
        )


def run(
    engine: Engine,
    machines: Iterable[Machine[T]],
    tasks: list[Task[T]],
    undo: Callable[[], None] | None,
    signals: DeferredSignals,
) -> None:
    """Run machines to their ends, all at once, blocking.

    A signal whose handler raises (Ctrl-C) cancels them all; once they are safe, what had succeeded
    is undone.  A second one drops them where they are.  The caller's `signals` raise the handler's
    exception in the end.

    Args:
        engine: an idle engine.
        machines: what to run.
        tasks: becomes one finished task per machine, in the same order.  It is the caller's list:
            so the caller knows what has succeeded even if it is interrupted right afterwards.
        undo: undoes what has succeeded.
        signals: what holds the signal handlers back.
    """
    try:
        for machine in machines:
            if signals.deliver():
                break
            tasks.append(engine.start(machine))
        _drive(engine, tasks, signals)
    except BaseException:  # the loop itself has failed, and may do so again
        try:
            _drive(engine, tasks, signals, cancel=True)
        finally:
            engine.drop_all()
            name_unsafe(tasks)
        raise
    if signals.interruption is not None:
        name_unsafe(tasks)
        if undo is not None:
            undo()


def undo(
    engine: Engine,
    tasks: list[Task[R]],
    inverse: Callable[[R], Machine[Any]],
    signals: DeferredSignals,
) -> None:
    """Undo what has succeeded and will reach nobody; name what could not be undone."""
    succeeded = [task for task in tasks if task.succeeded]
    undoing = [engine.start(inverse(task.result())) for task in succeeded]
    _drive(engine, undoing, signals)
    for task, undone in zip(succeeded, undoing):
        if undone.error is not None:
            _log.error("interrupted, %s not undone: %s", task.result().domain, undone.error)
        task.finish(None, Cancelled())


def name_unsafe(tasks: list[Task[T]]) -> None:
    """Log what cancelled machines came to, where a guest may not be safe."""
    for task in tasks:
        if not _is_safe(task.error):
            _log.error("interrupted: %s", task.error)


def _is_safe(error: Exception | None) -> bool:
    """Whether a cancelled task's guest is surely running, so that silence about it is right."""
    if isinstance(error, SuspendCancelled):
        return error.phase is not Phase.ACKNOWLEDGED
    if isinstance(error, HostSuspendError):
        return error.rolled_back
    return error is None or isinstance(error, (Cancelled, NoSuchDomain, SuspendNotAcknowledged))


def _drive(
    engine: Engine,
    tasks: Iterable[Task[Any]],
    signals: DeferredSignals,
    *,
    cancel: bool = False,
) -> None:
    """Wait and dispatch until all machines have ended; with `cancel` cancel them first."""
    cancelled = False
    while True:
        again = signals.deliver()
        if engine.idle:
            return
        if cancelled and again:
            engine.drop_all()
            return
        if not cancelled and (cancel or signals.interruption is not None):
            cancelled = True
            for task in tasks:
                engine.cancel(task)
            continue
        timeout_ns = engine.next_deadline_ns - engine.ports.poller.now_ns()
        engine.ports.poller.wait(
            engine.ports.store.fileno(), max(0, timeout_ns), engine.descriptors
        )
        engine.dispatch()
