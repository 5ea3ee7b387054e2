"""The worker, on the fake host and a scripted libxl, with real files."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import xenpm
from xenpm import savefile, worker
from xenpm.connection import Connection
from xenpm.testing import MS, FakeGuest, FakeXen

from . import save_files
from .checks import assert_released


class FakeXl:
    """What libxl does, as far as a worker sees it; each operation takes some steps of waiting.

    Attributes:
        length: how many steps.
        fails: the error of an operation, by its name; it comes with the last step.
        steps: is called with the name of the operation and the number of the step.
    """

    def __init__(self, xen: FakeXen) -> None:
        self.xen = xen
        self.length = 3
        self.fails: dict[str, int] = {}
        self.steps: Callable[[str, int], None] = lambda _name, _step: None
        self.created: int | None = None
        self._made: int | None = None
        self.begun: list[str] = []
        self.aborted = False
        self.suspends = True
        self._end: Callable[[], None] = lambda: None
        self._left = 0
        self._fd, self._stream = -1, b""
        self._head = 40  # how much of it the helper has written after the first step

    def _begin(self, name: str, end: Callable[[], None]) -> None:
        assert self._left == 0, "another operation is under way"
        self.begun.append(name)
        self._end, self._left, self.aborted = end, self.length, False

    def wait(self, timeout_ms: int) -> bool:
        assert timeout_ms > 0
        assert self._left > 0
        name = self.begun[-1]
        self.steps(name, self.length - self._left)
        if name == "save" and self._left == self.length:
            os.write(self._fd, self._stream[: self._head])  # the helper has begun
        self._left = 1 if self.aborted else self._left
        self._left -= 1
        if self._left:
            return False
        code = errno.ECANCELED if self.aborted else self.fails.get(name)
        if name == "restore":
            self.created = self._made  # whatever has become of it
        if code:
            raise xenpm.XenlightError(f"libxl_{name}", code, "made to fail")
        self._end()
        return True

    def abort(self) -> None:
        self.aborted = True

    def save(self, domid: int, fd: int) -> None:
        if self.suspends:
            self.xen.guests[domid].suspend()
        self._fd, self._stream = fd, save_files.libxl(xenpm.DomainType.PVH)
        self._begin("save", lambda: self._write(fd))

    def _write(self, fd: int) -> None:
        os.write(fd, self._stream[self._head :])

    def resume(self, domid: int) -> None:
        self._begin("resume", lambda: self._resume(domid))

    def _resume(self, domid: int) -> None:
        self.xen.guests[domid].resume(True)
        self.xen.toolstack.resume_domain(domid)

    def destroy(self, domid: int) -> None:
        self._begin("destroy", lambda: self._destroy(domid))

    def _destroy(self, domid: int) -> None:
        self.xen.guests[domid].destroy()
        self.xen.settle()

    def restore(self, config: str, fd: int) -> None:
        assert os.read(fd, 8) == b"LibxlFmt"
        values = json.loads(config)["c_info"]
        guest = self.xen.add_guest(values["name"], uuid=save_files.UUID_)
        guest.pause()
        self._made = guest.domid
        self._begin("restore", lambda: None)

    def unpause(self, domid: int) -> None:
        self._begin("unpause", self.xen.guests[domid].unpause)

    def domain_configuration(self, _domid: int) -> str:
        return save_files.config(xenpm.DomainType.PVH)


@pytest.fixture
def web(xen: FakeXen) -> FakeGuest:
    return xen.add_guest("web", uuid=save_files.UUID_, memory_kib=1024)


@pytest.fixture
def xl(xen: FakeXen, monkeypatch: pytest.MonkeyPatch) -> FakeXl:
    fake = FakeXl(xen)
    monkeypatch.setattr(worker, "open_xenlight", lambda **_: nullcontext(fake))
    monkeypatch.setattr(worker, "Connection", lambda: Connection(xen.ports()))
    monkeypatch.setattr(worker, "_BESIDES", dict.fromkeys(xenpm.DomainType, 1 << 20))
    return fake


@pytest.fixture(autouse=True)
def _term() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    signal.signal(signal.SIGTERM, before)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.save"


class Work:
    """Gives a worker its order, and takes what it tells."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self._patch = monkeypatch
        self.told: list[dict[str, Any]] = []

    def __call__(self, verb: str, **more: Any) -> dict[str, Any]:
        order = {
            "verb": verb,
            "path": str(self.path),
            "timeout": 60,
            "domid": 1,
            "handle": save_files.UUID_.hex,
            "name": "web",
            "remove": False,
            "said": "its process was killed",
            "begun": True,
            **more,
        }
        self._patch.setattr(sys, "argv", ["-c", json.dumps(order)])
        written = io.StringIO()
        with self._patch.context() as patched:
            patched.setattr(sys, "stdout", written)
            worker.main()
        self.told = [json.loads(line) for line in written.getvalue().splitlines()]
        last = self.told[-1]
        if last["xenpm"] == "failed":
            error: xenpm.XenError = pickle.loads(bytes.fromhex(last["error"]))  # noqa: S301
            raise error
        return last


