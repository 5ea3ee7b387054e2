"""The lab itself: guests are there, they count, and the hypervisor is the release's."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

SCENE = "trio"
GUESTS = {"pv1": 1, "pv4": 4, "pvh2": 2}
XEN = {"11": "4.14", "12": "4.17", "13": "4.20"}

pytestmark = pytest.mark.core


def tell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def counter(name: str) -> tuple[str, int]:
    domid = tell("xl", "domid", name).strip()
    text = tell("xenstore-read", f"/local/domain/{domid}/data/counter")
    fields = dict(word.split("=") for word in text.split())
    return fields["boot"], int(fields["count"])


def test_guests_are_listed() -> None:
    rows = [line.split() for line in tell("xl", "list").splitlines()[2:]]
    assert {row[0]: int(row[3]) for row in rows} == GUESTS


@pytest.mark.parametrize("name", GUESTS)
def test_counter_goes_on(name: str) -> None:
    boot, before = counter(name)
    deadline = time.monotonic() + 20
    while counter(name)[1] < before + 10:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert counter(name)[0] == boot


@pytest.mark.parametrize("name", GUESTS)
def test_console_is_logged(name: str) -> None:
    log = Path(f"/var/log/xen/console/guest-{name}.log")
    assert "work: boot=" in log.read_text(errors="replace")


def test_xen_is_the_releases() -> None:
    debian = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )["VERSION_ID"].strip('"')
    version = Path("/sys/hypervisor/version")
    found = f"{(version / 'major').read_text().strip()}.{(version / 'minor').read_text().strip()}"
    assert found == XEN[debian]
