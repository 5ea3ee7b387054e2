"""Driver domains in three levels: net owns the card, store hangs on net, disk on both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

import xenpm
from xenpm import config
from xenpm._ext.xenstore import Xenstore
from xenpm.ports import Hypervisor, Store
from xenpm.system import open_ports

from .guest import Guest
from .order import in_order, in_wrong_order

SCENE = "drivers"
NAMES = ["net", "store", "disk", "wire"]
GuestOf = Callable[[str], Guest]


def test_topology(host: xenpm.Host) -> None:
    topology = host.topology()
    assert not [each for member in topology.members for each in member.unreadable]
    order = [{ref.name for ref in step} for step in topology.suspend_order()]
    assert order == [{"disk", "wire"}, {"store"}, {"net"}]
    back = [{ref.name for ref in step} for step in topology.resume_order()]
    assert back == [{"net"}, {"store", "wire"}, {"disk"}]
    assert topology.cycles == ()
    evidence = {name: str(host.domain(name).is_driver_domain) for name in NAMES}
    domid = {name: host.domain(name).domid for name in NAMES}
    users = sorted(domid[name] for name in ("store", "disk", "wire"))
    served = ", ".join(f"domain {user}" for user in users)
    assert evidence["net"] == f"owns 0000:00:10.0; serves {served}"
    assert evidence["store"] == f"serves domain {domid['disk']}"
    assert not host.domain("disk").is_driver_domain
    assert not host.domain("wire").is_driver_domain


def test_configurations_tell_the_same(host: xenpm.Host) -> None:
    planned = config.read_files([f"/root/guests/{name}.cfg" for name in NAMES])
    assert planned.errors == []
    drivers = {name for name, driver in planned.driver_domains().items() if driver}
    assert drivers == {"net", "store"}
    assert drivers == {name for name in NAMES if host.domain(name).is_driver_domain}
    assert str(planned.driver_domain("store")) == "serves disk"
    running = [config.of(host.domain(name)) for name in NAMES]
    assert {each.name for each in running if each.pci} == {"net"}


def test_both_ends_of_each_device(host: xenpm.Host) -> None:
    disk, net = host.domain("disk"), host.domain("net")
    uses = {device.kind: device for device in disk.backends if device.kind != "console"}
    assert {kind: device.backend_domid for kind, device in uses.items()} == {
        "vbd": host.domain("store").domid,
        "vif": net.domid,
    }
    for device in uses.values():
        assert device.frontend_state is device.backend_state is xenpm.XenbusState.CONNECTED
    assert uses["vif"] in net.frontends
    assert host.domain("store").frontends == (uses["vbd"],)


class Crowd:
    """The hypervisor, with more domains that are nothing but entries in xenstore."""

    def __init__(self, real: Hypervisor, domids: Iterable[int]) -> None:
        self._real = real
        self._domids = domids

    def domain_list(self) -> list[xenpm.DomainInfo]:
        real = self._real.domain_list()
        return real + [
            real[-1]._replace(domid=domid, handle=domid.to_bytes(16, "big"))
            for domid in self._domids
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Counted:
    """xenstored, with its requests counted."""

    def __init__(self, real: Store) -> None:
        self._real = real
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        self.requests += 1
        return getattr(self._real, name)


@pytest.mark.soak
def test_64_domains_cost_a_bounded_number_of_requests(host: xenpm.Host, store: Xenstore) -> None:
    """Three for each domain, one for each device and one for each kind of device."""
    crowd, net = range(1000, 1060), host.domain("net").domid
    assert len(host.domains()) + len(crowd) == 64
    try:
        for domid in crowd:
            store.write(f"/local/domain/{domid}/name", b"entry")
            for kind, devid in (("vbd", 51712), ("vbd", 51728), ("vif", 0)):
                backend = f"/local/domain/{net}/backend/{kind}/{domid}/{devid}"
                store.write(f"/libxl/{domid}/device/{kind}/{devid}/backend", backend.encode())
        requests = []
        for domids in ((), crowd):
            ports = open_ports()
            counted = Counted(ports.store)
            with xenpm.Host(
                ports=replace(ports, hypervisor=Crowd(ports.hypervisor, domids), store=counted)
            ) as counting:
                topology = counting.topology()
                requests.append(counted.requests)
            assert len(topology.members) == len(NAMES) + len(domids)
        assert len(topology.served_by(net)) == 3 + 3 * len(crowd)
        assert requests[1] - requests[0] == len(crowd) * (3 + 3 + 2)
    finally:
        for domid in crowd:
            store.remove(f"/local/domain/{domid}")
            store.remove(f"/libxl/{domid}")


def test_command_line() -> None:
    command = [sys.executable, "-m", "xenpm", "topology"]
    told = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert [len(step) for step in json.loads(told.stdout)["suspend_order"]] == [2, 1, 1]
    tree = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert tree[0].startswith("net (domain ")
    assert "├─ store" in tree[1]
    assert "│  └─ disk" in tree[2]
    assert tree[-2] == "suspend: disk wire, then store, then net"
    assert tree[-1] == "resume: net, then store wire, then disk"


@pytest.mark.parametrize("cycles", [5, pytest.param(100, marks=pytest.mark.soak)])
def test_right_order_leaves_everybody_alive(cycles: int, host: xenpm.Host, guest: GuestOf) -> None:
    guests = [guest(name) for name in NAMES]
    boots = [each.boot for each in guests]
    for _ in range(cycles):
        failed = in_order(host)
        assert not failed
        for each in guests:
            each.wait_pinging()
        assert guests[2].wait_working("io", "verified")["errors"] == "0"
    assert [each.boot for each in guests] == boots


@pytest.mark.trouble
def test_wrong_order_breaks(host: xenpm.Host, guest: GuestOf) -> None:
    """A guest whose disk is asleep cannot freeze its processes, so it does not suspend."""
    guests = [guest(name) for name in NAMES]
    guests[2].command("freeze-timeout 2000")
    failed = in_wrong_order(host, timeout=15)
    assert set(failed) == {"disk"}
    assert isinstance(failed["disk"], xenpm.SuspendNotCompleted)
    # and once its backends are back, it lives
    for each in guests:
        each.wait_pinging()
    assert guests[2].wait_working("io", "verified")["errors"] == "0"
    assert not in_order(host)
