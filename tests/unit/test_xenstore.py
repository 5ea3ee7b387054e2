"""The extension module for xenstore: the real libxenstore, talking to a daemon that we serve."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import uvloop

import xenpm
from xenpm import Permission, aio
from xenpm.hooks import HookEvent
from xenpm.jobs import SystemJobs
from xenpm.ports import Ports
from xenpm.system import FileLocks, SystemPoller
from xenpm.testing import FakeXen
from xenpm.testing.devices import FakePci
from xenpm.testing.host import FakeJournal, FakeKernels
from xenpm.testing.hypervisor import FakeHypervisor
from xenpm.testing.jobs import FakeJobs
from xenpm.testing.models import FakeModels
from xenpm.testing.power import FakePower
from xenpm.testing.store import RELEASE_DOMAIN
from xenpm.testing.watchers import FakeWatchers

from .checks import assert_request_restored
from .wire_xenstored import Request, WireXenstored

try:
    from xenpm._ext.xenstore import Xenstore
except ImportError:
    pytest.skip("the extension modules are not built", allow_module_level=True)

PAYLOAD_MAX = 4096  # public/io/xs_wire.h
PATH_MAX = 3072
SECONDS = 20_000  # milliseconds that nothing here comes near to


@pytest.fixture
def daemon(
    xen: FakeXen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WireXenstored]:
    path = tmp_path / "socket"
    daemon = WireXenstored(path, xen)
    monkeypatch.setenv("XENSTORED_PATH", str(path))
    yield daemon
    daemon.stop()


@pytest.fixture
def store(daemon: WireXenstored) -> Iterator[Xenstore]:  # noqa: ARG001
    with Xenstore() as store:
        yield store


def events(store: Xenstore, count: int) -> list[tuple[str, str]]:
    """That many events, as they come through the descriptor."""
    poll = select.poll()
    poll.register(store.fileno(), select.POLLIN)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        assert poll.poll(SECONDS), f"no event after {found}"
        while (event := store.check_watch()) is not None:
            found.append(event)
    return found


def has_no_event(store: Xenstore) -> bool:
    """Whether nothing waits; everything sent before now has come, for replies keep the order."""
    store.read("/local/domain/0/name")
    return store.check_watch() is None and not select.select([store.fileno()], [], [], 0)[0]


# -- nodes


@pytest.mark.parametrize(
    "value", [b"", b"1", b"\0", b"a\0b\0", bytes(range(256)), "käse".encode(), b"x" * 4000]
)
def test_write_and_read(store: Xenstore, value: bytes) -> None:
    store.write("/a/b", value)
    assert store.read("/a/b") == value
    assert store.read("/a") == b""


def test_paths_that_are_no_utf8(store: Xenstore) -> None:
    path = "/a/" + os.fsdecode(b"caf\xe9")
    store.write(path, b"1")
    assert store.read(path) == b"1"
    assert store.list("/a") == [os.fsdecode(b"caf\xe9")]


def test_list_mkdir_and_remove(store: Xenstore) -> None:
    store.mkdir("/a")
    assert store.list("/a") == []
    for name in ("c", "b", "a"):
        store.mkdir(f"/a/{name}")
    store.mkdir("/a/b")
    store.write("/a/b/below", b"")
    assert sorted(store.list("/a")) == ["a", "b", "c"]
    store.remove("/a/b")
    assert sorted(store.list("/a")) == ["a", "c"]
    with pytest.raises(xenpm.NoSuchNode):
        store.read("/a/b/below")


def test_long_list(store: Xenstore, xen: FakeXen) -> None:
    names = [f"{number:x}" * 9 for number in range(1000)]
    for name in names:
        xen.toolstack.write(f"/long/{name}", b"")
    assert sorted(store.list("/long")) == sorted(names)


def test_permissions(store: Xenstore, xen: FakeXen) -> None:
    store.write("/a", b"")
    permissions = [
        Permission(1, False, False),
        Permission(2, True, False),
        Permission(3, False, True),
        Permission(0x7FEF, True, True),
    ]
    store.set_permissions("/a", permissions)
    assert store.get_permissions("/a") == permissions
    assert xen.store.nodes["/a"].permissions == tuple(permissions)


def test_largest_values_and_paths(store: Xenstore) -> None:
    path = "/" + "p" * (PATH_MAX - 1)
    value = b"v" * (PAYLOAD_MAX - PATH_MAX - 1)
    store.write(path, value)
    assert store.read(path) == value
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        store.write(path, value + b"v")
    with pytest.raises(ValueError, match="at most 3072 bytes"):
        store.read(path + "p")
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        store.write("/a", b"v" * PAYLOAD_MAX)


def test_path_and_token_too_long_together(store: Xenstore) -> None:
    with pytest.raises(xenpm.QuotaExceeded):
        store.watch("/" + "p" * 3000, "t" * 3000)


# -- errors


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda store: store.read("/no"), "xs_read"),
        (lambda store: store.list("/no"), "xs_directory"),
        (lambda store: store.get_permissions("/no"), "xs_get_permissions"),
        (lambda store: store.set_permissions("/no", [(0, True, True)]), "xs_set_permissions"),
        (lambda store: store.remove("/no/no"), "xs_rm"),
        (lambda store: store.unwatch("/no", "token"), "xs_unwatch"),
        (lambda store: store.transaction_end(77), "xs_transaction_end"),
        (lambda store: store.read("/local", 77), "xs_read"),
        (lambda store: store.resume_domain(77), "xs_resume_domain"),
        (lambda store: store.release_domain(77), "xs_release_domain"),
    ],
)
def test_nothing_there(store: Xenstore, call: Callable[[Any], object], name: str) -> None:
    with pytest.raises(xenpm.NoSuchNode) as caught:
        call(store)
    assert caught.value.call == name
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, xenpm.QuotaExceeded),
        (errno.E2BIG, xenpm.QuotaExceeded),
        (errno.EACCES, xenpm.NotPermitted),
        (errno.EPERM, xenpm.NotPermitted),
        (errno.EAGAIN, xenpm.TransactionConflict),
        (errno.EINVAL, xenpm.StoreError),
        (errno.EIO, xenpm.StoreError),
        (errno.ENOMEM, xenpm.StoreError),
    ],
)
def test_errors_of_the_daemon(
    store: Xenstore, daemon: WireXenstored, code: int, kind: type[Exception]
) -> None:
    calls: dict[Request, tuple[str, Callable[[], object]]] = {
        Request.READ: ("xs_read", lambda: store.read("/a")),
        Request.WRITE: ("xs_write", lambda: store.write("/a", b"")),
        Request.MKDIR: ("xs_mkdir", lambda: store.mkdir("/a")),
        Request.RM: ("xs_rm", lambda: store.remove("/a")),
        Request.DIRECTORY: ("xs_directory", lambda: store.list("/a")),
        Request.GET_PERMS: ("xs_get_permissions", lambda: store.get_permissions("/a")),
        Request.SET_PERMS: (
            "xs_set_permissions",
            lambda: store.set_permissions("/a", [Permission(0, True, True)]),
        ),
        Request.TRANSACTION_START: ("xs_transaction_start", store.transaction_start),
        Request.TRANSACTION_END: ("xs_transaction_end", lambda: store.transaction_end(1)),
        Request.WATCH: ("xs_watch", lambda: store.watch("/a", "token")),
        Request.UNWATCH: ("xs_unwatch", lambda: store.unwatch("/a", "token")),
        Request.INTRODUCE: ("xs_introduce_domain", lambda: store.introduce_domain(1, 2, 3)),
        Request.RELEASE: ("xs_release_domain", lambda: store.release_domain(1)),
        Request.RESUME: ("xs_resume_domain", lambda: store.resume_domain(1)),
    }
    for request, (name, call) in calls.items():
        daemon.errors = {request: code}
        if request is Request.DIRECTORY:
            daemon.errors[Request.DIRECTORY_PART] = code  # what E2BIG makes libxenstore try
        with pytest.raises(xenpm.XenError) as caught:
            call()
        assert type(caught.value) is kind
        assert str(caught.value).startswith(f"{name}: {os.strerror(code)}")
    daemon.errors = {}
    store.write("/a", b"it still works")
    assert store.read("/a") == b"it still works"


# -- transactions


def test_transaction(store: Xenstore) -> None:
    store.write("/a", b"1")
    transaction = store.transaction_start()
    store.write("/a", b"2", transaction)
    store.remove("/local/domain/0", transaction)
    assert store.read("/a", transaction) == b"2"
    assert store.list("/local/domain", transaction) == []
    assert store.read("/a") == b"1"
    store.transaction_end(transaction)
    assert store.read("/a") == b"2"
    assert store.list("/local/domain") == []


def test_aborted_transaction(store: Xenstore) -> None:
    transaction = store.transaction_start()
    store.write("/a", b"1", transaction)
    store.transaction_end(transaction, abort=True)
    with pytest.raises(xenpm.NoSuchNode):
        store.read("/a")


def test_conflict(store: Xenstore) -> None:
    with Xenstore() as other:
        store.write("/a", b"1")
        transaction = store.transaction_start()
        assert store.read("/a", transaction) == b"1"
        store.write("/a", b"mine", transaction)
        other.write("/a", b"theirs")
        with pytest.raises(xenpm.TransactionConflict) as caught:
            store.transaction_end(transaction)
        assert caught.value.errno == errno.EAGAIN
        assert store.read("/a") == b"theirs"


def test_transactions_apart_do_not_conflict(store: Xenstore) -> None:
    with Xenstore() as other:
        store.mkdir("/a")
        store.mkdir("/b")
        transactions = store.transaction_start(), other.transaction_start()
        store.write("/a/1", b"", transactions[0])
        other.write("/b/1", b"", transactions[1])
        store.transaction_end(transactions[0])
        other.transaction_end(transactions[1])


def test_transactions_that_change_one_directory_conflict(store: Xenstore) -> None:
    with Xenstore() as other:
        transaction = store.transaction_start()
        store.mkdir("/a", transaction)
        other.mkdir("/b")
        with pytest.raises(xenpm.TransactionConflict):
            store.transaction_end(transaction)


# -- watches


def test_watch(store: Xenstore) -> None:
    assert store.check_watch() is None
    store.watch("/a", "token")
    assert events(store, 1) == [("/a", "token")]
    with Xenstore() as other:
        other.write("/a/b", b"1")
        other.write("/ab", b"1")
        other.remove("/a")
    assert events(store, 2) == [("/a/b", "token"), ("/a", "token")]
    assert has_no_event(store)


def test_unwatch_drops_what_waits(store: Xenstore) -> None:
    store.watch("/a", "one")
    store.watch("/a", "two")
    store.write("/a", b"1")
    store.unwatch("/a", "one")
    assert events(store, 2) == [("/a", "two"), ("/a", "two")]
    assert has_no_event(store)
    store.unwatch("/a", "two")
    store.write("/a", b"2")
    assert has_no_event(store)


def test_watch_in_a_transaction_fires_at_its_end(store: Xenstore) -> None:
    store.watch("/a", "token")
    events(store, 1)
    transaction = store.transaction_start()
    store.write("/a", b"1", transaction)
    assert has_no_event(store)
    store.transaction_end(transaction)
    assert events(store, 1) == [("/a", "token")]


def test_the_same_watch_twice(store: Xenstore) -> None:
    store.watch("/a", "token")
    with pytest.raises(xenpm.StoreError) as caught:
        store.watch("/a", "token")
    assert caught.value.errno == errno.EEXIST


def test_watch_on_domains(store: Xenstore, xen: FakeXen) -> None:
    store.watch(RELEASE_DOMAIN, "gone")
    events(store, 1)
    guest = xen.add_guest("web")
    with xen.mutex:
        guest.suspend()
    assert events(store, 1) == [(RELEASE_DOMAIN, "gone")]


def test_introduce_release_and_resume(store: Xenstore, xen: FakeXen) -> None:
    store.introduce_domain(9, 0x1234, 7)
    assert xen.store.shut_down[9] is False
    xen.store.has_shut_down(9)
    store.resume_domain(9)
    assert xen.store.shut_down[9] is False
    store.release_domain(9)
    assert 9 not in xen.store.shut_down


# -- what a caller may do wrong


METHODS: dict[str, tuple[object, ...]] = {
    "read": ("/a",),
    "write": ("/a", b""),
    "mkdir": ("/a",),
    "remove": ("/a",),
    "list": ("/a",),
    "get_permissions": ("/a",),
    "set_permissions": ("/a", [(0, True, True)]),
    "transaction_start": (),
    "transaction_end": (1,),
    "watch": ("/a", "token"),
    "unwatch": ("/a", "token"),
    "check_watch": (),
    "introduce_domain": (1, 2, 3),
    "release_domain": (1,),
    "resume_domain": (1,),
    "fileno": (),
}
WITH_PATH = [name for name, arguments in METHODS.items() if arguments[:1] == ("/a",)]
WITH_DOMID = ["introduce_domain", "release_domain", "resume_domain"]
WITH_TRANSACTION = [name for name in WITH_PATH if "watch" not in name]


def call(store: Xenstore, name: str, *arguments: object, **keywords: object) -> object:
    """Call a method with the arguments given, and with good ones for the others."""
    return getattr(store, name)(*arguments, *METHODS[name][len(arguments) :], **keywords)


def test_methods_are_all_known() -> None:
    public = {name for name in dir(Xenstore) if not name.startswith("_")}
    assert public == {*METHODS, "close", "closed"}


@pytest.mark.parametrize("name", METHODS)
def test_use_after_close(store: Xenstore, name: str) -> None:
    states = [store.closed]
    store.close()
    store.close()
    states.append(store.closed)
    assert states == [False, True]
    with pytest.raises(ValueError, match="closed"):
        call(store, name)


@pytest.mark.parametrize("name", METHODS)
def test_use_without_initialisation(name: str) -> None:
    bare: Xenstore = Xenstore.__new__(Xenstore)
    with pytest.raises(ValueError, match="never opened"):
        call(bare, name)
    bare.close()
    assert bare.closed


def test_initialised_twice(store: Xenstore) -> None:
    with pytest.raises(RuntimeError, match="twice"):
        store.__init__()
    store.mkdir("/a")


@pytest.mark.parametrize("name", WITH_PATH)
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/a", TypeError),
        (None, TypeError),
        (1, TypeError),
        ("", ValueError),
        ("/a\0b", ValueError),
        ("/" + "a" * PATH_MAX, ValueError),
        ("/\ud800", ValueError),
    ],
)
def test_wrong_paths(store: Xenstore, name: str, path: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        call(store, name, path)


@pytest.mark.parametrize("name", ["watch", "unwatch"])
@pytest.mark.parametrize(
    ("token", "kind"), [(b"t", TypeError), (None, TypeError), ("", ValueError), ("\0", ValueError)]
)
def test_wrong_tokens(store: Xenstore, name: str, token: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        call(store, name, "/a", token)


@pytest.mark.parametrize("value", [None, "text", bytearray(b"x"), memoryview(b"x"), 1])
def test_wrong_values(store: Xenstore, value: Any) -> None:
    with pytest.raises(TypeError):
        store.write("/a", value)


DOMIDS = [
    (True, TypeError),
    (1.0, TypeError),
    ("1", TypeError),
    (None, TypeError),
    (-1, ValueError),
    (0x7FF0, ValueError),
    (65537, ValueError),
    (2**32 + 1, ValueError),
    (2**70, ValueError),
]


@pytest.mark.parametrize("name", WITH_DOMID)
@pytest.mark.parametrize(("domid", "kind"), DOMIDS)
def test_wrong_domids(store: Xenstore, name: str, domid: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="domid"):
        call(store, name, domid)


@pytest.mark.parametrize("transaction", [-1, 2**32, 2**70, "1", None])
@pytest.mark.parametrize("name", WITH_TRANSACTION)
def test_wrong_transactions(store: Xenstore, name: str, transaction: object) -> None:
    with pytest.raises((ValueError, TypeError), match="transaction"):
        call(store, name, transaction=transaction)


def test_transaction_that_is_a_float(store: Xenstore) -> None:
    with pytest.raises(TypeError):
        store.mkdir("/a", transaction=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("permissions", "kind"),
    [
        ([], ValueError),
        (None, TypeError),
        (7, TypeError),
        ([7], TypeError),
        ([(1, True)], TypeError),
        *(([(0, True, True), (domid, True, True)], kind) for domid, kind in DOMIDS),
    ],
)
def test_wrong_permissions(store: Xenstore, permissions: Any, kind: type[Exception]) -> None:
    store.write("/a", b"")
    before = store.get_permissions("/a")
    with pytest.raises(kind):
        store.set_permissions("/a", permissions)
    assert store.get_permissions("/a") == before


def test_numbers_out_of_range(store: Xenstore) -> None:
    for numbers in ((-1, 1), (1, -1), (2**64, 1), (1, 2**32)):
        with pytest.raises(ValueError, match="must be from 0"):
            store.introduce_domain(1, *numbers)


def test_no_copies() -> None:
    import copy
    import pickle

    for verb in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            verb(Xenstore.__new__(Xenstore))


# -- processes, threads, descriptors


def in_child(verb: Callable[[], object]) -> str:
    """What a forked child gets from calling it, or the exception's name."""
    from_child, to_parent = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: Python 3.12
        child = os.fork()
    if child == 0:
        try:
            answer = repr(verb())
        except BaseException as error:
            answer = type(error).__name__
        os.write(to_parent, answer.encode())
        os._exit(0)
    os.close(to_parent)
    with os.fdopen(from_child, "rb") as pipe:
        answer = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return answer


