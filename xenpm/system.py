"""The real ports: Xen's libraries, a lock file, poll(2), sysfs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import struct
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Callable, TypeVar

from .elf import suspend_cancel
from .errors import (
    CALL_ERRORS,
    LibraryMismatch,
    NotPermitted,
    NotXenHost,
    XenError,
    XenlightError,
)
from .jobs import SystemJobs
from .journal import FileJournal
from .ports import Hypervisor, Ports
from .power import SystemPower
from .qmp import QmpModels
from .watchers import XlWatchers

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from ._ext.xenlight import Xenlight

__all__ = [
    "FileLocks",
    "KernelFiles",
    "SysfsPci",
    "SystemPoller",
    "open_now",
    "open_ports",
    "open_xenlight",
    "versions",
    "xenlight",
]

T = TypeVar("T")
_log = logging.getLogger("xenpm.system")

_VERSION = ("major", "minor")
_REBUILD = (
    "install the libxen-dev of the Xen that runs here, and xenpm anew from its sources with "
    "'pip install --force-reinstall --no-cache-dir'"
)
_LONGEST_WAIT_NS = 86_400 * 1_000_000_000  # poll(2) takes an int of milliseconds
_XL_IS_RIGHT = (4, 20)  # the release whose xl knows that a suspended domain may go on
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
RUN_DIRECTORY = Path("/run/xenpm")


class FileLocks:
    """One byte of a file per domain, locked by open file description: the kernel frees them.

    See fcntl(2), F_OFD_SETLK.  Two handles exclude each other also within one process.
    """

    def __init__(self, directory: Path = RUN_DIRECTORY) -> None:
        self._fd = -1
        self._path = directory / "lock"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise NotPermitted("open", error.errno or errno.EACCES, str(directory)) from error
        except OSError as error:
            raise XenError(f"the lock file of xenpm cannot be made: {error}") from error
        _OPEN_LOCKS.add(self)

    def __del__(self) -> None:
        self.close()

    def _set(self, kind: int, domid: int) -> bool:
        # struct flock: type, whence, start, length, pid
        flock = struct.pack("@hhqqi0q", kind, os.SEEK_SET, domid, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, flock)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # somebody else has it
                return False
            raise XenError(
                f"domain {domid}: its lock in {self._path} cannot be set ({error.strerror}); "
                "that file must be on a file system of this machine that has locks"
            ) from error
        return True

    def acquire(self, domid: int) -> bool:
        """Take the domain's lock; False when somebody else has it.  Never waits.

        Raises:
            XenError: the kernel cannot lock; nothing was touched.
        """
        return self._set(fcntl.F_WRLCK, domid)

    def release(self, domid: int) -> None:
        """Give the domain's lock back.

        Raises:
            XenError: the kernel cannot unlock.
        """
        self._set(fcntl.F_UNLCK, domid)

    def close(self) -> None:
        """Give all locks back."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


_OPEN_LOCKS: weakref.WeakSet[FileLocks] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child lets go of its parent's locks, or they would outlive the parent."""
    for locks in list(_OPEN_LOCKS):
        locks.close()


os.register_at_fork(after_in_child=_after_fork)


class SysfsPci:
    """The host's PCI devices, as dom0's kernel shows them: ``/sys/bus/pci``."""

    def __init__(self, devices: Path = Path("/sys/bus/pci/devices")) -> None:
        self._devices = devices

    def config(self, address: str) -> bytes | None:
        """A device's configuration space; None when it is not there or cannot be read."""
        try:
            return (self._devices / address / "config").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("PCI device %s cannot be read: %s", address, error)
            return None


