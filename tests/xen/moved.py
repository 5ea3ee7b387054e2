"""A guest that is saved on one host and restored on another; run in dom0.

``python -m tests.xen.moved save NAME FILE`` prints what the guest was, and
``python -m tests.xen.moved restore NAME FILE WAS`` sees that it goes on from there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import xenpm
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from .guest import Guest, run
from .saving import none_of, save


def moved_away(subject: Guest, path: Path) -> dict[str, str]:
    """Save it; what it was."""
    was = subject.report("counter")
    save(subject, path)
    return was


def moved_here(subject: Guest, path: Path, was: dict[str, str]) -> None:
    """Restore it in the place of this host's own guest of that name; it goes on, also lightly."""
    if not none_of(subject.name):
        run("xl", "destroy", subject.name)
    xenpm.restore(path)
    subject.wait("data/counter", bool, "it does not come back")
    subject.wait_counting(int(was["count"]))
    subject.domain.suspend()
    assert subject.domain.resume().cooperative
    subject.wait_counting(subject.count)
    assert subject.boot == was["boot"]


def main() -> None:
    """Save or restore."""
    verb, name, path, *was = sys.argv[1:]
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        subject = Guest(name, host, store, control)
        if verb == "save":
            sys.stdout.write(json.dumps(moved_away(subject, Path(path))))
        else:
            moved_here(subject, Path(path), json.loads(was[0]))


if __name__ == "__main__":
    main()
