"""The lab cleans up after itself, however it ends; needs root and what `make test` installs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab import __main__, cache

DEADLINE = 900.0  # the first start may have to build the image


@pytest.fixture
def lab() -> Iterator[subprocess.Popen[str]]:
    """The lab with a running machine in which a command waits."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "run", "bookworm", "--", "echo in dom0; sleep 300"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "in dom0":
            break
    else:
        pytest.fail(f"the lab ended with {process.wait()} and ran no command in dom0")
    yield process
    process.kill()
    process.communicate()


def _machines(lab: subprocess.Popen[str]) -> list[int]:
    """The emulators that the lab has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            name, _, rest = status.read_text().rpartition(")")
            if "qemu-system" in name and int(rest.split()[1]) == lab.pid:
                found.append(int(status.parent.name))
    return found


def _scratch() -> list[Path]:
    return [path for path in cache.home().glob(".scratch-*") if path.is_dir()]


@pytest.mark.soak
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_lab_leaves_no_machine_and_no_files(
    signum: signal.Signals, lab: subprocess.Popen[str]
) -> None:
    (machine,) = _machines(lab)
    handle = os.pidfd_open(machine)
    try:
        lab.send_signal(signum)
        assert select.select([handle], [], [], DEADLINE)[0], "the emulator outlives the lab"
    finally:
        os.close(handle)
    until = time.monotonic() + DEADLINE
    lab.wait(timeout=until - time.monotonic())
    if signum == signal.SIGKILL:
        # what a killed lab cannot remove, the next one does
        assert _scratch()
        with cache.scratch("test"):
            pass
    assert not _scratch()


def test_doctor_names_the_package_of_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "find", lambda _command: None)
    monkeypatch.setattr(sys, "argv", ["tests.lab", "doctor"])
    assert __main__.main() == 1
    out = capsys.readouterr().out
    assert "missing: mmdebstrap (apt install mmdebstrap)" in out
    assert "qemu-system-x86" in out.splitlines()[-1]
