"""The process in which libxl saves, restores and destroys domains; `xenpm.heavy` starts it.

libxl forks helpers, wants SIGCHLD for them, and may be busy for minutes.  Here it has a process for
itself, which goes on when the one that has started it is killed, and whose own death that one makes
up for by starting another.

It gets its order as JSON, and writes lines of JSON: how far it is, and in the end what came of it.
SIGTERM asks it to put everything back.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from . import protocol, savefile
from .connection import Connection
from .engine import Task
from .errors import (
    NoSuchDomain,
    RestoreError,
    SaveError,
    SaveFileError,
    SuspendCancelled,
    SuspendError,
    SuspendInProgress,
    XenError,
    XenlightError,
)
from .system import open_xenlight
from .types import DomainRef, DomainType, Phase

if TYPE_CHECKING:
    from ._ext.xenlight import Xenlight

_STEP_MS = 500  # how often it is told how far an operation is
_GRACE = 60.0  # seconds for putting something back, and for what was asked to end soon
#: what a file has besides memory: contexts of vCPUs, the numbers of pages that are not there (of
#: PVH and HVM up to 4 GiB), and the state of a device model
_BESIDES = {DomainType.PV: 8 << 20, DomainType.PVH: 16 << 20, DomainType.HVM: 64 << 20}
_PER_PAGE = 16  # bytes for each page that it may have: its number, and the table of them all


def tell(what: str, **values: Any) -> None:
    """Write a line to the process that has started this one, if that is still there."""
    with suppress(BrokenPipeError):
        print(json.dumps({"xenpm": what, **values}), flush=True)  # noqa: T201 (the protocol)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class _Worker:
    """One order."""

    def __init__(self, order: dict[str, Any], connection: Connection, xl: Xenlight) -> None:
        self.path = Path(order["path"])
        self.began = time.monotonic()
        self.until = self.began + float(order["timeout"])
        self.connection = connection
        self.ports = connection.ports
        self.xl = xl
        self.said = str(order.get("said"))  # how the worker has ended that this one makes up for
        self.cancelled = False
        signal.signal(signal.SIGTERM, self._cancel)

    def _cancel(self, _signum: int, _frame: object) -> None:
        self.cancelled = True

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def finish(self, progress: Callable[[], None] | None = None) -> None:
        """Go on with libxl's operation to its end; cancelled or at the deadline it is aborted.

        Without `progress` it is one that must be done, and has a deadline of its own.
        """
        until = self.until if progress else time.monotonic() + _GRACE
        told = time.monotonic()  # libxl has an event for each batch of pages, and one is enough
        aborted = False
        while not self.xl.wait(_STEP_MS):
            now = time.monotonic()
            if now >= until + _GRACE:
                raise RuntimeError("libxl does not come to an end")
            if not aborted and (now >= until or (progress and self.cancelled)):
                aborted = True
                self.xl.abort()
            if progress and now >= told + _STEP_MS / 1000:
                told = now
                progress()

    def find(self, uuid: UUID) -> DomainRef | None:
        """The domain of that UUID, if there is one."""
        with suppress(NoSuchDomain):
            return self.connection.find(uuid)
        return None


class _Save(_Worker):
    def __init__(self, order: dict[str, Any], connection: Connection, xl: Xenlight) -> None:
        super().__init__(order, connection, xl)
        self.domain = DomainRef(order["domid"], bytes.fromhex(order["handle"]), order["name"])
        self.begun = bool(order.get("begun"))  # libxl, by the worker that this one makes up for
        if not self.ports.locks.acquire(self.domain.domid):  # until this process ends
            raise SuspendInProgress(
                self.domain, "another process is suspending or resuming it at this moment"
            )

    def save(self) -> dict[str, Any]:
        """Suspend the domain, write it to the file, and destroy it; or leave it as it was."""
        kind = self.connection.look(protocol.check_saving(self.domain))
        with open_xenlight() as xl:  # one that does not wait for who changes the domain
            header = savefile.header(xl.domain_configuration(self.domain.domid))
        with self.directory() as directory, self.new_file(directory) as fd:
            total = self.check_room(fd, len(header), kind)
            try:
                self.write(fd, header, total)
                size = self.complete(fd, directory)
            except (XenError, OSError) as error:
                raise self.put_back(error) from error
        return self.destroy(size)

    @contextmanager
    def directory(self) -> Iterator[int]:
        """The directory of the file, which must not be there yet."""
        with ExitStack() as opened:
            try:
                fd = opened.enter_context(_opened(self.path.parent))
            except OSError as error:
                raise self.refusal(f"{self.path.parent}: {error.strerror}") from error
            if os.path.lexists(self.path):
                raise self.refusal(f"{self.path} is there already; remove it, or name another")
            yield fd

    @contextmanager
    def new_file(self, directory: int) -> Iterator[int]:
        """A file without a name: whatever happens, it is not there until it is complete."""
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except OSError as error:
            raise self.refusal(
                f"no file can be made in {self.path.parent} ({error.strerror}); its file system "
                "must have unnamed files (O_TMPFILE), as ext4, xfs, btrfs and tmpfs have"
            ) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def check_room(self, fd: int, header_bytes: int, kind: DomainType) -> int:
        """How long the file may become; refuses when there is no room for it."""
        info = self.ports.hypervisor.domain_info(self.domain.domid)
        if info is None:
            raise NoSuchDomain(f"{self.domain} is gone")
        numbers = max(info.memory_kib, info.max_memory_kib) // 4 * _PER_PAGE
        need = header_bytes + info.memory_kib * 1024 + numbers + _BESIDES[kind]
        found = os.fstatvfs(fd)
        room = found.f_bavail * found.f_frsize
        if room < need:
            raise self.refusal(
                f"{self.path.parent} has room for {room >> 20} MiB, and it takes {need >> 20} MiB"
            )
        return need

    def refusal(self, what: str) -> SaveError:
        return SaveError(self.domain, f"{what}. Nothing was touched", elapsed=self.elapsed)

    def write(self, fd: int, header: bytes, total: int) -> None:
        with open(fd, "wb", closefd=False) as file:
            file.write(header)

        def progress() -> None:
            tell("progress", done=os.lseek(fd, 0, os.SEEK_CUR), total=total)

        progress()
        self.begun = True
        self.xl.save(self.domain.domid, fd)
        self.finish(progress)
        progress()

    def complete(self, fd: int, directory: int) -> int:
        """Give the file its name, once it is on the disk and can be restored; its length."""
        os.fsync(fd)
        with open(fd, "rb", closefd=False) as file:
            size = savefile.read(file, self.path).size_bytes
        if self.cancelled:
            raise SuspendCancelled(self.domain, "cancelled")
        # with a directory's descriptor this is linkat(2), which follows the link in /proc
        os.link(f"/proc/self/fd/{fd}", self.path.name, dst_dir_fd=directory)
        try:
            os.fsync(directory)
        except OSError:
            os.unlink(self.path.name, dir_fd=directory)
            raise
        return size

    def put_back(self, error: BaseException) -> SuspendError:
        """Have the guest run on after `error`; the error to raise in the end."""
        phase = self.take_back() if self.begun else Phase.IDLE
        if phase is Phase.SUSPENDED:
            self.xl.resume(self.domain.domid)
            self.finish()
        kind = SuspendCancelled if self.cancelled else SaveError
        timed_out = isinstance(error, XenlightError) and time.monotonic() >= self.until
        what = "its time is over" if timed_out else "it was cancelled" if self.cancelled else error
        state = "it runs on"
        if phase is Phase.ACKNOWLEDGED:
            state = "it runs, but may have taken the request: should it yet suspend, resume it"
        return kind(
            self.domain,
            f"was not saved: {what}; {state}, and there is no file",
            phase=phase,
            elapsed=self.elapsed,
        )

    def take_back(self) -> Phase:
        """Take back what libxl may have asked of the guest, and see what that does."""
        tasks: list[Task[Phase]] = []
        machine = protocol.take_back(self.domain, self.ports.poller.now_ns)
        self.connection.transact(machine, tasks)
        return tasks[0].result()

    def destroy(self, size: int) -> dict[str, Any]:
        """Destroy the domain, which is complete in its file."""
        try:
            self.xl.destroy(self.domain.domid)
            self.finish()
        except XenlightError as error:
            raise SaveError(
                self.domain,
                f"is saved in {self.path}, but could not be destroyed: {error}. Do that with 'xl "
                "destroy', and do not resume it: it would be there twice",
                phase=Phase.SUSPENDED,
                elapsed=self.elapsed,
            ) from error
        return {"size_bytes": size}

    def mend(self) -> dict[str, Any]:
        """Finish what another worker, which was killed, has left: either way, but not half."""
        size = self.complete_size()
        domain = self.find(self.domain.uuid)
        if domain is None:
            if size is None:
                raise NoSuchDomain(f"{self.domain} is gone, and there is no file of it")
            return {"size_bytes": size}
        if size is not None:
            info = self.ports.hypervisor.domain_info(domain.domid)
            if info is None or info.suspended or info.dying:
                return self.destroy(size)
            raise SaveError(
                self.domain,
                f"is saved in {self.path}, but somebody has resumed it meanwhile: remove that "
                "file, for it does not fit the guest's disks any more",
                elapsed=self.elapsed,
            )
        raise self.put_back(XenError(self.said))

    def complete_size(self) -> int | None:
        """The length of the file, if it is there: then it is complete, and this domain's."""
        try:
            with savefile.open_checked(self.path) as file:
                saved = savefile.read(file, self.path)
        except SaveFileError:
            return None
        with _opened(self.path.parent) as directory:  # its process may not have come so far
            os.fsync(directory)
        return saved.size_bytes if saved.uuid == self.domain.uuid else None


