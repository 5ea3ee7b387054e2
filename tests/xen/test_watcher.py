"""The processes of xl: one looks after a domain and goes on with that; who saves it is seen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import xenpm

from .guest import DEADLINE, Guest, run, until

SCENE = "pair"
pytestmark = pytest.mark.trouble  # guests are destroyed and crash
GuestOf = Callable[[str], Guest]


def watchers(name: str) -> list[Path]:
    """The processes of xl that look after a domain, as directories of /proc."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if words[0].endswith("/xl") and any(f"/{name}." in word for word in words):
            found.append(each.parent)
    return found


def stopped(name: str) -> bool:
    """Whether the process of xl that looks after a domain is stopped, with all its threads."""
    (process,) = watchers(name)
    states = [stat.read_text().rpartition(") ")[2][0] for stat in process.glob("task/[0-9]*/stat")]
    return set(states) == {"T"}


def is_misled(host: xenpm.Host) -> bool:
    """Whether the xl of this release takes a suspension for the domain's death."""
    return host.xen_version < (4, 20)


def cycle(subject: Guest, host: xenpm.Host) -> None:
    domain, process = subject.domain, watchers(subject.name)
    domain.suspend()
    assert watchers(subject.name) == process
    assert stopped(subject.name) == is_misled(host)
    domain.resume()
    assert watchers(subject.name) == process
    until(lambda: not stopped(subject.name), "xl is still stopped")
    subject.wait_counting(subject.count)


def assert_made_anew(subject: Guest, host: xenpm.Host, before: xenpm.Domain) -> None:
    def is_there() -> bool:
        domids = [each.domid for each in host.domains() if each.name == subject.name]
        return len(domids) == 1 and domids != [before.domid]

    until(is_there, f"{subject.name} is not made anew")
    subject.wait("data/counter", bool, "it does not come up")
    assert len(watchers(subject.name)) == 1


@pytest.mark.parametrize("cycles", [1, 5])
def test_reboot_inside(guest: GuestOf, host: xenpm.Host, cycles: int) -> None:
    subject = guest("one")
    before = subject.domain
    for _ in range(cycles):
        cycle(subject, host)
    subject.command("reboot")
    assert_made_anew(subject, host, before)


def test_crash_inside(guest: GuestOf, host: xenpm.Host) -> None:
    subject = guest("other")
    run("xl", "destroy", "other")
    run("xl", "create", "/root/guests/other.cfg", 'on_crash="restart"')
    subject.wait("data/counter", bool, "it does not come up")
    before = subject.domain
    cycle(subject, host)
    subject.command("crash")
    assert_made_anew(subject, host, before)


def test_power_off_inside(guest: GuestOf, host: xenpm.Host) -> None:
    subject = guest("other")
    cycle(subject, host)
    subject.command("poweroff")
    until(lambda: "other" not in [each.name for each in host.domains()], "xl does not destroy it")
    until(lambda: not watchers("other"), "xl does not end")
    subject.create()


def test_destroyed_while_it_is_suspended(guest: GuestOf, host: xenpm.Host) -> None:
    """Whoever uses xenpm next lets the process go, which ends then."""
    subject = guest("one")
    subject.domain.suspend()
    run("xl", "destroy", "one")
    if is_misled(host):
        assert stopped("one")
    run(sys.executable, "-m", "xenpm", "list")
    until(lambda: not watchers("one"), "xl does not end")
    subject.create()
    cycle(subject, host)


