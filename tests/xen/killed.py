"""A worker of xenpm that is killed at a chosen stage; the one that mends after it is not."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from xenpm import worker

#: of a save and of a restore: which method of the worker, and whether before or after it
SAVE = [
    "before directory", "before write", "in write", "after write", "before complete",
    "after complete", "before destroy", "after destroy",
]  # fmt: skip
RESTORE = ["before check_absent", "after check_absent", "in finish", "after finish"]


def code(stage: str) -> str:
    """What to start instead of a worker, so that it is killed at that stage."""
    return (
        "import sys; sys.path[:0] = [sys.argv[1], '/root/xenpm-src']; "
        f"from tests.xen.killed import main; main({stage!r})"
    )


def main(stage: str) -> None:
    """Run the worker; it is killed if it is the first one."""
    if not json.loads(sys.argv[-1])["verb"].startswith("mend"):
        when, method = stage.split()
        kind: Any = worker._Save if stage in SAVE else worker._Restore
        if when == "in":
            _kill_in_the_middle()
        else:
            _kill_at(kind, method, when)
    worker.main()


def _kill_at(kind: Any, method: str, when: str) -> None:
    original = getattr(kind, method)

    def struck(*arguments: Any) -> Any:
        result = original(*arguments) if when == "after" else None
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(kind, method, struck)


def _kill_in_the_middle() -> None:
    tell = worker.tell

    def struck(what: str, **values: Any) -> None:
        tell(what, **values)
        if what == "progress" and values["done"] > values["total"] // 4:
            os.kill(os.getpid(), signal.SIGKILL)

    worker.tell = struck
