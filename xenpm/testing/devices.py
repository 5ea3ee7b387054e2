"""Split devices with their backends, PCI devices, and the PCI bus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .calls import Port
from .clock import MS
from .store import StoreConnection

if TYPE_CHECKING:
    from .guests import FakeGuest
    from .host import FakeXen

INITIALISING, INIT_WAIT, CONNECTED, CLOSED = b"1", b"2", b"4", b"6"  # of public/io/xenbus.h


class FakeBackend:
    """One device's backend driver, in domain 0 or a driver domain: follows the frontend's states.

    Attributes:
        close_ns: how long it takes for each state; None: it does nothing any more.
        busy_until_ns: until then it works at requests, and keeps the ring when it closes.
        connect_ns: how long it takes to connect anew; None: for ever.
    """

    def __init__(
        self,
        guest: FakeGuest,
        server: int,
        frontend: str,
        path: str,
        port: int,
        *,
        close_ns: int | None = 1 * MS,
        busy_until_ns: int = 0,
        connect_ns: int | None = 0,
    ) -> None:
        self.guest, self.server, self.frontend, self.path = guest, server, frontend, path
        self.port = port
        self.close_ns, self.busy_until_ns = close_ns, busy_until_ns
        self.connect_ns = connect_ns
        self._woken = False
        self._connection = StoreConnection(guest.xen.store, server, self._changed)
        self._connection.watch(f"{frontend}/state", "state")

    @property
    def state(self) -> bytes:
        """Its own state; empty once its domain is gone."""
        node = self.guest.xen.store.nodes.get(f"{self.path}/state")
        return b"" if node is None else node.value

    def frontend_starts(self, guest: FakeGuest) -> None:
        """The frontend connects: this must be able to."""
        if self.guest.xen.now_ns < self.busy_until_ns:
            guest.corrupted = f"{self.path} still writes to its memory"
        elif self.state not in (INITIALISING, INIT_WAIT):
            guest.corrupted = f"started over while {self.path} is {self.state!r}"
        port = guest.allocate_channel()
        guest.channels[port] = self.server
        self.port = port
        guest.xen.toolstack.write(f"{self.frontend}/event-channel", b"%d" % port)
        if self.connect_ns == 0:
            self._connect()
        elif self.connect_ns is not None:
            guest.xen.after(self.connect_ns, self._connect)

    def _connect(self) -> None:
        for path in (self.path, self.frontend):
            if f"{path}/state" in self.guest.xen.store.nodes:
                self.guest.xen.toolstack.write(f"{path}/state", CONNECTED)

    def _changed(self) -> None:
        self._connection.events.clear()
        self.guest.ring_bytes += 100  # which its frontend and its watch of the backend cost
        if self.close_ns is not None and not self._woken:
            self._woken = True
            self.guest.xen.after(self.close_ns, self._follow)

    def _follow(self) -> None:
        self._woken = False
        xen = self.guest.xen
        node = xen.store.nodes.get(f"{self.frontend}/state")
        if node is None or f"{self.path}/state" not in xen.store.nodes:
            return
        if node.value == CLOSED and self.state != CLOSED:
            if xen.now_ns >= self.busy_until_ns and self.port in self.guest.channels:
                self.guest.channels[self.port] = None
            xen.toolstack.write(f"{self.path}/state", CLOSED)
        elif node.value == INITIALISING and self.state == CLOSED:
            xen.toolstack.write(f"{self.path}/state", INIT_WAIT)


@dataclass
class FakeCard:
    """A PCI Express network card, whose driver quiesces it in a suspension and brings it back.

    Attributes:
        interrupts: what its driver uses when it is up: "msi-x", "msi", "intx".
        up: whether the driver has it switched on.
        present: whether it answers at all.
        back_ns: how long the driver takes for bringing it back; None: for ever.
        back_with: the interrupts that it comes back with; None: the same.
        lanes: of its link.
    """

    interrupts: str = "msi-x"
    up: bool = True
    present: bool = True
    back_ns: int | None = 200 * MS
    back_with: str | None = None
    lanes: int = 4

    @property
    def config(self) -> bytes:
        """Its configuration space."""
        space = bytearray(b"\xff" * 256)
        if not self.present:
            return bytes(space)
        space[:] = bytes(256)
        intx = self.up and self.interrupts == "intx"
        words = {
            0x00: 0x8086,
            0x02: 0x10D3,
            0x04: (0x7 if self.up else 0) | (0 if intx or not self.up else 0x400),
            0x06: 0x10,
            0xC8: 0xD001,  # power management, next at 0xd0
            0xD0: 0xE005,  # MSI
            0xD2: 1 if self.up and self.interrupts == "msi" else 0,
            0xE0: 0xA010,  # PCI Express
            0xF2: self.lanes << 4 | 1,
            0xA0: 0x0011,  # MSI-X, the last
            0xA2: 0x8000 if self.up and self.interrupts == "msi-x" else 0,
        }
        for at, word in words.items():
            space[at : at + 2] = word.to_bytes(2, "little")
        space[0x34], space[0x3D] = 0xC8, 1 if intx else 0
        return bytes(space)

    def sleep(self) -> None:
        """The driver's suspend."""
        self.up = False

    def wake(self, xen: FakeXen) -> None:
        """The driver's resume begins."""

        def back() -> None:
            self.up = True
            self.interrupts = self.back_with or self.interrupts

        if self.back_ns is not None:
            xen.after(self.back_ns, back)


class FakePci(Port):
    """`xenpm.ports.PciBus` on the fake host."""

    def config(self, address: str) -> bytes | None:
        """A device's configuration space; None when it is not there."""
        with self._call("config"):
            card = self._xen.cards.get(address)
            return None if card is None else card.config
