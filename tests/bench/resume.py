"""Three ways of stopping a guest and having it again, side by side, in dom0 of a lab host.

``python -m tests.lab run bookworm --scene reinit -- python -m tests.bench.resume``

What the guest's own kernel loses of its memory with each is in the last column.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import xenpm
from tests.xen.guest import Guest, run
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

SAVED = Path("/root/guests/saved")


def cooperative(guest: Guest) -> tuple[float, float]:
    """Suspend and resume lightly; what each took, in seconds."""
    return guest.domain.suspend().total_ns / 1e9, guest.domain.resume().total_ns / 1e9


def starting_over(guest: Guest) -> tuple[float, float]:
    """The same, and it starts over."""
    suspension = guest.domain.suspend()
    return suspension.total_ns / 1e9, guest.domain.resume(cooperative=False).total_ns / 1e9


def save_and_restore(guest: Guest) -> tuple[float, float]:
    """To a file and back, with xl."""
    began = time.monotonic()
    run("xl", "save", guest.name, str(SAVED))
    saved = time.monotonic()
    run("xl", "restore", str(SAVED))
    return saved - began, time.monotonic() - saved


WAYS: list[tuple[str, Callable[[Guest], tuple[float, float]], int]] = [
    ("cooperative", cooperative, 10),
    ("starting over", starting_over, 10),
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
        for label, way, runs in WAYS:
            free_kib = guest.free_kib
            rows = [once(guest, way) for _ in range(runs)]
            lost_kib = (free_kib - guest.free_kib) / runs
            cells = "".join(
                f"{f'{statistics.median(each) * 1000:.0f} ({max(each) * 1000:.0f})':>16}"
                for each in zip(*rows)
            )
            print(f"{label:22}{runs:>5}{cells}{lost_kib:>16.0f}", flush=True)


def once(
    guest: Guest, way: Callable[[Guest], tuple[float, float]]
) -> tuple[float, float, float, float]:
    """What stopping and letting go took, and from there until it counted, and used its disk."""
    count = guest.count
    stopped, let_go = way(guest)
    began = time.monotonic()
    with suppress(xenpm.NoSuchNode):  # a restored guest has a directory of its own
        count = max(count, guest.count)
    guest.wait_counting(count)
    counted = time.monotonic() - began
    guest.wait("data/io", bool, "it does not tell of its disk")
    guest.wait_working("io", "verified")
    return stopped, let_go, counted, time.monotonic() - began


if __name__ == "__main__":
    main()