@pytest.fixture
def work(path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(path, monkeypatch)


def read(path: Path) -> savefile.SavedDomain:
    with savefile.open_checked(path) as file:
        return savefile.read(file, path)


def assert_unharmed(xen: FakeXen, guest: FakeGuest, path: Path) -> None:
    """It runs, nothing is left, and there is no file."""
    assert guest.running
    assert guest.request == b""
    assert_released(xen)
    assert list(path.parent.iterdir()) == []


# -- save


def test_save(xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work) -> None:
    locked: list[bool] = []
    there: list[bool] = []

    def look(name: str, _step: int) -> None:
        locked.append(web.domid in xen.locks)
        if name == "destroy":
            there.append(work.path.exists())

    xl.steps = look
    done = work("save")
    assert done["size_bytes"] == read(work.path).size_bytes == work.path.stat().st_size
    assert work.path.stat().st_mode & 0o777 == 0o600
    assert xen.guests == {}
    assert all(locked)
    assert there == [True, True, True]  # before the domain is destroyed
    assert xl.begun == ["save", "destroy"]
    progress = [each for each in work.told if each["xenpm"] == "progress"]
    assert progress[0]["done"] < progress[-1]["done"] <= progress[-1]["total"]
    assert_released(xen)


@pytest.mark.usefixtures("web")
def test_events_of_libxl_are_not_told_one_by_one(
    xl: FakeXl, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads it is woken by each line; libxl has an event for each batch of pages."""
    steps: list[str] = []
    xl.length, xl.steps = 500, lambda name, _step: steps.append(name)
    clock = SimpleNamespace(monotonic=lambda: len(steps) / 100)  # five seconds
    monkeypatch.setattr(worker, "time", clock)
    work("save")
    progress = [each for each in work.told if each["xenpm"] == "progress"]
    assert len(progress) == 11  # at both ends, and twice a second


def test_what_is_on_the_disk_before_the_name_and_before_the_end(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def synced(fd: int) -> None:
        steps.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def linked(*arguments: Any, **named: Any) -> None:
        steps.append("name")
        link(*arguments, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    xl.steps = lambda name, step: steps.append(name) if step == 0 else None
    work("save")
    assert steps == ["save", "file", "name", "directory", "destroy"]
    assert not xen.guests
    assert web.suspensions == 1


def refused(work: Work, kind: type[xenpm.XenError], what: str) -> None:
    with pytest.raises(kind, match=what):
        work("save")


def test_refusals(xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work) -> None:
    work.path.write_text("precious")
    refused(work, xenpm.SaveError, r"is there already.*Nothing was touched")
    assert work.path.read_text() == "precious"
    work.path.unlink()
    work.path = work.path.parent / "no" / "web.save"
    refused(work, xenpm.SaveError, r"No such file.*Nothing was touched")
    work.path = work.path.parent.parent / ("a" * 256)
    refused(work, xenpm.SaveError, r"File name too long. Nothing was touched")
    work.path = Path("/")
    refused(work, xenpm.SaveError, r"is there already")
    work.path = Path("/proc/web.save")
    refused(work, xenpm.SaveError, r"no file can be made in /proc.*O_TMPFILE")
    assert xl.begun == []
    assert web.suspensions == 0
    assert_released(xen)


def test_no_room(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.statvfs("/")
    little = os.statvfs_result((4096, 4096, *found[2:4], 500, *found[5:]))
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: little)
    refused(work, xenpm.SaveError, r"has room for 1 MiB, and it takes 2 MiB. Nothing was touched")
    assert xl.begun == []
    assert_unharmed(xen, web, work.path)


def test_room_is_taken_before(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can have it meanwhile; what was not used is given back."""
    taken: list[int] = []
    xl.steps = lambda name, _: taken.append(os.fstat(xl._fd).st_size) if name == "save" else None
    done = work("save")
    assert taken[0] > done["size_bytes"] == work.path.stat().st_size
    work.path.unlink()
    web = xen.add_guest("web", uuid=save_files.UUID_, memory_kib=1024)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(xenpm.SaveError, match=r"2 MiB.*No space left.*Nothing was touched"):
        work("save", domid=web.domid)
    assert_unharmed(xen, web, work.path)


def test_cancelled_while_it_is_checked(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallocate = os.posix_fallocate

    def cancel(*given: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        fallocate(*given)

    monkeypatch.setattr(os, "posix_fallocate", cancel)
    with pytest.raises(xenpm.SuspendCancelled, match="it was cancelled; it runs on, and there is"):
        work("save", begun=False)
    assert web.suspensions == 0
    assert xl.begun == []
    assert_unharmed(xen, web, work.path)


def test_somebody_makes_the_file_meanwhile(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work
) -> None:

    def make(*_: object) -> None:
        work.path.write_text("precious")

    xl.steps = make
    refused(work, xenpm.SaveError, "somebody else has made .*; it runs on")
    assert work.path.read_text() == "precious"
    assert web.running
    assert_released(xen)


def test_directory_is_moved_meanwhile(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, tmp_path: Path
) -> None:
    """Who asked for the file would look for it in vain, and its domain would be gone."""
    place, moved = tmp_path / "place", tmp_path / "moved"
    place.mkdir()
    work.path = place / "web.save"

    def move(*_: object) -> None:
        if not moved.exists():
            place.rename(moved)

    xl.steps = move
    refused(work, xenpm.SaveError, "No such file or directory.*; it runs on")
    assert list(moved.iterdir()) == []
    assert web.running
    moved.rmdir()
    place.mkdir()

    def replace(*_: object) -> None:
        if not moved.exists():
            place.rename(moved)
            place.mkdir()
            work.path.write_text("other")

    xl.steps = replace
    refused(work, xenpm.SaveError, "another directory meanwhile; it runs on")
    assert list(moved.iterdir()) == []
    assert work.path.read_text() == "other"
    assert_released(xen)


@pytest.mark.parametrize(
    "spoil",
    [
        (lambda guest: guest.pause(), xenpm.SuspendNotSupported, "is paused"),
        (lambda guest: guest.suspend(), xenpm.AlreadySuspended, "is suspended already"),
        (lambda guest: guest.crash(), xenpm.SuspendInterrupted, "has shut down"),
        (
            lambda guest: guest.give_card("0000:00:10.0"),
            xenpm.SuspendNotSupported,
            "passed through",
        ),
        (lambda guest: guest.destroy(), xenpm.NoSuchDomain, "is gone"),
        (
            lambda guest: guest.xen.toolstack.write(guest.request_path, b"reboot"),
            xenpm.SuspendInProgress,
            "'reboot' already",
        ),
        (
            lambda guest: guest.xen.add_guest("user").give_device("vbd", 1, server=guest.domid),
            xenpm.SuspendNotSupported,
            "serves vbd 1 of domain 2",
        ),
    ],
)
def test_domains_that_cannot_be_saved(
    xen: FakeXen,
    xl: FakeXl,
    web: FakeGuest,
    work: Work,
    spoil: tuple[Callable[[FakeGuest], object], type[xenpm.XenError], str],
) -> None:
    act, kind, what = spoil
    act(web)
    xen.settle()
    refused(work, kind, what)
    assert xl.begun == []
    assert_released(xen)
    assert not work.path.exists()


def test_somebody_else_is_at_it(
    xen: FakeXen, host: xenpm.Host, xl: FakeXl, web: FakeGuest, work: Work
) -> None:
    assert host._connection.ports.locks.acquire(web.domid)
    refused(work, xenpm.SuspendInProgress, "another process")
    assert xl.begun == []
    assert web.running
    assert list(xen.locks) == [web.domid]


def test_libxl_fails(xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work) -> None:
    xl.fails["save"] = errno.EIO
    refused(work, xenpm.SaveError, r"was not saved: libxl_save.*made to fail.*it runs on")
    assert xl.begun == ["save"]
    assert_unharmed(xen, web, work.path)


@pytest.mark.parametrize("late", [False, True])
def test_guest_that_does_not_suspend_in_time(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, late: bool
) -> None:
    """It took the request: it is watched, and resumed if it suspends after all."""
    xl.fails["save"], xl.suspends = errno.ETIMEDOUT, False
    if late:
        xen.after(500 * MS, web.suspend)
    refused(work, xenpm.SaveError, "it runs on" if late else "should it yet suspend, resume it")
    assert xl.begun == ["save"]
    assert_unharmed(xen, web, work.path)


def test_request_that_stands_is_taken_back(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work
) -> None:
    xl.fails["save"], xl.suspends = errno.ECANCELED, False
    web.acknowledge_ns = None
    xl.steps = lambda _name, _step: xen.toolstack.write(web.request_path, b"suspend")
    before = xen.now_ns
    refused(work, xenpm.SaveError, "it runs on")
    assert xen.now_ns - before < 1000 * MS  # nothing is to be waited for
    assert_unharmed(xen, web, work.path)


@pytest.mark.parametrize("failing", ["fsync", "link"])
def test_disk_fails(xl: FakeXl, web: FakeGuest, work: Work, failing: str) -> None:
    def fail(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, failing, fail)
        refused(work, xenpm.SaveError, "No space left on device; it runs on")
    assert xl.begun == ["save"]
    assert_unharmed(web.xen, web, work.path)


def test_file_that_could_not_be_restored(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xl, "_write", lambda _fd: None)
    refused(work, xenpm.SaveError, r"is cut off.*it runs on")
    assert_unharmed(xen, web, work.path)


@pytest.mark.parametrize("step", [0, 2])
def test_cancelled(xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, step: int) -> None:
    def cancel(name: str, at: int) -> None:
        if (name, at) == ("save", step):
            os.kill(os.getpid(), signal.SIGTERM)

    xl.steps = cancel
    refused(work, xenpm.SuspendCancelled, "was not saved: it was cancelled; it runs on")
    assert_unharmed(xen, web, work.path)


@pytest.mark.parametrize("suspends", [True, False])
def test_cancelled_while_libxl_waits_for_the_device_model(
    xen: FakeXen, xl: FakeXl, work: Work, monkeypatch: pytest.MonkeyPatch, suspends: bool
) -> None:
    """Aborted then, libxl crashes; it goes on with the first page, and the guest has suspended."""
    guest = xen.add_guest("web", uuid=save_files.UUID_, memory_kib=1024, type=xenpm.DomainType.HVM)
    files: list[int] = []
    aborted: list[bool] = []
    save = xl.save

    def save_there(domid: int, fd: int) -> None:
        files.append(fd)
        save(domid, fd)

    def step(name: str, at: int) -> None:
        if name != "save":
            return
        aborted.append(xl.aborted)
        if at == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        if at == 3:
            os.write(files[0], b"page")

    monkeypatch.setattr(xl, "save", save_there)
    xl.length, xl.steps, xl.suspends = 10, step, suspends
    refused(work, xenpm.SuspendCancelled, "was not saved: it was cancelled; it runs")
    assert aborted == [False] * (4 if suspends else 1) + [True]
    assert_unharmed(xen, guest, work.path)


def test_cancelled_before_libxl_has_its_helper(
    xl: FakeXl, web: FakeGuest, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aborted then, libxl crashes; what it writes itself is not what the helper writes."""
    aborted: list[bool] = []

    def step(name: str, at: int) -> None:
        if name == "save":
            aborted.append(xl.aborted)
            if at == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            if at in (1, 3):
                os.write(xl._fd, bytes(24))

    xl.length, xl.steps = 10, step
    monkeypatch.setattr(xl, "_head", 0)
    refused(work, xenpm.SuspendCancelled, "was not saved: it was cancelled; it runs on")
    assert aborted == [False] * 4 + [True]
    assert_unharmed(web.xen, web, work.path)


def test_cancelled_when_the_file_is_there(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work
) -> None:
    xl.steps = lambda name, _: os.kill(os.getpid(), signal.SIGTERM) if name == "destroy" else None
    assert work("save")["size_bytes"] == work.path.stat().st_size
    assert web.domid not in xen.guests


def test_deadline(xl: FakeXl, web: FakeGuest, work: Work) -> None:
    with pytest.raises(xenpm.SaveError, match=r"its time is over; it runs on"):
        work("save", timeout=0)
    assert xl.begun == ["save"]
    assert_unharmed(web.xen, web, work.path)


def test_destroying_fails(xl: FakeXl, web: FakeGuest, work: Work) -> None:
    xl.fails["destroy"] = errno.EIO
    with pytest.raises(xenpm.SaveError, match=r"is saved in .*not be destroyed.*twice") as caught:
        work("save")
    assert not caught.value.state_known
    assert read(work.path).name == "web"
    assert web.suspended


@pytest.mark.usefixtures("xl")
def test_destroying_takes_longer_the_more_memory_there_is(
    xen: FakeXen, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    graces: list[float] = []
    finish = worker._Worker.finish

    def noted(self: Any, *given: Any, **named: Any) -> None:
        graces.append(named.get("grace", 0))
        finish(self, *given, **named)

    monkeypatch.setattr(worker._Worker, "finish", noted)
    xen.add_guest("web", uuid=save_files.UUID_, memory_kib=1 << 30)
    monkeypatch.setattr(worker._Save, "take_room", lambda *_: 1)
    work("save")
    assert graces[-1] > 2048


def test_guest_that_is_not_resumed(xl: FakeXl, web: FakeGuest, work: Work) -> None:
    """Nobody is told that nothing was touched."""
    xl.fails["save"] = errno.ENOSPC
    web.xen.fail("resume", errno.EIO, times=None)
    with pytest.raises(xenpm.SaveError, match=r"libxl_save.*; then .*no file.*resume it") as caught:
        work("save")
    assert not caught.value.state_known
    assert web.suspended


def test_guest_with_a_device_model_is_resumed_by_libxl(
    xen: FakeXen, xl: FakeXl, work: Work
) -> None:
    xen.add_guest("web", uuid=save_files.UUID_, memory_kib=1024, type=xenpm.DomainType.HVM)
    xl.fails["save"] = errno.ENOSPC
    with pytest.raises(xenpm.SaveError, match="it runs on"):
        work("save")
    assert xl.begun == ["save", "resume"]


@pytest.mark.parametrize("fails", ["", "save", "destroy"])
def test_xl_goes_on_looking_after_it(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, fails: str
) -> None:
    """It is held while the guest is suspended, and neither before nor after that."""
    held: list[tuple[str, bool]] = []
    xl.steps = lambda name, _: held.append((name, bool(xen.ports().watchers.held())))
    xl.fails = {fails: errno.EIO}
    with suppress(xenpm.SaveError):
        work("save")
    assert all(here == (name in ("save", "resume")) for name, here in held)
    assert xen.ports().watchers.held() == []
    assert fails != "save" or web.watched


# -- what a killed one has left


def test_mend_with_the_file(xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work) -> None:
    web.suspend()
    work.path.write_bytes(save_files.whole(xenpm.DomainType.PVH))
    assert work("mend save")["size_bytes"] == work.path.stat().st_size
    assert xl.begun == ["destroy"]
    assert work("mend save")["size_bytes"] == work.path.stat().st_size  # it is gone already
    assert xen.guests == {}


def test_mend_without_the_file(xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work) -> None:
    web.suspend()
    with pytest.raises(xenpm.SaveError, match=r"its process was killed; it runs on"):
        work("mend save")
    assert xl.begun == []
    assert_unharmed(xen, web, work.path)


def test_mend_when_nothing_had_begun(xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work) -> None:
    """Nothing was asked of the guest, so nothing is to be waited for."""
    before = xen.now_ns
    with pytest.raises(xenpm.SaveError, match=r"process was killed. Nothing was touched") as caught:
        work("mend save", begun=False)
    assert caught.value.phase is xenpm.Phase.IDLE
    assert xen.now_ns - before < 1000 * MS
    assert xl.begun == []
    assert_unharmed(xen, web, work.path)


def test_mend_beside_an_older_file_when_nothing_had_begun(
    xl: FakeXl, web: FakeGuest, work: Work
) -> None:
    """The guest is suspended by somebody else, and the file is of an earlier time."""
    web.suspend()
    work.path.write_bytes(save_files.whole(xenpm.DomainType.PVH))
    with pytest.raises(xenpm.SaveError, match="Nothing was touched"):
        work("mend save", begun=False)
    assert web.suspended
    assert xl.begun == []


def test_mend_with_the_file_of_another(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work
) -> None:
    web.suspend()
    other = save_files.config(xenpm.DomainType.PV).replace("1234", "5678")
    work.path.write_bytes(savefile.header(other) + save_files.libxl())
    with pytest.raises(xenpm.SaveError, match="it runs on"):
        work("mend save")
    assert web.running
    assert xl.begun == []
    assert xen.guests


def test_mend_when_all_is_gone(xl: FakeXl, work: Work) -> None:
    with pytest.raises(xenpm.NoSuchDomain, match="there is no file of it"):
        work("mend save")
    assert xl.begun == []


def test_mend_a_guest_that_runs_beside_its_file(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work
) -> None:
    """Somebody has resumed it: it is not destroyed."""
    work.path.write_bytes(save_files.whole(xenpm.DomainType.PVH))
    with pytest.raises(xenpm.SaveError, match="remove that file"):
        work("mend save")
    assert web.running
    assert xl.begun == []
    assert xen.guests


# -- restore


@pytest.fixture
def saved(path: Path) -> Path:
    path.write_bytes(save_files.whole(xenpm.DomainType.PVH))
    return path


@pytest.mark.parametrize("remove", [False, True])
def test_restore(xen: FakeXen, xl: FakeXl, saved: Path, work: Work, remove: bool) -> None:
    done = work("restore", remove=remove)
    assert (done["domid"], done["handle"], done["name"]) == (1, save_files.UUID_.hex, "web")
    assert xen.guests[1].running
    assert xl.begun == ["restore", "unpause"]
    assert saved.exists() != remove
    assert_released(xen)


@pytest.mark.parametrize("same", ["name", "uuid"])
def test_domain_that_is_there(xen: FakeXen, xl: FakeXl, saved: Path, work: Work, same: str) -> None:
    if same == "name":
        xen.add_guest("web")
    else:
        xen.add_guest("renamed", uuid=save_files.UUID_)
    with pytest.raises(xenpm.RestoreError, match="is there already"):
        work("restore")
    assert xl.begun == []
    assert saved.exists()


@pytest.mark.parametrize("operation", ["restore", "unpause"])
def test_restore_fails(xen: FakeXen, xl: FakeXl, saved: Path, work: Work, operation: str) -> None:
    xl.fails[operation] = errno.ENOMEM
    with pytest.raises(xenpm.RestoreError, match=r"was not restored.*made to fail"):
        work("restore", remove=True)
    assert xen.guests == {}
    assert saved.exists()


def test_restore_cancelled(xen: FakeXen, xl: FakeXl, saved: Path, work: Work) -> None:
    xl.steps = lambda name, _: os.kill(os.getpid(), signal.SIGTERM) if name == "restore" else None
    with pytest.raises(xenpm.RestoreError, match="it was cancelled"):
        work("restore")
    assert xen.guests == {}
    assert saved.exists()


@pytest.mark.parametrize("paused", [False, True])
def test_mend_restore(xen: FakeXen, xl: FakeXl, saved: Path, work: Work, paused: bool) -> None:
    """One that runs was made whole; one that is paused has not run, and is destroyed."""
    guest = xen.add_guest("web", uuid=save_files.UUID_)
    if not paused:
        assert work("mend restore")["domid"] == guest.domid
        assert guest.running
        return
    guest.pause()
    with pytest.raises(xenpm.RestoreError, match="its process was killed"):
        work("mend restore")
    assert xen.guests == {}
    assert xl.begun == ["destroy"]
    assert saved.exists()


@pytest.mark.usefixtures("saved")
def test_mend_restore_when_nothing_had_begun(xen: FakeXen, xl: FakeXl, work: Work) -> None:
    guest = xen.add_guest("web", uuid=save_files.UUID_)
    guest.pause()
    with pytest.raises(xenpm.RestoreError, match="Nothing was touched"):
        work("mend restore", begun=False)
    assert xen.guests
    assert xl.begun == []


@pytest.mark.parametrize("paused", [False, True])
def test_the_same_is_restored_by_somebody_else_meanwhile(
    xen: FakeXen, xl: FakeXl, saved: Path, work: Work, paused: bool
) -> None:
    """From a copy, or by xl: libxl refuses the name that is taken, and theirs is not destroyed."""
    theirs: list[FakeGuest] = []

    def made(name: str, step: int) -> None:
        if (name, step) == ("restore", 0):
            xen.guests[1].destroy()  # libxl cleans up
            xen.settle()
            theirs.append(xen.add_guest("web", uuid=save_files.UUID_))
            if paused:
                theirs[0].pause()

    xl.steps, xl.fails["restore"] = made, errno.EEXIST
    with pytest.raises(xenpm.RestoreError, match=r"\(made to fail\)$"):
        work("restore")
    assert theirs[0].domid in xen.guests
    assert xl.begun == ["restore"]
    assert saved.exists()


@pytest.mark.usefixtures("xl")
def test_file_that_cannot_be_removed(
    xen: FakeXen, saved: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The domain runs, and that is told."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    done = work("restore", remove=True)
    assert "Read-only file system" in done["left"]
    assert xen.guests[done["domid"]].running
    assert work("remove")["left"] == done["left"]
    monkeypatch.undo()
    assert saved.exists()


def test_remove(xl: FakeXl, saved: Path, work: Work) -> None:
    for _ in range(2):  # the second finds nothing to do
        assert work("remove")["left"] == ""
        assert not saved.exists()
    assert xl.begun == []


def test_restored_by_two_at_once(xen: FakeXen, xl: FakeXl, saved: Path, work: Work) -> None:
    with saved.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(xenpm.RestoreError, match="another process at this moment"):
            work("restore")
    assert xl.begun == []
    assert xen.guests == {}


@pytest.mark.usefixtures("saved")
def test_somebody_else_has_made_it_meanwhile(xen: FakeXen, xl: FakeXl, work: Work) -> None:
    """It has run: to destroy it would lose what it has done."""
    xl.fails["restore"] = errno.EEXIST

    def made(name: str, step: int) -> None:
        if (name, step) == ("restore", 1):
            xen.guests[1].unpause()

    xl.steps = made
    with pytest.raises(xenpm.RestoreError, match=r"made to fail.*runs, which somebody else"):
        work("restore")
    assert xen.guests[1].running


@pytest.mark.usefixtures("saved")
def test_half_a_domain_that_stays(xl: FakeXl, work: Work) -> None:
    xl.fails = {"restore": errno.ENOMEM, "destroy": errno.EIO}
    with pytest.raises(xenpm.RestoreError, match=r"libxl_restore.*is left.*xl destroy"):
        work("restore")


def test_the_caller_is_gone(
    xen: FakeXen, xl: FakeXl, web: FakeGuest, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker goes on to the end."""

    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(io, "StringIO", Broken)
    with pytest.raises(IndexError):  # nothing was told
        work("save")
    assert work.path.exists()
    assert web.domid not in xen.guests
    assert xl.begun == ["save", "destroy"]
