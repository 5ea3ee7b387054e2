"""Guests of a real Xen host suspended in place one by one, and the old way beside it.

``python -m tests.lab run bookworm --scene trio -- python -m tests.bench.light``
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import xenpm
from tests.xen.guest import TROUBLE, Guest, run
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

SAVED = Path("/root/saved")


@dataclass
class Row:
    """What one guest went through."""

    guest: str
    kind: str
    memory_mib: int
    suspend_ms: float
    resume_ms: float
    counted: str
    save_ms: float
    restore_ms: float

    @property
    def ratio(self) -> float:
        return (self.save_ms + self.restore_ms) / (self.suspend_ms + self.resume_ms)


def say(text: str) -> None:
    print(text, flush=True)


def show_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows of which the first is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    head, *table = rows
    say("")
    for line in (head, tuple("-" * width for width in widths), *table):
        say("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))


def _timed(*command: str) -> float:
    """Milliseconds that a command takes."""
    began = time.monotonic()
    run(*command)
    return (time.monotonic() - began) * 1e3


def show(guest: Guest) -> Row:
    """Take one guest through both ways."""
    domain = xenpm.Domain(guest.name)
    info = domain.info
    kind = f"{info.type.name}, {info.vcpus_online} vCPU"
    say(f"\n{domain.ref}: {kind}, {info.memory_kib // 1024} MiB")
    boot = guest.boot

    suspension = domain.suspend(lightweight=True)
    asleep, count = domain.info, guest.count
    say(
        f"  suspended: the hypervisor says {asleep.state.value}, reason "
        f"{domain.shutdown_reason.name if domain.shutdown_reason is not None else None}; "
        f"{asleep.memory_kib // 1024} MiB still in place; its counter stands at {count}"
    )
    say(
        f"    request {suspension.request_ns / 1e6:.1f} ms, acknowledged after "
        f"{suspension.acknowledge_ns / 1e6:.1f} ms, suspended after "
        f"{suspension.suspend_ns / 1e6:.1f} ms more"
    )
    if guest.count != count or domain.info.cpu_time_ns != asleep.cpu_time_ns:
        sys.exit(f"{guest.name} runs although it is suspended")

    resumption = domain.resume()
    guest.wait_counting(count)
    if guest.boot != boot:
        sys.exit(f"{guest.name} is not the guest that it was")
    say(f"  resumed in place: the same process counts on, {count} -> {guest.count}")

    saved = SAVED / guest.name
    save_ms = _timed("xl", "save", guest.name, str(saved))
    size = saved.stat().st_size >> 20
    restore_ms = _timed("xl", "restore", str(saved))
    saved.unlink()
    say(f"  the old way: {size} MiB written to disk, the domain destroyed and made anew")
    return Row(
        guest.name,
        kind,
        info.memory_kib // 1024,
        suspension.total_ns / 1e6,
        resumption.total_ns / 1e6,
        f"{count} -> {guest.count}",
        save_ms,
        restore_ms,
    )


def main() -> None:
    SAVED.mkdir(exist_ok=True)
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        version = ".".join(map(str, host.xen_version))
        say(f"Xen {version}, Linux {os.uname().release}, xenpm {xenpm.__version__}")
        names = [domain.name for domain in host.domains()]
        guests = [Guest(name, host, store, control) for name in names]
        rows = [show(guest) for guest in guests]
        trouble = [
            f"{guest.name}: {line}"
            for guest in guests
            for line in guest.log.read_text(errors="replace").splitlines()
            if TROUBLE.search(line)
        ]
    head = ("guest", "kind", "memory", "suspend", "resume", "counter went on", "xl save",
            "xl restore", "ratio")  # fmt: skip
    table = [
        (
            row.guest,
            row.kind,
            f"{row.memory_mib} MiB",
            f"{row.suspend_ms:.0f} ms",
            f"{row.resume_ms:.0f} ms",
            row.counted,
            f"{row.save_ms:.0f} ms",
            f"{row.restore_ms:.0f} ms",
            f"{row.ratio:.0f}x",
        )
        for row in rows
    ]
    show_table([head, *table])
    say("\nratio: (xl save + xl restore) / (suspend + resume). The machine is emulated: compare")
    say("the columns with each other, not with real hardware.")
    if trouble:
        sys.exit("trouble in the guests' logs:\n" + "\n".join(trouble))


if __name__ == "__main__":
    main()
