"""The tests of snapshots.py; they run anywhere."""

import asyncio
import errno

import pytest
from snapshots import snapshot_all

import xenpm
from xenpm.testing import MS


def test_all_are_down_at_once(xen_host):
    web = xen_host.add_guest("web", suspend_ns=40 * MS)
    db = xen_host.add_guest("db", suspend_ns=900 * MS)
    taken = []

    def snapshot(name):
        assert web.suspended
        assert db.suspended
        taken.append(name)

    asyncio.run(snapshot_all(["web", "db"], snapshot))
    assert taken == ["web", "db"]
    assert web.running
    assert db.running


def test_one_that_does_not_suspend_calls_it_off(xen_host):
    web = xen_host.add_guest("web")
    xen_host.add_guest("db", acknowledge_ns=None)
    with pytest.raises(xenpm.SuspendNotAcknowledged):
        asyncio.run(snapshot_all(["web", "db"], pytest.fail))
    assert web.running


def test_guests_go_on_when_the_disk_is_full(xen_host):
    web = xen_host.add_guest("web")

    def snapshot(name):
        raise OSError(errno.ENOSPC, "no space left", name)

    with pytest.raises(OSError, match="no space left"):
        asyncio.run(snapshot_all(["web"], snapshot))
    assert web.running


def test_xenstore_that_fails_in_the_middle(xen_host):
    web = xen_host.add_guest("web")
    xen_host.fail("watch", errno.EIO, nth=2)
    with pytest.raises(xenpm.XenError):
        asyncio.run(snapshot_all(["web"], pytest.fail))
    assert web.running
