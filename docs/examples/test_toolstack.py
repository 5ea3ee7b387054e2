"""The tests of toolstack.py; they run anywhere."""

import asyncio
import json
import stat

import pytest
import toolstack

import xenpm
from xenpm.testing import SECOND


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Nothing is configured on this host."""
    monkeypatch.setattr("xenpm.host.read_settings", xenpm.Settings)
    monkeypatch.setattr("xenpm.host.find_hooks", list)


def serving(tmp_path, clients):
    """Run the server for as long as `clients(ask)` lasts; what that returns."""
    path = tmp_path / "socket"

    async def ask(line):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(line.encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        return answer

    async def main():
        stop = asyncio.Event()
        server = asyncio.ensure_future(toolstack.serve(str(path), stop))
        while not path.exists():
            assert not server.done(), server
            await asyncio.sleep(0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        try:
            return await clients(ask)
        finally:
            stop.set()
            await server
            assert not path.exists()

    return asyncio.run(main())


def test_suspend_and_resume(xen_host, tmp_path):
    xen_host.add_guest("web")

    async def clients(ask):
        assert (await ask("suspend web"))["milliseconds"] == 41.0
        assert await ask("list") == {"ok": True, "guests": {"web": "suspended"}}
        assert await ask("resume web") == {"ok": True, "cooperative": True}
        return await ask("list")

    assert serving(tmp_path, clients) == {"ok": True, "guests": {"web": "running"}}


def test_many_clients_at_once(xen_host, tmp_path):
    guests = [xen_host.add_guest(f"g{i}") for i in range(8)]

    async def clients(ask):
        return await asyncio.gather(*[ask(f"suspend g{i}") for i in range(8)])

    assert all(answer["ok"] for answer in serving(tmp_path, clients))
    assert all(guest.suspensions == 1 for guest in guests)
    assert all(guest.running for guest in guests), "the server lets go of all when it ends"


def test_errors_are_answers(xen_host, tmp_path):
    xen_host.add_guest("deaf", acknowledge_ns=None)

    async def clients(ask):
        return [(await ask(line))["error"] for line in ("suspend nobody", "suspend deaf", "dance")]

    assert serving(tmp_path, clients) == ["NoSuchDomain", "SuspendNotAcknowledged", "usage"]


def test_only_its_own_are_resumed(xen_host, tmp_path):
    theirs = xen_host.add_guest("theirs")
    theirs.suspend()

    async def clients(ask):
        return await ask("resume theirs")

    assert serving(tmp_path, clients)["error"] == "PermissionError"
    assert theirs.suspended


def test_ended_in_the_middle_of_a_suspension(xen_host, tmp_path):
    slow = xen_host.add_guest("slow", suspend_ns=5 * SECOND)

    async def clients(ask):
        asking = asyncio.ensure_future(ask("suspend slow"))
        while slow.request == b"" and slow.suspensions == 0:
            await asyncio.sleep(0)
        asking.cancel()

    serving(tmp_path, clients)
    xen_host.settle()
    assert slow.running


def test_the_whole_host(xen_host, tmp_path):
    web = xen_host.add_guest("web")

    async def clients(ask):
        return await ask("sleep")

    assert serving(tmp_path, clients) == {"ok": True, "problems": []}
    assert (web.suspensions, web.running) == (1, True)
