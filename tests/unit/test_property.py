"""Whatever guests, Xen and the user do: no guest is lost silently, and nothing is left behind.

`pytest --hypothesis-profile=long` looks much further than the quick profile of every day.
"""

from __future__ import annotations

import errno
import logging
import signal
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

import xenpm
from xenpm.testing import MS, SECOND, FakeGuest, FakeXen

TIMEOUT = 1.0
LATE = 2.0
ADMISSIONS = ("may yet suspend", "is still suspended", "not undone")


@dataclass
class Script:
    """What a guest does, and what is done to it."""

    type: xenpm.DomainType = xenpm.DomainType.PVH
    acknowledge_ms: int | None = 1
    acknowledge_by: str = "writing"
    suspend_ms: int | None = 40
    mishap: str = ""
    mishap_ms: int = 0
    paused_from_ms: int | None = None
    silent: bool = False  # its shutdown fires no @releaseDomain


@dataclass
class Fault:
    """Calls that fail."""

    name: str
    code: int = errno.EIO
    nth: int = 1
    times: int | None = 1


@dataclass
class Story:
    """Everything that is going to happen."""

    scripts: list[Script]
    faults: list[Fault] = field(default_factory=list)
    interruptions_ms: list[int] = field(default_factory=list)
    interruption_at_call: int | None = None
    call_ns: int = 0


CALLS = [
    "domain_info",
    "domain_list",
    "hvm_param_get",
    "read",
    "write",
    "set_permissions",
    "transaction_start",
    "transaction_end",
    "watch",
    "unwatch",
    "check_watch",
    "resume",
    "resume_domain",
    "*",
]
MISHAPS = ["", "", "crash", "power_off", "reboot", "destroy", "slow destroy"]

moments = st.one_of(st.integers(0, 60), st.integers(0, 4000), st.sampled_from([1000, 3000]))
scripts = st.builds(
    Script,
    type=st.sampled_from([xenpm.DomainType.PV, xenpm.DomainType.PVH]),
    acknowledge_ms=st.none() | moments,
    acknowledge_by=st.sampled_from(["writing", "deleting"]),
    suspend_ms=st.none() | moments,
    mishap=st.sampled_from(MISHAPS),
    mishap_ms=moments,
    paused_from_ms=st.none() | moments,
    silent=st.booleans(),
)
faults = st.builds(
    Fault,
    name=st.sampled_from(CALLS),
    code=st.sampled_from([errno.EIO, errno.EPERM, errno.ENOSPC, errno.EAGAIN, errno.ENOMEM]),
    nth=st.integers(1, 25),
    times=st.sampled_from([1, 1, 3, None]),
)
stories = st.builds(
    Story,
    scripts=st.lists(scripts, min_size=1, max_size=4),
    faults=st.lists(faults, max_size=3),
    interruptions_ms=st.lists(moments, max_size=2),
    interruption_at_call=st.none() | st.integers(1, 80),
    call_ns=st.sampled_from([0, 0, 100_000]),
)


class Log(logging.Handler):
    """What is logged while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> Log:
        logging.getLogger("xenpm").addHandler(self)
        logging.getLogger("xenpm").propagate = False
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("xenpm").removeHandler(self)
        logging.getLogger("xenpm").propagate = True


class Telling:
    """Makes a story happen on a fake host."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.xen = FakeXen()
        self.interrupting = True
        self.interruptions = 0
        self.guests = [self._add(i, script) for i, script in enumerate(story.scripts)]
        self.host = xenpm.Host(ports=self.xen.ports())
        self.domains = self.host.domains()
        self.xen.call_ns = story.call_ns
        for fault in story.faults:
            self.xen.fail(fault.name, fault.code, fault.nth, fault.times)
        for moment in story.interruptions_ms:
            self.xen.after(moment * MS, self.interrupt)
        if story.interruption_at_call is not None:
            self.xen.before("*", self.interrupt, story.interruption_at_call)

    def _add(self, number: int, script: Script) -> FakeGuest:
        def ns(moment: int | None) -> int | None:
            return None if moment is None else moment * MS

        guest = self.xen.add_guest(
            f"guest{number}",
            type=script.type,
            acknowledge_ns=ns(script.acknowledge_ms),
            acknowledge_by=script.acknowledge_by,
            suspend_ns=ns(script.suspend_ms),
        )
        if script.mishap == "slow destroy":
            self.xen.after(
                script.mishap_ms * MS, lambda: guest.destroy(teardown_ns=30 * MS, dying_ns=SECOND)
            )
        elif script.mishap:
            self.xen.after(script.mishap_ms * MS, getattr(guest, script.mishap))
        if script.paused_from_ms is not None:
            self.xen.after(script.paused_from_ms * MS, guest.pause)
        if script.silent:
            self.xen.store.shut_down[guest.domid] = True
        return guest

    def interrupt(self) -> None:
        if self.interrupting:
            self.interruptions += 1
            signal.raise_signal(signal.SIGINT)

    def suspend(self) -> dict[xenpm.Domain, Any] | None:
        """The outcomes; None when interrupted."""
        try:
            return dict(self.host.suspend_each(self.domains, timeout=TIMEOUT, late_timeout=LATE))
        except KeyboardInterrupt:
            return None
        finally:
            self.interrupting = False

    def let_everything_happen(self) -> None:
        """Also what paused guests would have done."""
        self.xen.settle()
        for guest in self.guests:
            while guest.pause_count and not guest.gone:
                guest.unpause()
        self.xen.settle()


