"""Three ways of stopping a guest and having it again, side by side, in dom0 of a lab host.

``python -m tests.lab run bookworm --scene reinit -- python -m tests.bench.resume``,
and for an HVM guest ``--scene hvm -- python -m tests.bench.resume hvm1``.

What the guest's own kernel loses of its memory with each is in the last column.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xenpm
from tests.xen.guest import Guest, run
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

SAVED = Path("/root/guests/saved")


class Stop(NamedTuple):
    """What one stopping and letting go took, in seconds."""

    stopped: float
    let_go: float
    ran: float = 0
    """how long it has run already, while its devices were watched"""
    steps: tuple[xenpm.Step, ...] = ()


def in_place(guest: Guest, *, cooperative: bool) -> Stop:
    """Suspend and resume lightly."""
    suspension = guest.domain.suspend()
    force = guest.domain.type is xenpm.DomainType.HVM  # it is there to be lost
    resumption = guest.domain.resume(cooperative=cooperative, timeout=60, force=force)
    assert not resumption.problems, resumption.problems
    return Stop(
        suspension.total_ns / 1e9,
        resumption.total_ns / 1e9,
        resumption.check_ns / 1e9,
        resumption.steps,
    )


def save_and_restore(guest: Guest) -> Stop:
    """To a file and back, with xl."""
    began = time.monotonic()
    run("xl", "save", guest.name, str(SAVED))
    saved = time.monotonic()
    run("xl", "restore", str(SAVED))
    return Stop(saved - began, time.monotonic() - saved)


WAYS: list[tuple[str, Callable[[Guest], Stop], int]] = [
    ("cooperative", partial(in_place, cooperative=True), 10),
    ("starting over", partial(in_place, cooperative=False), 10),
    ("xl save, xl restore", save_and_restore, 2),
]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("guest", nargs="?", default="over")
    name = parser.parse_args().guest
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        guest = Guest(name, host, store, control)
        info = guest.domain.info
        kinds = ", ".join(str(device) for device in guest.domain.backends)
        print(
            f"{info.type.name} guest, {info.vcpus_online} vCPU, {info.memory_kib // 1024} MiB, "
            f"{kinds}; Xen {'.'.join(map(str, host.xen_version))}; medians (and the longest), in ms"
        )
        columns = ("stopped", "let go", "counts again", "disk again", "KiB lost each")
        print(f"{'':22}{'runs':>5}" + "".join(f"{name:>16}" for name in columns))
        steps: dict[str, list[float]] = {}
        for label, way, runs in WAYS:
            free_kib = guest.free_kib
            rows = []
            for _ in range(runs):
                stop, *again = once(guest, way)
                rows.append((stop.stopped, stop.let_go, *again))
                for step in stop.steps:
                    steps.setdefault(step.name, []).append(step.ns / 1e9)
            lost_kib = (free_kib - guest.free_kib) / runs
            cells = "".join(f"{in_ms(each):>16}" for each in zip(*rows))
            print(f"{label:22}{runs:>5}{cells}{lost_kib:>16.0f}", flush=True)
        print("let go when starting over: " + ", ".join(
            f"{name} {in_ms(each)}" for name, each in steps.items()
        ))  # fmt: skip


def in_ms(seconds: Sequence[float]) -> str:
    """The median, and the longest."""
    return f"{statistics.median(seconds) * 1000:.0f} ({max(seconds) * 1000:.0f})"


def once(guest: Guest, way: Callable[[Guest], Stop]) -> tuple[Stop, float, float]:
    """What stopping and letting go took, and from there until it counted, and used its disk."""
    count = guest.count
    stop = way(guest)
    began = time.monotonic() - stop.ran
    with suppress(xenpm.NoSuchNode):  # a restored guest has a directory of its own
        count = max(count, guest.count)
    guest.wait_counting(count)
    counted = time.monotonic() - began
    guest.wait("data/io", bool, "it does not tell of its disk")
    guest.wait_working("io", "verified")
    return stop, counted, time.monotonic() - began


if __name__ == "__main__":
    main()
