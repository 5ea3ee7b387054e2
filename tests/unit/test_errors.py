"""The exceptions and the values: what they are, what they say, and that they travel."""

from __future__ import annotations

import copy
import errno
import inspect
import json
import pickle
from pathlib import Path
from typing import TypeVar

import pytest

import xenpm
from xenpm import errors

T = TypeVar("T")

WEB = xenpm.DomainRef(7, bytes(range(16)), "web")


def examples() -> list[xenpm.XenError]:
    """At least one of each, with everything set that it can carry."""
    interrupted = xenpm.SuspendInterrupted(
        WEB, "has crashed", phase=xenpm.Phase.REQUESTED, elapsed=0.5
    )
    interrupted.reason = xenpm.ShutdownReason.CRASH
    late = xenpm.SuspendNotCompleted(WEB, "was late", phase=xenpm.Phase.SUSPENDED, elapsed=31.0)
    late.resumed_late = True
    kinds = (
        xenpm.SuspendError,
        xenpm.SuspendNotSupported,
        xenpm.AlreadySuspended,
        xenpm.SuspendInProgress,
        xenpm.SuspendNotAcknowledged,
        xenpm.SuspendNotCompleted,
        xenpm.SuspendInterrupted,
        xenpm.SuspendCancelled,
        xenpm.SaveError,
    )
    return [
        xenpm.XenError("it went wrong"),
        xenpm.NotXenHost("it went wrong"),
        xenpm.LibraryMismatch("it went wrong"),
        xenpm.NoSuchDomain("it went wrong"),
        xenpm.StoreDataError("it went wrong"),
        xenpm.HypercallError("xc_domain_pause", errno.ESRCH),
        xenpm.HypercallError("xc_domain_pause", errno.EINVAL, "it went wrong"),
        xenpm.StoreError("xs_read", errno.EIO, "/local"),
        xenpm.NoSuchNode("xs_read", errno.ENOENT, "/local"),
        xenpm.TransactionConflict("xs_transaction_end", errno.EAGAIN),
        xenpm.QuotaExceeded("xs_watch", errno.ENOSPC),
        xenpm.NotPermitted("xs_read", errno.EACCES, "/local"),
        xenpm.XenlightError("libxl_ctx_alloc", errno.EIO, "it went wrong"),
        xenpm.ConfigError("it\nwent\udce9 wrong", "web.cfg", 3, 7),
        xenpm.ConfigError("it went wrong"),
        *(kind(WEB, "went wrong", phase=xenpm.Phase.REQUESTED, elapsed=1.5) for kind in kinds),
        xenpm.ResumeError(WEB, "went wrong"),
        xenpm.NotSuspended(WEB, "went wrong"),
        xenpm.ReinitNotSupported(WEB, "went wrong"),
        xenpm.RestoreError(Path("/a\nb"), "was not\nrestored"),
        xenpm.SaveFileError(Path("/a"), "is cut off"),
        xenpm.JournalError("it went wrong"),
        xenpm.HostSuspendError("it went wrong", {WEB: xenpm.NoSuchDomain("gone")}),
        xenpm.SleepFailed("mem", errno.EBUSY, "it went wrong"),
        xenpm.SleepFailed("mem", errno.EINVAL),
        interrupted,
        late,
    ]


def travelled(value: T, protocol: int = pickle.HIGHEST_PROTOCOL) -> T:
    """What comes out where the value is sent to another process."""
    twin: T = pickle.loads(pickle.dumps(value, protocol))  # noqa: S301
    return twin


def name_of(error: Exception) -> str:
    return type(error).__name__


def test_examples_are_complete() -> None:
    assert {type(error) for error in examples()} == {
        getattr(xenpm, name) for name in errors.__all__
    }


