"""The conversation with one guest: every phase, every ending, and what is left after it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from uuid import UUID

import pytest

import xenpm
from xenpm import DomainType, Phase, ShutdownReason
from xenpm.errors import store_error
from xenpm.testing import MS, SECOND, STORE_REQUESTS, FakeGuest, FakeXen
from xenpm.testing.guests import CALLBACK_IRQ
from xenpm.testing.store import RELEASE_DOMAIN, FakeStore

from .checks import (
    assert_nothing_left,
    assert_released,
    assert_request_restored,
    assert_runs_on,
    outcome_of,
)

TIMEOUT = 1.0
LATE = 2.0
OTHER_UUID = UUID(int=0xBAD)


def destroy(guest: FakeGuest) -> None:
    guest.destroy()
    guest.xen.settle()


def suspend(host: xenpm.Host, name: str = "web") -> xenpm.Suspension:
    return host.domain(name).suspend(timeout=TIMEOUT, late_timeout=LATE)


# -- the good case


@pytest.mark.parametrize("kind", [DomainType.PV, DomainType.PVH])
def test_suspend_and_resume(xen: FakeXen, host: xenpm.Host, kind: DomainType) -> None:
    guest = xen.add_guest("web", type=kind, acknowledge_ns=2 * MS, suspend_ns=30 * MS)
    domain = host.domain("web")
    suspension = domain.suspend(lightweight=True)
    assert suspension == xenpm.Suspension(
        domain.ref, request_ns=0, acknowledge_ns=2 * MS, suspend_ns=30 * MS
    )
    assert suspension.total_ns == 32 * MS
    assert domain.info.suspended
    assert domain.info.state is xenpm.DomainState.SUSPENDED
    assert domain.shutdown_reason is ShutdownReason.SUSPEND
    assert_nothing_left(xen)

    resumption = domain.resume()
    assert resumption == xenpm.Resumption(
        domain.ref, cooperative=True, total_ns=0, reason=resumption.reason
    )
    assert kind.name in resumption.reason
    assert domain.state is xenpm.DomainState.RUNNING
    assert_runs_on(guest)
    assert (guest.suspensions, guest.resumptions) == (1, 1)


def test_every_cycle_is_like_the_first(xen: FakeXen, host: xenpm.Host) -> None:
    """Without XS_RESUME the second one would only be noticed at the deadline."""
    guest = xen.add_guest("web")
    domain = host.domain("web")
    durations = []
    for _ in range(5):
        durations.append(domain.suspend().total_ns)
        domain.resume()
    assert durations == [41 * MS] * 5
    assert_runs_on(guest)


def test_phases_are_timed_apart(xen: FakeXen, host: xenpm.Host) -> None:
    xen.call_ns = MS
    xen.add_guest("web", acknowledge_ns=100 * MS, suspend_ns=400 * MS)
    began = xen.now_ns
    suspension = suspend(host)
    assert 0 < suspension.request_ns < 20 * MS
    assert 80 * MS < suspension.acknowledge_ns < 120 * MS
    assert 380 * MS < suspension.suspend_ns < 420 * MS
    assert suspension.total_ns <= xen.now_ns - began


@pytest.mark.parametrize("how", ["writing", "deleting"])
def test_any_way_of_acknowledging(xen: FakeXen, host: xenpm.Host, how: str) -> None:
    """A node that the guest has deleted is put back, with its permissions."""
    guest = xen.add_guest("web", acknowledge_by=how)
    suspension = suspend(host)
    assert (suspension.acknowledge_ns, suspension.suspend_ns) == (1 * MS, 40 * MS)
    assert guest.suspended
    assert_nothing_left(xen)


def test_request_node_is_made_when_it_is_not_there(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    xen.toolstack.remove(guest.request_path)
    suspend(host)
    assert guest.suspended
    assert_nothing_left(xen)


@pytest.mark.parametrize("value", [None, b"", b"1"])
def test_unknown_feature_suspend_is_tried(
    xen: FakeXen, host: xenpm.Host, value: bytes | None
) -> None:
    guest = xen.add_guest("web", feature_suspend=value)
    suspend(host)
    assert guest.suspended


def test_all_at_once(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=0, suspend_ns=0)
    assert suspend(host).total_ns == 0
    assert guest.suspended


# -- the event channel of classic PV kernels


def test_asked_over_the_channel_that_it_offers(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", type=DomainType.PV)
    guest.offer_channel()
    suspension = suspend(host)
    assert (suspension.acknowledge_ns, suspension.suspend_ns) == (0, 40 * MS)
    assert xen.calls["write"] == 0, "the request was written, too"
    assert guest.suspended
    host.domain("web").resume()
    assert_runs_on(guest)


@pytest.mark.parametrize("value", [b"", b"0", b"x", b"131072", b"-3"])
def test_no_channel_offered(xen: FakeXen, host: xenpm.Host, value: bytes) -> None:
    guest = xen.add_guest("web")
    xen.toolstack.write(f"{guest.home}/device/suspend/event-channel", value)
    assert suspend(host).acknowledge_ns == MS


def test_channel_that_another_has(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    guest.offer_channel()
    xen.fail("suspend_evtchn_notify", errno.EBUSY)
    with pytest.raises(xenpm.SuspendInProgress, match="somebody else is using its event channel"):
        suspend(host)
    assert_runs_on(guest)


def test_number_that_is_no_channel(xen: FakeXen, host: xenpm.Host) -> None:
    """A guest may write there what it likes; it is asked in the usual way."""
    xen.add_guest("web").offer_channel()
    xen.fail("suspend_evtchn_notify", errno.EINVAL)
    assert suspend(host).acknowledge_ns == MS


def test_channel_of_one_that_is_asked_for_something_else(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    guest.offer_channel()
    xen.toolstack.write(guest.request_path, b"reboot")
    with pytest.raises(xenpm.SuspendInProgress, match="reboot"):
        suspend(host)
    assert xen.calls["suspend_evtchn_notify"] == 0


def test_asked_over_a_channel_and_late(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=2 * SECOND)
    guest.offer_channel()
    with pytest.raises(xenpm.SuspendNotCompleted) as caught:
        suspend(host)
    assert caught.value.resumed_late
    assert_runs_on(guest)


# -- refused, nothing touched


def test_gone(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    destroy(guest)
    for verb in (domain.suspend, domain.resume, domain.pause, domain.unpause):
        with pytest.raises(xenpm.NoSuchDomain, match=r"web \(domain 1\) is gone"):
            verb()
    with pytest.raises(xenpm.NoSuchDomain):
        _ = domain.state
    assert_nothing_left(xen)


def test_domid_of_another_by_now(xen: FakeXen, host: xenpm.Host) -> None:
    old = xen.add_guest("web")
    domain = host.domain("web")
    destroy(old)
    new = xen.add_guest("web", domid=old.domid, uuid=OTHER_UUID)
    for verb in (domain.suspend, domain.resume, domain.pause, domain.unpause):
        with pytest.raises(xenpm.NoSuchDomain):
            verb()
    new.suspend()
    with pytest.raises(xenpm.NoSuchDomain):
        domain.resume()
    assert new.suspended
    assert new.pause_count == 0
    assert xen.calls["write"] == 0
    assert_nothing_left(xen)


def test_already_suspended(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    suspend(host)
    before = xen.calls["write"]
    with pytest.raises(xenpm.AlreadySuspended, match="nobody is saving or migrating") as caught:
        suspend(host)
    assert caught.value.phase is Phase.IDLE
    assert guest.suspended
    assert xen.calls["write"] == before
    assert_nothing_left(xen)


@pytest.mark.parametrize("reason", [reason for reason in ShutdownReason if reason != 2])
def test_already_shut_down(xen: FakeXen, host: xenpm.Host, reason: ShutdownReason) -> None:
    xen.add_guest("web").shut_down(reason)
    with pytest.raises(xenpm.SuspendInterrupted) as caught:
        suspend(host)
    assert caught.value.reason is reason
    assert caught.value.phase is Phase.IDLE
    assert xen.calls["write"] == 0
    assert_nothing_left(xen)


def test_shut_down_for_a_reason_without_a_name(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web").shut_down(77)
    with pytest.raises(xenpm.SuspendInterrupted, match="77") as caught:
        suspend(host)
    assert caught.value.reason is None


def test_dying(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    guest.destroy(dying_ns=SECOND)
    xen.pass_time(0)
    assert domain.state is xenpm.DomainState.DYING
    with pytest.raises(xenpm.SuspendInterrupted, match="destroyed"):
        domain.suspend()
    assert xen.calls["write"] == 0


def refuses(xen: FakeXen, host: xenpm.Host, text: str) -> None:
    with pytest.raises(xenpm.SuspendNotSupported, match=text) as caught:
        suspend(host)
    assert caught.value.phase is Phase.IDLE
    assert xen.calls["write"] == 0
    assert_nothing_left(xen)


def test_kernel_that_cannot(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web", feature_suspend=b"0")
    refuses(xen, host, "feature-suspend")


def test_pvh_that_cannot_be_resumed(xen: FakeXen, host: xenpm.Host) -> None:
    """libxc sets the value that its suspend hypercall returns only when it has the interrupt."""
    xen.add_guest("web", hvm_params={CALLBACK_IRQ: 0})
    refuses(xen, host, "no interrupt for Xen's events")


def test_xenstore_domain(xen: FakeXen, host: xenpm.Host) -> None:
    """It answers no request while it is paused or suspended: the host would hang."""
    guest = xen.add_guest("web", runs_xenstore=True)
    refuses(xen, host, "runs xenstored")
    with pytest.raises(xenpm.XenError, match="runs xenstored"):
        host.domain("web").pause()
    assert guest.pause_count == 0


def test_stub_domain(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    xen.toolstack.write(f"{guest.home}/target", b"7")
    xen.calls.clear()
    refuses(xen, host, "stub domain that emulates devices for domain '7'")


def test_domain_0(xen: FakeXen, host: xenpm.Host) -> None:
    with pytest.raises(xenpm.SuspendNotSupported, match="sleeps with the machine"):
        host.domain(0).suspend()
    assert xen.calls["write"] == 0
    with pytest.raises(xenpm.NotSuspended):
        host.domain(0).resume()
    assert_nothing_left(xen)


@pytest.mark.parametrize("value", [b"suspend", b"poweroff", b"reboot", b"s3", b"\xff\0\x1b[2J"])
def test_foreign_request(xen: FakeXen, host: xenpm.Host, value: bytes) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    xen.toolstack.write(guest.request_path, value)
    with pytest.raises(xenpm.SuspendInProgress, match="somebody else") as caught:
        suspend(host)
    assert caught.value.phase is Phase.IDLE
    assert str(caught.value).isprintable()
    assert guest.request == value
    assert guest.running
    assert_released(xen)


@pytest.mark.parametrize("lightweight", [None, 0, 1, "yes"])
def test_light_or_heavy(xen: FakeXen, host: xenpm.Host, lightweight: object) -> None:
    xen.add_guest("web")
    with pytest.raises(TypeError, match="must be a bool"):
        host.domain("web").suspend(lightweight=lightweight)  # type: ignore[call-overload]
    assert xen.calls["write"] == 0


# -- requested


@pytest.mark.parametrize(
    ("timeout", "said"), [(0.5, "0.5 s"), (2, "2 s"), (3600, "3600 s"), (1234.5, "1234 s")]
)
def test_deadline_in_words(xen: FakeXen, host: xenpm.Host, timeout: float, said: str) -> None:
    xen.add_guest("web", acknowledge_ns=None)
    with pytest.raises(xenpm.SuspendNotAcknowledged, match=f"within {said};"):
        host.domain("web").suspend(timeout=timeout)


def test_never_acknowledged(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    with pytest.raises(xenpm.SuspendNotAcknowledged, match=r"within 1 s.*taken back") as caught:
        suspend(host)
    assert caught.value.domain == host.domain("web").ref
    assert caught.value.phase is Phase.REQUESTED
    assert caught.value.elapsed == TIMEOUT
    assert guest.suspensions == 0
    assert_runs_on(guest)

    guest.acknowledge_ns = 0
    suspend(host)  # nothing is left that would hinder the next attempt
    assert guest.suspended


def test_paused_guest(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    domain.pause()
    assert domain.state is xenpm.DomainState.PAUSED
    with pytest.raises(xenpm.SuspendNotAcknowledged, match="unpause it first"):
        suspend(host)
    domain.unpause()
    assert_runs_on(guest)  # it finds no request when it wakes up
    assert guest.suspensions == 0


def at_the_last_moment(
    xen: FakeXen, action: Callable[[], object], call: str = "transaction_end"
) -> None:
    """Do something inside the transaction that takes the request back."""
    xen.before(call, action, nth=2)  # the first one is the request's


@pytest.mark.parametrize("call", ["transaction_start", "write", "transaction_end"])
def test_acknowledged_at_the_last_moment(xen: FakeXen, host: xenpm.Host, call: str) -> None:
    """The request that is being taken back is taken: the guest will suspend after all."""
    guest = xen.add_guest("web", acknowledge_ns=None)
    at_the_last_moment(xen, guest.acknowledge, call)
    with pytest.raises(xenpm.SuspendNotCompleted, match="has been resumed") as caught:
        suspend(host)
    assert caught.value.resumed_late
    assert caught.value.elapsed == TIMEOUT + 0.04
    assert (guest.suspensions, guest.resumptions) == (1, 1)
    assert_runs_on(guest)


def test_acknowledged_by_deleting_at_the_last_moment(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None, acknowledge_by="deleting")
    at_the_last_moment(xen, guest.acknowledge)
    with pytest.raises(xenpm.SuspendNotCompleted) as caught:
        suspend(host)
    assert caught.value.resumed_late
    assert_runs_on(guest)


@pytest.mark.parametrize("what", ["crash", "power_off", "destroy", "reboot"])
def test_dead_at_the_last_moment(xen: FakeXen, host: xenpm.Host, what: str) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    at_the_last_moment(xen, getattr(guest, what))
    with pytest.raises(xenpm.SuspendInterrupted):
        suspend(host)
    xen.settle()
    assert_nothing_left(xen)


# -- acknowledged


def test_never_suspended(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=None)
    with pytest.raises(xenpm.SuspendNotCompleted, match=r"may yet suspend.*resume it") as caught:
        suspend(host)
    assert caught.value.phase is Phase.ACKNOWLEDGED
    assert caught.value.elapsed == TIMEOUT + LATE
    assert not caught.value.resumed_late
    assert_runs_on(guest)


def test_suspended_late(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=1500 * MS)
    with pytest.raises(xenpm.SuspendNotCompleted, match="longer timeout") as caught:
        suspend(host)
    assert caught.value.resumed_late
    assert caught.value.phase is Phase.SUSPENDED
    assert caught.value.elapsed == 1.501
    assert (guest.suspensions, guest.resumptions) == (1, 1)
    assert_runs_on(guest)
    assert host.domain("web").suspend(timeout=5).total_ns == 1501 * MS


@pytest.mark.parametrize("acknowledge_ns", [999 * MS, 1 * MS])
def test_suspended_at_the_deadline(xen: FakeXen, host: xenpm.Host, acknowledge_ns: int) -> None:
    """Shut down and deadline in the same moment: it has made it."""
    guest = xen.add_guest("web", acknowledge_ns=acknowledge_ns, suspend_ns=SECOND - acknowledge_ns)
    assert suspend(host).total_ns == SECOND
    assert guest.suspended
    assert_nothing_left(xen)


# -- a shutdown that fires no @releaseDomain, as when somebody forgot XS_RESUME


def forget_xs_resume(guest: FakeGuest) -> None:
    guest.xen.store.shut_down[guest.domid] = True


def test_missed_suspension_is_seen_at_the_deadline(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    forget_xs_resume(guest)
    assert suspend(host).total_ns == SECOND
    assert guest.suspended
    host.domain("web").resume()
    assert suspend(host).total_ns == 41 * MS, "resume did not tell xenstored"


def test_missed_late_suspension_is_seen_at_the_late_deadline(
    xen: FakeXen, host: xenpm.Host
) -> None:
    guest = xen.add_guest("web", suspend_ns=1500 * MS)
    forget_xs_resume(guest)
    with pytest.raises(xenpm.SuspendNotCompleted) as caught:
        suspend(host)
    assert caught.value.resumed_late
    assert caught.value.elapsed == TIMEOUT + LATE
    assert_runs_on(guest)


def test_missed_crash_is_seen_at_the_deadline(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=None)
    forget_xs_resume(guest)
    xen.after(500 * MS, guest.crash)
    with pytest.raises(xenpm.SuspendInterrupted):
        suspend(host)


# -- suspended by somebody else, who saves or migrates it: without taking our request


def assert_left_alone(guest: FakeGuest, outcome: object) -> None:
    assert isinstance(outcome, xenpm.SuspendInProgress)
    assert "somebody else is saving or migrating it" in str(outcome)
    assert "has been taken back" in str(outcome)
    assert guest.suspended
    assert guest.resumptions == 0, "it was resumed in the middle of somebody else's save"
    assert_nothing_left(guest.xen)


def test_saved_by_somebody_else(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_by="nothing")
    assert_left_alone(guest, outcome_of(lambda: suspend(host)))


def test_saved_by_somebody_else_at_the_deadline(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    forget_xs_resume(guest)
    xen.after(500 * MS, guest.suspend)
    assert_left_alone(guest, outcome_of(lambda: suspend(host)))


@pytest.mark.parametrize("call", ["transaction_start", "transaction_end"])
def test_saved_by_somebody_else_at_the_last_moment(
    xen: FakeXen, host: xenpm.Host, call: str
) -> None:
    """After the last look, while the request is taken back."""
    guest = xen.add_guest("web", acknowledge_ns=None)
    at_the_last_moment(xen, guest.suspend, call)
    assert_left_alone(guest, outcome_of(lambda: suspend(host)))


@pytest.mark.parametrize("name", ["domain_list", "check_watch"])
def test_saved_by_somebody_else_and_a_failure(xen: FakeXen, host: xenpm.Host, name: str) -> None:
    guest = xen.add_guest("web", acknowledge_by="nothing")
    xen.after(20 * MS, lambda: xen.fail(name, errno.EIO))
    assert_left_alone(guest, outcome_of(lambda: suspend(host)))


# -- death in each phase


PHASES = {  # when it dies, and in which phase that is
    "requested": (10 * MS, Phase.REQUESTED),
    "acknowledged": (500 * MS, Phase.ACKNOWLEDGED),
    "late": (1500 * MS, Phase.ACKNOWLEDGED),
}
DEATHS: dict[str, tuple[Callable[[FakeGuest], object], ShutdownReason | None]] = {
    "crash": (FakeGuest.crash, ShutdownReason.CRASH),
    "power_off": (FakeGuest.power_off, ShutdownReason.POWEROFF),
    "shut_down": (lambda guest: guest.shut_down(1), ShutdownReason.REBOOT),
    "watchdog": (lambda guest: guest.shut_down(4), ShutdownReason.WATCHDOG),
    "reboot": (FakeGuest.reboot, ShutdownReason.REBOOT),
    "destroy": (FakeGuest.destroy, None),
    "slow destroy": (lambda guest: guest.destroy(dying_ns=10 * SECOND), None),
}


@pytest.mark.parametrize("when", PHASES)
@pytest.mark.parametrize("how", DEATHS)
def test_death(xen: FakeXen, host: xenpm.Host, when: str, how: str) -> None:
    at, phase = PHASES[when]
    die, reason = DEATHS[how]
    guest = xen.add_guest("web", acknowledge_ns=100 * MS, suspend_ns=None)
    xen.after(at, lambda: die(guest))
    with pytest.raises(xenpm.SuspendInterrupted, match="while it was being suspended") as caught:
        suspend(host)
    # The toolstack destroys the nodes first, which looks like a guest that takes the request.
    assert caught.value.phase is phase
    assert caught.value.reason is reason
    assert caught.value.elapsed == at / SECOND
    xen.settle()
    assert not guest.running
    assert_released(xen)


@pytest.mark.parametrize("when", PHASES)
def test_reborn_under_the_same_domid(xen: FakeXen, host: xenpm.Host, when: str) -> None:
    """Another domain has got the domid within one moment: it is left alone."""
    at, _ = PHASES[when]
    old = xen.add_guest("web", acknowledge_ns=100 * MS, suspend_ns=None)

    def replace() -> None:
        old.destroy()
        xen.pass_time(0)
        xen.add_guest("db", domid=old.domid, uuid=OTHER_UUID).suspend()

    xen.after(at, replace)
    with pytest.raises(xenpm.SuspendInterrupted, match="destroyed"):
        suspend(host)
    xen.settle()
    new = xen.guests[old.domid]
    assert new.suspended, "somebody else's suspended domain was resumed"
    assert new.resumptions == 0
    assert_nothing_left(xen)


@pytest.mark.parametrize("when", PHASES)
def test_destroying_leaves_no_nodes(xen: FakeXen, host: xenpm.Host, when: str) -> None:
    """libxl removes a domain's nodes before it kills it: they must not be made again."""
    at, _ = PHASES[when]
    guest = xen.add_guest("web", acknowledge_ns=100 * MS, suspend_ns=None)
    xen.after(at, lambda: guest.destroy(teardown_ns=50 * MS))
    with pytest.raises(xenpm.SuspendInterrupted):
        suspend(host)
    assert [path for path in xen.store.nodes if path.startswith(guest.home)] == []


