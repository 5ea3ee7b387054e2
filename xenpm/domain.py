"""One guest and its verbs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Generic, Literal, TypeVar, overload
from uuid import UUID

from .actions import Machine, identify
from .connection import (
    DEFAULT_BACKEND_TIMEOUT,
    BaseConnection,
    Connection,
    PathLike,
    Reference,
)
from .devices import used_by, with_states
from .engine import Task
from .errors import NoSuchDomain, ResumeError, StoreDataError, SuspendNotSupported, XenError
from .heavy import Progress
from .pci import pci_devices
from .protocol import forget_start, started_over, supports_cooperative_resume
from .reinit import supports_reinit
from .topology import DriverDomain, read_topology
from .types import (
    Device,
    DomainInfo,
    DomainRef,
    DomainState,
    DomainType,
    PciDevice,
    Resumption,
    Saving,
    ShutdownReason,
    Support,
    Suspension,
)

__all__ = ["BaseDomain", "Domain", "restore"]

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
C = TypeVar("C", bound=BaseConnection)

#: seconds to watch over a guest that took the request and missed its deadline
DEFAULT_LATE_TIMEOUT = 30.0


class BaseDomain(Generic[C]):
    """Which domain it is, and what can be seen of it without waiting."""

    _connection: C
    _ref: DomainRef

    @classmethod
    def _on(cls, connection: C, reference: Reference) -> Self:
        """The domain that a reference means, on that connection."""
        domain = cls.__new__(cls)
        domain._connection = connection
        domain._ref = connection.find(reference)
        return domain

    def __repr__(self) -> str:
        return f"<xenpm.Domain {self._ref.domid} {self._ref.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseDomain) and self._key == other._key

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

    @property
    def pci_devices(self) -> tuple[PciDevice, ...]:
        """The PCI devices that are passed through to it at this moment; PVH domains have none.

        From ``/local/domain/0/backend/pci`` in xenstore, as ``xl pci-list`` does.

        Raises:
            NoSuchDomain: it is gone.
            StoreDataError: what xenstore says makes no sense.
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        return self._read(lambda unreadable: pci_devices(self.domid, unreadable))

    @property
    def backends(self) -> tuple[Device, ...]:
        """The devices through which it uses others' backends, consoles included.

        From ``/libxl/<domid>/device`` in xenstore; with the states of both ends.

        Raises:
            NoSuchDomain: it is gone.
            StoreDataError: what xenstore says makes no sense.
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        return self._read(lambda unreadable: used_by(self.domid, unreadable))

    @property
    def frontends(self) -> tuple[Device, ...]:
        """The devices of others whose backend it is, without consoles.

        From ``/libxl`` in xenstore, which every domain's devices have to be looked for in.

        Raises:
            NoSuchDomain: it is gone.
            StoreDataError: what xenstore says makes no sense.
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        driver = self.is_driver_domain
        if driver.unreadable:
            raise StoreDataError(_makes_no_sense(self._ref, driver.unreadable))
        return self._connection.look(_with_states(driver.serves))

    @property
    def is_driver_domain(self) -> DriverDomain:
        """Whether it owns PCI devices or serves other guests, with the evidence.

        To be used like a bool; see `DriverDomain`.  Domain 0, which serves everybody, is not meant.

        Raises:
            NoSuchDomain: it is gone.
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        topology = self._connection.look(read_topology())
        for member in topology.members:
            if (member.domain.domid, member.domain.handle) == (self.domid, self._ref.handle):
                return topology.driver_domain(self.domid)
        raise NoSuchDomain(f"{self._ref} is gone")

    @property
    def supports_cooperative_resume(self) -> Support:
        """Whether its suspend hypercall can return 1 ("cancelled"), with the evidence.

        To be used like a bool.  Tells what kind of guest it is, whether a PV guest's kernel image
        has the note ``XEN_ELFNOTE_SUSPEND_CANCEL`` (where the image shows it: a compressed one does
        not), and whether a PVH guest has set ``HVM_PARAM_CALLBACK_IRQ``, without which libxc does
        not set the hypercall's value.

        Raises:
            NoSuchDomain: it is gone.
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        return self._connection.look(supports_cooperative_resume(self._ref, self.info))

    @property
    def supports_reinit(self) -> Support:
        """Whether it can be started over by ``resume(cooperative=False)``, with the evidence.

        To be used like a bool.  PVH guests can, when all their devices are of kinds whose frontends
        in Linux connect anew, and when they are no backends of others.  What takes ``force=True``
        counts as false, and the evidence says so.

        Raises:
            The same as `supports_cooperative_resume`.
        """
        return self._connection.look(supports_reinit(self._ref, self.info))

    def _read(self, machine: Callable[[list[str]], Machine[tuple[T, ...]]]) -> tuple[T, ...]:
        """What a machine reads of the domain, which must be there still when it is done."""
        unreadable: list[str] = []
        found = self._connection.look(machine(unreadable))
        _ = self.info  # or raise: what was destroyed meanwhile may have been seen half
        if unreadable:
            raise StoreDataError(_makes_no_sense(self._ref, unreadable))
        return found

    # -- what the verbs of both kinds of domains stand on

    def _saving(
        self, path: PathLike | None, timeout: float | None, late_timeout: float, progress: Progress
    ) -> Machine[Saving]:
        """What suspends it the heavy way."""
        if path is None:
            raise ValueError("suspending the heavy way takes a path, for the guest's memory")
        if late_timeout != DEFAULT_LATE_TIMEOUT:
            raise ValueError("late_timeout is for the light way only")
        return self._connection.saving(self._ref, path, timeout, progress)

    def _check_light(self, lightweight: object, path: object, progress: object) -> None:
        """Refuse what is for the heavy way."""
        if not isinstance(lightweight, bool):
            raise TypeError(f"lightweight must be a bool, not {type(lightweight).__name__}")
        if path is not None or progress is not None:
            raise ValueError("path and progress are for the heavy way: give lightweight=False")

    def _check_resumable(self) -> None:
        """Refuse a guest that, once suspended, could not be resumed."""
        cooperatively, anew = self.supports_cooperative_resume, self.supports_reinit
        if not (cooperatively or anew):
            raise SuspendNotSupported(
                self._ref,
                f"could not be resumed again: {cooperatively.evidence}; {anew.evidence}",
            )

    def _pause(self) -> None:
        info = self.info
        if info.runs_xenstore:
            raise XenError(f"{self._ref}: runs xenstored; without that the whole host would hang")
        self._connection.look(forget_start(self._ref, info))
        self._connection.ports.hypervisor.pause(self.domid)

    def _unpause(self) -> None:
        info = self.info
        middle = info.paused and not info.suspended
        if middle and self._connection.look(started_over(self._ref, info)).doing:
            raise ResumeError(
                self._ref,
                "is paused in the middle of being started over: resume it with "
                "cooperative=False, which unpauses it at its end. Nothing was touched",
            )
        self._connection.ports.hypervisor.unpause(self.domid)


