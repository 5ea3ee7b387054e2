"""Driver domains in three levels: net owns the card, store hangs on net, disk on both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

import xenpm
from xenpm import config

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
