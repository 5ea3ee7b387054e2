"""What becomes of the domains: appeared, suspended, resumed, gone, whoever did it."""

from __future__ import annotations

import errno
import itertools
import signal
from types import FrameType
from uuid import UUID

import pytest

import xenpm
from xenpm import DomainEventKind
from xenpm.testing import MS, SECOND, FakeXen

from .checks import assert_released


def told(host: xenpm.Host, count: int) -> list[str]:
    return [str(event) for event in itertools.islice(host.events(), count)]


def test_what_others_do(xen: FakeXen, host: xenpm.Host) -> None:
    old = xen.add_guest("old")
    xen.after(1 * SECOND, lambda: xen.add_guest("new"))
    xen.after(2 * SECOND, old.suspend)
    xen.after(5 * SECOND, lambda: xen.ports().hypervisor.resume(old.domid, True))
    xen.after(6 * SECOND, old.destroy)
    events = host.events()
    began = xen.now_ns
    assert [str(event) for event in itertools.islice(events, 4)] == [
        "new (domain 2): appeared",
        "old (domain 1): suspended",
        "old (domain 1): resumed",
        "old (domain 1): gone",
    ]
    assert xen.now_ns == began + 6 * SECOND
    assert_released(xen)


def test_resume_is_seen_soon(xen: FakeXen, host: xenpm.Host) -> None:
    """Nothing in xenstore tells of it."""
    web = xen.add_guest("web")
    events = host.events()
    web.suspend()
    assert next(events).kind is DomainEventKind.SUSPENDED
    xen.after(250 * MS, lambda: web.resume(True))
    began = xen.now_ns
    assert next(events).kind is DomainEventKind.RESUMED
    assert 250 * MS <= xen.now_ns - began <= 400 * MS


def test_nobody_suspended_nobody_looked_at(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.after(3600 * SECOND, lambda: xen.add_guest("db"))
    events = host.events()
    xen.calls.clear()
    next(events)
    assert xen.calls["domain_list"] <= 4


def test_beginning_is_the_call(xen: FakeXen, host: xenpm.Host) -> None:
    """Not the first look at the iterator; and what was there before is not told."""
    xen.add_guest("old")
    xen.add_guest("asleep").suspend()
    events = host.events()
    xen.add_guest("new")
    assert str(next(events)) == "new (domain 3): appeared"


def test_domain_without_a_name_yet(xen: FakeXen, host: xenpm.Host) -> None:
    """libxl makes the domain first, then names it, then has it introduced."""
    events = host.events()
    guest = xen.add_guest("web")
    xen.toolstack.remove(f"{guest.home}/name")

    def introduce() -> None:
        xen.toolstack.write(f"{guest.home}/name", b"web")
        xen.store.fire("@introduceDomain")

    xen.after(SECOND, introduce)
    assert str(next(events)) == "web (domain 1): appeared"


def test_reused_domid(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web", domid=7)
    events = host.events()
    web.destroy()
    xen.settle()
    xen.add_guest("db", domid=7, uuid=UUID(int=7))
    assert [str(event) for event in itertools.islice(events, 2)] == [
        "web (domain 7): gone",
        "db (domain 7): appeared",
    ]


def test_dying_is_gone(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    events = host.events()
    xen.after(SECOND, lambda: web.destroy(dying_ns=60 * SECOND))
    assert next(events).kind is DomainEventKind.GONE
    assert xen.now_ns < 30 * SECOND
    xen.after(SECOND, lambda: xen.add_guest("db"))
    assert next(events).domain.name == "db"


def test_between_two_events_all_else_can_be_done(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    events = host.events()
    host.domain("web").suspend()
    assert next(events).kind is DomainEventKind.SUSPENDED
    host.domain("web").resume()
    assert next(events).kind is DomainEventKind.RESUMED


def test_interrupted(xen: FakeXen, host: xenpm.Host) -> None:
    class Alarm(Exception):
        pass

    def handler(_signum: int, _frame: FrameType | None) -> None:
        raise Alarm

    xen.add_guest("web")
    events = host.events()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        xen.after(SECOND, lambda: signal.raise_signal(signal.SIGALRM))
        with pytest.raises(Alarm):
            next(events)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert_released(xen)


@pytest.mark.parametrize("call", ["domain_list", "read", "watch", "check_watch"])
def test_failed_call_is_told(call: str, xen: FakeXen, host: xenpm.Host) -> None:
    events = host.events()
    xen.add_guest("web")
    xen.fail(call, errno.EIO, times=None)
    with pytest.raises((xenpm.HypercallError, xenpm.StoreError)):
        list(itertools.islice(events, 2))
    xen.stop_failing()
    assert_released(xen)


@pytest.mark.parametrize("call", ["domain_list", "read"])
def test_failed_call_loses_nothing(call: str, xen: FakeXen, host: xenpm.Host) -> None:
    old = xen.add_guest("old")
    events = host.events()
    old.destroy()
    xen.settle()
    new = xen.add_guest("new")
    xen.fail(call, errno.EIO)
    with pytest.raises(xenpm.XenError):
        next(events)
    xen.after(SECOND, new.suspend)
    assert [str(event) for event in itertools.islice(events, 3)] == [
        "old (domain 1): gone",
        "new (domain 2): appeared",
        "new (domain 2): suspended",
    ]


def test_waiting_for_nothing_fails_a_test(xen_host: FakeXen) -> None:
    xen_host.add_guest("web")
    with xenpm.Host() as host, pytest.raises(AssertionError, match="nothing is going to happen"):
        next(host.events())
