"""One Xen host: the connection to it, and finding its domains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from .connection import Connection, Reference
from .domain import DEFAULT_LATE_TIMEOUT, DEFAULT_TIMEOUT, Domain
from .engine import Task
from .errors import XenError
from .ports import Ports
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
    """

    def __init__(self, *, ports: Ports | None = None) -> None:
        self._connection = Connection(ports)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; closing it again does nothing."""
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
        return Domain(reference, connection=self._connection)

    def domains(self) -> list[Domain]:
        """All domains but domain 0, by rising domid: ``xc_domain_getinfolist``."""
        return [
            Domain(ref, connection=self._connection)
            for ref in self._connection.domains()
            if ref.domid != 0
        ]

    def suspend_each(
        self,
        domains: Iterable[Domain],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        late_timeout: float = DEFAULT_LATE_TIMEOUT,
    ) -> dict[Domain, Suspension | XenError]:
        """Suspend several guests lightly, all at once, each for itself.

        Like `Domain.suspend`, but one guest's failure neither stops nor undoes the others.  Only an
        interruption (Ctrl-C, any signal handler that raises) undoes all.

        Args:
            domains: which; all of this host.  One that is named twice is suspended once.
            timeout: seconds that each guest has.
            late_timeout: seconds to watch over a guest that took the request and missed that.

        Returns:
            For each domain its result, or the exception that `Domain.suspend` would have raised.
        """
        chosen = list(dict.fromkeys(domains))
        refs = [domain.ref for domain in chosen]
        return _outcomes(chosen, self._connection.suspend(refs, timeout, late_timeout))

    def resume_each(self, domains: Iterable[Domain]) -> dict[Domain, Resumption | XenError]:
        """Resume several suspended guests, each for itself, like `Domain.resume`.

        Args:
            domains: which; all of this host.

        Returns:
            For each domain its result, or the exception that `Domain.resume` would have raised.
        """
        chosen = list(dict.fromkeys(domains))
        return _outcomes(chosen, self._connection.resume([domain.ref for domain in chosen]))


def _outcomes(domains: list[Domain], tasks: list[Task[T]]) -> dict[Domain, T | XenError]:
    """Each domain's result or error; raises what is neither."""
    outcomes: dict[Domain, T | XenError] = {}
    for domain, task in zip(domains, tasks):
        try:
            outcomes[domain] = task.result()
        except XenError as error:
            outcomes[domain] = error
    return outcomes
