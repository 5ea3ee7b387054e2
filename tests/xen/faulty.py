"""A resume that is torn apart at a chosen change that it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xenpm
from xenpm import actions
from xenpm.engine import Engine

CHANGING = (
    actions.Write, actions.Remove, actions.Pause, actions.Unpause, actions.SoftReset,
    actions.ResetChannels, actions.AllocateChannel, actions.SetParam, actions.SeedGrants,
    actions.Introduce, actions.DiscardEvents, actions.ResumeStore, actions.ResumeDomain,
)  # fmt: skip


class Fault:
    """At the n-th change from now on, something happens; before it or after it.

    Attributes:
        struck: at which change it did; None while it has not.
    """

    def __init__(
        self, host: xenpm.Host, nth: int, strike: Callable[[], object], *, after: bool = False
    ) -> None:
        self.struck: Any = None
        self._left = nth
        self._strike = strike
        self._after = after
        self._engine: Engine = host._connection._engine
        self._perform = dict(self._engine._perform)

    def __enter__(self) -> Fault:
        for kind in CHANGING:
            self._engine._perform[kind] = self._change
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._engine._perform.update(self._perform)

    def _change(self, action: Any) -> Any:
        self._left -= 1
        if self._left:
            return self._perform[type(action)](action)
        self.struck = action
        result = self._perform[type(action)](action) if self._after else None
        self._strike()
        return result
