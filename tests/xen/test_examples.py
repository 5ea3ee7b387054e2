"""The programs of the manual, docs/examples, as people run them.

Those that put the machine to sleep are in tests/host.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from .guest import DEADLINE, Guest

SCENE = "trio"
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
LIST = f"{sys.executable} -m xenpm list --json > seen"


@pytest.fixture(autouse=True)
def guests(
    guest: Callable[[str], Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Guest]]:
    """All of the scene, none of which may come to harm."""
    monkeypatch.chdir(tmp_path)
    all_ = [guest(name) for name in ("pv1", "pv4", "pvh2")]
    with ExitStack() as stack:
        for each in all_:
            stack.enter_context(each.unharmed())
        yield all_


class Program:
    """An example at work; told to end, it gets time for that, but not for ever."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.send_signal = process.send_signal

    def line(self) -> str:
        """Its next line."""
        stdout = self.process.stdout
        assert stdout is not None
        assert select.select([stdout], [], [], DEADLINE)[0], "it says no more"
        line = stdout.readline().decode()
        assert line, f"it has ended: {self.end()}"
        return line.rstrip()

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: its status, the rest of its output, and its errors."""
        output, errors = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, output.decode(), errors.decode()


@contextmanager
def start(name: str, *arguments: str) -> Iterator[Program]:
    command = [sys.executable, "-u", str(EXAMPLES / name), *arguments]
    # unbuffered, for select() does not see what waits in a buffer
    with subprocess.Popen(
        command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        program = Program(process)
        try:
            yield program
        finally:
            # a failed assertion must not wait for a program that nobody ends
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    program.end()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(name: str, *arguments: str) -> tuple[int, str, str]:
    with start(name, *arguments) as program:
        return program.end()


def seen() -> dict[str, str]:
    """The guests' states as the command saw them that an example has run."""
    rows: list[dict[str, Any]] = json.loads(Path("seen").read_text())
    return {row["name"]: row["state"] for row in rows if row["domid"]}


def test_all_but_one() -> None:
    status, _, errors = run("all_but_one.py", "pv4", "sh", "-c", f"{LIST}; exit 7")
    assert (status, errors) == (7, "")
    assert seen() == {"pv1": "suspended", "pv4": "running", "pvh2": "suspended"}


@pytest.mark.soak
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_all_but_one_is_told_to_end(signum: signal.Signals, guests: list[Guest]) -> None:
    with start("all_but_one.py", "pv4", "sh", "-c", "echo asleep; exec sleep 600") as program:
        while program.line() != "asleep":
            pass
        assert [each.state for each in guests] == ["suspended", "running", "suspended"]
        program.send_signal(signum)
        status, _, errors = program.end()
    assert status == (143 if signum is signal.SIGTERM else -signal.SIGINT), errors


@pytest.mark.soak
def test_disk_snapshot() -> None:
    status, _, errors = run("disk_snapshot.py", "pv1", "sh", "-c", LIST)
    assert (status, errors) == (0, "")
    assert seen()["pv1"] == "suspended"


@pytest.mark.soak
def test_disk_snapshot_that_fails() -> None:
    status, _, errors = run("disk_snapshot.py", "pvh2", "false")
    assert status == 1
    assert errors.startswith("no snapshot: ")


@pytest.mark.soak
def test_park_idle(guests: list[Guest]) -> None:
    with start("park_idle.py", "3", "1") as program:
        parked = sorted(program.line() for _ in guests)
        assert parked == [f"parked: {each.name}" for each in guests]
        assert {each.state for each in guests} == {"suspended"}
        program.send_signal(signal.SIGTERM)
        assert program.end() == (143, "", "")


@pytest.mark.soak
def test_snapshots_of_several() -> None:
    assert run("snapshots.py", "pv1", "pvh2") == (0, "pv1\npvh2\n", "")


def test_toolstack(guests: list[Guest]) -> None:
    def ask(line: str) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect("socket")
            client.sendall(line.encode() + b"\n")
            answer: dict[str, Any] = json.loads(client.makefile().readline())
            return answer

    with start("toolstack.py", "socket") as program:
        while program.line() != "at your service":
            pass
        assert ask("list")["guests"]["pv1"] == "running"
        assert ask("suspend pv1")["ok"]
        assert ask("suspend pvh2")["ok"]
        assert ask("suspend pv1")["error"] == "AlreadySuspended"
        assert ask("resume pv4")["error"] == "PermissionError"
        assert ask("resume pv1") == {"ok": True, "cooperative": True}
        assert [each.state for each in guests] == ["running", "running", "suspended"]
        program.send_signal(signal.SIGTERM)
        status, output, errors = program.end()
    assert (status, errors) == (0, "")
    assert "pv1" in output
