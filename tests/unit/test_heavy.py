"""The heavy way, on the fake host: what is ordered, and what is made of a worker's death."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import xenpm
from xenpm import heavy
from xenpm.testing import MS, SECOND, FakeXen

from . import save_files
from .checks import assert_nothing_left
from .fake_worker import SIZE, FakeWorker


@pytest.fixture
def worker(xen: FakeXen) -> FakeWorker:
    return FakeWorker(xen)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.save"


def save(host: xenpm.Host, path: Path, progress: heavy.Progress = None) -> xenpm.Saving:
    return host.domain("web").suspend(lightweight=False, path=path, progress=progress)


def test_save(xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path) -> None:
    guest = xen.add_guest("web", memory_kib=2 << 20)
    ref = host.domain("web").ref
    saving = save(host, path)
    assert saving == xenpm.Saving(ref, str(path), SIZE, SECOND + MS)
    assert saving.to_dict()["total_ns"] == SECOND + MS
    assert xen.guests == {}
    assert worker.orders == [
        {
            "verb": "save",
            "domid": guest.domid,
            "handle": ref.handle.hex(),
            "name": "web",
            "path": str(path),
            "timeout": 1200.0,  # 600, and 300 for each GiB
        }
    ]
    assert_nothing_left(xen)


def test_the_worker_is_apart_from_all_around() -> None:
    """It is found by where xenpm is, and never in the directory that somebody is in."""
    command = heavy._command({"verb": "none", "path": "/x", "timeout": 1})
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env={})
    # no Xen here, or an order that nobody knows
    assert "xenpm" in done.stdout or "KeyError" in done.stderr
    assert "No module" not in done.stderr
    assert "-I" in command


def test_a_relative_path_is_the_callers(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xen.add_guest("web")
    monkeypatch.chdir(path.parent)
    save(host, Path(path.name))
    assert worker.orders[0]["path"] == str(path)


def test_progress(xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path) -> None:
    xen.add_guest("web")
    worker.noise = 'xc: info: Saving\n{"xenpm": torn\n'
    worker.lasts_ns = 4 * SECOND
    told: list[tuple[int, int]] = []
    save(host, path, lambda done, total: told.append((done, total)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_progress_that_fails(
    xen: FakeXen,
    host: xenpm.Host,
    worker: FakeWorker,
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    xen.add_guest("web")

    def fail(_done: int, _total: int) -> None:
        raise OSError(errno.ENOSPC, "the terminal is full")

    save(host, path, fail)
    assert str(path) in worker.files
    assert "progress could not be told" in caplog.text


def test_what_the_worker_raises_is_raised(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path
) -> None:
    guest = xen.add_guest("web")
    worker.refusal = xenpm.SuspendInProgress(host.domain("web").ref, "somebody else is at it")
    with pytest.raises(xenpm.SuspendInProgress, match="somebody else"):
        save(host, path)
    assert guest.suspensions == 0
    assert len(worker.orders) == 1


@pytest.mark.parametrize("dies", ["before", "suspended"])
def test_killed_with_the_file_incomplete(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path, dies: str
) -> None:
    guest = xen.add_guest("web")
    worker.dies = dies
    with pytest.raises(xenpm.SaveError, match=r"ended with status -9.*runs on"):
        save(host, path)
    assert guest.running
    assert worker.files == {}
    assert [order["verb"] for order in worker.orders] == ["save", "mend save"]
    assert worker.orders[1]["begun"]  # for progress was told
    assert_nothing_left(xen)


@pytest.mark.parametrize("dies", ["complete", "done"])
def test_killed_with_the_file_complete(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path, dies: str
) -> None:
    xen.add_guest("web")
    worker.dies = dies
    assert save(host, path).size_bytes == SIZE
    assert xen.guests == {}
    assert list(worker.files) == [str(path)]


def test_killed_twice(xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path) -> None:
    guest = xen.add_guest("web")
    worker.dies, worker.second_dies = "suspended", True
    with pytest.raises(xenpm.XenError, match=r"unknown.*resume it if the file is not there"):
        save(host, path)
    assert guest.suspended


@pytest.mark.parametrize("after_ns", [10 * MS, 900 * MS])
def test_interrupted(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path, after_ns: int
) -> None:
    guest = xen.add_guest("web")
    xen.after(after_ns, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        save(host, path)
    assert guest.running
    assert worker.files == {}
    assert_nothing_left(xen)


def test_interrupted_twice_the_worker_goes_on(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path
) -> None:
    xen.add_guest("web")
    worker.deaf = True
    for after_ns in (10 * MS, 20 * MS):
        xen.after(after_ns, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        save(host, path)
    assert signal.SIGKILL not in xen.jobs[0].signals
    xen.settle()
    assert xen.guests == {}
    assert list(worker.files) == [str(path)]


def test_a_worker_that_hangs_is_killed(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path
) -> None:
    guest = xen.add_guest("web")
    worker.lasts_ns = None
    with pytest.raises(xenpm.SaveError, match="ended with status -9"):
        host.domain("web").suspend(lightweight=False, path=path, timeout=5)
    assert guest.running
    assert xen.now_ns > 300 * SECOND  # it has time for putting things back
    assert_nothing_left(xen)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"lightweight": False}, ValueError("takes a path")),
        ({"lightweight": False, "path": ""}, ValueError("empty")),
        ({"lightweight": False, "path": 5}, TypeError("int")),
        ({"lightweight": False, "path": "/tmp/\0x"}, ValueError("no file can be called")),
        ({"lightweight": False, "path": "\ud800"}, ValueError("no file can be called")),
        ({"lightweight": False, "path": "x", "timeout": 0}, ValueError("timeout must be")),
        ({"lightweight": False, "path": "x", "late_timeout": 1}, ValueError("light way")),
        ({"path": "x"}, ValueError("heavy way")),
        ({"progress": print}, ValueError("heavy way")),
    ],
)
def test_wrong_arguments(
    xen: FakeXen,
    host: xenpm.Host,
    worker: FakeWorker,
    arguments: dict[str, object],
    refusal: Exception,
) -> None:
    guest = xen.add_guest("web")
    with pytest.raises(type(refusal), match=str(refusal)):
        host.domain("web").suspend(**arguments)  # type: ignore[call-overload]
    assert worker.orders == []
    assert guest.suspensions == 0


def test_a_python_that_is_not_known(
    xen: FakeXen, host: xenpm.Host, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xen.add_guest("web")
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(xenpm.XenError, match="does not know its Python"):
        save(host, path)


# -- restore


@pytest.fixture
def saved(xen: FakeXen, host: xenpm.Host, worker: FakeWorker, path: Path) -> Path:
    """A file of a domain that was saved."""
    xen.add_guest("web", uuid=save_files.UUID_)
    save(host, path)
    path.write_bytes(save_files.whole())  # which the caller looks at, too
    worker.orders.clear()
    return path


def test_restore(xen: FakeXen, host: xenpm.Host, worker: FakeWorker, saved: Path) -> None:
    domain = host.restore(saved)
    assert (domain.name, domain.uuid) == ("web", save_files.UUID_)
    assert domain.state is xenpm.DomainState.RUNNING
    assert worker.orders[0]["verb"] == "restore"
    assert saved.exists()
    assert_nothing_left(xen)


def test_restore_a_foreign_file(host: xenpm.Host, worker: FakeWorker, saved: Path) -> None:
    saved.write_bytes(save_files.whole()[:-1])
    with pytest.raises(xenpm.SaveFileError, match="is cut off"):
        host.restore(saved)
    assert worker.orders == []


def test_restore_killed(xen: FakeXen, host: xenpm.Host, worker: FakeWorker, saved: Path) -> None:
    worker.dies = "before"
    with pytest.raises(xenpm.RestoreError, match=r"was not restored.*-9"):
        host.restore(saved)
    assert xen.guests == {}


def test_restore_killed_when_all_was_done(
    host: xenpm.Host, worker: FakeWorker, saved: Path
) -> None:
    worker.dies = "done"
    assert host.restore(saved).name == "web"


def test_restore_interrupted(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, saved: Path
) -> None:
    xen.after(10 * MS, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        host.restore(saved)
    assert xen.guests == {}
    assert_nothing_left(xen)
    assert len(worker.orders) == 1
