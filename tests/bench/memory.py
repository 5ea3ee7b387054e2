"""A guest's memory and what suspending it costs: the light way and the heavy one, side by side.

``python -m tests.lab run bookworm --scene memory -- python -m tests.bench.memory``
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import xenpm
from tests.xen.guest import Guest
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from . import side_by_side
from .side_by_side import Report, Spread, Table, alone

GUESTS = ("m128", "m256", "m512", "m1024")
SAVED = Path("/root/saved")


class Taken(NamedTuple):
    """What one suspend and its resume have taken, in seconds, and what was written."""

    down: float
    up: float
    written_bytes: int = 0


def _light(guest: Guest) -> Taken:
    suspension = guest.domain.suspend(lightweight=True)
    resumption = guest.domain.resume()
    assert not resumption.problems, resumption.problems
    return Taken(suspension.total_ns / 1e9, resumption.total_ns / 1e9)


def _heavy(guest: Guest) -> Taken:
    saving = guest.domain.suspend(lightweight=False, path=SAVED)
    began = time.perf_counter()
    xenpm.restore(SAVED)
    restored = time.perf_counter() - began
    SAVED.unlink()
    return Taken(saving.total_ns / 1e9, restored, saving.size_bytes)


WAYS: dict[str, tuple[Callable[[Guest], Taken], int]] = {
    "lightweight=True": (_light, 5),
    "lightweight=False": (_heavy, 3),
}


def _once(way: Callable[[Guest], Taken], guest: Guest) -> Taken:
    """One way, once; it must be the same guest afterwards, counting on."""
    boot, count = guest.boot, guest.count
    taken = way(guest)
    guest.wait("data/counter", bool, "it does not come back")
    guest.wait_counting(max(count, guest.count))
    assert guest.boot == boot
    return taken


def measure() -> Report:
    rows = [["memory, MiB", "way", "runs", "suspend, ms", "resume, ms", "both, ms", "written, MiB"]]
    lines: dict[str, list[Spread]] = {way: [] for way in WAYS}
    memory = []
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        where = side_by_side.host(host.xen_version)
        for name in GUESTS:
            guest = Guest(name, host, store, control)
            memory.append(guest.domain.info.memory_kib // 1024)
            with alone(host, name):
                for way, (call, runs) in WAYS.items():
                    taken = [_once(call, guest) for _ in range(runs)]
                    both = Spread.of([each.down + each.up for each in taken])
                    rows.append([
                        str(memory[-1]), way, str(runs),
                        Spread.of([each.down for each in taken]).ms(),
                        Spread.of([each.up for each in taken]).ms(),
                        both.ms(),
                        f"{taken[0].written_bytes / 2**20:.0f}",
                    ])  # fmt: skip
                    lines[way].append(Spread(*(each * 1e3 for each in both)))
                    print(" ".join(rows[-1]), flush=True)
    grown = (
        f"{way}: {last.median / first.median:.1f} times" for way, (first, *_, last) in lines.items()
    )
    growth = (
        f"The largest guest has {memory[-1] / memory[0]:.0f} times the memory of the smallest, and "
        f"takes longer by this: {'; '.join(grown)}."
    )
    plot: dict[str, Any] = {
        "kind": "growth", "title": "Suspend and resume, both together", "x": memory,
        "lines": lines, "log": True, "axis": ["memory of the guest, MiB", "ms"],
    }  # fmt: skip
    return Report([f"{where}; PV guests with one vCPU.", growth], [Table(rows)], [plot])


if __name__ == "__main__":
    side_by_side.in_dom0(measure, __doc__ or "")
