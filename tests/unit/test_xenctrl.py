"""The extension module for the hypervisor: what can be seen without one.

The hypercalls themselves are tested on real Xen, in tests/xen.
"""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import xenpm

from .test_xenstore import DOMIDS, in_child

try:
    from xenpm._ext.xenctrl import BUILT_FOR, Xenctrl
except ImportError:
    pytest.skip("the extension modules are not built", allow_module_level=True)

METHODS: dict[str, tuple[object, ...]] = {
    "domain_info": (1,),
    "domain_list": (),
    "pause": (1,),
    "vcpu_info": (1, 0),
    "unpause": (1,),
    "send_trigger": (1, 0, 0),
    "shutdown": (1, 2),
    "resume": (1, True),
    "hvm_param_get": (1, 0),
    "hvm_param_set": (1, 0, 0),
    "evtchn_alloc_unbound": (1, 0),
    "evtchn_remote": (1, 2),
    "suspend_evtchn_notify": (1, 2),
    "store_ring_discard": (1, 2),
    "evtchn_reset": (1,),
    "soft_reset": (1,),
    "gnttab_seed": (1, True, 1, 2, 0, 0),
    "version": (),
}
WITH_DOMID = [name for name, arguments in METHODS.items() if arguments]

needs_no_xen = pytest.mark.skipif(Path("/dev/xen/privcmd").exists(), reason="this is a Xen host")


@pytest.fixture
def bare() -> Any:
    """A handle that was never opened."""
    return Xenctrl.__new__(Xenctrl)


def call(control: Any, name: str, *arguments: object) -> object:
    """Call a method with the arguments given, and with good ones for the others."""
    return getattr(control, name)(*arguments, *METHODS[name][len(arguments) :])


def test_methods_are_all_known() -> None:
    public = {name for name in dir(Xenctrl) if not name.startswith("_")}
    assert public == {*METHODS, "close", "closed"}


@needs_no_xen
def test_open_without_xen() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises((xenpm.HypercallError, xenpm.NotPermitted)) as caught:
            Xenctrl()
        assert caught.value.call == "xc_interface_open"
        assert caught.value.errno
        assert "privileged command interface" in caught.value.detail
    assert len(os.listdir("/proc/self/fd")) == descriptors


@needs_no_xen
def test_handle_that_could_not_be_opened_is_closed(bare: Any) -> None:
    with pytest.raises(xenpm.XenError):
        bare.__init__()
    assert bare.closed
    for name in METHODS:
        with pytest.raises(ValueError, match="closed"):
            call(bare, name)
    with pytest.raises(RuntimeError, match="twice"):
        bare.__init__()
    bare.close()


@pytest.mark.parametrize("name", METHODS)
def test_use_without_initialisation(bare: Any, name: str) -> None:
    with pytest.raises(ValueError, match="never opened"):
        call(bare, name)
    bare.close()
    assert bare.closed


@pytest.mark.parametrize("name", WITH_DOMID)
@pytest.mark.parametrize(("domid", "kind"), DOMIDS)
def test_wrong_domids(bare: Any, name: str, domid: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="domid"):
        call(bare, name, domid)


@pytest.mark.parametrize(("domid", "kind"), DOMIDS)
def test_wrong_second_domids(bare: Any, domid: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="domid"):
        bare.evtchn_alloc_unbound(1, domid)
    with pytest.raises(kind, match="domid"):
        bare.gnttab_seed(1, True, 1, 2, domid, 0)
    with pytest.raises(kind, match="domid"):
        bare.gnttab_seed(1, True, 1, 2, 0, domid)


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("shutdown", (1, -1), ValueError),
        ("shutdown", (1, 256), ValueError),
        ("shutdown", (1, 2**40), ValueError),
        ("shutdown", (1, "2"), TypeError),
        ("shutdown", (1, None), TypeError),
        ("send_trigger", (1, -1, 0), ValueError),
        ("send_trigger", (1, 0, -1), ValueError),
        ("hvm_param_get", (1, -1), ValueError),
        ("hvm_param_get", (1, 2**32), ValueError),
        ("hvm_param_get", (1, "0"), TypeError),
        ("hvm_param_set", (1, 0, -1), ValueError),
        ("hvm_param_set", (1, 0, 2**64), ValueError),
        ("hvm_param_set", (1, 0, 1.5), TypeError),
        ("hvm_param_set", (1, 0, True), TypeError),
        ("shutdown", (1, 2.5), TypeError),
        ("gnttab_seed", (1, True, -1, 2, 0, 0), ValueError),
        ("gnttab_seed", (1, True, 1, 2**64, 0, 0), ValueError),
        ("resume", (1,), TypeError),
        ("pause", (), TypeError),
    ],
)
def test_wrong_numbers(
    bare: Any, name: str, arguments: tuple[object, ...], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        getattr(bare, name)(*arguments)


def test_no_copies(bare: Any) -> None:
    for verb in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            verb(bare)


def test_no_subclasses() -> None:
    with pytest.raises(TypeError):
        type("Mine", (Xenctrl,), {})


def test_collected_in_a_child(bare: Any) -> None:
    handles = [bare]
    del bare
    assert in_child(handles.clear) == "None"


def test_built_for() -> None:
    assert xenpm.versions()["built_for"] == BUILT_FOR
