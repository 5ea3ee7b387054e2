"""The virtual time of the fake host."""

from __future__ import annotations

import heapq
from typing import Callable

MS = 1_000_000  #: nanoseconds
SECOND = 1000 * MS  #: nanoseconds

Action = Callable[[], object]


class Clock:
    """Time that moves only when it is told to, and what is to happen in it.

    Attributes:
        now_ns: the virtual time.
    """

    def __init__(self) -> None:
        self.now_ns = SECOND
        self._agenda: list[tuple[int, int, Action]] = []
        self._appointments = 0

    def after(self, delay_ns: int, action: Action) -> None:
        """Do something that much later; at once when it is 0 and nobody waits."""
        self._appointments += 1
        heapq.heappush(self._agenda, (self.now_ns + delay_ns, self._appointments, action))

    def run_next(self, until_ns: int) -> bool:
        """Go to the next appointment and keep it; False when there is none before `until_ns`."""
        if not self._agenda or self._agenda[0][0] > until_ns:
            return False
        when, _, action = heapq.heappop(self._agenda)
        self.now_ns = max(self.now_ns, when)
        action()
        return True

    def pass_time(self, duration_ns: int) -> None:
        """Let time pass."""
        until = self.now_ns + duration_ns
        while self.run_next(until):
            pass
        self.now_ns = max(self.now_ns, until)

    def settle(self) -> None:
        """Let everything happen that is going to."""
        while self.run_next(1 << 63):
            pass
