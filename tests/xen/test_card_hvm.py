"""An HVM guest that owns the host's second network card, and pings the gateway through it."""

from __future__ import annotations

from collections.abc import Callable

from .guest import Guest, run

SCENE = "card-hvm"
CARD = "0000:00:10.0"


def test_pings_are_answered_through_the_card(guest: Callable[[str], Guest]) -> None:
    subject = guest("card")
    (device,) = run("xl", "pci-list", "card").splitlines()[1:]
    assert device.split()[1] == CARD
    with subject.unharmed():
        subject.wait_pinging(20)