@pytest.mark.parametrize("error", examples(), ids=name_of)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(error: xenpm.XenError, protocol: int) -> None:
    for twin in (travelled(error, protocol), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        for name in (
            "domain",
            "message",
            "phase",
            "elapsed",
            "reason",
            "resumed_late",
            "call",
            "errno",
            "strerror",
            "detail",
            "what",
            "path",
            "source",
            "line",
            "column",
        ):
            assert getattr(twin, name, None) == getattr(error, name, None)


@pytest.mark.parametrize("error", examples(), ids=name_of)
def test_text(error: xenpm.XenError) -> None:
    """One readable line that names the culprit."""
    text = str(error)
    assert text
    assert text.isprintable()
    assert not text.startswith(("(", "["))
    if isinstance(error, (xenpm.SuspendError, xenpm.ResumeError)):
        assert text.startswith("web (domain 7): ")
    if isinstance(error, xenpm.ConfigError) and error.source:
        assert text.startswith("web.cfg:3:7: it")
    if isinstance(error, (xenpm.HypercallError, xenpm.StoreError)):
        assert text.startswith(("xc_", "xs_"))
        assert "[Errno" not in text


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (xenpm.NotXenHost, (OSError,)),
        (xenpm.LibraryMismatch, (ImportError,)),
        (xenpm.SaveError, (xenpm.SuspendError,)),
        (xenpm.SaveFileError, (xenpm.RestoreError, ValueError)),
        (xenpm.HypercallError, (OSError,)),
        (xenpm.StoreError, (OSError,)),
        (xenpm.NoSuchNode, (xenpm.StoreError, FileNotFoundError)),
        (xenpm.TransactionConflict, (xenpm.StoreError, BlockingIOError)),
        (xenpm.QuotaExceeded, (xenpm.StoreError,)),
        (xenpm.NotPermitted, (PermissionError,)),
        (xenpm.NoSuchDomain, (LookupError,)),
        (xenpm.SuspendNotSupported, (xenpm.SuspendError,)),
        (xenpm.AlreadySuspended, (xenpm.SuspendError,)),
        (xenpm.SuspendInProgress, (xenpm.SuspendError,)),
        (xenpm.SuspendNotAcknowledged, (xenpm.SuspendError, TimeoutError)),
        (xenpm.SuspendNotCompleted, (xenpm.SuspendError, TimeoutError)),
        (xenpm.SuspendInterrupted, (xenpm.SuspendError,)),
        (xenpm.SuspendCancelled, (xenpm.SuspendError,)),
        (xenpm.NotSuspended, (xenpm.ResumeError,)),
    ],
)
def test_family(kind: type[xenpm.XenError], bases: tuple[type, ...]) -> None:
    """Each is the package's own and one of Python's."""
    assert issubclass(kind, xenpm.XenError)
    assert issubclass(kind, bases[0])
    assert all(issubclass(kind, base) for base in bases)


def test_call_errors_carry_what_failed() -> None:
    error = xenpm.HypercallError("xc_domain_resume", errno.EINVAL, "not suspended")
    assert (error.call, error.errno, error.detail) == (
        "xc_domain_resume",
        errno.EINVAL,
        "not suspended",
    )
    assert str(error) == "xc_domain_resume: Invalid argument (not suspended)"
    assert str(xenpm.HypercallError("xc_version", errno.EIO)) == "xc_version: Input/output error"


def test_suspend_errors_carry_where_it_stood() -> None:
    error = xenpm.SuspendNotAcknowledged(WEB, "did not", phase=xenpm.Phase.REQUESTED, elapsed=30.0)
    assert (error.domain, error.phase, error.elapsed) == (WEB, xenpm.Phase.REQUESTED, 30.0)
    assert xenpm.SuspendError(WEB, "did not").phase is xenpm.Phase.IDLE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, xenpm.NoSuchNode),
        (errno.EAGAIN, xenpm.TransactionConflict),
        (errno.ENOSPC, xenpm.QuotaExceeded),
        (errno.E2BIG, xenpm.QuotaExceeded),
        (errno.EPERM, xenpm.NotPermitted),
        (errno.EACCES, xenpm.NotPermitted),
        (errno.EIO, xenpm.StoreError),
        (99999, xenpm.StoreError),
    ],
)
def test_store_errors_by_number(code: int, kind: type[Exception]) -> None:
    error = errors.store_error("xs_write", code)
    assert type(error) is kind
    assert error.errno == code


