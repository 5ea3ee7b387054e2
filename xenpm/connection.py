"""One process's connection to Xen: ports, engine, and finding domains."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, TypeVar, Union
from uuid import UUID

from . import heavy, protocol, reinit, savefile
from .actions import Machine
from .engine import DeferredSignals, Engine, Task, run, undo
from .errors import NoSuchDomain, NoSuchNode
from .heavy import Progress
from .ports import Ports
from .system import open_ports
from .types import DomainInfo, DomainRef, Resumption, Saving, Suspension

__all__ = ["BaseConnection", "Connection", "standing_on"]

T = TypeVar("T")

#: seconds that the backends of a guest that starts over have for closing
DEFAULT_BACKEND_TIMEOUT = 30.0

#: how a caller may name a domain
Reference = Union[int, str, UUID, DomainRef]
PathLike = Union[str, "os.PathLike[str]"]


class BaseConnection:
    """Ports and the engine on them, and what needs no waiting."""

    def __init__(self, ports: Ports | None = None) -> None:
        self.ports = _opener() if ports is None else ports
        self._opener = _opener
        self._engine = Engine(self.ports)
        self._pid = os.getpid()
        self._closed = False
        self.let_forgotten_go()

    @property
    def stale(self) -> bool:
        """Whether a default connection must be opened anew."""
        return self._closed or self.is_parents or self._opener is not _opener

    @property
    def is_parents(self) -> bool:
        """Whether it was opened by a process from which this one was forked."""
        return self._pid != os.getpid()

    def let_forgotten_go(self) -> None:
        """See `protocol.let_forgotten_go`; not only at the beginning, for programs live long."""
        self._engine.start(protocol.let_forgotten_go()).result()

    def check(self) -> None:
        """Refuse a connection that is closed or belongs to the parent process."""
        if self.is_parents:
            raise RuntimeError(
                f"this connection to Xen was opened by process {self._pid}; "
                "a forked child must open its own"
            )
        if self._closed:
            raise ValueError("this connection to Xen is closed")

    def suspensions(
        self, domains: Iterable[DomainRef], timeout: float | None, late_timeout: float
    ) -> list[Machine[Suspension]]:
        """What suspends domains; see `protocol.suspend`."""
        timeout_ = None if timeout is None else timeout_ns(timeout, "timeout")
        late = timeout_ns(late_timeout, "late_timeout")
        now = self.ports.poller.now_ns
        return [protocol.suspend(domain, now, timeout_, late) for domain in domains]

    def resumptions(
        self,
        domains: Iterable[DomainRef],
        cooperative: bool | None = None,
        timeout: float = DEFAULT_BACKEND_TIMEOUT,
        force: bool = False,
    ) -> list[Machine[Resumption]]:
        """What resumes domains; see `reinit.resume`."""
        if not (cooperative is None or isinstance(cooperative, bool)):
            raise TypeError(
                f"cooperative must be True, False or None, not {type(cooperative).__name__}"
            )
        if not isinstance(force, bool):
            raise TypeError(f"force must be a bool, not {type(force).__name__}")
        now, timeout_ = self.ports.poller.now_ns, timeout_ns(timeout, "timeout")
        return [reinit.resume(domain, now, timeout_, cooperative, force) for domain in domains]

    def saving(
        self, domain: DomainRef, path: PathLike, timeout: float | None, progress: Progress
    ) -> Machine[Saving]:
        """What saves a domain to a file, and destroys it; see `heavy.save`."""
        until = None if timeout is None else timeout_ns(timeout, "timeout")
        return heavy.save(domain, _absolute(path), self.ports.poller.now_ns, until, progress)

    def restoring(
        self, path: PathLike, timeout: float | None, progress: Progress
    ) -> Machine[DomainRef]:
        """What makes a domain of a file, which is checked here; see `heavy.restore`."""
        self.check()
        absolute = _absolute(path)
        with savefile.open_checked(absolute) as file:
            size_bytes = savefile.read(file, absolute).size_bytes
        until = (
            heavy.default_timeout_ns(size_bytes)
            if timeout is None
            else timeout_ns(timeout, "timeout")
        )
        return heavy.restore(absolute, self.ports.poller.now_ns, until, progress)

    def triggering(self, domain: DomainRef, what: str, vcpu: int) -> Machine[None]:
        """What presses one of a domain's buttons; see `protocol.trigger`."""
        known = [*protocol.TRIGGERS, protocol.S3RESUME]
        if what not in known:
            raise ValueError(f"a trigger is one of {', '.join(known)}, not {what!r}")
        if isinstance(vcpu, bool) or not isinstance(vcpu, int):
            raise TypeError(f"vcpu must be the number of a vCPU, not {type(vcpu).__name__}")
        if not 0 <= vcpu <= protocol.LAST_VCPU:
            raise ValueError(f"vcpu must be the number of a vCPU, not {vcpu}")
        return protocol.trigger(domain, what, vcpu, self.ports.poller.now_ns)

    def inverse(self, suspension: Suspension) -> Machine[Resumption]:
        """What undoes a suspension."""
        return protocol.resume(suspension.domain, self.ports.poller.now_ns)

    def look(self, machine: Machine[T]) -> T:
        """Run a machine that only looks; see `Engine.look`."""
        self.check()
        return self._engine.look(machine)

    def domains(self) -> list[DomainRef]:
        """All domains, by rising domid."""
        self.check()
        return [self._ref(info) for info in self.ports.hypervisor.domain_list()]

    def find(self, reference: Reference) -> DomainRef:
        """The domain that a domid, a name or a UUID means now."""
        if isinstance(reference, DomainRef):
            return reference
        if isinstance(reference, bool) or not isinstance(reference, (int, str, UUID)):
            raise TypeError(
                "a domain is named by its domid (int), its name (str) or its UUID, "
                f"not by {type(reference).__name__}"
            )
        self.check()
        if isinstance(reference, int) and not 0 <= reference <= _LAST_DOMID:
            raise ValueError(f"a domid is from 0 to {_LAST_DOMID}, not {reference}")
        if reference == "":
            raise ValueError("a domain's name must not be empty")
        if isinstance(reference, str) and reference.isascii() and reference.isdigit():
            if len(reference) > _MOST_DIGITS:
                raise NoSuchDomain(f"there is no domain {reference[:_MOST_DIGITS]}…")
            reference = int(reference)  # as xl does
        if isinstance(reference, int):
            known = reference <= _LAST_DOMID
            info = self.ports.hypervisor.domain_info(reference) if known else None
            if info is None:
                raise NoSuchDomain(f"there is no domain {reference}")
            return self._ref(info)
        infos = self.ports.hypervisor.domain_list()
        uuid = reference if isinstance(reference, UUID) else _uuid(reference)
        if uuid is not None:
            found = [self._ref(info) for info in infos if info.handle == uuid.bytes]
        else:
            found = [ref for ref in map(self._ref, infos) if ref.name == reference]
        if not found:
            raise NoSuchDomain(f"there is no domain {str(reference)!r}")
        if len(found) > 1:
            raise NoSuchDomain(
                f"several domains are called {str(reference)!r}: "
                + ", ".join(str(ref.domid) for ref in found)
                + "; name one by its domid"
            )
        return found[0]

    def _ref(self, info: DomainInfo) -> DomainRef:
        try:
            name = self.ports.store.read(f"/local/domain/{info.domid}/name")
        except NoSuchNode:  # being created, or gone meanwhile
            name = b""
        return DomainRef(info.domid, info.handle, name.decode("utf-8", "surrogateescape"))


