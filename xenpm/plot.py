"""A picture of a timeline; the only module that needs matplotlib."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .timeline import HOST, SLEEP, Span, Timeline, printable

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"pictures need matplotlib: pip install 'xenpm[plot]' ({error})", name=error.name
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_WIDTH, _ROW, _MARGINS = 10.0, 0.3, 1.7  # inches
_NAME = 28  # characters of a row's name that are shown
_LEGEND = 8  # entries in a line of the legend
_THINNEST = 0.002  # of the axis: what is shorter is still seen
_DWARFS = 1.0  # a sleep longer than all the rest together is not drawn to scale
_DRAWN_AS = 0.3  # but as long as that much of the rest


class _Style(NamedTuple):
    """A fill that can be told from the others also without colours."""

    colour: str
    hatch: str


#: of the phases by name; the colours are Okabe and Ito's, told apart by the colour-blind
_STYLES = {
    "hook": _Style("#CC79A7", "xx"),
    "suspend": _Style("#0072B2", ""),
    "pause": _Style("#999999", "--"),
    "suspended": _Style("#DCEBF7", ""),
    "paused": _Style("#EEEEEE", ".."),
    "resume": _Style("#009E73", "//"),
    "unpause": _Style("#B5E0D2", "\\\\"),
    "check": _Style("#F0E442", ".."),
    "undo": _Style("#D55E00", "||"),
}
_OTHERS = [_Style("#56B4E9", "++"), _Style("#E69F00", "oo"), _Style("#FFFFFF", "**")]
_BAND = "#303030"


class _Scale:
    """Where a moment is on the axis: in milliseconds from the first, the sleep perhaps shorter."""

    def __init__(self, timeline: Timeline) -> None:
        self._began_ns = timeline.began_ns
        total = (timeline.ended_ns - timeline.began_ns) / 1e6
        sleep = timeline.sleep
        self.asleep = self.awake = self._cut = total  # without a sleep, all is before it
        if sleep is not None:
            length = sleep.duration_ns / 1e6
            rest = total - length
            drawn = _DRAWN_AS * rest if rest and length > _DWARFS * rest else length
            self.asleep = (sleep.began_ns - self._began_ns) / 1e6
            self.awake = self.asleep + drawn
            self._cut = self.asleep + length
        self.shortened = self.awake < self._cut
        self.width = max(total - (self._cut - self.awake), 1e-3)

    def __call__(self, ns: int) -> float:
        """The place of a moment."""
        ms = (ns - self._began_ns) / 1e6
        if ms <= self.asleep:
            return ms
        if ms >= self._cut:
            return self.awake + ms - self._cut
        return self.asleep + (ms - self.asleep) * (self.awake - self.asleep) / (
            self._cut - self.asleep
        )


def draw(timeline: Timeline, path: Path) -> None:
    """Draw one row for the host and each domain: phases in colour, the sleep as a band over all.

    A sleep that is longer than all the rest together is drawn shorter, and marked.

    Args:
        timeline: what to draw.
        path: where; the suffix, ``.svg`` or ``.png``, says as what.

    Raises:
        ValueError: another suffix, or nothing has happened; nothing is written.
        OSError: the file cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in (".svg", ".png"):
        raise ValueError(f"{path.name}: a picture is a .svg or a .png file")
    if not timeline:
        raise ValueError("the timeline is empty: there is nothing to draw")
    # Names are text, never formulas; the same timeline gives the same file.
    settings: dict[Any, Any] = {
        "text.parse_math": False,
        "svg.hashsalt": "xenpm",
        "svg.fonttype": "none",
        "hatch.linewidth": 0.5,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure = _figure(timeline)
        metadata = {"Date": None} if kind == ".svg" else {}
        figure.savefig(path, format=kind[1:], dpi=150, metadata=metadata)


def _figure(timeline: Timeline) -> Figure:
    rows = timeline.rows
    styles = _styles(timeline)
    scale = _Scale(timeline)
    height = _MARGINS + _ROW * len(rows)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(rows):
        axes.axhline(number, color="#E8E8E8", linewidth=0.6, zorder=0)
        _draw_row(axes, number, timeline.of_row(row), styles, scale)
    axes.set_xlim(-0.01 * scale.width, 1.01 * scale.width)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    _draw_ticks(axes, scale, sleeps=timeline.sleep is not None)
    if timeline.sleep is not None:
        _draw_sleep(axes, timeline.sleep, scale)
    _draw_legend(figure, timeline, styles)
    return figure


def _styles(timeline: Timeline) -> dict[str, _Style]:
    """A style for each phase that there is; those without one of their own share the others."""
    whats = dict.fromkeys(span.what for span in timeline if not _is_sleep(span))
    own = {what: _STYLES[what] for what in _STYLES if what in whats}
    unknown = [what for what in whats if what not in own]
    return {**own, **{what: _OTHERS[i % len(_OTHERS)] for i, what in enumerate(unknown)}}


def _is_sleep(span: Span) -> bool:
    return (span.row, span.what) == (HOST, SLEEP)


def _draw_row(
    axes: Axes, number: int, spans: Iterable[Span], styles: dict[str, _Style], scale: _Scale
) -> None:
    around: list[Span] = []  # the spans that the next may lie within
    for span in spans:
        if _is_sleep(span):
            continue
        around = [each for each in around if each.ended_ns > span.began_ns]
        height = max(0.2, 0.72 - 0.22 * len(around))
        around.append(span)
        left = scale(span.began_ns)
        width = max(scale(span.ended_ns) - left, _THINNEST * scale.width)
        style = styles[span.what]
        axes.add_patch(
            Rectangle(
                (left, number - height / 2),
                width,
                height,
                facecolor=style.colour,
                hatch=style.hatch,
                edgecolor="black",
                linewidth=1.6 if span.failed else 0.5,
                zorder=3 + len(around),
            )
        )
        if span.failed:
            axes.plot(
                [left + width / 2],
                [number],
                marker="X",
                markersize=9,
                markerfacecolor="#D00000",
                markeredgecolor="white",
                zorder=20,
            )


def _draw_sleep(axes: Axes, sleep: Span, scale: _Scale) -> None:
    left, right = scale.asleep, max(scale.awake, scale.asleep + _THINNEST * scale.width)
    axes.axvspan(left, right, facecolor=_BAND, alpha=0.2, linewidth=0, zorder=10)
    for edge in (left, right):
        axes.axvline(edge, color="#555555", linewidth=0.8, linestyle=(0, (4, 2)), zorder=11)
    words = f"{'no sleep' if sleep.failed else 'asleep'}, {_length(sleep.duration_ns / 1e6)}"
    if scale.shortened:
        words += "\n(not to scale)"
    axes.annotate(
        words,
        ((left + right) / 2, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color="#C00000" if sleep.failed else "black",
        fontweight="bold" if sleep.failed else "normal",
    )
    if scale.shortened:  # the axis is broken here
        axes.plot(
            [(left + right) / 2],
            [0],
            marker=[(-1, -1), (-0.2, 1), (-0.2, -1), (0.6, 1)],
            markersize=11,
            markerfacecolor="none",
            color="black",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            zorder=21,
        )


def _draw_ticks(axes: Axes, scale: _Scale, *, sleeps: bool) -> None:
    """Ticks from the start, and anew from the wake-up on."""
    places: list[float] = []
    labels: list[str] = []
    for begin, end, sign in ((0.0, scale.asleep, ""), (scale.awake, scale.width, "+")):
        length = end - begin
        share = length / scale.width
        if share < 0.04:
            ticks = [0.0] if length else []
        else:
            ticks = [t for t in MaxNLocator(max(1, round(8 * share))).tick_values(0, length)
                     if 0 <= t <= 1.001 * length]  # fmt: skip
        places += [begin + tick for tick in ticks]
        labels += [f"{sign}{_length(tick)}" for tick in ticks]
    axes.set_xticks(places, labels)
    axes.set_xlabel("since the start, and + since the wake-up" if sleeps else "since the start")


def _draw_legend(figure: Figure, timeline: Timeline, styles: dict[str, _Style]) -> None:
    handles: list[Patch | Line2D] = [
        Patch(facecolor=style.colour, hatch=style.hatch, edgecolor="black", linewidth=0.5,
              label=printable(what))
        for what, style in styles.items()
    ]  # fmt: skip
    if any(span.failed for span in timeline):
        handles.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker="X",
                markersize=9,
                markerfacecolor="#D00000",
                markeredgecolor="white",
                label="failed",
            )
        )
    if handles:
        lines = -(-len(handles) // _LEGEND)
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=-(-len(handles) // lines),
            frameon=False,
            handlelength=2.4,
            handleheight=1.2,
        )


def _short(row: str) -> str:
    name = printable(row)
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _length(ms: float) -> str:
    if ms >= 60_000:
        minutes, seconds = divmod(round(ms / 1000), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    return f"{ms / 1000:.4g} s" if ms >= 1000 else f"{ms:g} ms"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what ``python -m xenpm host suspend --json`` has printed, perhaps on another machine."""
    parser = argparse.ArgumentParser(prog="python -m xenpm.plot", description=main.__doc__)
    parser.add_argument("report", type=Path, help="the JSON of a report")
    parser.add_argument("picture", type=Path, help="what to write: a .svg or a .png file")
    options = parser.parse_args(argv)
    try:
        draw(Timeline.of(json.loads(options.report.read_text())["timeline"]), options.picture)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"xenpm: {options.report}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
