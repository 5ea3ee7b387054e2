"""The device model of an HVM guest, QEMU, which must stand still while the guest is suspended.

Stopped, it answers no access of the guest to its devices: a guest must never run without it.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from .actions import AskModel, Cancelled, Clock, Join, LetGo, Machine, Wait
from .ports import Job
from .types import DomainRef

__all__ = ["PAUSED", "RUNNING", "Answer", "ask"]

_NS = 1_000_000_000
ANSWER_NS = 30 * _NS  # stopping, QEMU waits for its disks
_LOOK_AGAIN_NS = _NS // 20  # nothing tells when there is room among those who wait for QEMU

RUNNING, PAUSED = "running", "paused"  # RunState of QEMU's qapi/run-state.json


class Answer(NamedTuple):
    """What came of asking a device model."""

    status: str = ""  #: how it is, as QEMU names it; empty when that is unknown
    error: str = ""  #: why, in words that follow "its device model"
    cancelled: bool = False  #: the caller has cancelled meanwhile; the answer was waited for

    def __str__(self) -> str:
        return self.error or f"is {self.status!r}"


def ask(domain: DomainRef, command: str, now: Clock) -> Machine[Answer]:
    """Give the model a command, if any, and ask then how it is; for at most 30 seconds.

    When the time is over the model may yet take the command, but before any later one.
    """
    until = now() + ANSWER_NS
    cancelled = False
    while True:
        job: Job = yield AskModel(domain.domid, command)
        while not job.done:
            try:
                if not (yield Join((job,), until, domain if command else None)):
                    break
            except Cancelled:
                cancelled = True
        if not job.done:
            yield LetGo(job)  # or it would be in the way of the next
            return Answer("", f"did not answer within {ANSWER_NS // _NS} s", cancelled)
        ending = job.result()
        if ending.status != errno.EAGAIN or now() >= until:
            return Answer(ending.output, ending.error, cancelled)
        try:
            yield Wait(domain, min(until, now() + _LOOK_AGAIN_NS))
        except Cancelled:
            cancelled = True
