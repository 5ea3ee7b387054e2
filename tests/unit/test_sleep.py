"""A host suspend as a whole, on a fake host: order, failure, undoing, recovery, health."""

from __future__ import annotations

import errno
import itertools
import signal
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

import xenpm
from xenpm import Outcome, Policy, Rule, Settings, protocol
from xenpm.devices import used_by
from xenpm.hooks import HookEvent, HookPoint
from xenpm.testing import MS, SECOND, FakeGuest, FakeXen
from xenpm.testing.devices import CLOSED
from xenpm.testing.guests import CALLBACK_IRQ
from xenpm.testing.models import ACPI_S_STATE

from .checks import killed

pytestmark = pytest.mark.usefixtures("nothing_installed")


def drivers(xen: FakeXen) -> tuple[FakeGuest, FakeGuest, FakeGuest]:
    """A guest that uses two driver domains, of which one uses the other."""
    net = xen.add_guest("net")
    store = xen.add_guest("store")
    web = xen.add_guest("web")
    net.give_card("0000:00:10.0")
    store.give_device("vif", 0, server=net.domid)
    web.give_device("vbd", 51712, server=store.domid)
    web.give_device("vif", 0, server=net.domid)
    return net, store, web


class Story:
    """In which order the guests went down and came up, and the machine slept."""

    def __init__(self, xen: FakeXen) -> None:
        self.events: list[str] = []
        for guest in xen.guests.values():
            self._follow(guest)
        xen.before("sleep", lambda: self.events.append("sleep"))

    def _follow(self, guest: FakeGuest) -> None:
        suspend, resume = guest.suspend, guest.resume

        def down() -> None:
            self.events.append(f"-{guest.name}")
            suspend()

        def up(cooperative: bool) -> None:
            self.events.append(f"+{guest.name}")
            resume(cooperative)

        guest.suspend, guest.resume = down, up  # type: ignore[method-assign]


def outcomes(report: xenpm.Report) -> dict[str, Outcome]:
    return {each.domain.name: each.outcome for each in report.domains.values()}


def assert_all_run(xen: FakeXen) -> None:
    for guest in xen.guests.values():
        assert guest.running, guest.name
        assert not guest.pause_count, guest.name
        assert guest.request == b"", guest.name
    assert not xen.journal
    assert not xen.locks
    assert xen.watches == []


# -- the plan


def test_plan(xen: FakeXen, host: xenpm.Host) -> None:
    net, store, web = drivers(xen)
    deaf = xen.add_guest("deaf", feature_suspend=b"0")
    hvm = xen.add_guest("hvm", type=xenpm.DomainType.HVM)
    xen.add_guest("bare", type=xenpm.DomainType.HVM, hvm_params={CALLBACK_IRQ: 0})
    xen.add_guest("asleep", type=xenpm.DomainType.HVM, hvm_params={ACPI_S_STATE: 3})
    paused = xen.add_guest("paused")
    paused.pause()
    plan = host.plan()
    told = {each.domain.name: (each.policy, each.on_failure) for each in plan.entries}
    pause, undo = xenpm.OnFailure.PAUSE, xenpm.OnFailure.UNDO
    assert told == {
        "net": (Policy.SUSPEND, undo),
        "store": (Policy.SUSPEND, undo),
        "web": (Policy.SUSPEND, pause),
        "deaf": (Policy.PAUSE, pause),
        "hvm": (Policy.SUSPEND, pause),
        "bare": (Policy.PAUSE, pause),
        "asleep": (Policy.PAUSE, pause),
        "paused": (Policy.LEAVE, pause),
    }
    assert [[ref.name for ref in step] for step in plan.steps] == [
        ["web", "deaf", "hvm", "bare", "asleep"], ["store"], ["net"],
    ]  # fmt: skip
    by_name = {each.domain.name: each for each in plan.entries}
    assert by_name["net"].after == (store.domid, web.domid)
    assert by_name["web"].needs == (net.domid, store.domid)
    assert by_name["paused"].reason == "is paused already"
    assert by_name["bare"].reason == "is an HVM guest without PV drivers"
    assert by_name["asleep"].reason == "sleeps by itself (ACPI S3)"
    assert "owns 0000:00:10.0" in by_name["net"].reason
    assert str(plan).splitlines()[1].split()[:4] == ["1", "web", "(domain", "3)"]
    assert not plan.refusals
    assert deaf.suspensions == hvm.suspensions == 0


