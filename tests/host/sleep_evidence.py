"""What tells that a machine has slept, measured: ``python -m tests.host.sleep_evidence bookworm``.

Puts a real Xen host to sleep and wakes it, then has writes to /sys/power/state that return without
a sleep, and prints what each source has said before and after.  docs/host-sleep.rst has the table.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.lab import cache, machine

# Nothing of the package: this is what its port was made by.
PROBE = r"""
import errno, glob, json, os, subprocess, sys, time

def read(path):
    try:
        return open(path).read().strip()
    except OSError as error:
        return errno.errorcode[error.errno]

def look():
    seen = {"realtime - monotonic": time.time_ns() - time.monotonic_ns()}
    seen["boottime - monotonic"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    for path in sorted(glob.glob("/sys/power/suspend_stats/*")):
        seen[path] = read(path)
    debugfs = read("/sys/kernel/debug/suspend_stats")
    seen["/sys/kernel/debug/suspend_stats"] = debugfs.splitlines()[:2]
    seen["/sys/power/pm_wakeup_irq"] = read("/sys/power/pm_wakeup_irq")
    seen["/sys/power/wakeup_count"] = read("/sys/power/wakeup_count")
    for path in sorted(glob.glob("/sys/class/wakeup/*")):
        name = read(path + "/name")
        for kind in ("event_count", "wakeup_count", "active_count"):
            seen[f"wakeup {os.path.basename(path)} {name} {kind}"] = read(f"{path}/{kind}")
    xen = subprocess.run(["xl", "dmesg"], capture_output=True, text=True).stdout
    return seen, xen

before, xen_before = look()
began, boot = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
wrote = "ok"
try:
    fd = os.open("/sys/power/state", os.O_WRONLY)
    os.write(fd, sys.argv[1].encode())
except OSError as error:
    wrote = errno.errorcode[error.errno]
took = time.monotonic_ns() - began, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boot
after, xen_after = look()
out = {"states": read("/sys/power/state"), "mem_sleep": read("/sys/power/mem_sleep"),
       "wrote": wrote, "took monotonic ns, boottime ns": took}
out["changed"] = {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v}
out["same"] = {k: v for k, v in after.items() if before.get(k) == v}
out["gained s"] = (after["boottime - monotonic"] - before["boottime - monotonic"]) / 1e9
out["xen"] = xen_after[len(os.path.commonprefix([xen_before, xen_after])):].splitlines()
json.dump(out, open(sys.argv[2], "w"))
"""


def measure(release: str) -> dict[str, Any]:
    """What all sources say about sleeps, long and short, and about writes that are none."""
    found: dict[str, Any] = {}
    with machine.Machine.start(release, "empty") as host:
        host.ssh("cat > /root/probe.py", input_=PROBE.encode())
        host.ssh("mount -t debugfs none /sys/kernel/debug || true")
        for name, state, seconds in (
            ("a sleep", "mem", 5.0),
            *((f"short sleep {number}", "mem", 0.0) for number in range(1, 4)),
            *((f"no sleep {number}", "mem", None) for number in range(1, 5)),
            ("unknown state", "nap", None),
        ):
            if seconds is not None:
                host.sleep_quirk()
            host.qmp.forget_events()
            host.ssh(f"rm -f /root/seen; setsid python3 /root/probe.py {state} /root/seen "
                     "</dev/null >/root/probe.out 2>&1 &")  # fmt: skip
            if seconds is not None:
                host.wake_after(seconds)
            host.ssh("timeout 120 sh -c 'until [ -s /root/seen ]; do sleep 1; done'", timeout=150)
            found[name] = json.loads(host.read("/root/seen"))
            host.qmp.command("query-status")  # takes the events that have come
            events = [event["event"] for event in host.qmp.events]
            found[name]["QEMU suspends that nobody expected"] = events.count("SUSPEND")
    return found


def main() -> int:
    """Measure on each release named."""
    for release in sys.argv[1:]:
        cache.say(release)
        sys.stdout.write(json.dumps({release: measure(release)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
