"""The real `xenpm.ports.Power`: the kernel's sleep states, and the evidence of a sleep.

The kernel's documents: ``admin-guide/pm/sleep-states`` and ``ABI/testing/sysfs-power``.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .errors import NotPermitted, SleepFailed
from .types import Sleep

__all__ = ["SystemPower"]


class _Evidence(NamedTuple):
    """What the kernel says at one moment."""

    gained_ns: int  # CLOCK_BOOTTIME minus CLOCK_MONOTONIC
    successes: int | None
    failures: int | None
    wakeups: Mapping[str, tuple[str, int]]  # by source: its name, and the events that it counts


class SystemPower:
    """``/sys/power``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._power = root / "sys/power"
        self._stats = self._power / "suspend_stats"
        self._sources = root / "sys/class/wakeup"
        self._interrupts = root / "proc/interrupts"

    def states(self) -> tuple[str, ...]:
        """The states that the kernel offers: ``mem`` is ACPI S3; none without CONFIG_SUSPEND."""
        return tuple(_read(self._power / "state").split())

    def sleep(self, state: str) -> Sleep:
        """Put the machine to sleep, and say after its wake-up what tells that it has slept.

        The write blocks in the kernel until the machine is awake again, and nothing can end it: it
        has no deadline, neither for the devices before the sleep nor for the sleep.

        Raises:
            SleepFailed: the kernel refused; the machine is awake and has not slept.
            NotPermitted: not root in dom0, or the kernel is locked down.
        """
        offered = self.states()
        if state not in offered:
            raise SleepFailed(state, errno.EINVAL, _not_offered(offered))
        before = self._look()
        began_ns = time.monotonic_ns()
        refused: OSError | None = None
        try:
            self._write(state)
        except OSError as error:
            refused = error
        ended_ns = time.monotonic_ns()
        sleep = self._sleep(state, before, began_ns, ended_ns)
        if refused is not None:
            code = refused.errno or 0
            if code in (errno.EPERM, errno.EACCES):
                raise NotPermitted(
                    "write", code, f"{self._power / 'state'}: it takes root, and no lockdown"
                ) from refused
            raise SleepFailed(state, code, _WHY.get(code, "") + sleep.refusal, sleep) from refused
        return sleep

    def _write(self, state: str) -> None:
        fd = os.open(self._power / "state", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, state.encode())
        finally:
            os.close(fd)

    def _look(self) -> _Evidence:
        wakeups = {
            source.name: (_read(source / "name") or source.name, _sum_of_counts(source))
            for source in _children(self._sources)
        }
        gained_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        successes, failures = (_number(self._stats / name) for name in ("success", "fail"))
        return _Evidence(gained_ns, successes, failures, wakeups)

    def _sleep(self, state: str, before: _Evidence, began_ns: int, ended_ns: int) -> Sleep:
        after = self._look()
        failed = after.failures != before.failures  # else the last failure is an old one
        irq = _number(self._power / "pm_wakeup_irq")
        return Sleep(
            state=state,
            began_ns=began_ns,
            ended_ns=ended_ns,
            slept_ns=max(0, after.gained_ns - before.gained_ns),
            successes=_pair(before.successes, after.successes),
            failures=_pair(before.failures, after.failures),
            failed_device=_read(self._stats / "last_failed_dev") if failed else "",
            failed_errno=(_number(self._stats / "last_failed_errno") or 0) if failed else 0,
            failed_step=_read(self._stats / "last_failed_step") if failed else "",
            woken_by=tuple(
                sorted(
                    name
                    for source, (name, count) in after.wakeups.items()
                    if count > before.wakeups.get(source, ("", 0))[1]
                )
            ),
            wakeup_irq=irq,
            wakeup_irq_name="" if irq is None else self._interrupt(irq),
        )

    def _interrupt(self, irq: int) -> str:
        """What ``/proc/interrupts`` says of an interrupt, behind a count for each CPU."""
        head, *lines = _read(self._interrupts).splitlines() or [""]
        cpus = len(head.split())
        for line in lines:
            number, _, rest = line.partition(":")
            if number.strip() == str(irq):
                return " ".join(rest.split()[cpus:])
        return ""


#: what an error of the write means, and what to do
_WHY = {
    errno.EBUSY: "a wake-up event came at that moment, or a device or process refused",
    errno.EINVAL: "the kernel does not know the state, or Xen refuses it",
    errno.EIO: "a device failed",
    errno.ENODEV: "the platform cannot do it: look for sleep settings of the firmware",
}


def _not_offered(offered: tuple[str, ...]) -> str:
    what = f"it offers: {' '.join(offered)}" if offered else "it offers no state at all"
    return f"this kernel does not have the state ({what}); nothing was touched"


def _pair(before: int | None, after: int | None) -> tuple[int, int] | None:
    return None if before is None or after is None else (before, after)


def _sum_of_counts(source: Path) -> int:
    """Wake-up events that a source has had: those during a sleep, and those that would end one."""
    return sum(_number(source / name) or 0 for name in ("event_count", "wakeup_count"))


def _read(path: Path) -> str:
    """What a file of the kernel says; nothing when there is none, or it has nothing to say."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.lstrip("-").isdecimal() else None


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:  # a kernel without wake-up sources
        return []
