"""The tests of the power scripts; they run anywhere."""

import errno
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import all_but_one
import disk_snapshot
import night
import notify
import park_idle
import pytest

import xenpm
from xenpm.testing import MS, SECOND


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Nothing is configured on this host."""
    for module in ("xenpm.host", "night"):
        monkeypatch.setattr(f"{module}.read_settings", xenpm.Settings)
    monkeypatch.setattr("xenpm.host.find_hooks", list)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name", ["all_but_one", "disk_snapshot", "night", "notify", "park_idle", "toolstack"]
)
def test_without_arguments_it_says_what_it_takes(name):
    program = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"    python {name}.py" in done.stderr


# -- all but one


def test_all_but_one_and_what_it_stands_on(xen_host):
    net, db, web = (xen_host.add_guest(name) for name in ("net", "db", "web"))
    net.give_card("0000:00:10.0")
    db.give_device("vif", 0, server=net.domid)

    def work():
        assert (net.running, db.running, web.suspended) == (True, True, True)
        return 7

    assert all_but_one.all_but_one("db", work) == 7
    assert web.running


def test_all_but_one_comes_back_after_ctrl_c(xen_host):
    xen_host.add_guest("db")
    web = xen_host.add_guest("web")
    with pytest.raises(KeyboardInterrupt):
        all_but_one.all_but_one("db", interrupt)
    assert (web.suspensions, web.running) == (1, True)


def test_all_but_one_with_a_guest_that_does_not_suspend(xen_host):
    xen_host.add_guest("db")
    web = xen_host.add_guest("web")
    xen_host.add_guest("deaf", acknowledge_ns=None)
    with pytest.raises(xenpm.HostSuspendError):
        all_but_one.all_but_one("db", pytest.fail)
    assert web.running


def test_all_but_one_leaves_others_alone(xen_host):
    xen_host.add_guest("db")
    theirs = xen_host.add_guest("theirs")
    theirs.suspend()
    all_but_one.all_but_one("db", lambda: None)
    assert theirs.suspended
    assert all_but_one.run(["false"]) == 1


# -- night


@pytest.fixture
def alarm(tmp_path, monkeypatch):
    """A file in place of the real-time clock's."""
    path = tmp_path / "wakealarm"
    path.write_text("")
    monkeypatch.setattr(night, "ALARM", path)
    return path


def test_night(xen_host, alarm):
    web = xen_host.add_guest("web")
    then = datetime(2030, 1, 1, 6, 30, tzinfo=timezone.utc)
    xen_host.before("sleep", lambda: seen.append((web.suspended, alarm.read_text())))
    seen = []
    report = night.sleep_until(then)
    assert seen == [(True, "1893479400\n")]
    assert report.problems == []
    assert alarm.read_text() == "0\n"
    assert web.running


@pytest.mark.usefixtures("alarm")
def test_night_is_asleep_before_the_alarm_or_not_at_all(xen_host):
    deaf = xen_host.add_guest("deaf", acknowledge_ns=None)
    net = xen_host.add_guest("net", suspend_ns=50 * SECOND)
    net.give_card("0000:00:10.0")
    with pytest.raises(xenpm.HostSuspendError):
        night.sleep_until(datetime.now(timezone.utc) + timedelta(seconds=65))
    assert (deaf.running, net.running) == (True, True)


def test_night_without_sleep_takes_the_alarm_back(xen_host, alarm):
    web = xen_host.add_guest("web")
    xen_host.fail("sleep", errno.EBUSY)
    with pytest.raises(xenpm.HostSuspendError):
        night.sleep_until(datetime.now(timezone.utc))
    assert alarm.read_text() == "0\n"
    assert web.running


def test_night_respects_the_alarm_of_others(xen_host, alarm):
    web = xen_host.add_guest("web")
    alarm.write_text("1893479400\n")
    with pytest.raises(OSError, match="somebody else wants the machine to wake"):
        night.sleep_until(datetime.now(timezone.utc))
    assert alarm.read_text() == "1893479400\n"
    assert web.suspensions == 0


@pytest.fixture
def berlin(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_next_time():
    now = datetime(2030, 1, 1, 21, 0, 30, tzinfo=timezone.utc)  # 22:00:30 there
    assert night.next_time("06:30", now).isoformat() == "2030-01-02T06:30:00+01:00"
    assert night.next_time("23:00", now).day == 1
    assert night.next_time("22:01", now).day == 2, "too soon to be slept for"
    before_the_change = datetime(2030, 10, 26, 21, 0, tzinfo=timezone.utc)
    assert night.next_time("06:30", before_the_change).isoformat() == "2030-10-27T06:30:00+01:00"
    with pytest.raises(ValueError, match="invalid literal"):
        night.next_time("soon", now)


# -- snapshot


def test_disk_snapshot(xen_host, tmp_path):
    web = xen_host.add_guest("web")
    disk_snapshot.snapshot("web", ["touch", str(tmp_path / "snapshot")])
    assert (tmp_path / "snapshot").exists()
    assert (web.suspensions, web.running) == (1, True)


@pytest.mark.parametrize("command", [["false"], ["sleep", "60"], ["no-such-program"]])
def test_disk_snapshot_that_fails(xen_host, command):
    web = xen_host.add_guest("web")
    with pytest.raises((subprocess.SubprocessError, OSError)):
        disk_snapshot.snapshot("web", command, command_timeout=0.1)
    assert (web.suspensions, web.running) == (1, True)


# -- idle guests


def test_parked_are_those_that_are_idle(xen_host, monkeypatch):
    net, idle, busy = (xen_host.add_guest(name) for name in ("net", "idle", "busy"))
    net.give_card("0000:00:10.0")
    used = {"busy": [0, 5 * 10**9], "idle": [0, 10**6]}
    monkeypatch.setattr(park_idle, "cpu_time_ns", lambda domain: used[domain.name].pop(0))
    monkeypatch.setattr(park_idle.time, "sleep", lambda _seconds: None)

    def wait():
        assert (net.running, idle.suspended, busy.running) == (True, True, True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), xenpm.Host() as host:
        park_idle.park(park_idle.idle_domains(host, 0.01, 10), wait)
    assert idle.running


def test_one_that_cannot_be_parked_and_one_that_somebody_has_resumed(xen_host, capsys):
    web = xen_host.add_guest("web")
    xen_host.add_guest("deaf", acknowledge_ns=None)
    db = xen_host.add_guest("db")
    with xenpm.Host() as host:
        park_idle.park(host.domains(), lambda: xenpm.Domain("db").resume())
    said = capsys.readouterr().out
    assert "not parked: deaf" in said
    assert "left alone: db" in said
    assert web.running
    assert db.running


# -- notify


def test_notify(xen_host):
    web = xen_host.add_guest("web", suspend_ns=40 * MS)
    said = []
    notify.sleep_and_tell(said.append)
    assert said == ["This host goes to sleep (mem) now.", "This host is back: ok"]
    assert web.running


def test_notify_of_a_guest_that_does_not_suspend(xen_host):
    xen_host.add_guest("deaf", acknowledge_ns=None)
    said = []
    notify.sleep_and_tell(said.append)
    assert any(text.startswith("deaf (domain 1) is not well: was paused") for text in said)


def test_notify_that_cannot_be_sent_keeps_nobody_awake(xen_host):
    web = xen_host.add_guest("web")

    def send(_text):
        raise OSError(errno.ENOSPC, "no room for messages")

    report = notify.sleep_and_tell(send)
    assert report.sleep.verified
    assert any("no room for messages" in problem for problem in report.problems)
    assert web.running
