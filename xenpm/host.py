"""One Xen host: the connection to it, and finding its domains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from . import sleep
from .actions import Cancelled, Machine
from .connection import (
    DEFAULT_BACKEND_TIMEOUT,
    BaseConnection,
    Connection,
    PathLike,
    Reference,
)
from .domain import DEFAULT_LATE_TIMEOUT, BaseDomain, Domain
from .engine import Task
from .errors import ConfigError, HostSuspendError, XenError
from .events import Observer
from .heavy import Progress
from .hooks import Hook, find_hooks
from .plan import Plan, make_plan
from .policy import Policy, Rule, Settings, read_settings
from .ports import Ports
from .sleep import Report, Terms
from .topology import Topology, read_topology
from .types import DomainEvent, Resumption, Suspension

__all__ = ["BaseHost", "Host"]

_log = logging.getLogger("xenpm.host")

T = TypeVar("T")
D = TypeVar("D", bound="BaseDomain[Any]")


class BaseHost(Generic[D]):
    """What can be seen of a host without waiting, and the checks of its verbs' arguments."""

    _connection: BaseConnection

    @property
    def xen_version(self) -> tuple[int, int]:
        """The hypervisor's release as (major, minor): ``xc_version``."""
        return self._connection.ports.hypervisor.version()

    def _planning(self, rules: Mapping[D, Rule] | None, settings: Settings | None) -> Machine[Plan]:
        """What makes the plan; its arguments are checked here."""
        chosen = dict(rules or {})
        self._chosen(chosen)
        for rule in chosen.values():
            if not isinstance(rule, Rule):
                raise TypeError(f"rules must be xenpm.Rule objects, not {type(rule).__name__}")
        by_domid = {domain.domid: rule for domain, rule in chosen.items()}
        settings = read_settings() if settings is None else settings
        return make_plan(settings, by_domid)

    def _suspending(
        self, state: str, rules: Mapping[D, Rule] | None, terms: Terms
    ) -> Machine[Report]:
        """What suspends the host; see `sleep.suspend`."""
        self._connection.check()
        planning = _with_directory(self._planning(rules, terms.settings), terms.settings)
        return sleep.suspend(state, planning, terms, self._connection.ports.poller.now_ns)

    def _chosen(self, domains: Iterable[D]) -> list[D]:
        """The domains that a caller has named, each once; refuses what is not this host's."""
        chosen = list(domains)
        for domain in chosen:
            if not isinstance(domain, BaseDomain):
                raise TypeError(
                    "domains must be xenpm.Domain objects, as host.domain() gives them, "
                    f"not {type(domain).__name__}"
                )
            if domain._connection is not self._connection:
                raise ValueError(
                    f"{domain.ref} was looked up through another connection to Xen: "
                    "look it up with this host's domain()"
                )
        return list(dict.fromkeys(chosen))


