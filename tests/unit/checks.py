"""What must hold after every conversation, whatever it came to."""

from __future__ import annotations

from typing import Callable

from xenpm import Permission, XenError
from xenpm.testing import FakeGuest, FakeXen


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
    """No watch, lock, transaction or request is left, and no guest was harmed."""
    assert_released(xen)
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
