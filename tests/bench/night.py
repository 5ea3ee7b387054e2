"""A host that sleeps without xenpm, and one that sleeps with it, side by side.

``python -m tests.bench.night bookworm`` (on the machine that runs the lab) puts a fresh host of the
scene "night" to sleep each way, and prints what its guests noticed.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import xenpm
from tests.xen.guest import TROUBLE, Guest
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore
from xenpm.power import SystemPower
from xenpm.timeline import columns

WAYS = ("without", "with")
NETWORKED = ("net", "web", "mail")
ASLEEP = 10.0  # seconds
AFTERWARDS = 10.0  # seconds that all is watched after the wake-up


def _look(guests: list[Guest]) -> dict[str, dict[str, int]]:
    seen = {}
    for guest in guests:
        guest.wait_counting(guest.count)  # a report of this moment
        now_ms, counter = round(time.time() * 1000), guest.report("counter")
        time_ms, uptime_ms = int(counter["time_ms"]), int(counter["uptime_ms"])
        seen[guest.name] = {
            "slow_ms": now_ms - time_ms,
            "booted_ms": time_ms - uptime_ms,
            "log": guest.log.stat().st_size,
        }
        if guest.name in NETWORKED:
            report = guest.report("ping")
            seen[guest.name].update(sent=int(report["sent"]), answered=int(report["answered"]))
    return seen


def in_dom0(way: str) -> dict[str, Any]:
    """Sleep once; what each guest noticed."""
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        guests = [Guest(domain.name, host, store, control) for domain in host.domains()]
        before = _look(guests)
        if way == WAYS[0]:
            SystemPower().sleep("mem")
        else:
            host.suspend("mem", settings=xenpm.Settings(default=xenpm.Rule(timeout=5.0)))
        woke = time.monotonic()
        back: dict[str, float] = {}
        networked = [guest for guest in guests if guest.name in NETWORKED]
        answered = {guest.name: int(guest.report("ping")["answered"]) for guest in networked}
        while time.monotonic() < woke + AFTERWARDS:
            for guest in networked:
                now = int(guest.report("ping")["answered"])
                if guest.name not in back and now > answered[guest.name]:
                    back[guest.name] = time.monotonic() - woke
            time.sleep(0.05)  # nothing tells when a ping is answered
        after = _look(guests)
    rows: dict[str, Any] = {}
    for guest in guests:
        was, then = before[guest.name], after[guest.name]
        with guest.log.open("rb") as log:
            log.seek(was["log"])
            said = log.read().decode("utf-8", "replace").splitlines()
        rows[guest.name] = {
            "slower_ms": then["slow_ms"] - was["slow_ms"],
            "jumped_ms": then["booted_ms"] - was["booted_ms"],
            "trouble": [line for line in said if TROUBLE.search(line)],
        }
        if guest.name in NETWORKED:
            lost = (then["sent"] - was["sent"]) - (then["answered"] - was["answered"])
            rows[guest.name].update(back_s=back.get(guest.name), lost=lost)
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    back = lost = ""
    if "lost" in row:
        back = f"> {AFTERWARDS:g} s" if row["back_s"] is None else f"{row['back_s']:.1f} s"
        lost = str(row["lost"])
    clocks = (f"{row[key] / 1000:.1f} s" for key in ("slower_ms", "jumped_ms"))
    return back, lost, *clocks, str(len(row["trouble"]))


def on_the_outside(release: str) -> None:
    """Both ways, each on a fresh host, and the table."""
    from tests.lab import carry
    from tests.lab.__main__ import IN_DOM0

    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        with carry.host(release, "night") as host:
            status, output = host.through_sleep(
                f"{IN_DOM0} && python -m tests.bench.night --in-dom0 {way}", seconds=ASLEEP
            )
        if status:
            raise SystemExit(output)
        found[way] = json.loads(output.splitlines()[-1])
    head = ("guest", "xenpm", "network back after", "pings lost", "clock is slow by",
            "clock jumped by", "lockups etc.")  # fmt: skip
    table = [(name, way, *_cells(found[way][name])) for name in found[WAYS[0]] for way in WAYS]
    print("\n".join(columns([head, *table], right=range(2, len(head)))))
    for way, rows in found.items():
        for name, row in rows.items():
            for line in row["trouble"]:
                print(f"{name} ({way} xenpm) says: {line}")


def main() -> None:
    """Outside a table; with --in-dom0, one sleep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", nargs="?", default="bookworm")
    parser.add_argument("--in-dom0", choices=WAYS)
    options = parser.parse_args()
    if options.in_dom0:
        print(json.dumps(in_dom0(options.in_dom0)))
    else:
        on_the_outside(options.release)


if __name__ == "__main__":
    main()