def test_killed_between_suspend_and_resume(guest: GuestOf, host: xenpm.Host) -> None:
    subject = guest("one")
    before = subject.domain
    code = (
        "import os, signal, xenpm; xenpm.Domain('one').suspend(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=DEADLINE)
    assert ended.returncode == -signal.SIGKILL
    assert subject.state == "suspended"
    assert stopped("one") == is_misled(host)
    run(sys.executable, "-m", "xenpm", "list")  # which does not let it go
    assert stopped("one") == is_misled(host)
    run(sys.executable, "-m", "xenpm", "resume", "one")
    until(lambda: not stopped("one"), "xl is still stopped")
    subject.command("reboot")
    assert_made_anew(subject, host, before)


def test_each_for_itself(guest: GuestOf, host: xenpm.Host) -> None:
    one, other = guest("one"), guest("other")
    before = one.domain
    with other.unharmed():
        host.suspend_each([one.domain, other.domain])
        one.domain.resume()
        until(lambda: not stopped("one"), "xl is still stopped")
        one.command("reboot")
        assert_made_anew(one, host, before)
        assert stopped("other") == is_misled(host)
        other.domain.resume()
        until(lambda: not stopped("other"), "xl is still stopped")


def test_renamed(guest: GuestOf, host: xenpm.Host) -> None:
    """The process is found by what it has written, and not by a name."""
    before = guest("one").domain
    run("xl", "rename", "one", "called-else")
    before.suspend()
    assert stopped("one") == is_misled(host)
    before.resume()
    until(lambda: not stopped("one"), "xl is still stopped")
    run("xl", "rename", "called-else", "one")


def test_saved_by_xl_at_this_moment(guest: GuestOf) -> None:
    """Nobody reads what xl writes, so it stays in the middle of that."""
    subject, pipe, path = guest("other"), Path("/root/other.pipe"), Path("/root/other.save")
    domain, boot = subject.domain, subject.boot
    os.mkfifo(pipe)
    with subprocess.Popen(["xl", "save", "other", str(pipe)]) as xl, pipe.open("rb") as stream:
        until(lambda: subject.state == "suspended", "xl does not suspend it")
        for verb, kind in (
            (domain.suspend, xenpm.SuspendInProgress),
            (lambda: domain.suspend(lightweight=False, path=path), xenpm.SuspendInProgress),
            (domain.resume, xenpm.ResumeError),
            (lambda: domain.resume(cooperative=False), xenpm.ResumeError),
        ):
            with pytest.raises(kind, match=r"being saved or migrated .* \(process [0-9]+\)"):
                verb()
        assert subject.state == "suspended"
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file)
        assert xl.wait() == 0
    run("xl", "restore", str(path))
    subject.wait("data/counter", bool, "it does not come back")
    assert subject.boot == boot
    pipe.unlink()
    path.unlink()


@pytest.mark.soak
def test_migrated_by_xl_at_this_moment(guest: GuestOf, host: xenpm.Host) -> None:
    """A receiver that waits, and then ends: so the migration fails, and the guest stays."""
    subject, pipe, receiver = guest("one"), Path("/root/one.pipe"), Path("/root/receiver")
    began, domain = Path("/root/receiving"), subject.domain
    os.mkfifo(pipe)
    receiver.write_text(f"#!/bin/sh\ntouch {began}\nexec cat {pipe}\n")
    receiver.chmod(0o755)
    command = ["xl", "migrate", "-s", "", "one", str(receiver)]
    with subject.unharmed(), subprocess.Popen(command) as xl:
        try:
            until(began.exists, "nobody receives it")
            refused = r"xl migrate \(process [0-9]+\)"
            with pytest.raises(xenpm.SuspendInProgress, match=refused):
                domain.suspend()
            with pytest.raises(xenpm.SuspendInProgress, match=refused):
                domain.suspend(lightweight=False, path="/root/one.save")
            run("timeout", "30", "sh", "-c", f": > {pipe}")
            assert xl.wait(DEADLINE) != 0
        finally:
            xl.kill()  # if it has not ended
    cycle(subject, host)
    for each in (pipe, receiver, began):
        each.unlink()


@pytest.mark.soak
def test_goes_on_after_a_save_that_has_failed(guest: GuestOf, host: xenpm.Host) -> None:
    subject, path = guest("one"), Path("/root/one.save")
    before, process = subject.domain, watchers("one")
    with pytest.raises(xenpm.SaveError, match="its time is over; it runs on"):
        before.suspend(lightweight=False, path=path, timeout=0.5)
    assert not path.exists()
    assert watchers("one") == process
    until(lambda: not stopped("one"), "xl is still stopped")
    subject.command("reboot")
    assert_made_anew(subject, host, before)


@pytest.mark.soak
def test_save_ends_it_and_only_xl_brings_one_back(guest: GuestOf) -> None:
    subject, path = guest("other"), Path("/root/other.save")
    assert len(watchers("other")) == 1
    for restore, left in (
        (lambda: xenpm.restore(path), 0),
        (lambda: run("xl", "restore", str(path)), 1),
    ):
        subject.domain.suspend(lightweight=False, path=path)
        until(lambda: not watchers("other"), "xl watches on")
        restore()
        assert len(watchers("other")) == left
        path.unlink()
        subject.wait("data/counter", bool, "it does not come back")
