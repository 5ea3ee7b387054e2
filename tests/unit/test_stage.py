"""What becomes of a host test that fails, without a host."""

from __future__ import annotations

from typing import cast

import pytest

from tests.host.stage import Stage, on_stage
from tests.lab.machine import Machine
from tests.lab.runner import ROUNDS


class Rehearsal:
    """A stage without a host, whose guests are lost as often as said."""

    def __init__(self, losses: int) -> None:
        self.losses = losses
        self.hosts = 1

    @property
    def host(self) -> int:
        return self.hosts

    def lost(self) -> bool:
        return self.hosts <= self.losses

    def keep_evidence(self, name: str) -> None:
        assert name == "test"

    def clear(self) -> None:
        self.hosts += 1


def play(losses: int, failures: int) -> tuple[list[object], Rehearsal]:
    """Play a test that fails so often."""
    seen: list[object] = []

    @on_stage
    def test(night: Machine) -> None:
        seen.append(night)
        assert len(seen) > failures, "broken"

    rehearsal = Rehearsal(losses)
    test(night=cast(Stage, rehearsal))
    return seen, rehearsal


def test_a_host_is_used_on() -> None:
    seen, rehearsal = play(losses=0, failures=0)
    assert seen == [1]
    assert rehearsal.hosts == 1


def test_a_lost_guest_is_no_failure() -> None:
    assert play(losses=2, failures=2)[0] == [1, 2, 3]


def test_a_failure_is_one_also_after_a_lost_guest() -> None:
    with pytest.raises(AssertionError, match="broken"):
        play(losses=1, failures=2)


def test_a_guest_lost_each_time_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="lost a PVH guest each time"):
        play(losses=ROUNDS, failures=ROUNDS)
