"""What people see of the command line, in two ways: plain text, and rich's on a terminal.

The plain way is for pipes, files, dumb terminals, and wherever ``xenpm[cli]`` is not installed.
JSON is always written in the plain way.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO

from .heavy import Progress
from .timeline import columns, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Plain", "Rich", "on"]

#: how the words are shown that say how a domain is, or what is to become of it
_STYLES = {
    "running": "green",
    "yes": "green",
    "suspend": "cyan",
    "suspended": "cyan",
    "save": "cyan",
    "saved": "cyan",
    "pause": "yellow",
    "paused": "yellow",
    "unknown": "yellow",
    "abort": "bold red",
    "crashed": "bold red",
    "dying": "bold red",
    "failed": "bold red",
    "gone": "bold red",
    "lost": "bold red",
}


class Plain:
    """Lines of text, and nothing that moves but a counter on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        """Write a line, also of names that this stream cannot show."""
        self._stream.write(self._shown(text) + "\n")
        self._stream.flush()

    def good(self, text: str) -> None:
        """Write a line that tells of a success."""
        self.line(text)

    def bad(self, text: str) -> None:
        """Write a line that tells of a failure."""
        self.line(text)

    def table(
        self,
        rows: Sequence[tuple[str, ...]],
        right: Collection[int] = (),
        head: bool = True,  # noqa: ARG002  (here it is a row as any other)
    ) -> None:
        """Write rows in columns, as `columns` does; with `head` the first has their titles."""
        for line in columns([tuple(map(printable, row)) for row in rows], right):
            self.line(line)

    @contextmanager
    def meter(self, what: str) -> Iterator[Progress]:  # noqa: ARG002  (one line has no room for it)
        """Show how many bytes of something are done; only on a terminal."""
        if not self._stream.isatty():
            yield None
            return

        def show(done: int, total: int) -> None:
            percent = 100 * done // max(1, total)
            self._stream.write(f"\r{percent:3} %  {done >> 20} of {total >> 20} MiB ")
            self._stream.flush()

        try:
            yield show
        finally:
            self._stream.write("\r\033[K")  # an empty line
            self._stream.flush()

    @contextmanager
    def story(self, what: str) -> Iterator[Callable[[str], None]]:  # noqa: ARG002  (the lines say it)
        """Tell what happens, a line each, with the seconds since the beginning."""
        began = time.monotonic()
        yield lambda text: self.line(f"{time.monotonic() - began:8.3f}  {printable(text)}")

    def _shown(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)


class Rich(Plain):
    """The same with colours, ruled tables and live progress, by the library rich.

    What moves is drawn by a thread of rich's own, which knows nothing of xenpm.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        super().__init__(stream)
        # what is shown are names and messages, in which rich is to find nothing to embellish
        self._console: Console = Console(file=stream, markup=False, emoji=False, highlight=False)

    def line(self, text: str) -> None:  # noqa: D102
        self._console.print(self._text(text), soft_wrap=True)

    def good(self, text: str) -> None:  # noqa: D102
        self._console.print(self._text(text, "green"), soft_wrap=True)

    def bad(self, text: str) -> None:  # noqa: D102
        self._console.print(self._text(text, "red"), soft_wrap=True)

    def table(  # noqa: D102
        self, rows: Sequence[tuple[str, ...]], right: Collection[int] = (), head: bool = True
    ) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=head)
        for number, title in enumerate(rows[0] if rows else ()):
            justify: Literal["left", "right"] = "right" if number in right else "left"
            table.add_column(title, justify=justify, overflow="fold")
        for row in rows[head:]:
            table.add_row(*(self._text(printable(cell), _STYLES.get(cell, "")) for cell in row))
        self._console.print(table)

    @contextmanager
    def meter(self, what: str) -> Iterator[Progress]:  # noqa: D102
        from rich import progress

        with progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
        ) as bars:
            bar = bars.add_task(self._shown(printable(what)), total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=max(1, total))

    @contextmanager
    def story(self, what: str) -> Iterator[Callable[[str], None]]:  # noqa: D102
        from rich import progress

        with progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.TimeElapsedColumn(),
            console=self._console,
            transient=True,
        ) as spinner:
            spinner.add_task(self._shown(printable(what)), total=None)
            with super().story(what) as tell:
                yield tell

    def _text(self, text: str, style: str = "") -> Text:
        from rich.text import Text

        return Text(self._shown(text), style)


def on(stream: TextIO) -> Plain:
    """What shows things on this stream."""
    capable = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return Rich(stream) if capable and importlib.util.find_spec("rich") else Plain(stream)
