"""Many guests at once, from one thread, for a constant number of calls per guest."""

from __future__ import annotations

import errno
from typing import Any

import pytest

import xenpm
from xenpm.engine import Task
from xenpm.testing import HYPERCALLS, MS, SECOND, STORE_REQUESTS, FakeXen

from .checks import assert_nothing_left


def test_forty_guests(xen: FakeXen, host: xenpm.Host) -> None:
    """Each by its own script, all in the time of the slowest."""
    kinds = [xenpm.DomainType.PV, xenpm.DomainType.PVH]
    guests = [
        xen.add_guest(
            f"guest{i}",
            type=kinds[i % 2],
            acknowledge_ns=i * MS,
            suspend_ns=(40 - i) * 7 * MS,
            acknowledge_by=("writing", "deleting")[i // 2 % 2],
        )
        for i in range(40)
    ]
    domains = host.domains()
    began = xen.now_ns
    outcomes = host.suspend_each(domains)
    assert list(outcomes) == domains
    assert xen.now_ns - began == 280 * MS
    for i, (domain, outcome) in enumerate(outcomes.items()):
        assert outcome == xenpm.Suspension(
            domain.ref, request_ns=0, acknowledge_ns=i * MS, suspend_ns=(40 - i) * 7 * MS
        )
    assert all(guest.suspended for guest in guests)
    assert_nothing_left(xen)

    resumptions = host.resume_each(reversed(domains))
    assert list(resumptions) == domains[::-1]
    assert all(isinstance(outcome, xenpm.Resumption) for outcome in resumptions.values())
    assert all(guest.running for guest in guests)
    assert_nothing_left(xen)


def test_each_for_itself(xen: FakeXen, host: xenpm.Host) -> None:
    """No failure touches the others."""
    good = [xen.add_guest(f"good{i}") for i in range(3)]
    expected: dict[str, type[xenpm.XenError]] = {}

    def add(name: str, kind: type[xenpm.XenError], **script: Any) -> None:
        expected[name] = kind
        xen.add_guest(name, **script)

    add("deaf", xenpm.SuspendNotAcknowledged, acknowledge_ns=None)
    add("stuck", xenpm.SuspendNotCompleted, suspend_ns=None)
    add("late", xenpm.SuspendNotCompleted, suspend_ns=1500 * MS)
    add("unable", xenpm.SuspendNotSupported, feature_suspend=b"0")
    add("asleep", xenpm.AlreadySuspended)
    xen.guests[8].suspend()
    add("dead", xenpm.SuspendInterrupted)
    xen.guests[9].crash()
    add("dies", xenpm.SuspendInterrupted, suspend_ns=None)
    add("gone", xenpm.NoSuchDomain)
    domains = host.domains()
    xen.guests[11].destroy()
    xen.settle()

    xen.after(500 * MS, xen.guests[10].crash)
    outcomes = host.suspend_each(domains, timeout=1, late_timeout=1)
    for domain, outcome in outcomes.items():
        if domain.name in expected:
            assert type(outcome) is expected[domain.name], domain.name
        else:
            assert isinstance(outcome, xenpm.Suspension)
    assert all(guest.suspended for guest in good)
    late = outcomes[domains[5]]
    assert isinstance(late, xenpm.SuspendNotCompleted)
    assert late.resumed_late
    assert_nothing_left(xen)

    resumed = host.resume_each(domains)
    kinds = {domain.name: type(outcome) for domain, outcome in resumed.items()}
    assert {name for name, kind in kinds.items() if kind is xenpm.Resumption} == {
        *(guest.name for guest in good),
        "asleep",
    }
    assert kinds["gone"] is xenpm.NoSuchDomain
    assert kinds["stuck"] is xenpm.NotSuspended


def test_one_dies_while_the_others_suspend(xen: FakeXen, host: xenpm.Host) -> None:
    guests = [xen.add_guest(f"guest{i}") for i in range(10)]
    xen.after(20 * MS, guests[4].destroy)
    xen.after(20 * MS, guests[6].crash)
    outcomes = list(host.suspend_each(host.domains()).values())
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(xenpm.Suspension) == 8
    assert kinds[4] is kinds[6] is xenpm.SuspendInterrupted
    assert_nothing_left(xen)


def test_none_at_all(xen: FakeXen, host: xenpm.Host) -> None:
    assert host.domains() == []
    assert host.suspend_each([]) == {}
    assert host.resume_each([]) == {}
    assert_nothing_left(xen)


def test_the_same_twice_is_done_once(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    assert list(host.suspend_each([domain, host.domain(1), domain])) == [domain]
    assert guest.suspensions == 1
    assert list(host.resume_each([domain, domain])) == [domain]
    assert_nothing_left(xen)


def test_two_conversations_with_one_guest_exclude_each_other(
    xen: FakeXen, host: xenpm.Host
) -> None:
    """Also within one engine, which holds the locks of all its conversations."""
    guest = xen.add_guest("web")
    ref = host.domain("web").ref
    tasks: list[Task[xenpm.Suspension]] = []
    host._connection.suspend([ref, ref], 1, 1, tasks)
    first, second = tasks
    assert isinstance(first.result(), xenpm.Suspension)
    with pytest.raises(xenpm.SuspendInProgress, match="another process"):
        second.result()
    assert guest.suspended
    assert_nothing_left(xen)


@pytest.mark.parametrize("apart_ns", [0, MS])
def test_calls_per_guest_are_constant(apart_ns: int) -> None:
    """As many for each of forty guests as for each of five; one event costs one hypercall."""
    per_guest = {}
    for count in (5, 10, 40):
        xen = FakeXen()
        for i in range(count):
            xen.add_guest(f"guest{i}", acknowledge_ns=MS, suspend_ns=100 * MS + i * apart_ns)
        host = xenpm.Host(ports=xen.ports())
        domains = host.domains()
        xen.calls.clear()
        outcomes = host.suspend_each(domains)
        assert all(isinstance(outcome, xenpm.Suspension) for outcome in outcomes.values())
        calls = xen.calls.copy()
        # What comes once for all, and the looks for events, which are no requests.
        assert calls.pop("watch") - count == 1
        assert calls.pop("unwatch") - count == 1
        assert calls.pop("held") == 1
        assert calls.pop("check_watch") <= 8 * count + 4
        assert calls.pop("domain_list") <= count + 1
        assert calls.pop("wait") <= 3 * count + 2
        per_guest[count] = {name: number / count for name, number in calls.items()}
        hypercalls = sum(calls[name] for name in HYPERCALLS)
        requests = sum(calls[name] for name in STORE_REQUESTS)
        assert hypercalls <= 3 * count
        assert requests <= 12 * count
    assert per_guest[5] == per_guest[10] == per_guest[40]


def test_deadlines_are_each_guests_own(xen: FakeXen, host: xenpm.Host) -> None:
    """The late watch over one does not hold up the result of another."""
    xen.add_guest("deaf", acknowledge_ns=None)
    xen.add_guest("late", suspend_ns=1700 * MS)
    xen.add_guest("good", suspend_ns=300 * MS)
    began = xen.now_ns
    deaf, late, good = host.suspend_each(host.domains(), timeout=1, late_timeout=9).values()
    assert isinstance(deaf, xenpm.SuspendNotAcknowledged)
    assert deaf.elapsed == 1.0
    assert isinstance(late, xenpm.SuspendNotCompleted)
    assert late.elapsed == 1.701
    assert isinstance(good, xenpm.Suspension)
    assert good.total_ns == 301 * MS
    assert xen.now_ns - began == 1701 * MS < SECOND * 2


# -- arguments, and faults that are nobody's


@pytest.mark.parametrize("wrong", ["web", 1, None, object()])
@pytest.mark.parametrize("verb", ["suspend_each", "resume_each"])
def test_only_domains(xen: FakeXen, host: xenpm.Host, verb: str, wrong: object) -> None:
    web = xen.add_guest("web")
    domain = host.domain("web")
    xen.calls.clear()
    with pytest.raises(TypeError, match=f"must be xenpm.Domain objects.*{type(wrong).__name__}"):
        getattr(host, verb)([domain, wrong])
    assert not xen.calls
    assert web.running


@pytest.mark.parametrize("verb", ["suspend_each", "resume_each"])
def test_only_domains_of_this_host(xen: FakeXen, host: xenpm.Host, verb: str) -> None:
    xen.add_guest("web")
    xen.add_guest("db")
    elsewhere = xenpm.Host(ports=FakeXen().ports()).domain(0)
    with xenpm.Host(ports=xen.ports()) as closed:
        over = closed.domain("db")
    for foreign in (elsewhere, over):
        domains = [host.domain("web"), foreign]
        xen.calls.clear()
        with pytest.raises(ValueError, match="another connection to Xen"):
            getattr(host, verb)(domains)
        assert not xen.calls


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOLCK, "no locks"), MemoryError(), xenpm.XenError("no lock")]
)
def test_fault_at_one_guest_loses_no_outcome(
    xen: FakeXen, host: xenpm.Host, fault: Exception
) -> None:
    guests = [xen.add_guest(f"guest{i}") for i in range(3)]

    def fail() -> None:
        raise fault

    xen.before("acquire", fail, nth=2)
    first, second, third = host.suspend_each(host.domains()).values()
    assert isinstance(first, xenpm.Suspension)
    assert isinstance(third, xenpm.Suspension)
    assert isinstance(second, xenpm.XenError)
    assert fault in (second, second.__cause__)
    assert [guest.suspended for guest in guests] == [True, False, True]


