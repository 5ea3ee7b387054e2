"""Passed-through devices, backends and frontends of a domain, and what says driver domain."""

from __future__ import annotations

import json

import pytest

import xenpm
from xenpm import DomainType, XenbusState
from xenpm.testing import MS, SECOND, FakeXen

from .checks import assert_nothing_left

CARD, DISK_CARD = "0000:00:10.0", "0000:03:00.1"


def pci_home(domid: int) -> str:
    return f"/local/domain/0/backend/pci/{domid}/0"


# -- passed-through devices


@pytest.mark.parametrize("kind", DomainType)
def test_no_devices(xen: FakeXen, host: xenpm.Host, kind: DomainType) -> None:
    xen.add_guest("web", type=kind)
    domain = host.domain("web")
    assert domain.pci_devices == ()
    driver = domain.is_driver_domain
    assert not driver
    assert (driver.known, str(driver), driver.stub_for) == (False, "", None)


def test_pv_device_as_the_backend_publishes_it(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net", type=DomainType.PV)
    net.give_card(CARD)
    net.give_card(DISK_CARD)
    first, second = host.domain("net").pci_devices
    assert first == xenpm.PciDevice(
        CARD,
        virtual_address="0000:00:00.0",
        state=XenbusState.INITIALISED,
        backend_state=XenbusState.CONNECTED,
        options={"msitranslate": "0", "power_mgmt": "0", "permissive": "0"},
    )
    assert (second.address, second.virtual_address) == (DISK_CARD, "0000:00:01.0")


def test_hvm_device_sits_where_its_device_model_has_put_it(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("net", type=DomainType.HVM)
    guest.give_card(CARD)
    xen.toolstack.remove(f"{pci_home(1)}/vdev-0")
    xen.toolstack.write(f"{pci_home(1)}/vdevfn-0", b"2a")
    xen.toolstack.write(f"{pci_home(1)}/opts-0", b"msitranslate=0, permissive=1,rdm_policy=strict")
    (device,) = host.domain("net").pci_devices
    assert device.virtual_address == "0000:00:05.2"
    assert device.options["permissive"] == "1"
    assert device.options["rdm_policy"] == "strict"


def test_hotplug_is_seen_at_once(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    domain = host.domain("net")
    assert not domain.is_driver_domain
    net.give_card(CARD)
    assert [device.address for device in domain.pci_devices] == [CARD]
    assert domain.is_driver_domain
    xen.toolstack.remove(f"/local/domain/0/backend/pci/{net.domid}")
    assert domain.pci_devices == ()
    assert not domain.is_driver_domain


def test_device_that_is_unplugged_while_it_is_looked_at(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    net.give_card(CARD)
    net.give_card(DISK_CARD)
    home = pci_home(net.domid)

    def unplug() -> None:
        xen.toolstack.write(f"{home}/num_devs", b"1")
        xen.toolstack.remove(f"{home}/dev-1")

    domain = host.domain("net")
    xen.before("read", unplug, nth=3)  # num_devs and state have been read
    assert [device.address for device in domain.pci_devices] == [CARD]


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ("num_devs", b"many"),
        ("num_devs", b"-1"),
        ("num_devs", b"99999999999999999999"),
        ("num_devs", b""),
        ("num_devs", None),
        ("dev-0", b"0000:00:10"),
        ("dev-0", b"\xff\xfe"),
        ("dev-0", b"0000:00:10.0\n../../../../etc/passwd"),
        ("dev-0", None),
        ("state", b"connected"),
        ("state-0", b"9"),
    ],
)
def test_nonsense_of_the_pci_backend(
    xen: FakeXen, host: xenpm.Host, node: str, value: bytes | None
) -> None:
    net = xen.add_guest("net")
    net.give_card(CARD)
    path = f"{pci_home(net.domid)}/{node}"
    if value is None:
        xen.toolstack.remove(path)
    else:
        xen.toolstack.write(path, value)
    domain = host.domain("net")
    with pytest.raises(xenpm.StoreDataError, match=f"net .domain 1.: .*{path} is ") as caught:
        _ = domain.pci_devices
    assert isinstance(caught.value, ValueError)
    driver = domain.is_driver_domain
    if not driver.owns:
        assert driver.known is None
        with pytest.raises(xenpm.StoreDataError, match=r"unknown.*makes no sense"):
            bool(driver)
    # nor does it hold up a suspension
    assert domain.suspend().domain == domain.ref


# -- split devices


def test_whom_it_uses_and_whom_it_serves(xen: FakeXen, host: xenpm.Host) -> None:
    store = xen.add_guest("store")
    web = xen.add_guest("web")
    web.give_device("vbd", 51712, server=store.domid)
    web.give_device("vbd", 51728, backend="qdisk")
    web.give_device("vif", 10)
    web.give_device("vif", 9)
    web.give_device("console", 0)
    xen.toolstack.write(f"{web.home}/console/state", b"1")
    xen.toolstack.remove(f"{web.home}/device/vif/9/state")
    domain = host.domain("web")

    assert [str(device) for device in domain.backends] == [
        "console 0", "vbd 51712", "vbd 51728", "vif 9", "vif 10",
    ]  # fmt: skip
    console, disk, other, gone, _ = domain.backends
    assert (console.frontend, console.frontend_state) == (
        f"{web.home}/console", XenbusState.INITIALISING,
    )  # fmt: skip
    assert disk == xenpm.Device(
        "vbd",
        51712,
        frontend_domid=web.domid,
        backend_domid=store.domid,
        frontend=f"{web.home}/device/vbd/51712",
        backend=f"{store.home}/backend/vbd/{web.domid}/51712",
        frontend_state=XenbusState.CONNECTED,
        backend_state=XenbusState.CONNECTED,
    )
    assert (other.backend_domid, other.backend.split("/")[5]) == (0, "qdisk")
    assert (gone.frontend_state, gone.backend_state) == (None, XenbusState.CONNECTED)

    server = host.domain("store")
    assert server.frontends == (disk,)
    assert server.backends == ()
    driver = server.is_driver_domain
    assert driver
    assert str(driver) == f"serves domain {web.domid}"
    assert [device.devid for device in driver.serves] == [51712]
    assert not domain.is_driver_domain
    assert domain.frontends == ()


def test_owning_and_serving(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    net.give_card(CARD)
    xen.add_guest("web").give_device("vif", 0, server=net.domid)
    driver = host.domain("net").is_driver_domain
    assert driver
    assert str(driver) == f"owns {CARD}; serves domain 2"


def test_its_own_backend_is_no_service(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    web.give_device("vif", 0, server=web.domid)
    assert not host.domain("web").is_driver_domain
    assert host.topology().suspend_order() == [(host.domain("web").ref,)]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        b"/local/domain/1/backend/vif/7/0",  # of another domain
        b"/local/domain/1/backend/vif/2/1",  # of another device
        b"/local/domain/1/backend/vif/2/0/state",
        b"/local/domain/-1/backend/vif/2/0",
        b"\xff\xff",
        None,
    ],
)
def test_nonsense_of_libxl_makes_every_no_unknown(
    xen: FakeXen, host: xenpm.Host, value: bytes | None
) -> None:
    xen.add_guest("net")
    web = xen.add_guest("web")
    web.give_device("vif", 0, server=1)
    path = f"/libxl/{web.domid}/device/vif/0/backend"
    if value is None:
        xen.toolstack.remove(path)
    else:
        xen.toolstack.write(path, value)
    with pytest.raises(xenpm.StoreDataError, match=f"{path} is"):
        _ = host.domain("web").backends
    driver = host.domain("net").is_driver_domain
    assert driver.known is None
    assert len(driver.unreadable) == 1
    with pytest.raises(xenpm.StoreDataError):
        bool(driver)
    with pytest.raises(xenpm.StoreDataError):
        _ = host.domain("net").frontends


def test_device_that_is_detached_while_it_is_looked_at(xen: FakeXen, host: xenpm.Host) -> None:
    web = xen.add_guest("web")
    web.give_device("vif", 0)
    web.give_device("vif", 1)
    domain = host.domain("web")
    xen.before("read", lambda: xen.toolstack.remove(f"/libxl/{web.domid}/device/vif/1"), nth=4)
    assert [device.devid for device in domain.backends] == [0]


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("what", ["pci_devices", "backends", "is_driver_domain"])
def test_domain_that_vanishes_while_it_is_looked_at(
    xen: FakeXen, host: xenpm.Host, what: str, nth: int
) -> None:
    web = xen.add_guest("web")
    web.give_card(CARD)
    web.give_device("vif", 0)
    web.give_device("vbd", 0)
    web.give_device("vbd", 1)
    domain = host.domain("web")

    def vanish() -> None:
        web.destroy()
        xen.settle()

    xen.before("read", vanish, nth=nth)
    with pytest.raises(xenpm.NoSuchDomain, match="is gone"):
        getattr(domain, what)


def test_stub_domain(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", type=DomainType.HVM)
    stub = xen.add_guest("web-dm")
    xen.toolstack.write(f"{stub.home}/target", b"%d" % guest.domid)
    driver = host.domain("web-dm").is_driver_domain
    assert driver.stub_for == guest.domid
    assert host.topology().suspend_order() == [
        (host.domain("web").ref,),
        (host.domain("web-dm").ref,),
    ]


# -- the two paths


def test_driver_domain_has_more_time(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("slow", suspend_ns=45 * SECOND)
    slow = host.domain("slow")
    with pytest.raises(xenpm.SuspendNotCompleted):
        slow.suspend()
    xen.guests[1].give_card(CARD)
    assert slow.suspend().total_ns > 45 * SECOND
    slow.resume()
    with pytest.raises(xenpm.SuspendNotCompleted):  # but what is said holds
        slow.suspend(timeout=30)


def test_backend_of_others_has_more_time_too(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net", suspend_ns=45 * SECOND)
    xen.add_guest("web").give_device("vif", 0, server=net.domid)
    suspension = host.domain("net").suspend()
    assert [device.frontend_domid for device in suspension.serves] == [2]
    assert host.domain("net").resume().problems == ()


def test_devices_are_looked_at_before_and_after(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    card = net.give_card(CARD, back_ns=300 * MS)
    domain = host.domain("net")
    up = xenpm.PciCondition(
        CARD,
        present=True,
        in_use=True,
        interrupts="msi-x",
        power_state="D0",
        link_width=4,
        backend_state=XenbusState.CONNECTED,
    )
    suspension = domain.suspend()
    assert suspension.pci == (up,)
    assert not card.up
    resumption = domain.resume()
    assert resumption.pci == (up,)
    assert resumption.problems == ()
    assert resumption.total_ns == 0
    assert 300 * MS <= resumption.check_ns < 400 * MS
    assert json.loads(json.dumps(resumption.to_dict()))["pci"][0]["backend_state"] == "connected"
    assert_nothing_left(xen)
    assert "/local/domain/1/xenpm/pci" not in xen.store.nodes


def test_what_it_was_before_is_known_to_another_process(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("net").give_card(CARD, back_with="msi")
    host.domain("net").suspend()
    with xenpm.Host(ports=xen.ports()) as other:
        resumption = other.domain("net").resume()
    assert resumption.problems == (f"PCI device {CARD} has lost MSI-X, it has MSI now",)
    # the next time it is as before
    host.domain("net").suspend()
    assert host.domain("net").resume().problems == ()


def test_record_does_not_outlive_the_domain(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("net")
    guest.give_card(CARD)
    domain = host.domain("net")
    xen.before("write", guest.destroy, nth=2)
    domain.suspend()
    assert not [path for path in xen.store.nodes if path.startswith(guest.home)]


@pytest.mark.parametrize(
    "record", [b"{", b"[]", b"1", b'{"backend_state": "odd"}', b'{"backend_state": 4}', b"\xff"]
)
def test_nonsense_in_the_record_is_no_error_of_a_guest_that_runs(
    xen: FakeXen, host: xenpm.Host, record: bytes
) -> None:
    xen.add_guest("net").give_card(CARD)
    domain = host.domain("net")
    domain.suspend()
    xen.toolstack.write("/local/domain/1/xenpm/pci/0000-00-10-0", record)
    assert domain.resume().problems == ()
    assert domain.state is xenpm.DomainState.RUNNING
    assert_nothing_left(xen)


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        ({"present": False}, "does not answer"),
        ({"back_ns": None}, "is switched off"),
        ({"back_with": "intx"}, "has lost MSI-X, it has an interrupt line now"),
        ({"lanes": 1}, "its link is 1 of 4 lanes"),
        ({"lanes": 0}, "its link is down"),
    ],
)
def test_degraded_device_is_reported(
    xen: FakeXen,
    host: xenpm.Host,
    after: dict[str, object],
    problem: str,
) -> None:
    card = xen.add_guest("net").give_card(CARD)
    domain = host.domain("net")
    domain.suspend()
    for name, value in after.items():
        setattr(card, name, value)
    began = xen.now_ns
    resumption = domain.resume()
    assert len(resumption.problems) == 1
    assert problem in resumption.problems[0]
    assert CARD in resumption.problems[0]
    assert xen.now_ns - began <= 10 * SECOND
    assert domain.state is xenpm.DomainState.RUNNING


def test_disconnected_pci_backend_is_reported(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("net").give_card(CARD)
    domain = host.domain("net")
    domain.suspend()
    xen.toolstack.write(f"{pci_home(1)}/state", b"5")
    assert domain.resume().problems == (
        f"PCI device {CARD}: its backend is not connected (closing)",
    )


def test_backend_that_came_back_disconnected_is_reported(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    web = xen.add_guest("web")
    web.give_device("vif", 0, server=net.domid)
    domain = host.domain("net")
    domain.suspend()
    xen.toolstack.write(f"{net.home}/backend/vif/2/0/state", b"6")
    (problem,) = domain.resume().problems
    assert "vif 0 of domain 2" in problem
    assert "the frontend is connected, the backend closed" in problem


def test_guest_that_dies_while_its_devices_are_awaited(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    net.give_card(CARD, back_ns=None)
    domain = host.domain("net")
    domain.suspend()
    xen.after(SECOND, net.crash)
    resumption = domain.resume()
    assert resumption.problems == ("it has shut down or is gone since it was resumed",)
    assert resumption.check_ns == SECOND


def test_look_that_fails_does_not_undo_the_resume(xen: FakeXen, host: xenpm.Host) -> None:
    net = xen.add_guest("net")
    net.give_card(CARD)
    domain = host.domain("net")
    domain.suspend()
    xen.fail("list", 5)
    resumption = domain.resume()
    assert "could not be looked at" in resumption.problems[0]
    assert net.running
    assert_nothing_left(xen)


def test_record_that_cannot_be_written_leaves_the_guest_running(
    xen: FakeXen, host: xenpm.Host
) -> None:
    net = xen.add_guest("net")
    net.give_card(CARD)
    xen.before("write", lambda: xen.fail("write", 28, times=1), nth=1)
    with pytest.raises(xenpm.SuspendError, match="it suspended all the same, and has been resumed"):
        host.domain("net").suspend()
    xen.settle()
    assert net.running
    assert_nothing_left(xen)
