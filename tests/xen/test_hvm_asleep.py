"""An HVM guest that has gone to sleep by itself (ACPI S3), and is woken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xenpm
from tests.lab.cpio import Archive
from xenpm._ext.xenctrl import Xenctrl

from .guest import Guest, run
from .test_hvm import model_of

SCENE = "empty"
pytestmark = pytest.mark.soak  # a Linux takes minutes here until it sleeps
CONFIGURATION, RAMDISK, LOG = (Path(f"/root/sleeper.{each}") for each in ("cfg", "cpio", "log"))
ACPI_S_STATE = 14  # of public/hvm/params.h
PATIENCE = 300.0  # seconds
INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
echo mem > /sys/power/state
while :; do
    echo is awake
    /bin/busybox sleep 1
done
"""


@pytest.fixture
def sleeper(guest: Callable[[str], Guest]) -> Iterator[Guest]:
    """A Linux that goes to sleep as soon as it is up, and tells the serial port when it wakes."""
    archive = Archive()
    for directory in ("proc", "sys"):
        archive.directory(directory)
    archive.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    archive.file("init", INIT, 0o755)
    archive.write(RAMDISK)
    CONFIGURATION.write_text(
        'name = "sleeper"\ntype = "hvm"\nmemory = 192\nvga = "none"\nvnc = 0\n'
        f'kernel = "/root/guests/vmlinuz"\nramdisk = "{RAMDISK}"\nserial = "file:{LOG}"\n'
        'extra = "console=ttyS0 panic=-1 rdinit=/init"\n'
    )
    run("xl", "create", str(CONFIGURATION))
    yield guest("sleeper")
    run("xl", "destroy", "sleeper")


def until(holds: Callable[[], bool], what: str) -> None:
    """Look again and again: nobody tells."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"{what}: {LOG.read_text(errors='replace')[-1500:]}"
        run("sleep", "1")


def test_left_asleep_and_woken(sleeper: Guest, host: xenpm.Host, control: Xenctrl) -> None:
    domid = sleeper.domain.domid

    def asleep() -> bool:
        return control.hvm_param_get(domid, ACPI_S_STATE) != 0

    until(asleep, "it does not sleep")
    assert model_of(sleeper) == "suspended"
    with pytest.raises(xenpm.SuspendNotSupported, match="sleeps by itself"):
        sleeper.domain.suspend()
    (reason,) = (each.reason for each in host.plan().entries if each.domain.domid == domid)
    assert "sleeps by itself" in reason
    assert asleep()
    sleeper.domain.trigger("s3resume")
    until(lambda: not asleep(), "it is not woken")
    assert model_of(sleeper) == "running"
    until(lambda: "is awake" in LOG.read_text(errors="replace"), "it does not come up")
