"""Where the lab keeps what is expensive to make: locked, atomic, and cleaned after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_LOCK_NAME = ".lock"
_started = time.monotonic()


class LabError(Exception):
    """Something the lab needs is missing or did not work; the text says what to do."""


def say(text: str) -> None:
    """Print one line of progress, with the seconds since this process started."""
    print(f"[lab {time.monotonic() - _started:6.1f} s] {text}", file=sys.stderr, flush=True)


def home() -> Path:
    """The cache directory, created on demand."""
    named = os.environ.get("XENPM_LAB_CACHE")
    path = Path(named) if named else Path.home() / ".cache" / "xenpm-lab"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def digest(*parts: object) -> str:
    """A short hash of everything that an entry depends on."""
    state = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        state.update(b"%d:" % len(data))
        state.update(data)
    return state.hexdigest()[:12]


def digest_files(*paths: Path) -> str:
    """A short hash of the names, contents and modes of files and of whole directories."""
    parts: list[object] = []
    for top in paths:
        found = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in found:
            if path.is_file() and "__pycache__" not in path.parts:
                parts += [str(path.relative_to(top.parent)), path.stat().st_mode, path.read_bytes()]
    return digest(*parts)


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    what: str = "",
    timeout: float = 600,
) -> str:
    """Run a command that dies with us; its output, or a LabError with the end of what it said."""
    words = [str(word) for word in command]
    what = what or words[0]
    try:
        done = subprocess.run(
            dying_with_us(words),
            timeout=timeout,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env=env,
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{what} did not finish in {timeout:.0f} s") from late
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise LabError(f"{what} failed with status {done.returncode}:\n{tail}")
    return done.stdout


def dying_with_us(words: list[str]) -> list[str]:
    """The command, arranged so that the kernel kills it when this process goes away."""
    return ["setpriv", "--pdeathsig", "KILL", *words]


def remove(path: Path) -> None:
    """Remove a file or a tree, never across a mount point."""
    if path.is_dir() and not path.is_symlink():
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _flock(path: Path, what: str = "", timeout: float = 3600) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if what:
                say(f"waiting: {what}")
            # The command knows what the system call does not: a deadline. The lock becomes ours,
            # for it belongs to the open file, which the command shares.
            fd = handle.fileno()
            done = subprocess.run(
                dying_with_us(["flock", "-w", str(int(timeout)), str(fd)]),
                pass_fds=[fd],
                check=False,
            )
            if done.returncode:
                raise LabError(f"gave up waiting after {timeout:.0f} s: {what}") from None
        yield


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """The right to run a machine: one at a time, for two on two cores only disturb each other.

    XENPM_LAB_MACHINES=any lets as many run as are started.
    """
    if os.environ.get("XENPM_LAB_MACHINES") == "any":
        yield
    else:
        with _flock(home() / ".machine.lock", "another process runs a machine"):
            yield


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A directory that goes away at the end; those of killed processes go away at the next call."""
    _sweep()
    path = home() / f".scratch-{purpose}-{os.getpid()}-{time.monotonic_ns()}"
    # The lock is taken on a file beside the directory, so that the directory can be renamed.
    lock = path.with_name(path.name + _LOCK_NAME)
    with _flock(lock):
        try:
            path.mkdir()
            yield path
        finally:
            remove(path)
            lock.unlink(missing_ok=True)


def _sweep() -> None:
    """Remove the scratch directories whose owners are dead."""
    for lock in home().glob(f".scratch-*{_LOCK_NAME}"):
        try:
            handle = lock.open("a")
        except FileNotFoundError:
            continue
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            remove(lock.with_name(lock.name.removesuffix(_LOCK_NAME)))
            lock.unlink(missing_ok=True)


def entry(
    kind: str, key: str, build: Callable[[Path], None], outdates: tuple[str, ...] = ()
) -> Path:
    """The entry `kind`-`key`; built in a scratch directory and renamed when it is not there yet.

    Older entries of the same kind, and all of the kinds that start with one of `outdates`, are
    removed once the new one stands.
    """
    path = home() / f"{kind}-{key}"
    if path.is_dir():
        return path
    with _flock(home() / f".{kind}{_LOCK_NAME}", f"another process builds {kind}"):
        if path.is_dir():
            return path
        with scratch(kind) as work:
            build(work)
            work.rename(path)
        for old in home().glob(f"{kind}-*"):
            if old != path and old.name.removeprefix(f"{kind}-").isalnum():
                remove(old)
        for prefix in outdates:
            for old in home().glob(f"{prefix}-*"):
                remove(old)
    return path


def require(packages: Mapping[str, str]) -> None:
    """Check that commands exist; the error names the Debian packages that bring them."""
    missing = {name: pkg for name, pkg in packages.items() if not find(name)}
    if missing:
        wanted = " ".join(sorted(set(missing.values())))
        names = ", ".join(missing)
        raise LabError(f"missing on this machine: {names}; on Debian: apt install {wanted}")


def find(command: str) -> str | None:
    """The path of a command, also of those that only root's PATH has."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"
    return shutil.which(command, path=path)
