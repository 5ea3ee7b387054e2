"""The process of xl that watches over a domain: what it makes of a light suspend, and of a save."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import xenpm

from .guest import DEADLINE, Guest, run

SCENE = "trio"
pytestmark = pytest.mark.soak  # it makes guests anew all the time
GuestOf = Callable[[str], Guest]


def watchers(name: str) -> list[str]:
    """The processes of xl that look after a domain."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if words[0].endswith("/xl") and any(f"/{name}." in word for word in words):
            found.append(each.parent.name)
    return found


def until(holds: Callable[[], bool], what: str) -> None:
    """Look again and again: nobody tells."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, what
        run("sleep", "0.2")


def stays(host: xenpm.Host) -> bool:
    """Whether the xl of this release knows that a suspended domain may go on."""
    return host.xen_version >= (4, 20)


@pytest.mark.trouble
def test_reboot_after_a_light_suspend(guest: GuestOf, host: xenpm.Host) -> None:
    subject = guest("pv1")
    assert len(watchers("pv1")) == 1
    domain = subject.domain
    domain.suspend()
    if not stays(host):
        until(lambda: not watchers("pv1"), "xl watches on")
    domain.resume()
    subject.wait_counting(subject.count)
    assert len(watchers("pv1")) == (1 if stays(host) else 0)
    subject.command("reboot")
    if stays(host):
        until(lambda: guest("pv1").domain.domid != domain.domid, "it is not made anew")
        guest("pv1").wait("data/counter", bool, "it does not come up")
    else:
        until(lambda: domain.state is xenpm.DomainState.SHUTDOWN, "it does not reboot")
        assert domain.shutdown_reason is xenpm.ShutdownReason.REBOOT


def test_save_ends_it_and_only_xl_brings_one_back(guest: GuestOf) -> None:
    subject, path = guest("pv4"), Path("/root/pv4.save")
    assert len(watchers("pv4")) == 1
    for restore, left in (
        (lambda: xenpm.restore(path), 0),
        (lambda: run("xl", "restore", str(path)), 1),
    ):
        subject.domain.suspend(lightweight=False, path=path)
        until(lambda: not watchers("pv4"), "xl watches on")
        restore()
        assert len(watchers("pv4")) == left
        path.unlink()
        subject.wait("data/counter", bool, "it does not come back")