@pytest.mark.parametrize("watching", [False, True])
def test_use_after_fork(store: Xenstore, watching: bool) -> None:
    """The child is refused and disturbs nothing, also when its copy is closed and collected."""
    if watching:
        store.watch("/a", "token")
    for name in METHODS:
        assert in_child(lambda name=name: call(store, name)) == "RuntimeError"  # type: ignore[misc]
    assert in_child(store.close) == "None"
    handles = [Xenstore()]
    assert in_child(handles.clear) == "None"
    handles[0].write("/a", b"1")
    assert store.read("/a") == b"1"


def test_child_opens_its_own(store: Xenstore) -> None:
    store.write("/a", b"1")
    assert in_child(lambda: Xenstore().read("/a")) == "b'1'"


def test_threads_may_share_a_handle(store: Xenstore) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        path, value = f"/a/{number}", str(number).encode()
        for _ in range(50):
            store.write(path, value)
            if store.read(path) != value:
                wrong.append(path)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_leaks(daemon: WireXenstored) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        store = Xenstore()
        store.watch("/a", "token")
        if number % 2:
            store.close()
        del store
    for client in daemon._clients:
        client.thread.join()  # it has seen that its client is gone
    assert len(os.listdir("/proc/self/fd")) == descriptors


# -- the daemon is not there