def test_who_is_heard_first(xen: FakeXen, host: xenpm.Host) -> None:
    guests = [xen.add_guest(name) for name in ("a", "b", "c")]
    settings = Settings(default=Rule(Policy.PAUSE, timeout=7))
    for guest in guests[:2]:
        xen.toolstack.write(f"{guest.home}/xenpm/policy", b"leave")
    rules = {host.domain("a"): Rule(Policy.SUSPEND)}
    entries = host.plan(rules=rules, settings=settings).entries
    assert [each.policy for each in entries] == [Policy.SUSPEND, Policy.LEAVE, Policy.PAUSE]
    assert [each.timeout for each in entries] == [7, 7, 7]
    assert [each.reason for each in entries[1:]] == [
        "its xenpm/policy in xenstore says so",
        "the configuration says so",
    ]


def test_nonsense_in_xenstore_is_refused(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    xen.toolstack.write(f"{guest.home}/xenpm/policy", b"sleep")
    with pytest.raises(xenpm.ConfigError, match="/local/domain/1/xenpm/policy"):
        host.suspend()
    assert guest.suspensions == 0


def test_stub_domain_shares_its_guests_fate(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("hvm", type=xenpm.DomainType.HVM)
    stub = xen.add_guest("hvm-dm")
    xen.toolstack.write(f"{stub.home}/target", b"%d" % guest.domid)
    first, second = host.plan().entries
    assert (first.policy, second.policy) == (Policy.SUSPEND, Policy.PAUSE)
    assert second.after == (first.domain.domid,)
    rules = {host.domain("hvm"): Rule(Policy.LEAVE)}
    assert host.plan(rules=rules).entries[1].policy is Policy.LEAVE


def test_rules_are_checked(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    with pytest.raises(TypeError, match=r"xenpm\.Domain"):
        host.plan(rules={"web": Rule()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"xenpm\.Rule"):
        host.plan(rules={host.domain("web"): "pause"})  # type: ignore[dict-item]


# -- the whole way


def test_the_machine_sleeps(xen: FakeXen, host: xenpm.Host) -> None:
    drivers(xen)
    story = Story(xen)
    said: list[str] = []
    report = host.suspend(progress=said.append)
    assert story.events == ["-web", "-store", "-net", "sleep", "+net", "+store", "+web"]
    assert set(outcomes(report).values()) == {Outcome.RUNNING}
    assert report.problems == []
    assert report.sleep is not None
    assert report.sleep.verified
    assert_all_run(xen)
    assert [span.what for span in report.timeline.of_row("web (domain 3)")] == [
        "suspend", "suspended", "resume", "check",
    ]  # fmt: skip
    assert said[0].startswith("web (domain 3): suspended in")
    assert any("the machine slept for 60.0 s" in line for line in said)
    assert report.to_dict()["domains"][0]["outcome"] == "running"
    assert "PROBLEM" not in report.to_text()


def test_each_goes_when_its_turn_comes_and_not_level_by_level(
    xen: FakeXen, host: xenpm.Host
) -> None:
    """A driver domain whose only user is quick does not wait for somebody else's slow user."""
    slow_server, quick_server = xen.add_guest("slow server"), xen.add_guest("quick server")
    slow, quick = xen.add_guest("slow", suspend_ns=5 * SECOND), xen.add_guest("quick")
    slow.give_device("vif", 0, server=slow_server.domid)
    quick.give_device("vif", 0, server=quick_server.domid)
    story = Story(xen)
    host.suspend()
    assert story.events[:4] == ["-quick", "-quick server", "-slow", "-slow server"]


def test_a_cycle_goes_together(xen: FakeXen, host: xenpm.Host) -> None:
    one, two = xen.add_guest("one"), xen.add_guest("two")
    one.give_device("vif", 0, server=two.domid)
    two.give_device("vif", 0, server=one.domid)
    assert host.suspend().problems == []
    assert_all_run(xen)


def test_what_was_down_before_stays_so(xen: FakeXen, host: xenpm.Host) -> None:
    paused, asleep, web = (xen.add_guest(name) for name in ("paused", "asleep", "web"))
    paused.pause()
    host.domain("asleep").suspend()
    report = host.suspend()
    assert outcomes(report) == {
        "paused": Outcome.LEFT, "asleep": Outcome.LEFT, "web": Outcome.RUNNING,
    }  # fmt: skip
    assert (paused.pause_count, paused.suspensions, asleep.suspended) == (1, 0, True)
    assert (web.suspensions, web.resumptions) == (1, 1)


def test_policies_are_carried_out(xen: FakeXen, host: xenpm.Host) -> None:
    paused, left = xen.add_guest("paused"), xen.add_guest("left")
    counts: list[tuple[int, bool, bool]] = []
    xen.before("sleep", lambda: counts.append((paused.pause_count, paused.suspended, left.running)))
    rules = {
        host.domain("paused"): Rule(Policy.PAUSE),
        host.domain("left"): Rule(Policy.LEAVE),
    }
    report = host.suspend(rules=rules)
    assert counts == [(1, False, True)]
    assert outcomes(report) == {"paused": Outcome.RUNNING, "left": Outcome.LEFT}
    assert report.problems == []
    assert_all_run(xen)


def test_abort_keeps_the_host_awake(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    with pytest.raises(xenpm.HostSuspendError, match=r"web .*the caller says so"):
        host.suspend(rules={host.domain("web"): Rule(Policy.ABORT)})
    assert xen.calls["sleep"] == xen.calls["journal_begin"] == 0
    assert_all_run(xen)


def test_state_that_the_kernel_does_not_offer(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    with pytest.raises(xenpm.HostSuspendError, match="does not offer the sleep state 'disk'"):
        host.suspend("disk")
    assert guest.suspensions == 0
    with pytest.raises(ValueError, match="empty"):
        host.suspend("")


# -- a guest fails


def test_a_guest_that_does_not_answer_is_paused(xen: FakeXen, host: xenpm.Host) -> None:
    deaf, web = xen.add_guest("deaf", acknowledge_ns=None), xen.add_guest("web")
    paused: list[int] = []
    xen.before("sleep", lambda: paused.append(deaf.pause_count))
    report = host.suspend()
    assert paused == [1]
    assert set(outcomes(report).values()) == {Outcome.RUNNING}
    (problem,) = report.problems
    assert "was paused, for it could not be suspended: deaf (domain 1): did not take" in problem
    assert isinstance(report.domains[1].error, xenpm.SuspendNotAcknowledged)
    assert web.resumptions == 1
    assert_all_run(xen)


def test_a_paused_one_that_suspends_late_is_resumed(xen: FakeXen, host: xenpm.Host) -> None:
    slow = xen.add_guest("slow", suspend_ns=40 * SECOND)
    report = host.suspend()
    assert isinstance(report.domains[1].error, xenpm.SuspendNotCompleted)
    assert (slow.suspensions, slow.resumptions) == (1, 1)
    assert outcomes(report) == {"slow": Outcome.RUNNING}
    assert_all_run(xen)


@pytest.mark.parametrize("place", ["web", "store", "net"])
@pytest.mark.parametrize("how", ["deaf", "slow"])
def test_a_failure_undoes_all(place: str, how: str, xen: FakeXen, host: xenpm.Host) -> None:
    drivers(xen)
    guest = next(each for each in xen.guests.values() if each.name == place)
    guest.acknowledge_ns = None if how == "deaf" else MS
    guest.suspend_ns = 1000 * SECOND
    rules = {host.domain("web"): Rule(on_failure=xenpm.OnFailure.UNDO)}
    with pytest.raises(xenpm.HostSuspendError, match=f"{place} .* did not sleep|{place}") as caught:
        host.suspend(rules=rules)
    assert [ref.name for ref in caught.value.failures] == [place]
    assert caught.value.rolled_back
    assert xen.calls["sleep"] == 0
    assert_all_run(xen)
    report = caught.value.report
    assert outcomes(report)[place] is Outcome.FAILED


def test_a_guest_that_dies_on_the_way_down_does_not_keep_the_host_awake(
    xen: FakeXen, host: xenpm.Host
) -> None:
    web, other = xen.add_guest("web"), xen.add_guest("other")
    xen.after(20 * MS, web.crash)
    report = host.suspend()
    assert outcomes(report) == {"web": Outcome.GONE, "other": Outcome.RUNNING}
    assert "crash" in report.problems[0]
    assert other.running


@pytest.mark.parametrize("how", ["crash", "destroy"])
def test_a_guest_that_dies_in_the_sleep(how: str, xen: FakeXen, host: xenpm.Host) -> None:
    web, other = xen.add_guest("web"), xen.add_guest("other")

    def die() -> None:
        web.shutdown_code = int(xenpm.ShutdownReason.CRASH)
        if how == "destroy":
            web.destroy()

    xen.before("sleep", die)
    report = host.suspend()
    assert outcomes(report) == {"web": Outcome.GONE, "other": Outcome.RUNNING}
    assert any(("crash" if how == "crash" else "gone") in each for each in report.problems)
    assert not xen.journal
    assert other.running


def test_the_deadline_of_the_whole(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("slow", acknowledge_ns=None)
    xen.add_guest("web")
    with pytest.raises(xenpm.HostSuspendError, match=r"not all was down after 5 s: slow"):
        host.suspend(settings=Settings(timeout=5))
    assert_all_run(xen)


# -- the machine does not sleep


def test_sleep_is_refused(xen: FakeXen, host: xenpm.Host) -> None:
    drivers(xen)
    xen.fail("sleep", errno.EBUSY)
    with pytest.raises(xenpm.HostSuspendError, match=r"did not sleep: .*did not enter") as caught:
        host.suspend()
    assert caught.value.rolled_back
    assert set(outcomes(caught.value.report).values()) == {Outcome.RUNNING}
    assert_all_run(xen)


def test_sleep_that_returns_at_once(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.sleep_ns = 0
    with pytest.raises(xenpm.HostSuspendError, match=r"did not sleep: .*without a sleep") as caught:
        host.suspend()
    assert caught.value.report.sleep is not None
    assert_all_run(xen)


# -- the way back


def test_what_cannot_be_resumed_stays_in_the_journal(xen: FakeXen, host: xenpm.Host) -> None:
    web, other = xen.add_guest("web"), xen.add_guest("other")
    xen.fail("resume", errno.EIO)
    with pytest.raises(xenpm.HostSuspendError, match="the host slept: web") as caught:
        host.suspend()
    assert not caught.value.rolled_back
    assert outcomes(caught.value.report) == {"web": Outcome.LOST, "other": Outcome.RUNNING}
    assert web.suspended
    assert other.running
    report = host.recover()
    assert report is not None
    assert outcomes(report)["web"] is Outcome.RUNNING
    assert other.resumptions == 1
    assert_all_run(xen)


def test_vcpu_that_does_not_run(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", vcpus=4)
    xen.before("sleep", lambda: guest.stuck_vcpus.add(2))
    assert host.suspend().problems == ["web (domain 1): its vCPU 2 does not run"]


def test_device_that_is_not_connected_again(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    device = guest.give_device("vbd", 51712)
    guest.give_device("vif", 0)
    xen.before("resume_domain", lambda: xen.toolstack.write(f"{device.path}/state", CLOSED))
    (problem,) = host.suspend().problems
    assert problem == "web (domain 1): its vbd 51712 is not connected again"


def test_card_that_does_not_come_back(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("net").give_card("0000:00:10.0", back_ns=None)
    (problem,) = host.suspend().problems
    assert "0000:00:10.0" in problem


def test_crash_after_the_sleep(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", vcpus=2)
    guest.stuck_vcpus.add(1)
    xen.before("resume", lambda: xen.after(SECOND, guest.crash))
    report = host.suspend()
    assert outcomes(report) == {"web": Outcome.GONE}
    assert "has shut down with reason crash, after it was brought back" in report.problems[0]


def test_new_domain_is_told_of(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.after(20 * MS, lambda: xen.add_guest("new"))
    assert host.suspend().problems == [
        "new (domain 2) was created meanwhile: Xen stops it, and it is not told"
    ]


# -- in two halves


def test_two_halves(xen: FakeXen, host: xenpm.Host) -> None:
    net, store, web = drivers(xen)
    report = host.suspend_domains()
    assert set(outcomes(report).values()) == {Outcome.SUSPENDED}
    assert net.suspended
    assert store.suspended
    assert web.suspended
    assert xen.calls["sleep"] == 0
    with xenpm.Host(ports=xen.ports()) as other:
        with pytest.raises(xenpm.JournalError, match="resume-domains"):
            other.suspend()
        with pytest.raises(xenpm.JournalError, match="on purpose"):
            other.recover()
        assert net.suspended
        again = other.resume_domains()
    assert again is not None
    assert set(outcomes(again).values()) == {Outcome.RUNNING}
    assert_all_run(xen)
    assert host.resume_domains() is None
    assert host.recover() is None


def test_second_orchestrator_is_refused(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    refused: list[str] = []

    def second() -> None:
        with xenpm.Host(ports=xen.ports()) as other:
            for verb in (other.suspend, other.suspend_domains, other.recover):
                with pytest.raises(xenpm.JournalError, match="at this moment"):
                    verb()
                refused.append(verb.__name__)

    xen.after(20 * MS, second)
    host.suspend()
    assert len(refused) == 3
    assert web.suspensions == 1


# -- the journal


def test_journal_that_cannot_be_begun(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    xen.fail("journal_begin", errno.ENOSPC)
    with pytest.raises(xenpm.JournalError):
        host.suspend()
    assert web.suspensions == 0
    assert_all_run(xen)


@pytest.mark.parametrize("nth", range(1, 8))
def test_journal_that_cannot_be_added_to(nth: int, xen: FakeXen, host: xenpm.Host) -> None:
    """From any line on: what is not noted is not done, and what was done is undone."""
    drivers(xen)
    xen.fail("journal_add", errno.ENOSPC, nth=nth, times=None)
    with pytest.raises(xenpm.HostSuspendError, match="did not sleep"):
        host.suspend()
    assert xen.calls["sleep"] == 0
    assert_all_run(xen)


def _kill(xen: FakeXen, name: str, nth: int) -> bool:
    """Run a host suspend and kill it before the nth call of a name; whether it came so far."""
    drivers(xen)
    xen.add_guest("deaf", acknowledge_ns=None)
    rules = Settings(default=Rule(timeout=2.0))
    return killed(xen, rules, name, nth)


@pytest.mark.parametrize(
    "name",
    ["journal_add", "journal_end", "transaction_start", "transaction_end", "pause", "unpause",
     "resume", "resume_domain", "sleep", "check_watch", "vcpu_info"],
)  # fmt: skip
def test_killed_anywhere_and_recovered(name: str) -> None:
    """Whatever the moment: recover() brings back what was down, and each guest runs once more."""
    for nth in itertools.count(1):
        xen = FakeXen()
        came_so_far = _kill(xen, name, nth)
        xen.pass_time(3 * SECOND)
        with xenpm.Host(ports=xen.ports()) as host:
            report = host.recover()
            assert report is not None or not xen.journal
            assert host.recover() is None
        xen.pass_time(60 * SECOND)
        for guest in xen.guests.values():
            assert not guest.corrupted, (name, nth, guest.name, guest.corrupted)
            assert guest.running, (name, nth, guest.name)
            assert not guest.pause_count, (name, nth, guest.name)
            assert guest.request == b"", (name, nth, guest.name)
            assert guest.suspensions == guest.resumptions
        if not came_so_far or nth > 60:
            break


def test_recover_leaves_a_reused_domid_alone(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    host.suspend_domains()
    web.destroy()
    xen.pass_time(MS)
    new = xen.add_guest("new", domid=web.domid, uuid=UUID(int=7))
    new.pause()
    report = host.resume_domains()
    assert report is not None
    assert outcomes(report) == {"web": Outcome.GONE}
    assert new.pause_count == 1


def test_journal_of_nonsense(xen: FakeXen, host: xenpm.Host) -> None:
    xen.journal[:] = [{"event": "plan", "entries": [{}], "state": "mem"}]
    with pytest.raises(xenpm.JournalError, match="makes no sense"):
        host.recover()
    assert xen.journal


# -- interruption


@pytest.mark.parametrize("at_ns", [1, 20 * MS, 60 * MS, 90 * MS, 110 * MS])
def test_interrupted_on_the_way_down(at_ns: int, xen: FakeXen, host: xenpm.Host) -> None:
    drivers(xen)
    xen.after(at_ns, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        host.suspend()
    assert_all_run(xen)
    assert xen.calls["sleep"] == 0


def test_interrupted_in_the_sleep(xen: FakeXen, host: xenpm.Host) -> None:
    drivers(xen)
    xen.before("sleep", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        host.suspend()
    assert xen.calls["sleep"] == 1
    assert_all_run(xen)


def test_interrupted_after_the_first_half(xen: FakeXen, host: xenpm.Host) -> None:
    drivers(xen)
    xen.before("journal_add", lambda: signal.raise_signal(signal.SIGINT), nth=7)
    with pytest.raises(KeyboardInterrupt):
        host.suspend_domains()
    assert_all_run(xen)


# -- hooks


def called(hooks: list[str]) -> Callable[[HookEvent], object]:
    def hook(event: HookEvent) -> None:
        name = "host" if event.domain is None else event.domain.name
        hooks.append(f"{event.point.value} {name} {event.result}".strip())

    return hook


def test_hooks_are_called_around_all(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    heard: list[str] = []
    asleep: list[bool] = []

    def hook(event: HookEvent) -> None:
        called(heard)(event)
        asleep.append(web.suspended)

    assert host.suspend(hooks=[hook]).problems == []
    assert heard == ["host-pre host", "domain-pre web", "domain-post web ok", "host-post host ok"]
    assert not any(asleep)


def test_hook_that_fails_is_reported(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")

    def fail(_event: HookEvent) -> None:
        raise RuntimeError("no")

    report = host.suspend(hooks=[fail])
    assert web.suspensions == 1
    assert len(report.problems) == 4
    assert "RuntimeError: no" in report.problems[0]


@pytest.mark.parametrize("point", [HookPoint.HOST_PRE, HookPoint.DOMAIN_PRE])
def test_hook_that_fails_keeps_the_host_awake(
    point: HookPoint, xen: FakeXen, host: xenpm.Host
) -> None:
    drivers(xen)
    heard: list[str] = []

    def fail(event: HookEvent) -> None:
        called(heard)(event)
        if event.point is point:
            raise RuntimeError("no")

    settings = Settings(on_hook_failure=xenpm.OnHookFailure.UNDO)
    with pytest.raises(xenpm.HostSuspendError, match="RuntimeError: no; so the host does not"):
        host.suspend(hooks=[fail], settings=settings)
    assert heard[-1].startswith("host-post host ")
    assert xen.calls["sleep"] == 0
    assert_all_run(xen)


def test_hook_that_hangs_is_given_up(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")

    def hang(_event: HookEvent) -> Any:
        return xen

    xen.hanging.append(xen)
    report = host.suspend(hooks=[hang], settings=Settings(hook_timeout=3))
    assert web.suspensions == 1
    assert all("not done at its deadline" in each for each in report.problems)


# -- faults of the caller's, and of ours


def test_progress_that_fails_costs_nothing(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    xen.add_guest("web")

    def progress(_text: str) -> None:
        raise BrokenPipeError

    assert host.suspend(progress=progress).problems == []
    assert "progress could not be told" in caplog.text
    assert_all_run(xen)


@pytest.mark.parametrize("where", ["used_by", "protocol.suspend"])
def test_a_fault_of_ours_leaves_nobody_down(
    where: str, xen: FakeXen, host: xenpm.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, store, _ = drivers(xen)
    whole = used_by if where == "used_by" else protocol.suspend

    def faulty(*arguments: Any, **more: Any) -> Any:
        first = arguments[0]
        if first in (store.domid, host.domain("store").ref):
            raise ZeroDivisionError
        return whole(*arguments, **more)

    monkeypatch.setattr(f"xenpm.sleep.{where}", faulty)
    with pytest.raises(xenpm.HostSuspendError, match="ZeroDivisionError"):
        host.suspend()
    assert net.suspensions == 0
    assert_all_run(xen)
