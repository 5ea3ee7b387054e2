"""What a suspension costs a guest, phase by phase, by its processes, vCPUs and passed-through card.

``python -m tests.lab run bookworm --scene phases -- python -m tests.bench.phases``

From the request to the shutdown it is xenpm's own result that tells; the freezing is taken from the
guest's kernel log; and when the first instruction of a process ran again, the guest tells by the
processor's clock, which domain 0 reads, too.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import xenpm
from tests.xen.guest import Guest, LogWatch, run
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from . import side_by_side
from .side_by_side import Report, Spread, Table

GUESTS = ("one", "four", "one-card", "four-card")
CROWDS = (10, 100, 1000)
ROUNDS = 5
RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
FREEZING, FROZEN, THAWED = "Freezing user space", "Freezing remaining", "Restarting tasks"
STAMP = re.compile(rf"\[ *(\d+\.\d+)\] ({FREEZING}|{FROZEN})")


class Clock:
    """The processor's clock, which is the same for all of the host."""

    def __init__(self) -> None:
        self._page = mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        )
        self._page.write(RDTSC)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self.ticks: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
        began, began_ns = self.ticks(), time.monotonic_ns()
        time.sleep(1)  # for what is measured is the length of that
        self.per_second = (self.ticks() - began) / (time.monotonic_ns() - began_ns) * 1e9


class Cost(NamedTuple):
    """What one suspension and resumption took, in seconds."""

    request: float
    acknowledge: float
    suspend: float
    froze: float
    """of `suspend`, by the guest's own log"""
    resume: float
    first: float
    """from the call of resume to the first instruction of a process"""
    last: float
    """the same for the process that was made last"""


def _froze(log: str) -> float:
    """How long the guest's kernel took to freeze its processes."""
    first = {what: float(stamp) for stamp, what in reversed(STAMP.findall(log))}
    return first[FROZEN] - first[FREEZING]


def _thaws(guest: Guest) -> int:
    try:
        return int(guest.report("thaws")["times"])
    except xenpm.NoSuchNode:  # it tells of the first one first
        return 0


def cost(guest: Guest, clock: Clock) -> Cost:
    thaws = _thaws(guest)
    domain = guest.domain
    with LogWatch(guest.log) as log:
        suspension = domain.suspend()
        began = clock.ticks()
        resumption = domain.resume()
        guest.wait("data/thaws", lambda text: int(text.split("times=")[1].split()[0]) > thaws,
                   "it does not tell of its thaw")  # fmt: skip
        froze = _froze(log.wait(THAWED))
    report = guest.report("thaws")
    first, last = ((int(report[which]) - began) / clock.per_second for which in ("first", "last"))
    guest.wait_counting(guest.count + 5)
    return Cost(
        suspension.request_ns / 1e9,
        suspension.acknowledge_ns / 1e9,
        suspension.suspend_ns / 1e9,
        froze,
        resumption.total_ns / 1e9,
        first,
        last,
    )


def measure() -> Report:
    rows = [["vCPUs", "card", "processes", "request", "acknowledged", "frozen and down",
             "of it freezing", "resume", "first process runs", "last"]]  # fmt: skip
    parts: dict[str, list[float]] = {}
    names: list[str] = []
    clock = Clock()
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        for name in GUESTS:
            guest = Guest(name, host, store, control)
            if name == "four-card":  # there is one card
                run("xl", "destroy", "one-card")
                guest.create()
            info = guest.domain.info
            card = bool(guest.domain.pci_devices)
            for crowd in CROWDS:
                with side_by_side.alone(host, name):
                    guest.command(f"crowd {crowd}")
                    costs = [cost(guest, clock) for _ in range(ROUNDS)]
                spreads = [Spread.of(column) for column in zip(*costs)]
                rows.append([
                    str(info.vcpus_online),
                    "yes" if card else "no",
                    str(crowd),
                    *(spread.ms() for spread in spreads),
                ])  # fmt: skip
                print(" ".join(rows[-1]), flush=True)
                names.append(f"{info.vcpus_online} vCPU{', card' if card else ''}, {crowd}")
                medians = dict(zip(Cost._fields, (spread.median * 1e3 for spread in spreads)))
                for what, part in (
                    ("request", medians["request"]),
                    ("acknowledged", medians["acknowledge"]),
                    ("frozen and down", medians["suspend"]),
                    ("resumed, first process runs", medians["first"]),
                ):
                    parts.setdefault(what, []).append(part)
        where = side_by_side.host(host.xen_version)
    notes = [f"{where}; PV guests with 256 MiB; {ROUNDS} rounds; all in ms."]
    plot: dict[str, Any] = {
        "kind": "stacked",
        "title": "What a suspension costs: vCPUs, card, processes",
        "rows": names,
        "parts": parts,
        "axis": "ms",
    }
    return Report(notes, [Table(rows)], [plot])


if __name__ == "__main__":
    side_by_side.in_dom0(measure, __doc__ or "")