def test_lock_that_cannot_be_given_back_loses_no_outcome(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    guests = [xen.add_guest(f"guest{i}") for i in range(3)]

    def fail() -> None:
        raise xenpm.XenError("no")

    xen.before("release", fail)
    outcomes = host.suspend_each(host.domains())
    assert all(isinstance(outcome, xenpm.Suspension) for outcome in outcomes.values())
    assert all(guest.suspended for guest in guests)
    assert "could not give a lock back" in caplog.text


def test_failing_wait_puts_all_back(xen: FakeXen, host: xenpm.Host) -> None:
    """poll(2) itself fails: no guest stays suspended, and the host can be used again."""
    quick = xen.add_guest("quick")
    slow = xen.add_guest("slow", acknowledge_ns=500 * MS)

    def fail() -> None:
        raise OSError(errno.ENOMEM, "no memory")

    xen.before("wait", fail, nth=4)
    with pytest.raises(OSError, match="no memory"):
        host.suspend_each(host.domains())
    xen.settle()
    assert quick.resumptions == quick.suspensions == 1
    assert slow.suspensions == 0
    assert_nothing_left(xen)
    host.suspend_each(host.domains())
    assert quick.suspended


def test_wait_that_fails_for_good(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    """No lock is left, and the guest that nobody watches any more is named."""
    guest = xen.add_guest("web", acknowledge_ns=0, suspend_ns=None)

    def fail() -> None:
        raise OSError(errno.ENOMEM, "no memory")

    xen.before("wait", fail, nth=3, times=None)
    with pytest.raises(OSError, match="no memory"):
        host.domain("web").suspend()
    assert "web (domain 1): no longer watched over; it may yet suspend" in caplog.text
    assert xen.locks == {}
    xen.stop_failing()
    guest.suspend_ns = 0
    host.domain("web").suspend()
    assert guest.suspended
