"""The conformance suite on real Xen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

import xenpm
from tests.conformance import Api, Conformance
from xenpm import ShutdownReason

from .guest import Guest, run, until

SCENE = "faults"
pytestmark = pytest.mark.soak  # it makes guests anew all the time
STALLED_DISK = "stall-disk"  # the device-mapper device behind the guest "stall"
NAMES = ("victim-pv", "victim-pvh", "stall", "bystander")
GuestOf = Callable[[str], Guest]


class RealWorld:
    """`tests.conformance.World` in the lab."""

    def __init__(self, guest: GuestOf) -> None:
        self._guests = {name: guest(name) for name in NAMES}
        self._timers: list[threading.Timer] = []
        self._store = self._guests["stall"].store

    def read(self, path: str) -> bytes:
        return self._store.read(path)

    def write(self, path: str, value: bytes) -> None:
        self._store.write(path, value)

    def shut_down(self, name: str, reason: ShutdownReason) -> None:
        subject = self._guests[name]
        subject.control.shutdown(subject.domain.domid, int(reason))

    def destroy(self, name: str) -> None:
        subject = self._guests[name]
        domid = subject.domain.domid
        run("xl", "destroy", name)
        # xl is content with a domain that is about to go
        until(lambda: subject.control.domain_info(domid) is None, f"{name} does not go")

    def create(self, name: str) -> None:
        self._guests[name].create()

    def unharmed(self, name: str) -> AbstractContextManager[None]:
        return self._guests[name].unharmed()

    @contextmanager
    def stalled(self) -> Iterator[Callable[[], None]]:
        subject = self._guests["stall"]
        subject.command("freeze-timeout 60000")
        run("dmsetup", "suspend", "--noflush", "--nolockfs", STALLED_DISK)
        subject.command("stall")

        def release() -> None:
            run("dmsetup", "resume", STALLED_DISK)

        yield release
        release()

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, action)
        timer.start()
        self._timers.append(timer)

    def cancel_after(self, seconds: float, task: asyncio.Task[None]) -> None:
        asyncio.get_running_loop().call_later(seconds, task.cancel)

    def close(self) -> None:
        """Wait for what is still to happen, and make anew who is not as it was."""
        for timer in self._timers:
            timer.join()
        for subject in self._guests.values():
            try:
                whole = subject.domain.state is xenpm.DomainState.RUNNING
            except xenpm.NoSuchDomain:
                whole = False
            if not whole:
                subject.create()


@pytest.fixture
def world(guest: GuestOf) -> Iterator[RealWorld]:
    world = RealWorld(guest)
    yield world
    world.close()


class TestRealHost(Conformance):
    """The blocking API and asyncio's."""

    @pytest.fixture(params=["blocking", "asyncio"])  # dom0 has no uvloop
    def api(self, request: pytest.FixtureRequest) -> Iterator[Api]:
        api = Api(request.param)
        yield api
        api.close()
