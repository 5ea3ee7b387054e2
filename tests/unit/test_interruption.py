"""Ctrl-C and other signals whose handlers raise: at any moment, with one guest or many."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Callable

import pytest

import xenpm
from xenpm import engine
from xenpm.testing import MS, SECOND, FakeXen

from .checks import assert_nothing_left, assert_released, assert_runs_on


class Alarm(Exception):
    """What the handler of SIGALRM raises here."""


def raise_alarm(_signum: int, _frame: FrameType | None) -> None:
    raise Alarm


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own handler for SIGINT, and after each test the handlers of before it."""
    before = {signum: signal.getsignal(signum) for signum in engine.DeferredSignals._SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ours = {signum: signal.getsignal(signum) for signum in before}
    yield
    left = {signum: signal.getsignal(signum) for signum in before}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    left[signal.SIGALRM] = ours[signal.SIGALRM]  # which tests set
    left[signal.SIGUSR1] = ours[signal.SIGUSR1]
    assert left == ours, "the handlers were not put back"


# -- one guest


def test_while_requested(xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    xen.after(10 * MS, interrupt)
    began = xen.now_ns
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert xen.now_ns == began + 10 * MS, "it waited for what it could take back"
    assert caplog.messages == []
    assert_runs_on(guest)


def test_while_acknowledged(xen: FakeXen, host: xenpm.Host) -> None:
    """It cannot be stopped any more: watched on, and resumed."""
    guest = xen.add_guest("web", suspend_ns=40 * MS)
    xen.after(10 * MS, interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert (guest.suspensions, guest.resumptions) == (1, 1)
    assert_runs_on(guest)


def test_while_acknowledged_and_never_suspended(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    guest = xen.add_guest("web", suspend_ns=None)
    xen.after(10 * MS, interrupt)
    began = xen.now_ns
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend(timeout=60, late_timeout=5)
    assert xen.now_ns == began + 10 * MS + 5 * SECOND
    (message,) = caplog.messages
    assert "web (domain 1): took the request" in message
    assert "may yet suspend" in message
    assert_runs_on(guest)


def test_after_the_deadline(xen: FakeXen, host: xenpm.Host) -> None:
    """The late watch is neither ended nor made longer by it."""
    guest = xen.add_guest("web", suspend_ns=None)
    xen.after(2 * SECOND, interrupt)
    began = xen.now_ns
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend(timeout=1, late_timeout=5)
    assert xen.now_ns == began + 6 * SECOND
    assert_runs_on(guest)


def test_in_the_moment_it_suspends(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=None)

    def both() -> None:
        guest.suspend()
        interrupt()

    xen.after(10 * MS, both)
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert (guest.suspensions, guest.resumptions) == (1, 1)
    assert_runs_on(guest)


def test_suspension_without_an_event_is_seen_when_interrupted(
    xen: FakeXen, host: xenpm.Host
) -> None:
    guest = xen.add_guest("web")
    xen.store.shut_down[guest.domid] = True  # its shutdown fires no @releaseDomain
    xen.after(500 * MS, interrupt)
    began = xen.now_ns
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert xen.now_ns == began + 500 * MS
    assert_runs_on(guest)


def test_the_request_is_taken_while_it_is_taken_back(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    xen.after(10 * MS, interrupt)
    xen.before("transaction_end", guest.acknowledge, nth=2)
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert (guest.suspensions, guest.resumptions) == (1, 1)
    assert_runs_on(guest)


@pytest.mark.parametrize("when", ["before", "after"])
def test_guest_that_somebody_else_suspends_is_left_alone_and_named(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)

    def both() -> None:
        guest.suspend()
        interrupt()

    if when == "before":
        xen.after(10 * MS, both)
    else:
        xen.after(10 * MS, interrupt)
        xen.before("transaction_end", guest.suspend, nth=2)
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert (guest.suspensions, guest.resumptions) == (1, 0)
    assert "web (domain 1): is suspended, but without" in caplog.text
    assert_nothing_left(xen)


def test_it_crashes_after_the_interruption(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=None)
    xen.after(10 * MS, interrupt)
    xen.after(20 * MS, guest.crash)
    began = xen.now_ns
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert xen.now_ns == began + 20 * MS
    assert_nothing_left(xen)


def test_again_ends_the_watch(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller insists: the guest that took the request may suspend, and a warning says so."""
    guest = xen.add_guest("web", suspend_ns=SECOND)
    xen.after(10 * MS, interrupt)
    xen.after(20 * MS, interrupt)
    began = xen.now_ns
    with pytest.raises(KeyboardInterrupt):
        host.domain("web").suspend()
    assert xen.now_ns == began + 20 * MS
    assert "may yet suspend" in caplog.text
    assert guest.running
    assert guest.watcher_held, "should it suspend, xl must not see it"
    assert_released(xen)
    xen.settle()
    assert guest.suspended
    assert_nothing_left(xen)
    host.domain("web").resume()
    assert host.domain("web").suspend().total_ns == SECOND + MS


def test_before_anything_was_asked(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.before("domain_info", interrupt)
    with pytest.raises(KeyboardInterrupt):
        domain.suspend()
    assert_runs_on(guest)


def test_handler_that_raises_something_of_its_own(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", suspend_ns=None)
    signal.signal(signal.SIGALRM, raise_alarm)
    xen.after(10 * MS, lambda: signal.raise_signal(signal.SIGALRM))
    with pytest.raises(Alarm):
        host.domain("web").suspend(timeout=1, late_timeout=1)
    assert_runs_on(guest)


def test_the_first_exception_is_the_one_that_is_raised(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web", suspend_ns=None)
    signal.signal(signal.SIGALRM, raise_alarm)
    xen.after(10 * MS, lambda: signal.raise_signal(signal.SIGALRM))
    xen.after(20 * MS, interrupt)
    with pytest.raises(Alarm):
        host.domain("web").suspend()


def test_handler_that_does_not_raise_does_not_disturb(xen: FakeXen, host: xenpm.Host) -> None:
    seen: list[tuple[int, bool]] = []
    guest = xen.add_guest("web")
    signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append((signum, frame is not None)))
    for moment in (0, 20, 20, 30):
        xen.after(moment * MS, lambda: signal.raise_signal(signal.SIGUSR1))
    assert host.domain("web").suspend().total_ns == 41 * MS
    assert seen == [(signal.SIGUSR1, True)] * 4
    assert guest.suspended
    assert_nothing_left(xen)


def test_handler_runs_at_once(xen: FakeXen, host: xenpm.Host) -> None:
    """It is not held back until the conversation ends."""
    seen: list[int] = []
    xen.add_guest("web", suspend_ns=SECOND)
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(xen.now_ns))
    began = xen.now_ns
    xen.after(20 * MS, lambda: signal.raise_signal(signal.SIGUSR1))
    host.domain("web").suspend()
    assert seen == [began + 20 * MS]


def test_handler_that_uses_the_host(xen: FakeXen, host: xenpm.Host) -> None:
    """Refused, and the refusal interrupts like any exception of a handler."""
    guest = xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    signal.signal(signal.SIGUSR1, lambda *_: domain.resume())
    xen.after(20 * MS, lambda: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(RuntimeError, match="at work already"):
        domain.suspend()
    assert_runs_on(guest)


def test_handler_that_closes_the_host(xen: FakeXen, host: xenpm.Host) -> None:
    """Refused like any other use: the guest is put back before the refusal is raised."""
    guest = xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    signal.signal(signal.SIGUSR1, lambda *_: host.close())
    xen.after(20 * MS, lambda: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(RuntimeError, match="close it when its calls have ended"):
        domain.suspend()
    assert_runs_on(guest)
    assert domain.state is xenpm.DomainState.RUNNING, "it is closed"


def test_resume_is_finished_first(xen: FakeXen, host: xenpm.Host) -> None:
    """An interrupted resume has resumed: hypervisor and xenstored both know."""
    guest = xen.add_guest("web")
    domain = host.domain("web")
    domain.suspend()
    xen.before("resume", interrupt)
    with pytest.raises(KeyboardInterrupt):
        domain.resume()
    assert_runs_on(guest)
    assert not xen.store.shut_down[guest.domid]


def test_not_in_the_main_thread(xen: FakeXen, host: xenpm.Host) -> None:
    """Signals are the main thread's: another one suspends undisturbed."""
    guest = xen.add_guest("web")
    handlers_there: list[Any] = []
    xen.after(20 * MS, lambda: handlers_there.append(signal.getsignal(signal.SIGINT)))
    results: list[xenpm.Suspension] = []
    thread = threading.Thread(target=lambda: results.append(host.domain("web").suspend()))
    thread.start()
    thread.join()
    assert handlers_there == [signal.default_int_handler]
    assert [result.total_ns for result in results] == [41 * MS]
    assert guest.suspended
    assert_nothing_left(xen)


SUB_INTERPRETER = """
import importlib, sys
try:
    interpreters = importlib.import_module("_interpreters")
except ImportError:
    interpreters = importlib.import_module("_xxsubinterpreters")
inside = '''
import xenpm
from xenpm.testing import FakeXen
xen = FakeXen()
guest = xen.add_guest("web")
domain = xenpm.Host(ports=xen.ports()).domain("web")
with domain.suspended():
    assert guest.suspended
domain.suspend()
print("suspended" if guest.suspended else "not suspended", flush=True)
'''
interpreters.run_string(interpreters.create(), f"import sys; sys.path[:] = {sys.path!r}" + inside)
"""


def test_in_a_sub_interpreter() -> None:
    """It has a main thread of its own, where Python refuses to set handlers."""
    done = subprocess.run(
        [sys.executable, "-c", SUB_INTERPRETER],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.stderr) == ("suspended\n", "")


def test_ignored_and_default_signals_stay_so(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    there: list[object] = []
    xen.after(
        20 * MS,
        lambda: there.extend(signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGALRM)),
    )
    host.domain("web").suspend()
    assert there == [signal.SIG_IGN, signal.SIG_DFL]


# -- many guests


def test_those_already_suspended_are_resumed(xen: FakeXen, host: xenpm.Host) -> None:
    quick = [xen.add_guest(f"quick{i}") for i in range(5)]
    slow = xen.add_guest("slow", suspend_ns=SECOND)
    deaf = xen.add_guest("deaf", acknowledge_ns=None)
    xen.after(500 * MS, interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.suspend_each(host.domains())
    xen.settle()
    for guest in [*quick, slow]:
        assert (guest.suspensions, guest.resumptions) == (1, 1)
        assert guest.running
    assert (deaf.suspensions, deaf.resumptions) == (0, 0)
    assert_nothing_left(xen)
    assert not any(xen.store.shut_down.values())


def test_again_still_resumes_those_already_suspended(xen: FakeXen, host: xenpm.Host) -> None:
    quick = xen.add_guest("quick")
    slow = xen.add_guest("slow", suspend_ns=None)
    xen.after(500 * MS, interrupt)
    xen.after(600 * MS, interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.suspend_each(host.domains())
    assert (quick.suspensions, quick.resumptions) == (1, 1)
    assert slow.running
    assert xen.held
    with xenpm.Host(ports=xen.ports()):
        assert not xen.held
    assert_runs_on(quick)


def test_interrupted_between_two_starts(xen: FakeXen, host: xenpm.Host) -> None:
    first, second = xen.add_guest("first"), xen.add_guest("second")
    domains = host.domains()
    xen.before("acquire", interrupt)  # in the start of the first
    with pytest.raises(KeyboardInterrupt):
        host.suspend_each(domains)
    assert xen.calls["acquire"] == 1, "the second was started"
    assert_runs_on(first)
    assert_runs_on(second)


def test_guest_that_cannot_be_put_back_is_named(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    quick = xen.add_guest("quick")
    xen.add_guest("slow", suspend_ns=None)
    xen.after(500 * MS, interrupt)
    xen.fail("resume", errno.EIO)
    with pytest.raises(KeyboardInterrupt):
        host.suspend_each(host.domains())
    assert quick.suspended
    assert "quick (domain 1): is still suspended" in caplog.text
    assert_nothing_left(xen)


def test_guest_that_cannot_even_be_looked_at_is_named(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    quick = xen.add_guest("quick")
    xen.add_guest("slow", suspend_ns=None)
    domains = host.domains()
    xen.after(500 * MS, interrupt)
    xen.fail("domain_info", errno.EIO, nth=6)  # two before, three at the slow one
    with pytest.raises(KeyboardInterrupt):
        host.suspend_each(domains)
    assert quick.suspended
    assert "quick (domain 1)" in caplog.text


# -- at any line


OURS = tuple(f"xenpm/{name}.py" for name in ("engine", "protocol", "connection", "domain", "host"))


@functools.lru_cache
def is_ours(filename: str) -> bool:
    return filename.endswith(OURS)


class AtLine:
    """Interrupts right before the nth line that is executed in xenpm, or in contextlib for it."""

    def __init__(self, nth: int, action: Callable[[], None]) -> None:
        self.left = nth
        self.action = action
        self.where = ""

    def trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        filename = frame.f_code.co_filename
        if not is_ours(filename):
            caller = frame.f_back
            for_us = caller is not None and is_ours(caller.f_code.co_filename)
            for_block = caller is not None and caller.f_code is suspend_for_a_block.__code__
            if filename != contextlib.__file__ or not (for_us or for_block):
                return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                name = filename.rpartition("/")[2]
                self.where = f"{name}:{frame.f_lineno} ({frame.f_code.co_name})"
                sys.settrace(None)
                self.action()
        return self.trace

    def __enter__(self) -> AtLine:
        self._before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)


class Interrupted(BaseException):
    """What a handler raises here."""


class InterruptedByValueError(Interrupted, ValueError):
    """The same; it must not be taken for `signal.signal`'s own refusal."""


def raise_interrupted(signum: int, _frame: FrameType | None) -> None:
    raise InterruptedByValueError if signum == signal.SIGUSR2 else Interrupted


Verb = Callable[[xenpm.Host, list[xenpm.Domain]], None]


def suspend_one(_host: xenpm.Host, domains: list[xenpm.Domain]) -> None:
    domains[0].suspend()


def suspend_several(host: xenpm.Host, domains: list[xenpm.Domain]) -> None:
    host.suspend_each(domains)


def suspend_for_a_block(_host: xenpm.Host, domains: list[xenpm.Domain]) -> None:
    with domains[0].suspended():
        pass


def interrupted_at(nth: int, signum: signal.Signals, verb: Verb) -> tuple[AtLine, str]:
    """Interrupt a verb at its nth line; what was wrong afterwards."""
    xen = FakeXen()
    guests = [xen.add_guest("web"), xen.add_guest("db", suspend_ns=60 * MS)]
    host = xenpm.Host(ports=xen.ports())
    domains = host.domains()
    signal.signal(signum, raise_interrupted)
    before = {number: signal.getsignal(number) for number in engine.DeferredSignals._SIGNALS}
    raised = False
    with AtLine(nth, lambda: signal.raise_signal(signum)) as at:
        try:
            verb(host, domains)
        except Interrupted:
            raised = True
    xen.settle()
    wrong = " ".join(guest.corrupted for guest in guests).strip()
    if at.where and not raised:
        wrong += " the interruption was lost"
    if raised and not all(guest.running for guest in guests):
        wrong += " left suspended"
    if xen.locks or xen.watches or xen.open_transactions:
        wrong += " lock, watch or transaction left"
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            wrong += f" handler of {number.name} not put back"
            signal.signal(number, handler)
    try:
        host.suspend_each([])
    except RuntimeError as error:
        wrong += f" the connection is stuck: {error}"
    return at, wrong


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize("verb", [suspend_one, suspend_several, suspend_for_a_block])
def test_at_any_line(verb: Verb, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever line it hits, from the call to its return: raised, and every guest runs."""
    few = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # all of them take long
    monkeypatch.setattr(engine.DeferredSignals, "_SIGNALS", few)
    before = signal.getsignal(signum)
    found = []
    for nth in itertools.count(1):
        at, wrong = interrupted_at(nth, signum, verb)
        if not at.where:
            break
        if wrong:
            found.append(f"{at.where}: {wrong}")
    signal.signal(signum, before)
    assert nth > 200, "the trace does not see the engine"
    assert not found, "\n" + "\n".join(found)
