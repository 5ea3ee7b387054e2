"""Guests in the middle of work: checked disk I/O, xenstore transactions without pause."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .guest import Guest

SCENE = "load"
GuestOf = Callable[[str], Guest]
WORKERS = 4  # processes of xs-pv, each with one transaction at a time

pytestmark = pytest.mark.soak  # guests that never rest leave the emulated host little time
CYCLES = pytest.mark.parametrize("cycles", [50, 500])


@CYCLES
def test_disk_io_survives(cycles: int, guest: GuestOf) -> None:
    work_through(guest("io-pv"), "io", "verified", cycles)


@CYCLES
def test_xenstore_transactions_survive(cycles: int, guest: GuestOf) -> None:
    subject = guest("xs-pv")
    subject.wait("data/xs-total", bool, "its work has not begun")
    before = subject.report("xs-total")
    work_through(subject, "xs-total", "commits", cycles)
    after = subject.report("xs-total")
    # Linux tells its programs of each transaction that was open in a suspension to start again.
    conflicts = int(after["conflicts"]) - int(before["conflicts"])
    assert 0 < conflicts <= cycles * WORKERS
    assert after["lost"] == before["lost"]


def work_through(subject: Guest, report: str, done: str, cycles: int) -> None:
    """Suspend and resume a guest at its work, which must go on after each time without error."""
    domain = subject.domain
    subject.wait(f"data/{report}", bool, "its work has not begun")
    with subject.unharmed():
        for cycle in range(cycles):
            before = subject.report(report)
            assert before["errors"] == "0"
            domain.suspend()
            domain.resume()
            text = subject.wait(
                f"data/{report}",
                lambda text, least=int(before[done]): int(_field(text, done)) > least,  # type: ignore[misc]
                f"no progress after cycle {cycle}",
            )
            assert _field(text, "boot") == before["boot"]
            assert _field(text, "errors") == "0"


def _field(text: str, name: str) -> str:
    return dict(field.split("=", 1) for field in text.split())[name]
