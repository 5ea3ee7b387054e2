"""Starting HVM guests over: what libxl is left to do, and what becomes of a guest when it fails."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import xenpm
from xenpm import DomainType
from xenpm.testing import MS, SECOND, FakeGuest, FakeProgram, FakeXen
from xenpm.testing.devices import CLOSED, CONNECTED, INIT_WAIT, INITIALISING
from xenpm.testing.guests import CONSOLE_EVTCHN, STORE_EVTCHN
from xenpm.testing.jobs import FakeJob
from xenpm.types import Ending

from .checks import assert_nothing_left, assert_released

NOTE = "/local/domain/1/xenpm/reinit"


class FakeLibxl:
    """The worker that starts an HVM guest over; `ending` says what becomes of it."""

    def __init__(self, xen: FakeXen) -> None:
        self.xen = xen
        self.orders: list[dict[str, Any]] = []
        self.ending: Callable[[FakeGuest], str] = rebuild
        self.found = {"vbd": CLOSED, "vif": CLOSED, "vkbd": CONNECTED}
        xen.programs[sys.executable] = FakeProgram(act=self.act)

    def act(self, job: FakeJob, command: Sequence[str]) -> None:
        order = json.loads(command[-1])
        self.orders.append(order)
        self.xen.after(SECOND, lambda: self.end(job, self.xen.guests[order["domid"]]))

    def end(self, job: FakeJob, guest: FakeGuest) -> None:
        assert guest.pause_count == 1, "it would run without a device model"
        states = {each.path.split("/")[-3]: each.state for each in guest.backends}
        assert states == self.found
        failure = self.ending(guest)
        self.xen.after(MS, lambda: self.tell(job, failure))

    def tell(self, job: FakeJob, failure: str) -> None:
        if failure == "killed":
            job.end(Ending(-9, output=job.output))
            return
        error = pickle.dumps(xenpm.XenlightError("libxl_domain_soft_reset", 5, failure)).hex()
        told = {"xenpm": "failed", "error": error} if failure else {"xenpm": "done"}
        job.output += json.dumps(told) + "\n"
        job.end(Ending(0, output=job.output))


def rebuild(guest: FakeGuest) -> str:
    """What libxl does with it: fresh ground, devices, a device model; then it runs."""
    ports = guest.xen.ports()
    hypervisor, store = ports.hypervisor, ports.store
    hypervisor.soft_reset(guest.domid)
    for param in (STORE_EVTCHN, CONSOLE_EVTCHN):
        port = hypervisor.evtchn_alloc_unbound(guest.domid, 0)
        hypervisor.hvm_param_set(guest.domid, param, port)
    guest.seeded = True
    store.remove(f"{guest.home}/xenpm")
    store.introduce_domain(guest.domid, 0xFEFFC, 1)
    store.resume_domain(guest.domid)
    for backend in guest.backends:
        store.write(f"{backend.frontend}/state", b"1")
        store.write(f"{backend.path}/state", INIT_WAIT)
    assert guest.model is not None
    guest.model.status = "running"
    hypervisor.unpause(guest.domid)
    ports.close()
    return ""


@pytest.fixture
def libxl(xen: FakeXen) -> FakeLibxl:
    return FakeLibxl(xen)


@pytest.fixture
def guest(xen: FakeXen) -> FakeGuest:
    """A suspended HVM guest with a disk and a network, and a keyboard that its model serves."""
    guest = xen.add_guest("web", type=DomainType.HVM)
    guest.give_device("vbd", 51712)
    guest.give_device("vif", 0)
    guest.give_device("vkbd", 0)
    with xenpm.Host(ports=xen.ports()) as host:
        host.domain("web").suspend()
    return guest


def assert_suspended_as_it_was(guest: FakeGuest, host: xenpm.Host) -> None:
    assert guest.suspended
    assert guest.pause_count == 0
    assert_released(guest.xen)
    assert host.domain("web").resume().cooperative


def test_refused_unless_its_loss_is_accepted(
    guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl
) -> None:
    domain = host.domain("web")
    assert not domain.supports_reinit
    assert "force=True" in domain.supports_reinit.evidence
    with pytest.raises(xenpm.ReinitNotSupported, match=r"destroys it should that fail.*force=True"):
        domain.resume(cooperative=False)
    assert libxl.orders == []
    assert_suspended_as_it_was(guest, host)


def test_cooperative_unless_asked_for(guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl) -> None:
    assert host.domain("web").resume(force=True).cooperative
    assert libxl.orders == []
    assert guest.running


def test_starts_over(xen: FakeXen, guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl) -> None:
    xen.toolstack.write("/local/domain/1/xenpm/policy", b"abort")
    resumption = host.domain("web").resume(cooperative=False, force=True)
    assert xen.toolstack.read("/local/domain/1/xenpm/policy") == b"abort"
    assert [step.name for step in resumption.steps] == ["devices", "libxl"]
    assert resumption.steps[1].ns >= SECOND
    assert resumption.problems == ()
    assert libxl.orders == [{"verb": "start over", "domid": 1, "timeout": 600.0}]
    xen.settle()
    assert guest.running
    assert guest.restarts == 1
    assert not guest.corrupted
    assert guest.pause_count == 0
    assert NOTE not in xen.store.nodes
    assert {backend.state for backend in guest.backends} == {CONNECTED}
    assert_nothing_left(xen)


def test_backend_that_has_not_begun_is_not_waited_for(
    xen: FakeXen, guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl
) -> None:
    network = guest.backends[1]
    xen.toolstack.write(f"{network.frontend}/state", b"3")
    xen.toolstack.write(f"{network.path}/state", INITIALISING)
    network.close_ns = None
    guest.channels[network.port] = None
    libxl.found["vif"] = INITIALISING
    resumption = host.domain("web").resume(cooperative=False, force=True)
    assert resumption.problems == ()
    assert guest.restarts == 1
    assert not guest.corrupted


def test_still_paused_afterwards(
    xen: FakeXen, guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl
) -> None:
    """When libxl's own pause is on top of ours."""

    def pause_once_more(guest: FakeGuest) -> str:
        guest.pause()
        return rebuild(guest)

    libxl.ending = pause_once_more
    host.domain("web").resume(cooperative=False, force=True)
    xen.settle()
    assert guest.running
    assert guest.pause_count == 0
    assert not guest.corrupted


