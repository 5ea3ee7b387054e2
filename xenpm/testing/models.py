"""Device models of HVM guests."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xenpm.types import Ending

from .calls import Port
from .clock import MS
from .jobs import FakeJob

if TYPE_CHECKING:
    from .guests import FakeGuest

ACPI_S_STATE = 14  # of public/hvm/params.h


@dataclass
class FakeModel:
    """The QEMU of an HVM guest.

    Attributes:
        status: how it is, as QEMU names it.
        answer_ns: how long it takes for an answer; None: it hangs, and takes no command.
        broken: the commands that it refuses.
        busy: how often it is found with too many others waiting for it.
        commands: those it has been given.
    """

    guest: FakeGuest
    status: str = "running"
    answer_ns: int | None = 2 * MS
    broken: set[str] = field(default_factory=set)
    busy: int = 0
    commands: list[str] = field(default_factory=list)
    client: FakeJob | None = None  # whom it serves; there is one at a time

    def take(self, command: str) -> Ending:
        """Do what a command says."""
        self.commands.append(command)
        if command in self.broken:
            return Ending(errno.EIO, f"refuses {command}: made to fail")
        if command == "stop":
            if self.guest.running:
                self.guest.corrupted = "its device model was stopped while it ran"
            self.status = "paused"
        elif command == "cont":
            self.status = "running"
        elif command == "system_wakeup":
            self.status = "running"
            self.guest.hvm_params[ACPI_S_STATE] = 0
        return Ending(None, output=self.status)


class FakeModels(Port):
    """`xenpm.ports.DeviceModels` on the fake host."""

    def ask(self, domid: int, command: str) -> FakeJob:
        """Give a guest's model a command, and say then how it is."""
        with self._call("ask"):
            job = FakeJob(self._xen)
            guest = self._xen.guests.get(domid)
            model = None if guest is None else guest.model
            if model is None:
                job.end(Ending(errno.ENOENT, "cannot be reached: no such file"))
            elif model.busy:
                model.busy -= 1
                job.end(Ending(errno.EAGAIN, "cannot be reached: busy"))
            elif model.client is None or model.client.done:
                model.client = job
                if model.answer_ns is not None:
                    self._xen.after(model.answer_ns, lambda: job.end(model.take(command)))
            if job.ending is not None:
                job.work()
            return job
