"""The heavy way: a domain into a file and destroyed, and made anew of it.

Machines of `xenpm.actions`.  The work is done by `xenpm.worker`, in a process of its own, and in an
order in which the guest or the complete file is there at any moment; here that process is started,
watched, and made up for when it is killed.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from .actions import Cancelled, Clock, Join, Machine, Run, Signal, look
from .errors import NoSuchDomain, XenError
from .ports import Job
from .types import DomainRef, Ending, Saving

__all__ = [
    "Progress",
    "default_timeout_ns",
    "finish_save",
    "remove",
    "restore",
    "save",
    "start_over",
]

#: gets how many bytes are done, and how many there will be at most
Progress = Optional[Callable[[int, int], None]]

_log = logging.getLogger("xenpm.heavy")

_NS = 1_000_000_000
_TELL_NS = _NS // 2  # how often progress is told
_LEAST_NS, _PER_GIB_NS, _LONGEST_NS = 600 * _NS, 300 * _NS, 86_400 * _NS
_GRACE_NS = 300 * _NS  # for putting things back, behind the deadline that the worker itself has

# Isolated from the directory that we are in and from the environment, as root's process is to be.
_CODE = "import sys; sys.path.append(sys.argv[1]); from xenpm.worker import main; main()"
_ROOT = str(Path(__file__).resolve().parent.parent)


def default_timeout_ns(size_bytes: int) -> int:
    """How long a file of that size may take when nobody says."""
    return min(_LONGEST_NS, _LEAST_NS + _PER_GIB_NS * size_bytes // (1 << 30))


def save(
    domain: DomainRef, path: Path, now: Clock, timeout_ns: int | None, progress: Progress = None
) -> Machine[Saving]:
    """Suspend a domain, write its memory and configuration to a file, and destroy it.

    A cancelled save is undone, unless the file is complete.

    Args:
        domain: which domain.
        path: the file, absolute; it must not be there yet.
        now: a monotonic clock in nanoseconds.
        timeout_ns: how long it may take, without the destroying; None: 10 minutes, and 5 for each
            GiB of memory.
        progress: is told of it.

    Raises:
        NoSuchDomain: it is gone.
        SuspendError: it was not saved; the message says what state it is in.
        SaveError: the same, for other reasons than the guest's.
        HypercallError, StoreError, XenlightError, NotPermitted: a call to Xen failed; nothing was
            touched.
    """
    began = now()
    info = yield from look(domain)
    if info is None:
        raise NoSuchDomain(f"{domain} is gone")
    if timeout_ns is None:
        timeout_ns = default_timeout_ns(info.memory_kib * 1024)
    order = _order(domain, path)
    done = yield from _work(["save", "mend save"], order, now, timeout_ns, progress)
    return Saving(domain, str(path), int(done["size_bytes"]), now() - began)


def finish_save(domain: DomainRef, path: Path, now: Clock) -> Machine[Saving]:
    """Finish a save whose process and whose caller were killed, or undo it.

    Raises:
        NoSuchDomain: it is gone, and there is no file of it.
        SuspendError: it was not saved, and runs on; or the message says what state it is in.
    """
    began = now()
    order = {**_order(domain, path), "begun": True, "said": "a process was killed"}
    done = yield from _work(["mend save"], order, now, _LEAST_NS, None)
    return Saving(domain, str(path), int(done["size_bytes"]), now() - began)


def _order(domain: DomainRef, path: Path) -> dict[str, Any]:
    return {
        "domid": domain.domid,
        "handle": domain.handle.hex(),
        "name": domain.name,
        "path": str(path),
    }


def restore(
    path: Path, now: Clock, timeout_ns: int, progress: Progress = None, *, remove: bool = False
) -> Machine[DomainRef]:
    """Make a domain of a file, and let it run.

    Args:
        path: the file, absolute.
        now: a monotonic clock in nanoseconds.
        timeout_ns: how long it may take.
        progress: is told of it.
        remove: whether to remove the file once the domain runs.

    Raises:
        SaveFileError: the file is not that of a saved domain, or is cut off; nothing was touched.
        RestoreError: it was not restored, and nothing is left of it but the file.
        HypercallError, StoreError, XenlightError, NotPermitted: a call to Xen failed.
    """
    order = {"path": str(path), "remove": remove}
    done = yield from _work(["restore", "mend restore"], order, now, timeout_ns, progress)
    if done["left"]:
        _log.warning("%s", done["left"])
    return DomainRef(int(done["domid"]), bytes.fromhex(done["handle"]), str(done["name"]))


def remove(path: Path, now: Clock) -> Machine[str]:
    """Remove the file of a domain that runs again; in words what hinders that, or nothing.

    Raises:
        XenError: the process for that cannot be run, or was killed.
    """
    done = yield from _work(["remove"], {"path": str(path)}, now, _LEAST_NS, None)
    return str(done["left"])


def start_over(domain: DomainRef, now: Clock) -> Machine[None]:
    """Have libxl make the device model and the devices of a suspended HVM domain anew.

    The domain's lock is ours.  This cannot be cancelled.

    Raises:
        XenError: it has failed, or its process was killed.
    """
    order = {"domid": domain.domid}
    yield from _work(["start over"], order, now, _LEAST_NS, None)


def _work(
    verbs: list[str], order: dict[str, Any], now: Clock, timeout_ns: int, progress: Progress
) -> Machine[dict[str, Any]]:
    """Have a worker do the first; should that be killed, another one the second."""
    order["timeout"] = timeout_ns / _NS
    for verb in verbs:
        job: Job = yield Run(_command({**order, "verb": verb}), dict(os.environ), leave=True)
        yield from _watch(job, now, now() + timeout_ns + _GRACE_NS, progress)
        yield Signal(job, signal.SIGKILL)  # what it has started, should it have been killed
        ending: Ending = job.result()
        for message in _messages(ending.output):
            if message["xenpm"] == "failed":
                error: XenError = pickle.loads(bytes.fromhex(message["error"]))  # noqa: S301 (ours)
                raise error
            if message["xenpm"] == "done":
                return dict(message)
        # told right before libxl begins
        order["begun"] = any(m["xenpm"] == "progress" for m in _messages(ending.output))
        words = ending.output.strip().rpartition("\n")[2]
        order["said"] = f"its process ended with status {ending.status} ({ending.error or words})"
    if len(verbs) == 1:
        raise XenError(order["said"])
    raise XenError(
        f"{order['path']}: whether all is well after {verb!r} is unknown: {order['said']}. "
        "Look with 'python -m xenpm list' what is suspended; resume it if the file is not there"
    )


def _watch(job: Job, now: Clock, until: int, progress: Progress) -> Machine[None]:
    """Wait until a worker has ended; whoever cancels asks it to put everything back."""
    told = (-1, -1)
    while True:
        again = until if progress is None else min(until, now() + _TELL_NS)
        try:
            if (yield Join((job,), again)):
                return
        except Cancelled:
            yield Signal(job, signal.SIGTERM)
        if now() >= until:
            yield Signal(job, signal.SIGKILL)
            until += _GRACE_NS
        if progress is None:
            continue
        far = next((m for m in _messages(job.output) if m["xenpm"] == "progress"), None)
        if far is not None and told != (far["done"], far["total"]):
            told = far["done"], far["total"]
            try:
                progress(*told)
            except Exception:  # of the caller's: no guest is given up for a full terminal
                _log.exception("progress could not be told")


def _command(order: dict[str, Any]) -> tuple[str, ...]:
    if not sys.executable:
        raise XenError("this process does not know its Python, so it cannot start another one")
    return (sys.executable, "-I", "-c", _CODE, _ROOT, json.dumps(order))


def _messages(output: str) -> Iterator[dict[str, Any]]:
    """What a worker has told, the last first; what libraries have written is passed over."""
    for line in reversed(output.splitlines()):
        if line.startswith('{"xenpm":') and line.endswith("}"):
            yield json.loads(line)
