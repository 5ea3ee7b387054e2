"""One guest suspended and resumed: xenpm beside a C program, xl, libvirt, and saving to a file.

``python -m tests.lab run trixie --scene trio -- python -m tests.bench.cycle``

The C program (floor.c) is compiled here, and makes the same calls of Xen's libraries.  Only xl of
Xen 4.20 and later has ``xl suspend``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import xenpm
from tests.xen.guest import Guest, run
from tests.xen.libvirtd import Libvirtd
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from . import side_by_side
from .side_by_side import Report, Spread, Table, ratios

FLOOR, OURS, COMMAND = "C program", "xenpm", "python -m xenpm"
XL, SAVE = "xl suspend, xl resume", "xl save, xl restore"
LIBVIRT = "libvirt's dompmsuspend, dompmwakeup"
GUESTS = ("pv1", "pvh2")
ROUNDS = 12
SLOW_ROUNDS = 2
LIBRARIES = ("-lxenctrl", "-lxenguest", "-lxenstore")


class Cycle(NamedTuple):
    """Seconds that a suspension and a resumption have taken."""

    suspend: float
    resume: float

    @property
    def both(self) -> float:
        return self.suspend + self.resume


class Floor:
    """The C program at work on a guest."""

    def __init__(self, domain: xenpm.Domain, program: Path) -> None:
        command = [str(program), str(domain.domid), domain.type.value]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Floor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()

    def cycle(self) -> Cycle:
        return Cycle(self._ask("suspend"), self._ask("resume"))

    def _ask(self, what: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()) / 1e9


class Virsh:
    """One that stays connected, and is given one command after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["virsh", "-c", "xen:///system"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> Virsh:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate("quit\n")

    def __call__(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho 'that was it'\n")
        self._process.stdin.flush()
        said = ""
        while not said.endswith("that was it\n"):
            line = self._process.stdout.readline()
            assert line, said
            said += line
        assert "successfully" in said, said


def compiled(directory: str) -> Path:
    program = Path(directory) / "floor"
    source = Path(__file__).with_name("floor.c")
    run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source), *LIBRARIES)
    return program


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_place(domain: xenpm.Domain) -> Cycle:
    return Cycle(_seconds(domain.suspend), _seconds(domain.resume))


def by_commands(down: tuple[str, ...], up: tuple[str, ...]) -> Cycle:
    return Cycle(_seconds(partial(run, *down)), _seconds(partial(run, *up)))


def settled(guest: Guest, way: Callable[[], Cycle]) -> Cycle:
    """A cycle after which the guest has worked on, so that it is no burden to the next one."""
    count = guest.count
    cycle = way()
    guest.wait_counting(count + 5)
    return cycle


def saved(guest: Guest, path: Path) -> Cycle:
    """To a file and back; the guest's directory in the store is another one afterwards."""
    cycle = by_commands(("xl", "save", guest.name, str(path)), ("xl", "restore", str(path)))
    path.unlink()
    guest.wait_counting(0)
    return cycle


def xl_suspends() -> bool:
    """Whether this xl has the command."""
    return "suspend" in run("xl", "help", "suspend", check=False)


def measured(guest: Guest, program: Path) -> dict[str, list[Cycle]]:
    with Floor(guest.domain, program) as floor:
        ways: dict[str, Callable[[], Cycle]] = {
            FLOOR: floor.cycle,
            OURS: partial(in_place, guest.domain),
        }
        if xl_suspends():
            ways[XL] = partial(
                by_commands, ("xl", "suspend", guest.name), ("xl", "resume", guest.name)
            )
        return side_by_side.in_turns(
            {name: partial(settled, guest, way) for name, way in ways.items()}, ROUNDS
        )


def measured_libvirt(guest: Guest) -> dict[str, list[Cycle]]:
    """The guest is libvirt's meanwhile, for it does not know those that xl has made."""
    with Libvirtd() as daemon, Virsh() as virsh:
        daemon.make(guest)

        def by_libvirt() -> Cycle:
            return Cycle(
                _seconds(partial(virsh, f"dompmsuspend {guest.name} mem")),
                _seconds(partial(virsh, f"dompmwakeup {guest.name}")),
            )

        ways: dict[str, Callable[[], Cycle]] = {
            OURS: partial(in_place, guest.domain),
            LIBVIRT: by_libvirt,
        }
        return side_by_side.in_turns(
            {name: partial(settled, guest, way) for name, way in ways.items()}, ROUNDS
        )


def measured_slow(guest: Guest, directory: str) -> dict[str, list[Cycle]]:
    """What takes seconds, in rounds of its own."""
    program = (sys.executable, "-m", "xenpm")
    commands = partial(
        by_commands, (*program, "suspend", "-L", guest.name), (*program, "resume", guest.name)
    )
    ways = {
        OURS: lambda: settled(guest, partial(in_place, guest.domain)),
        COMMAND: lambda: settled(guest, commands),
        SAVE: lambda: saved(guest, Path(directory) / "saved"),
    }
    return side_by_side.in_turns(ways, SLOW_ROUNDS)


def rows_of(name: str, taken: dict[str, list[Cycle]]) -> tuple[list[list[str]], list[list[Any]]]:
    rows, points = [], []
    ours = [cycle.both for cycle in taken[OURS]]
    for way, cycles in taken.items():
        times = [
            Spread.of([getattr(cycle, part) for cycle in cycles]).ms()
            for part in ("suspend", "resume", "both")
        ]
        ratio = ratios([cycle.both for cycle in cycles], ours)
        rows.append([name, way, str(len(cycles)), *times, ratio.ratio()])
        if way != OURS:
            points.append([f"{name}: {way}", *ratio])
    return rows, points


def measure() -> Report:
    head = ["guest", "way", "rounds", "suspend, ms", "resume, ms", "both, ms", "way : xenpm"]
    rows: list[list[str]] = [head]
    points: list[list[Any]] = []
    kinds = []
    with (
        tempfile.TemporaryDirectory() as directory,
        xenpm.Host() as host,
        Xenstore() as store,
        Xenctrl() as control,
    ):
        program = compiled(directory)
        for name in GUESTS:
            guest = Guest(name, host, store, control)
            info = guest.domain.info
            kinds.append(
                f"*{name}* is a {info.type.name} guest with {info.vcpus_online} vCPU and "
                f"{info.memory_kib // 1024} MiB"
            )
            turns = [partial(measured, guest, program)]
            if name == GUESTS[0]:
                turns.append(partial(measured_slow, guest, directory))
                turns.append(partial(measured_libvirt, guest))
            with side_by_side.alone(host, name):
                for turn in turns:
                    told, dots = rows_of(name, turn())
                    print(Table([head, *told]).text(), flush=True)
                    rows += told
                    points += dots
        where = side_by_side.host(host.xen_version)
    notes = [
        f"{where}; {'; '.join(kinds)}.",
        *([] if xl_suspends() else ["This xl has no ``xl suspend``."]),
    ]
    plot = {"kind": "ratios", "title": "Suspend and resume, way : xenpm", "rows": points,
            "log": True}  # fmt: skip
    return Report(notes, [Table(rows)], [plot])


if __name__ == "__main__":
    side_by_side.in_dom0(measure, __doc__ or "")
