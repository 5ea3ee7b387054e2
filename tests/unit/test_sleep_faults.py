"""A host suspend in which calls fail one by one, and what the reports say of it."""

from __future__ import annotations

import errno
import itertools
import json
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import xenpm
from xenpm import Outcome, Policy, Rule, Settings
from xenpm.cli import main
from xenpm.hooks import HookEvent, HookPoint
from xenpm.testing import MS, SECOND, FakeGuest, FakeXen
from xenpm.testing.devices import CLOSED

from .checks import killed

UNDO = xenpm.OnFailure.UNDO
QUIET = Settings()


pytestmark = pytest.mark.usefixtures("nothing_installed")


def three(xen: FakeXen) -> tuple[FakeGuest, FakeGuest, FakeGuest]:
    """A driver domain, its user, and one that has to be paused."""
    net, web = xen.add_guest("net"), xen.add_guest("web")
    net.give_card("0000:00:10.0")
    web.give_device("vif", 0, server=net.domid)
    return net, web, xen.add_guest("deaf", acknowledge_ns=None)


def down(xen: FakeXen) -> list[str]:
    return [each.name for each in xen.guests.values() if each.suspended or each.pause_count]


CALLS = (
    "domain_info", "domain_list", "vcpu_info", "check_watch", "watch", "unwatch", "read", "list",
    "transaction_start", "transaction_end", "write", "pause", "unpause", "resume", "resume_domain",
)  # fmt: skip


@pytest.mark.parametrize("times", [1, 2, None])
@pytest.mark.parametrize("name", CALLS)
def test_no_guest_is_forgotten(name: str, times: int | None) -> None:
    """Whatever call fails, once, twice or from then on: who is down stands in the journal."""
    for nth in itertools.count(1):
        xen = FakeXen()
        three(xen)
        slow(xen)
        xen.fail(name, errno.EIO, nth=nth, times=times)
        failed: xenpm.XenError | None = None
        with xenpm.Host(ports=xen.ports()) as host:
            try:
                host.suspend(settings=Settings(default=Rule(timeout=2.0)))
            except xenpm.XenError as error:
                failed = error
            came_so_far = xen.calls[name] >= nth
            where = (name, nth, failed)
            stuck = down(xen)
            assert not stuck or (failed is not None and xen.journal), where
            if isinstance(failed, xenpm.HostSuspendError):
                assert failed.report is not None, where
                assert failed.rolled_back is not bool(xen.journal), where
            elif failed is not None:
                assert xen.calls["journal_begin"] == 0, where
            xen.stop_failing()
            xen.pass_time(SECOND)
            host.recover()
            xen.pass_time(60 * SECOND)
            host.recover()
        for guest in xen.guests.values():
            assert not guest.corrupted, where
            if not (guest.suspended and guest.name in str(failed)):  # told that it may yet suspend
                assert guest.running, where
            assert not guest.pause_count, where
        if not came_so_far or nth >= 60:
            break