class Connection(BaseConnection):
    """A connection that waits by blocking; for one thread at a time."""

    def __init__(self, ports: Ports | None = None) -> None:
        super().__init__(ports)
        self._busy = threading.Lock()

    @classmethod
    def default(cls) -> Connection:
        """This thread's own connection, opened when first needed."""
        connection: Connection | None = getattr(_of_thread, "connection", None)
        if connection is None or connection.stale:
            connection = _of_thread.connection = cls()
        return connection

    def close(self) -> None:
        """Close it; closing it again, or in a forked child, does nothing."""
        if self._closed or self.is_parents:
            return
        with self._working():
            self._closed = True
            self.ports.close()

    def suspend(
        self,
        domains: Iterable[DomainRef],
        timeout: float | None,
        late_timeout: float,
        tasks: list[Task[Suspension]],
    ) -> None:
        """Suspend domains, all at once; undone when interrupted.  See `protocol.suspend`.

        The outcomes become `tasks`.  A caller who is interrupted before it has handed them on gives
        them to `undo`.
        """
        machines = self.suspensions(domains, timeout, late_timeout)
        self._run(
            machines,
            tasks,
            lambda signals: undo(self._engine, tasks, self.inverse, signals),
            forgotten=True,
        )

    def undo(self, tasks: list[Task[Suspension]]) -> None:
        """Resume what has been suspended; nothing to do for the rest, and the second time."""
        if any(task.succeeded for task in tasks):
            with self._working() as signals:
                undo(self._engine, tasks, self.inverse, signals)

    def resume(
        self,
        domains: Iterable[DomainRef],
        tasks: list[Task[Resumption]],
        *,
        cooperative: bool | None = None,
        timeout: float = DEFAULT_BACKEND_TIMEOUT,
        force: bool = False,
    ) -> None:
        """Resume domains; the outcomes become `tasks`.  See `reinit.resume`."""
        machines = self.resumptions(domains, cooperative, timeout, force)
        self._run(machines, tasks, None, forgotten=True)

    def transact(self, machine: Machine[T], tasks: list[Task[T]]) -> None:
        """Run a machine that undoes by itself what it has done, when it is interrupted."""
        self._run([machine], tasks, None)

    @contextmanager
    def _working(self) -> Iterator[DeferredSignals]:
        """For one call at a time, with signal handlers held back."""
        with DeferredSignals(self.ports.poller.wake) as signals:
            if not self._busy.acquire(blocking=False):
                raise RuntimeError(
                    "this connection to Xen is at work already: give each thread a Host of its "
                    "own, close it when its calls have ended, and do neither from signal handlers"
                )
            try:
                yield signals
            finally:
                self._busy.release()

    def _run(
        self,
        machines: list[Machine[T]],
        tasks: list[Task[T]],
        undo_: Callable[[DeferredSignals], None] | None,
        *,
        forgotten: bool = False,
    ) -> None:
        with self._working() as signals:
            self.check()
            if forgotten:  # not by a worker, which has a lock of its own
                self.let_forgotten_go()
            undoing = None if undo_ is None else lambda: undo_(signals)
            run(self._engine, machines, tasks, undoing, signals)


