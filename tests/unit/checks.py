"""What must hold after every conversation, whatever it came to; and processes that are killed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

from xenpm import Host, Permission, Settings, XenError
from xenpm.hooks import Hook
from xenpm.testing import FakeGuest, FakeXen


class Killed(BaseException):
    """SIGKILL: nothing of xenpm runs after it."""


def killed(
    xen: FakeXen, settings: Settings, name: str, nth: int, hooks: Sequence[Hook] = ()
) -> bool:
    """Run a host suspend and kill it before the nth call of a name; whether it came so far."""
    ports = xen.ports()
    host = Host(ports=ports)
    engine = host._connection._engine

    def kill() -> None:
        # as SIGKILL does: locks and connections are closed by the kernel, nothing else happens
        engine._tasks.clear()
        raise Killed

    xen.before(name, kill, nth=nth)
    came_so_far = False
    try:
        host.suspend(settings=settings, hooks=hooks)
    except Killed:
        came_so_far = True
    xen.stop_failing()
    for part in (ports.store, ports.hypervisor, ports.locks):
        part.close()
    return came_so_far


def outcome_of(verb: Callable[[], object]) -> object:
    """What the verb returns, or the `XenError` that it raises."""
    try:
        return verb()
    except XenError as error:
        return error


def assert_released(xen: FakeXen) -> None:
    """No watch, lock or transaction is left."""
    assert xen.watches == []
    assert xen.locks == {}
    assert xen.open_transactions == 0


def assert_nothing_left(xen: FakeXen) -> None:
    """No watch, lock, transaction or request is left, and no guest was harmed or forgotten."""
    assert_released(xen)
    for domid, _ in xen.held:
        assert xen.guests[domid].suspended, "a process of xl is held for nothing"
    for guest in xen.guests.values():
        assert not guest.corrupted, f"{guest.name}: {guest.corrupted}"
        if guest.running or guest.suspended:
            assert_request_restored(guest)


def assert_request_restored(guest: FakeGuest) -> None:
    """``control/shutdown`` is as the toolstack made it."""
    assert guest.request == b"", guest.name
    node = guest.xen.store.nodes[guest.request_path]
    assert node.permissions == (Permission(guest.domid, read=False, write=False),)


def assert_runs_on(guest: FakeGuest) -> None:
    """The guest runs, and goes on running whatever is still to happen; nothing is left."""
    guest.xen.settle()
    assert guest.running
    assert_nothing_left(guest.xen)
