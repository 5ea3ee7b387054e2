"""The real `xenpm.ports.Watchers`: the processes that look after domains, or save them.

``xl create`` and ``xl restore`` leave a process behind, which makes the domain anew when its guest
reboots, say.  It sleeps until xenstored tells that some domain has shut down, and looks then at its
own (``domain_death_xswatch_callback`` of libxl).  Up to Xen 4.19 it ends when it finds that
suspended (``handle_domain_death`` of xl).  A process that has been stopped (SIGSTOP) does not look;
once it goes on it looks as well, and what it finds then is true.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .errors import XenError

__all__ = ["XlWatchers"]

_GONE = (FileNotFoundError, ProcessLookupError)
_RECORD = re.compile(r"(\d+)\.([0-9a-f]{32})\.(\d+)\.(\d+)")
_CHUNK_BYTES = 1 << 16
_KTHREADD, _PF_KTHREAD = 2, 0x200000  # the parent of the kernel's own, and what marks them
_XL, _HELPER = "xl", "libxl-save-help"  # as the kernel cuts it off
_SAVING = ("save", "migrate", "remus")  # what xl is told to do; it takes their beginnings, too
_MIGRATED = "--migratedaway"  # what xl calls a domain that runs elsewhere, until it is destroyed
_LINE_BYTES = 100  # more than what is looked for


class _Process(NamedTuple):
    """A process, and never another one that has got its number."""

    pid: int
    started: int  # in clock ticks since the boot


class XlWatchers:
    """Processes of xl, found by what they write, and a directory that says which are held.

    There is an empty file for each that is held.  Its name tells all: so it is there whole or not
    at all, it outlives the process that made it, and none is there after a boot.

    Args:
        directory: for these files; in one that is empty after a boot.
        needed: whether xl's processes of this release are misled by a suspension.
        processes: where the kernel tells of processes.
    """

    def __init__(self, directory: Path, *, needed: bool, processes: Path = Path("/proc")) -> None:
        self._directory = directory
        self._needed = needed
        self._processes = processes

    def hold(self, domid: int, handle: bytes) -> bool:
        """Stop those of a domain; False while one of them still runs.

        Raises:
            XenError: that cannot be noted, and they were not stopped; or it is refused.
        """
        if not self._needed:
            return True
        try:
            held = [process for _, process in self._of(domid, handle)]
            for process in held or self._looking_after(domid):
                if process not in held:
                    if self._stands(process):  # somebody else's doing, and not to be undone
                        continue
                    self._directory.mkdir(mode=0o700, exist_ok=True)
                    name = f"{domid}.{handle.hex()}.{process.pid}.{process.started}"
                    os.close(os.open(self._directory / name, os.O_CREAT | os.O_CLOEXEC, 0o600))
                self._send(process, signal.SIGSTOP)
            return all(self._stands(process) for _, process in self._of(domid, handle))
        except OSError as error:
            raise XenError(f"xl's process for domain {domid} cannot be held: {error}") from error

    def let_go(self, domid: int, handle: bytes) -> None:
        """Let those of a domain go on that are held, by whatever process of xenpm.

        Raises:
            XenError: it is refused.
        """
        try:
            for name, process in self._of(domid, handle):
                self._send(process, signal.SIGCONT)
                (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise XenError(f"xl's process for domain {domid} is still held: {error}") from error

    def held(self) -> list[tuple[int, bytes]]:
        """The domains of which some are held: domid and handle.

        Raises:
            XenError: the directory cannot be read.
        """
        try:
            return sorted({(domid, handle) for _, domid, handle, _ in self._records()})
        except OSError as error:
            raise XenError(f"which processes of xl are held is unknown: {error}") from error

    def saver(self, domid: int, name: str) -> str:
        """The process that saves or migrates a domain, in words; empty when none is found.

        libxl has a process that writes the memory of one domain, ``libxl-save-helper``, whoever
        asks for that.  xl is there before it and after it.

        Raises:
            XenError: the processes cannot be seen.
        """
        own = str(domid)
        try:
            for pid in self._called(_XL, _HELPER):
                with suppress(*_GONE):
                    line = self._read(f"{pid}/cmdline")
                    _, *words = line.decode("utf-8", "surrogateescape").split("\0")
                    # --save-domain, two descriptors, the domain
                    if words[:1] == ["--save-domain"] and words[3:4] == [own]:
                        return f"libxl-save-helper (process {pid})"
                    words = [word for word in words if not word.startswith("-")]
                    refs = {own, name, name.removesuffix(_MIGRATED)} - {""}
                    saves = bool(words and words[0]) and any(
                        verb.startswith(words[0]) for verb in _SAVING
                    )
                    if saves and refs & set(words[1:]):
                        return f"xl {words[0]} (process {pid})"
        except OSError as error:
            raise XenError(f"which domains are being saved is unknown: {error}") from error
        return ""

    def _records(self) -> Iterator[tuple[str, int, bytes, _Process]]:
        names: list[str] = []
        with suppress(FileNotFoundError):  # nothing was ever held
            names = os.listdir(self._directory)
        for name in names:
            record = _RECORD.fullmatch(name)
            if record is not None:
                domid, handle, pid, started = record.groups()
                yield name, int(domid), bytes.fromhex(handle), _Process(int(pid), int(started))

    def _of(self, domid: int, handle: bytes) -> list[tuple[str, _Process]]:
        return [
            (name, process)
            for name, *domain, process in self._records()
            if domain == [domid, handle]
        ]

    # -- processes

    def _called(self, *names: str) -> Iterator[int]:
        """The processes of that name, of this user's."""
        lines = {f"{name}\n".encode() for name in names}
        for number in self._numbers():
            with suppress(*_GONE):
                if self._read(f"{number}/comm") not in lines:
                    continue
                if os.stat(f"{self._processes}/{number}").st_uid == os.geteuid():
                    yield int(number)

    def _numbers(self) -> set[str]:
        """All processes but the kernel's own, which are most of them in a domain 0."""
        numbers = set(filter(str.isdigit, os.listdir(self._processes)))
        with suppress(*_GONE):  # in a container, or a kernel without CONFIG_PROC_CHILDREN
            if int(self._status(str(_KTHREADD))[6]) & _PF_KTHREAD:
                children = self._read(f"{_KTHREADD}/task/{_KTHREADD}/children")
                numbers.difference_update(children.decode("ascii").split())
        return numbers

    def _looking_after(self, domid: int) -> Iterator[_Process]:
        """The processes of xl that look after a domain."""
        for pid in self._called(_XL):
            with suppress(*_GONE):
                status = self._status(str(pid))
                # A daemon leads a session. Others have a shell, which would take it for a job that
                # was stopped, and would take it along in its own end.
                if int(status[3]) == pid and self._domain_of(pid) == domid:
                    yield _Process(pid, int(status[19]))

    def _domain_of(self, pid: int) -> int | None:
        """Which domain a process of xl waits for; None: that does not show.

        It tells so whenever it begins with one.
        """
        path = self._processes / str(pid) / "fd/1"
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        told = re.compile(rb"\(domid (\d+)\) to die \[pid %d\]" % pid)
        text = b""
        with path.open("rb") as log:  # the last is what counts, and the log may be long
            at = os.fstat(log.fileno()).st_size
            while at > 0:
                before, at = at, max(0, at - _CHUNK_BYTES)
                text = os.pread(log.fileno(), before - at, at) + text[:_LINE_BYTES]
                if found := told.findall(text):
                    return int(found[-1])
        return None

    def _read(self, path: str) -> bytes:
        """What a file of proc(5) says.

        Each suspend reads some dozens, and `Path.read_bytes` would take several times as long.
        """
        text = b""
        file = os.open(f"{self._processes}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while chunk := os.read(file, _CHUNK_BYTES):  # a page of it, whatever is asked for
                text += chunk
        finally:
            os.close(file)
        return text

    def _status(self, path: str) -> list[str]:
        """What the kernel tells of a process or a thread, from the third field of proc(5) on."""
        text = self._read(f"{path}/stat").decode("ascii", "replace")
        return text.rpartition(")")[2].split()  # its name may have anything in it

    def _started(self, pid: int) -> int:
        return int(self._status(str(pid))[19])

    def _stands(self, process: _Process) -> bool:
        """Whether it is stopped with all its threads, or has ended."""
        with suppress(*_GONE):
            if self._started(process.pid) != process.started:
                return True
            for thread in os.listdir(self._processes / str(process.pid) / "task"):
                if self._status(f"{process.pid}/task/{thread}")[0] not in "TtZX":
                    return False
        return True

    def _send(self, process: _Process, signum: int) -> None:
        """Send it a signal, unless it has ended."""
        with suppress(*_GONE):
            pidfd = os.pidfd_open(process.pid)
            try:
                if self._started(process.pid) == process.started:
                    signal.pidfd_send_signal(pidfd, signum)
            finally:
                os.close(pidfd)
