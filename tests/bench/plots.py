"""The plots of the measurements, for the manual."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from .side_by_side import digits

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by the colour-blind"""
MARKS = "osD^vP"
WIDTH = 8.0  # inches


def ratios(title: str, rows: list[list[Any]], *, log: bool = False) -> Figure:
    """A dot for each median, a line through its quartiles, and another where both are equal."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(rows)))
    axes = figure.subplots()
    names = [row[0] for row in rows][::-1]
    for place, (_, median, low, high) in enumerate(rows[::-1]):
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2)
        axes.plot(median, place, "o", color=COLOURS[0])
        axes.annotate(digits(median), (median, place), (0, 5), textcoords="offset points",
                      ha="center", fontsize=7)  # fmt: skip
    axes.axvline(1, color="#303030", linewidth=1)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        ends = [each for row in rows for each in row[1:]]
        axes.set_xticks(
            [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if tick <= 2 * max(ends)]
        )
    else:
        axes.set_xlim(left=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", color="#e8e8e8")
    return figure


def growth(
    title: str,
    x: list[float],
    lines: dict[str, list[list[float]]],
    axis: list[str],
    *,
    log: bool = False,
) -> Figure:
    """Lines over a number that doubles, through medians; bars are their quartiles."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    for number, (name, values) in enumerate(lines.items()):
        medians = [median for median, _, _ in values]
        spread = [[m - low for m, low, _ in values], [high - m for m, _, high in values]]
        axes.errorbar(x, medians, spread, fmt=f"{MARKS[number]}-", color=COLOURS[number],
                      label=name, markersize=4, capsize=3)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [f"{each:g}" for each in x])
    axes.xaxis.set_minor_locator(NullLocator())
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(axis[0])
    axes.set_ylabel(axis[1])
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#e8e8e8")
    axes.legend(frameon=False)
    return figure


def stacked(title: str, rows: list[str], parts: dict[str, list[float]], axis: str) -> Figure:
    """A bar for each row, of its parts."""
    figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * len(rows)))
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for number, (name, values) in enumerate(parts.items()):
        axes.barh(rows, values, left=left, color=COLOURS[number], label=name, height=0.6)
        left = [one + other for one, other in zip(left, values)]
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", color="#e8e8e8")
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    return figure


KINDS: dict[str, Callable[..., Figure]] = {
    "ratios": ratios,
    "growth": growth,
    "stacked": stacked,
}


def draw(plot: dict[str, Any], path: Path) -> None:
    """Draw one plot of a report; the same numbers give the same file."""
    arguments = {name: value for name, value in plot.items() if name != "kind"}
    settings: dict[Any, Any] = {
        "svg.hashsalt": "xenpm",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure = KINDS[plot["kind"]](**arguments)
        figure.set_layout_engine("constrained")
        figure.savefig(path, metadata={"Date": None})