@pytest.fixture(autouse=True, scope="module")
def _own_handler() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@given(stories)
@example(Story([Script(), Script(suspend_ms=None)], interruptions_ms=[500, 600]))
@example(Story([Script(acknowledge_ms=None)], [Fault("transaction_end", nth=2)]))
@example(Story([Script(suspend_ms=1500)], [Fault("resume")]))
@example(Story([Script()], [Fault("unwatch", nth=2)]))
@example(Story([Script()], [Fault("*", errno.EBADF, nth=12, times=None)]))
def test_nothing_is_lost_or_left(story: Story) -> None:
    telling = Telling(story)
    xen = telling.xen
    began = xen.now_ns
    with Log() as log:
        outcomes = telling.suspend()
    took = xen.now_ns - began
    watches, locks, transactions = list(xen.watches), dict(xen.locks), xen.open_transactions
    telling.let_everything_happen()

    # Every wait has a deadline.
    assert took <= (TIMEOUT + LATE) * SECOND + 5000 * story.call_ns

    # Nothing is left but watches that could not be removed.
    assert not locks
    assert not transactions
    if not any(fault.name in ("unwatch", "*") for fault in story.faults):
        assert not watches

    # Every guest is well, or its state has been told.
    event("interrupted" if outcomes is None else "not interrupted")
    assert telling.interruptions or outcomes is not None, "KeyboardInterrupt out of nowhere"
    for domain, guest in zip(telling.domains, telling.guests):
        assert not guest.corrupted, guest.corrupted
        outcome = None if outcomes is None else outcomes[domain]
        told = " ".join(log.messages) if outcomes is None else str(outcome)
        admitted = any(text in told for text in ADMISSIONS)
        if outcome is not None:
            event(type(outcome).__name__)
        if isinstance(outcome, xenpm.Suspension):
            assert guest.suspended or guest.gone or guest.dying
            assert guest.gone or guest.dying or guest.request != b"suspend"
        elif guest.suspended:
            assert admitted, f"suspended, and the caller is told: {told}"
            event("left suspended, and said so")
        elif guest.running:
            assert guest.request != b"suspend" or admitted, f"still asked, and told: {told}"

    # The same connection can be used again, and puts everything right.
    xen.stop_failing()
    xen.call_ns = 0
    living = [
        (domain, guest)
        for domain, guest in zip(telling.domains, telling.guests)
        if guest.suspended or guest.running
    ]
    for domain, guest in living:
        if guest.suspended:
            domain.resume()
        xen.toolstack.write(guest.request_path, b"")
        mine = xenpm.Permission(guest.domid, read=False, write=False)
        xen.toolstack.set_permissions(guest.request_path, [mine])
        guest.acknowledge_ns, guest.suspend_ns = 1 * MS, 40 * MS
        guest.acknowledge_by = "writing"
    again = telling.host.suspend_each([domain for domain, _ in living])
    for (domain, guest), outcome in zip(living, again.values()):
        assert isinstance(outcome, xenpm.Suspension), f"{domain}: {outcome}"
        assert guest.suspended
    if again:
        assert all(
            isinstance(one, xenpm.Resumption) for one in telling.host.resume_each(again).values()
        )
    assert not xen.locks
