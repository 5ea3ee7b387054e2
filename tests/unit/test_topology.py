"""The graph of who uses whom, and the order that it gives."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xenpm
from xenpm.testing import STORE_REQUESTS, FakeXen
from xenpm.topology import Topology

CARD = "0000:00:10.0"


def names(steps: list[tuple[xenpm.DomainRef, ...]]) -> list[list[str]]:
    return [[ref.name for ref in step] for step in steps]


@pytest.fixture
def three_levels(xen: FakeXen) -> FakeXen:
    net = xen.add_guest("net")
    net.give_card(CARD)
    store = xen.add_guest("store")
    store.give_device("vif", 0, server=net.domid)
    disk = xen.add_guest("disk")
    disk.give_device("vbd", 51712, server=store.domid)
    disk.give_device("vif", 0, server=net.domid)
    xen.add_guest("wire").give_device("vif", 0, server=net.domid)
    xen.add_guest("plain").give_device("vif", 0)
    return xen


@pytest.mark.usefixtures("three_levels")
def test_order_of_three_levels(host: xenpm.Host) -> None:
    topology = host.topology()
    assert names(topology.suspend_order()) == [["disk", "wire", "plain"], ["store"], ["net"]]
    # nobody waits longer than it must
    assert names(topology.resume_order()) == [["net", "plain"], ["store", "wire"], ["disk"]]
    assert topology.cycles == ()
    drivers = [m.domain.name for m in topology.members if topology.driver_domain(m.domain.domid)]
    assert drivers == ["net", "store"]


@pytest.mark.usefixtures("three_levels")
def test_tree(host: xenpm.Host) -> None:
    assert host.topology().to_tree() == [
        f"net (domain 1)  pvh  driver domain: owns {CARD}; serves domain 2, domain 3, domain 4",
        "├─ store (domain 2)  pvh  uses vif 0  driver domain: serves domain 3",
        "│  └─ disk (domain 3)  pvh  uses vbd 51712",
        "├─ disk (domain 3)  pvh  uses vif 0",
        "└─ wire (domain 4)  pvh  uses vif 0",
        "plain (domain 5)  pvh",
    ]


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz")
def test_graph_is_what_graphviz_takes(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest('a "quoted\\ name').give_device("vif", 0, server=2)
    xen.add_guest("b").give_device("vif", 0, server=1)
    dot = host.topology().to_dot()
    done = subprocess.run(["dot", "-Tplain"], input=dot, capture_output=True, text=True, check=True)
    assert len([line for line in done.stdout.splitlines() if line.startswith("edge ")]) == 2


@pytest.mark.usefixtures("three_levels")
def test_graph(host: xenpm.Host) -> None:
    lines = host.topology().to_dot().splitlines()
    arrows = [line.strip() for line in lines if " -> " in line]
    assert arrows == [
        '2 -> 1 [label="vif 0"];',
        '3 -> 1 [label="vif 0"];',
        '3 -> 2 [label="vbd 51712"];',
        '4 -> 1 [label="vif 0"];',
    ]


def test_tree_of_any_depth(xen: FakeXen, host: xenpm.Host) -> None:
    """Deeper than Python's own stack."""
    xen.add_guest("web").give_device("vif", 0)
    (web,) = host.topology().members
    members = [
        replace(
            web,
            domain=web.domain._replace(domid=domid, name=f"g{domid}"),
            uses=(replace(web.uses[0], frontend_domid=domid, backend_domid=domid - 1),),
        )
        for domid in range(1, 1101)
    ]
    lines = Topology(members).to_tree()
    assert len(lines) == 1100
    assert lines[-1].endswith("└─ g1100 (domain 1100)  pvh  uses vif 0")


def test_cycle_goes_together_and_is_named(xen: FakeXen, host: xenpm.Host) -> None:
    for server in (2, 3, 1):
        xen.add_guest(f"ring{server}").give_device("vif", 0, server=server)
    xen.add_guest("user").give_device("vbd", 0, server=2)
    xen.add_guest("base")
    xen.guests[1].give_device("vbd", 1, server=5)
    topology = host.topology()
    assert [[ref.domid for ref in cycle] for cycle in topology.cycles] == [[1, 2, 3]]
    order = [[ref.domid for ref in step] for step in topology.suspend_order()]
    assert order == [[4], [1, 2, 3], [5]]
    assert len(topology.to_tree()) == 6  # every domain, and where the ring closes


def test_backend_domain_that_is_gone(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web").give_device("vif", 0, server=77)
    topology = host.topology()
    assert names(topology.suspend_order()) == [["web"]]
    assert topology.to_tree() == ["web (domain 1)  pvh  its backend, domain 77, is gone"]


def test_nonsense_is_told_and_does_not_hide_the_rest(
    three_levels: FakeXen, host: xenpm.Host
) -> None:
    three_levels.toolstack.write("/libxl/5/device/vif/0/backend", b"?")
    topology = host.topology()
    assert [m.domain.name for m in topology.members if m.unreadable] == ["plain"]
    assert topology.driver_domain(1).known is True
    assert topology.driver_domain(4).known is None
    assert "wire (domain 4)  pvh  uses vif 0  driver domain: unknown" in topology.to_tree()[4]


@pytest.mark.usefixtures("three_levels")
def test_as_plain_values(host: xenpm.Host) -> None:
    told = json.loads(json.dumps(host.topology().to_dict()))
    assert told["suspend_order"] == [[3, 4, 5], [2], [1]]
    assert told["domains"][0]["owns"][0]["address"] == CARD
    assert [each["driver_domain"] for each in told["domains"]] == [True, True, False, False, False]


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.just(n), st.sets(st.tuples(st.integers(1, n), st.integers(1, n)), max_size=20)
        )
    )
)
def test_any_graph(graph: tuple[int, set[tuple[int, int]]]) -> None:
    """Everybody is in the order once, after all that use it and are in no cycle with it."""
    count, edges = graph
    xen = FakeXen()
    for _ in range(count):
        xen.add_guest("guest")
    for user, server in edges:
        xen.guests[user].give_device("vif", server, server=server)
    with xenpm.Host(ports=xen.ports()) as host:
        topology = host.topology()
    cycles = [{ref.domid for ref in cycle} for cycle in topology.cycles]
    for order, first in ((topology.suspend_order(), 0), (topology.resume_order(), 1)):
        steps = [{ref.domid for ref in step} for step in order]
        assert sorted(domid for step in steps for domid in step) == list(range(1, count + 1))
        at = {domid: index for index, step in enumerate(steps) for domid in step}
        for edge in edges:
            together = edge[0] == edge[1] or any({*edge} <= cycle for cycle in cycles)
            assert at[edge[0]] == at[edge[1]] if together else at[edge[first]] < at[edge[1 - first]]
    topology.to_tree()


def test_requests_for_64_domains_are_bounded() -> None:
    """Linear in domains and devices: three for each domain, and one for each device and kind."""
    xen = FakeXen()
    xen.add_guest("net").give_card(CARD)
    for index in range(63):
        guest = xen.add_guest(f"guest{index}")
        for devid in range(2):
            guest.give_device("vbd", devid)
        guest.give_device("vif", 0, server=1)
    with xenpm.Host(ports=xen.ports()) as host:
        domain = host.domain(1)
        for look in (host.topology, lambda: domain.is_driver_domain):
            xen.calls.clear()
            look()
            requests = sum(xen.calls[name] for name in STORE_REQUESTS)
            assert requests == 64 * 3 + 63 * (2 + 3) + 1 + 8
            assert xen.calls["domain_list"] == 2
