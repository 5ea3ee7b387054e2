"""The conformance suite on the fake host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conformance import Conformance
from xenpm import DomainType, ShutdownReason
from xenpm.testing import MS, SECOND, FakeGuest, FakeXen

from .checks import assert_nothing_left

KINDS = {
    "victim-pv": DomainType.PV,
    "victim-pvh": DomainType.PVH,
    "stall": DomainType.PV,
    "bystander": DomainType.PV,
}


class FakeWorld:
    """`tests.conformance.World` on the fake host."""

    def __init__(self, xen: FakeXen) -> None:
        self.xen = xen
        for name in KINDS:
            self.create(name)

    def guest(self, name: str) -> FakeGuest:
        return next(guest for guest in self.xen.guests.values() if guest.name == name)

    def read(self, path: str) -> bytes:
        return self.xen.toolstack.read(path)

    def write(self, path: str, value: bytes) -> None:
        self.xen.toolstack.write(path, value)

    def shut_down(self, name: str, reason: ShutdownReason) -> None:
        self.guest(name).shut_down(reason)

    def destroy(self, name: str) -> None:
        self.guest(name).destroy()
        self.xen.pass_time(0)

    def create(self, name: str) -> None:
        self.xen.add_guest(name, type=KINDS[name])

    @contextmanager
    def unharmed(self, name: str) -> Iterator[None]:
        guest = self.guest(name)
        yield
        self.xen.settle()
        assert self.guest(name) is guest
        assert guest.running
        assert guest.pause_count == 0

    @contextmanager
    def stalled(self) -> Iterator[Callable[[], None]]:
        stall = self.guest("stall")
        stall.suspend_ns = None

        def release() -> None:
            stall.suspend_ns = 40 * MS
            stall.suspend()

        yield release

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self.xen.after(round(seconds * SECOND), action)

    def cancel_after(self, seconds: float, task: asyncio.Task[None]) -> None:
        self.after(seconds, task.cancel)


@pytest.fixture
def world(xen: FakeXen) -> Iterator[FakeWorld]:
    yield FakeWorld(xen)
    assert_nothing_left(xen)


class TestFakeHost(Conformance):
    """The blocking API and asyncio's."""
