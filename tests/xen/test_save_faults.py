"""Saving that fails: a full disk, Ctrl-C, a deadline, processes that are killed at every stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import xenpm

from . import killed
from .guest import Guest, run
from .saving import NAMES, GuestOf, fresh_path, going_on, none_of, save

SCENE = "save"
pytestmark = pytest.mark.soak  # it makes guests anew all the time


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest, guest: GuestOf) -> Guest:
    return guest(request.param)


@pytest.fixture
def path() -> Iterator[Path]:
    with fresh_path() as path:
        yield path


@contextmanager
def small_disk(mib: int) -> Iterator[Path]:
    place = Path("/mnt/small")
    place.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(place))
    try:
        yield place
    finally:
        run("umount", str(place))


def test_no_room_is_told_before_anything_is_touched(subject: Guest) -> None:
    with small_disk(100) as place, subject.unharmed():
        request = subject.read("control/shutdown")
        with pytest.raises(xenpm.SaveError, match=r"room for 100 MiB.*Nothing was touched"):
            save(subject, place / "guest.save")
        assert subject.read("control/shutdown") == request
        assert list(place.iterdir()) == []


def test_disk_that_others_fill_up_meanwhile(subject: Guest) -> None:
    """Its room is its own from before the guest is asked."""
    left: list[str] = []

    def fill(_done: int, _total: int) -> None:
        if not left:
            command = ["dd", "if=/dev/zero", f"of={place / 'other'}", "bs=1M"]
            left.append(subprocess.run(command, check=False, capture_output=True, text=True).stderr)

    with small_disk(200) as place, going_on(subject):
        path = place / "guest.save"
        assert save(subject, path, fill).size_bytes == path.stat().st_size
        assert "No space left" in left[0]
        (place / "other").unlink()
        xenpm.restore(path)


def test_interrupted_guest_runs_on(subject: Guest, path: Path) -> None:
    interrupts = iter([signal.SIGINT])  # one: a second would leave the worker to itself

    def interrupt(_done: int, _total: int) -> None:
        for each in interrupts:
            os.kill(os.getpid(), each)

    with subject.unharmed(), pytest.raises(KeyboardInterrupt):
        save(subject, path, interrupt)
    assert not path.exists()


def test_deadline(subject: Guest, path: Path) -> None:
    with subject.unharmed(), pytest.raises(xenpm.SaveError, match="its time is over"):
        subject.domain.suspend(lightweight=False, path=path, timeout=0.5)
    assert not path.exists()


@pytest.mark.parametrize("stage", killed.SAVE)
def test_worker_killed_while_saving(
    guest: GuestOf, path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the guest runs on and there is no file, or the file is complete and the guest gone."""
    subject = guest("save-pv")
    with going_on(subject):
        killed.while_saving(subject, path, stage, monkeypatch)


def test_helper_of_libxl_killed(subject: Guest, path: Path) -> None:
    # as soon as it is there; this is its name as the kernel has it
    strike = "until pkill -KILL -x libxl-save-help; do sleep 0.1; done"
    left = "it runs.*, and there is no file"  # whether it had taken the request is a matter of when
    with subprocess.Popen(["timeout", "60", "sh", "-c", strike]) as striking:
        with subject.unharmed(), pytest.raises(xenpm.SaveError, match=left):
            save(subject, path)
        assert striking.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize("way", ["interrupted", "deadline"])
def test_restore_given_up(guest: GuestOf, path: Path, way: str) -> None:
    """Nothing is left of the domain, and the file can be restored afterwards."""
    subject = guest("save-pv")
    interrupts = iter([signal.SIGINT])

    def interrupt(_done: int, _total: int) -> None:
        for each in interrupts:
            os.kill(os.getpid(), each)

    with going_on(subject):
        save(subject, path)
        if way == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                xenpm.restore(path, progress=interrupt)
        else:
            with pytest.raises(xenpm.RestoreError, match="was not restored"):
                xenpm.restore(path, timeout=0.01)
        assert none_of(subject.name)
        xenpm.restore(path)


@pytest.mark.parametrize("stage", killed.RESTORE)
def test_worker_killed_while_restoring(
    guest: GuestOf, path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the domain, and the file is as it was."""
    subject = guest("save-pv")
    with going_on(subject):
        killed.while_restoring(subject, path, stage, monkeypatch)


@pytest.mark.parametrize("part", [0.0, 0.3])
def test_caller_killed_while_saving(guest: GuestOf, path: Path, part: float) -> None:
    """The worker goes on: the file is complete in the end, and the guest is in it."""
    subject = guest("save-pv")
    script = f"""
import os, signal, xenpm
def strike(done, total):
    if done >= total * {part}:
        os.kill(os.getpid(), signal.SIGKILL)
xenpm.Domain({subject.name!r}).suspend(lightweight=False, path={str(path)!r}, progress=strike)
"""
    with going_on(subject):
        done = subprocess.run([sys.executable, "-c", script], timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL
        with xenpm.Host() as host:
            for _ in range(120):
                if none_of(subject.name):
                    break
                # nobody tells: the one that would be told is dead
                subprocess.run(["sleep", "0.5"], check=True)
            assert subject.name not in [domain.name for domain in host.domains()]
        xenpm.restore(path)