def test_hypercall_errors_by_number() -> None:
    assert type(errors.hypercall_error("xc_x", errno.EPERM)) is xenpm.NotPermitted
    assert type(errors.hypercall_error("xc_x", errno.EACCES)) is xenpm.NotPermitted
    assert type(errors.hypercall_error("xc_x", errno.ENOENT)) is xenpm.HypercallError


def test_everything_is_documented() -> None:
    for name in xenpm.__all__:
        assert inspect.getdoc(getattr(xenpm, name)) or name == "__version__"


# -- values


def info(**changes: object) -> xenpm.DomainInfo:
    plain = xenpm.DomainInfo(
        domid=7,
        handle=bytes(range(16)),
        type=xenpm.DomainType.PV,
        dying=False,
        shutdown=False,
        shutdown_code=0,
        paused=False,
        blocked=True,
        running=False,
        runs_xenstore=False,
        vcpus_online=1,
        max_vcpu_id=0,
        memory_kib=1,
        max_memory_kib=1,
        cpu_time_ns=0,
        cpupool=0,
    )
    return plain._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "state", "reason"),
    [
        ({}, "running", None),
        ({"running": True, "blocked": False}, "running", None),
        ({"paused": True}, "paused", None),
        ({"shutdown_code": 2}, "running", None),  # left over from before
        ({"shutdown": True, "shutdown_code": 2}, "suspended", "SUSPEND"),
        ({"shutdown": True, "shutdown_code": 2, "paused": True}, "suspended", "SUSPEND"),
        ({"shutdown": True, "shutdown_code": 0}, "shutdown", "POWEROFF"),
        ({"shutdown": True, "shutdown_code": 1}, "shutdown", "REBOOT"),
        ({"shutdown": True, "shutdown_code": 3}, "crashed", "CRASH"),
        ({"shutdown": True, "shutdown_code": 4}, "crashed", "WATCHDOG"),
        ({"shutdown": True, "shutdown_code": 5}, "shutdown", "SOFT_RESET"),
        ({"shutdown": True, "shutdown_code": 200}, "shutdown", None),
        ({"dying": True}, "dying", None),
        ({"dying": True, "shutdown": True, "shutdown_code": 2}, "dying", "SUSPEND"),
    ],
)
def test_domain_states(flags: dict[str, object], state: str, reason: str | None) -> None:
    subject = info(**flags)
    assert subject.state is xenpm.DomainState(state)
    assert subject.suspended is (state == "suspended")
    expected = None if reason is None else xenpm.ShutdownReason[reason]
    assert subject.shutdown_reason is expected


def test_results_are_plain_values_for_json() -> None:
    suspension = xenpm.Suspension(WEB, request_ns=1, acknowledge_ns=2, suspend_ns=3)
    domain = {"domid": 7, "name": "web", "uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f"}
    assert json.loads(json.dumps(suspension.to_dict())) == {
        "domain": domain,
        "request_ns": 1,
        "acknowledge_ns": 2,
        "suspend_ns": 3,
        "pci": [],
        "serves": [],
        "model_ns": 0,
        "total_ns": 6,
    }
    resumption = xenpm.Resumption(
        WEB, cooperative=True, total_ns=4, reason="asked for", steps=(xenpm.Step("devices", 4),)
    )
    assert json.loads(json.dumps(resumption.to_dict())) == {
        "domain": domain,
        "cooperative": True,
        "total_ns": 4,
        "pci": [],
        "serves": [],
        "check_ns": 0,
        "problems": [],
        "reason": "asked for",
        "steps": [{"name": "devices", "ns": 4}],
        "model_ns": 0,
    }


def test_results_can_be_compared_hashed_and_pickled() -> None:
    suspension = xenpm.Suspension(WEB, request_ns=1, acknowledge_ns=2, suspend_ns=3)
    twin = travelled(suspension)
    assert twin == suspension
    assert len({twin, suspension}) == 1
    assert travelled(info()) == info()
