"""One guest and its verbs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from uuid import UUID

from .connection import Connection, Reference
from .engine import Task
from .errors import NoSuchDomain, XenError
from .protocol import identify
from .types import (
    DomainInfo,
    DomainRef,
    DomainState,
    DomainType,
    Resumption,
    ShutdownReason,
    Suspension,
)

__all__ = ["Domain"]

#: seconds that a guest has for suspending; Linux gives up freezing its processes after 20
DEFAULT_TIMEOUT = 30.0
#: seconds to watch over a guest that took the request and missed its deadline
DEFAULT_LATE_TIMEOUT = 30.0


class Domain:
    """One Xen domain.

    It means the domain that the reference meant when this object was made: after a reboot a guest
    is a new domain, and every verb of the old object raises `NoSuchDomain`.

    It stands on this thread's own connection to Xen, opened when first needed; a `Host` gives
    domains on its own.

    Args:
        reference: domid (int, or a str of digits), name (str) or UUID (`uuid.UUID`, or its usual
            form of 36 characters as a str).

    Raises:
        NoSuchDomain: no domain is called so.
        NotXenHost, NotPermitted, LibraryMismatch: see `Host`.
    """

    def __init__(self, reference: Reference) -> None:
        self._connection = Connection.default()
        self._ref = self._connection.find(reference)

    @classmethod
    def _on(cls, connection: Connection, reference: Reference) -> Domain:
        """The domain that a reference means, on that connection."""
        domain = cls.__new__(cls)
        domain._connection = connection
        domain._ref = connection.find(reference)
        return domain

    def __repr__(self) -> str:
        return f"<xenpm.Domain {self._ref.domid} {self._ref.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Domain) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[int, bytes]:
        return self._ref.domid, self._ref.handle

    @property
    def ref(self) -> DomainRef:
        """Domid, name and UUID as one value."""
        return self._ref

    @property
    def domid(self) -> int:
        """Its number on this host."""
        return self._ref.domid

    @property
    def name(self) -> str:
        """Its name when it was looked up (xenstore ``~/name``); empty while it is being created."""
        return self._ref.name

    @property
    def uuid(self) -> UUID:
        """The UUID that the toolstack gave it."""
        return self._ref.uuid

    @property
    def info(self) -> DomainInfo:
        """What the hypervisor says of it now: ``xc_domain_getinfolist``.

        Raises:
            NoSuchDomain: it is gone.
        """
        info = identify(self._ref, self._connection.ports.hypervisor.domain_info(self.domid))
        if info is None:
            raise NoSuchDomain(f"{self._ref} is gone")
        return info

    @property
    def type(self) -> DomainType:
        """PV, PVH or HVM."""
        return self.info.type

    @property
    def state(self) -> DomainState:
        """What it is doing now."""
        return self.info.state

    @property
    def shutdown_reason(self) -> ShutdownReason | None:
        """Why it has shut down; None while it has not."""
        return self.info.shutdown_reason

    def suspend(
        self,
        *,
        lightweight: Literal[True] = True,
        timeout: float = DEFAULT_TIMEOUT,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
    ) -> Suspension:
        """Have the guest suspend itself, its memory staying in place.

        The guest is asked through xenstore (``control/shutdown``), freezes its processes, suspends
        its devices and leaves the scheduler through the hypercall ``SHUTDOWN_suspend``.

        A guest that took the request cannot be stopped from suspending.  When it misses the
        deadline, this call watches over it for `late_timeout` more and resumes it if it suspends
        late, before it raises; so the call can take `timeout` + `late_timeout` seconds.  The same
        watch follows Ctrl-C (any signal handler that raises); a second Ctrl-C ends it.

        Args:
            lightweight: only True: leave the memory where it is.
            timeout: seconds that the guest has.
            late_timeout: seconds to watch over a guest that took the request and missed that; both
                are above 0 and at most 86400.

        Returns:
            How long each phase took.

        Raises:
            ValueError, TypeError: a timeout is not one; nothing was touched.
            HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
            NoSuchDomain: it is gone.
            AlreadySuspended: it is suspended already.
            SuspendInProgress: somebody else is suspending it, or has asked something of it.
            SuspendNotSupported: the guest cannot.
            SuspendNotAcknowledged: it did not take the request, which has been taken back.
            SuspendNotCompleted: it took the request and missed the deadline.
            SuspendInterrupted: it crashed, rebooted, powered off or was destroyed meanwhile.
            SuspendError: a call to Xen failed on the way; the message says what state the guest
                is in.
            ResumeError: it suspended late and could not be resumed.
        """
        if lightweight is not True:
            raise ValueError("this release suspends only lightly; for the other way use 'xl save'")
        tasks: list[Task[Suspension]] = []
        try:
            self._connection.suspend([self._ref], timeout, late_timeout, tasks)
            return tasks[0].result()
        except BaseException:  # also what a signal handler raises at the last moment
            self._connection.undo(tasks)
            raise

    def resume(self) -> Resumption:
        """Let the suspended guest continue where it stopped.

        Cooperatively: the guest's suspend hypercall returns 1, "cancelled", and it keeps its event
        channels, grants and connections.  ``xc_domain_resume`` with ``fast=1``, then
        ``xs_resume_domain``.

        Raises:
            NoSuchDomain: it is gone.
            NotSuspended: it is not suspended; nothing was touched.
            HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
            ResumeError: somebody else is at it, or a call failed; the message says what state the
                guest is in.
        """
        tasks: list[Task[Resumption]] = []
        self._connection.resume([self._ref], tasks)
        return tasks[0].result()

    @contextmanager
    def suspended(
        self, *, timeout: float = DEFAULT_TIMEOUT, late_timeout: float = DEFAULT_LATE_TIMEOUT
    ) -> Iterator[Suspension]:
        """Suspend it lightly for the length of a ``with`` block; it is always resumed.

        Takes and raises what `suspend` and `resume` do.  A domain that was destroyed within the
        block raises `NoSuchDomain` at its end, one that somebody else resumed `NotSuspended`.
        """
        suspended = _Suspended(self._connection)
        # Entered twice: should a signal handler raise in the first lines of one's end, before it
        # holds signals back, then the other's end still resumes the guest.
        with suspended, suspended:
            self._connection.suspend([self._ref], timeout, late_timeout, suspended.tasks)
            yield suspended.tasks[0].result()

    def pause(self) -> None:
        """Take it off the CPUs without its knowledge; pauses count: ``xc_domain_pause``.

        Raises:
            NoSuchDomain: it is gone.
            HypercallError, NotPermitted: the call failed; nothing was touched.
            XenError: it runs xenstored.
        """
        if self.info.runs_xenstore:
            raise XenError(f"{self._ref}: runs xenstored; without that the whole host would hang")
        self._connection.ports.hypervisor.pause(self.domid)

    def unpause(self) -> None:
        """Undo one `pause`: ``xc_domain_unpause``.

        Raises:
            NoSuchDomain: it is gone.
            HypercallError, NotPermitted: the call failed; nothing was touched.
        """
        self._connection.ports.hypervisor.unpause(self.info.domid)


class _Suspended:
    """Resumes at its end, once, what has been suspended; raises what `Domain.resume` does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.tasks: list[Task[Suspension]] = []
        self._resumed: list[Task[Resumption]] = []  # filled while signals are held back

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        domains = [task.result().domain for task in self.tasks if task.succeeded]
        if domains and not self._resumed:
            self._connection.resume(domains, self._resumed)
            self._resumed[0].result()
