"""How long one to thirty-two guests at once take to go down and up, and how many calls that costs.

``python -m tests.lab run bookworm --scene crowd32 -- python -m tests.bench.many``

The guests are idle Linuxes; those that are not asked are paused.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import xenpm
from tests.xen.guest import Guest
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore
from xenpm.system import open_ports
from xenpm.testing import HYPERCALLS, STORE_REQUESTS

from . import side_by_side
from .side_by_side import Report, Spread, Table, digits

SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5
NO_REQUESTS = {"check_watch"}  # sends nothing


class Counted:
    """A port, real as it is, whose calls are counted by name."""

    def __init__(self, port: Any, calls: Counter[str]) -> None:
        self._port = port
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        self._calls[name] += 1  # every look-up of a method is followed by its call
        return getattr(self._port, name)


class Times:
    """Of one round: the whole, the slowest guest and the sum of all, in seconds."""

    def __init__(self, whole: float, each: Sequence[float]) -> None:
        self.whole, self.slowest, self.sum = whole, max(each), sum(each)


def _go(verb: Any, domains: list[xenpm.Domain]) -> Times:
    began = time.perf_counter()
    outcomes = verb(domains)
    whole = time.perf_counter() - began
    for outcome in outcomes.values():
        if isinstance(outcome, xenpm.XenError):
            raise outcome
    return Times(whole, [outcome.total_ns / 1e9 for outcome in outcomes.values()])


def _calls(counted: list[Counter[str]], names: frozenset[str], guests: int) -> str:
    return digits(
        Spread.of(
            [sum(calls[name] for name in names - NO_REQUESTS) / guests for calls in counted]
        ).median
    )


def measure() -> Report:
    calls: Counter[str] = Counter()
    ports = open_ports()
    ports = replace(
        ports,
        hypervisor=Counted(ports.hypervisor, calls),
        store=Counted(ports.store, calls),
    )
    head = ["guests", "all, ms", "slowest", "sum", "all : slowest", "all : sum"]
    tables = {"suspend": [head], "resume": [head]}
    kinds = ("requests of each", "hypercalls of each", "looks at all")
    counts = [["guests", *(f"{verb}: {kind}" for verb in tables for kind in kinds)]]
    lines: dict[str, list[Spread]] = {}
    with xenpm.Host(ports=ports) as host, Xenstore() as store, Xenctrl() as control:
        domains = [domain for domain in host.domains() if domain.domid]
        for domain in domains:
            domain.pause()
        guests: list[Guest] = []
        for size in SIZES:
            for domain in domains[len(guests) : size]:
                guests.append(Guest(domain.name, host, store, control))
                domain.unpause()
            times: dict[str, list[Times]] = {verb: [] for verb in tables}
            counted: dict[str, list[Counter[str]]] = {verb: [] for verb in tables}
            for _ in range(ROUNDS):
                for verb, method in (("suspend", host.suspend_each), ("resume", host.resume_each)):
                    calls.clear()
                    times[verb].append(_go(method, domains[:size]))
                    counted[verb].append(calls.copy())
                for guest in guests:
                    guest.wait_counting(guest.count + 1)
            row = [str(size)]
            for verb, found in times.items():
                whole = Spread.of([each.whole for each in found])
                tables[verb].append([
                    str(size),
                    whole.ms(),
                    *(digits(Spread.of([getattr(each, part) for each in found]).median * 1e3)
                      for part in ("slowest", "sum")),
                    *(Spread.of([each.whole / getattr(each, part) for each in found]).ratio()
                      for part in ("slowest", "sum")),
                ])  # fmt: skip
                for part, what in (("whole", "all"), ("slowest", "of the slowest")):
                    numbers = [getattr(each, part) * 1e3 for each in found]
                    lines.setdefault(f"{verb}, {what}", []).append(Spread.of(numbers))
                row += [
                    _calls(counted[verb], STORE_REQUESTS, size),
                    _calls(counted[verb], HYPERCALLS - {"domain_list"}, size),
                    digits(Spread.of([each["domain_list"] for each in counted[verb]]).median),
                ]
            counts.append(row)
            print(" ".join(row), flush=True)
        where = side_by_side.host(host.xen_version)
    notes = [f"{where}; PV guests with Linux, one vCPU and 96 MiB; {ROUNDS} rounds."]
    plot = {"kind": "growth", "title": "Guests at once", "x": list(SIZES), "lines": lines,
            "axis": ["guests", "ms"]}  # fmt: skip
    return Report(notes, [*(Table(rows) for rows in tables.values()), Table(counts)], [plot])


if __name__ == "__main__":
    side_by_side.in_dom0(measure, __doc__ or "")
