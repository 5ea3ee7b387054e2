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

WAYS = ("without xenpm", "with xenpm")
NETWORKED = ("net", "web", "mail")
AFTERWARDS = 10.0  # seconds that all is watched after the wake-up


def _look(guests: list[Guest]) -> dict[str, dict[str, int]]:
    seen = {}
    for guest in guests:
        seen[guest.name] = {"uptime_ms": guest.uptime_ms, "log": guest.log.stat().st_size}
        if guest.name in NETWORKED:
            report = guest.report("ping")
            seen[guest.name].update(sent=int(report["sent"]), answered=int(report["answered"]))
    return seen


def in_dom0(way: str) -> dict[str, Any]:
    """Sleep once; what each guest noticed."""
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        guests = [Guest(domain.name, host, store, control) for domain in host.domains()]
        began, before = time.monotonic(), _look(guests)
        if way == WAYS[0]:
            SystemPower().sleep("mem")
        else:
            host.suspend("mem", settings=xenpm.Settings(default=xenpm.Rule(timeout=5.0)))
        woke = time.monotonic()
        back: dict[str, float] = {}
        answered = {guest.name: _look([guest])[guest.name] for guest in guests}
        while time.monotonic() < woke + AFTERWARDS:
            for guest in [g for g in guests if g.name in NETWORKED and g.name not in back]:
                if int(guest.report("ping")["answered"]) > answered[guest.name]["answered"]:
                    back[guest.name] = time.monotonic() - woke
            time.sleep(0.05)  # nothing tells when a ping is answered
        after, ended = _look(guests), time.monotonic()
    rows: dict[str, Any] = {}
    for guest in guests:
        was, now = before[guest.name], after[guest.name]
        with guest.log.open("rb") as log:
            log.seek(was["log"])
            said = log.read().decode("utf-8", "replace").splitlines()
        rows[guest.name] = {
            "jump_ms": now["uptime_ms"] - was["uptime_ms"] - round((ended - began) * 1000),
            "back_s": back.get(guest.name),
            "unanswered": (
                (now["sent"] - was["sent"]) - (now["answered"] - was["answered"])
                if guest.name in NETWORKED
                else None
            ),
            "trouble": sum(bool(TROUBLE.search(line)) for line in said),
            "clock": sum("clocksource" in line or "hrtimer" in line for line in said),
        }
    return rows


def on_the_outside(release: str) -> None:
    """Both ways, each on a fresh host, and the table."""
    from tests.lab import carry
    from tests.lab.__main__ import IN_DOM0

    print(f"{'guest':6} {'':14} {'clock jumps':>12} {'network back':>13} {'unanswered':>11} "
          f"{'lockups etc.':>13} {'clock messages':>15}")  # fmt: skip
    for way in WAYS:
        with carry.host(release, "night") as host:
            status, output = host.through_sleep(
                f"{IN_DOM0} && python -m tests.bench.night --in-dom0 '{way}'", seconds=10.0
            )
        if status:
            raise SystemExit(output)
        for name, row in json.loads(output.splitlines()[-1]).items():
            back = "" if row["back_s"] is None else f"{row['back_s']:.1f} s"
            if name in NETWORKED and not back:
                back = f"> {AFTERWARDS:g} s"
            unanswered = "" if row["unanswered"] is None else row["unanswered"]
            print(f"{name:6} {way:14} {row['jump_ms']:9} ms {back:>13} {unanswered:>11} "
                  f"{row['trouble']:>13} {row['clock']:>15}", flush=True)  # fmt: skip


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
