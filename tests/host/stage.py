"""A host that several tests use one after the other, for as long as they leave it whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.lab import carry, runner
from tests.lab.cache import say
from tests.lab.machine import Machine


class Stage:
    """A running host of a scene, started when first wanted, and anew after `clear`."""

    def __init__(self, release: str, scene: str, prepare: str) -> None:
        self._release, self._scene, self._prepare = release, scene, prepare
        self._running = ExitStack()
        self._host: Machine | None = None
        self._faults = 0

    @property
    def host(self) -> Machine:
        """The host; `prepare` was run in dom0 when it was started."""
        if self._host is None:
            self._host = self._running.enter_context(carry.host(self._release, self._scene))
            self._host.ssh(self._prepare)
            self._faults = self._count_faults()
        return self._host

    def _count_faults(self) -> int:
        return self.host.ssh("xl dmesg").stdout.count("Triple fault")

    def lost(self) -> bool:
        """Whether the emulator has lost a PVH guest; see tests/xen/conftest.py."""
        return self._host is not None and self._count_faults() > self._faults

    def keep_evidence(self, name: str) -> None:
        """Keep what it left behind, as `make test` does for the tests in dom0."""
        if self._host is not None:
            runner.keep_evidence(self._host, runner.RESULTS / self._release / name)

    def clear(self) -> None:
        """End it."""
        self._host = None
        self._running.close()


@contextmanager
def stage(release: str, scene: str, prepare: str) -> Iterator[Stage]:
    """For a fixture."""
    it = Stage(release, scene, prepare)
    try:
        yield it
    finally:
        it.clear()


def on_stage(test: Callable[..., None]) -> Callable[..., None]:
    """A test whose last argument is the fixture of a `Stage`; it is given the host.

    No test finds what a failed one has left; and one that has lost a guest to the emulator, which
    says nothing about xenpm, is played again on a fresh host.
    """

    @functools.wraps(test)
    def played(night: Stage, **arguments: Any) -> None:
        for _ in range(runner.ROUNDS):
            try:
                test(night=night.host, **arguments)
                return
            except Exception:
                night.keep_evidence(test.__name__)
                lost = night.lost()
                night.clear()
                if not lost:
                    raise
                say(f"{runner.LOST_GUEST}; once more: {test.__name__}")
        raise AssertionError(f"{runner.LOST_GUEST} each time")

    return played
