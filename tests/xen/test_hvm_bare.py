"""An HVM guest without PV drivers: its firmware, which finds nothing to boot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xenpm

from .guest import DEADLINE, Guest, run
from .test_hvm import model_of

SCENE = "empty"
pytestmark = pytest.mark.soak  # an emulated firmware is slow
CONFIGURATION = Path("/root/bare.cfg")
PATH = Path("/root/bare.save")


@pytest.fixture
def bare(guest: Callable[[str], Guest]) -> Iterator[Guest]:
    CONFIGURATION.write_text(
        'name = "bare"\ntype = "hvm"\nmemory = 64\nvga = "none"\nvnc = 0\n', encoding="ascii"
    )
    run("xl", "create", str(CONFIGURATION))
    yield guest("bare")
    run("xl", "destroy", "bare")
    PATH.unlink(missing_ok=True)


def assert_runs(bare: Guest) -> None:
    assert (bare.state, model_of(bare)) == ("running", "running")


def test_hears_no_request(bare: Guest, host: xenpm.Host) -> None:
    with pytest.raises(xenpm.SuspendNotSupported, match="without PV drivers"):
        bare.domain.suspend()
    plans = {entry.domain.name: (entry.policy, entry.reason) for entry in host.plan().entries}
    assert plans["bare"] == (xenpm.Policy.PAUSE, "is an HVM guest without PV drivers")
    with pytest.raises(xenpm.XenError, match="does not sleep"):
        bare.domain.trigger("s3resume")
    assert_runs(bare)


def test_save_that_is_given_up_at_once(bare: Guest) -> None:
    """Aborted before its helper is there, libxl crashes."""
    with pytest.raises(xenpm.SaveError, match="its time is over; it runs"):
        bare.domain.suspend(lightweight=False, path=PATH, timeout=0.05)
    assert not PATH.exists()
    assert_runs(bare)


def test_save_that_is_given_up_at_its_model(bare: Guest) -> None:
    """Aborted while it waits for the device model, libxl crashes; now it is not aborted there."""
    command = [sys.executable, "-m", "xenpm", "suspend", "--heavy", str(PATH), "bare"]
    with subprocess.Popen(command) as saving:
        until = time.monotonic() + DEADLINE
        while bare.state != "suspended":
            assert time.monotonic() < until, "libxl does not suspend it"
            os.sched_yield()
        saving.send_signal(signal.SIGINT)
    assert saving.returncode
    assert not PATH.exists()
    assert_runs(bare)


def test_saved_and_restored(bare: Guest) -> None:
    bare.domain.suspend(lightweight=False, path=PATH)
    assert xenpm.restore(PATH).type is xenpm.DomainType.HVM
    assert_runs(bare)