def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "nothing"))
    with pytest.raises(xenpm.StoreError) as caught:
        Xenstore()
    assert caught.value.call == "xs_open"
    assert caught.value.errno


def test_dead_daemon(store: Xenstore, daemon: WireXenstored) -> None:
    daemon.die()
    for name in METHODS:
        if name not in ("fileno", "check_watch"):
            with pytest.raises(xenpm.StoreError):
                call(store, name)
    store.close()


@pytest.mark.parametrize("watching", [False, True])
@pytest.mark.parametrize("request_type", [Request.READ, Request.WRITE, Request.TRANSACTION_START])
def test_daemon_dies_at_a_request(
    store: Xenstore, daemon: WireXenstored, request_type: Request, watching: bool
) -> None:
    if watching:
        store.watch("/a", "token")
    daemon.dies_at = request_type
    calls: dict[Request, Callable[[], object]] = {
        Request.READ: lambda: store.read("/a"),
        Request.WRITE: lambda: store.write("/a", b""),
        Request.TRANSACTION_START: store.transaction_start,
    }
    with pytest.raises(xenpm.StoreError):
        calls[request_type]()
    with pytest.raises(xenpm.StoreError):
        store.mkdir("/a")


# -- suspend and resume through the real libxenstore


@pytest.fixture
def ports(xen: FakeXen, store: Xenstore, tmp_path: Path) -> Ports:
    return Ports(
        FakeHypervisor(xen),
        store,
        FileLocks(tmp_path),
        SystemPoller(),
        FakePci(xen),
        FakeKernels(xen),
        FakePower(xen),
        FakeJobs(xen),
        FakeJournal(xen),
        FakeModels(xen),
        FakeWatchers(xen),
    )


