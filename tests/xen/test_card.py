"""A guest that owns the host's second network card, and pings the gateway through it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import xenpm
from xenpm import config

from .guest import Guest, run

SCENE = "card"
CARD = "0000:00:10.0"
GuestOf = Callable[[str], Guest]


def xl_pci_list(name: str) -> list[str]:
    """The addresses that xl tells, in the second column below a heading."""
    return [line.split()[1] for line in run("xl", "pci-list", name).splitlines()[1:]]


def test_card_is_seen_as_xl_sees_it(host: xenpm.Host) -> None:
    domain = host.domain("card")
    (device,) = domain.pci_devices
    assert [device.address] == xl_pci_list("card") == [CARD]
    assert device.virtual_address == "0000:00:00.0"
    assert device.backend_state is xenpm.XenbusState.CONNECTED
    assert set(device.options) >= {"msitranslate", "power_mgmt", "permissive"}
    driver = domain.is_driver_domain
    assert driver
    assert str(driver) == f"owns {CARD}"
    assert not host.domain("plain").is_driver_domain
    assert host.domain("plain").pci_devices == ()


def test_card_is_seen_in_the_configuration(host: xenpm.Host) -> None:
    from_file = config.read("/root/guests/card.cfg")
    from_libxl = config.of(host.domain("card"))
    for said in (from_file, from_libxl):
        assert [device.address for device in said.pci] == [CARD]
        said.check()
    guests = config.read_files(["/root/guests/card.cfg", "/root/guests/plain.cfg"])
    assert guests.errors == []
    assert guests.driver_domain("card")
    assert str(guests.driver_domain("card")) == f"owns {CARD}"
    assert not guests.driver_domain("plain")


@pytest.mark.parametrize("cycles", [20])
def test_pings_go_on_through_the_card(cycles: int, guest: Callable[[str], Guest]) -> None:
    subject = guest("card")
    domain = subject.domain
    with subject.unharmed():
        for cycle in range(cycles):
            subject.wait_pinging()
            suspension = domain.suspend()
            (before,) = suspension.pci
            assert before.address == CARD
            assert before.in_use, f"cycle {cycle}"
            resumption = domain.resume()
            (after,) = resumption.pci
            assert after.present
            assert after.in_use, resumption.problems
            assert after.backend_state is xenpm.XenbusState.CONNECTED
            # A PV guest gets its card back with MSI only; that is told, once.
            lost = before.interrupts == "msi-x" != after.interrupts
            assert [problem for problem in resumption.problems if "lost MSI-X" not in problem] == []
            assert bool(resumption.problems) == lost, resumption.problems
        subject.wait_pinging()
    assert "NETDEV WATCHDOG" not in subject.log.read_text(errors="replace")


@pytest.mark.trouble  # Linux warns when the last device of its pcifront is unplugged
def test_card_comes_and_goes_between_two_cycles(guest: Callable[[str], Guest]) -> None:
    subject = guest("card")
    domain = subject.domain
    with subject.unharmed():
        domain.suspend()
        domain.resume()
        run("xl", "pci-detach", "card", CARD)
        assert not domain.pci_devices
        assert not domain.is_driver_domain
        assert domain.suspend().pci == ()
        assert domain.resume().problems == ()
        run("xl", "pci-assignable-add", CARD)
        run("xl", "pci-attach", "card", CARD)
        assert [device.address for device in domain.pci_devices] == xl_pci_list("card") == [CARD]
        assert domain.is_driver_domain
        subject.command("net")
        subject.wait_pinging()
        assert [each.address for each in domain.suspend().pci] == [CARD]
        domain.resume()
        subject.wait_pinging()
