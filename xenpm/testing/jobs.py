"""Programs and functions beside the engine's thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING, Callable

from xenpm.errors import XenError
from xenpm.types import Ending

from .calls import Port

if TYPE_CHECKING:
    from .host import FakeXen


@dataclass
class FakeProgram:
    """How a program behaves."""

    lasts_ns: int | None = 0  #: None: it hangs
    status: int = 0
    output: str = ""
    heeds: tuple[int, ...] = (SIGTERM, SIGKILL)  #: signals that end it
    act: Callable[[FakeJob, Sequence[str]], None] | None = None  #: what it does instead of all that


class FakeJob:
    """A program or a function on the fake host."""

    def __init__(self, xen: FakeXen, heeds: tuple[int, ...] = (), leave: bool = False) -> None:
        self.done = False
        self._leave = leave
        self.ending: Ending | None = None
        self.signals: list[int] = []
        self.output = ""  # so far
        self.on_signal: Callable[[int], None] | None = None
        self._heeds = heeds
        self._number = -2 - len(xen.jobs)
        xen.jobs.append(self)

    def end(self, ending: Ending) -> None:
        """It ends, if it has not yet."""
        self.ending = self.ending or ending

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Something that only a `FakePoller` can wait for."""
        return () if self.done else (self._number,)

    def work(self) -> None:
        """See whether it has ended."""
        self.done = self.ending is not None

    def signal(self, signum: int) -> None:
        """End it, if it heeds that."""
        self.signals.append(signum)
        if self.on_signal is not None:
            self.on_signal(signum)
        elif signum in self._heeds:
            self.end(Ending(-signum))

    def result(self) -> Ending:
        """How it has ended."""
        assert self.ending is not None
        return self.ending

    def close(self) -> None:
        """Let go of it."""
        if not self.done and not self._leave:
            self.signal(SIGKILL)
        self.done = True


class FakeJobs(Port):
    """`xenpm.ports.Jobs` on the fake host: `FakeXen.programs`, and functions that take no time."""

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], leave: bool = False
    ) -> FakeJob:
        """Start one of the host's programs."""
        with self._call("run"):
            program = self._xen.programs.get(command[0])
            if program is None:
                raise XenError(f"{command[0]} cannot be started: no such program")
            self._xen.started.append((tuple(command), dict(environment)))
            job = FakeJob(self._xen, program.heeds, leave)
            if program.act is not None:
                program.act(job, command)
                return job
            ending = Ending(program.status, output=program.output)
            if program.lasts_ns is not None:
                self._xen.after(program.lasts_ns, lambda: job.end(ending))
            return job

    def call(self, function: Callable[[], object]) -> FakeJob:
        """Call a function, and say that it has ended."""
        with self._call("call"):
            job = FakeJob(self._xen)
            try:
                if function() not in self._xen.hanging:
                    job.end(Ending(None))
            except Exception as error:
                job.end(Ending(None, f"{type(error).__name__}: {error}"))
            return job
