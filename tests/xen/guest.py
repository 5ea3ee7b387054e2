"""What tests see of a lab guest from dom0: its counters, its console, its commands."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import xenpm
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

TROUBLE = re.compile(
    r"BUG:|Oops|lockup|rcu.*stall|blocked for more than|Call Trace|Kernel panic|general protection"
    r"|WATCHDOG|I/O error|io: error|xs: error"
)
DEADLINE = 120.0  # seconds; emulated machines are slow, and a test that waits so long has failed


def run(*command: str, check: bool = True, timeout: float = DEADLINE) -> str:
    """Run a command in dom0; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def until(holds: Callable[[], bool], what: str) -> None:
    """Look again and again, where nobody tells."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, what
        run("sleep", "0.2")


Watch = TypeVar("Watch", bound="NodeWatch")


class Guest:
    """One guest of the scene, by its name; finds it anew when it has been created anew."""

    def __init__(self, name: str, host: xenpm.Host, store: Xenstore, control: Xenctrl) -> None:
        self.name = name
        self._host = host
        self.store = store
        self.control = control
        self.log = Path(f"/var/log/xen/console/guest-{name}.log")

    @property
    def domain(self) -> xenpm.Domain:
        return self._host.domain(self.name)

    @property
    def home(self) -> str:
        return f"/local/domain/{self.domain.domid}"

    @property
    def state(self) -> str:
        return self.domain.state.value

    def read(self, path: str) -> str:
        return self.store.read(f"{self.home}/{path}").decode()

    def report(self, path: str) -> dict[str, str]:
        """One of the guest's reports, `data/counter` for example, as its fields."""
        return _fields(self.read(f"data/{path}"))

    @property
    def boot(self) -> str:
        """What changes when the guest's memory is not what it was."""
        return self.report("counter")["boot"]

    @property
    def count(self) -> int:
        return int(self.report("counter")["count"])

    @property
    def uptime_ms(self) -> int:
        return int(self.report("counter")["uptime_ms"])

    @property
    def starting_over(self) -> str:
        """What the note of its being started over says; empty when there is none."""
        try:
            return self.read("xenpm/reinit")
        except xenpm.NoSuchNode:
            return ""

    def wait(self, path: str, holds: Callable[[str], bool], what: str) -> str:
        """Wait on a watch until the value of one of the guest's nodes is as it should be."""
        full = f"{self.home}/{path}"
        return wait_node(full, holds, f"{self.name}: {what}")

    def wait_counting(self, beyond: int) -> None:
        """Wait until the guest has counted on."""
        self.wait(
            "data/counter",
            lambda text: int(text.split("count=")[1].split()[0]) > beyond,
            f"its counter stays at {beyond}",
        )

    def wait_working(self, report: str, done: str, more: int = 1) -> dict[str, str]:
        """Wait until one of the guest's numbers has risen; the report that says so."""
        least = int(self.report(report)[done]) + more
        text = self.wait(
            f"data/{report}",
            lambda text: int(_fields(text)[done]) >= least,
            f"{done} in its report {report} does not rise to {least}",
        )
        return _fields(text)

    def wait_pinging(self, pings: int = 5) -> None:
        """Wait until so many more of its pings have been answered."""
        self.wait_working("ping", "answered", pings)

    def command(self, command: str) -> None:
        """Give the guest a command; returns once it has taken it."""
        with suppress(xenpm.NoSuchNode):
            self.store.remove(f"{self.home}/data/command-done")
        self.store.write(f"{self.home}/data/command", command.encode())
        answer = self.wait("data/command-done", bool, f"{command} not taken")
        assert answer == f"{command}: ok"

    @property
    def free_kib(self) -> int:
        """How much memory its kernel has left."""
        with LogWatch(self.log) as log:
            self.command("show /proc/meminfo")
            found = re.search(r"MemFree: +([0-9]+) kB", log.wait("show /proc/meminfo: ok"))
        assert found
        return int(found[1])

    def create(self) -> None:
        """Make it anew, after a test has destroyed it; returns once it counts."""
        while self.name in [domain.name for domain in self._host.domains()]:
            run("xl", "destroy", self.name, check=False)
        run("xl", "create", f"/root/guests/{self.name}.cfg")
        self.wait_counting(0)

    @contextmanager
    def unharmed(self, lost_kib: int = 0) -> Iterator[None]:
        """Within: whatever happens, it must be the same guest afterwards, running on.

        Args:
            lost_kib: how much of its memory Xen is known to take for good.
        """
        boot, count, memory = self.boot, self.count, self.domain.info.memory_kib
        yield
        info = self.domain.info
        assert info.state is xenpm.DomainState.RUNNING
        assert info.memory_kib == memory - lost_kib, f"{info.memory_kib} KiB, and had {memory}"
        self.wait_counting(max(count, self.count))
        assert self.boot == boot


