"""What importing xenpm takes, in time and memory, beside nothing and other bindings.

``python -m tests.lab run bookworm --scene empty -- python -m tests.bench.footprint``

pyxs is measured if its wheel is in /root/wheels, where ``python -m tests.bench footprint`` puts it.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import NamedTuple

import xenpm

from . import side_by_side
from .side_by_side import Report, Spread, Table

ROUNDS = 15
NOTHING = "nothing"
LOWLEVEL = "import glob, sys; sys.path += glob.glob('/usr/lib/xen-*/lib/python')"
WHEELS = "import glob, sys; sys.path += glob.glob('/root/wheels/*.whl')"
#: what a way has to do before, and what of it is measured
WAYS = {
    NOTHING: ("", "pass"),
    "import xenpm": ("", "import xenpm"),
    "import xenpm, and open a Host": ("", "import xenpm; host = xenpm.Host(); host.domains()"),
    "import xenpm.aio": ("", "import xenpm.aio"),
    "import xenpm.cli": ("", "import xenpm.cli"),
    "import asyncio": ("", "import asyncio"),
    "xen.lowlevel.xc and xs": (LOWLEVEL, "import xen.lowlevel.xc, xen.lowlevel.xs"),
    "xen.lowlevel, both opened": (
        LOWLEVEL,
        "import xen.lowlevel.xc as c, xen.lowlevel.xs as s; c, s = c.xc(), s.xs(); s.ls('', '/')",
    ),
    "pyxs": (WHEELS, "import pyxs"),
    "libvirt": ("", "import libvirt"),
}
PROGRAM = """
import time
{before}
began = time.perf_counter_ns()
{measured}
took = time.perf_counter_ns() - began
memory = dict(line.split(":", 1) for line in open("/proc/self/smaps_rollup") if ":" in line)
own = sum(int(memory[kind].split()[0]) for kind in ("Private_Clean", "Private_Dirty"))
print(took, int(memory["Rss"].split()[0]), own)
"""


class Taken(NamedTuple):
    """What one interpreter has told."""

    seconds: float
    resident_kib: int
    private_kib: int


def taken(way: str) -> Taken:
    before, measured = WAYS[way]
    program = PROGRAM.format(before=before, measured=measured)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    took, resident, private = map(int, done.stdout.split())
    return Taken(took / 1e9, resident, private)


def is_here(way: str) -> bool:
    """Whether there is something to import."""
    before, measured = WAYS[way]
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\n{measured}"], capture_output=True, text=True, check=False
    )
    if done.returncode and "ModuleNotFoundError" not in done.stderr:
        raise RuntimeError(done.stderr)
    return not done.returncode


def measure() -> Report:
    ways = [way for way in WAYS if is_here(way)]
    samples = side_by_side.in_turns({way: partial(taken, way) for way in ways}, ROUNDS)
    nothing = [each.resident_kib for each in samples[NOTHING]]
    rows = [["", "ms", "resident, KiB", "more than nothing", "of it its own"]]
    for way, found in samples.items():
        resident = [each.resident_kib for each in found]
        more = Spread.of([one - none for one, none in zip(resident, nothing)])
        rows.append([
            way,
            Spread.of([each.seconds for each in found]).ms(),
            f"{Spread.of(resident).median:.0f}",
            f"{more.median:.0f}",
            f"{Spread.of([each.private_kib for each in found]).median:.0f}",
        ])  # fmt: skip
    with xenpm.Host() as host:
        where = side_by_side.host(host.xen_version)
    missing = ", ".join(way for way in WAYS if way not in ways)
    notes = [
        f"{where}, Python {sys.version.split()[0]}; {ROUNDS} rounds.",
        *([f"Not there: {missing}."] if missing else []),
    ]
    return Report(notes, [Table(rows)])


if __name__ == "__main__":
    side_by_side.in_dom0(measure, __doc__ or "")