@pytest.fixture
def host(ports: Ports) -> Iterator[xenpm.Host]:
    with xenpm.Host(ports=ports) as host:
        yield host


def assert_all_unwatched(xen: FakeXen) -> None:
    assert xen.watches == []
    assert xen.open_transactions == 0


@pytest.mark.parametrize("how", ["writing", "deleting"])
def test_cycles(xen: FakeXen, host: xenpm.Host, how: str) -> None:
    guests = [
        xen.add_guest(f"guest{i}", acknowledge_ns=0, suspend_ns=0, acknowledge_by=how)
        for i in range(5)
    ]
    for cycle in range(1, 4):
        outcomes = host.suspend_each(host.domains())
        assert all(isinstance(outcome, xenpm.Suspension) for outcome in outcomes.values())
        assert_all_unwatched(xen)
        for guest in guests:
            assert guest.suspensions == cycle
            assert_request_restored(guest)
        host.resume_each(host.domains())
        assert all(guest.running for guest in guests)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop: asyncio.AbstractEventLoop = request.param()
    yield loop
    loop.close()


def test_cycles_in_an_event_loop(
    xen: FakeXen, ports: Ports, loop: asyncio.AbstractEventLoop
) -> None:
    guests = [xen.add_guest(f"guest{i}", acknowledge_ns=0, suspend_ns=0) for i in range(5)]

    async def cycles() -> None:
        async with aio.Host(ports=ports) as host:
            for cycle in range(1, 4):
                outcomes = await host.suspend_each(await host.domains())
                assert all(isinstance(outcome, xenpm.Suspension) for outcome in outcomes.values())
                assert_all_unwatched(xen)
                assert {guest.suspensions for guest in guests} == {cycle}
                await host.resume_each(await host.domains())
                assert all(guest.running for guest in guests)

    loop.run_until_complete(cycles())


