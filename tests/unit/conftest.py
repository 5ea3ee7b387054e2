"""What the unit tests share."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

import xenpm
from xenpm.testing import FakeXen
from xenpm.testing.plugin import xen_host  # noqa: F401  (the tree is not installed)

settings.register_profile("quick", max_examples=150, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "long",
    max_examples=20_000,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
settings.load_profile("quick")


def pytest_configure() -> None:
    if not faulthandler.is_enabled():
        faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored


def pytest_report_header() -> str:
    return f"xenpm {xenpm.__version__} {xenpm.versions()}"


@pytest.fixture
def xen(xen_host: FakeXen) -> FakeXen:  # noqa: F811
    """A fake host; no test may harm one of its guests."""
    return xen_host


@pytest.fixture
def host(xen: FakeXen) -> Iterator[xenpm.Host]:
    """A connection to the fake host."""
    with xenpm.Host(ports=xen.ports()) as host:
        yield host


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own configuration and hooks have no part in the tests."""
    monkeypatch.setattr("xenpm.host.read_settings", xenpm.Settings)
    monkeypatch.setattr("xenpm.host.find_hooks", list)