def test_recover_that_cannot_look_keeps_the_journal(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    assert killed(xen, QUIET, "journal_add", 2)  # it has suspended, which is not noted yet
    xen.fail("domain_info", errno.EIO)
    with pytest.raises(xenpm.HostSuspendError, match=r"not everything came back: web .*domain_"):
        host.recover()
    assert web.suspended
    assert xen.journal
    assert host.recover() is not None
    assert web.running


def test_vcpus_that_cannot_be_seen_keep_nobody_down(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    xen.fail("vcpu_info", errno.EIO)
    report = host.suspend()
    assert web.running
    assert report.domains[1].outcome is Outcome.RUNNING
    (problem,) = report.problems
    assert "whether its vCPUs run again cannot be seen" in problem


def test_request_that_could_not_be_taken_back_is_not_forgotten(
    xen: FakeXen, host: xenpm.Host
) -> None:
    """When no transaction works any more, the journal keeps the guest that may yet suspend."""
    web = xen.add_guest("web", acknowledge_ns=300 * SECOND)
    xen.fail("transaction_start", errno.EIO, nth=2, times=None)
    with pytest.raises(xenpm.HostSuspendError) as caught:
        host.suspend(rules={host.domain("web"): Rule(timeout=1, on_failure=UNDO)})
    assert caught.value.report.domains[1].outcome is Outcome.LOST
    assert web.request == b"suspend"
    xen.stop_failing()
    assert host.recover() is not None
    assert web.request == b""
    xen.pass_time(600 * SECOND)
    assert web.running


# -- one that was paused is looked at, too


def test_paused_guest_is_looked_at(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("deaf", acknowledge_ns=None, vcpus=2)
    device = guest.give_device("vbd", 51712)

    def harm() -> None:
        guest.stuck_vcpus.add(1)
        xen.toolstack.write(f"{device.path}/state", CLOSED)

    xen.before("sleep", harm)
    problems = host.suspend(rules={host.domain("deaf"): Rule(Policy.PAUSE)}).problems
    assert problems == [
        "deaf (domain 1): its vCPU 1 does not run",
        "deaf (domain 1): its vbd 51712 is not connected again",
    ]


def test_guest_that_somebody_has_paused_meanwhile(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    xen.before("sleep", web.pause)
    assert host.suspend().problems == ["web (domain 1): is paused, by somebody else"]


# -- who comes and goes


def test_plan_is_made_under_the_lock(xen: FakeXen, host: xenpm.Host) -> None:
    """A domain that appears right before belongs to the plan, and not to what is not told."""
    xen.add_guest("web")
    xen.before("acquire", lambda: xen.add_guest("new"))
    report = host.suspend()
    assert report.problems == []
    assert xen.guests[2].suspensions == 1


@pytest.mark.parametrize("verb", ["suspend", "suspend_domains"])
def test_new_domain_with_hardware_keeps_the_host_awake(
    verb: str, xen: FakeXen, host: xenpm.Host
) -> None:
    web = xen.add_guest("web")
    xen.after(20 * MS, lambda: xen.add_guest("new").give_card("0000:00:11.0"))
    with pytest.raises(xenpm.HostSuspendError, match=r"new .*created meanwhile, and owns 0000:00:"):
        getattr(host, verb)()
    assert web.running
    assert xen.calls["sleep"] == 0


def test_new_domain_is_told_of_by_the_first_half(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.after(20 * MS, lambda: xen.add_guest("new"))
    (problem,) = host.suspend_domains().problems
    assert "new (domain 2) was created meanwhile" in problem


def test_driver_domain_that_is_replaced_keeps_the_host_awake(
    xen: FakeXen, host: xenpm.Host
) -> None:
    net, web, _ = three(xen)

    def replace() -> None:
        net.destroy()
        xen.pass_time(MS)
        xen.add_guest("net2", domid=net.domid, uuid=UUID(int=9)).give_card("0000:00:10.0")

    xen.after(20 * MS, replace)
    with pytest.raises(xenpm.HostSuspendError, match=r"net .*gone.*so the host does not sleep"):
        host.suspend()
    assert xen.calls["sleep"] == 0
    assert web.running


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (None, Policy.ABORT),
        (Policy.SUSPEND, Policy.ABORT),
        (Policy.LEAVE, Policy.LEAVE),
        (Policy.PAUSE, Policy.LEAVE),
        (Policy.ABORT, Policy.ABORT),
    ],
)
def test_paused_guest_with_hardware(
    rule: Policy | None, wanted: Policy, xen: FakeXen, host: xenpm.Host
) -> None:
    net = xen.add_guest("net")
    net.give_card("0000:00:10.0")
    net.pause()
    (entry,) = host.plan(rules={host.domain("net"): Rule(rule)}).entries
    assert entry.policy is wanted
    if rule is None:
        assert "paused already; it owns 0000:00:10.0, which is not quiesced" in entry.reason


def test_abort_holds_for_a_paused_guest(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web").pause()
    assert host.plan(rules={host.domain("web"): Rule(Policy.ABORT)}).refusals


# -- hooks and kills


def points(heard: list[str]) -> Callable[[HookEvent], object]:
    def hook(event: HookEvent) -> None:
        name = "host" if event.domain is None else event.domain.name
        heard.append(f"{event.point.value} {name}")

    return hook


@pytest.mark.parametrize("nth", range(1, 12))
def test_hooks_that_were_told_before_a_kill_are_told_after_it(nth: int) -> None:
    """Each guest's hooks hear of the end at least once, and of no end without a beginning."""
    xen = FakeXen()
    xen.add_guest("web")
    heard: list[str] = []
    came_so_far = killed(xen, QUIET, "journal_add", nth, hooks=[points(heard)])
    with xenpm.Host(ports=xen.ports()) as host:
        host.recover(hooks=[points(heard)])
    begun = HookPoint.DOMAIN_PRE.value + " web" in heard
    ended = HookPoint.DOMAIN_POST.value + " web" in heard
    assert ended is begun or (nth == 2 and ended), heard
    assert came_so_far or nth > 6
    assert xen.guests[1].running


def test_long_words_of_a_hook_are_shortened(xen: FakeXen, host: xenpm.Host) -> None:
    """They come into the result that the next hooks get, which execve(2) must take."""
    xen.add_guest("web")
    told: list[dict[str, str]] = []

    def fail(event: HookEvent) -> None:
        told.append(event.environment())
        raise RuntimeError("x" * 200_000)

    host.suspend(hooks=[fail])
    assert max(len(each["XENPM_RESULT"].encode()) for each in told) < 100_000


# -- interruptions tell what came of it


def test_interruption_has_the_report(xen: FakeXen, host: xenpm.Host) -> None:
    three(xen)
    xen.after(90 * MS, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        host.suspend()
    cause = caught.value.__cause__
    assert isinstance(cause, xenpm.HostSuspendError)
    assert "did not sleep: it was interrupted" in str(cause)
    assert cause.rolled_back
    assert cause.report.domains[2].outcome is Outcome.RUNNING


def test_second_interruption_says_what_to_do(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    xen.add_guest("slow", suspend_ns=20 * SECOND)
    for at_ns in (SECOND, SECOND + MS):
        xen.after(at_ns, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        host.suspend()
    assert "python -m xenpm host recover" in str(caught.value.__cause__)
    assert "python -m xenpm host recover" in caplog.text
    xen.pass_time(60 * SECOND)
    host.recover()
    assert xen.guests[1].running


def test_interrupted_while_a_guest_is_slow(xen: FakeXen, host: xenpm.Host) -> None:
    """It has taken the request, so it is watched until it has suspended, and resumed."""
    slow = xen.add_guest("slow", suspend_ns=20 * SECOND)
    xen.after(SECOND, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        host.suspend()
    assert (slow.suspensions, slow.resumptions) == (1, 1)
    assert not xen.journal


def test_report_of_an_interrupted_command(
    xen: FakeXen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three(xen)
    xen.after(90 * MS, lambda: signal.raise_signal(signal.SIGINT))
    path = tmp_path / "report.json"
    with xen.installed():
        assert main(["host", "suspend", "--report", str(path)]) == 128 + signal.SIGINT
    assert [each["outcome"] for each in json.loads(path.read_text())["domains"]][1] == "running"
    told = capsys.readouterr().err
    assert "it was interrupted" in told


@pytest.mark.parametrize("value", [3, None, ["suspend"]])
def test_foreign_journal(value: Any, xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    host.suspend_domains()
    xen.journal[0]["entries"][0]["policy"] = value
    with pytest.raises(xenpm.JournalError, match="makes no sense"):
        host.resume_domains()
    assert xen.journal


# -- a guest that took the request and is slow


def slow(xen: FakeXen) -> FakeGuest:
    return xen.add_guest("slow", suspend_ns=20 * SECOND)


HASTY = Rule(timeout=2)


def test_late_guest_that_cannot_be_resumed_at_once(xen: FakeXen, host: xenpm.Host) -> None:
    guest = slow(xen)
    xen.fail("resume", errno.EIO)
    with pytest.raises(xenpm.HostSuspendError):
        host.suspend(rules={host.domain("slow"): Rule(timeout=2, on_failure=UNDO)})
    assert guest.running
    assert not xen.journal


@pytest.mark.parametrize("later", [0, 30 * SECOND])
def test_killed_before_a_slow_guest_is_paused(later: int) -> None:
    """It may suspend afterwards: before it is recovered or while it is."""
    xen = FakeXen()
    guest = slow(xen)
    assert killed(xen, Settings(default=HASTY), "pause", 1)
    xen.pass_time(later)
    with xenpm.Host(ports=xen.ports()) as host:
        assert host.recover() is not None
        xen.pass_time(60 * SECOND)
        assert (guest.suspensions, guest.resumptions) == (1, 1)
        assert host.recover() is None


@pytest.mark.parametrize("name", ["pause", "domain_info", "list", "read"])
def test_slow_guest_that_cannot_be_paused(name: str) -> None:
    for nth in range(1, 40):
        xen = FakeXen()
        guest = slow(xen)
        xen.fail(name, errno.EIO, nth=nth)
        with xenpm.Host(ports=xen.ports()) as host:
            with suppress(xenpm.XenError):
                host.suspend(settings=Settings(default=HASTY))
            xen.pass_time(60 * SECOND)
            assert guest.running or xen.journal, nth
            host.recover()
        assert guest.running, nth
        assert not guest.pause_count


def test_very_slow_guest_is_told_of(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("slow", suspend_ns=200 * SECOND)
    with pytest.raises(xenpm.HostSuspendError) as caught:
        host.suspend(rules={host.domain("slow"): Rule(timeout=2, on_failure=UNDO)})
    (problem,) = caught.value.report.problems
    assert "took the request to suspend, and still runs: should it suspend yet, resume" in problem
    assert guest.running


# -- what the second review of policies and texts found


def test_paused_domain_that_is_gone_at_its_turn(xen: FakeXen, host: xenpm.Host) -> None:
    net, web, _ = three(xen)
    rules = {host.domain("net"): Rule(Policy.PAUSE, UNDO)}
    xen.after(20 * MS, net.destroy)
    with pytest.raises(xenpm.HostSuspendError, match="so the host does not sleep"):
        host.suspend(rules=rules)
    assert xen.calls["sleep"] == 0
    assert web.running


def test_paused_driver_domain_is_not_left_to_a_save(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    net.give_card("0000:00:10.0")
    net.pause()
    assert host.plan(rules={host.domain("net"): Rule(Policy.SAVE)}).refusals


def test_newcomer_with_hardware_may_be_left(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.after(20 * MS, lambda: xen.add_guest("new").give_card("0000:00:11.0"))
    settings = Settings(domains={"new": Rule(Policy.LEAVE)})
    (problem,) = host.suspend(settings=settings).problems
    assert "new (domain 2) was created meanwhile" in problem


def test_outcome_is_kept_for_the_second_try(xen: FakeXen, host: xenpm.Host) -> None:
    web, other = xen.add_guest("web"), xen.add_guest("other")
    host.suspend_domains()
    web.destroy()
    xen.pass_time(MS)
    xen.fail("resume", errno.EIO)
    with pytest.raises(xenpm.HostSuspendError, match=r"other .*is still suspended"):
        host.resume_domains()
    report = host.resume_domains()
    assert report is not None
    assert [each.outcome for each in report.domains.values()] == [Outcome.GONE, Outcome.RUNNING]
    assert other.running
    assert ["gone" in each for each in report.problems] == [True]


def test_journal_without_a_plan(xen: FakeXen, host: xenpm.Host) -> None:
    xen.journal[:] = [{"event": "handed over"}]
    for verb in (host.recover, host.resume_domains):
        with pytest.raises(xenpm.JournalError, match=r"makes no sense .*put them back by hand"):
            verb()


def test_name_stands_once(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.fail("resume", errno.EIO)
    with pytest.raises(xenpm.HostSuspendError) as caught:
        host.suspend()
    assert str(caught.value).count("web (domain 1)") == 1


def test_interrupted_recover_has_its_report(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    host.suspend_domains()
    xen.before("resume", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        host.resume_domains()
    cause = caught.value.__cause__
    assert isinstance(cause, xenpm.HostSuspendError)
    assert cause.report.domains[1].outcome is Outcome.RUNNING
