"""Sleep states and the evidence of a sleep, on files that stand for the kernel's."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import xenpm
from xenpm import power
from xenpm.actions import Action, EnterSleep, GetSleepStates, Machine
from xenpm.engine import Engine
from xenpm.power import SystemPower
from xenpm.testing import FakeXen
from xenpm.types import SHORTEST_SLEEP_NS, Sleep

SECOND = 1_000_000_000
INTERRUPTS = """\
           CPU0       CPU1
  1:          0          9  xen-pirq    -ioapic-edge  i8042
  9:          0          3  xen-pirq    -ioapic-level  acpi
NMI:          0          0   Non-maskable interrupts
"""


class Kernel(SystemPower):
    """The files of a kernel; a write to its state does what the test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        self.root = root
        self.on_write: Callable[[], object] = lambda: None
        self.written: list[str] = []
        self.slept_ns = 0
        self.now_ns = 0
        monkeypatch.setattr(power, "time", self)
        self.put("sys/power/state", "freeze mem disk")
        self.count(success=3, fail=1)
        self.put("sys/power/suspend_stats/last_failed_dev", "0000:00:04.0")
        self.put("sys/power/suspend_stats/last_failed_errno", "-16")
        self.put("sys/power/suspend_stats/last_failed_step", "suspend")
        self.put("proc/interrupts", INTERRUPTS)
        self.source("wakeup0", "PNP0C0C:00", 1)
        self.source("wakeup1", "LNXPWRBN:00", 0)

    # the clocks that it has instead of those of `time`
    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def monotonic_ns(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def clock_gettime_ns(self, which: int) -> int:
        assert which == self.CLOCK_BOOTTIME
        return self.now_ns + 1000 + self.slept_ns

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def count(self, success: int, fail: int) -> None:
        self.put("sys/power/suspend_stats/success", str(success))
        self.put("sys/power/suspend_stats/fail", str(fail))

    def source(self, directory: str, name: str, events: int) -> None:
        self.put(f"sys/class/wakeup/{directory}/name", name)
        self.put(f"sys/class/wakeup/{directory}/event_count", str(events))
        self.put(f"sys/class/wakeup/{directory}/wakeup_count", "0")

    def _write(self, state: str) -> None:
        self.written.append(state)
        self.on_write()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def refusal(code: int) -> Callable[[], None]:
    def refuse() -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_sleep(kernel: Kernel) -> None:
    def sleep() -> None:
        kernel.slept_ns = 60 * SECOND
        kernel.count(success=4, fail=1)
        kernel.source("wakeup1", "LNXPWRBN:00", 1)
        kernel.source("wakeup7", "", 2)
        kernel.put("sys/power/pm_wakeup_irq", "9")

    kernel.on_write = sleep
    slept = kernel.sleep("mem")
    assert kernel.written == ["mem"]
    assert slept.verified
    assert slept.problems == ()
    assert slept.slept_ns == 60 * SECOND
    assert slept.began_ns < slept.ended_ns < SECOND
    assert (slept.successes, slept.failures) == ((3, 4), (1, 1))
    assert slept.woken_by == ("LNXPWRBN:00", "wakeup7")
    assert slept.wakeup_irq == 9
    assert slept.wakeup_irq_name == "xen-pirq -ioapic-level acpi"
    # the last failure is an old one
    assert (slept.failed_device, slept.failed_errno, slept.failed_step) == ("", 0, "")
    assert pickle.loads(pickle.dumps(slept)) == slept  # noqa: S301


def test_a_write_that_returns_at_once(kernel: Kernel) -> None:
    kernel.on_write = lambda: kernel.count(success=4, fail=1)
    slept = kernel.sleep("mem")
    assert not slept.verified
    (problem,) = slept.problems
    assert "returned without a sleep" in problem


def test_a_sleep_that_the_kernel_does_not_count(kernel: Kernel) -> None:
    kernel.on_write = lambda: setattr(kernel, "slept_ns", 60 * SECOND)
    slept = kernel.sleep("mem")
    assert not slept.verified
    (problem,) = slept.problems
    assert "not counted" in problem


def test_a_failure_that_the_write_does_not_tell(kernel: Kernel) -> None:
    kernel.on_write = lambda: kernel.count(success=3, fail=2)
    problems = " ".join(kernel.sleep("mem").problems)
    assert "failed attempt (refused by 0000:00:04.0 in step suspend, EBUSY)" in problems


def test_a_kernel_without_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Kernel(tmp_path / "bare", monkeypatch)
    for path in ("sys/power/suspend_stats/success", "sys/power/suspend_stats/fail"):
        (bare.root / path).unlink()
    bare.on_write = lambda: setattr(bare, "slept_ns", 60 * SECOND)
    slept = bare.sleep("mem")
    assert slept.verified
    assert (slept.successes, slept.failures) == (None, None)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EBUSY, "a wake-up event came"),
        (errno.EINVAL, "does not know the state"),
        (errno.ENODEV, "firmware"),
        (errno.EDEADLK, os.strerror(errno.EDEADLK)),
    ],
)
def test_a_refused_write(kernel: Kernel, code: int, words: str) -> None:
    kernel.on_write = refusal(code)
    with pytest.raises(xenpm.SleepFailed, match=words) as caught:
        kernel.sleep("mem")
    assert caught.value.errno == code
    assert caught.value.state == "mem"
    assert caught.value.sleep is not None
    assert "refused by" not in str(caught.value)  # the last failure is an old one


