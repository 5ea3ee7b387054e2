"""What becomes of the host's domains, as it happens."""

from __future__ import annotations

from collections import deque

from .actions import Clock, ListDomains, Machine, Read, Wait, Watch
from .types import DomainEvent, DomainEventKind, DomainInfo, DomainRef

__all__ = ["Observer"]

_FOREVER_NS = 1 << 62
_LOOK_AGAIN_NS = 100_000_000  # nothing tells when a suspended domain is resumed
_WATCHES = ("@introduceDomain", "@releaseDomain")


class Observer:
    """What was last seen of all domains but domain 0."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, bytes], DomainRef] = {}
        self._suspended: set[DomainRef] = set()
        #: what has become of them and was not told yet; kept when a look is broken off
        self.events: deque[DomainEvent] = deque()

    def look(self) -> Machine[None]:
        """Look at all domains: `events` gets what has become of them since the last look."""
        infos: list[DomainInfo] = yield ListDomains()
        there = {
            (info.domid, info.handle): info for info in infos if info.domid != 0 and not info.dying
        }
        for key in [key for key in self._seen if key not in there]:
            domain = self._seen.pop(key)
            self._suspended.discard(domain)
            self.events.append(DomainEvent(DomainEventKind.GONE, domain))
        for key, info in there.items():
            if key not in self._seen:
                name: bytes | None = yield Read(f"/local/domain/{info.domid}/name")
                if name is None:  # being created, or gone meanwhile
                    continue
                self._seen[key] = DomainRef(*key, name.decode("utf-8", "surrogateescape"))
                self.events.append(DomainEvent(DomainEventKind.APPEARED, self._seen[key]))
            domain = self._seen[key]
            if info.suspended and domain not in self._suspended:
                self._suspended.add(domain)
                self.events.append(DomainEvent(DomainEventKind.SUSPENDED, domain))
            elif not info.suspended and domain in self._suspended:
                self._suspended.discard(domain)
                self.events.append(DomainEvent(DomainEventKind.RESUMED, domain))

    def wait(self, now: Clock) -> Machine[None]:
        """Wait until something has become of a domain since the last look."""
        for path in _WATCHES:
            yield Watch(path)
        yield from self.look()
        while not self.events:
            again = now() + _LOOK_AGAIN_NS if self._suspended else _FOREVER_NS
            yield Wait(None, again)
            yield from self.look()
