"""The exceptions of xenpm: all are the package's own, and where one fits, Python's too.

A message says which domain, what happened, and where it is not plain, what to do next.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from .types import DomainRef, Phase, ShutdownReason, Sleep

__all__ = [
    "AlreadySuspended",
    "ConfigError",
    "HostSuspendError",
    "HypercallError",
    "JournalError",
    "LibraryMismatch",
    "NoSuchDomain",
    "NoSuchNode",
    "NotPermitted",
    "NotSuspended",
    "NotXenHost",
    "QuotaExceeded",
    "ReinitNotSupported",
    "RestoreError",
    "ResumeError",
    "SaveError",
    "SaveFileError",
    "SleepFailed",
    "StoreDataError",
    "StoreError",
    "SuspendCancelled",
    "SuspendError",
    "SuspendInProgress",
    "SuspendInterrupted",
    "SuspendNotAcknowledged",
    "SuspendNotCompleted",
    "SuspendNotSupported",
    "TransactionConflict",
    "XenError",
    "XenlightError",
]


class XenError(Exception):
    """Base of everything that xenpm raises by itself."""


class NotXenHost(XenError, OSError):
    """There is no hypervisor or no xenstore here, or this is not dom0."""


class LibraryMismatch(XenError, ImportError):
    """The extension modules are missing, or were built for another Xen release than this host's."""


class _CallError(XenError, OSError):
    """A C function of Xen's libraries failed.

    Attributes:
        call: name of the C function.
        errno: the error number that it left.
        detail: the library's own last message, or an empty string.
    """

    def __init__(self, call: str, errno: int, detail: str = "") -> None:
        text = f"{call}: {os.strerror(errno)}"
        super().__init__(errno, f"{text} ({detail})" if detail else text)
        self.call = call
        self.detail = detail

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        return type(self), (self.call, self.errno or 0, self.detail)


class HypercallError(_CallError):
    """A hypercall made through libxenctrl or libxenguest failed."""


class StoreError(_CallError):
    """A request to xenstored made through libxenstore failed."""


class NoSuchNode(StoreError, FileNotFoundError):
    """The xenstore node does not exist (ENOENT)."""


class TransactionConflict(StoreError, BlockingIOError):
    """Somebody else changed what the transaction had read (EAGAIN): start it again."""


class QuotaExceeded(StoreError):
    """xenstored refuses more or larger nodes, watches or transactions (ENOSPC, E2BIG)."""


class XenlightError(_CallError):
    """A call of libxenlight failed; `errno` is the nearest to libxl's own error number."""


class NotPermitted(_CallError, PermissionError):
    """The caller may not do this; it takes root in dom0 (EPERM, EACCES)."""


#: what a call to Xen's libraries may raise
CALL_ERRORS = (HypercallError, StoreError, NotPermitted)
CallError = Union[HypercallError, StoreError, NotPermitted]

_STORE_ERRORS: dict[int, type[_CallError]] = {
    _errno.ENOENT: NoSuchNode,
    _errno.EAGAIN: TransactionConflict,
    _errno.ENOSPC: QuotaExceeded,
    _errno.E2BIG: QuotaExceeded,
    _errno.EPERM: NotPermitted,
    _errno.EACCES: NotPermitted,
}


def hypercall_error(call: str, errno: int, detail: str = "") -> _CallError:
    """The exception for a C function of libxenctrl or libxenguest that failed with `errno`."""
    permission = errno in (_errno.EPERM, _errno.EACCES)
    return (NotPermitted if permission else HypercallError)(call, errno, detail)


def store_error(call: str, errno: int, detail: str = "") -> _CallError:
    """The exception for a C function of libxenstore that failed with `errno`."""
    return _STORE_ERRORS.get(errno, StoreError)(call, errno, detail)


class StoreDataError(XenError, ValueError):
    """What xenstore says of a domain makes no sense, so there is no sure answer from it."""