# -- calls that fail


def test_failure_before_the_request(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.fail("watch", errno.ENOSPC)
    with pytest.raises(xenpm.QuotaExceeded) as caught:
        domain.suspend()
    assert caught.value.call == "xs_watch"
    assert_runs_on(guest)
    assert guest.suspensions == 0


def test_failure_of_the_request(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    for name in ("transaction_start", "write", "transaction_end"):
        xen.fail(name, errno.EIO)
        with pytest.raises(xenpm.StoreError, match="Input/output error"):
            domain.suspend()
        assert_runs_on(guest)
    assert guest.suspensions == 0


def test_failure_while_requested_takes_the_request_back(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    xen.fail("domain_list", errno.ENOMEM)
    with pytest.raises(xenpm.SuspendError, match="taken back") as caught:
        domain.suspend()
    assert caught.value.phase is Phase.REQUESTED
    assert isinstance(caught.value.__cause__, xenpm.HypercallError)
    assert_runs_on(guest)


def test_failure_once_acknowledged_is_watched_over(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.after(20 * MS, lambda: xen.fail("check_watch", errno.EIO))
    xen.after(20 * MS, lambda: xen.store.fire(guest.request_path))
    with pytest.raises(xenpm.SuspendError, match="suspended all the same") as caught:
        domain.suspend()
    assert caught.value.phase is Phase.SUSPENDED
    assert isinstance(caught.value.__cause__, xenpm.StoreError)
    assert_nothing_left(xen)
    xen.settle()
    assert (guest.suspensions, guest.resumptions) == (1, 1)
    assert_runs_on(guest)


def test_failure_once_acknowledged_and_never_suspended(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=None)
    domain = host.domain("web")
    xen.after(20 * MS, lambda: xen.fail("check_watch", errno.EIO))
    xen.after(20 * MS, lambda: xen.store.fire(guest.request_path))
    with pytest.raises(xenpm.SuspendError, match="may yet suspend") as caught:
        domain.suspend()
    assert caught.value.phase is Phase.ACKNOWLEDGED
    assert_nothing_left(xen)
    assert_runs_on(guest)


def test_failure_once_suspended_resumes_it(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.fail("domain_list", errno.ENOMEM, nth=2)  # the first comes with the watch
    with pytest.raises(xenpm.SuspendError, match="suspended all the same, and has been resumed"):
        domain.suspend()
    assert (guest.suspensions, guest.resumptions) == (1, 1)
    assert_runs_on(guest)
    assert domain.suspend().total_ns == 41 * MS


def test_dead_store(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    for name in STORE_REQUESTS:
        xen.after(MS, lambda name=name: xen.fail(name, errno.EBADF, times=None))  # type: ignore[misc]
    with pytest.raises(xenpm.SuspendError, match=r"state is unknown.*may yet"):
        domain.suspend()
    assert xen.locks == {}
    assert guest.running


def test_failed_transaction_is_aborted(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    for name, nth in (("read", 2), ("write", 1)):
        xen.fail(name, errno.EIO, nth)
        with pytest.raises(xenpm.StoreError):
            domain.suspend()
        assert_runs_on(guest)


def test_failure_in_the_late_watch_does_not_make_it_longer(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=None)
    xen.after(2500 * MS, lambda: xen.fail("check_watch", errno.EIO))
    xen.after(2500 * MS, lambda: xen.store.fire(guest.request_path))
    with pytest.raises(
        xenpm.SuspendError, match=r"^web.*xs_check_watch.*may yet suspend"
    ) as caught:
        suspend(host)
    assert caught.value.elapsed == TIMEOUT + LATE
    assert_runs_on(guest)


def lose_answer(xen: FakeXen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next commit is made, and the answer to it is lost."""
    commit = FakeStore.transaction_end

    def transaction_end(store: FakeStore, transaction: int, abort: bool = False) -> None:
        monkeypatch.setattr(FakeStore, "transaction_end", commit)
        commit(store, transaction, abort)
        raise store_error("xs_transaction_end", errno.EIO)

    assert xen.calls["transaction_end"] == 0
    monkeypatch.setattr(FakeStore, "transaction_end", transaction_end)


def test_request_whose_answer_is_lost_is_taken_back(
    xen: FakeXen, host: xenpm.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = xen.add_guest("web", acknowledge_ns=100 * MS)
    lose_answer(xen, monkeypatch)
    with pytest.raises(xenpm.StoreError):
        suspend(host)
    assert_runs_on(guest)
    assert guest.suspensions == 0


def test_request_that_stands_is_told(
    xen: FakeXen, host: xenpm.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks with the commit: the request may stand, and nobody can look."""
    guest = xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    lose_answer(xen, monkeypatch)
    xen.fail("transaction_start", errno.EBADF, nth=2, times=None)
    with pytest.raises(xenpm.SuspendError, match="may yet suspend") as caught:
        domain.suspend()
    assert f"clear it: xenstore-write {guest.request_path} ''" in str(caught.value)
    assert guest.request == b"suspend"


def test_request_that_cannot_be_taken_back_is_told(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    xen.fail("transaction_end", errno.EAGAIN, nth=2, times=None)
    with pytest.raises(xenpm.SuspendError, match=r"changed 100 times.*may yet suspend") as caught:
        domain.suspend(timeout=1)
    assert type(caught.value) is xenpm.SuspendError
    assert f"clear it: xenstore-write {guest.request_path} ''" in str(caught.value)


def test_endless_conflicts(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.fail("transaction_end", errno.EAGAIN, times=None)
    with pytest.raises(xenpm.TransactionConflict, match="100 times"):
        domain.suspend()
    assert_runs_on(guest)


def test_conflicts_pass(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.fail("transaction_end", errno.EAGAIN, times=5)
    domain.suspend()
    assert guest.suspended
    assert_nothing_left(xen)


def test_foreign_request_in_the_middle_of_ours(xen: FakeXen, host: xenpm.Host) -> None:
    """Two ask in the same moment: one of them is refused by the conflict."""
    guest = xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    xen.before("transaction_end", lambda: xen.toolstack.write(guest.request_path, b"poweroff"))
    with pytest.raises(xenpm.SuspendInProgress, match="poweroff"):
        domain.suspend()
    assert guest.request == b"poweroff"


def test_late_guest_cannot_be_resumed(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=1500 * MS)
    xen.fail("resume", errno.EPERM)
    with pytest.raises(xenpm.ResumeError, match="is still suspended") as caught:
        suspend(host)
    assert isinstance(caught.value.__cause__, xenpm.NotPermitted)
    assert guest.suspended
    assert_nothing_left(xen)


@pytest.mark.parametrize(
    "name",
    [
        "domain_info",
        "domain_list",
        "hvm_param_get",
        "read",
        "write",
        "set_permissions",
        "transaction_start",
        "transaction_end",
        "watch",
        "check_watch",
    ],
)
def test_any_call_failing_once(name: str) -> None:
    """Either it suspends, or it runs on, or the error says that it may yet suspend."""
    failed = 0
    for code in (errno.EIO, errno.EPERM, errno.ENOSPC):
        for nth in range(1, 9):
            xen = FakeXen()
            guest = xen.add_guest("web", type=DomainType.PVH, acknowledge_by="deleting")
            domain = xenpm.Host(ports=xen.ports()).domain("web")
            xen.fail(name, code, nth)
            outcome = outcome_of(domain.suspend)
            xen.settle()
            if isinstance(outcome, xenpm.Suspension):
                assert guest.suspended
                assert_nothing_left(xen)
                continue
            failed += 1
            if "may yet suspend" not in str(outcome):
                assert guest.running
                assert guest.request != b"suspend"
            assert_released(xen)
    assert failed


def test_failed_unwatch_does_not_change_the_outcome(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.fail("unwatch", errno.EIO)
    domain.suspend()
    assert guest.suspended
    assert "could not remove a watch" in caplog.text
    assert xen.locks == {}
    domain.resume()
    domain.suspend()
    assert guest.suspended


def test_failed_unwatch_of_the_domains(xen: FakeXen, host: xenpm.Host) -> None:
    """The watch still stands: the next suspend must not ask for it again (EEXIST)."""
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.fail("unwatch", errno.EIO, nth=2)
    domain.suspend()
    assert [path for path, _ in xen.watches] == [RELEASE_DOMAIN]
    domain.resume()
    domain.suspend()
    assert guest.suspended


# -- resume


def test_resume_of_a_running_guest(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    with pytest.raises(xenpm.NotSuspended, match="not suspended but running"):
        host.domain("web").resume()
    assert guest.resumptions == 0
    guest.pause()
    with pytest.raises(xenpm.NotSuspended, match="paused"):
        host.domain("web").resume()
    guest.unpause()
    assert_runs_on(guest)


@pytest.mark.parametrize("reason", [reason for reason in ShutdownReason if reason != 2])
def test_resume_of_a_dead_guest(xen: FakeXen, host: xenpm.Host, reason: ShutdownReason) -> None:
    guest = xen.add_guest("web")
    guest.shut_down(reason)
    with pytest.raises(xenpm.NotSuspended):
        host.domain("web").resume()
    assert guest.resumptions == 0
    assert_nothing_left(xen)


def test_resume_of_what_is_being_destroyed(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    domain.suspend()
    guest.destroy(dying_ns=SECOND)
    xen.pass_time(0)
    with pytest.raises(xenpm.NotSuspended, match="dying"):
        domain.resume()
    assert guest.resumptions == 0


def test_resume_that_the_hypervisor_refuses(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    domain.suspend()
    xen.fail("resume", errno.EINVAL)
    with pytest.raises(xenpm.ResumeError, match="is still suspended"):
        domain.resume()
    assert guest.suspended
    assert_nothing_left(xen)
    domain.resume()
    assert_runs_on(guest)


def test_resume_that_xenstored_is_not_told_of(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    domain.suspend()
    xen.fail("resume_domain", errno.EIO)
    with pytest.raises(xenpm.ResumeError, match="runs again"):
        domain.resume()
    assert_runs_on(guest)


# -- suspended()


def test_suspended_block(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    with host.domain("web").suspended() as suspension:
        assert guest.suspended
        assert suspension.total_ns == 41 * MS
    assert guest.resumptions == 1
    assert_runs_on(guest)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_suspended_block_that_raises(
    xen: FakeXen, host: xenpm.Host, kind: type[BaseException]
) -> None:
    guest = xen.add_guest("web")
    with pytest.raises(kind), host.domain("web").suspended():
        raise kind
    assert guest.resumptions == 1
    assert_runs_on(guest)


def test_suspended_block_is_not_entered_on_failure(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    entered = False
    with pytest.raises(xenpm.SuspendNotAcknowledged), host.domain("web").suspended(timeout=1):
        entered = True
    assert not entered
    assert guest.resumptions == 0
    assert_runs_on(guest)


def test_suspended_block_in_which_it_goes(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    with pytest.raises(xenpm.NoSuchDomain), host.domain("web").suspended():
        destroy(guest)
    assert_nothing_left(xen)


def test_suspended_block_in_which_somebody_else_resumes_it(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    with pytest.raises(xenpm.NotSuspended), host.domain("web").suspended():
        host.domain("web").resume()
    assert guest.resumptions == 1
    assert_request_restored(guest)