def test_a_device_that_refuses_is_named(kernel: Kernel) -> None:
    def refuse() -> None:
        kernel.count(success=3, fail=2)
        refusal(errno.EBUSY)()

    kernel.on_write = refuse
    with pytest.raises(xenpm.SleepFailed, match=r"refused by 0000:00:04\.0 in step suspend"):
        kernel.sleep("mem")


def test_not_root(kernel: Kernel) -> None:
    kernel.on_write = refusal(errno.EACCES)
    with pytest.raises(xenpm.NotPermitted, match="takes root"):
        kernel.sleep("mem")


@pytest.mark.parametrize("states", ["freeze disk", ""])
def test_a_state_that_is_not_offered_is_not_written(kernel: Kernel, states: str) -> None:
    kernel.put("sys/power/state", states)
    assert kernel.states() == tuple(states.split())
    with pytest.raises(xenpm.SleepFailed, match="nothing was touched") as caught:
        kernel.sleep("mem")
    assert caught.value.errno == errno.EINVAL
    assert caught.value.sleep is None
    assert kernel.written == []


def test_no_power_management(tmp_path: Path) -> None:
    assert SystemPower(tmp_path).states() == ()


def test_the_write_itself(tmp_path: Path) -> None:
    state = tmp_path / "sys/power/state"
    state.parent.mkdir(parents=True)
    state.write_text("mem")
    slept = SystemPower(tmp_path).sleep("mem")
    assert state.read_text() == "mem"
    assert not slept.verified


def test_how_short_a_sleep_may_be() -> None:
    slept = Sleep("mem", 0, SECOND, slept_ns=SHORTEST_SLEEP_NS, successes=(0, 1), failures=(0, 0))
    assert slept.verified
    assert not replace(slept, slept_ns=SHORTEST_SLEEP_NS - 1).verified


# -- through the engine, on the fake host


def ask(xen: FakeXen, action: Action) -> Any:
    def machine() -> Machine[Any]:
        return (yield action)

    return Engine(xen.ports()).start(machine()).result()


def test_the_engine_puts_the_host_to_sleep(xen: FakeXen) -> None:
    guest = xen.add_guest("web1")
    xen.before("sleep", guest.destroy)
    assert ask(xen, GetSleepStates()) == ("freeze", "mem")
    slept = ask(xen, EnterSleep("mem"))
    assert slept.verified
    assert slept.slept_ns == xen.sleep_ns
    assert slept.ended_ns - slept.began_ns < xen.sleep_ns  # the monotonic clock stands still
    assert xen.guests == {}


def test_the_fake_host_may_not_sleep(xen: FakeXen) -> None:
    xen.sleep_ns = 0
    assert not ask(xen, EnterSleep("mem")).verified
    xen.fail("sleep", errno.EBUSY)
    with pytest.raises(xenpm.SleepFailed) as caught:
        ask(xen, EnterSleep("mem"))
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(xenpm.SleepFailed, match="not offered"):
        ask(xen, EnterSleep("disk"))