def _one_line(text: str) -> str:
    """A message on one line, whatever is quoted in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigError(XenError, ValueError):
    """A domain's configuration is wrong, or cannot be read; nothing was touched.

    Attributes:
        what: what is wrong, and what to do, without the place.
        source: the file, or whatever the configuration was read from; empty when unknown.
        line: where in it, from 1; None when unknown.
        column: where in that line, in characters from 1; None when unknown.
    """

    def __init__(
        self, what: str, source: str = "", line: int | None = None, column: int | None = None
    ) -> None:
        place = ":".join(str(part) for part in (source, line, column) if part)
        text = f"{place}: {what}" if place else what
        super().__init__(_one_line(text))
        self.what = what
        self.source = source
        self.line = line
        self.column = column

    def __reduce__(self) -> tuple[type, tuple[str, str, int | None, int | None]]:
        return type(self), (self.what, self.source, self.line, self.column)


class JournalError(XenError, OSError):
    """The record of a host suspend cannot be read or written, or one is under way already."""


class HostSuspendError(XenError):
    """The host was not put to sleep, or not everything is as it was before.

    Attributes:
        failures: what failed, by domain.
        rolled_back: whether every guest is as it was before.
        report: all that happened, a `Report`; None when nothing was touched.
    """

    def __init__(
        self,
        message: str,
        failures: Mapping[DomainRef, XenError] | None = None,
        *,
        rolled_back: bool = True,
        report: Any = None,
    ) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})
        self.rolled_back = rolled_back
        self.report = report

    def __reduce__(self) -> tuple[type, tuple[str], dict[str, Any]]:
        return type(self), (str(self),), self.__dict__


class NoSuchDomain(XenError, LookupError):
    """No domain of that name, domid or UUID is there (any more), or several are."""


class _DomainError(XenError):
    """Something went wrong with one domain; `domain` says with which."""

    def __init__(self, domain: DomainRef, message: str) -> None:
        super().__init__(f"{domain}: {message}")
        self.domain = domain
        self.message = message

    def __reduce__(self) -> tuple[type, tuple[object, ...], dict[str, object]]:
        return type(self), (self.domain, self.message), self.__dict__


class SuspendError(_DomainError):
    """The domain was not suspended.

    Attributes:
        domain: which domain.
        phase: how far the conversation with the guest had come.
        elapsed: seconds since it began.
        state_known: False when one call failed after the other: the guest may be suspended, or
            suspend yet; the message says what to do.
    """

    state_known: bool = True

    def __init__(
        self,
        domain: DomainRef,
        message: str,
        *,
        phase: Phase = Phase.IDLE,
        elapsed: float = 0.0,
    ) -> None:
        super().__init__(domain, message)
        self.phase = phase
        self.elapsed = elapsed


class SuspendNotSupported(SuspendError):
    """The guest cannot suspend: no PV drivers, ``feature-suspend`` is 0, or asleep by itself."""


class AlreadySuspended(SuspendError):
    """The domain is suspended already; resume it first."""


class SuspendInProgress(SuspendError):
    """Somebody else is suspending, saving, migrating or shutting down this domain."""


class SuspendNotAcknowledged(SuspendError, TimeoutError):
    """The guest did not take the request in time; it has been taken back, nothing has changed."""


class SuspendNotCompleted(SuspendError, TimeoutError):
    """The guest took the request but had not suspended at the deadline.

    Attributes:
        resumed_late: it did suspend after the deadline, and has been resumed.  When False it was
            still running when the watch over it ended, and may yet suspend.
    """

    resumed_late: bool = False


class SuspendInterrupted(SuspendError):
    """The domain has crashed, rebooted, powered off or was destroyed, before or meanwhile.

    Attributes:
        reason: the shutdown reason that the hypervisor gives; None when the domain is gone, or for
            a code that Xen has no name for.
    """

    reason: ShutdownReason | None = None


class SuspendCancelled(SuspendError):
    """The caller cancelled the suspension; only in phase acknowledged it may still suspend."""


class SaveError(SuspendError):
    """The domain was not saved: no file was made, or the message says what became of it."""


class RestoreError(XenError):
    """The domain was not restored; its file is as it was.

    Attributes:
        path: the file.
        what: what is wrong, and what to do, without the path.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(_one_line(f"{path}: {what}"))
        self.path = path
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.what)


class SaveFileError(RestoreError, ValueError):
    """The file is not that of a saved domain, or not all of it; no domain was made."""


class ResumeError(_DomainError):
    """The domain was not resumed, or not completely; the message says what state it is in."""


class NotSuspended(ResumeError):
    """The domain is not suspended, so there is nothing to resume; nothing was touched."""


class ReinitNotSupported(ResumeError):
    """The domain cannot be given fresh ground to start over on; nothing was touched."""


class SleepFailed(XenError, OSError):
    """The kernel refused to put the machine to sleep; it is awake and has not slept.

    Attributes:
        state: the sleep state that was asked for.
        errno: the error of the write to ``/sys/power/state``: EBUSY, EINVAL, ...
        why: what that means, and who refused, as far as the kernel knows.
        sleep: what the kernel says of the attempt; None when none was made.
    """

    def __init__(self, state: str, errno: int, why: str = "", sleep: Sleep | None = None) -> None:
        text = f"the machine did not enter the sleep state {state!r}: {os.strerror(errno)}"
        super().__init__(errno, f"{text}: {why}" if why else text)
        self.state = state
        self.why = why
        self.sleep = sleep

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type, tuple[str, int, str, Sleep | None]]:
        return type(self), (self.state, self.errno or 0, self.why, self.sleep)
