"""An HVM guest, which runs with a device model and PV drivers, and is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import xenpm
from xenpm import config

from .guest import Guest, run

SCENE = "hvm"
CARD = "0000:00:10.0"
GuestOf = Callable[[str], Guest]


@pytest.fixture(autouse=True)
def _up(guest: GuestOf) -> None:
    """The emulator at times loses the guest when the snapshot is loaded; xl boots it anew then."""
    guest("hvm1").wait("data/counter", bool, "it does not come up")


def test_guest_is_told_from_the_others(guest: GuestOf) -> None:
    assert guest("hvm1").domain.type is xenpm.DomainType.HVM


def test_suspend_is_refused_and_guest_unharmed(guest: GuestOf) -> None:
    subject = guest("hvm1")
    with subject.unharmed():
        request = subject.read("control/shutdown")
        with pytest.raises(xenpm.SuspendNotSupported, match="device model"):
            subject.domain.suspend()
        assert subject.state == "running"
        assert subject.read("control/shutdown") == request


def test_resume_is_refused(guest: GuestOf) -> None:
    subject = guest("hvm1")
    with subject.unharmed(), pytest.raises(xenpm.ResumeError):
        subject.domain.resume()


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
