"""Measure all on real Xen, and write tables and plots into the manual: ``make bench``.

``python -m tests.bench [PART…]`` starts a fresh host of the lab for each part, runs it there, and
writes docs/measured/PART.txt and its plots beside it.  A part alone, without writing anything:
``python -m tests.lab run RELEASE --scene SCENE -- python -m tests.bench.PART``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import cache, carry
from tests.lab.__main__ import IN_DOM0
from tests.lab.cache import LabError, say

from . import plots
from .side_by_side import Report

MEASURED = carry.ROOT / "docs" / "measured"
PYXS = "pyxs==0.4.1"
WHEELS = "/root/wheels"  # in dom0
RESULT = "/tmp/bench.json"


@dataclass(frozen=True)
class Part:
    """One module of this package, and the host that it is measured on."""

    scene: str
    release: str = "bookworm"
    seconds: float = 900


PARTS = {
    "bindings": Part("flock"),
    "cycle": Part("trio", release="trixie"),
    "footprint": Part("empty"),
    "many": Part("crowd32", seconds=1800),
    "memory": Part("memory"),
    "phases": Part("phases", seconds=1800),
}


def wheel() -> Path:
    """pyxs, which no dom0 has, and none can fetch."""

    def fetch(work: Path) -> None:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        cache.run(*pip, "--only-binary=:all:", "--dest", work, PYXS)

    return next(cache.entry("pyxs", cache.digest(PYXS), fetch).glob("*.whl"))


def measured(name: str, part: Part) -> Report:
    """Have a part measured on a fresh host."""
    brought = wheel()
    with carry.host(part.release, part.scene) as host:
        host.ssh(f"mkdir -p {WHEELS}")
        host.put(brought, f"{WHEELS}/{brought.name}")
        status = host.stream(
            f"{IN_DOM0} && python -m tests.bench.{name} --json {RESULT}",
            lambda line: print(line, flush=True),
            timeout=part.seconds,
        )
        if status:
            raise LabError(f"{name} could not be measured")
        return Report.of(host.read(RESULT))


def write(name: str, part: Part, report: Report) -> None:
    """What the manual's page on the measurements includes."""
    MEASURED.mkdir(exist_ok=True)
    first, *others = report.notes
    in_lab = f"python -m tests.lab run {part.release} --scene {part.scene}"
    blocks = [
        ".. code-block:: sh",
        f"   {in_lab} -- python -m tests.bench.{name}",
        first,
        *(table.manual() for table in report.tables),
        *others,
    ]
    for number, plot in enumerate(report.plots, 1):
        picture = MEASURED / f"{name}{number if len(report.plots) > 1 else ''}.svg"
        plots.draw(plot, picture)
        blocks.append(f".. figure:: measured/{picture.name}\n   :alt: {plot['title']}")
    (MEASURED / f"{name}.txt").write_text("\n\n".join(block.rstrip() for block in blocks) + "\n")


def main() -> int:
    """Measure what is asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    wanted = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    for name in wanted:
        part = PARTS[name]
        say(f"measuring {name} on {part.release}/{part.scene}")
        try:
            write(name, part, measured(name, part))
        except LabError as problem:
            print(f"bench: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
