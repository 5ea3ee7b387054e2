"""What is made of measurements: their order, their ratios, their tables and plots."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from docutils.core import publish_doctree  # type: ignore[import-untyped]

from tests.bench import __main__ as bench
from tests.bench import plots
from tests.bench.side_by_side import Report, Spread, Table, calls_within, digits, in_turns, ratios

PLOTS: list[dict[str, Any]] = [
    {"kind": "ratios", "title": "some", "rows": [["one", 1.0, 0.9, 1.1], ["other", 9, 7, 80]],
     "log": True},
    {"kind": "growth", "title": "many", "x": [1, 2, 4],
     "lines": {"all": [[1, 0.5, 2], [2, 2, 2.5], [3, 1, 4]]}, "axis": ["guests", "ms"]},
    {"kind": "stacked", "title": "parts", "rows": ["one", "other"],
     "parts": {"begin": [1.0, 2.0], "end": [3.0, 4.0]}, "axis": "ms"},
]  # fmt: skip


def test_every_round_has_every_way_and_begins_with_another() -> None:
    called: list[str] = []

    def way(name: str) -> int:
        called.append(name)
        return len(called)

    ways = {name: lambda name=name: way(name) for name in "abc"}
    assert in_turns(ways, 4) == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}
    assert "".join(called) == "abcbcacababc"


def test_ratios_are_those_of_the_rounds() -> None:
    """A machine that is slow for a round changes none of them."""
    assert ratios([2.0, 20.0, 4.0, 2.0], [1.0, 10.0, 1.0, 1.0]) == Spread(2.0, 2.0, 2.5)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread(2.0, 1.955, 2.5).ratio() == "2.00 (1.96 to 2.50)"
    assert Spread(0.0123, 0.012, 1.5).ms() == "12.3 (12.0 to 1500)"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.01234, "0.0123"), (1.0, "1.00"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1234")],
)
def test_digits(number: float, text: str) -> None:
    assert digits(number) == text


def test_calls_are_counted() -> None:
    calls: list[int] = []
    assert calls_within(lambda: calls.append(1), 0.001) == len(calls) >= 1


def test_report_is_written_for_the_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table([["", "calls, each"], ['a "node"', "1.00 (0.9 to 1.1)"]])
    report = Report(["Xen, ``xl``, 3 rounds.", "And more."], [table], PLOTS)
    assert Report.of(json.dumps(asdict(report)).encode()) == report
    assert report.text().startswith("Xen, xl, 3 rounds.\n\nAnd more.\n\n")
    monkeypatch.setattr(bench, "MEASURED", tmp_path / "measured")
    bench.write("some", bench.Part("trio"), report)
    text = (tmp_path / "measured" / "some.txt").read_text()
    assert "python -m tests.lab run bookworm --scene trio -- python -m tests.bench.some" in text
    tree = publish_doctree(text.replace("code-block::", "code::"))
    assert not list(tree.findall(lambda node: node.tagname == "system_message"))
    cells = [node.astext() for node in tree.findall(lambda node: node.tagname == "entry")]
    assert cells == [cell for row in table.rows for cell in row]
    images = [node["uri"] for node in tree.findall(lambda node: node.tagname == "image")]
    assert images == [f"measured/some{number}.svg" for number in (1, 2, 3)]
    assert all((tmp_path / image).exists() for image in images)


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot["kind"])
def test_plots_are_the_same_each_time(tmp_path: Path, plot: dict[str, object]) -> None:
    pictures = [tmp_path / "one.svg", tmp_path / "other.svg"]
    for picture in pictures:
        plots.draw(plot, picture)
    one, other = (picture.read_text() for picture in pictures)
    assert one == other
    assert str(plot["title"]) in one


def test_parts_are_modules_and_scenes() -> None:
    from tests.lab import image, scenes

    for name, part in bench.PARTS.items():
        assert Path(bench.__file__).with_name(f"{name}.py").exists()
        assert part.scene in scenes.SCENES
        assert part.release in image.RELEASES
