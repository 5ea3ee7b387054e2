"""What the tests in dom0 share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xenpm
from tests.lab.runner import LOST_GUEST
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from .guest import TROUBLE, Guest, run

CONSOLES = Path("/var/log/xen/console")
CONFIGURATIONS = Path("/root/guests")


def pytest_report_header() -> str:
    return f"xenpm {xenpm.__version__} {xenpm.versions()}"


@pytest.fixture
def host() -> Iterator[xenpm.Host]:
    with xenpm.Host() as host:
        yield host


@pytest.fixture
def store() -> Iterator[Xenstore]:
    with Xenstore() as store:
        yield store


@pytest.fixture
def control() -> Iterator[Xenctrl]:
    with Xenctrl() as control:
        yield control


@pytest.fixture
def guest(host: xenpm.Host, store: Xenstore, control: Xenctrl) -> Callable[[str], Guest]:
    return lambda name: Guest(name, host, store, control)


def _lost() -> int:
    """How many PVH guests the emulator has lost so far.

    QEMU's emulation of a virtualised processor at times lets a guest run on with the hypervisor's
    own registers; Xen then reports a triple fault of the guest, often at an address of Xen's code.
    What is lost each time that it is repeated counts as a failure: that is no accident.
    """
    return run("xl", "dmesg").count("Triple fault")


LOST = pytest.StashKey[int]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that lost its guest to the emulator says nothing about xenpm; the lab repeats it."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and _lost() > item.stash.get(LOST, 0):
        report.outcome = "skipped"
        path, line, _ = item.location
        report.longrepr = (path, line, f"Skipped: {LOST_GUEST} (see xl dmesg)")


@pytest.fixture(autouse=True)
def _quiet_consoles(request: pytest.FixtureRequest, host: xenpm.Host) -> Iterator[None]:
    """No guest may log trouble during a test, unless the test is about trouble."""
    lost = _lost()
    if lost > request.session.stash.get(LOST, 0):  # also between two tests
        with Xenstore() as store, Xenctrl() as control:
            for configuration in sorted(CONFIGURATIONS.glob("*.cfg")):
                if 'type = "pvh"' in configuration.read_text():
                    Guest(configuration.stem, host, store, control).create()
        lost = _lost()
    request.session.stash[LOST] = request.node.stash[LOST] = lost
    sizes = {log: log.stat().st_size for log in CONSOLES.glob("guest-*.log")}
    yield
    if request.node.get_closest_marker("trouble") or _lost() > lost:
        return
    for log in CONSOLES.glob("guest-*.log"):
        with log.open("rb") as file:
            file.seek(sizes.get(log, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
        bad = [line for line in lines if TROUBLE.search(line)]
        assert not bad, f"{log.name}: " + "\n".join(bad[:20])
