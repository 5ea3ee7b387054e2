"""Guests with checked disk I/O, saved to files and restored: by us, by xl, and torn apart."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import xenpm
from xenpm import heavy, savefile

from . import killed
from .guest import Guest, run

SCENE = "save"
NAMES = ["save-pv", "save-pvh"]
DIRECTORY = Path("/root/saved")
GuestOf = Callable[[str], Guest]


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest, guest: GuestOf) -> Guest:
    return guest(request.param)


@pytest.fixture
def path() -> Iterator[Path]:
    DIRECTORY.mkdir(exist_ok=True)
    path = DIRECTORY / "guest.save"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)
    assert list(DIRECTORY.iterdir()) == []


def restore_with_xl(path: Path) -> None:
    run("xl", "restore", str(path))


def save(subject: Guest, path: Path, progress: heavy.Progress = None) -> xenpm.Saving:
    return subject.domain.suspend(lightweight=False, path=path, progress=progress)


@contextmanager
def going_on(subject: Guest) -> Iterator[None]:
    """Within it is saved and restored; it must be the same guest afterwards, and its disk, too."""
    boot, count = subject.boot, subject.count
    verified = int(subject.report("io")["verified"])
    yield
    assert subject.state == "running"
    subject.wait("data/counter", bool, "it does not come back")  # it makes its nodes anew
    subject.wait_counting(max(count, subject.count))
    report = subject.wait_working("io", "verified", 3)
    assert report["errors"] == "0"
    assert int(report["verified"]) > verified
    assert subject.boot == boot


def none_of(name: str) -> bool:
    with xenpm.Host() as host:
        return name not in [domain.name for domain in host.domains()]


@pytest.mark.core
def test_saved_and_restored(subject: Guest, path: Path) -> None:
    far: list[tuple[int, int]] = []
    with going_on(subject):
        domid = subject.domain.domid
        saving = save(subject, path, lambda done, total: far.append((done, total)))
        assert none_of(subject.name)
        assert path.stat().st_size == saving.size_bytes
        assert path.stat().st_mode & 0o777 == 0o600
        restored = xenpm.restore(path)
        assert (restored.name, restored.domid != domid) == (subject.name, True)
    assert far == sorted(far)
    assert far[-1][0] == saving.size_bytes <= far[-1][1]


def test_saved_by_us_restored_by_xl(subject: Guest, path: Path) -> None:
    with going_on(subject):
        save(subject, path)
        restore_with_xl(path)


def test_saved_by_xl_restored_by_us(subject: Guest, path: Path) -> None:
    with going_on(subject):
        run("xl", "save", subject.name, str(path))
        xenpm.restore(path)


def test_restored_guest_suspends_lightly(subject: Guest, path: Path) -> None:
    with going_on(subject):
        save(subject, path)
        domain = xenpm.restore(path)
        domain.suspend()
        domain.resume()


def test_domain_that_is_there_is_not_made_twice(subject: Guest, path: Path) -> None:
    with going_on(subject):
        save(subject, path)
        xenpm.restore(path)
        with pytest.raises(xenpm.RestoreError, match="is there already"):
            xenpm.restore(path)


def test_file_that_is_there_is_not_written_over(subject: Guest, path: Path) -> None:
    path.write_text("precious")
    with subject.unharmed(), pytest.raises(xenpm.SaveError, match="is there already"):
        save(subject, path)
    assert path.read_text() == "precious"


def test_cut_off_files_are_refused(guest: GuestOf, path: Path) -> None:
    subject = guest("save-pvh")
    places = random.Random(1)  # noqa: S311
    with going_on(subject):
        size = save(subject, path).size_bytes
        with savefile.open_checked(path) as file:
            begin = savefile.read(file, path).stream_offset
        cut = path.with_name("cut")
        shutil.copyfile(path, cut)
        # many of them in the headers, which are short
        lengths = {0, size - 1, *(places.randrange(begin + 64) for _ in range(16))}
        while len(lengths) < 50:
            lengths.add(places.randrange(size))
        for length in sorted(lengths, reverse=True):
            os.truncate(cut, length)
            with pytest.raises(xenpm.SaveFileError, match=r"is cut off|is empty"):
                xenpm.restore(cut)
            assert none_of(subject.name)
        cut.unlink()
        xenpm.restore(path)


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


def test_disk_that_fills_up_meanwhile(subject: Guest) -> None:
    with small_disk(200) as place:

        def fill(_done: int, _total: int) -> None:
            if not (place / "other").exists():
                run("fallocate", "-l", "150M", str(place / "other"))

        with subject.unharmed(), pytest.raises(xenpm.SaveError, match="it runs on, and there is"):
            save(subject, place / "guest.save", fill)
        assert [each.name for each in place.iterdir()] == ["other"]


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
    complete = stage in ("after complete", "before destroy", "after destroy")
    with going_on(subject):
        with monkeypatch.context() as patched:
            patched.setattr(heavy, "_CODE", killed.code(stage))
            if complete:
                assert save(subject, path).size_bytes == path.stat().st_size
            else:
                with pytest.raises(xenpm.SaveError, match="it runs on, and there is no file"):
                    save(subject, path)
        assert path.exists() == none_of(subject.name) == complete
        if complete:
            xenpm.restore(path)


@pytest.mark.parametrize("stage", killed.RESTORE)
def test_worker_killed_while_restoring(
    guest: GuestOf, path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the domain, and the file is as it was."""
    subject = guest("save-pv")
    with going_on(subject):
        save(subject, path)
        with monkeypatch.context() as patched:
            patched.setattr(heavy, "_CODE", killed.code(stage))
            with pytest.raises(xenpm.RestoreError, match="was not restored"):
                xenpm.restore(path)
        assert none_of(subject.name)
        xenpm.restore(path)


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


def test_policy_of_a_host_suspend(host: xenpm.Host, guest: GuestOf) -> None:
    """Both at once, each by a worker of its own."""
    rules = {host.domain(name): xenpm.Rule(xenpm.Policy.SAVE) for name in NAMES}
    directory = xenpm.Settings().save_directory
    with going_on(guest("save-pv")), going_on(guest("save-pvh")):
        report = host.suspend_domains(rules=rules)
        assert report.problems == []
        assert host.domains() == []
        assert len(list(directory.iterdir())) == 2
        back = host.resume_domains()
        assert back is not None
        assert back.problems == []
        assert sorted(str(each.restored and each.restored.name) for each in back.domains.values())
        assert list(directory.iterdir()) == []