def _fields(text: str) -> dict[str, str]:
    return dict(field.split("=", 1) for field in text.split())


def wait_node(path: str, holds: Callable[[str], bool], what: str) -> str:
    """Wait on a watch until a node's value is as it should be."""
    with NodeWatch(path) as node:
        return node.wait(lambda value, _: holds(value), what)


class NodeWatch:
    """Sees every change of a node from the moment that it is made."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._store = Xenstore()
        self._store.watch(path, "node")
        self._store.read("/")  # the watch's first event came before this answer
        while self._store.check_watch() is not None:
            pass

    def __enter__(self: Watch) -> Watch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._store.close()

    def wait(self, holds: Callable[[str, int], bool], what: str) -> str:
        """Wait until `holds(value, number of changes seen)`."""
        until = time.monotonic() + DEADLINE
        changes = 0
        while True:
            while self._store.check_watch() is not None:
                changes += 1
            try:
                value = self._store.read(self._path).decode()
                if holds(value, changes):
                    return value
            except xenpm.NoSuchNode:
                value = "(no such node)"
            left = until - time.monotonic()
            assert left > 0, f"{what}; {self._path} is {value!r}"
            select.select([self._store.fileno()], [], [], left)


class LogWatch:
    """Sees what is appended to a file from the moment that it is made, by inotify(7)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        begin = f"--bytes=+{path.stat().st_size + 1}"
        self._tail = subprocess.Popen(
            ["tail", "--follow", begin, str(path)], stdout=subprocess.PIPE
        )

    def __enter__(self) -> LogWatch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._tail.kill()
        self._tail.communicate()

    def wait(self, text: str) -> str:
        """Wait until a line with that text has come; what has come until then."""
        assert self._tail.stdout is not None
        seen = ""
        until = time.monotonic() + DEADLINE
        while text not in seen:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._tail.stdout], [], [], max(0, left))
            assert ready, f"{text!r} did not come in {self._path}"
            seen += os.read(self._tail.stdout.fileno(), 65536).decode("utf-8", "replace")
        return seen


class RequestWatch(NodeWatch):
    """Sees how far the suspend conversation with a guest has come."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(f"{guest.home}/control/shutdown")

    def requested(self) -> None:
        self.wait(lambda value, _: value == "suspend", "no request came")

    def acknowledged(self) -> None:
        # both changes may have come before the first look
        self.wait(lambda value, changes: changes >= 2 and value == "", "not acknowledged")


class Resources:
    """What this process holds: open files, threads, memory."""

    def __init__(self) -> None:
        listed = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        self.descriptors = sorted(os.readlink(fd) for fd in listed if os.path.exists(fd))
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        self.threads = int(status["Threads"])
        self.memory_kib = int(status["VmRSS"].split()[0])

    def assert_as(self, before: Resources) -> None:
        """Assert that nothing was leaked since `before`."""
        assert self.descriptors == before.descriptors
        assert self.threads == before.threads
        # pages come and go with the allocator, but a leak of 64 bytes a cycle would show
        assert self.memory_kib <= before.memory_kib + 256
