"""The fake host itself, where the other tests trust it to be as strict as Xen."""

from __future__ import annotations

import errno

import pytest

import xenpm
from xenpm.testing import MS, SECOND, FakeXen
from xenpm.testing.store import RELEASE_DOMAIN, StoreConnection


def test_guests_may_not_do_everything(xen: FakeXen) -> None:
    web, db = xen.add_guest("web"), xen.add_guest("db")
    inside = StoreConnection(xen.store, web.domid)
    inside.write(web.request_path, b"")
    assert inside.read(f"{web.home}/name") == b"web"
    for forbidden in (
        lambda: inside.write(f"{web.home}/name", b"root"),
        lambda: inside.write(f"{web.home}/new", b""),
        lambda: inside.read(f"{db.home}/name"),
        lambda: inside.write(db.request_path, b"suspend"),
        lambda: inside.remove(db.home),
        lambda: inside.set_permissions(db.request_path, []),
    ):
        with pytest.raises(xenpm.NotPermitted):
            forbidden()


def test_guest_takes_a_request_of_anybody(xen: FakeXen) -> None:
    guest = xen.add_guest("web", acknowledge_ns=2 * MS, suspend_ns=3 * MS)
    xen.toolstack.write(guest.request_path, b"suspend")
    xen.pass_time(1 * MS)
    assert guest.request == b"suspend"
    xen.pass_time(1 * MS)
    assert guest.request == b""
    xen.pass_time(2 * MS)
    assert guest.suspensions == 0
    xen.pass_time(1 * MS)
    assert guest.suspensions == 1


def test_guest_does_not_take_what_was_taken_back(xen: FakeXen) -> None:
    guest = xen.add_guest("web", acknowledge_ns=2 * MS)
    xen.toolstack.write(guest.request_path, b"suspend")
    xen.toolstack.write(guest.request_path, b"")
    xen.settle()
    assert guest.suspensions == 0


def test_paused_guest_goes_on_later(xen: FakeXen) -> None:
    guest = xen.add_guest("web", suspend_ns=10 * MS)
    xen.toolstack.write(guest.request_path, b"suspend")
    xen.pass_time(5 * MS)
    guest.pause()
    guest.pause()
    xen.pass_time(SECOND)
    guest.unpause()
    xen.settle()
    assert guest.suspensions == 0
    guest.unpause()
    xen.settle()
    assert guest.suspended


def test_wrong_resume_is_noticed() -> None:
    for cooperative in (True, False):
        xen = FakeXen()
        guest = xen.add_guest("web")
        if not cooperative:
            guest.suspend()
        xen.ports().hypervisor.resume(guest.domid, cooperative)
        assert guest.corrupted


def test_without_xs_resume_the_next_shutdown_fires_nothing(xen: FakeXen) -> None:
    guest = xen.add_guest("web")
    xen.toolstack.watch(RELEASE_DOMAIN, "token")
    ports = xen.ports()
    fired = []
    for tell_xenstored in (False, True, True):
        xen.toolstack.events.clear()
        guest.suspend()
        fired.append(len(xen.toolstack.events))
        ports.hypervisor.resume(guest.domid, True)
        if tell_xenstored:
            ports.store.resume_domain(guest.domid)
    assert fired == [1, 0, 1]


def test_reboot_is_another_domain(xen: FakeXen) -> None:
    old = xen.add_guest("web")
    old.reboot()
    xen.settle()
    assert old.gone
    (new,) = xen.guests.values()
    assert (new.name, new.uuid, new.domid) == ("web", old.uuid, old.domid + 1)


def test_conflict_only_over_what_was_looked_at(xen: FakeXen) -> None:
    one, two = StoreConnection(xen.store), StoreConnection(xen.store)
    for path in ("/a", "/b"):
        one.write(path, b"")
    transaction = one.transaction_start()
    one.read("/a", transaction)
    two.write("/b", b"1")
    one.transaction_end(transaction)
    transaction = one.transaction_start()
    one.read("/a", transaction)
    two.write("/a", b"1")
    with pytest.raises(xenpm.TransactionConflict):
        one.transaction_end(transaction)
    with pytest.raises(xenpm.NoSuchNode):
        one.transaction_end(transaction)


def test_failing_calls_are_counted_from_now(xen: FakeXen) -> None:
    hypervisor = xen.ports().hypervisor
    hypervisor.version()
    xen.fail("version", errno.EIO, nth=2, times=2)
    hypervisor.version()
    for _ in range(2):
        with pytest.raises(xenpm.HypercallError, match="xc_version"):
            hypervisor.version()
    hypervisor.version()
    assert xen.calls["version"] == 5


def test_time_passes_only_while_somebody_waits(xen: FakeXen) -> None:
    ports = xen.ports()
    began = ports.poller.now_ns()
    happened: list[int] = []
    xen.after(5 * MS, lambda: happened.append(xen.now_ns - began))
    assert ports.poller.now_ns() == began
    ports.poller.wait(ports.store.fileno(), 3 * MS)
    assert (ports.poller.now_ns() - began, happened) == (3 * MS, [])
    ports.poller.wait(ports.store.fileno(), 3 * MS)
    assert (ports.poller.now_ns() - began, happened) == (6 * MS, [5 * MS])
    ports.poller.wake()
    ports.poller.wait(ports.store.fileno(), SECOND)
    assert ports.poller.now_ns() - began == 6 * MS
