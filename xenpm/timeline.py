"""What happened when: the spans of a host suspend, as text, JSON and Chrome's trace format."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .types import Sleep, plain

__all__ = ["HOST", "Span", "Timeline"]

#: the row of what concerns the whole machine, and the span on it while the machine sleeps
HOST, SLEEP = "host", "sleep"


@dataclass(frozen=True)
class Span:
    """Something that took time."""

    row: str  #: whose: `HOST`, or a domain
    what: str  #: a phase: ``suspend``, ``pause``, ``resume``, ``hook``, `SLEEP`, ...
    began_ns: int  #: on the poller's clock, which stands still while the machine sleeps
    ended_ns: int  #: on the same
    detail: str = ""  #: in words
    failed: bool = False  #: it did not come to what it was to come to

    def __post_init__(self) -> None:
        if self.ended_ns < self.began_ns:
            raise ValueError(f"{self.what} of {self.row} ends before it begins")

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return self.ended_ns - self.began_ns


class Timeline:
    """Spans in rows: the host's first, then the others as their first spans were added.

    Spans are added as the poller's clock has them.  What comes out is on a clock that goes on
    during the sleep: whatever came after it is moved by its length.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._sleep: Sleep | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Timeline:
        """The timeline of which `to_dict` has made these values."""
        timeline = cls()
        for row in values["rows"]:
            for span in row["spans"]:
                timeline.add(Span(**span))
        return timeline

    def __iter__(self) -> Iterator[Span]:
        for span in self._spans:
            yield replace(
                span, began_ns=self._moved(span.began_ns), ended_ns=self._moved(span.ended_ns)
            )

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, span: Span) -> None:
        """Note a span that has ended."""
        self._spans.append(span)

    def add_sleep(self, sleep: Sleep) -> None:
        """Note the machine's sleep, once: from the write of the state until it has returned."""
        if self._sleep is not None:
            raise ValueError("this timeline has a sleep already")
        self._sleep = sleep
        detail = "; ".join(sleep.problems) or f"{sleep.state} for {sleep.slept_ns / 1e9:.1f} s"
        failed = not sleep.verified
        self.add(Span(HOST, SLEEP, sleep.began_ns, sleep.ended_ns, detail, failed))

    def _moved(self, ns: int) -> int:
        if self._sleep is None or ns < self._sleep.ended_ns:
            return ns
        return ns + self._sleep.slept_ns

    @property
    def rows(self) -> list[str]:
        """The names of the rows, in order."""
        names = dict.fromkeys(span.row for span in self)
        return [name for name in names if name == HOST] + [name for name in names if name != HOST]

    @property
    def began_ns(self) -> int:
        """When the first span began; 0 without spans."""
        return min((span.began_ns for span in self), default=0)

    @property
    def ended_ns(self) -> int:
        """When the last span ended; 0 without spans."""
        return max((span.ended_ns for span in self), default=0)

    @property
    def sleep(self) -> Span | None:
        """The machine's sleep; None when it did not come to one."""
        return next((s for s in self if (s.row, s.what) == (HOST, SLEEP)), None)

    def of_row(self, row: str) -> list[Span]:
        """A row's spans, in the order in which they began; the longer of two first."""
        spans = (span for span in self if span.row == row)
        return sorted(spans, key=lambda span: (span.began_ns, -span.ended_ns))

    def to_text(self) -> str:
        """A line a span, below its row's name: begin, length, what; begins count from the first."""
        lines = []
        for row in self.rows:
            lines.append(printable(row))
            for span in self.of_row(row):
                began = _ms(span.began_ns - self.began_ns)
                words = [printable(span.what), *(["FAILED"] if span.failed else [])]
                words += [printable(span.detail)] if span.detail else []
                lines.append(f"  {began:>14}  {_ms(span.duration_ns):>14}  {'  '.join(words)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``; the rows in their order."""
        return {
            "began_ns": self.began_ns,
            "ended_ns": self.ended_ns,
            "rows": [
                {"row": row, "spans": [plain(span) for span in self.of_row(row)]}
                for row in self.rows
            ],
        }

    def to_chrome_trace(self) -> dict[str, Any]:
        """For ``chrome://tracing`` and Perfetto: the Trace Event Format, JSON object form.

        Each row is a thread of one process, each span a complete event (``X``); times are in
        microseconds from the first span on.
        """
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "xenpm"}}
        ]
        for number, row in enumerate(self.rows, 1):
            place = {"pid": 1, "tid": number}
            events += [
                {"ph": "M", "name": "thread_name", **place, "args": {"name": row}},
                {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": number}},
            ]
            events += [
                {
                    "ph": "X",
                    "name": span.what,
                    "cat": "failed" if span.failed else "xenpm",
                    "ts": (span.began_ns - self.began_ns) / 1000,
                    "dur": span.duration_ns / 1000,
                    **place,
                    "args": {"detail": span.detail, "failed": span.failed},
                }
                for span in self.of_row(row)
            ]
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def _ms(ns: int) -> str:
    return f"{ns / 1e6:,.1f} ms"


def printable(text: str) -> str:
    """Guests choose their names' characters: none may move a terminal's cursor."""
    return "".join(
        each if unicodedata.category(each)[0] != "C" else ascii(each)[1:-1] for each in text
    )


def columns(rows: Sequence[tuple[str, ...]], right: Collection[int] = ()) -> list[str]:
    """Rows as lines of a table; those columns whose numbers are in `right` end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        )
        lines.append("  ".join(cells).rstrip())
    return lines