class Domain(BaseDomain[Connection]):
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

    @overload
    def suspend(
        self,
        *,
        lightweight: Literal[True] = True,
        timeout: float | None = None,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
    ) -> Suspension: ...

    @overload
    def suspend(
        self,
        *,
        lightweight: Literal[False],
        path: PathLike,
        timeout: float | None = None,
        progress: Progress = None,
    ) -> Saving: ...

    def suspend(
        self,
        *,
        lightweight: bool = True,
        path: PathLike | None = None,
        timeout: float | None = None,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
        progress: Progress = None,
    ) -> Suspension | Saving:
        """Have the guest suspend itself, its memory staying in place or going to a file.

        The guest is asked through xenstore (``control/shutdown``), freezes its processes, suspends
        its devices and leaves the scheduler through the hypercall ``SHUTDOWN_suspend``.  Then the
        device model of an HVM guest is stopped (QEMU's ``stop``); it has 30 seconds of its own.

        A guest that took the request cannot be stopped from suspending.  When it misses the
        deadline, this call watches over it for `late_timeout` more and resumes it if it suspends
        late, before it raises; so the call can take `timeout` + `late_timeout` seconds.  The same
        watch follows Ctrl-C (any signal handler that raises); a second Ctrl-C ends it.

        With `lightweight` False its memory and configuration are written to a file, as ``xl save``
        writes it, and the domain is destroyed: ``libxl_domain_suspend``, ``libxl_domain_destroy``.
        `restore` or ``xl restore`` makes it anew.  At any moment the guest or the complete file is
        there.  When it fails or is cancelled the guest runs on, and there is no file.

        Args:
            lightweight: whether to leave the memory where it is.
            path: the file, which must not be there yet; only for the heavy way.
            timeout: seconds that the guest has; None: 30, or 60 for one that owns PCI devices or is
                a backend of others.  The heavy way: seconds until the file is complete; None: 600,
                and 300 for each GiB of memory.
            late_timeout: seconds to watch over a guest that took the request and missed that; both
                are above 0 and at most 86400.  Only for the light way.
            progress: gets how many bytes are written, and how many it will be at most; only for
                the heavy way.

        Returns:
            How long each phase took, and for a driver domain how its devices were before.  The
            heavy way: a `Saving`.

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
            SaveError: it was not saved; the message says why, and what state the guest is in.
            XenlightError: the heavy way; a call to libxl failed; nothing was touched.
            ResumeError: it suspended late and could not be resumed.
        """
        if lightweight is False:
            tasks_: list[Task[Saving]] = []
            machine = self._saving(path, timeout, late_timeout, progress)
            self._connection.transact(machine, tasks_)
            return tasks_[0].result()
        self._check_light(lightweight, path, progress)
        tasks: list[Task[Suspension]] = []
        try:
            self._connection.suspend([self._ref], timeout, late_timeout, tasks)
            return tasks[0].result()
        except BaseException:  # also what a signal handler raises at the last moment
            self._connection.undo(tasks)
            raise

    def resume(
        self,
        *,
        cooperative: bool | None = None,
        timeout: float = DEFAULT_BACKEND_TIMEOUT,
        force: bool = False,
    ) -> Resumption:
        """Let the suspended guest continue where it stopped.

        Cooperatively: the guest's suspend hypercall returns 1, "cancelled", and it keeps its event
        channels, grants and connections.  ``xc_domain_resume`` with ``fast=1``, then
        ``xs_resume_domain``; before them the device model of an HVM guest goes on (``cont``).

        By reinitialisation: the hypercall returns 0, and the guest makes its connections anew.
        For that its devices are walked back to their start, its event channels reset, and its
        console and xenstore connected anew: ``xc_domain_soft_reset``, ``xs_introduce_domain``.
        Requests that its devices had not answered are made again by the guest.  PVH guests of
        Linux can; `supports_reinit` says whether this one does.  A process that was killed in the
        middle of it is made up for by calling this again.  With an HVM guest all but its devices
        is left to libxl: ``libxl_domain_soft_reset``, which makes its device model anew, too, and
        destroys the guest should that fail.

        Args:
            cooperative: None: cooperatively where the guest can, else by reinitialisation; True or
                False: so and no other way.
            timeout: seconds that the backends have for closing when the guest is reinitialised, and
                again for connecting once it runs; above 0 and at most 86400.
            force: start over also a PV guest, or an HVM guest.  The former is only for kernels that
                register no vCPU info area with Xen; Linux does, and panics.  The latter may lose
                the guest when libxl fails.

        Returns:
            How long it took, which way was taken and why.  When PCI devices are passed through to
            the domain they are watched until its drivers have brought them back, for at most 10
            seconds; after a reinitialisation all its devices, for at most `timeout`.  What is not
            as it was is in ``problems``.

        Raises:
            ValueError, TypeError: an argument is wrong; nothing was touched.
            NoSuchDomain: it is gone.
            NotSuspended: it is not suspended; nothing was touched.
            ReinitNotSupported: the guest cannot; nothing was touched.
            HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
            ResumeError: somebody else is at it, a backend did not close, or a call failed; the
                message says what state the guest is in.
        """
        tasks: list[Task[Resumption]] = []
        self._connection.resume(
            [self._ref], tasks, cooperative=cooperative, timeout=timeout, force=force
        )
        return tasks[0].result()

    @contextmanager
    def suspended(
        self, *, timeout: float | None = None, late_timeout: float = DEFAULT_LATE_TIMEOUT
    ) -> Iterator[Suspension]:
        """Suspend it lightly for the length of a ``with`` block; it is always resumed.

        Takes and raises what `suspend` and `resume` do.  A domain that was destroyed within the
        block raises `NoSuchDomain` at its end, one that somebody else resumed `NotSuspended`.
        """
        self._check_resumable()
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
            HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
            XenError: it runs xenstored.
        """
        self._pause()

    def unpause(self) -> None:
        """Undo one `pause`: ``xc_domain_unpause``.

        Raises:
            NoSuchDomain: it is gone.
            ResumeError: it is paused in the middle of being started over, and would run without
                its channels and devices; nothing was touched.
            HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
        """
        self._unpause()

    def trigger(self, what: str, *, vcpu: int = 0) -> None:
        """Press its power or sleep button, wake it from its own sleep, or send it an NMI.

        What the guest does then is its own affair: for ``power`` it shuts down, for ``sleep`` it
        goes to sleep (ACPI S3), when it is made so.  Returns at once, but for ``s3resume``, which
        waits at most 30 seconds for the device model.  ``xc_domain_send_trigger``; for ``s3resume``
        QEMU's ``system_wakeup``.

        Args:
            what: ``power``, ``sleep`` or ``s3resume``, which HVM guests have; or ``nmi``.
            vcpu: the number of the vCPU that gets the NMI.

        Raises:
            ValueError, TypeError: an argument is wrong; nothing was touched.
            NoSuchDomain: it is gone.
            XenError: it is no HVM guest, does not sleep, somebody else is suspending or resuming
                it, or its device model did not wake it.
            HypercallError, NotPermitted: the call failed; nothing was touched.
        """
        tasks: list[Task[None]] = []
        self._connection.transact(self._connection.triggering(self._ref, what, vcpu), tasks)
        tasks[0].result()


def restore(path: PathLike, *, timeout: float | None = None, progress: Progress = None) -> Domain:
    """Make a domain of the file that `Domain.suspend` or ``xl save`` has written, and let it run.

    The file is checked from its beginning to its end, but for the memory in it, before anything is
    touched: ``libxl_domain_create_restore``.  It stays.  Once the domain has run, its disks are not
    as they were when it was saved: never restore the same file again.

    Args:
        path: the file.
        timeout: seconds that it may take, above 0 and at most 86400; None: 600, and 300 for each
            GiB.
        progress: gets how many bytes are read, and how many there are.

    Raises:
        SaveFileError: it is not the file of a saved domain, or not all of it; nothing was touched.
        RestoreError: it was not restored, or a domain of its name or UUID is there; nothing is left
            but the file.
        NotXenHost, NotPermitted, LibraryMismatch: see `Host`.
        HypercallError, StoreError, XenlightError: a call to Xen failed; nothing was touched.
    """
    connection = Connection.default()
    tasks: list[Task[DomainRef]] = []
    connection.transact(connection.restoring(path, timeout, progress), tasks)
    return Domain._on(connection, tasks[0].result())


def _with_states(devices: tuple[Device, ...]) -> Machine[tuple[Device, ...]]:
    found = []
    for device in devices:
        found.append((yield from with_states(device, [])))
    return tuple(found)


def _makes_no_sense(domain: DomainRef, unreadable: Iterable[str]) -> str:
    return f"{domain}: xenstore makes no sense: {'; '.join(unreadable)}"


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