class Host(BaseHost[Domain]):
    """The Xen host that this process runs on, as root in dom0.

    A host is for one thread at a time and must not be used by a forked child.  It is closed by
    `close` or at the end of a ``with`` block; its domains cannot be used afterwards.

    Args:
        ports: what to stand on instead of the real Xen, for tests.

    Raises:
        LibraryMismatch: the extension modules are missing or were built for another Xen release.
        NotPermitted: not root.
        NotXenHost: no hypervisor or no xenstore here, or this is not dom0.
        XenError: no descriptor or no memory is left, or no lock file can be made.
    """

    _connection: Connection

    def __init__(self, *, ports: Ports | None = None) -> None:
        self._connection = Connection(ports)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; closing it again does nothing.

        Raises:
            RuntimeError: a call is under way, in another thread or below this signal handler.
        """
        self._connection.close()

    def domain(self, reference: Reference) -> Domain:
        """The domain that a domid, a name or a UUID means now.

        Raises:
            NoSuchDomain: no domain is called so.
        """
        return Domain._on(self._connection, reference)

    def restore(
        self, path: PathLike, *, timeout: float | None = None, progress: Progress = None
    ) -> Domain:
        """Make a domain of the file of a saved one, and let it run; see `xenpm.restore`."""
        return self.domain(self._transact(self._connection.restoring(path, timeout, progress), []))

    def domains(self) -> list[Domain]:
        """All domains but domain 0, by rising domid: ``xc_domain_getinfolist``."""
        return [
            Domain._on(self._connection, ref)
            for ref in self._connection.domains()
            if ref.domid != 0
        ]

    def topology(self) -> Topology:
        """Who is whose backend at this moment, and the order of suspending that follows from it.

        Raises:
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        return self._connection.look(read_topology())

    def plan(
        self,
        *,
        rules: Mapping[Domain, Rule] | None = None,
        settings: Settings | None = None,
    ) -> Plan:
        """What `suspend` would do with each domain, in which order, and why.  Nothing is touched.

        Args:
            rules: what is to hold for single domains, before all that stands elsewhere.
            settings: what holds on this host; None: what ``/etc/xen/xenpm.conf`` says.

        Raises:
            ConfigError: the settings, or a domain's ``xenpm/policy`` in xenstore, make no sense.
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        return self._connection.look(self._planning(rules, settings))

    def events(self) -> Iterator[DomainEvent]:
        """What becomes of the domains, from this call on, without end: waits for each event.

        A domain has appeared, suspended, been resumed, or is gone; whoever did it.  From watches
        on ``@introduceDomain`` and ``@releaseDomain``; as nothing in xenstore tells of a resume,
        suspended domains are looked at ten times a second while there are any.  What lasts shorter
        than the time between two looks is not told.

        While it waits, this host can do nothing else: Ctrl-C or a signal handler that raises ends
        the waiting.  `xenpm.aio` has the same beside all else.

        Whatever the waiting raises does not end it: the next event can be waited for afterwards,
        and none is lost.

        Raises:
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        observer = Observer()
        self._connection.look(observer.look())
        observer.events.clear()
        return _Events(self._connection, observer)

    def suspend(
        self,
        state: str = "mem",
        *,
        rules: Mapping[Domain, Rule] | None = None,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report:
        """Put the whole machine to sleep, its guests first, and bring everything back.

        Each guest is suspended in place as soon as nobody who is still up depends on it.  Then
        `state` is written to ``/sys/power/state``.  After the wake-up each guest is resumed as soon
        as all that it depends on runs, and looked at: whether its vCPUs run, its devices are
        connected and its PCI devices are alive.

        When it cannot be, by a guest that must not be paused instead, by a deadline, by Ctrl-C or
        any signal handler that raises, then all that was done is undone.  A process that is killed
        leaves a journal in ``/run/xenpm``, from which `recover` brings the guests back.

        Args:
            state: one of those that the kernel offers; ``mem`` is ACPI S3.
            rules: as for `plan`.
            settings: as for `plan`.
            hooks: Python callables, called after the programs in ``/etc/xenpm/hooks.d``; see
                `HookEvent`.
            progress: gets what happens, in words, when it happens.

        Returns:
            What became of each domain and of the machine.  What is not as it should be, but did not
            keep the machine awake, is in its ``problems``.

        Raises:
            HostSuspendError: the machine must not sleep, or has not slept, or somebody did not come
                back; its ``report`` tells.
            KeyboardInterrupt, SystemExit, ...: whatever a signal handler has raised; its
                ``__cause__`` is the `HostSuspendError` that tells what was undone.
            ConfigError: as for `plan`, or a hook could be changed by others than root, or the
                directory for saved guests cannot be made; nothing was touched.
            JournalError: the journal cannot be written, or another host suspend is under way or was
                left unfinished; nothing was touched.
            HypercallError, StoreError, NotPermitted: a call to Xen failed; nothing was touched.
        """
        if not state:
            raise ValueError("a sleep state must not be empty")
        return self._suspend(state, rules, settings, hooks, progress)

    def suspend_domains(
        self,
        *,
        rules: Mapping[Domain, Rule] | None = None,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report:
        """Suspend the guests as `suspend` does, for somebody else who puts the machine to sleep.

        They stay down until `resume_domains` is called, by this or any other process.

        Takes and raises what `suspend` does.
        """
        return self._suspend("", rules, settings, hooks, progress)

    def resume_domains(
        self,
        *,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report | None:
        """Bring back what `suspend_domains`, or a host suspend that was killed, has left down.

        Args:
            settings: as for `plan`; what it says of hooks holds.
            hooks: as for `suspend`.
            progress: as for `suspend`.

        Returns:
            What became of each domain; None when nothing was down.

        Raises:
            HostSuspendError: not everything came back; it can be tried again.
            JournalError: the journal makes no sense, or another process is at it.
            ConfigError: as for `suspend`; nothing was touched.
            HypercallError, StoreError, NotPermitted: a call to Xen failed.
        """
        return self._resume(settings, hooks, progress, only_interrupted=False)

    def recover(
        self,
        *,
        settings: Settings | None = None,
        hooks: Sequence[Hook] = (),
        progress: Callable[[str], None] | None = None,
    ) -> Report | None:
        """Bring back what a host suspend that was killed has left down, and nothing else.

        Takes, gives and raises what `resume_domains` does; and `JournalError` when the guests are
        down on purpose, by `suspend_domains`.
        """
        return self._resume(settings, hooks, progress, only_interrupted=True)

    def _suspend(
        self,
        state: str,
        rules: Mapping[Domain, Rule] | None,
        settings: Settings | None,
        hooks: Sequence[Hook],
        progress: Callable[[str], None] | None,
    ) -> Report:
        terms = terms_of(settings, hooks, progress)
        machine = self._suspending(state, rules, terms)
        tasks: list[Task[Report]] = []
        try:
            with explaining(tasks, hands_over=not state):
                return self._transact(machine, tasks)
        except BaseException:  # also what a signal handler raises at the last moment
            if not state and tasks and tasks[0].succeeded:
                self._resume(settings, hooks, progress, only_interrupted=False)
            raise

    def _resume(
        self,
        settings: Settings | None,
        hooks: Sequence[Hook],
        progress: Callable[[str], None] | None,
        *,
        only_interrupted: bool,
    ) -> Report | None:
        terms = terms_of(settings, hooks, progress)
        now = self._connection.ports.poller.now_ns
        machine = sleep.resume_domains(terms, now, only_interrupted=only_interrupted)
        tasks: list[Task[Report | None]] = []
        with explaining(tasks):
            return self._transact(machine, tasks)

    def _transact(self, machine: Machine[T], tasks: list[Task[T]]) -> T:
        self._connection.transact(machine, tasks)
        return tasks[0].result()

    def suspend_each(
        self,
        domains: Iterable[Domain],
        *,
        timeout: float | None = None,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
    ) -> dict[Domain, Suspension | XenError]:
        """Suspend several guests lightly, all at once, each for itself.

        Like `Domain.suspend`, but one guest's failure neither stops nor undoes the others.  Only an
        interruption (Ctrl-C, any signal handler that raises) undoes all.

        Args:
            domains: which; all of this host.  One that is named twice is suspended once.
            timeout: seconds that each guest has; None: as for `Domain.suspend`.
            late_timeout: seconds to watch over a guest that took the request and missed that.

        Returns:
            For each domain its result, or the exception that `Domain.suspend` would have raised.
        """
        chosen = self._chosen(domains)
        refs = [domain.ref for domain in chosen]
        tasks: list[Task[Suspension]] = []
        try:
            self._connection.suspend(refs, timeout, late_timeout, tasks)
            return outcomes(chosen, tasks)
        except BaseException:  # also what a signal handler raises at the last moment
            self._connection.undo(tasks)
            raise

    def resume_each(
        self,
        domains: Iterable[Domain],
        *,
        cooperative: bool | None = None,
        timeout: float = DEFAULT_BACKEND_TIMEOUT,
    ) -> dict[Domain, Resumption | XenError]:
        """Resume several suspended guests, all at once, each for itself, like `Domain.resume`.

        Args:
            domains: which; all of this host.
            cooperative: see `Domain.resume`.
            timeout: seconds that each guest's backends have for closing, when it starts over.

        Returns:
            For each domain its result, or the exception that `Domain.resume` would have raised.
        """
        chosen = self._chosen(domains)
        tasks: list[Task[Resumption]] = []
        refs = [domain.ref for domain in chosen]
        self._connection.resume(refs, tasks, cooperative=cooperative, timeout=timeout)
        return outcomes(chosen, tasks)


class _Events(Iterator[DomainEvent]):
    """What becomes of the domains; an error does not end it."""

    def __init__(self, connection: Connection, observer: Observer) -> None:
        self._connection = connection
        self._observer = observer

    def __next__(self) -> DomainEvent:
        while not self._observer.events:
            machine = self._observer.wait(self._connection.ports.poller.now_ns)
            tasks: list[Task[None]] = []
            self._connection.transact(machine, tasks)
            tasks[0].result()
        return self._observer.events.popleft()


def terms_of(
    settings: Settings | None, hooks: Sequence[Hook], progress: Callable[[str], None] | None
) -> Terms:
    settings = read_settings() if settings is None else settings
    return Terms(settings, [*find_hooks(), *hooks], progress or _nobody)


@contextmanager
def explaining(tasks: Sequence[Task[Any]], *, hands_over: bool = False) -> Iterator[None]:
    """Within: an interruption gets the cause that tells what came of the host suspend.

    Of the half that hands the guests over nothing is told when it has succeeded: it is undone then.
    """
    try:
        yield
    except BaseException as error:
        _explain(error, tasks, hands_over)
        raise


def _explain(error: BaseException, tasks: Sequence[Task[Any]], hands_over: bool) -> None:
    failure = tasks[0].error if tasks else None
    if tasks and tasks[0].succeeded and not hands_over and tasks[0].result() is not None:
        failure = HostSuspendError("interrupted, when all was back", report=tasks[0].result())
    if isinstance(failure, Cancelled):  # dropped where it was
        failure = HostSuspendError(
            "the host suspend was interrupted twice, and left where it was: "
            "'python -m xenpm host recover' brings back what is down",
            rolled_back=False,
        )
        _log.error("%s", failure)
    if isinstance(failure, HostSuspendError) and failure is not error:
        error.__cause__ = failure


def _with_directory(planning: Machine[Plan], settings: Settings) -> Machine[Plan]:
    """The plan, and if guests are to be saved, a directory that not everybody may read."""
    plan = yield from planning
    if any(entry.policy is Policy.SAVE for entry in plan.entries):
        path = settings.save_directory
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot be made: {error.strerror}", str(path)) from error
    return plan


def _nobody(_text: str) -> None:
    """Progress that nobody wants to hear of."""


def outcomes(domains: list[D], tasks: list[Task[T]]) -> dict[D, T | XenError]:
    """Each domain's result or error."""
    found: dict[D, T | XenError] = {}
    for domain, task in zip(domains, tasks):
        if task.error is None:
            found[domain] = task.result()
        elif isinstance(task.error, XenError):
            found[domain] = task.error
        else:  # a fault of xenpm's own must not cost the caller what became of the others
            failed = XenError(
                f"{domain.ref}: xenpm failed in the middle ({task.error!r}); look what state it is "
                "in, and report this"
            )
            failed.__cause__ = task.error
            found[domain] = failed
    return found
