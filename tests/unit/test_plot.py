"""Pictures of timelines."""

from __future__ import annotations

import builtins
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from xenpm.timeline import HOST, Span, Timeline
from xenpm.types import Sleep

plot = pytest.importorskip("xenpm.plot")

MS = 1_000_000


def make(rows: int, slept_ns: int = 3_600_000 * MS) -> Timeline:
    timeline = Timeline()
    timeline.add(Span(HOST, "hook", 0, 30 * MS))
    for number in range(rows):
        name = f"guest{number}"
        timeline.add(Span(name, "suspend", 30 * MS, (40 + number) * MS, failed=number % 3 == 1))
        timeline.add(Span(name, "resume", 600 * MS, (610 + number) * MS))
    timeline.add_sleep(Sleep("mem", 100 * MS, 200 * MS, slept_ns, (0, 1), (0, 0)))
    return timeline


def texts(path: Path) -> list[str]:
    """All words of a picture."""
    root = ET.parse(path).getroot()  # noqa: S314
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_each_row_phase_and_failure_is_named(tmp_path: Path, rows: int) -> None:
    plot.draw(make(rows), tmp_path / "a.svg")
    seen = texts(tmp_path / "a.svg")
    wanted = {HOST, "hook", *(f"guest{number}" for number in range(rows))}
    wanted |= {"suspend", "resume"} if rows else set()
    assert wanted <= set(seen)
    assert ("failed" in seen) == (rows > 1)


def test_a_long_sleep_is_marked_as_shortened(tmp_path: Path) -> None:
    plot.draw(make(3), tmp_path / "a.svg")
    assert any("not to scale" in text for text in texts(tmp_path / "a.svg"))
    plot.draw(make(3, slept_ns=0), tmp_path / "b.svg")
    short = texts(tmp_path / "b.svg")
    assert not any("not to scale" in text for text in short)
    assert any("no sleep" in text for text in short)


def test_the_rest_is_drawn_to_one_scale() -> None:
    timeline = make(1)
    assert timeline.sleep is not None
    scale = plot._Scale(timeline)
    assert scale.shortened
    asleep, awake = scale(100 * MS), scale(timeline.sleep.ended_ns)
    assert asleep == pytest.approx(100)
    assert awake - asleep < 200
    assert scale(timeline.ended_ns) - awake == pytest.approx(410)
    middle = (100 * MS + timeline.sleep.ended_ns) // 2
    assert scale(middle) == pytest.approx((asleep + awake) / 2, rel=1e-3)


def test_without_a_sleep(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add(Span("web", "suspend", 5, 5))
    plot.draw(timeline, tmp_path / "a.svg")
    assert "since the start" in texts(tmp_path / "a.svg")


def test_png(tmp_path: Path) -> None:
    plot.draw(make(3), tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")


def test_names_are_text(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add(Span("$\\frac{$ <b>\x1b", "$x$", 0, MS))
    plot.draw(timeline, tmp_path / "a.svg")
    seen = texts(tmp_path / "a.svg")
    assert "$\\frac{$ <b>\\x1b" in seen
    assert "$x$" in seen


def test_the_same_timeline_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot.draw(make(3), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg or a \.png"):
        plot.draw(make(1), tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="empty"):
        plot.draw(Timeline(), tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "xenpm.plot")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'xenpm\[plot\]'"):
        importlib.import_module("xenpm.plot")


def test_the_core_does_not_import_matplotlib() -> None:
    code = "import sys, xenpm, xenpm.timeline; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
