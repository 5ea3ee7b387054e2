"""Puts the host to sleep and tells people: before, after, and of each guest that is not well.

    python notify.py wall             # any program that takes a message as its last argument

A hook gets the events, in a thread of its own, with a deadline; a message that cannot be sent
keeps nothing from going on, and stands in the report. On Ctrl-C and SIGTERM all guests come
back.
"""

import signal
import subprocess
import sys

import xenpm
from xenpm import HookPoint


def message(event):
    """What people are told of an event; None: nothing."""
    if event.point is HookPoint.HOST_PRE:
        return f"This host goes to sleep ({event.state}) now."
    if event.point is HookPoint.HOST_POST:
        return f"This host is back: {event.result}"
    if event.point is HookPoint.DOMAIN_POST and event.result != "ok":
        return f"{event.domain} is not well: {event.result}"
    return None


def sleep_and_tell(send):
    """Put the host to sleep; send(text) is called for each message.  Returns the report."""

    def tell(event):
        text = message(event)
        if text is not None:
            send(text)

    with xenpm.Host() as host:
        return host.suspend("mem", hooks=[tell])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = sleep_and_tell(lambda text: subprocess.run([*sys.argv[1:], text], check=True))
    except xenpm.XenError as error:
        sys.exit(f"notify: {error}")
    print(report.to_text())
    sys.exit(1 if report.problems else 0)
