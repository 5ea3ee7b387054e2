"""A worker of xenpm that is killed at a chosen stage; the one that mends after it is not."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import xenpm
from xenpm import heavy, worker

from .guest import Guest
from .saving import none_of, save

#: of a save and of a restore: which method of the worker, and whether before or after it
SAVE = [
    "before directory", "before write", "in write", "after write", "before complete",
    "after complete", "before destroy", "after destroy",
]  # fmt: skip
RESTORE = ["before check_absent", "after check_absent", "in finish", "after finish"]


def while_saving(guest: Guest, path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save it, and restore it if it is saved: the guest runs on, or the file is complete."""
    complete = stage in ("after complete", "before destroy", "after destroy")
    with monkeypatch.context() as patched:
        patched.setattr(heavy, "_CODE", code(stage))
        if complete:
            assert save(guest, path).size_bytes == path.stat().st_size
        else:
            left = r"it runs on, and there is no file|Nothing was touched"
            with pytest.raises(xenpm.SaveError, match=left):
                save(guest, path)
    assert path.exists() == none_of(guest.name) == complete
    if complete:
        xenpm.restore(path)


def while_restoring(guest: Guest, path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save it and restore it: nothing is left of the domain, and the file is as it was."""
    save(guest, path)
    with monkeypatch.context() as patched:
        patched.setattr(heavy, "_CODE", code(stage))
        with pytest.raises(xenpm.RestoreError, match="was not restored"):
            xenpm.restore(path)
    assert none_of(guest.name)
    xenpm.restore(path)


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
