"""The extension module for libxl and libxlutil: what can be seen without Xen."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import xenpm

from .test_xenstore import DOMIDS, in_child

try:
    from xenpm._ext import xenlight
    from xenpm._ext.xenlight import Xenlight
except ImportError:
    pytest.skip("the extension modules are not built", allow_module_level=True)

METHODS: dict[str, tuple[object, ...]] = {
    "domain_configuration": (1,),
    "assignable_pci": (),
}
OPERATIONS: dict[str, tuple[object, ...]] = {
    "save": (1, 0),
    "restore": ("{}", 0),
    "soft_reset": (1, "{}"),
    "resume": (1,),
    "unpause": (1,),
    "destroy": (1,),
}

needs_no_xen = pytest.mark.skipif(Path("/dev/xen/privcmd").exists(), reason="this is a Xen host")


@pytest.fixture
def bare() -> Any:
    """A context that was never opened."""
    return Xenlight.__new__(Xenlight)


# -- contexts


def test_methods_are_all_known() -> None:
    public = {name for name in dir(Xenlight) if not name.startswith("_")}
    assert public == {*METHODS, *OPERATIONS, "abort", "close", "closed", "created", "wait"}


@needs_no_xen
def test_open_without_xen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "xenpm.xenlight")
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(xenpm.XenlightError, match="cannot open libxc handle") as caught:
            Xenlight()
        assert caught.value.call == "libxl_ctx_alloc"
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert any("privileged command interface" in record.message for record in caplog.records)


@needs_no_xen
def test_without_xen_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(xenpm.NotXenHost, match="is this dom0"):
        xenpm.config.assignable()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(xenpm.NotPermitted, match="it takes root in dom0"):
        xenpm.config.assignable()


@needs_no_xen
def test_context_that_could_not_be_opened_is_closed(bare: Any) -> None:
    with pytest.raises(xenpm.XenlightError):
        bare.__init__()
    assert bare.closed
    for name, arguments in METHODS.items():
        with pytest.raises(ValueError, match="closed"):
            getattr(bare, name)(*arguments)
    with pytest.raises(RuntimeError, match="twice"):
        bare.__init__()
    bare.close()


@pytest.mark.parametrize("name", [*METHODS, *OPERATIONS])
def test_use_without_initialisation(bare: Any, name: str) -> None:
    with pytest.raises(ValueError, match="never opened"):
        getattr(bare, name)(*{**METHODS, **OPERATIONS}[name])
    bare.close()
    assert bare.closed


@needs_no_xen
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("forks", "why"), [(False, "may fork"), (True, "closed")])
def test_operations_take_a_context_that_may_fork(
    bare: Any, name: str, forks: bool, why: str
) -> None:
    with pytest.raises(xenpm.XenlightError):
        bare.__init__(forks=forks)
    with pytest.raises(ValueError, match=why):
        getattr(bare, name)(*OPERATIONS[name])
    assert bare.created is None
    for verb, arguments in ((bare.wait, (0,)), (bare.abort, ())):
        with pytest.raises(ValueError, match="no operation"):
            verb(*arguments)


@pytest.mark.parametrize(("domid", "kind"), DOMIDS)
def test_wrong_domids(bare: Any, domid: object, kind: type[Exception]) -> None:
    for verb in (bare.domain_configuration, bare.resume, bare.unpause, bare.destroy):
        with pytest.raises(kind, match="domid"):
            verb(domid)
    with pytest.raises(kind, match="domid"):
        bare.save(domid, 0)
    with pytest.raises(kind, match="domid"):
        bare.soft_reset(domid, "{}")


def test_no_copies(bare: Any) -> None:
    for verb in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            verb(bare)


def test_no_subclasses() -> None:
    with pytest.raises(TypeError):
        type("Mine", (Xenlight,), {})


def test_collected_in_a_child(bare: Any) -> None:
    contexts = [bare]
    del bare
    assert in_child(contexts.clear) == "None"


def test_the_rest_works_without_libxl() -> None:
    """libxl is loaded when it is asked for, and its absence is told in words."""
    program = """
