"""Has the machine sleep, with its guests, until a time of day; its real-time clock wakes it.

    python night.py 06:30

The guests are suspended before and resumed after, in order; see "Sleep of the host" in the
manual. When the machine does not sleep, all guests run on and the alarm is taken back. An
alarm that somebody else has set is refused.
"""

import signal
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import xenpm
from xenpm.policy import read_settings

ALARM = Path("/sys/class/rtc/rtc0/wakealarm")  # see the kernel's Documentation/admin-guide/rtc.rst


def next_time(clock, now):
    """The next moment at which clocks here show this, as "06:30"; at least a minute from now."""
    hours, minutes = map(int, clock.split(":"))
    shown = now.astimezone().replace(tzinfo=None)  # until then clocks may be put forward or back
    then = shown.replace(hour=hours, minute=minutes, second=0, microsecond=0)
    if then - shown < timedelta(minutes=1):
        then += timedelta(days=1)
    return then.astimezone()


def sleep_until(then):
    """Sleep until that moment, or until somebody wakes the machine earlier; returns the report.

    A machine that is not asleep when the alarm comes would not wake, so the guests have to be down
    a quarter of a minute before.
    """
    settings = read_settings()
    seconds = (then - datetime.now().astimezone()).total_seconds() - 15
    settings = replace(settings, timeout=min(settings.timeout, max(seconds, 1)))
    with xenpm.Host() as host:
        if ALARM.read_text().strip():
            raise OSError(f"{ALARM} is set already: somebody else wants the machine to wake")
        ALARM.write_text(f"{then.timestamp():.0f}\n")
        try:
            return host.suspend("mem", settings=settings, progress=print)
        finally:
            ALARM.write_text("0\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = sleep_until(next_time(sys.argv[1], datetime.now().astimezone()))
    except (xenpm.XenError, OSError, ValueError) as error:
        sys.exit(f"night: {error}")
    print(report.to_text())
    sys.exit(1 if report.problems else 0)
