"""The process in which libxl saves, restores, resets and destroys domains; `xenpm.heavy` starts it.

libxl forks helpers, wants SIGCHLD for them, and may be busy for minutes.  Here it has a process for
itself, which goes on when the one that has started it is killed, and whose own death that one makes
up for by starting another.

It gets its order as JSON, and writes lines of JSON: how far it is, and in the end what came of it.
SIGTERM asks it to put everything back.
"""

from __future__ import annotations

import fcntl
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
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from . import protocol, savefile
from .actions import Machine
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
    SuspendInterrupted,
    XenError,
    XenlightError,
)
from .system import open_xenlight
from .types import DomainRef, DomainType, Phase

if TYPE_CHECKING:
    from ._ext.xenlight import Xenlight

T = TypeVar("T")

_log = logging.getLogger("xenpm.worker")

_STEP_MS = 500  # how often it is told how far an operation is
_GRACE = 60.0  # seconds for putting something back, and for what was asked to end soon
_KIB_GRACE = 2 / (1 << 20)  # seconds more for each KiB of memory that is given back
#: what a file has besides memory: contexts of vCPUs, the numbers of pages that are not there (of
#: PVH and HVM up to 4 GiB), and the state of a device model
_BESIDES = {DomainType.PV: 8 << 20, DomainType.PVH: 16 << 20, DomainType.HVM: 64 << 20}
_LIBXL_BYTES = 24  # what libxl writes before its helper does: its header, and that of a record
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
        self.began = time.monotonic()
        self.until = self.began + float(order["timeout"])
        self.connection = connection
        self.ports = connection.ports
        self.xl = xl
        self.said = str(order.get("said"))  # how the worker has ended that this one makes up for
        self.begun = bool(order.get("begun"))  # libxl, by that worker
        self.cancelled = False
        signal.signal(signal.SIGTERM, self._cancel)

    def _cancel(self, _signum: int, _frame: object) -> None:
        self.cancelled = True

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def finish(
        self,
        progress: Callable[[], None] | None = None,
        may_abort: Callable[[], bool] = lambda: True,
        grace: float = _GRACE,
    ) -> None:
        """Go on with libxl's operation to its end; cancelled or at the deadline it is aborted.

        Without `progress` it is one that must be done, and has `grace` seconds.  It is not
        aborted as long as `may_abort` says that libxl would not survive that.
        """
        until = self.until if progress else time.monotonic() + grace
        told = time.monotonic()  # libxl has an event for each batch of pages, and one is enough
        aborted = False
        while not self.xl.wait(_STEP_MS):
            now = time.monotonic()
            if now >= until + _GRACE:
                raise RuntimeError("libxl does not come to an end")
            over = now >= until or (progress is not None and self.cancelled)
            if over and not aborted and may_abort():
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
        self.path = Path(order["path"])
        self.domain = DomainRef(order["domid"], bytes.fromhex(order["handle"]), order["name"])
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
            total = self.take_room(fd, len(header), kind)
            try:
                self.write(fd, header, total, kind)
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
            try:
                os.lstat(self.path.name or ".", dir_fd=fd)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise self.refusal(f"{self.path}: {error.strerror}") from error
            else:
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

    def take_room(self, fd: int, header_bytes: int, kind: DomainType) -> int:
        """How long the file may become; refuses when there is no room, and takes it when there is.

        Others, and other saves, cannot take it meanwhile.
        """
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
        try:
            os.posix_fallocate(fd, 0, need)
        except OSError as error:
            raise self.refusal(
                f"{self.path.parent} does not give the {need >> 20} MiB that it takes: "
                f"{error.strerror}"
            ) from error
        return need

    def refusal(self, what: str) -> SaveError:
        return SaveError(self.domain, f"{what}. Nothing was touched", elapsed=self.elapsed)

    def write(self, fd: int, header: bytes, total: int, kind: DomainType) -> None:
        with open(fd, "wb", closefd=False) as file:
            file.write(header)

        def written() -> int:
            return os.lseek(fd, 0, os.SEEK_CUR)

        def progress() -> None:
            tell("progress", done=written(), total=total)

        began = written()
        before: int | None = None

        def may_abort() -> bool:
            """Whether libxl survives an abort now, which at two times it does not.

            Until its helper is there, it calls what is to be called when that ends, and has not
            said yet what that is (`helper_done`).  While it waits for the device model, from the
            suspension to the first page, its operation ends (`domain_save_done`), and what waits
            for the model's answer finds freed memory when that comes.
            """
            nonlocal before
            if written() <= began + _LIBXL_BYTES:
                return False
            if kind is not DomainType.HVM:
                return True
            info = self.ports.hypervisor.domain_info(self.domain.domid)
            if info is not None and not info.suspended:
                return True  # libxl looks only when it is waited for, so it has not seen more
            if before is None:
                before = written()
            return written() > before

        if self.cancelled:
            raise SuspendCancelled(self.domain, "cancelled")
        progress()
        self.begun = True
        self.hold_watchers()
        self.xl.save(self.domain.domid, fd)
        self.finish(progress, may_abort)
        progress()

    def complete(self, fd: int, directory: int) -> int:
        """Give the file its name, once it is on the disk and can be restored; its length."""
        os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))  # what was taken and not used
        os.fsync(fd)
        with open(fd, "rb", closefd=False) as file:
            size = savefile.read(file, self.path).size_bytes
        if self.cancelled:
            raise SuspendCancelled(self.domain, "cancelled")
        # with a directory's descriptor this is linkat(2), which follows the link in /proc
        try:
            os.link(f"/proc/self/fd/{fd}", self.path.name, dst_dir_fd=directory)
        except FileExistsError as error:
            raise FileExistsError(f"somebody else has made {self.path} meanwhile") from error
        try:
            os.fsync(directory)
            if not os.path.samestat(os.stat(self.path), os.fstat(fd)):
                raise OSError(f"{self.path.parent} is another directory meanwhile")
        except OSError:
            os.unlink(self.path.name, dir_fd=directory)
            raise
        return size

    def hold_watchers(self) -> None:
        """Stop xl's process that looks after it: it would take the suspension for the end."""
        self.run(protocol.hold_watchers(self.domain, self.ports.poller.now_ns))

    def let_watchers_go(self) -> None:
        self.run(protocol.let_go(self.domain, whatever=True))

    def put_back(self, error: BaseException) -> SuspendError:
        """Have the guest run on after `error`; the error to raise in the end."""
        timed_out = isinstance(error, XenlightError) and time.monotonic() >= self.until
        what = "its time is over" if timed_out else "it was cancelled" if self.cancelled else error
        try:
            phase = self.take_back() if self.begun else Phase.IDLE
            if phase is Phase.SUSPENDED:
                self.resume()
        except SuspendInterrupted:
            self.let_watchers_go()
            raise
        except XenError as second:
            failure = SaveError(
                self.domain,
                f"was not saved: {what}; then {second}, so its state is unknown. There is no file: "
                "should it be suspended, or suspend yet, resume it",
                phase=Phase.SUSPENDED,
                elapsed=self.elapsed,
            )
            failure.state_known = False
            return failure
        self.let_watchers_go()
        kind = SuspendCancelled if self.cancelled else SaveError
        state = "it runs on"
        if phase is Phase.ACKNOWLEDGED:
            state = "it runs, but may have taken the request: should it yet suspend, resume it"
        return kind(
            self.domain,
            f"was not saved: {what}; {state}, and there is no file",
            phase=phase,
            elapsed=self.elapsed,
        )

    def resume(self) -> None:
        """Resume it cooperatively, with its device model if it has one."""
        info = self.ports.hypervisor.domain_info(self.domain.domid)
        if info is not None and info.type is DomainType.HVM:
            self.xl.resume(self.domain.domid)
            self.finish()
        else:  # libxl of 4.14 loses "cooperatively" for these (libxl__domain_resume)
            self.run(protocol.resume_in_place(self.domain))

    def take_back(self) -> Phase:
        """Take back what libxl may have asked of the guest, and see what that does."""
        return self.run(protocol.take_back(self.domain, self.ports.poller.now_ns))

    def run(self, machine: Machine[T]) -> T:
        tasks: list[Task[T]] = []
        self.connection.transact(machine, tasks)
        return tasks[0].result()

    def destroy(self, size: int) -> dict[str, Any]:
        """Destroy the domain, which is complete in its file."""
        self.let_watchers_go()  # first, for one of them could have a lock that libxl needs
        info = self.ports.hypervisor.domain_info(self.domain.domid)
        try:
            self.xl.destroy(self.domain.domid)
            self.finish(grace=_GRACE + (0 if info is None else info.memory_kib * _KIB_GRACE))
        except XenlightError as error:
            failure = SaveError(
                self.domain,
                f"is saved in {self.path}, but could not be destroyed: {error}. Do that with 'xl "
                "destroy', and do not resume it: it would be there twice",
                phase=Phase.SUSPENDED,
                elapsed=self.elapsed,
            )
            failure.state_known = False
            raise failure from error
        return {"size_bytes": size}

    def mend(self) -> dict[str, Any]:
        """Finish what another worker, which was killed, has left: either way, but not half."""
        if not self.begun:  # a file that is there is an older one
            raise self.refusal(f"was not saved: {self.said}")
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
        self.path = Path(order["path"])
        self.remove_file = bool(order["remove"])

    def restore(self) -> dict[str, Any]:
        """Make the domain that is in the file, and let it run; or leave nothing of it."""
        with savefile.open_checked(self.path) as file:
            saved = savefile.read(file, self.path)
            fd = file.fileno()
            self.lock(fd)
            self.check_absent(saved)
            os.lseek(fd, saved.stream_offset, os.SEEK_SET)

            def progress() -> None:
                tell("progress", done=os.lseek(fd, 0, os.SEEK_CUR), total=saved.size_bytes)

            progress()
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
                what = "it was cancelled" if self.cancelled else error
                left = self.remove(saved, self.xl.created)
                raise RestoreError(self.path, f"was not restored: {what}{left}") from error
        return self.restored(domid, saved)

    def restored(self, domid: int, saved: savefile.SavedDomain) -> dict[str, Any]:
        """The domain runs."""
        done = remove(self.path) if self.remove_file else {"left": ""}
        return {"domid": domid, "handle": saved.uuid.hex, "name": saved.name, **done}

    def check_absent(self, saved: savefile.SavedDomain) -> None:
        """Refuse to make a domain twice: both would write to the same disks."""
        for ref in self.connection.domains():
            if ref.handle == saved.uuid.bytes or ref.name == saved.name:
                raise RestoreError(
                    self.path,
                    f"is {saved.name!r} with UUID {saved.uuid}, and {ref} with UUID {ref.uuid} is "
                    "there already. Nothing was touched",
                )

    def lock(self, fd: int) -> None:
        """Refuse a file that another process restores: both would find its domain absent."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "is restored by another process at this moment. Nothing was touched"
            raise RestoreError(self.path, what) from error
        except OSError as error:  # a file system that cannot, as NFS for a file only read
            _log.warning("%s: cannot be locked (%s)", self.path, error.strerror)

    def remove(self, saved: savefile.SavedDomain, domid: int | None) -> str:
        """Destroy what there is of a domain that was made, if it has not run; what is left of it.

        Another one with that UUID may be there: of somebody else, who restores the same file.
        """
        info = None if domid is None else self.ports.hypervisor.domain_info(domid)
        if info is None or info.handle != saved.uuid.bytes:  # libxl has done it
            return ""
        half = DomainRef(info.domid, info.handle, saved.name)
        if not info.paused:
            return f"; {half} runs, which somebody else has made meanwhile"
        try:
            self.xl.destroy(half.domid)
            self.finish()
        except XenlightError as error:
            return f"; {half}, which has not run, is left ({error}): 'xl destroy' it"
        return ""

    def mend(self) -> dict[str, Any]:
        """Finish what another worker, which was killed, has left."""
        if not self.begun:  # a domain that is there is somebody else's
            raise RestoreError(self.path, f"was not restored: {self.said}. Nothing was touched")
        with savefile.open_checked(self.path) as file:
            saved = savefile.read(file, self.path)
        ref = self.find(saved.uuid)
        left = ""
        if ref is not None:
            info = self.ports.hypervisor.domain_info(ref.domid)
            if info is not None and not info.paused:  # it was all done but told
                return self.restored(ref.domid, saved)
            left = self.remove(saved, ref.domid)
        raise RestoreError(self.path, f"was not restored: {self.said}{left}")


def remove(path: Path) -> dict[str, Any]:
    """Remove the file of a domain that runs, for it does not fit its disks any more."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return {"left": f"{path} could not be removed ({error.strerror}): do that by hand"}
    return {"left": ""}


class _StartOver(_Worker):
    def start_over(self, domid: int) -> dict[str, Any]:
        """Start a suspended HVM domain over, whose lock who has started this process holds."""
        with open_xenlight() as xl:  # one that does not wait for who changes the domain
            config = xl.domain_configuration(domid)
        self.xl.soft_reset(domid, config)
        self.xl.unpause(domid)
        self.finish()
        info = self.ports.hypervisor.domain_info(domid)
        if info is not None and info.paused:  # by who has started this process, and may be no more
            self.ports.hypervisor.unpause(domid)
        return {}


_VERBS: dict[str, Callable[[dict[str, Any], Connection, Xenlight], dict[str, Any]]] = {
    "save": lambda *given: _Save(*given).save(),
    "mend save": lambda *given: _Save(*given).mend(),
    "restore": lambda *given: _Restore(*given).restore(),
    "mend restore": lambda *given: _Restore(*given).mend(),
    "remove": lambda order, *_: remove(Path(order["path"])),
    "start over": lambda *given: _StartOver(*given).start_over(given[0]["domid"]),
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