class _Restore(_Worker):
    def __init__(self, order: dict[str, Any], connection: Connection, xl: Xenlight) -> None:
        super().__init__(order, connection, xl)
        self.remove_file = bool(order["remove"])

    def restore(self) -> dict[str, Any]:
        """Make the domain that is in the file, and let it run; or leave nothing of it."""
        with savefile.open_checked(self.path) as file:
            saved = savefile.read(file, self.path)
            self.check_absent(saved)
            fd = file.fileno()
            os.lseek(fd, saved.stream_offset, os.SEEK_SET)

            def progress() -> None:
                tell("progress", done=os.lseek(fd, 0, os.SEEK_CUR), total=saved.size_bytes)

            try:
                self.xl.restore(saved.config, fd)
                self.finish(progress)
                progress()
                domid = self.xl.created
                if domid is None:
                    raise RuntimeError("libxl does not say which domain it has made")
                self.xl.unpause(domid)
                self.finish()
            except XenlightError as error:
                self.remove(saved.uuid)
                what = "it was cancelled" if self.cancelled else error
                raise RestoreError(self.path, f"was not restored: {what}") from error
        return self.restored(domid, saved)

    def restored(self, domid: int, saved: savefile.SavedDomain) -> dict[str, Any]:
        """The domain runs."""
        if self.remove_file:
            self.path.unlink()
        return {"domid": domid, "handle": saved.uuid.hex, "name": saved.name}

    def check_absent(self, saved: savefile.SavedDomain) -> None:
        """Refuse to make a domain twice: both would write to the same disks."""
        for ref in self.connection.domains():
            if ref.handle == saved.uuid.bytes or ref.name == saved.name:
                raise RestoreError(
                    self.path,
                    f"is {saved.name!r} with UUID {saved.uuid}, and {ref} with UUID {ref.uuid} is "
                    "there already. Nothing was touched",
                )

    def remove(self, uuid: UUID) -> None:
        """Destroy what there is of the domain: it has not run."""
        half = self.find(uuid)
        if half is not None:
            self.xl.destroy(half.domid)
            self.finish()

    def mend(self) -> dict[str, Any]:
        """Finish what another worker, which was killed, has left."""
        with savefile.open_checked(self.path) as file:
            saved = savefile.read(file, self.path)
        ref = self.find(saved.uuid)
        if ref is not None:
            info = self.ports.hypervisor.domain_info(ref.domid)
            if info is not None and not info.paused:  # it was all done but told
                return self.restored(ref.domid, saved)
            self.remove(saved.uuid)
        raise RestoreError(self.path, f"was not restored: {self.said}")


_VERBS: dict[str, Callable[[dict[str, Any], Connection, Xenlight], dict[str, Any]]] = {
    "save": lambda *given: _Save(*given).save(),
    "mend save": lambda *given: _Save(*given).mend(),
    "restore": lambda *given: _Restore(*given).restore(),
    "mend restore": lambda *given: _Restore(*given).mend(),
}


def main() -> None:
    """Do what the order says."""
    order = json.loads(sys.argv[-1])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with closing(Connection()) as connection, open_xenlight(forks=True) as xl:
            done = _VERBS[order["verb"]](order, connection, xl)
    except XenError as error:
        tell("failed", error=pickle.dumps(error).hex())
    else:
        tell("done", **done)