def open_now(path: str, flags: int) -> int:
    """Open a file without waiting for somebody at the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


class KernelFiles:
    """Kernel images as files of dom0."""

    def suspend_cancel(self, path: str) -> bool | None:
        """Whether an image says that its suspend may be cancelled; None when it does not show."""
        try:
            with open(path, "rb", opener=open_now) as image:
                return suspend_cancel(image)
        except (OSError, ValueError) as error:
            # one that pygrub had taken out of the guest's disk is gone again
            _log.debug("kernel image %s cannot be read: %s", path, error)
            return None


class SystemPoller:
    """The monotonic clock, and poll(2) with a pipe that ends it."""

    _wake_in = _wake_out = -1

    def __init__(self) -> None:
        try:
            self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise XenError(f"the pipe of xenpm cannot be made: {error}") from error

    def __del__(self) -> None:
        self.close()

    def now_ns(self) -> int:
        """A clock that only goes forward, in nanoseconds: CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def wait(self, fd: int, timeout_ns: int, others: Sequence[int] = ()) -> None:
        """Return once `fd` or one of the others is readable, on `wake`, or after `timeout_ns`."""
        poll = select.poll()
        for each in (fd, self._wake_in, *others):
            poll.register(each, select.POLLIN)
        timeout_ns = min(timeout_ns, _LONGEST_WAIT_NS)
        poll.poll(-(-timeout_ns // 1_000_000))  # milliseconds, rounded up: never too early
        with suppress(BlockingIOError):  # nobody called wake()
            os.read(self._wake_in, 4096)

    def listen(
        self,
        loop: AbstractEventLoop,
        fds: Sequence[int],
        until_ns: int,
        ready: Callable[[], None],
    ) -> Callable[[], None]:
        """Have a loop call `ready` once, when one of `fds` is readable or at a time of `now_ns`."""

        def stop() -> None:
            timer.cancel()
            for fd in fds:
                loop.remove_reader(fd)

        def once() -> None:
            stop()
            ready()

        delay_ns = min(until_ns - self.now_ns(), _LONGEST_WAIT_NS)
        timer = loop.call_later(max(0, delay_ns) / 1_000_000_000, once)
        for fd in fds:
            loop.add_reader(fd, once)
        return stop

    def wake(self) -> None:
        """End the present or next `wait` at once; may be called from a signal handler."""
        with suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake_out, b"\0")

    def close(self) -> None:
        """Close the pipe."""
        if self._wake_in >= 0:
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = self._wake_out = -1


def built_for() -> str | None:
    """The Xen release that the extension modules were built for; None if they do not load."""
    try:
        from ._ext.xenctrl import BUILT_FOR
    except ImportError:
        return None
    return BUILT_FOR


def versions() -> dict[str, str | None]:
    """What xenpm was built for and what runs here, for bug reports; never raises.

    Returns:
        ``built_for``: the Xen release of the libraries, None where they cannot be loaded;
        ``running``: the hypervisor's release as the kernel tells it, None without a hypervisor.
    """
    try:
        numbers = [Path(f"/sys/hypervisor/version/{part}").read_text() for part in _VERSION]
        running: str | None = ".".join(number.strip() for number in numbers)
    except OSError:
        running = None
    return {"built_for": built_for(), "running": running}


def open_ports() -> Ports:
    """Open this host's hypervisor and xenstore.

    Raises:
        LibraryMismatch: the extension modules are missing or built for another Xen release.
        NotPermitted: not root.
        NotXenHost: no hypervisor, no xenstored, or this is not dom0.
        HypercallError, StoreError, XenError: no descriptor or no memory is left.
    """
    with _libraries():
        from ._ext.xenctrl import Xenctrl
        from ._ext.xenstore import Xenstore
    with ExitStack() as opened:
        hypervisor = _open(
            Xenctrl, "there is no hypervisor here, or this is not dom0: is the host booted on Xen?"
        )
        opened.callback(hypervisor.close)
        _check_hypervisor(hypervisor)
        store = _open(Xenstore, "xenstored does not answer: is it running?")
        opened.callback(store.close)
        locks = FileLocks()
        opened.callback(locks.close)
        poller = SystemPoller()
        opened.pop_all()
    return Ports(
        hypervisor,
        store,
        locks,
        poller,
        SysfsPci(),
        KernelFiles(),
        SystemPower(),
        SystemJobs(),
        FileJournal(RUN_DIRECTORY / "journal"),
        QmpModels(),
        XlWatchers(RUN_DIRECTORY / "watchers", needed=hypervisor.version() < _XL_IS_RIGHT),
    )


def xenlight() -> ModuleType:
    """The extension module for libxenlight and libxlutil.

    Raises:
        LibraryMismatch: it is missing or built for another Xen release.
    """
    with _libraries():
        from ._ext import xenlight
    return xenlight


@contextmanager
def _libraries() -> Iterator[None]:
    """Within: imports of extension modules; an error says what to do."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise LibraryMismatch(
            "xenpm was installed without its extension modules (XENPM_PURE=1, or an incomplete "
            f"copy): {_REBUILD}"
        ) from error
    except ImportError as error:
        raise LibraryMismatch(
            f"the Xen libraries that xenpm was built for are not here ({error}): "
            f"after an upgrade of Xen, {_REBUILD}"
        ) from error


def open_xenlight(*, forks: bool = False) -> Xenlight:
    """Open a context of libxenlight.

    Args:
        forks: whether libxl may fork, and have SIGCHLD for itself.

    Raises:
        LibraryMismatch: the extension module is missing or built for another Xen release.
        NotPermitted: not root.
        NotXenHost: no hypervisor, no xenstored, or this is not dom0.
    """
    kind: type[Xenlight] = xenlight().Xenlight
    if os.geteuid() != 0:
        raise NotPermitted("libxl_ctx_alloc", errno.EPERM, "it takes root in dom0")
    try:
        return kind(forks=forks)
    except XenlightError as error:
        raise NotXenHost(
            f"libxl finds no hypervisor or no xenstored here: is this dom0? ({error})"
        ) from error


def _open(kind: Callable[[], T], advice: str) -> T:
    """Open a handle; an error says what is missing."""
    try:
        return kind()
    except NotPermitted as error:
        raise NotPermitted(error.call, error.errno or 0, "it takes root in dom0") from error
    except CALL_ERRORS as error:
        if error.errno in _EXHAUSTED:  # which says nothing of Xen
            raise
        raise NotXenHost(f"{advice} ({error})") from error


def _check_hypervisor(hypervisor: Hypervisor) -> None:
    """Refuse a hypervisor that these extension modules do not fit, and one that refuses us."""
    running = "{}.{}".format(*hypervisor.version())
    if running != built_for():
        raise LibraryMismatch(
            f"xenpm was built for Xen {built_for()}, and this host runs Xen {running}: {_REBUILD}"
        )
    try:
        hypervisor.domain_info(0)
    except NotPermitted as error:
        raise NotXenHost(
            f"this domain may not control others, so it is not dom0 ({error})"
        ) from error
