"""Hooks: what administrators and programs want done before and after each guest and the host.

A hook is a program in ``/etc/xenpm/hooks.d`` or a Python callable.  It may fail and it may hang; it
never keeps the machine from going on: each has a deadline, and what failed is in the results.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import signal
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from .actions import Call, Cancelled, Clock, Join, Machine, Run, Signal
from .errors import ConfigError, XenError
from .ports import Job
from .types import DomainRef, Ending

__all__ = ["Hook", "HookEvent", "HookPoint", "HookResult", "find_hooks", "run_hooks"]

DIRECTORY = Path("/etc/xenpm/hooks.d")

_log = logging.getLogger("xenpm.hooks")
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # as run-parts(8) has it: no dots, no tildes, no backups
_TOLD = ("XENPM_DOMID", "XENPM_DOMAIN", "XENPM_UUID")  # a hook's own, if a hook runs this process
_TRUSTED_UID = 0
_WORDS, _RESULT = 200, 20_000  # characters; execve(2) takes 128 KiB in one variable
_GRACE_NS = 2_000_000_000  # what a program has after SIGTERM, and the kernel after SIGKILL


class HookPoint(enum.Enum):
    """When a hook is called."""

    HOST_PRE = "host-pre"  #: before the first domain is touched
    DOMAIN_PRE = "domain-pre"  #: before a domain is suspended or paused
    DOMAIN_POST = "domain-post"  #: after it runs again
    HOST_POST = "host-post"  #: after the last domain runs again, or was left as it is


@dataclass(frozen=True)
class HookEvent:
    """What a hook is told."""

    point: HookPoint
    state: str  #: the sleep state, as ``mem``
    domain: DomainRef | None = None  #: which; None at the host's points
    result: str = ""  #: after: ``ok``, or what went wrong; before: empty

    def environment(self) -> dict[str, str]:
        """The variables that a program gets besides those of this process."""
        told = {
            "XENPM_EVENT": self.point.value,
            "XENPM_STATE": self.state,
            "XENPM_RESULT": _shortened(self.result, _RESULT),
        }
        if self.domain is not None:
            told["XENPM_DOMID"] = str(self.domain.domid)
            told["XENPM_DOMAIN"] = self.domain.name
            told["XENPM_UUID"] = str(self.domain.uuid)
        return told


#: a program, or a callable that gets the event in a thread of its own
Hook = Union[Path, Callable[[HookEvent], object]]


@dataclass(frozen=True)
class HookResult:
    """How a hook has ended."""

    name: str  #: the program's file name, or the callable's name
    point: HookPoint  #: when it was called
    domain: DomainRef | None  #: for which domain
    duration_ns: int  #: from its start until it had ended, or was given up
    status: int | None = None  #: a program's exit status, or minus the signal that ended it
    error: str = ""  #: what a callable raised, or why a program has no exit status
    output: str = ""  #: the end of what a program has written
    timed_out: bool = False  #: it was ended, or given up, at its deadline

    @property
    def failed(self) -> bool:
        """Whether it did not do what it was to do."""
        return self.timed_out or bool(self.error) or bool(self.status)

    def __str__(self) -> str:
        where = self.point.value if self.domain is None else f"{self.point.value}, {self.domain}"
        return f"hook {self.name} ({where}): {self._what}"

    @property
    def _what(self) -> str:
        took = f"{self.duration_ns / 1e9:.1f} s"
        if self.timed_out:
            if self.status is None:
                return f"not done at its deadline, and after {took} it still runs"
            return f"not done at its deadline, and ended after {took}"
        if self.error:
            return self.error
        if self.status:
            how = f"status {self.status}" if self.status > 0 else f"signal {-self.status}"
            said = _shortened(self.output.strip().rpartition("\n")[2], _WORDS)
            return f"ended with {how}" + (f", its last words: {said}" if said else "")
        return f"done in {took}"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def find_hooks(directory: Path = DIRECTORY) -> list[Path]:
    """The programs in a directory, in the order of their names; none when there is no directory.

    As run-parts(8) does, this passes over what is not executable and names with other characters
    than letters, digits, ``_`` and ``-``.

    Raises:
        ConfigError: somebody else than root may change the directory or a program in it, which this
            process would then run as root.
    """
    try:
        entries = sorted(directory.iterdir())
        _check_trusted(directory)
        found = [each for each in entries if _NAME.fullmatch(each.name) and _is_program(each)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"the hooks cannot be read: {error}", str(directory)) from error
    for each in found:
        _check_trusted(each)
    return found


def _is_program(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:  # a link to nowhere
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _check_trusted(path: Path) -> None:
    status = path.stat()
    if status.st_uid != _TRUSTED_UID:
        what = f"belongs to user {status.st_uid}: 'chown root {path}' if its content is right"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"is writable by others than root: 'chmod go-w {path}' if its content is right"
    else:
        return
    raise ConfigError(f"a hook runs as root, and this {what}", str(path))


def run_hooks(
    hooks: Iterable[Hook], event: HookEvent, now: Clock, timeout_ns: int
) -> Machine[tuple[HookResult, ...]]:
    """Run hooks one after the other; a machine for the engine, which goes on with others meanwhile.

    One that fails or hangs does not keep the next from running, so that each sees the event after
    for every event before.

    Args:
        hooks: which; programs as `find_hooks` has found them.
        event: what they are told.
        now: the poller's clock.
        timeout_ns: what each has, in nanoseconds.  A program then gets SIGTERM and two seconds
            later, with the rest of its process group, SIGKILL.  A callable cannot be ended: its
            thread is left behind.
    """
    results = []
    for hook in hooks:
        result = yield from _run(hook, event, now, timeout_ns)
        _log.log(logging.WARNING if result.failed else logging.INFO, "%s", result)
        for line in result.output.splitlines():
            _log.info("hook %s: %s", result.name, line)
        results.append(result)
    return tuple(results)


def _run(hook: Hook, event: HookEvent, now: Clock, timeout_ns: int) -> Machine[HookResult]:
    is_program = isinstance(hook, Path)
    name = hook.name if isinstance(hook, Path) else getattr(hook, "__qualname__", repr(hook))
    began_ns = now()
    timed_out = False
    try:
        if isinstance(hook, Path):
            inherited = {k: v for k, v in os.environ.items() if k not in _TOLD}
            environment = {**inherited, **event.environment()}
            job: Job = yield Run((str(hook), event.point.value), environment)
        else:
            function = hook
            job = yield Call(lambda: function(event))
    except XenError as error:
        return HookResult(name, event.point, event.domain, now() - began_ns, error=str(error))
    try:
        timed_out = not (yield Join((job,), began_ns + timeout_ns))
    except Cancelled:
        if is_program:
            yield from _end(job, now)
        raise
    if timed_out and is_program:
        yield from _end(job, now)
    ending: Ending = job.result() if job.done else Ending(None)
    return HookResult(
        name,
        event.point,
        event.domain,
        now() - began_ns,
        ending.status,
        ending.error,
        ending.output,
        timed_out,
    )


def _end(job: Job, now: Clock) -> Machine[None]:
    """End a program and all that it has started."""
    yield Signal(job, signal.SIGTERM)
    yield Join((job,), now() + _GRACE_NS)
    yield Signal(job, signal.SIGKILL)  # also when it has ended: others of its group may not have
    yield Join((job,), now() + _GRACE_NS)
