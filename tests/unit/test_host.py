"""Host, Domain and Connection: finding domains, two hosts, threads, forks, closing."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

import xenpm
from xenpm import connection
from xenpm.testing import MS, SECOND, FakeXen

from .checks import assert_nothing_left

# -- finding


def test_find(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("db")
    web = xen.add_guest("web", uuid=UUID("8a1b2c3d-0000-4000-8000-00000000abcd"))
    for reference in (2, "2", "0002", "web", web.uuid, str(web.uuid), str(web.uuid).upper()):
        domain = host.domain(reference)
        assert (domain.domid, domain.name, domain.uuid) == (2, "web", web.uuid)
    assert host.domain(domain.ref) == domain
    assert host.domain(0).name == "Domain-0"


def test_domain_says_what_it_is(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", type=xenpm.DomainType.HVM, vcpus=3, memory_kib=1 << 20)
    domain = host.domain("web")
    assert domain.ref == xenpm.DomainRef(1, guest.uuid.bytes, "web")
    assert str(domain.ref) == "web (domain 1)"
    assert repr(domain) == "<xenpm.Domain 1 'web'>"
    assert domain.type is xenpm.DomainType.HVM
    assert domain.state is xenpm.DomainState.RUNNING
    assert domain.shutdown_reason is None
    assert domain.info.vcpus_online == 3
    assert domain.info.memory_kib == 1 << 20
    assert domain.info.uuid == guest.uuid
    assert host.xen_version == (4, 17)


def test_domains(xen: FakeXen, host: xenpm.Host) -> None:
    for name in ("c", "a", "b"):
        xen.add_guest(name)
    assert [domain.name for domain in host.domains()] == ["c", "a", "b"]
    assert [domain.domid for domain in host.domains()] == [1, 2, 3]


def test_equal_domains(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.add_guest("db")
    assert host.domain("web") == host.domain(1)
    assert host.domain("web") != host.domain("db")
    assert host.domain("web") != host.domain("web").ref
    assert len({host.domain("web"), host.domain(1), host.domain("db")}) == 2


@pytest.mark.parametrize(
    "reference",
    [77, "77", "32752", "9" * 30, "nobody", UUID(int=77), str(UUID(int=77)), "Web", " web", "-1"],
)
def test_nobody(xen: FakeXen, host: xenpm.Host, reference: Any) -> None:
    xen.add_guest("web")
    with pytest.raises(xenpm.NoSuchDomain, match=str(reference)):
        host.domain(reference)


@pytest.mark.parametrize("reference", [None, True, 1.0, b"web", ["web"], object()])
def test_wrong_types(host: xenpm.Host, reference: Any) -> None:
    with pytest.raises(TypeError, match=type(reference).__name__):
        host.domain(reference)


@pytest.mark.parametrize("reference", [-1, 0x7FF0, 65537, 2**70])
def test_no_domids(host: xenpm.Host, reference: Any) -> None:
    with pytest.raises(ValueError, match="domid"):
        host.domain(reference)


def test_ambiguous_name(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    xen.add_guest("web")
    with pytest.raises(xenpm.NoSuchDomain, match=r"1, 2; name one by its domid"):
        host.domain("web")
    assert host.domain(2).domid == 2


def test_ambiguous_uuid(xen: FakeXen, host: xenpm.Host) -> None:
    """As while a domain is migrated to its own host."""
    one = xen.add_guest("web")
    xen.add_guest("web--incoming", uuid=one.uuid)
    with pytest.raises(xenpm.NoSuchDomain, match="1, 2"):
        host.domain(one.uuid)


def test_digits_without_end(host: xenpm.Host) -> None:
    with pytest.raises(xenpm.NoSuchDomain, match="there is no domain 111"):
        host.domain("1" * 5000)


@pytest.mark.parametrize("name", ["x" * 36, "{" + "a" * 32 + "}", "a" * 32 + "----"])
def test_name_that_looks_like_a_uuid(xen: FakeXen, host: xenpm.Host, name: str) -> None:
    xen.add_guest(name)
    assert host.domain(name).domid == 1


def test_domain_without_a_name(xen: FakeXen, host: xenpm.Host) -> None:
    """It is being created: there, but without its nodes."""
    guest = xen.add_guest("web")
    xen.toolstack.remove(f"{guest.home}/name")
    domain = host.domain(1)
    assert domain.name == ""
    assert str(domain.ref) == "domain 1"
    with pytest.raises(xenpm.NoSuchDomain):
        host.domain("web")


def test_empty_name_means_nobody(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    xen.toolstack.remove(f"{guest.home}/name")
    with pytest.raises(ValueError, match="must not be empty"):
        host.domain("")


def test_name_that_is_no_utf8(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest(os.fsdecode(b"caf\xe9"))
    domain = host.domain(1)
    assert os.fsencode(domain.name) == b"caf\xe9"
    assert host.domain(domain.name) == domain


# -- arguments of suspend


@pytest.mark.parametrize("name", ["timeout", "late_timeout"])
@pytest.mark.parametrize("value", ["1", True, 1j, [1], b"1"])
def test_timeouts_of_wrong_types(xen: FakeXen, host: xenpm.Host, name: str, value: object) -> None:
    xen.add_guest("web")
    domain = host.domain("web")
    xen.calls.clear()
    with pytest.raises(TypeError, match=f"^{name} must be a number"):
        domain.suspend(**{name: value})  # type: ignore[call-overload]
    assert not xen.calls


@pytest.mark.parametrize("name", ["timeout", "late_timeout"])
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.001, 86401, 1e300, 10**30])
def test_timeouts_out_of_range(xen: FakeXen, host: xenpm.Host, name: str, value: float) -> None:
    xen.add_guest("web")
    domain = host.domain("web")
    xen.calls.clear()
    with pytest.raises(ValueError, match=f"^{name} must be more than 0"):
        domain.suspend(**{name: value})  # type: ignore[call-overload]
    assert not xen.calls


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_timeouts_that_are_no_numbers(xen: FakeXen, host: xenpm.Host, value: float) -> None:
    xen.add_guest("web")
    with pytest.raises(ValueError, match=r"^timeout must be"):
        host.domain("web").suspend(timeout=value)
    with pytest.raises(ValueError, match=r"^late_timeout must be"):
        host.suspend_each(host.domains(), late_timeout=value)


def test_timeout_that_no_float_can_hold(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    with pytest.raises(ValueError, match=r"^timeout must be"):
        host.domain("web").suspend(timeout=10**400)


@pytest.mark.parametrize("value", [1e-12, 1, 86400, 0.05])
def test_good_timeouts(xen: FakeXen, host: xenpm.Host, value: float) -> None:
    xen.add_guest("web", acknowledge_ns=None)
    with pytest.raises(xenpm.SuspendNotAcknowledged) as caught:
        host.domain("web").suspend(timeout=value)
    assert caught.value.elapsed == pytest.approx(value, abs=1e-9)


# -- two hosts: two processes, or two threads


@pytest.fixture
def other(xen: FakeXen) -> Iterator[xenpm.Host]:
    with xenpm.Host(ports=xen.ports()) as host:
        yield host


def test_another_is_suspending_it(xen: FakeXen, host: xenpm.Host, other: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    outcomes: list[BaseException] = []

    def meanwhile() -> None:
        for verb in (other.domain("web").suspend, other.domain("web").resume):
            with pytest.raises(xenpm.XenError) as caught:
                verb()
            outcomes.append(caught.value)

    xen.after(20 * MS, meanwhile)
    host.domain("web").suspend()
    assert [type(outcome) for outcome in outcomes] == [xenpm.SuspendInProgress, xenpm.ResumeError]
    assert all("another process" in str(outcome) for outcome in outcomes)
    assert (guest.suspensions, guest.resumptions) == (1, 0)
    assert_nothing_left(xen)

    with pytest.raises(xenpm.AlreadySuspended):
        other.domain("web").suspend()
    other.domain("web").resume()
    assert guest.running
    with pytest.raises(xenpm.NotSuspended):
        host.domain("web").resume()


def test_another_suspends_another_guest(xen: FakeXen, host: xenpm.Host, other: xenpm.Host) -> None:
    xen.add_guest("web", suspend_ns=SECOND)
    db = xen.add_guest("db")
    xen.after(20 * MS, other.domain("db").suspend)
    assert host.domain("web").suspend().total_ns == SECOND + MS
    assert db.suspended
    assert_nothing_left(xen)


def test_lock_is_free_after_every_ending(xen: FakeXen, host: xenpm.Host, other: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    with pytest.raises(xenpm.SuspendNotAcknowledged):
        host.domain("web").suspend()
    guest.acknowledge_ns = MS
    other.domain("web").suspend()
    host.domain("web").resume()
    other.domain("web").suspend()
    assert guest.suspensions == 2


# -- using what is closed


def test_use_after_close(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("web")
    domain = host.domain("web")
    host.close()
    host.close()
    verbs = (
        domain.suspend,
        domain.resume,
        domain.pause,
        domain.unpause,
        lambda: domain.info,
        lambda: host.xen_version,
        lambda: host.domain("web"),
        lambda: host.domain(1),
        host.domains,
        lambda: host.suspend_each([]),
        lambda: host.suspend_each([domain]),
        lambda: host.resume_each([domain]),
    )
    for verb in verbs:
        with pytest.raises(ValueError, match="closed"):
            verb()


def test_close_gives_everything_back(xen: FakeXen) -> None:
    clients = len(xen.store.connections)
    with xenpm.Host(ports=xen.ports()) as host:
        host.domains()
    assert len(xen.store.connections) == clients


def test_one_call_at_a_time(xen: FakeXen, host: xenpm.Host) -> None:
    """A host that is shared between threads says so instead of mixing up two conversations."""
    guest = xen.add_guest("web")
    domain = host.domain("web")
    caught: list[Exception] = []

    def work() -> None:
        try:
            domain.resume()
        except RuntimeError as error:
            caught.append(error)

    def meanwhile() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        threads.append(thread)

    threads: list[threading.Thread] = []
    xen.after(20 * MS, meanwhile)
    domain.suspend()
    assert not threads[0].is_alive()
    assert "a Host of its own" in str(caught[0])
    assert guest.suspended


@pytest.mark.parametrize("how", ["close", "with"])
def test_close_while_another_thread_works(xen: FakeXen, host: xenpm.Host, how: str) -> None:
    """Refused, and the call under way is not disturbed."""
    guest = xen.add_guest("web")
    domain = host.domain("web")
    caught: list[Exception] = []

    def close() -> None:
        try:
            if how == "close":
                host.close()
            else:
                with host:
                    pass
        except RuntimeError as error:
            caught.append(error)

    def meanwhile() -> None:
        thread = threading.Thread(target=close)
        thread.start()
        thread.join(10)

    xen.after(20 * MS, meanwhile)
    domain.suspend()
    assert "close it when its calls have ended" in str(caught[0])
    assert guest.suspended
    domain.resume()
    assert_nothing_left(xen)
    host.close()
    assert len(xen.store.connections) == 2  # the toolstack's and the guest's


# -- the default connection


@pytest.fixture
def opened(xen: FakeXen, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that have opened a default connection, once per connection."""
    pids: list[int] = []

    def open_ports() -> object:
        pids.append(os.getpid())
        return xen.ports()

    monkeypatch.setattr(connection, "_opener", open_ports)
    monkeypatch.setattr(connection, "_of_thread", threading.local())
    return pids


