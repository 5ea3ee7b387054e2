"""All guests of a host go down and come back, without the machine's sleep between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import xenpm
from xenpm.system import RUN_DIRECTORY, FileLocks

from .guest import Guest, run
from .saving import going_on, none_of

SCENE = "drivers"
GuestOf = Callable[[str], Guest]
NAMES = ("net", "store", "disk", "wire")
SELDOM = [pytest.mark.soak]  # all but one of the many
JOURNAL = RUN_DIRECTORY / "journal"

# A process that is killed when it is about to note the nth thing, or has just noted it.
KILLED = """
import os, signal, sys
import xenpm
from xenpm.journal import FileJournal

verb, when, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
add = FileJournal.add

def killed(self, entry):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, entry)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

FileJournal.add = killed
with xenpm.Host() as host:
    getattr(host, verb)()
"""


@pytest.fixture
def guests(guest: GuestOf) -> list[Guest]:
    return [guest(name) for name in NAMES]


@contextmanager
def all_unharmed(guests: list[Guest]) -> Iterator[None]:
    """Within: whatever happens, all go on afterwards, and their work too."""
    with ExitStack() as stack:
        for each in guests:
            stack.enter_context(each.unharmed())
        yield
    for each in guests:
        each.wait_pinging(2)
    disk = guests[NAMES.index("disk")]
    assert disk.wait_working("io", "verified")["errors"] == "0"
    assert not JOURNAL.exists()


@pytest.fixture(autouse=True)
def _nobody_stays_down(host: xenpm.Host) -> Iterator[None]:
    """A test that failed in the middle costs no other."""
    yield
    host.resume_domains()


@contextmanager
def somebody_at(subject: Guest) -> Iterator[None]:
    """Within: another process is at work with that guest, so it cannot be suspended."""
    locks = FileLocks()
    assert locks.acquire(subject.domain.domid)
    yield
    locks.close()


def problems(report: xenpm.Report) -> list[str]:
    """All but that the e1000e came back with MSI, as it does at times: that is right to be told."""
    return [each for each in report.problems if "lost MSI-X" not in each]


def states(guests: list[Guest]) -> dict[str, str]:
    return {each.name: each.state for each in guests}


def test_plan(host: xenpm.Host) -> None:
    plan = host.plan()
    assert [[ref.name for ref in step] for step in plan.steps] == [
        ["disk", "wire"], ["store"], ["net"],
    ]  # fmt: skip
    assert {each.policy for each in plan.entries} == {xenpm.Policy.SUSPEND}


def test_two_halves(host: xenpm.Host, guests: list[Guest]) -> None:
    with all_unharmed(guests):
        report = host.suspend_domains()
        assert set(states(guests).values()) == {"suspended"}
        assert problems(report) == []
        ends = {
            row: next(s.ended_ns for s in report.timeline.of_row(row) if s.what == "suspend")
            for row in report.timeline.rows
        }
        rows = {name: next(row for row in ends if row.startswith(f"{name} ")) for name in NAMES}
        assert ends[rows["disk"]] < ends[rows["store"]] < ends[rows["net"]]
        with pytest.raises(xenpm.JournalError, match="resume-domains"):
            host.suspend_domains()
        with pytest.raises(xenpm.JournalError, match="on purpose"):
            host.recover()
        again = host.resume_domains()
        assert again is not None
        assert problems(again) == []
    assert host.resume_domains() is None


@pytest.mark.parametrize("place", ["disk", "store", "net"])
def test_failure_at_any_place_undoes_all(place: str, host: xenpm.Host, guests: list[Guest]) -> None:
    """The first, a middle and the last of the order, of which the last is the driver domain."""
    rule = xenpm.Rule(on_failure=xenpm.OnFailure.UNDO)
    with all_unharmed(guests), somebody_at(guests[NAMES.index(place)]):
        with pytest.raises(xenpm.HostSuspendError, match=place) as caught:
            host.suspend_domains(rules={host.domain(place): rule})
        assert [ref.name for ref in caught.value.failures] == [place]
        assert caught.value.rolled_back


@pytest.mark.soak
def test_guest_is_saved(host: xenpm.Host, guests: list[Guest]) -> None:
    disk = guests[NAMES.index("disk")]
    rules = {host.domain("disk"): xenpm.Rule(xenpm.Policy.SAVE)}
    with going_on(disk), ExitStack() as unharmed:
        for each in guests:
            if each is not disk:
                unharmed.enter_context(each.unharmed())
        report = host.suspend_domains(rules=rules)
        assert problems(report) == []
        assert none_of("disk")
        again = host.resume_domains()
        assert again is not None
        assert problems(again) == []


def test_guest_is_paused_instead(host: xenpm.Host, guests: list[Guest], guest: GuestOf) -> None:
    wire = guest("wire")
    with all_unharmed(guests):
        with somebody_at(wire):
            report = host.suspend_domains()
        assert "was paused, for it could not be suspended" in report.problems[0]
        assert wire.domain.info.paused
        again = host.resume_domains()
        assert again is not None
        assert again.domains[wire.domain.domid].outcome is xenpm.Outcome.RUNNING


# asked and down of each guest, then that all are down; then up of each
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("verb", "nth"),
    [
        *(pytest.param("suspend_domains", n, marks=SELDOM[n == 6 :]) for n in range(1, 10)),
        *(pytest.param("resume_domains", n, marks=SELDOM[n == 2 :]) for n in range(1, 5)),
    ],
)
def test_killed_at_every_step_and_recovered(
    verb: str, nth: int, when: str, host: xenpm.Host, guests: list[Guest]
) -> None:
    with all_unharmed(guests):
        if verb == "resume_domains":
            host.suspend_domains()
        done = subprocess.run(
            [sys.executable, "-c", KILLED, verb, when, str(nth)], check=False, timeout=300
        )
        assert done.returncode == -signal.SIGKILL, "it did not come so far"
        with pytest.raises(xenpm.JournalError, match="guests are down already"):
            host.suspend_domains()
        on_purpose = verb == "resume_domains" or (nth, when) == (9, "after")
        report = host.resume_domains() if on_purpose else host.recover()
        assert report is not None
        assert problems(report) == []
        assert host.recover() is None


def test_killed_when_one_was_to_be_paused_instead(
    host: xenpm.Host, guests: list[Guest], guest: GuestOf
) -> None:
    with all_unharmed(guests):
        with somebody_at(guest("wire")):  # noted: disk asked, wire asked, wire to be paused
            done = subprocess.run(
                [sys.executable, "-c", KILLED, "suspend_domains", "after", "3"],
                check=False,
                timeout=300,
            )
        assert done.returncode == -signal.SIGKILL
        report = host.recover()
        assert report is not None
        assert problems(report) == []


def test_interrupted(host: xenpm.Host, guests: list[Guest]) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    for delay in (0.05, 0.2, 0.4):
        with all_unharmed(guests):
            timer = threading.Timer(delay, interrupt)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                host.suspend_domains()
            timer.join()


def test_two_orchestrators(guests: list[Guest]) -> None:
    command = [sys.executable, "-m", "xenpm", "host", "suspend-domains", "--json"]
    with all_unharmed(guests):
        both = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [each.communicate(timeout=300)[1] for each in both]
        codes = [each.returncode for each in both]
        assert sorted(codes) == [0, 1], said
        assert set(states(guests).values()) == {"suspended"}
        run(sys.executable, "-m", "xenpm", "host", "resume-domains")


def test_journal_on_a_full_disk(guests: list[Guest]) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=8k", "none", str(RUN_DIRECTORY))
    try:
        with all_unharmed(guests), xenpm.Host() as fresh:
            run("dd", "if=/dev/zero", f"of={RUN_DIRECTORY}/filler", "bs=4k", check=False)
            with pytest.raises(xenpm.JournalError, match=r"No space left .*nothing was touched"):
                fresh.suspend_domains()
    finally:
        run("umount", str(RUN_DIRECTORY))


def test_xenstored_is_slow(host: xenpm.Host, guests: list[Guest]) -> None:
    (pid,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/comm")
        if path.read_text().strip() in ("oxenstored", "xenstored")
    ]

    def slow() -> None:
        for _ in range(5):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.4)  # how slow it is
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)

    with all_unharmed(guests):
        thread = threading.Thread(target=slow)
        thread.start()
        report = host.suspend_domains()
        thread.join()
        assert report.problems == []
        assert set(states(guests).values()) == {"suspended"}
        host.resume_domains()


@pytest.mark.soak
def test_hook_programs(host: xenpm.Host, guests: list[Guest], tmp_path: Path) -> None:
    """A real program that hangs is ended, and the guests go down and come back all the same."""
    directory = Path("/etc/xenpm/hooks.d")
    directory.mkdir(parents=True, exist_ok=True)
    heard = tmp_path / "heard"
    hooks = {
        "10-hear": f'#!/bin/sh\necho "$1 $XENPM_DOMAIN" >> {heard}\n',
        "20-hang": '#!/bin/sh\n[ "$1" != host-pre ] || exec sleep 1000\n',
    }
    for name, text in hooks.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    try:
        with all_unharmed(guests):
            settings = xenpm.Settings(hook_timeout=10.0)  # the others need some time, too
            report = host.suspend_domains(settings=settings)
            (problem,) = report.problems
            assert "20-hang (host-pre): not done at its deadline, and ended" in problem
            again = host.resume_domains(settings=settings)
            assert again is not None
            assert problems(again) == []
    finally:
        for name in hooks:
            (directory / name).unlink()
    lines = heard.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("host-pre ", "host-post ")
    for name in NAMES:
        assert f"domain-pre {name}" in lines
        assert f"domain-post {name}" in lines


def test_disk_fills_up_in_the_middle(guests: list[Guest]) -> None:
    """What cannot be noted is not done: the guests that were down already come back."""
    run("mount", "-t", "tmpfs", "-o", "size=16k", "none", str(RUN_DIRECTORY))

    def fill(event: xenpm.HookEvent) -> None:
        if (
            event.point is xenpm.HookPoint.DOMAIN_PRE
            and event.domain
            and event.domain.name == "net"
        ):
            head, tail = '{"event": "padding", "of": "', '"}\n'
            left = -(JOURNAL.stat().st_size + len(head + tail)) % 4096
            with JOURNAL.open("a") as journal:  # up to the end of a page
                journal.write(head + "x" * left + tail)
            run("dd", "if=/dev/zero", f"of={RUN_DIRECTORY}/filler", "bs=4k", check=False)

    try:
        with all_unharmed(guests), xenpm.Host() as fresh:
            with pytest.raises(xenpm.HostSuspendError, match="No space left") as caught:
                fresh.suspend_domains(hooks=[fill])
            assert caught.value.rolled_back
            outcomes = {r.domain.name: r.outcome for r in caught.value.report.domains.values()}
            assert outcomes["disk"] is xenpm.Outcome.RUNNING
            assert outcomes["net"] is xenpm.Outcome.UNTOUCHED
    finally:
        run("umount", str(RUN_DIRECTORY))


@pytest.mark.trouble
def test_guest_that_dies_while_all_are_down(host: xenpm.Host, guests: list[Guest]) -> None:
    """It is named, all others come back, and nothing is left to recover."""
    wire = guests.pop(NAMES.index("wire"))
    try:
        with all_unharmed(guests):
            host.suspend_domains()
            run("xl", "destroy", "wire")
            report = host.resume_domains()
            assert report is not None
            outcomes = {each.domain.name: each.outcome for each in report.domains.values()}
            assert outcomes.pop("wire") is xenpm.Outcome.GONE
            assert set(outcomes.values()) == {xenpm.Outcome.RUNNING}
            assert "wire" in report.to_text()
            assert any("wire" in each and "gone" in each for each in report.problems)
    finally:
        wire.create()