_LAST_DOMID = 0x7FEF  # DOMID_FIRST_RESERVED of public/xen.h, less one
_MOST_DIGITS = 100  # Python refuses to convert thousands of them
_of_thread = threading.local()
_opener: Callable[[], Ports] = open_ports


@contextmanager
def standing_on(opener: Callable[[], Ports]) -> Iterator[None]:
    """Within: connections of this process that are made without ports have those of `opener`."""
    global _opener  # noqa: PLW0603  (also in threads that are there already)
    before, _opener = _opener, opener
    try:
        yield
    finally:
        _opener = before


def _uuid(text: str) -> UUID | None:
    """The UUID that is written so, in the usual form alone."""
    try:
        uuid = UUID(text)
    except ValueError:
        return None
    return uuid if str(uuid) == text.lower() else None


def timeout_ns(seconds: float, name: str) -> int:
    """A timeout as the protocol takes it; refuses what is not a positive finite number."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(seconds).__name__}")
    if not 0 < seconds <= _LONGEST:  # neither is a NaN
        raise ValueError(
            f"{name} must be more than 0 and at most {_LONGEST} seconds, not {seconds}"
        )
    return max(1, int(seconds * 1_000_000_000))


_LONGEST = 86_400


def _absolute(path: PathLike) -> Path:
    """A path that means the same to a process elsewhere."""
    text = os.fspath(path)
    if not text:  # which pathlib takes for the directory that we are in
        raise ValueError("a path must not be empty")
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ValueError(f"no file can be called {text!r}; use other characters")
    return Path(os.getcwd(), text)  # the kernel's "..", which abspath() has not behind a link