import sys
sys.modules["xenpm._ext.xenlight"] = None  # as if it could not be imported
import xenpm
from xenpm._ext import xenctrl, xenstore
assert xenpm.versions()["built_for"]
try:
    xenpm.config.parse("name = 'web'")
except xenpm.LibraryMismatch as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "extension modules" in done.stdout


# -- libxlutil


def test_settings() -> None:
    text = "a = 'one'\nb = 0x10\nc = [ 'x', ['y', ['z', ['deep']]], 7 ]\na += ' more'\n"
    found, warnings = xenlight.read_settings(text, ["a", "b"], ["b"], ["c"])
    assert found == {"a": "one more", "b": 16, "c": ["x", ["y", ["z", None]], "7"]}
    assert warnings == []


def test_settings_of_another_kind() -> None:
    found, warnings = xenlight.read_settings("a = [1]\nb = 'x'\n", ["a"], ["b"], ["b", "c"])
    assert found == {}
    assert [warning.partition(":")[0] for warning in warnings] == ["1", "2", "2"]
    assert all("warning: parameter" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("a b", "1: config parsing error near `b': syntax error"),
        ("a = 1\n$\n%\n", "2: config parsing error near `$': lexical error\n3: config"),
        ("a = '\n", "1: config parsing error near `'': lexical error"),
        ("\0", "the configuration has a NUL character"),
        ("#" * (64 * 1024 + 1), "the configuration is longer than 65536 bytes"),
        ("a = " + "[" * 60_000, "memory exhausted"),
    ],
)
def test_settings_that_are_none(text: str, report: str) -> None:
    with pytest.raises(xenpm.ConfigError) as caught:
        xenlight.read_settings(text)
    assert report in caught.value.what
    assert (caught.value.source, caught.value.line) == ("", None)


@pytest.mark.parametrize(
    "parse",
    [
        xenlight.read_settings,
        xenlight.parse_pci,
        xenlight.parse_disk,
        xenlight.parse_rdm,
        xenlight.check_rate,
    ],
)
def test_strings_that_are_none(parse: Any) -> None:
    for value in (None, 5, b"00:10.0", ["00:10.0"]):
        with pytest.raises(TypeError, match="must be a str"):
            parse(value)
    with pytest.raises(xenpm.ConfigError, match="NUL"):
        parse("00:10.0\0")
    with pytest.raises(xenpm.ConfigError, match="is longer than"):
        parse("x" * 70_000)


def test_pci() -> None:
    device = json.loads(xenlight.parse_pci("00:10.0,permissive=0", permissive=True, seize=True))
    assert device == {"dev": 16, "vfunc_mask": 1, "seize": True}
    strict = json.loads(xenlight.parse_pci("00:10.0", rdm_policy=0))
    assert strict["rdm_policy"] == "strict"


def test_disk() -> None:
    disk = json.loads(xenlight.parse_disk("backend=store,vdev=xvda,target=/a"))
    assert disk["backend_domname"] == "store"
    with pytest.raises(xenpm.ConfigError, match=r"^no vdev specified in `/a'$"):
        xenlight.parse_disk("/a")
    assert xenlight.parse_disk("/" + "a" * 8000 + ",raw,xvda")


def test_disk_on_which_libxlutil_would_end_the_process() -> None:
    for spec in ("=\n", "vdev=xvda,=\n,target=1", "-=\n\n"):
        with pytest.raises(xenpm.ConfigError, match="line end"):
            xenlight.parse_disk(spec)


def test_rate() -> None:
    for _ in range(3):
        with pytest.raises(xenpm.ConfigError, match="rate overflow"):
            xenlight.check_rate("99999999999999999999GB/s")  # leaves errno set
        xenlight.check_rate("10Mb/s@50ms")


def test_parsing_leaves_nothing_behind() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        xenlight.read_settings("a = 1\n", ["a"])
        for parse in (xenlight.read_settings, xenlight.parse_pci, xenlight.parse_disk):
            with pytest.raises(xenpm.ConfigError):
                parse("$\n")
    assert len(os.listdir("/proc/self/fd")) == descriptors
