"""The compiled layer, call by call, against the real hypervisor and the real xenstored."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

import pytest

import xenpm
from xenpm._ext.xenctrl import BUILT_FOR, Xenctrl
from xenpm._ext.xenstore import Xenstore

from .guest import Guest, run

SCENE = "faults"
GuestOf = Callable[[str], Guest]
HVM_PARAM_CALLBACK_IRQ = 0
HVM_PARAM_STORE_EVTCHN = 2
HVM_PARAM_STORE_PFN = 1
HVM_PARAM_CONSOLE_PFN = 17
HVM_PARAM_CONSOLE_EVTCHN = 18
NOWHERE = 30000  # a domid that no lab host comes to

pytestmark = pytest.mark.core
SKEW_NS = 50_000_000  # what is added for a vCPU that runs is by the clock of its processor


# -- libxenctrl


def test_versions(control: Xenctrl) -> None:
    major, minor = control.version()
    assert f"{major}.{minor}" == BUILT_FOR
    assert xenpm.versions() == {"built_for": BUILT_FOR, "running": BUILT_FOR}


def test_list_agrees_with_info_and_with_xl(control: Xenctrl) -> None:
    infos = control.domain_list()
    listed = [line.split() for line in run("xl", "list").splitlines()[1:]]
    assert [info.domid for info in infos] == [int(row[1]) for row in listed]
    assert [info.vcpus_online for info in infos] == [int(row[3]) for row in listed]
    for info in infos:
        one = control.domain_info(info.domid)
        assert one is not None
        assert (one.handle, one.type, one.max_vcpu_id) == (info.handle, info.type, info.max_vcpu_id)
    assert infos[0].type is xenpm.DomainType.PV


def test_vcpus_add_up_to_their_domain(control: Xenctrl) -> None:
    for info in control.domain_list():
        vcpus = [control.vcpu_info(info.domid, n) for n in range(info.max_vcpu_id + 1)]
        after = control.domain_info(info.domid)
        assert after is not None
        assert sum(vcpu.online for vcpu in vcpus) == info.vcpus_online
        used = sum(vcpu.cpu_time_ns for vcpu in vcpus)
        assert info.cpu_time_ns - SKEW_NS <= used <= after.cpu_time_ns + SKEW_NS
        with pytest.raises(xenpm.HypercallError, match="xc_vcpu_getinfo"):
            control.vcpu_info(info.domid, info.max_vcpu_id + 1)


def test_no_such_domain(control: Xenctrl) -> None:
    assert control.domain_info(NOWHERE) is None
    for call in (control.pause, control.unpause, control.evtchn_reset, control.soft_reset):
        with pytest.raises(xenpm.HypercallError) as caught:
            call(NOWHERE)
        assert caught.value.errno == errno.ESRCH
        assert caught.value.call.startswith("xc_")


def test_error_carries_the_librarys_own_words(control: Xenctrl) -> None:
    with pytest.raises(xenpm.HypercallError) as caught:
        control.resume(NOWHERE, cooperative=True)
    assert caught.value.call == "xc_domain_resume"
    assert caught.value.detail, "libxc said why, and it was lost"
    assert caught.value.detail in str(caught.value)


def test_hvm_parameters(control: Xenctrl, guest: GuestOf) -> None:
    pvh, pv = guest("victim-pvh").domain.domid, guest("victim-pv").domain.domid
    assert control.hvm_param_get(pvh, HVM_PARAM_CALLBACK_IRQ) != 0
    port = control.hvm_param_get(pvh, HVM_PARAM_STORE_EVTCHN)
    control.hvm_param_set(pvh, HVM_PARAM_STORE_EVTCHN, port)
    assert control.hvm_param_get(pvh, HVM_PARAM_STORE_EVTCHN) == port > 0
    with pytest.raises(xenpm.HypercallError):
        control.hvm_param_get(pv, HVM_PARAM_CALLBACK_IRQ)
    with pytest.raises(xenpm.HypercallError):
        control.hvm_param_set(pvh, 10_000, 1)


def test_event_channel_reset_wants_a_paused_domain(control: Xenctrl, guest: GuestOf) -> None:
    domid = guest("victim-pvh").domain.domid
    with pytest.raises(xenpm.HypercallError) as caught:
        control.evtchn_reset(domid)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("bad", [-1, 0x7FF0, 65537, 2**32, 2**70])
def test_domid_out_of_range_never_reaches_c(bad: int, control: Xenctrl) -> None:
    # C would cut 65537 down to domain 1
    for call in (control.domain_info, control.pause, control.soft_reset):
        with pytest.raises(ValueError, match="domid"):
            call(bad)
    with pytest.raises(ValueError, match="domid"):
        control.evtchn_alloc_unbound(0, bad)


@pytest.mark.parametrize("bad", ["1", 1.0, None, True, b"1"])
def test_domid_of_wrong_type(bad: object, control: Xenctrl) -> None:
    with pytest.raises(TypeError):
        control.domain_info(bad)  # type: ignore[arg-type]


def test_shutdown_reason_out_of_range(control: Xenctrl, guest: GuestOf) -> None:
    with guest("victim-pv").unharmed():
        domid = guest("victim-pv").domain.domid
        for bad in (-1, 256, 2**40):
            with pytest.raises(ValueError, match="reason"):
                control.shutdown(domid, bad)


def test_use_after_close() -> None:
    control, store = Xenctrl(), Xenstore()
    for handle in (control, store):
        handle.close()
        handle.close()
        assert handle.closed
    with pytest.raises(ValueError, match="closed"):
        control.domain_list()
    with pytest.raises(ValueError, match="closed"):
        store.read("/")


def test_use_after_fork(control: Xenctrl, store: Xenstore) -> None:
    store.watch("/tool", "t")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (control.domain_list, store.fileno):
                with pytest.raises(RuntimeError, match="fork"):
                    call()
            control.close()
            store.close()
            with Xenctrl() as own, Xenstore() as own_store:
                assert own.domain_info(0) is not None
                assert own_store.list("/")
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert control.domain_info(0) is not None
    assert store.list("/")


@pytest.mark.trouble
def test_fresh_ground_for_a_pvh_guest(guest: GuestOf) -> None:
    """Soft reset, new channels, seeded grant table: the calls that a reinit is made of."""
    subject = guest("victim-pvh")
    control, store, domain = subject.control, subject.store, subject.domain
    boot, home, domid = subject.boot, subject.home, domain.domid
    domain.suspend()
    store_gfn = control.hvm_param_get(domid, HVM_PARAM_STORE_PFN)
    console_gfn = control.hvm_param_get(domid, HVM_PARAM_CONSOLE_PFN)
    control.pause(domid)
    try:
        control.soft_reset(domid)
        store_port = control.evtchn_alloc_unbound(domid, 0)
        console_port = control.evtchn_alloc_unbound(domid, 0)
        assert 0 < store_port != console_port > 0
        control.hvm_param_set(domid, HVM_PARAM_STORE_EVTCHN, store_port)
        control.hvm_param_set(domid, HVM_PARAM_CONSOLE_EVTCHN, console_port)
        store.write(f"{home}/control/shutdown", b"")
        store.introduce_domain(domid, store_gfn, store_port)
        store.write(f"{home}/store/port", str(store_port).encode())
        store.write(f"{home}/console/port", str(console_port).encode())
        control.gnttab_seed(domid, True, console_gfn, store_gfn, 0, 0)
    finally:
        control.unpause(domid)
    store.resume_domain(domid)
    count = subject.count
    subject.wait_counting(count)
    assert subject.boot == boot
    assert subject.state == "running"


# -- libxenstore

PLACE = "/local/xenpm-test"  # /tool is not there on every release


@pytest.fixture(autouse=True)
def _place(store: Xenstore) -> None:
    if "xenpm-test" in store.list("/local"):
        store.remove(PLACE)


def test_store_values_and_lists(store: Xenstore) -> None:
    store.write(f"{PLACE}/a", b"\x00\xff binary")
    store.mkdir(f"{PLACE}/b")
    assert store.read(f"{PLACE}/a") == b"\x00\xff binary"
    assert store.read(f"{PLACE}/b") == b""
    assert sorted(store.list(PLACE)) == ["a", "b"]
    assert run("xenstore-list", PLACE).split() == store.list(PLACE)
    store.remove(PLACE)
    with pytest.raises(xenpm.NoSuchNode) as caught:
        store.read(f"{PLACE}/a")
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value, FileNotFoundError)


def test_store_refuses_bad_paths_and_values(store: Xenstore) -> None:
    for path in ("", "/a\0b", "/" + "x" * 4000):
        with pytest.raises(ValueError, match="path"):
            store.read(path)
    with pytest.raises(ValueError, match="4096"):
        store.write(PLACE, b"x" * 5000)
    with pytest.raises(TypeError):
        store.write(PLACE, "text")  # type: ignore[arg-type]
    with pytest.raises(xenpm.StoreError) as caught:
        store.read("/bad//path")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="transaction"):
        store.read("/", -1)


def test_store_permissions(store: Xenstore, guest: GuestOf) -> None:
    domid = guest("victim-pv").domain.domid
    wanted = [
        xenpm.Permission(0, read=False, write=False),
        xenpm.Permission(domid, read=True, write=True),
    ]
    store.write(PLACE, b"")
    store.set_permissions(PLACE, wanted)
    assert store.get_permissions(PLACE) == wanted
    (line,) = [
        line for line in run("xenstore-ls", "-p", "/local").splitlines() if "xenpm-test" in line
    ]
    assert f"(n0,b{domid})" in line
    with pytest.raises(ValueError, match="owner"):
        store.set_permissions(PLACE, [])


def test_store_transactions(store: Xenstore) -> None:
    store.write(PLACE, b"1")
    with Xenstore() as other:
        transaction = store.transaction_start()
        assert store.read(PLACE, transaction) == b"1"
        store.write(PLACE, b"2", transaction)
        assert other.read(PLACE) == b"1", "seen before the end of the transaction"
        other.write(PLACE, b"3")
        with pytest.raises(xenpm.TransactionConflict):
            store.transaction_end(transaction)
        assert store.read(PLACE) == b"3"
    transaction = store.transaction_start()
    store.write(PLACE, b"4", transaction)
    store.transaction_end(transaction, abort=True)
    assert store.read(PLACE) == b"3"
    transaction = store.transaction_start()
    store.write(PLACE, b"5", transaction)
    store.transaction_end(transaction)
    assert store.read(PLACE) == b"5"
    with pytest.raises(xenpm.StoreError):
        store.transaction_end(transaction)


def test_store_watches_through_the_descriptor(store: Xenstore) -> None:
    store.watch(PLACE, "one")
    assert _next(store) == (PLACE, "one")
    assert store.check_watch() is None
    with Xenstore() as other:
        other.write(f"{PLACE}/below", b"")
        assert _next(store) == (f"{PLACE}/below", "one")
        store.unwatch(PLACE, "one")
        other.write(PLACE, b"again")
        assert store.check_watch() is None
    with pytest.raises(xenpm.StoreError) as caught:
        store.unwatch(PLACE, "one")
    assert caught.value.errno == errno.ENOENT


def _next(store: Xenstore) -> tuple[str, str] | None:
    readable, _, _ = select.select([store.fileno()], [], [], 30)
    assert readable, "no event within half a minute"
    return store.check_watch()


def test_resume_of_a_domain_that_xenstored_does_not_know(store: Xenstore) -> None:
    with pytest.raises(xenpm.StoreError) as caught:
        store.resume_domain(NOWHERE)
    assert caught.value.errno in (errno.ENOENT, errno.EINVAL)  # the C and the OCaml xenstored
    with pytest.raises(xenpm.StoreError):
        store.release_domain(NOWHERE)
