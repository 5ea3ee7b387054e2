"""Guests that libvirt has made: what it knows of them while xenpm suspends and resumes them.

docs/moving.rst tells all this to users of libvirt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import xenpm

from .guest import Guest, until
from .libvirtd import Libvirtd

SCENE = "trio"
pytestmark = pytest.mark.soak  # libvirtd is set up anew
GuestOf = Callable[[str], Guest]


@pytest.fixture(scope="module")
def libvirt() -> Iterator[Libvirtd]:
    with Libvirtd() as daemon:
        yield daemon


@pytest.fixture(params=["pv1", "pvh2"])
def subject(request: pytest.FixtureRequest, guest: GuestOf, libvirt: Libvirtd) -> Guest:
    it = guest(request.param)
    if it.name not in libvirt.virsh("list", "--name").split():
        libvirt.make(it)
    return it


def test_its_view_is_right_after_the_resume(subject: Guest, libvirt: Libvirtd) -> None:
    with subject.unharmed():
        subject.domain.suspend()
        assert libvirt.state(subject.name) == "running"  # nobody told it
        subject.domain.resume()
        assert libvirt.state(subject.name) == "running"
        libvirt.virsh("suspend", subject.name)
        assert (libvirt.state(subject.name), subject.state) == ("paused", "paused")
        libvirt.virsh("resume", subject.name)
        assert (libvirt.state(subject.name), subject.state) == ("running", "running")


def test_its_own_suspension_works_afterwards(subject: Guest, libvirt: Libvirtd) -> None:
    with subject.unharmed():
        subject.domain.suspend()
        subject.domain.resume()
        libvirt.virsh("dompmsuspend", subject.name, "mem")
        assert (libvirt.state(subject.name), subject.state) == ("pmsuspended", "suspended")
        libvirt.virsh("dompmwakeup", subject.name)
        assert (libvirt.state(subject.name), subject.state) == ("running", "running")


def test_it_does_not_wake_what_it_has_not_suspended(subject: Guest, libvirt: Libvirtd) -> None:
    with subject.unharmed():
        subject.domain.suspend()
        said = libvirt.virsh("dompmwakeup", subject.name, check=False)
        assert "successfully" not in said
        assert subject.state == "suspended"
        subject.domain.resume()


def test_it_does_not_see_that_xenpm_resumes_what_it_has_suspended(
    subject: Guest, libvirt: Libvirtd
) -> None:
    with subject.unharmed():
        libvirt.virsh("dompmsuspend", subject.name, "mem")
        subject.domain.resume()
        assert libvirt.state(subject.name) == "pmsuspended"
        libvirt.restart()
        assert libvirt.state(subject.name) == "running"


def test_daemon_that_is_started_meanwhile(subject: Guest, libvirt: Libvirtd) -> None:
    with subject.unharmed():
        subject.domain.suspend()
        libvirt.restart()
        assert libvirt.state(subject.name) == "pmsuspended"
        subject.domain.resume()
        assert libvirt.state(subject.name) == "pmsuspended"
        libvirt.restart()
        assert libvirt.state(subject.name) == "running"


def assert_made_anew(
    subject: Guest, libvirt: Libvirtd, host: xenpm.Host, before: xenpm.Domain
) -> None:
    def is_there() -> bool:
        domids = [each.domid for each in host.domains() if each.name == subject.name]
        return len(domids) == 1 and domids != [before.domid]

    until(is_there, f"{subject.name} is not made anew")
    subject.wait("data/counter", bool, "it does not come up")
    assert libvirt.state(subject.name) == "running"


@pytest.mark.trouble
def test_reboot_inside(subject: Guest, libvirt: Libvirtd, host: xenpm.Host) -> None:
    """It is told of a guest's end only once, for which the suspension was taken."""
    before = subject.domain
    before.suspend()
    before.resume()
    libvirt.restart()
    subject.command("reboot")
    assert_made_anew(subject, libvirt, host, before)


@pytest.mark.trouble
def test_reboot_that_it_does_not_hear_of(subject: Guest, libvirt: Libvirtd) -> None:
    before = subject.domain
    before.suspend()
    before.resume()
    subject.command("reboot")
    until(lambda: subject.state == "shutdown", "it does not go down")
    assert libvirt.state(subject.name) == "running"
    libvirt.virsh("destroy", subject.name)
    libvirt.make(subject)


def test_save_and_restore(subject: Guest, libvirt: Libvirtd) -> None:
    """Its saved guests are its own."""
    libvirt.virsh("save", subject.name, "/root/libvirt.save")
    with pytest.raises(xenpm.SaveFileError, match="virsh restore"):
        xenpm.restore("/root/libvirt.save")
    libvirt.virsh("restore", "/root/libvirt.save")
    subject.wait("data/counter", bool, "it does not come back")
    subject.domain.suspend()
    subject.domain.resume()
