"""One Xen host: the connection to it, and finding its domains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from .connection import DEFAULT_BACKEND_TIMEOUT, Connection, Reference
from .domain import DEFAULT_LATE_TIMEOUT, Domain
from .engine import Task
from .errors import XenError
from .ports import Ports
from .topology import Topology, read_topology
from .types import Resumption, Suspension

__all__ = ["Host"]

T = TypeVar("T")


class Host:
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

    @property
    def xen_version(self) -> tuple[int, int]:
        """The hypervisor's release as (major, minor): ``xc_version``."""
        return self._connection.ports.hypervisor.version()

    def domain(self, reference: Reference) -> Domain:
        """The domain that a domid, a name or a UUID means now.

        Raises:
            NoSuchDomain: no domain is called so.
        """
        return Domain._on(self._connection, reference)

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
            return _outcomes(chosen, tasks)
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
        return _outcomes(chosen, tasks)

    def _chosen(self, domains: Iterable[Domain]) -> list[Domain]:
        """The domains that a caller has named, each once; refuses what is not this host's."""
        chosen = list(domains)
        for domain in chosen:
            if not isinstance(domain, Domain):
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


def _outcomes(domains: list[Domain], tasks: list[Task[T]]) -> dict[Domain, T | XenError]:
    """Each domain's result or error."""
    outcomes: dict[Domain, T | XenError] = {}
    for domain, task in zip(domains, tasks):
        if task.error is None:
            outcomes[domain] = task.result()
        elif isinstance(task.error, XenError):
            outcomes[domain] = task.error
        else:  # a fault of xenpm's own must not cost the caller what became of the others
            failed = XenError(
                f"{domain.ref}: xenpm failed in the middle ({task.error!r}); look what state it is "
                "in, and report this"
            )
            failed.__cause__ = task.error
            outcomes[domain] = failed
    return outcomes