def test_default_connection_is_one_per_thread(xen: FakeXen, opened: list[int]) -> None:
    xen.add_guest("web")
    first, second = xenpm.Domain("web"), xenpm.Domain(1)
    assert first._connection is second._connection
    assert len(opened) == 1
    elsewhere: list[xenpm.Domain] = []
    thread = threading.Thread(target=lambda: elsewhere.append(xenpm.Domain("web")))
    thread.start()
    thread.join()
    assert elsewhere[0]._connection is not first._connection
    assert elsewhere[0] == first
    assert len(opened) == 2
    first.suspend()
    elsewhere[0].resume()


def test_host_opens_a_connection_of_its_own(xen: FakeXen, opened: list[int]) -> None:
    xen.add_guest("web")
    domain = xenpm.Domain("web")
    with xenpm.Host() as host:
        assert host.domain("web") == domain
    domain.suspend()
    assert len(opened) == 2


def test_default_connection_that_was_closed_is_opened_anew(xen: FakeXen, opened: list[int]) -> None:
    xen.add_guest("web")
    xenpm.Domain("web")._connection.close()
    xenpm.Domain("web").suspend()
    assert len(opened) == 2


@pytest.mark.usefixtures("opened")
def test_forked_child_opens_its_own(xen: FakeXen) -> None:
    xen.add_guest("web")
    parent = xenpm.Domain("web")._connection
    from_child, to_parent = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests, Python 3.12
        child = os.fork()
    if child == 0:
        connected = xenpm.Domain("web")._connection
        os.write(to_parent, b"own" if connected is not parent else b"parent's")
        os._exit(0)
    os.close(to_parent)
    with os.fdopen(from_child, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert answer == b"own"
    assert xenpm.Domain("web")._connection is parent
