"""An HVM guest with PV drivers, whose device model stands still while it is suspended."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable

import pytest

import xenpm
from xenpm import config
from xenpm.qmp import QmpModels

from .guest import DEADLINE, Guest, LogWatch, run

SCENE = "hvm"
pytestmark = pytest.mark.soak  # an HVM guest takes minutes here
CARD = "0000:00:10.0"
GuestOf = Callable[[str], Guest]


@pytest.fixture(autouse=True)
def _up(guest: GuestOf) -> None:
    """The emulator at times loses the guest when the snapshot is loaded; xl boots it anew then."""
    guest("hvm1").wait("data/counter", bool, "it does not come up")


def test_guest_is_told_from_the_others(guest: GuestOf) -> None:
    assert guest("hvm1").domain.type is xenpm.DomainType.HVM


def model_of(subject: Guest) -> str:
    """How its device model is, as that says itself."""
    job = QmpModels().ask(subject.domain.domid, "")
    while not job.done:
        assert select.select(job.descriptors, (), (), DEADLINE)[0], "it does not answer"
        job.work()
    assert not job.result().error
    return job.output


def cycle(subject: Guest, cycles: int) -> None:
    """Suspend and resume it at its work, its model standing still meanwhile."""
    subject.wait("data/io", bool, "its work has not begun")
    with subject.unharmed():
        for _ in range(cycles):
            assert model_of(subject) == "running"
            suspension = subject.domain.suspend()
            assert suspension.model_ns > 0
            assert (subject.state, model_of(subject)) == ("suspended", "paused")
            assert subject.domain.resume().cooperative
            assert (subject.state, model_of(subject)) == ("running", "running")
            report = subject.wait_working("io", "verified")
            assert report["errors"] == "0"
            subject.wait_pinging(1)


def test_model_stands_still_while_it_is_suspended(guest: GuestOf) -> None:
    cycle(guest("hvm1"), 3)


def test_twenty_cycles_under_io(guest: GuestOf) -> None:
    cycle(guest("hvm1"), 20)


def test_libxl_still_speaks_with_the_model(guest: GuestOf) -> None:
    """Which serves one client at a time."""
    subject = guest("hvm1")
    with subject.unharmed(), subject.domain.suspended():
        assert model_of(subject) == "paused"
    run("xl", "pause", "hvm1")
    run("xl", "unpause", "hvm1")  # which continues the model
    assert model_of(subject) == "running"


def test_process_that_is_killed_leaves_what_can_be_resumed(guest: GuestOf) -> None:
    subject = guest("hvm1")
    with subject.unharmed():
        code = "import os, xenpm; xenpm.Domain('hvm1').suspend(); os.kill(os.getpid(), 9)"
        run(sys.executable, "-c", code, check=False)
        assert (subject.state, model_of(subject)) == ("suspended", "paused")
        subject.domain.resume()
        assert model_of(subject) == "running"


def test_starts_over(guest: GuestOf, host: xenpm.Host) -> None:
    """Twice: libxl has all that it needs for the next time."""
    subject = guest("hvm1")
    subject.wait("data/io", bool, "its work has not begun")
    page_kib = 4 if host.xen_version < (4, 17) else 0  # the first time, and not again
    with subject.unharmed(lost_kib=page_kib):
        domain = subject.domain
        assert not domain.supports_reinit
        subject.store.write(f"{subject.home}/xenpm/policy", b"abort")
        for _ in range(2):
            domain.suspend()
            with pytest.raises(xenpm.ReinitNotSupported, match="force=True"):
                domain.resume(cooperative=False)
            resumption = domain.resume(cooperative=False, force=True)
            assert [step.name for step in resumption.steps] == ["devices", "libxl"]
            assert resumption.problems == ()
            assert subject.read("xenpm/policy") == "abort"
            assert (subject.state, model_of(subject)) == ("running", "running")
            assert not subject.starting_over
            assert subject.wait_working("io", "verified")["errors"] == "0"
            subject.wait_pinging()
            with LogWatch(subject.log) as log:
                with open(subject.read("console/tty"), "wb", buffering=0) as console:
                    console.write(b"over\n")
                log.wait("heard over")
        subject.store.remove(f"{subject.home}/xenpm/policy")
    cycle(subject, 1)


def test_triggers(guest: GuestOf) -> None:
    """Nothing in this guest heeds its buttons; an NMI would be the end of some kernels."""
    subject = guest("hvm1")
    with subject.unharmed():
        subject.domain.trigger("sleep")
        with pytest.raises(xenpm.XenError, match="does not sleep"):
            subject.domain.trigger("s3resume")
        with pytest.raises(xenpm.HypercallError):
            subject.domain.trigger("power", vcpu=99)


def test_card_is_seen_in_a_guest_with_a_device_model(host: xenpm.Host) -> None:
    """It never runs: the emulated host stops when an HVM guest touches the card."""
    planned = config.read("/root/guests/card.cfg")
    assert (planned.type, [device.address for device in planned.pci]) == (
        xenpm.DomainType.HVM,
        [CARD],
    )
    run("xl", "create", "-p", "/root/guests/card.cfg")
    try:
        domain = host.domain("card")
        (line,) = run("xl", "pci-list", "card").splitlines()[1:]
        (device,) = domain.pci_devices
        assert line.split()[1] == device.address == CARD
        assert device.virtual_address == f"0000:00:{line.split()[0]}"
        assert domain.is_driver_domain
        assert str(domain.is_driver_domain) == f"owns {CARD}"
        assert [each.address for each in config.of(domain).pci] == [CARD]
    finally:
        run("xl", "destroy", "card")
    assert not host.domain("hvm1").is_driver_domain
