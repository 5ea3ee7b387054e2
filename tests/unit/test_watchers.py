"""The processes of xl that look after domains: on the fake host, and real processes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest

import xenpm
from xenpm import DomainType, ShutdownReason
from xenpm.aio import Host as AsyncHost
from xenpm.testing import MS, SECOND, FakeGuest, FakeXen
from xenpm.watchers import XlWatchers

from .checks import Killed, assert_nothing_left, outcome_of

# -- on the fake host


@pytest.fixture(params=[DomainType.PV, DomainType.PVH, DomainType.HVM])
def web(xen: FakeXen, request: pytest.FixtureRequest) -> FakeGuest:
    return xen.add_guest("web", type=request.param)


def suspend(host: xenpm.Host, timeout: float = 1.0) -> object:
    domain = host.domain("web")
    return outcome_of(lambda: domain.suspend(timeout=timeout, late_timeout=2.0))


def assert_looked_after(guest: FakeGuest) -> None:
    guest.xen.settle()
    assert guest.running
    assert guest.watched
    assert not guest.xen.held
    assert_nothing_left(guest.xen)


def test_held_while_suspended_and_no_longer(web: FakeGuest, host: xenpm.Host) -> None:
    domain = host.domain("web")
    for _ in range(3):
        domain.suspend()
        assert web.watcher_held
        domain.resume()
        assert_looked_after(web)


def test_not_held_where_xl_knows() -> None:
    xen = FakeXen(version=(4, 20))
    guest = xen.add_guest("web")
    with xenpm.Host(ports=xen.ports()) as host:
        host.domain("web").suspend()
        assert not xen.held
        host.domain("web").resume()
    assert_looked_after(guest)


def test_held_before_the_request(xen: FakeXen, host: xenpm.Host) -> None:
    """And nothing is asked before the process stands."""
    guest = xen.add_guest("web", acknowledge_ns=0, suspend_ns=0)
    xen.stopping_ns = 30 * MS
    assert isinstance(suspend(host), xenpm.Suspension)
    assert guest.watched
    assert xen.now_ns >= 30 * MS


def test_process_that_does_not_stop(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The guest is suspended all the same."""
    guest = xen.add_guest("web")
    xen.stopping_ns = 3600 * SECOND
    assert isinstance(suspend(host, timeout=5.0), xenpm.Suspension)
    assert guest.suspended
    assert "does not stop" in caplog.text


