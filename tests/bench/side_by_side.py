"""Ways of doing the same, measured in turns, and what is made of the numbers.

Each round has every way once, beginning with another one each time, so whatever disturbs the
machine for a while disturbs them all.  Ratios are taken within a round; what is told is their
median and their quartiles.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import xenpm
from xenpm.timeline import columns

T = TypeVar("T")


class Spread(NamedTuple):
    """The middle of some numbers, and the half of them around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        if len(numbers) < 2:
            return cls(*(statistics.median(numbers),) * 3)
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)

    def ratio(self) -> str:
        """As it stands in a table of ratios."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def ms(self) -> str:
        """A time in seconds, as it stands in a table of milliseconds."""
        median, low, high = (digits(each * 1e3) for each in self)
        return f"{median} ({low} to {high})"


def digits(number: float) -> str:
    """Three digits of a number, or all that stand before its point."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:#.3g}".rstrip(".")


def in_turns(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call all ways once in each round; what each has returned, in the order of the rounds."""
    names = list(ways)
    samples: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(ways[name]())
    return samples


def ratios(numbers: Sequence[float], to: Sequence[float]) -> Spread:
    """The ratios of two ways, round by round."""
    return Spread.of([one / other for one, other in zip(numbers, to)])


def timed(call: Callable[[], object], calls: int) -> Callable[[], float]:
    """What measures the seconds that one of so many calls takes, on the average."""

    def measure() -> float:
        turns = range(calls)
        began = time.perf_counter_ns()
        for _ in turns:
            call()
        return (time.perf_counter_ns() - began) / calls / 1e9

    return measure


def calls_within(call: Callable[[], object], seconds: float) -> int:
    """How often something can be called in so long."""
    calls = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        call()
        calls += 1
    return calls


@dataclass(frozen=True)
class Table:
    """Rows of text, the first of which is the heading."""

    rows: list[list[str]]

    def text(self) -> str:
        """For a terminal."""
        rows = [tuple(row) for row in self.rows]
        return "\n".join(columns(rows, right=range(1, len(rows[0]))))

    def manual(self) -> str:
        """For the manual."""
        text = StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(self.rows)
        return ".. csv-table::\n   :header-rows: 1\n\n" + textwrap.indent(text.getvalue(), "   ")


@dataclass(frozen=True)
class Report:
    """What one part of the measurements has found: paragraphs, tables, and what plots show."""

    notes: list[str]
    tables: list[Table]
    plots: list[dict[str, Any]] = field(default_factory=list)
    """the arguments of a function of `plots` each, which is named by ``kind``"""

    @classmethod
    def of(cls, text: bytes) -> Report:
        """From JSON."""
        values = json.loads(text)
        return cls(values["notes"], [Table(**each) for each in values["tables"]], values["plots"])

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([*(note.replace("``", "") for note in self.notes),
                            *(table.text() for table in self.tables)])  # fmt: skip


@contextmanager
def alone(host: xenpm.Host, name: str) -> Iterator[None]:
    """Within: all other guests are paused."""
    others = [each for each in host.domains() if each.domid and each.name != name]
    for each in others:
        each.pause()
    yield
    for each in others:
        each.unpause()


def host(version: Iterable[int]) -> str:
    """Where it was measured."""
    return f"Xen {'.'.join(map(str, version))}, Linux {os.uname().release} in domain 0"


def in_dom0(measure: Callable[[], Report], description: str) -> None:
    """The command line of a part: measure, print, and on demand write it all as JSON."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    gc.disable()  # as timeit does
    report = measure()
    print(report.text())
    if options.json:
        options.json.write_text(json.dumps(asdict(report)))
