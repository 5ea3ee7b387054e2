"""The real `xenpm.ports.Jobs`: programs and functions that run beside the engine's one thread.

Neither is waited for here.  A program's end makes its pidfd readable (pidfd_open(2)), a function's
end closes a pipe, and the engine polls both together with xenstore.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Mapping, Sequence

from .errors import XenError
from .types import Ending

__all__ = ["SystemJobs"]

OUTPUT_BYTES = 65_536  # of what a program writes, that much of the end is kept


class SystemJobs:
    """Processes and threads."""

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], leave: bool = False
    ) -> Program:
        """Start a program in a session of its own, so that no Ctrl-C of a terminal reaches it.

        With `leave` it runs on when it is let go of.

        Raises:
            XenError: it cannot be started.
        """
        return Program(command, environment, leave)

    def call(self, function: Callable[[], object]) -> Function:
        """Start a function in a daemon thread, which does not keep Python from ending.

        Raises:
            XenError: it cannot be started.
        """
        return Function(function)


class Program:
    """A process, what it writes, and all that it starts in its process group."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], leave: bool) -> None:
        self.done = False
        self._leave = leave
        self._status: int | None = None
        self._error = ""
        self._output = b""
        self._pipe, write_end = _pipe()
        os.set_blocking(self._pipe, False)
        try:
            self._pid = os.posix_spawn(
                command[0],
                list(command),
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write_end, 1),
                    (os.POSIX_SPAWN_DUP2, write_end, 2),
                ],
                setsid=True,
                setsigmask=(),
                # what Python ignores and a program would inherit
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            )
        except (OSError, ValueError) as error:  # the latter: a NUL in a word
            os.close(self._pipe)
            raise XenError(f"{command[0]} cannot be started: {error}") from error
        finally:
            os.close(write_end)
        # The process stays, at least as a zombie, until `_reap`: its number cannot be another's.
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            os.close(self._pipe)
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise XenError(f"{command[0]} cannot be watched, and was killed: {error}") from error

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The process's end, and its output."""
        return tuple(fd for fd in (self._pidfd, self._pipe) if fd >= 0) if not self.done else ()

    def work(self) -> None:
        """Take what it has written, and see whether it has ended; never waits."""
        ended = self._has_ended(os.WNOWAIT)
        self._read()  # after that look, so that nothing it has written before its end is missed
        self.done = ended

    def _read(self) -> None:
        """Take what a full pipe holds, and no more: somebody may write without end."""
        if self._pipe < 0:
            return
        try:
            data = os.read(self._pipe, OUTPUT_BYTES)
        except BlockingIOError:
            return
        self._output = (self._output + data)[-OUTPUT_BYTES:]
        if not data:  # nobody is left who could write
            os.close(self._pipe)
            self._pipe = -1

    def _has_ended(self, flags: int = 0) -> bool:
        try:
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | flags)
        except ChildProcessError:
            self._error = "its exit status is lost: somebody else in this process has taken it"
            return True
        if ended is None:
            return False
        exited = ended.si_code == os.CLD_EXITED
        self._status = ended.si_status if exited else -ended.si_status
        return True

    def signal(self, signum: int) -> None:
        """Send a signal to the process and the rest of its process group.

        One that is to be left looks itself after what it has started, unless it is to be killed.
        """
        if self._pidfd < 0 or self._error:
            return
        if self._leave and signum != signal.SIGKILL:
            signal.pidfd_send_signal(self._pidfd, signum)
        else:
            os.killpg(self._pid, signum)

    def result(self) -> Ending:
        """Its exit status, or minus the signal that ended it, and the end of its output."""
        self._reap()
        return Ending(self._status, self._error, self.output)

    @property
    def output(self) -> str:
        """The end of what it has written so far."""
        return self._output.decode(errors="replace")

    def close(self) -> None:
        """Kill what still runs, unless it is to be left, and let go of it."""
        if not self.done and not self._leave:
            self.signal(signal.SIGKILL)
        self._reap()
        if self._pidfd >= 0:  # killed just now, or held by the kernel: it is init's, later
            os.close(self._pidfd)
            self._pidfd = -1
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        self.done = True

    def _reap(self) -> None:
        if self._pidfd >= 0 and self._has_ended():
            os.close(self._pidfd)
            self._pidfd = -1


class Function:
    """A function in a thread; one that hangs cannot be ended, only abandoned."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.done = False
        self._error = ""
        self._end, thread_end = _pipe()
        try:
            threading.Thread(
                target=self._run, args=(function, thread_end), name="xenpm hook", daemon=True
            ).start()
        except RuntimeError as error:
            os.close(self._end)
            os.close(thread_end)
            raise XenError(f"a function cannot be called beside: {error}") from error

    def _run(self, function: Callable[[], object], thread_end: int) -> None:
        try:
            function()
        except BaseException as error:  # of a thread: nobody else would see it
            self._error = f"{type(error).__name__}: {error}"
        finally:
            os.close(thread_end)  # the thread's own, for it may outlive the reader

    @property
    def descriptors(self) -> tuple[int, ...]:
        """A pipe that the thread closes at its end."""
        return (self._end,) if not self.done else ()

    def work(self) -> None:
        """See whether it has ended; never waits."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        self.done = bool(poll.poll(0))

    @property
    def output(self) -> str:
        """Nothing: what a function writes goes where this process writes."""
        return ""

    def signal(self, signum: int) -> None:
        """Nothing: a thread cannot be told to end."""

    def result(self) -> Ending:
        """What it raised, in words."""
        return Ending(None, error=self._error)

    def close(self) -> None:
        """Abandon it, if it still runs."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1
        self.done = True


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise XenError(f"the pipe of a job cannot be made: {error}") from error