def test_cancelled_while_it_is_being_stopped(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    xen.stopping_ns = 500 * MS
    xen.after(100 * MS, lambda: os.kill(os.getpid(), signal.SIGINT))
    domain = host.domain("web")
    with pytest.raises(KeyboardInterrupt):
        domain.suspend()
    assert xen.calls["write"] == 0
    assert_looked_after(guest)


@pytest.mark.parametrize(
    "script",
    [
        {"acknowledge_ns": None},  # the request is taken back
        {"suspend_ns": None},  # taken, and never suspends
        {"suspend_ns": 2 * SECOND},  # late: resumed
    ],
)
def test_let_go_when_it_fails(
    xen: FakeXen, host: xenpm.Host, script: dict[str, int | None]
) -> None:
    guest = xen.add_guest("web", **script)
    assert isinstance(suspend(host), xenpm.SuspendError)
    assert_looked_after(guest)


def test_let_go_when_refused_after_a_kill(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", feature_suspend=b"0")
    xen.held[guest.domid, guest.uuid.bytes] = 0
    assert isinstance(suspend(host), xenpm.SuspendNotSupported)
    assert_looked_after(guest)


@pytest.mark.parametrize("reason", [ShutdownReason.CRASH, ShutdownReason.REBOOT])
def test_let_go_when_it_ends_instead(
    xen: FakeXen, host: xenpm.Host, reason: ShutdownReason
) -> None:
    xen.add_guest("web", shuts_down_for=reason)
    assert isinstance(suspend(host), xenpm.SuspendInterrupted)
    assert not xen.held


@pytest.mark.parametrize("call", ["transaction_start", "transaction_end", "read", "domain_info"])
@pytest.mark.parametrize("nth", range(1, 12))
def test_let_go_when_a_call_fails(xen: FakeXen, host: xenpm.Host, call: str, nth: int) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    xen.fail(call, errno.EIO, nth=nth)
    if isinstance(outcome_of(domain.suspend), xenpm.Suspension):
        assert guest.watcher_held
        xen.stop_failing()
        domain.resume()
    assert guest.running
    assert guest.watched
    assert not xen.held


def test_still_held_when_it_cannot_be_resumed(web: FakeGuest, host: xenpm.Host) -> None:
    domain = host.domain("web")
    domain.suspend()
    web.xen.fail("resume", errno.EIO)
    assert isinstance(outcome_of(domain.resume), xenpm.ResumeError)
    assert web.watcher_held
    domain.resume()
    assert_looked_after(web)


def test_started_over(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", type=DomainType.PVH)
    domain = host.domain("web")
    domain.suspend()
    domain.resume(cooperative=False)
    assert_looked_after(guest)


def test_holding_that_fails_keeps_nobody_awake(
    xen: FakeXen, host: xenpm.Host, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise xenpm.XenError("no space is left")

    guest = xen.add_guest("web")
    xen.before("hold", fail)
    xen.before("let_go", fail)
    domain = host.domain("web")
    domain.suspend()
    domain.resume()
    assert guest.running
    assert "will not look after it any more: no space" in caplog.text
    assert "unknown: no space" in caplog.text


def test_left_alone_while_another_process_is_at_it(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=100 * MS)

    def others() -> None:
        with xenpm.Host(ports=xen.ports()) as other:
            domain = other.domain("web")
            assert isinstance(outcome_of(domain.suspend), xenpm.SuspendInProgress)
            assert isinstance(outcome_of(domain.resume), xenpm.ResumeError)
        assert guest.watcher_held

    xen.after(50 * MS, others)
    host.domain("web").suspend()
    host.domain("web").resume()
    assert_looked_after(guest)


def test_suspended_by_somebody_else(xen: FakeXen, host: xenpm.Host) -> None:
    """Whoever saves it resumes it without us, or destroys it."""
    guest = xen.add_guest("web", acknowledge_ns=None)
    xen.after(50 * MS, guest.suspend)
    assert isinstance(suspend(host), xenpm.SuspendInProgress)
    assert guest.suspended
    assert not xen.held


@pytest.mark.parametrize("call", ["transaction_start", "check_watch", "let_go"])
def test_killed(xen: FakeXen, call: str) -> None:
    """Killed before the request, after it, and after the resume: the next one makes up for it."""
    guest = xen.add_guest("web")
    ports = xen.ports()
    killed = xenpm.Host(ports=ports)

    def kill() -> None:
        killed._connection._engine._tasks.clear()
        raise Killed

    def cycle() -> None:
        domain = killed.domain("web")
        xen.before(call, kill)
        domain.suspend()
        domain.resume()

    with pytest.raises(Killed):
        cycle()
    for part in (ports.store, ports.hypervisor, ports.locks):
        part.close()
    xen.settle()
    assert guest.watcher_held
    with xenpm.Host(ports=xen.ports()) as other:
        assert guest.watcher_held == guest.suspended
        if guest.suspended:
            other.domain("web").resume()
    assert guest.watched
    assert not xen.held


def test_destroyed_while_it_is_suspended(xen: FakeXen, host: xenpm.Host) -> None:
    guest, other = xen.add_guest("web"), xen.add_guest("other")
    domains = [host.domain("web"), host.domain("other")]
    host.suspend_each(domains)
    guest.destroy()
    xen.settle()
    xen.add_guest("anew", domid=guest.domid, uuid=UUID(int=7))
    assert isinstance(outcome_of(domains[0].resume), xenpm.NoSuchDomain)
    assert list(xen.held) == [(other.domid, other.uuid.bytes)]


def test_destroyed_and_found_by_the_next(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    host.domain("web").suspend()
    guest.destroy()
    xen.settle()
    with xenpm.Host(ports=xen.ports()):
        assert not xen.held


def test_found_by_a_program_that_lives_long(xen: FakeXen, host: xenpm.Host) -> None:
    for name in ("web", "db"):
        xen.add_guest(name)
    host.domain("web").suspend()
    xen.guests[1].destroy()
    xen.settle()
    assert xen.held
    host.domain("db").suspend()
    assert [domid for domid, _ in xen.held] == [2]
    host.domain("db").resume()
    assert not xen.held


def test_found_by_asyncio_that_lives_long(xen: FakeXen) -> None:
    async def work() -> None:
        async with AsyncHost(ports=xen.ports()) as host:
            await (await host.domain("web")).suspend()
            xen.guests[1].destroy()
            xen.settle()
            assert xen.held
            async with (await host.domain("db")).suspended():
                assert [domid for domid, _ in xen.held] == [2]

    for name in ("web", "db"):
        xen.add_guest(name)
    asyncio.run(work())
    assert not xen.held


def test_nobody_is_disturbed_who_resumes(xen: FakeXen, host: xenpm.Host) -> None:
    """Who only looks for what is forgotten takes no lock that another process needs."""
    xen.add_guest("web")
    host.domain("web").suspend()
    locks = xen.calls["acquire"]
    with xenpm.Host(ports=xen.ports()):
        pass
    assert xen.calls["acquire"] == locks
    host.domain("web").resume()


def test_resumed_by_somebody_else(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    host.domain("web").suspend()
    guest.resume(cooperative=True)
    assert isinstance(outcome_of(host.domain("web").resume), xenpm.NotSuspended)
    assert_looked_after(guest)


def test_sleep_of_the_host(xen: FakeXen, host: xenpm.Host) -> None:
    guests = [xen.add_guest(f"g{number}") for number in range(3)]
    host.suspend(settings=xenpm.Settings())
    for guest in guests:
        assert_looked_after(guest)


# -- real processes

HANDLE = bytes(range(16))
OTHER = bytes(16)
DEADLINE = 60.0


class Xl:
    """A process that is called xl and has told which domain it waits for."""

    def __init__(
        self, directory: Path, domid: int, name: str = "xl", *, daemon: bool = True
    ) -> None:
        program = directory / name
        if not program.exists():
            shutil.copy("/bin/sleep", program)
        self.log = directory / f"xl-{domid}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([program, "1000"], stdout=log, start_new_session=daemon)
        self.tells(domid)

    def tells(self, domid: int) -> None:
        pid = self.process.pid
        line = f"Waiting for domain a (domid 9) name (domid {domid}) to die [pid {pid}]\n"
        with self.log.open("a") as log:
            log.write(line)

    @property
    def state(self) -> str:
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        return text.rpartition(") ")[2][0]

    def wait(self, states: str) -> None:
        until = time.monotonic() + DEADLINE
        while self.state not in states:
            assert time.monotonic() < until, f"it is {self.state}"
            os.sched_yield()


@pytest.fixture
def xl(tmp_path: Path) -> Iterator[Callable[..., Xl]]:
    with ExitStack() as started:

        def start(domid: int, name: str = "xl", *, daemon: bool = True) -> Xl:
            made = Xl(tmp_path, domid, name, daemon=daemon)
            started.callback(made.process.wait)
            started.callback(made.process.kill)
            made.wait("S")
            return made

        yield start


@pytest.fixture
def watchers(tmp_path: Path) -> XlWatchers:
    return XlWatchers(tmp_path / "watchers", needed=True)


def hold(watchers: XlWatchers, domid: int) -> None:
    until = time.monotonic() + DEADLINE
    while not watchers.hold(domid, HANDLE):
        assert time.monotonic() < until, "it does not stop"
        os.sched_yield()


def test_the_right_one_is_held(xl: Callable[..., Xl], watchers: XlWatchers) -> None:
    one, other, foreign = xl(5), xl(6), xl(5, "other")
    hold(watchers, 5)
    assert (one.state, other.state, foreign.state) == ("T", "S", "S")
    assert watchers.held() == [(5, HANDLE)]
    watchers.let_go(5, OTHER)
    watchers.let_go(6, HANDLE)
    assert one.state == "T"
    watchers.let_go(5, HANDLE)
    one.wait("S")
    assert watchers.held() == []


def test_held_by_one_process_and_let_go_by_another(
    tmp_path: Path, xl: Callable[..., Xl], watchers: XlWatchers
) -> None:
    one = xl(5)
    hold(watchers, 5)
    again = XlWatchers(tmp_path / "watchers", needed=True)
    assert again.held() == [(5, HANDLE)]
    assert again.hold(5, HANDLE)
    again.let_go(5, HANDLE)
    one.wait("S")


def test_the_last_domain_that_it_waits_for_counts(
    xl: Callable[..., Xl], watchers: XlWatchers
) -> None:
    """After a reboot it is another one; the log may be long, and its chunks cut anywhere."""
    one = xl(5)
    one.tells(7)
    assert watchers.hold(5, HANDLE)
    with one.log.open("a") as log:
        for _ in range(4100):
            log.write("a line that says nothing of interest\n")
    assert watchers.hold(5, HANDLE)
    assert one.state == "S"
    for length in range(1 << 16, (1 << 16) + 80, 7):
        one.log.write_text(f"(domid 7) to die [pid {one.process.pid}]{'x' * (length - 40)}")
        assert watchers._domain_of(one.process.pid) == 7
    hold(watchers, 7)
    assert one.state == "T"


def test_what_is_no_watcher(tmp_path: Path, xl: Callable[..., Xl], watchers: XlWatchers) -> None:
    """It tells nothing, or tells it to a pipe, or belongs to a shell."""
    xl(5).log.write_text("")
    xl(5, daemon=False)
    program = tmp_path / "xl"
    with subprocess.Popen(
        [program, "1000"], stdout=subprocess.PIPE, start_new_session=True
    ) as piped:
        held = watchers.hold(5, HANDLE), watchers.held()
        piped.kill()
    assert held == (True, [])


def test_one_that_somebody_else_has_stopped(xl: Callable[..., Xl], watchers: XlWatchers) -> None:
    one = xl(5)
    one.process.send_signal(signal.SIGSTOP)
    one.wait("T")
    assert watchers.hold(5, HANDLE)
    assert watchers.held() == []
    watchers.let_go(5, HANDLE)
    assert one.state == "T"


def test_one_that_has_ended(xl: Callable[..., Xl], watchers: XlWatchers) -> None:
    one = xl(5)
    hold(watchers, 5)
    one.process.kill()
    one.process.wait()
    assert watchers.hold(5, HANDLE)
    watchers.let_go(5, HANDLE)
    assert watchers.held() == []


def test_another_process_of_its_number(
    tmp_path: Path, xl: Callable[..., Xl], watchers: XlWatchers
) -> None:
    one = xl(5)
    one.process.send_signal(signal.SIGSTOP)
    one.wait("T")
    (tmp_path / "watchers").mkdir()
    (tmp_path / "watchers" / f"5.{HANDLE.hex()}.{one.process.pid}.1").touch()
    watchers.let_go(5, HANDLE)
    assert one.state == "T"
    assert watchers.held() == []


def test_a_release_that_needs_nothing(tmp_path: Path, xl: Callable[..., Xl]) -> None:
    one = xl(5)
    assert XlWatchers(tmp_path / "watchers", needed=False).hold(5, HANDLE)
    assert one.state == "S"


def test_directory_that_cannot_be_made(tmp_path: Path, xl: Callable[..., Xl]) -> None:
    one = xl(5)
    (tmp_path / "file").touch()
    watchers = XlWatchers(tmp_path / "file" / "watchers", needed=True)
    with pytest.raises(xenpm.XenError, match="domain 5 cannot be held"):
        watchers.hold(5, HANDLE)
    assert one.state == "S"
    with pytest.raises(xenpm.XenError, match="unknown"):
        watchers.held()
    with pytest.raises(xenpm.XenError, match="still held"):
        watchers.let_go(5, HANDLE)


# -- who saves a domain


def test_domain_that_somebody_else_saves(xen: FakeXen, host: xenpm.Host) -> None:
    """Neither before it is suspended nor after; and nothing is asked of it."""
    guest = xen.add_guest("web")
    xen.savers[guest.domid] = "xl save (process 5)"
    found = suspend(host)
    assert isinstance(found, xenpm.SuspendInProgress)
    assert "by xl save (process 5)" in str(found)
    guest.suspend()
    assert isinstance(suspend(host), xenpm.SuspendInProgress)
    domain = host.domain("web")
    for cooperative in (None, False):
        with pytest.raises(xenpm.ResumeError, match=r"migrated .* by xl save .* Nothing was"):
            domain.resume(cooperative=cooperative)
    assert guest.suspended
    assert xen.calls["write"] == 0
    xen.savers.clear()
    domain.resume()
    assert guest.running


@pytest.mark.parametrize(
    ("name", "words", "found"),
    [
        ("xl", "save web file", "xl save"),
        ("xl", "-v save -c web file", "xl save"),
        ("xl", "migrate 5 host", "xl migrate"),
        ("xl", "sav web file", "xl sav"),  # it takes unambiguous beginnings
        ("xl", "save 6 file", ""),
        ("xl", "create web", ""),
        ("xl", "list", ""),
        ("other", "save web file", ""),
        ("libxl-save-helper", "--save-domain 8 -1 5 0 6 0", "libxl-save-helper"),
        ("libxl-save-helper", "--save-domain 5 5 6 0 6 0", ""),
        ("libxl-save-helper", "--restore-domain 8 -1 5 0 6 0", ""),
    ],
)
def test_processes_that_save(tmp_path: Path, name: str, words: str, found: str) -> None:
    process = tmp_path / "proc" / "123"
    process.mkdir(parents=True)
    (process / "comm").write_text(f"{name[:15]}\n")
    (process / "cmdline").write_text("\0".join([f"/usr/bin/{name}", *words.split(), ""]))
    (tmp_path / "proc" / "124").mkdir()  # it has just ended
    watchers = XlWatchers(tmp_path, needed=True, processes=tmp_path / "proc")
    for called in ("web", "web--migratedaway"):
        assert watchers.saver(5, called) == (f"{found} (process 123)" if found else "")


@pytest.mark.parametrize(
    ("second", "asked"),
    [
        ("2 (kthreadd) S 0 0 0 0 -1 2129984", False),
        ("2 (sh) S 1 2 2 0 -1 4194304", True),  # in a container
        ("", True),
    ],
)
def test_processes_of_the_kernel_are_not_asked(tmp_path: Path, second: str, asked: bool) -> None:
    for number in (2, 123, 124):
        (tmp_path / f"{number}/task/{number}").mkdir(parents=True)
        (tmp_path / f"{number}/comm").write_text("xl\n" if number == 123 else "kworker/0:0\n")
        (tmp_path / f"{number}/cmdline").write_text("xl\0save\0web\0file\0")
    if second:
        (tmp_path / "2/stat").write_text(second)
    (tmp_path / "2/task/2/children").write_text("123 124 ")
    watchers = XlWatchers(tmp_path, needed=True, processes=tmp_path)
    assert bool(watchers.saver(5, "web")) == asked


def test_processes_that_cannot_be_seen(tmp_path: Path) -> None:
    watchers = XlWatchers(tmp_path, needed=True, processes=tmp_path / "none")
    with pytest.raises(xenpm.XenError, match="is unknown"):
        watchers.saver(5, "web")
