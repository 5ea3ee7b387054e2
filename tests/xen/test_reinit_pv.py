"""Starting PV guests over: Linux is refused, a kernel that does not register vCPU areas can."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import xenpm

from .guest import Guest, LogWatch, wait_node

pytestmark = pytest.mark.soak
SCENE = "tiny"
GuestOf = Callable[[str], Guest]


def assert_all_works(subject: Guest) -> None:
    """Xenstore from inside, the console both ways, and the event channels of both."""
    subject.wait_counting(subject.count)
    with LogWatch(subject.log) as log:
        with open(subject.read("console/tty"), "wb", buffering=0) as console:
            console.write(b"are you there\n")
        log.wait("tiny: heard are you there")
    wait_node(
        f"{subject.home}/data/counter",
        lambda text: "events=0" not in text,
        f"{subject.name} has no events of its store or of its console since it has suspended",
    )


def wait_over(subject: Guest, suspensions: int, returned: int) -> None:
    """Wait until it says what its suspend hypercall has returned."""
    wait_node(
        f"{subject.home}/data/over",
        lambda text: text.startswith(f"suspensions={suspensions} returned={returned} "),
        f"{subject.name} does not say that its suspension {suspensions} has returned {returned}",
    )


def test_linux_is_refused_and_unharmed(guest: GuestOf) -> None:
    subject = guest("linux")
    with subject.unharmed():
        assert not subject.domain.supports_reinit
        assert "has note SUSPEND_CANCEL" in subject.domain.supports_cooperative_resume.evidence
        subject.domain.suspend()
        with pytest.raises(xenpm.ReinitNotSupported, match="PV guest"):
            subject.domain.resume(cooperative=False)
        assert subject.state == "suspended"
        assert subject.domain.resume().cooperative


def test_tiny_guest_starts_over_by_force(guest: GuestOf) -> None:
    subject = guest("tiny")
    domain = subject.domain
    assert_all_works(subject)
    before = 0
    if "over" in subject.store.list(f"{subject.home}/data"):
        before = int(subject.report("over")["suspensions"])
    for suspensions, cooperative in enumerate([False, True, False, False], before + 1):
        with subject.unharmed(), LogWatch(subject.log) as log:
            domain.suspend()
            resumption = domain.resume(cooperative=cooperative, force=not cooperative)
            assert resumption.cooperative is cooperative
            wait_over(subject, suspensions, int(cooperative))
            assert subject.report("over")["asked_by"] == "channel"
            log.wait(f"tiny: suspensions={suspensions} returned={int(cooperative)} ")
            assert_all_works(subject)


def test_suspend_channel_is_left_to_who_has_its_lock(guest: GuestOf) -> None:
    """The lock file of libxc, which a save takes as well."""
    subject = guest("tiny")
    lock = Path(f"/var/run/xen/suspend-evtchn-{subject.domain.domid}.lock")
    with subject.unharmed(), lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # by this process, and libxc would get it again: a child
        command = [sys.executable, "-m", "xenpm", "suspend", "-L", "tiny"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 1
        assert "somebody else is using its event channel" in done.stderr
        lock.unlink()
    subject.domain.suspend()
    assert not lock.exists(), "the lock was not given back"
    assert subject.domain.resume().cooperative


def test_tiny_guest_is_refused_without_force(guest: GuestOf) -> None:
    subject = guest("tiny")
    with subject.unharmed():
        subject.domain.suspend()
        with pytest.raises(xenpm.ReinitNotSupported, match="force=True"):
            subject.domain.resume(cooperative=False)
        assert subject.domain.resume().cooperative


@pytest.mark.trouble
def test_linux_panics_by_force(guest: GuestOf) -> None:
    """What the refusal is for."""
    subject = guest("linux")
    domain = subject.domain
    domain.suspend()
    with LogWatch(subject.log) as log:
        domain.resume(cooperative=False, force=True)
        log.wait("register_vcpu_info failed")
    subject.create()