def test_paused_by_the_toolstack(guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl) -> None:
    host.domain("web").pause()
    with pytest.raises(xenpm.ReinitNotSupported, match="unpause it first"):
        host.domain("web").resume(cooperative=False, force=True)
    assert libxl.orders == []
    assert guest.pause_count == 1
    host.domain("web").unpause()
    assert_suspended_as_it_was(guest, host)


@pytest.mark.parametrize("how", ["Invalid", "killed"])
def test_fails_before_anything_is_destroyed(
    guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl, how: str
) -> None:
    libxl.ending = lambda _: how
    with pytest.raises(xenpm.ResumeError, match=r"still suspended.*cooperative=False"):
        host.domain("web").resume(cooperative=False, force=True)
    assert guest.suspended
    assert guest.pause_count == 0
    with pytest.raises(xenpm.ResumeError, match="being started over"):
        host.domain("web").resume(cooperative=True)
    libxl.ending = rebuild
    # who has accepted it once need not say so again
    assert "did not end that" in host.domain("web").resume().reason
    assert guest.running
    assert not guest.corrupted


def test_destroyed_by_libxl(guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl) -> None:
    def destroy(guest: FakeGuest) -> str:
        guest.destroy()
        return "no device model"

    libxl.ending = destroy
    with pytest.raises(xenpm.ResumeError, match=r"no device model.*destroyed it with that"):
        host.domain("web").resume(cooperative=False, force=True)
    assert guest.gone


def test_left_half_made(guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl) -> None:
    def reset(guest: FakeGuest) -> str:
        guest.soft_reset()
        return "killed"

    libxl.ending = reset
    with pytest.raises(xenpm.ResumeError, match=r"status -9.*destroy it, and create it anew"):
        host.domain("web").resume(cooperative=False, force=True)
    assert guest.pause_count == 1, "it must not run"
    with pytest.raises(xenpm.ResumeError, match="cannot go on: destroy it"):
        host.domain("web").resume(force=True)
    assert guest.pause_count == 1


def test_caller_killed_while_libxl_is_at_it(
    guest: FakeGuest, host: xenpm.Host, libxl: FakeLibxl
) -> None:
    libxl.ending = lambda _: "killed"
    with pytest.raises(xenpm.ResumeError, match="still suspended"):
        host.domain("web").resume(cooperative=False, force=True)
    guest.pause()  # as the killed one had left it
    libxl.orders.clear()
    with pytest.raises(xenpm.ResumeError, match=r"Wait for the process.*unpause it"):
        host.domain("web").resume()
    assert libxl.orders == []
    libxl.ending = rebuild
    host.domain("web").unpause()
    host.domain("web").resume()
    assert guest.running
    assert not guest.corrupted