def test_deadline_in_an_event_loop(
    xen: FakeXen, ports: Ports, loop: asyncio.AbstractEventLoop
) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)

    async def suspend() -> None:
        async with aio.Host(ports=ports) as host:
            domain = await host.domain("web")
            with pytest.raises(xenpm.SuspendNotAcknowledged):
                await domain.suspend(timeout=0.01)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(domain.suspend(), 0.01)

    loop.run_until_complete(suspend())
    assert_request_restored(guest)


def test_hooks_in_an_event_loop(
    xen: FakeXen, ports: Ports, loop: asyncio.AbstractEventLoop
) -> None:
    """Their threads and descriptors are real; the loop goes on meanwhile."""
    web = xen.add_guest("web", acknowledge_ns=0, suspend_ns=0)
    ports.jobs = SystemJobs()
    called: list[HookEvent] = []
    blocked, released = threading.Event(), threading.Event()

    def hook(event: HookEvent) -> None:
        called.append(event)
        blocked.set()
        assert released.wait(10)

    async def release() -> None:
        while not blocked.is_set():
            await asyncio.sleep(0.001)
        released.set()

    async def sleep() -> xenpm.Report:
        async with aio.Host(ports=ports) as host:
            releasing = asyncio.ensure_future(release())
            report = await host.suspend(settings=xenpm.Settings(), hooks=[hook])
            await releasing
            return report

    report = loop.run_until_complete(sleep())
    assert report.problems == []
    assert len(called) == 4
    assert web.running
    assert_all_unwatched(xen)


def test_request_is_taken_back(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", acknowledge_ns=None)
    with pytest.raises(xenpm.SuspendNotAcknowledged):
        host.domain("web").suspend(timeout=0.01)
    assert_request_restored(guest)
    assert_all_unwatched(xen)


def test_daemon_dies_while_a_guest_is_asked(
    xen: FakeXen, host: xenpm.Host, daemon: WireXenstored
) -> None:
    """It takes no longer than the deadline, and what became of the guest is said."""
    xen.add_guest("web", acknowledge_ns=None)
    domain = host.domain("web")
    xen.before("domain_list", daemon.die)  # the look that comes with the first event
    with pytest.raises(xenpm.SuspendError, match=r"state is unknown.*may yet"):
        domain.suspend(timeout=0.05)
