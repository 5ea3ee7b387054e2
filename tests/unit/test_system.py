"""The real ports as far as they need no Xen: lock file, poller, opening, versions."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

import xenpm
from xenpm import system
from xenpm.system import FileLocks, SystemPoller

NO_XEN = not Path("/dev/xen/privcmd").exists() and not Path("/proc/xen/privcmd").exists()
BUILT = system.built_for() is not None

needs_extensions = pytest.mark.skipif(not BUILT, reason="the extension modules are not built")
needs_no_xen = pytest.mark.skipif(not NO_XEN, reason="this is a Xen host")


# -- locks


def test_two_handles_in_one_process(tmp_path: Path) -> None:
    one, two = FileLocks(tmp_path), FileLocks(tmp_path)
    assert one.acquire(5)
    assert not two.acquire(5)
    assert two.acquire(6)
    assert not one.acquire(6)
    one.release(5)
    assert two.acquire(5)
    two.close()
    assert one.acquire(5)
    assert one.acquire(6)
    one.close()


def test_locks_of_all_domids_are_apart(tmp_path: Path) -> None:
    one, two = FileLocks(tmp_path), FileLocks(tmp_path)
    for domid in (0, 1, 0x7FEF):
        assert one.acquire(domid)
    for domid in (2, 3, 0x7FEE):
        assert two.acquire(domid)
    for domid in (0, 1, 0x7FEF):
        assert not two.acquire(domid)
    one.close()
    two.close()


def test_lock_file_is_private(tmp_path: Path) -> None:
    FileLocks(tmp_path / "run" / "xenpm").close()
    assert (tmp_path / "run" / "xenpm").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run" / "xenpm" / "lock").stat().st_mode & 0o777 == 0o600


def test_closed_locks(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    locks.close()
    locks.close()
    with pytest.raises(ValueError, match="negative"):
        locks.acquire(1)


def test_kernel_that_cannot_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    locks = FileLocks(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "fcntl", refuse)
        for verb in (locks.acquire, locks.release):
            with pytest.raises(xenpm.XenError, match=r"domain 5: .*No locks.* must be on a file"):
                verb(5)
    locks.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_locks_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(xenpm.NotPermitted, match="xenpm"):
        FileLocks(tmp_path / "xenpm")


def test_locks_without_permission_to_make_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(xenpm.NotPermitted, match="xenpm"):
        FileLocks(tmp_path / "xenpm")


HOLDER = """
import sys
from pathlib import Path
from xenpm.system import FileLocks
locks = FileLocks(Path(sys.argv[1]))
print(locks.acquire(5), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of domain 5."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_two_processes(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    locks = FileLocks(tmp_path)
    assert not locks.acquire(5)
    assert locks.acquire(6)
    holder.communicate("")  # it ends
    assert locks.acquire(5)
    locks.close()


def test_killed_holder_releases(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    locks = FileLocks(tmp_path)
    assert not locks.acquire(5)
    holder.kill()
    holder.wait()
    assert locks.acquire(5)
    locks.close()


def test_started_program_does_not_inherit_the_lock(tmp_path: Path) -> None:
    one, two = FileLocks(tmp_path), FileLocks(tmp_path)
    assert one.acquire(5)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    one.close()
    assert two.acquire(5), "the child holds the lock"
    child.communicate()
    two.close()


def test_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    one, two = FileLocks(tmp_path), FileLocks(tmp_path)
    assert one.acquire(5)
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests, Python 3.12
        child = os.fork()
    if child == 0:
        os.close(from_parent)
        os.write(from_child, b"up")
        os.read(to_child, 1)  # until the parent closes its end
        os._exit(0)
    assert os.read(to_parent, 2) == b"up"
    assert not two.acquire(5), "the child took the parent's lock away"
    one.close()
    assert two.acquire(5), "the child still has it"
    two.close()
    os.close(from_parent)
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (to_child, to_parent, from_child):
        os.close(descriptor)


# -- poller


LONG = 30_000_000_000


@pytest.fixture
def poller() -> Iterator[SystemPoller]:
    poller = SystemPoller()
    yield poller
    poller.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_clock_goes_forward(poller: SystemPoller) -> None:
    times = [poller.now_ns() for _ in range(100)]
    assert times == sorted(times)


def test_wait_ends_by_descriptor(poller: SystemPoller, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    began = poller.now_ns()
    poller.wait(pipe[0], LONG)
    poller.wait(pipe[0], LONG)  # it does not read it
    assert poller.now_ns() - began < LONG


def test_wait_ends_by_timeout_and_not_before(poller: SystemPoller, pipe: tuple[int, int]) -> None:
    for timeout_ns in (0, 1, 1_500_000):
        began = poller.now_ns()
        poller.wait(pipe[0], timeout_ns)
        assert poller.now_ns() - began >= timeout_ns


def test_wait_ends_by_a_wake_of_before(poller: SystemPoller, pipe: tuple[int, int]) -> None:
    """It is not lost, and it is good for one wait."""
    for _ in range(3):
        poller.wake()
    began = poller.now_ns()
    poller.wait(pipe[0], LONG)
    assert poller.now_ns() - began < LONG
    again = poller.now_ns()
    poller.wait(pipe[0], 2_000_000)
    assert poller.now_ns() - again >= 2_000_000


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_loop_listens_once(
    make_loop: Callable[[], asyncio.AbstractEventLoop], poller: SystemPoller, pipe: tuple[int, int]
) -> None:
    """To descriptors and to the clock, whichever comes first; and not once it was stopped."""
    loop = make_loop()
    heard: list[str] = []

    def listen(what: str, fds: Sequence[int], delay_ns: int) -> Callable[[], None]:
        return poller.listen(loop, fds, poller.now_ns() + delay_ns, lambda: heard.append(what))

    def pass_some_time() -> None:
        loop.run_until_complete(asyncio.sleep(0.02))

    listen("time", [pipe[0]], 1_000_000)
    pass_some_time()
    assert heard == ["time"]
    listen("descriptor", [pipe[0]], 1 << 62)
    os.write(pipe[1], b"x")
    pass_some_time()  # in which the descriptor stays readable
    assert heard == ["time", "descriptor"]
    stop = listen("nothing", [pipe[0]], 1_000_000)
    stop()
    pass_some_time()
    assert heard == ["time", "descriptor"]
    loop.close()


def test_wait_for_years(poller: SystemPoller, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    poller.wait(pipe[0], 1 << 62)


def test_wait_ends_by_wake_of_another_thread(poller: SystemPoller, pipe: tuple[int, int]) -> None:
    thread = threading.Thread(target=poller.wake)
    began = poller.now_ns()
    thread.start()
    poller.wait(pipe[0], LONG)
    thread.join()
    assert poller.now_ns() - began < LONG


def test_wait_ends_by_wake_of_a_signal_handler(poller: SystemPoller, pipe: tuple[int, int]) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: poller.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        began = poller.now_ns()
        poller.wait(pipe[0], LONG)
        assert poller.now_ns() - began < LONG
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_endless_wakes_do_not_block(poller: SystemPoller) -> None:
    for _ in range(100_000):
        poller.wake()


def test_poller_closes_its_pipe() -> None:
    before = len(os.listdir("/proc/self/fd"))
    poller = SystemPoller()
    poller.close()
    poller.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- opening


@needs_extensions
@needs_no_xen
@pytest.mark.parametrize("module", ["xenpm", "xenpm.cli"])
def test_import_loads_what_is_needed_only(module: str) -> None:
    """A power script is started often, and on small machines."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "xenpm.engine" in loaded
    heavy = {"asyncio", "importlib.metadata", "multiprocessing", "rich"}
    assert not loaded & (heavy | {"xenpm.config", "xenpm.xlcfg", "xenpm._ext.xenctrl"})


def test_what_is_loaded_on_demand() -> None:
    program = "import xenpm; print(xenpm.config.__name__, xenpm.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"xenpm.config {xenpm.__version__}\n"
    with pytest.raises(AttributeError, match="module 'xenpm' has no attribute 'nothing'"):
        xenpm.nothing  # noqa: B018


def test_no_xen_host() -> None:
    with pytest.raises(xenpm.NotXenHost, match=r"no hypervisor here.*xc_interface_open"):
        xenpm.Host()
    with pytest.raises(OSError, match="is the host booted on Xen"):
        xenpm.Domain("web")


@pytest.mark.parametrize("module", ["xenpm._ext.xenctrl", "xenpm._ext.xenstore"])
def test_without_extension_modules(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in {"xenpm._ext.xenctrl", "xenpm._ext.xenstore"} - ({module} if BUILT else set()):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or FakeModule(name))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(xenpm.LibraryMismatch, match=r"without its extension modules.*libxen-dev"):
        xenpm.Host()
    with pytest.raises(ImportError):
        xenpm.Domain(1)


class FakeHandle:
    """Stands for Xenctrl and for Xenstore."""

    release: tuple[int, int] = (4, 17)
    open_error: Exception | None = None
    info_error: Exception | None = None
    still_open = 0

    def __init__(self) -> None:
        kind = type(self)
        if kind.open_error is not None:
            raise kind.open_error
        kind.still_open += 1

    def version(self) -> tuple[int, int]:
        return self.release

    def domain_info(self, _domid: int) -> None:
        if self.info_error is not None:
            raise self.info_error

    def close(self) -> None:
        type(self).still_open -= 1


class FakeModule:
    """An extension module with one class in it."""

    BUILT_FOR = "4.17"

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.handle: Any = type("Handle", (FakeHandle,), {})
        self.Xenctrl = self.Xenstore = self.handle


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """Stand-ins for both modules: their classes, to be set up; all must be closed in the end."""
    stand_ins = FakeModule("xenctrl"), FakeModule("xenstore")
    monkeypatch.setitem(sys.modules, "xenpm._ext.xenctrl", stand_ins[0])
    monkeypatch.setitem(sys.modules, "xenpm._ext.xenstore", stand_ins[1])
    locks = system.FileLocks
    monkeypatch.setattr(system, "FileLocks", lambda: locks(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd"))
    yield stand_ins[0].handle, stand_ins[1].handle
    assert stand_ins[0].handle.still_open == stand_ins[1].handle.still_open == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_open_and_close(modules: tuple[Any, Any]) -> None:
    with xenpm.Host() as host:
        assert host.xen_version == (4, 17)
        assert [handle.still_open for handle in modules] == [1, 1]


def test_not_root(modules: tuple[Any, Any]) -> None:
    modules[0].open_error = xenpm.NotPermitted("xc_interface_open", errno.EACCES)
    with pytest.raises(xenpm.NotPermitted, match="takes root in dom0"):
        xenpm.Host()


def test_no_hypervisor(modules: tuple[Any, Any]) -> None:
    modules[0].open_error = xenpm.HypercallError("xc_interface_open", errno.ENOENT)
    with pytest.raises(xenpm.NotXenHost, match="no hypervisor"):
        xenpm.Host()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("which", [0, 1])
def test_nothing_left_to_open_with(modules: tuple[Any, Any], which: int, code: int) -> None:
    """It says nothing of whether Xen runs here."""
    kind = (xenpm.HypercallError, xenpm.StoreError)[which]
    modules[which].open_error = kind("open", code)
    with pytest.raises(kind, match=os.strerror(code)):
        xenpm.Host()


def test_no_descriptor_for_the_pipe(
    modules: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_flags: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", refuse)
    with pytest.raises(xenpm.XenError, match="Too many open files"):
        xenpm.Host()
    assert modules[0].still_open == 0


def test_no_xenstored(modules: tuple[Any, Any]) -> None:
    modules[1].open_error = xenpm.NoSuchNode("xs_open", errno.ENOENT)
    with pytest.raises(xenpm.NotXenHost, match="xenstored does not answer"):
        xenpm.Host()


def test_other_release(modules: tuple[Any, Any]) -> None:
    modules[0].release = (4, 20)
    with pytest.raises(xenpm.LibraryMismatch, match=r"built for Xen 4\.17.*runs Xen 4\.20"):
        xenpm.Host()


def test_not_dom0(modules: tuple[Any, Any]) -> None:
    modules[0].info_error = xenpm.NotPermitted("xc_domain_getinfolist", errno.EPERM)
    with pytest.raises(xenpm.NotXenHost, match="not dom0"):
        xenpm.Host()


@pytest.mark.parametrize("what", ["FileLocks", "SystemPoller"])
def test_nothing_stays_open_when_the_rest_fails(
    modules: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail() -> None:
        raise xenpm.NotPermitted("open", errno.EACCES)

    monkeypatch.setattr(system, what, fail)
    with pytest.raises(xenpm.NotPermitted):
        xenpm.Host()
    assert [handle.still_open for handle in modules] == [0, 0]


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules are there, the C libraries they were built with are not."""

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith("xenpm._ext.xen"):
                raise ImportError("libxenctrl.so.4.17: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "xenpm._ext.xenctrl", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(xenpm.LibraryMismatch, match=r"libxenctrl\.so\.4\.17.*force-reinstall"):
        xenpm.Host()
    assert xenpm.versions()["built_for"] is None


# -- versions


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert xenpm.versions().keys() == {"built_for", "running"}
    monkeypatch.setattr(
        Path, "read_text", lambda path: {"major": "4\n", "minor": "20\n"}[path.name]
    )
    assert xenpm.versions()["running"] == "4.20"
    monkeypatch.setitem(sys.modules, "xenpm._ext.xenctrl", None)
    assert xenpm.versions()["built_for"] is None


@needs_no_xen
def test_versions_without_xen() -> None:
    assert xenpm.versions()["running"] is None


@needs_extensions
def test_built_for_looks_like_a_release() -> None:
    built_for = xenpm.versions()["built_for"]
    assert built_for is not None
    major, minor = built_for.split(".")
    assert int(major) >= 4
    assert minor.isdigit()
