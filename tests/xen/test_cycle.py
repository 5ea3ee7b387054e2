"""One guest at a time: suspended in place, resumed in place, over and over."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

import pytest

import xenpm

from .guest import Guest, Resources, run

SCENE = "trio"
GUESTS = {
    "pv1": (xenpm.DomainType.PV, 1),
    "pv4": (xenpm.DomainType.PV, 4),
    "pvh2": (xenpm.DomainType.PVH, 2),
}
GuestOf = Callable[[str], Guest]


@pytest.mark.core
@pytest.mark.parametrize("name", GUESTS)
def test_guest_is_suspended_in_place_and_goes_on(name: str, guest: GuestOf) -> None:
    subject = guest(name)
    domain = subject.domain
    kind, vcpus = GUESTS[name]
    before = domain.info
    assert (before.type, before.vcpus_online) == (kind, vcpus)
    boot = subject.boot

    suspension = domain.suspend(lightweight=True)

    asleep = domain.info
    assert subject.state == "suspended"
    assert domain.shutdown_reason is xenpm.ShutdownReason.SUSPEND
    assert asleep.memory_kib == before.memory_kib, "its memory did not stay in place"
    assert suspension.domain == domain.ref
    assert suspension.total_ns >= suspension.request_ns > 0
    assert run("xl", "domid", name).strip() == str(domain.domid)
    count, uptime_ms = subject.count, subject.uptime_ms
    time.sleep(1)  # nothing happens, and nothing tells that nothing happens
    assert domain.info.cpu_time_ns == asleep.cpu_time_ns, "it still uses the CPU"
    assert subject.count == count

    resumption = domain.resume()

    assert resumption.cooperative
    assert resumption.total_ns > 0
    assert subject.state == "running"
    assert domain.info.shutdown_reason is None
    subject.wait_counting(count)
    assert subject.boot == boot, "it is not the same process in the same memory"
    assert subject.uptime_ms > uptime_ms
    assert domain.info.memory_kib == before.memory_kib


@pytest.mark.core
@pytest.mark.parametrize(
    "how",
    [
        "name",
        "UUID",
        pytest.param("domid", marks=pytest.mark.soak),
        pytest.param("digits", marks=pytest.mark.soak),
        pytest.param("UUID text", marks=pytest.mark.soak),
    ],
)
def test_domain_is_found_by(how: str, guest: GuestOf) -> None:
    subject = guest("pv1")
    known = subject.domain
    # xl is the oracle of which domain that is
    assert run("xl", "domid", "pv1").strip() == str(known.domid)
    assert run("xl", "domname", str(known.domid)).strip() == "pv1"
    assert str(known.uuid) in run("xl", "list", "-v", "pv1")
    references: dict[str, int | str | UUID] = {
        "name": "pv1",
        "domid": known.domid,
        "digits": str(known.domid),
        "UUID": known.uuid,
        "UUID text": str(known.uuid),
    }
    with subject.unharmed():
        domain = xenpm.Domain(references[how])
        assert domain == known
        domain.suspend()
        assert subject.state == "suspended"
        domain.resume()


def test_suspended_block_resumes_also_on_error(guest: GuestOf) -> None:
    subject = guest("pvh2")
    with subject.unharmed():
        with pytest.raises(ZeroDivisionError, match=r"^suspended$"), subject.domain.suspended():
            raise ZeroDivisionError(subject.state)
        assert subject.state == "running"


def test_paused_and_unpaused(guest: GuestOf) -> None:
    subject = guest("pv1")
    with subject.unharmed():
        subject.domain.pause()
        assert subject.state == "paused"
        subject.domain.unpause()


@pytest.mark.parametrize(
    ("name", "cycles"),
    [
        pytest.param("pv1", 10, marks=pytest.mark.core),
        pytest.param("pvh2", 10, marks=pytest.mark.core),
        ("pv4", 50),
        pytest.param("pv1", 1000, marks=pytest.mark.soak),
        pytest.param("pvh2", 1000, marks=pytest.mark.soak),
    ],
)
def test_cycles_leave_guest_and_process_as_they_were(
    name: str, cycles: int, guest: GuestOf
) -> None:
    subject = guest(name)
    domain = xenpm.Domain(name)
    with subject.unharmed():
        _cycle(domain, 3)  # whatever is made on first use is there now
        before = Resources()
        _cycle(domain, cycles)
        after = Resources()
    after.assert_as(before)


def _cycle(domain: xenpm.Domain, times: int) -> None:
    for _ in range(times):
        domain.suspend()
        domain.resume()
