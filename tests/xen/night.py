"""What the guests of the scene "night" were before a sleep of the host, and are after it.

Run in dom0: ``python -m tests.xen.night mark`` before, and ``python -m tests.xen.night check``
after.  The second waits until all goes on, and ends with what does not.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import xenpm
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from .guest import TROUBLE, Guest, run

MARK = Path("/root/night.json")
WORK = {
    "net": ("ping",), "web": ("io", "ping"), "db": ("io",), "mail": ("io", "ping"),
    "hvm1": ("io", "ping"),
}  # fmt: skip
COUNTED = {"io": "verified", "ping": "answered"}
#: of dom0's kernel; it says a lot about a sleep that is as it should be
DOM0_TROUBLE = re.compile(
    r"BUG:|Oops|lockup|rcu.*stall|blocked for more than|general protection|NETDEV WATCHDOG"
)


def _dmesg() -> list[str]:
    return run("dmesg", "--notime").splitlines()


def mark(guests: list[Guest]) -> dict[str, Any]:
    """How they are."""
    return {
        "dmesg": len(_dmesg()),
        "guests": {
            each.name: {
                "boot": each.boot,
                "count": each.count,
                "log": each.log.stat().st_size,
                "state": each.state,
                **{work: each.report(work)[COUNTED[work]] for work in WORK.get(each.name, ())},
            }
            for each in guests
        },
    }


def check(guests: list[Guest], before: dict[str, Any]) -> None:
    """Wait until all have gone on from there; what is wrong raises."""
    for each in guests:
        was = before["guests"][each.name]
        assert each.boot == was["boot"], f"{each.name} has booted anew"
        assert each.state == was["state"], f"{each.name} is {each.state}, and was {was['state']}"
        if was["state"] == "running":
            each.wait_counting(max(was["count"], each.count))
        else:
            assert each.count == was["count"], f"{each.name} has run"
        for work in WORK.get(each.name, ()):
            report = each.wait_working(work, COUNTED[work], 3)
            assert report["errors"] == "0", f"{each.name}: {work} has errors"
            assert int(report[COUNTED[work]]) > int(was[work])
        with each.log.open("rb") as log:
            log.seek(was["log"])
            said = log.read().decode("utf-8", "replace").splitlines()
        bad = [line for line in said if TROUBLE.search(line)]
        assert not bad, f"{each.name} says: {bad[:5]}"
    bad = [line for line in _dmesg()[before["dmesg"] :] if DOM0_TROUBLE.search(line)]
    assert not bad, f"dom0 says: {bad[:5]}"


def main() -> None:
    """Mark or check."""
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        guests = [Guest(domain.name, host, store, control) for domain in host.domains()]
        if sys.argv[1] == "mark":
            MARK.write_text(json.dumps(mark(guests)))
        else:
            check(guests, json.loads(MARK.read_text()))


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, subprocess.SubprocessError) as problem:
        sys.exit(str(problem))
