"""An HVM guest, which runs with a device model and PV drivers, and is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import xenpm

from .guest import Guest

SCENE = "hvm"
GuestOf = Callable[[str], Guest]


@pytest.mark.core
def test_guest_is_told_from_the_others(guest: GuestOf) -> None:
    assert guest("hvm1").domain.type is xenpm.DomainType.HVM


@pytest.mark.core
def test_suspend_is_refused_and_guest_unharmed(guest: GuestOf) -> None:
    subject = guest("hvm1")
    with subject.unharmed():
        request = subject.read("control/shutdown")
        with pytest.raises(xenpm.SuspendNotSupported, match="device model"):
            subject.domain.suspend()
        assert subject.state == "running"
        assert subject.read("control/shutdown") == request
        subject.wait_working("io", "verified")
    assert subject.report("io")["errors"] == "0"


def test_resume_is_refused(guest: GuestOf) -> None:
    subject = guest("hvm1")
    with subject.unharmed(), pytest.raises(xenpm.ResumeError):
        subject.domain.resume()
