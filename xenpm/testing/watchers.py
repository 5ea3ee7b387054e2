"""The processes of the toolstack that look after domains, or save them."""

from __future__ import annotations

from .calls import Port


class FakeWatchers(Port):
    """`xenpm.ports.Watchers` on the fake host: `FakeXen.held`; it outlives this connection."""

    def hold(self, domid: int, handle: bytes) -> bool:
        """Stop the one that looks after a domain, and wait until it stands."""
        with self._call("hold"):
            guest = self._xen.guests.get(domid)
            if self._xen.xl_is_misled and guest is not None and guest.watched:
                standing = self._xen.held.setdefault((domid, handle), self._xen.now_ns)
                return self._xen.now_ns >= standing + self._xen.stopping_ns
            return True

    def let_go(self, domid: int, handle: bytes) -> None:
        """Let it go on; what it finds then, it acts upon."""
        with self._call("let_go"):
            self._xen.held.pop((domid, handle), None)
            guest = self._xen.guests.get(domid)
            if guest is not None and guest.uuid.bytes == handle:
                guest.look_after()

    def held(self) -> list[tuple[int, bytes]]:
        """The domains whose are held."""
        with self._call("held"):
            return sorted(self._xen.held)

    def saver(self, domid: int, name: str) -> str:  # noqa: ARG002
        """Who saves a domain: `FakeXen.savers`."""
        with self._call("saver"):
            return self._xen.savers.get(domid, "")
