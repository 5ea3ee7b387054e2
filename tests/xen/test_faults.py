"""Everything that can go wrong between host and guest: each has its error, no guest is harmed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import xenpm
from xenpm._ext.xenstore import Xenstore

from .guest import DEADLINE, Guest, RequestWatch, run

SCENE = "faults"
GuestOf = Callable[[str], Guest]
CONTROL = "control/shutdown"
STALLED_DISK = "stall-disk"  # the device-mapper device behind the guest "stall"


@pytest.fixture
def victim(guest: GuestOf) -> Iterator[Guest]:
    """A guest that a test may destroy; made anew if it did."""
    subject = guest("victim-pv")
    yield subject
    _repair(subject)


@pytest.fixture
def paused(victim: Guest) -> Iterator[Guest]:
    """A guest that never acknowledges, for it is paused."""
    domid = victim.domain.domid
    victim.control.pause(domid)
    yield victim
    info = victim.control.domain_info(domid)
    if info is not None and info.paused:
        victim.control.unpause(domid)


@pytest.fixture
def stalled(guest: GuestOf) -> Iterator[Guest]:
    """A guest that acknowledges and cannot freeze: one of its processes waits for a dead disk."""
    subject = guest("stall")
    subject.command("freeze-timeout 60000")
    run("dmsetup", "suspend", "--noflush", "--nolockfs", STALLED_DISK)
    subject.command("stall")
    yield subject
    run("dmsetup", "resume", STALLED_DISK)
    _repair(subject)


def _repair(subject: Guest) -> None:
    """Make the guest anew unless it is as it was."""
    try:
        info = subject.domain.info
        alive = info.state is xenpm.DomainState.RUNNING
    except xenpm.NoSuchDomain:
        alive = False
    if not alive:
        subject.create()


def _suspends_again(subject: Guest) -> None:
    """The next suspend must work: nothing of the last attempt is left."""
    with subject.unharmed():
        assert subject.read(CONTROL) == ""
        subject.domain.suspend()
        subject.domain.resume()


def _when(subject: Guest, phase: str, then: Callable[[], object]) -> threading.Thread:
    """Do something in the moment that the conversation with the guest comes to `phase`."""
    watch = RequestWatch(subject)

    def work() -> None:
        with watch:
            getattr(watch, phase)()
            then()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


# -- the requested phase


@pytest.mark.core
def test_never_acknowledged(paused: Guest) -> None:
    count = paused.count
    with pytest.raises(xenpm.SuspendNotAcknowledged, match="It is paused") as caught:
        paused.domain.suspend(timeout=1.5, late_timeout=60)
    assert caught.value.domain == paused.domain.ref
    assert caught.value.phase is xenpm.Phase.REQUESTED
    assert 1.5 <= caught.value.elapsed < 60, "it did not end at the deadline"
    assert paused.read(CONTROL) == "", "the request was not taken back"
    assert paused.state == "paused"
    paused.control.unpause(paused.domain.domid)
    paused.wait_counting(count + 20)  # it saw no request, so it runs on
    _suspends_again(paused)


def test_foreign_request_is_respected(paused: Guest) -> None:
    paused.store.write(f"{paused.home}/{CONTROL}", b"reboot")
    with pytest.raises(xenpm.SuspendInProgress, match="reboot"):
        paused.domain.suspend(timeout=5)
    assert paused.read(CONTROL) == "reboot"
    paused.store.write(f"{paused.home}/{CONTROL}", b"")


# -- the acknowledged phase


@pytest.mark.core
@pytest.mark.trouble  # its kernel shows the trace of the process that it could not freeze
def test_acknowledged_and_not_suspended(stalled: Guest) -> None:
    with stalled.unharmed():
        stalled.command("freeze-timeout 1000")
        with pytest.raises(xenpm.SuspendNotCompleted, match="still runs") as caught:
            stalled.domain.suspend(timeout=1, late_timeout=8)
        assert caught.value.phase is xenpm.Phase.ACKNOWLEDGED
        assert not caught.value.resumed_late
        run("dmsetup", "resume", STALLED_DISK)
    _suspends_again(stalled)


@pytest.mark.core
def test_suspended_late_is_resumed(stalled: Guest) -> None:
    with stalled.unharmed():
        free = threading.Timer(4, run, ["dmsetup", "resume", STALLED_DISK])
        free.start()
        with pytest.raises(xenpm.SuspendNotCompleted, match="resumed") as caught:
            stalled.domain.suspend(timeout=1, late_timeout=60)
        free.join()
        assert caught.value.resumed_late
        assert caught.value.phase is xenpm.Phase.SUSPENDED
    _suspends_again(stalled)


# -- the end of the guest, in either phase

ENDS = {
    "crash": xenpm.ShutdownReason.CRASH,
    "poweroff": xenpm.ShutdownReason.POWEROFF,
    "reboot": xenpm.ShutdownReason.REBOOT,
    "destroyed": None,
}


def _end(subject: Guest, end: str) -> Callable[[], object]:
    domid = subject.domain.domid
    reason = ENDS[end]
    if reason is None:
        return lambda: run("xl", "destroy", str(domid))
    return lambda: subject.control.shutdown(domid, int(reason))


SELDOM = pytest.mark.soak


@pytest.mark.trouble
@pytest.mark.parametrize(
    ("phase", "end"),
    [
        ("requested", "poweroff"),
        ("acknowledged", "destroyed"),
        pytest.param("requested", "crash", marks=SELDOM),
        pytest.param("requested", "reboot", marks=SELDOM),
        pytest.param("requested", "destroyed", marks=SELDOM),
        pytest.param("acknowledged", "crash", marks=SELDOM),
        pytest.param("acknowledged", "poweroff", marks=SELDOM),
        pytest.param("acknowledged", "reboot", marks=SELDOM),
    ],
)
def test_guest_ends_in_the_middle(phase: str, end: str, request: pytest.FixtureRequest) -> None:
    subject: Guest = request.getfixturevalue("paused" if phase == "requested" else "stalled")
    domain = subject.domain
    thread = _when(subject, phase, _end(subject, end))
    with pytest.raises(xenpm.SuspendInterrupted) as caught:
        domain.suspend(timeout=60)
    thread.join()
    assert caught.value.phase.value == phase
    assert caught.value.reason == ENDS[end]


@pytest.mark.core
@pytest.mark.trouble
def test_guest_crashes_by_itself_in_the_middle(stalled: Guest) -> None:
    stalled.command("panic-when-hung")  # which it is, while its processes cannot be frozen
    with pytest.raises(xenpm.SuspendInterrupted, match="crash") as caught:
        stalled.domain.suspend(timeout=90)
    assert caught.value.phase is xenpm.Phase.ACKNOWLEDGED
    assert caught.value.reason is xenpm.ShutdownReason.CRASH


@pytest.mark.trouble
@pytest.mark.parametrize(
    "end", ["crash", pytest.param("poweroff", marks=SELDOM), pytest.param("reboot", marks=SELDOM)]
)
def test_guest_that_has_ended_by_itself(end: str, victim: Guest) -> None:
    domain = victim.domain
    with Xenstore() as store:
        store.watch("@releaseDomain", "end")
        victim.command(end)
        while not domain.info.shutdown:
            assert select.select([store.fileno()], [], [], DEADLINE)[0], "it did not end"
            store.check_watch()
    assert domain.shutdown_reason == ENDS[end]
    with pytest.raises(xenpm.SuspendInterrupted, match=end) as caught:
        domain.suspend()
    assert caught.value.phase is xenpm.Phase.IDLE
    assert caught.value.reason == ENDS[end]
    with pytest.raises(xenpm.NotSuspended):
        domain.resume()
    assert domain.shutdown_reason == ENDS[end]


# -- two callers


@pytest.mark.core
def test_two_callers(stalled: Guest) -> None:
    domain = stalled.domain
    second: list[BaseException] = []

    def call() -> None:
        try:
            xenpm.Domain(domain.domid).suspend(timeout=5)
        except BaseException as error:
            second.append(error)
        done = subprocess.run(
            [sys.executable, "-m", "xenpm", "suspend", "-L", stalled.name],
            capture_output=True,
            text=True,
            check=False,
        )
        second.append(RuntimeError(done.returncode, done.stderr))
        run("dmsetup", "resume", STALLED_DISK)

    with stalled.unharmed():
        thread = _when(stalled, "acknowledged", call)
        domain.suspend(timeout=60)
        thread.join()
        in_process, other_process = second
        assert isinstance(in_process, xenpm.SuspendInProgress)
        assert other_process.args[0] == 1
        assert "another process" in other_process.args[1]
        domain.resume()


# -- what is not there to be done


@pytest.mark.core
def test_second_suspend_of_a_suspended_one(victim: Guest) -> None:
    with victim.unharmed(), victim.domain.suspended():
        with pytest.raises(xenpm.AlreadySuspended):
            victim.domain.suspend()
        assert victim.state == "suspended"


@pytest.mark.core
def test_resume_of_a_running_one(victim: Guest) -> None:
    with victim.unharmed(), pytest.raises(xenpm.NotSuspended, match="running"):
        victim.domain.resume()


@pytest.mark.trouble
def test_domain_that_is_gone(victim: Guest) -> None:
    domain = victim.domain
    run("xl", "destroy", victim.name)
    for verb in (domain.suspend, domain.resume, domain.pause, domain.unpause):
        with pytest.raises(xenpm.NoSuchDomain):
            verb()
    for reference in (victim.name, domain.domid, domain.uuid):
        with pytest.raises(xenpm.NoSuchDomain):
            xenpm.Domain(reference)


def test_guest_that_says_it_cannot(victim: Guest) -> None:
    victim.store.write(f"{victim.home}/control/feature-suspend", b"0")
    try:
        with victim.unharmed(), pytest.raises(xenpm.SuspendNotSupported):
            victim.domain.suspend()
    finally:
        victim.store.remove(f"{victim.home}/control/feature-suspend")


def test_domain_0_is_refused() -> None:
    with pytest.raises(xenpm.SuspendNotSupported, match="domain 0"):
        xenpm.Domain(0).suspend()


# -- interruption in each phase, by both signals


def _command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.core
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_interrupted_while_requested(paused: Guest, signum: int, code: int) -> None:
    with RequestWatch(paused) as watch:
        process = _command("-m", "xenpm", "suspend", "-L", paused.name)
        watch.requested()
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert paused.read(CONTROL) == ""
    paused.control.unpause(paused.domain.domid)
    _suspends_again(paused)


@pytest.mark.core
def test_interrupted_while_acknowledged(stalled: Guest) -> None:
    with stalled.unharmed():
        with RequestWatch(stalled) as watch:
            process = _command("-m", "xenpm", "suspend", "-L", stalled.name)
            watch.acknowledged()
        process.send_signal(signal.SIGINT)
        run("dmsetup", "resume", STALLED_DISK)  # now it suspends, and nobody wants it any more
        process.communicate(timeout=60)
        assert process.returncode == 130
    _suspends_again(stalled)


@pytest.mark.core
def test_interrupted_while_suspended(victim: Guest) -> None:
    script = (
        "import signal, xenpm\n"
        f"with xenpm.Domain({victim.name!r}).suspended() as suspension:\n"
        "    print(suspension.domain.domid, flush=True)\n"
        "    signal.pause()\n"
    )
    with victim.unharmed():
        process = _command("-c", script)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(victim.domain.domid)
        assert victim.state == "suspended"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGINT


def test_interruption_undoes_those_that_had_succeeded(paused: Guest, guest: GuestOf) -> None:
    other = guest("bystander")
    with other.unharmed():
        process = _command("-m", "xenpm", "suspend", "-L", paused.name, other.name)
        while other.state != "suspended":
            assert process.poll() is None, "it ended before it was interrupted"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
        with pytest.raises(xenpm.NotSuspended):
            other.domain.resume()
    assert paused.read(CONTROL) == ""


def test_killed_process_frees_its_lock(paused: Guest) -> None:
    with RequestWatch(paused) as watch:
        process = _command("-m", "xenpm", "suspend", "-L", paused.name)
        watch.requested()
    with pytest.raises(xenpm.SuspendInProgress, match="another process"):
        paused.domain.suspend()
    process.kill()
    process.communicate(timeout=30)
    # what it asked for stands, as the docs say: the next caller sees it
    with pytest.raises(xenpm.SuspendInProgress, match="control/shutdown"):
        paused.domain.suspend()
    paused.store.write(f"{paused.home}/{CONTROL}", b"")
    paused.control.unpause(paused.domain.domid)
    _suspends_again(paused)


# -- who may


def _as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    def become_nobody() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=become_nobody,
        cwd="/",
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.core
@pytest.mark.parametrize("opening", ["Host()", "Domain('victim-pv')"])
def test_not_root(opening: str, victim: Guest) -> None:
    script = f"import xenpm\ntry: xenpm.{opening}\nexcept PermissionError as e: print(repr(e))"
    with victim.unharmed():
        done = _as_nobody("-c", script)
    assert done.stdout.startswith("NotPermitted("), done.stderr
    assert "root" in done.stdout


@pytest.mark.core
@pytest.mark.parametrize(
    "verb", [["list"], ["suspend", "-L", "victim-pv"], ["resume", "victim-pv"]]
)
def test_command_line_not_as_root(verb: list[str], victim: Guest) -> None:
    with victim.unharmed():
        done = _as_nobody("-m", "xenpm", *verb)
    assert done.returncode == 3
    assert "root" in done.stderr
    assert "Traceback" not in done.stderr
