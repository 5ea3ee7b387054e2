"""The fake host's worker: what `xenpm.worker` does, on fake guests."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, Callable

import xenpm
from xenpm.testing import MS, SECOND, FakeGuest, FakeProgram, FakeXen
from xenpm.testing.jobs import FakeJob
from xenpm.types import Ending

SIZE = 1 << 28


@dataclass
class Saved:
    """A file."""

    name: str
    script: dict[str, Any]


@dataclass
class FakeWorker:
    """All workers of a fake host, and the files that they write.

    Attributes:
        files: by path.
        orders: what was ordered.
        refusal: what each raises before it touches anything.
        dies: the moment at which the first is killed: "" never, "before" it has done anything, with
            the guest "suspended", with the file "complete", or when it was "done" and not yet told.
        second_dies: whether who is to put things right is killed, too.
        lasts_ns: how long one takes; None: until it is told to end.
        deaf: whether it hears no SIGTERM.
        noise: what libraries write to its output.
        left: why a file could not be removed.
    """

    xen: FakeXen
    files: dict[str, Saved] = field(default_factory=dict)
    orders: list[dict[str, Any]] = field(default_factory=list)
    refusal: xenpm.XenError | None = None
    dies: str = ""
    second_dies: bool = False
    lasts_ns: int | None = SECOND
    deaf: bool = False
    noise: str = ""
    left: str = ""
    busy: set[int] = field(default_factory=set)  # whose lock one holds

    def __post_init__(self) -> None:
        self.xen.programs[sys.executable] = FakeProgram(act=self.act)

    def act(self, job: FakeJob, command: Sequence[str]) -> None:
        order = json.loads(command[-1])
        self.orders.append(order)
        job.output += self.noise
        if self.refusal is not None:
            self.fail(job, self.refusal)
            return
        if order["verb"] == "remove":
            self.files.pop(order["path"], None)
            self.xen.after(MS, lambda: self.say(job, "done", left=self.left))
            return
        mends = order["verb"].startswith("mend")
        saves = order["verb"].endswith("save")
        job.on_signal = lambda signum: self.signalled(job, order, signum)
        if mends:
            mend = self.mend_save if saves else self.mend_restore
            self.xen.after(10 * MS, lambda: self.end(job, lambda: mend(job, order)))
            return
        guest = self.guest(order) if saves else None
        if guest is not None:
            self.busy.add(guest.domid)
            if self.dies != "before":
                guest.suspend()
        if self.lasts_ns is None:
            return
        for part in range(4):
            self.xen.after(part * self.lasts_ns // 4, lambda part=part: self.tell(job, part))  # type: ignore[misc]
        finish = self.finish_save if saves else self.finish_restore
        self.xen.after(self.lasts_ns, lambda: self.end(job, lambda: finish(job, order)))

    def guest(self, order: dict[str, Any]) -> FakeGuest | None:
        guest = self.xen.guests.get(order["domid"])
        return guest if guest is not None and guest.info.handle.hex() == order["handle"] else None

    def tell(self, job: FakeJob, part: int) -> None:
        if job.ending is None:
            job.output += json.dumps({"xenpm": "progress", "done": part, "total": 4}) + "\n"

    def end(self, job: FakeJob, finish: Callable[[], None]) -> None:
        if job.ending is None:
            finish()
            self.busy.clear()

    def say(self, job: FakeJob, what: str, **values: Any) -> None:
        job.output += json.dumps({"xenpm": what, **values}) + "\n"
        job.end(Ending(0, output=job.output))

    def fail(self, job: FakeJob, error: xenpm.XenError) -> None:
        self.say(job, "failed", error=pickle.dumps(error).hex())

    def killed(self, job: FakeJob) -> None:
        self.busy.clear()
        job.end(Ending(-SIGKILL, output=job.output))

    def finish_save(self, job: FakeJob, order: dict[str, Any]) -> None:
        guest = self.guest(order)
        assert guest is not None
        if self.dies not in ("before", "suspended"):
            self.files[order["path"]] = Saved(
                guest.name, {"uuid": guest.info.uuid, "type": guest.info.type}
            )
            if self.dies != "complete":
                guest.destroy()
        if self.dies:
            self.killed(job)
        else:  # once it is gone
            self.xen.after(MS, lambda: self.say(job, "done", size_bytes=SIZE))

    def mend_save(self, job: FakeJob, order: dict[str, Any]) -> None:
        guest = self.guest(order)
        if self.second_dies:
            self.killed(job)
        elif guest is not None and guest.domid in self.busy:
            what = "another process is suspending or resuming it at this moment"
            self.fail(job, self.not_saved(order, xenpm.SuspendInProgress, what))
        elif guest is None and order["path"] not in self.files:
            self.fail(job, xenpm.NoSuchDomain(f"{order['name']} is gone"))
        elif order["path"] in self.files:
            if guest is not None:
                guest.destroy()
            self.xen.after(MS, lambda: self.say(job, "done", size_bytes=SIZE))
        else:
            self.put_back(order)
            self.fail(job, self.not_saved(order, xenpm.SaveError, order["said"]))

    def put_back(self, order: dict[str, Any]) -> None:
        guest = self.guest(order)
        if guest is not None and guest.suspended:
            guest.resume(True)
            self.xen.toolstack.resume_domain(guest.domid)

    def not_saved(
        self, order: dict[str, Any], kind: type[xenpm.SuspendError], why: str
    ) -> xenpm.SuspendError:
        ref = xenpm.DomainRef(order["domid"], bytes.fromhex(order["handle"]), order["name"])
        return kind(ref, f"was not saved: {why}; it runs on", phase=xenpm.Phase.SUSPENDED)

    def finish_restore(self, job: FakeJob, order: dict[str, Any]) -> None:
        saved = self.files.get(order["path"])
        if saved is None:
            self.fail(job, xenpm.SaveFileError(Path(order["path"]), "cannot be opened"))
            return
        if self.dies == "before":
            self.killed(job)
            return
        guest = self.xen.add_guest(saved.name, **saved.script)
        if order.get("remove"):
            del self.files[order["path"]]
        if self.dies:
            self.killed(job)
        else:
            self.say(job, "done", **self.made(guest))

    def mend_restore(self, job: FakeJob, order: dict[str, Any]) -> None:
        names = {guest.name: guest for guest in self.xen.guests.values()}
        guest = names.get(self.files[order["path"]].name)
        if self.second_dies:
            self.killed(job)
        elif guest is None:
            what = f"was not restored: {order['said']}"
            self.fail(job, xenpm.RestoreError(Path(order["path"]), what))
        else:
            self.say(job, "done", **self.made(guest))

    def made(self, guest: FakeGuest) -> dict[str, Any]:
        ref = {"domid": guest.domid, "handle": guest.info.handle.hex(), "name": guest.name}
        return {**ref, "left": ""}

    def signalled(self, job: FakeJob, order: dict[str, Any], signum: int) -> None:
        if signum == SIGKILL:
            self.killed(job)
        elif signum == SIGTERM and not self.deaf and job.ending is None:
            self.busy.clear()
            if order["verb"] == "save":
                self.put_back(order)
                self.fail(job, self.not_saved(order, xenpm.SuspendCancelled, "it was cancelled"))
            else:
                what = "was not restored: it was cancelled"
                self.fail(job, xenpm.RestoreError(Path(order["path"]), what))
