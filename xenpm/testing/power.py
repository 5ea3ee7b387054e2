"""The sleep of the machine."""

from __future__ import annotations

import errno

from xenpm.errors import SleepFailed
from xenpm.types import Sleep

from .calls import Port
from .clock import SECOND


class FakePower(Port):
    """`xenpm.ports.Power` on the fake host: the monotonic clock stands still during a sleep.

    `FakeXen.fail("sleep", errno.EBUSY)` has it refused, and `FakeXen.before("sleep", ...)` makes
    something happen right before.
    """

    def states(self) -> tuple[str, ...]:
        """The sleep states of this host."""
        with self._call("states"):
            return self._xen.sleep_states

    def sleep(self, state: str) -> Sleep:
        """Sleep for `FakeXen.sleep_ns`, between two halves of a second for the devices."""
        with self._call("sleep"):
            if state not in self._xen.sleep_states:
                raise SleepFailed(state, errno.EINVAL, "not offered")
            began_ns = self._xen.now_ns
            self._xen.pass_time(SECOND)
            return Sleep(
                state,
                began_ns,
                self._xen.now_ns,
                slept_ns=self._xen.sleep_ns,
                successes=(0, 1),
                failures=(0, 0),
                woken_by=("PNP0C0C:00",),
                wakeup_irq=9,
                wakeup_irq_name="acpi",
            )
