"""What `xenpm.testing` offers to those who test their own use of xenpm."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

import xenpm
from xenpm import ShutdownReason
from xenpm.testing import MS, SECOND, FakeXen

pytest_plugins = ["pytester"]
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_code_under_test_reaches_the_fake_host(xen_host: FakeXen) -> None:
    web = xen_host.add_guest("web")
    domain = xenpm.Domain("web")
    domain.suspend()
    assert web.suspended
    with xenpm.Host() as host:
        host.domain("web").resume()
    assert web.running


def test_other_threads_reach_it_too(xen_host: FakeXen) -> None:
    xen_host.add_guest("web")
    found = []
    thread = threading.Thread(target=lambda: found.append(xenpm.Domain("web").domid))
    thread.start()
    thread.join()
    assert found == [1]


def test_each_host_is_one_of_its_own() -> None:
    one, two = FakeXen(), FakeXen()
    one.add_guest("web")
    two.add_guest("db")
    with one.installed():
        assert xenpm.Domain("web").domid == 1
        with two.installed():
            assert xenpm.Domain("db").domid == 1
            with pytest.raises(xenpm.NoSuchDomain):
                xenpm.Domain("web")
        assert xenpm.Domain("web").domid == 1


def test_real_ports_are_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    class RealPortsError(Exception):
        """They were asked for."""

    def open_ports() -> object:
        raise RealPortsError

    monkeypatch.setattr("xenpm.connection._opener", open_ports)
    with FakeXen().installed():
        xenpm.Host().close()
    with pytest.raises(RealPortsError):
        xenpm.Host()


@pytest.mark.parametrize(
    ("reason", "state"),
    [(ShutdownReason.CRASH, "crashed"), (ShutdownReason.POWEROFF, "shutdown")],
)
def test_guest_that_does_something_else(
    xen_host: FakeXen, reason: ShutdownReason, state: str
) -> None:
    xen_host.add_guest("web", shuts_down_for=reason)
    domain = xenpm.Domain("web")
    with pytest.raises(xenpm.SuspendInterrupted) as caught:
        domain.suspend()
    assert caught.value.reason is reason
    assert domain.state.value == state


def test_guest_that_reboots_instead(xen_host: FakeXen) -> None:
    xen_host.add_guest("web", shuts_down_for=ShutdownReason.REBOOT)
    with pytest.raises(xenpm.SuspendInterrupted):
        xenpm.Domain("web").suspend()
    xen_host.pass_time(SECOND)
    assert xenpm.Domain("web").domid == 2


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"acknowledge_ns": None}, xenpm.SuspendNotAcknowledged),
        ({"suspend_ns": None}, xenpm.SuspendNotCompleted),
        ({"suspend_ns": 40 * SECOND}, xenpm.SuspendNotCompleted),
        ({"feature_suspend": b"0"}, xenpm.SuspendNotSupported),
    ],
)
def test_scripts(xen_host: FakeXen, script: dict[str, Any], error: type[xenpm.XenError]) -> None:
    web = xen_host.add_guest("web", **script)
    with pytest.raises(error):
        xenpm.Domain("web").suspend()
    assert web.running


def test_mistakes_are_told(xen_host: FakeXen) -> None:
    xen_host.add_guest("web", domid=7)
    with pytest.raises(ValueError, match="domain 7 is there already"):
        xen_host.add_guest("db", domid=7)
    with pytest.raises(ValueError, match="'waving'"):
        xen_host.add_guest("db", acknowledge_by="waving")
    with pytest.raises(ValueError, match="'reed'"):
        xen_host.fail("reed", errno.EIO)


def test_harm_fails_the_test() -> None:
    xen = FakeXen()
    web = xen.add_guest("web", suspend_ns=5 * MS)
    xen.check()
    xen.ports().hypervisor.resume(web.domid, True)
    with pytest.raises(AssertionError, match="web: resumed when it was not suspended"):
        xen.check()


def test_fixture_is_found(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the entry point, which an installed xenpm has; here the module is named."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # `make build` leaves one, too
    assert 'pytest11]\nxenpm = "xenpm.testing.plugin"' in PYPROJECT.read_text()
    pytester.makepyfile(
        """
        import xenpm

        def test_good(xen_host):
            xen_host.add_guest("web")
            xenpm.Domain("web").suspend()

        def test_bad(xen_host):
            web = xen_host.add_guest("web")
            xen_host.ports().hypervisor.resume(web.domid, True)
        """
    )
    result = pytester.runpytest_inprocess("-p", "xenpm.testing.plugin")
    result.assert_outcomes(passed=2, errors=1)
