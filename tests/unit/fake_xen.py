"""A Xen host that is not there: hypervisor, xenstored, guests and clock, on `xenpm.ports`.

    xen = FakeXen()
    web = xen.add_guest("web1", suspend_ns=40 * MS)
    host = xenpm.Host(ports=xen.ports())
    host.domain("web1").suspend()

Time is virtual: it moves only while somebody waits on a `FakePoller`, then at once to the next
thing that is to happen.  Guests follow the protocol as Linux does unless they are told otherwise;
`FakeXen.after` makes anything happen at a chosen time, `FakeXen.before` at a chosen call, and
`FakeXen.fail` makes calls fail.  `FakeXen.calls` counts the calls that came in through the ports.
"""

from __future__ import annotations

import builtins
import errno
import heapq
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from signal import SIGKILL, SIGTERM
from typing import Any, Callable, NamedTuple, Optional
from uuid import UUID

from xenpm.errors import (
    CALL_ERRORS,
    JournalError,
    SleepFailed,
    XenError,
    hypercall_error,
    store_error,
)
from xenpm.ports import Ports
from xenpm.types import DomainInfo, DomainType, Ending, Permission, ShutdownReason, Sleep, VcpuInfo

MS = 1_000_000
SECOND = 1000 * MS

RELEASE_DOMAIN = "@releaseDomain"
INTRODUCE_DOMAIN = "@introduceDomain"
# HVM_PARAM_* of public/hvm/params.h
CALLBACK_IRQ, STORE_EVTCHN, CONSOLE_EVTCHN = 0, 2, 18
INITIALISING, INIT_WAIT, CONNECTED, CLOSED = b"1", b"2", b"4", b"6"  # of public/io/xenbus.h

#: the C function behind each method of the ports, as it stands in errors
C_NAMES = {
    "version": "xc_version",
    "domain_info": "xc_domain_getinfolist",
    "domain_list": "xc_domain_getinfolist",
    "vcpu_info": "xc_vcpu_getinfo",
    "pause": "xc_domain_pause",
    "unpause": "xc_domain_unpause",
    "resume": "xc_domain_resume",
    "hvm_param_get": "xc_hvm_param_get",
    "hvm_param_set": "xc_hvm_param_set",
    "evtchn_alloc_unbound": "xc_evtchn_alloc_unbound",
    "evtchn_remote": "xc_evtchn_status",
    "suspend_evtchn_notify": "xc_suspend_evtchn_init_exclusive",
    "store_ring_discard": "xenforeignmemory_map",
    "evtchn_reset": "xc_evtchn_reset",
    "soft_reset": "xc_domain_soft_reset",
    "gnttab_seed": "xc_dom_gnttab_seed",
    "read": "xs_read",
    "write": "xs_write",
    "mkdir": "xs_mkdir",
    "remove": "xs_rm",
    "list": "xs_directory",
    "get_permissions": "xs_get_permissions",
    "set_permissions": "xs_set_permissions",
    "transaction_start": "xs_transaction_start",
    "transaction_end": "xs_transaction_end",
    "watch": "xs_watch",
    "unwatch": "xs_unwatch",
    "check_watch": "xs_check_watch",
    "introduce_domain": "xs_introduce_domain",
    "resume_domain": "xs_resume_domain",
}
HYPERCALLS = frozenset(name for name, function in C_NAMES.items() if function.startswith("xc_"))
STORE_REQUESTS = frozenset(C_NAMES) - HYPERCALLS

Action = Callable[[], object]


# -- xenstored


class Node(NamedTuple):
    """One node of xenstore."""

    value: bytes
    permissions: tuple[Permission, ...]
    generation: int  # rises with every change in the store


_Change = Optional[Node]  # None: removed


@dataclass
class _Transaction:
    """What a transaction has looked at, and what it will write."""

    seen: dict[str, int | None] = field(default_factory=dict)  # generations; None: no such node
    changes: dict[str, _Change] = field(default_factory=dict)
    fired: list[tuple[str, bool]] = field(default_factory=list)  # changed path, with all below?


class FakeXenstored:
    """The store itself; everybody talks to it through a `StoreConnection`."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.connections: list[StoreConnection] = []
        self.shut_down: dict[int, bool] = {}  # domains it knows; whether it has seen them shut down
        self._generation = 0
        self._put("/", b"", (Permission(0, read=False, write=False),))

    def _put(self, path: str, value: bytes, permissions: tuple[Permission, ...]) -> None:
        self._generation += 1
        self.nodes[path] = Node(value, permissions, self._generation)

    def commit(self, changes: dict[str, _Change]) -> None:
        """Make changes come true; watches are fired apart from this."""
        for path, node in changes.items():
            if node is None:
                self.nodes.pop(path, None)
            else:
                self._put(path, node.value, node.permissions)

    def fire(self, path: str, with_all_below: bool = False) -> None:
        """Report a change to all who watch it."""
        for connection in list(self.connections):
            connection.fired(path, with_all_below)

    def introduce(self, domid: int) -> None:
        """A domain has been built: XS_INTRODUCE."""
        self.shut_down[domid] = False
        self.fire(INTRODUCE_DOMAIN)

    def release(self, domid: int) -> None:
        """A domain is gone."""
        if self.shut_down.pop(domid, None) is not None:
            self.fire(RELEASE_DOMAIN)

    def has_shut_down(self, domid: int) -> None:
        """The hypervisor says that a domain has shut down: told on once, until XS_RESUME."""
        if self.shut_down.get(domid) is False:
            self.shut_down[domid] = True
            self.fire(RELEASE_DOMAIN)


class StoreConnection:
    """One client of the fake xenstored: dom0 (which may do everything) or a guest.

    Args:
        daemon: the store.
        domid: who is speaking.
        on_event: called when a watch event has been queued.
    """

    def __init__(
        self, daemon: FakeXenstored, domid: int = 0, on_event: Action | None = None
    ) -> None:
        self.daemon = daemon
        self.domid = domid
        self.watches: list[tuple[str, str]] = []
        self.events: deque[tuple[str, str]] = deque()
        self.transactions: dict[int, _Transaction] = {}
        self.is_kernel = on_event is not None  # it wakes up by itself
        self._on_event = on_event
        self._last_transaction = 0
        daemon.connections.append(self)

    def close(self) -> None:
        """Hang up: watches and transactions go."""
        if self in self.daemon.connections:
            self.daemon.connections.remove(self)
        self.watches.clear()
        self.events.clear()
        self.transactions.clear()

    # -- nodes

    def read(self, path: str, transaction: int = 0) -> bytes:
        """XS_READ."""
        return self._node("read", path, transaction).value

    def write(self, path: str, value: bytes, transaction: int = 0) -> None:
        """XS_WRITE: makes the node and its parents when they are not there."""
        with self._changing("write", transaction) as view:
            old = self._look(view, path)
            if old is None:
                self._make(view, path, value)
            else:
                self._check(old, path, "write", write=True)
                view.changes[path] = old._replace(value=value)
            view.fired.append((path, False))

    def mkdir(self, path: str, transaction: int = 0) -> None:
        """XS_MKDIR: does nothing when the node is there."""
        with self._changing("mkdir", transaction) as view:
            if self._look(view, path) is None:
                self._make(view, path, b"")
                view.fired.append((path, False))

    def remove(self, path: str, transaction: int = 0) -> None:
        """XS_RM: the node and all below it; nothing to do when only its parent is there."""
        with self._changing("remove", transaction) as view:
            old = self._look(view, path)
            if old is None:
                if self._look(view, _parent(path)) is None:
                    raise store_error("xs_rm", errno.ENOENT, path)
                return
            self._check(old, path, "remove", write=True)
            above = self._look(view, _parent(path))
            assert above is not None
            view.changes[_parent(path)] = above  # its list of children has changed
            for name in [path, *_below(path, self._paths(view))]:
                view.changes[name] = None
            view.fired.append((path, True))

    def directory(self, path: str, transaction: int = 0) -> list[str]:
        """XS_DIRECTORY: the names of the children."""
        self._node("list", path, transaction)
        view = self._view("list", transaction)
        prefix = path if path == "/" else path + "/"
        names = [name[len(prefix) :] for name in _below(path, self._paths(view))]
        return sorted(name for name in names if "/" not in name)

    def get_permissions(self, path: str, transaction: int = 0) -> list[Permission]:
        """XS_GET_PERMS."""
        return [*self._node("get_permissions", path, transaction).permissions]

    def set_permissions(
        self,
        path: str,
        permissions: list[Permission],
        transaction: int = 0,
    ) -> None:
        """XS_SET_PERMS: only for the owner."""
        with self._changing("set_permissions", transaction) as view:
            node = self._look(view, path)
            if node is None:
                raise store_error("xs_set_permissions", errno.ENOENT, path)
            if self.domid not in (0, node.permissions[0].domid):
                raise store_error("xs_set_permissions", errno.EACCES, path)
            view.changes[path] = node._replace(permissions=tuple(permissions))
            view.fired.append((path, False))

    # -- transactions

    def transaction_start(self) -> int:
        """XS_TRANSACTION_START."""
        self._last_transaction += 1
        self.transactions[self._last_transaction] = _Transaction()
        return self._last_transaction

    def transaction_end(self, transaction: int, abort: bool = False) -> None:
        """XS_TRANSACTION_END: EAGAIN when anything that it has looked at has changed since."""
        view = self.transactions.pop(transaction, None)
        if view is None:
            raise store_error("xs_transaction_end", errno.ENOENT)
        if abort:
            return
        for path, generation in view.seen.items():
            node = self.daemon.nodes.get(path)
            if (node.generation if node else None) != generation:
                raise store_error("xs_transaction_end", errno.EAGAIN)
        self._commit(view)

    # -- watches

    def watch(self, path: str, token: str) -> None:
        """XS_WATCH: fires once at once."""
        if (path, token) in self.watches:
            raise store_error("xs_watch", errno.EEXIST, path)
        self.watches.append((path, token))
        self._queue(path, token)

    def unwatch(self, path: str, token: str) -> None:
        """XS_UNWATCH; events of it that wait are dropped (XS_UNWATCH_FILTER)."""
        if (path, token) not in self.watches:
            raise store_error("xs_unwatch", errno.ENOENT, path)
        self.watches.remove((path, token))
        self.events = deque(event for event in self.events if event[1] != token)

    def check_watch(self) -> tuple[str, str] | None:
        """The next event as (path that has changed, token of the watch)."""
        return self.events.popleft() if self.events else None

    def fired(self, path: str, with_all_below: bool) -> None:
        """Something has changed: queue an event for each watch that it concerns."""
        for watched, token in list(self.watches):
            if path == watched or _is_below(path, watched):
                self._queue(path, token)
            elif with_all_below and _is_below(watched, path):
                self._queue(watched, token)

    def _queue(self, path: str, token: str) -> None:
        self.events.append((path, token))
        if self._on_event is not None:
            self._on_event()

    # -- domains

    def introduce_domain(self, domid: int) -> None:
        """XS_INTRODUCE."""
        self.daemon.introduce(domid)

    def release_domain(self, domid: int) -> None:
        """XS_RELEASE."""
        if domid not in self.daemon.shut_down:
            raise store_error("xs_release_domain", errno.ENOENT, f"domain {domid}")
        self.daemon.release(domid)

    def resume_domain(self, domid: int) -> None:
        """XS_RESUME: its next shutdown is told on again."""
        if domid not in self.daemon.shut_down:
            raise store_error("xs_resume_domain", errno.ENOENT, f"domain {domid}")
        self.daemon.shut_down[domid] = False

    # -- what these stand on

    def _view(self, name: str, transaction: int) -> _Transaction:
        if transaction == 0:
            return _Transaction()
        if transaction not in self.transactions:
            raise store_error(C_NAMES[name], errno.ENOENT)
        return self.transactions[transaction]

    @contextmanager
    def _changing(self, name: str, transaction: int) -> Iterator[_Transaction]:
        view = self._view(name, transaction)
        yield view
        if transaction == 0:
            self._commit(view)

    def _commit(self, view: _Transaction) -> None:
        self.daemon.commit(view.changes)
        for path, with_all_below in view.fired:
            self.daemon.fire(path, with_all_below)

    def _paths(self, view: _Transaction) -> list[str]:
        there = {path for path, node in view.changes.items() if node is not None}
        return [*(there | (set(self.daemon.nodes) - set(view.changes)))]

    def _look(self, view: _Transaction, path: str) -> Node | None:
        if path in view.changes:
            return view.changes[path]
        node = self.daemon.nodes.get(path)
        view.seen.setdefault(path, node.generation if node else None)
        return node

    def _node(self, name: str, path: str, transaction: int) -> Node:
        node = self._look(self._view(name, transaction), path)
        if node is None:
            raise store_error(C_NAMES[name], errno.ENOENT, path)
        self._check(node, path, name, write=False)
        return node

    def _make(self, view: _Transaction, path: str, value: bytes) -> None:
        """Make a node and the parents it lacks; they belong to whom their parent belongs."""
        # The real one refuses bytes above ASCII too, which the tests of the bindings send here.
        if path != "/" and not re.fullmatch(r"(/[A-Za-z0-9_@\x80-\U0010ffff-]+)+", path):
            raise store_error("xs_write", errno.EINVAL, path)
        parent = _parent(path)
        above = self._look(view, parent)
        if above is None:
            self._make(view, parent, b"")
            above = view.changes[parent]
            assert above is not None
        self._check(above, path, "write", write=True)
        permissions = above.permissions
        if self.domid != 0:
            permissions = (permissions[0]._replace(domid=self.domid), *permissions[1:])
        view.changes[parent] = above  # its list of children has changed
        view.changes[path] = Node(value, permissions, 0)

    def _check(self, node: Node, path: str, name: str, write: bool) -> None:
        """EACCES unless this client may do it."""
        owner, *others = node.permissions
        if self.domid in (0, owner.domid):
            return
        mine = next((entry for entry in others if entry.domid == self.domid), owner)
        if not (mine.write if write else mine.read):
            raise store_error(C_NAMES[name], errno.EACCES, path)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _is_below(path: str, above: str) -> bool:
    if path.startswith("@") or above.startswith("@"):
        return False
    return path != above and (above == "/" or path.startswith(above + "/"))


def _below(above: str, paths: list[str]) -> list[str]:
    return [path for path in paths if _is_below(path, above)]


# -- guests


class FakeGuest:
    """A domain, and the script that its kernel follows; made by `FakeXen.add_guest`."""

    def __init__(
        self,
        xen: FakeXen,
        domid: int,
        name: str,
        *,
        uuid: UUID | None = None,
        type: DomainType = DomainType.PVH,  # noqa: A002
        vcpus: int = 1,
        memory_kib: int = 256 * 1024,
        acknowledge_ns: int | None = 1 * MS,
        acknowledge_by: str = "writing",
        suspend_ns: int | None = 40 * MS,
        feature_suspend: bytes | None = b"1",
        hvm_params: dict[int, int] | None = None,
        runs_xenstore: bool = False,
    ) -> None:
        self.xen = xen
        self.domid = domid
        self.name = name
        self.uuid = UUID(int=(0xFA4E << 112) | domid) if uuid is None else uuid
        self.type = type
        self.vcpus = vcpus
        self.memory_kib = memory_kib
        self.acknowledge_ns = acknowledge_ns
        self.acknowledge_by = acknowledge_by
        self.suspend_ns = suspend_ns
        self.feature_suspend = feature_suspend
        self.hvm_params = {
            CALLBACK_IRQ: 1,
            STORE_EVTCHN: 1,
            CONSOLE_EVTCHN: 2,
            **(hvm_params or {}),
        }
        self.runs_xenstore = runs_xenstore
        # the domain's state
        self.gone = False
        self.dying = False
        self.shutdown_code: int | None = None
        self.pause_count = 0
        # its history
        self.suspensions = 0
        self.resumptions = 0
        self.corrupted = ""  # what was done to it that a guest does not survive
        # its event channels: who is at the other end; None: nobody yet
        self.channels: dict[int, int | None] = {1: 0, 2: 0}
        self.suspend_port = 0  # the one that it offers
        self.over = False  # its suspend hypercall is going to return 0
        self.seeded = False
        self.ring_bytes = 0  # that xenstored has for it and that it has not taken
        self.restarts = 0
        self.stuck_vcpus: set[int] = set()  # that do not run
        # its hardware
        self.cards: dict[str, FakeCard] = {}
        self.backends: list[FakeBackend] = []
        # its kernel
        self._asked = False
        self._paused_work: list[Action] = []
        self._build()

    @property
    def home(self) -> str:
        """Its directory in xenstore."""
        return f"/local/domain/{self.domid}"

    @property
    def request_path(self) -> str:
        """The node through which it is asked to suspend."""
        return f"{self.home}/control/shutdown"

    @property
    def request(self) -> bytes | None:
        """What that node holds; None when it is not there."""
        node = self.xen.store.nodes.get(self.request_path)
        return None if node is None else node.value

    @property
    def suspended(self) -> bool:
        """Whether it sits in the suspend hypercall."""
        return not self.gone and self.shutdown_code == ShutdownReason.SUSPEND

    @property
    def running(self) -> bool:
        """Whether it lives and is not shut down; it may be paused."""
        return not self.gone and not self.dying and self.shutdown_code is None

    @property
    def info(self) -> DomainInfo:
        """What the hypervisor says of it."""
        down = self.shutdown_code is not None
        return DomainInfo(
            domid=self.domid,
            handle=self.uuid.bytes,
            type=self.type,
            dying=self.dying,
            shutdown=down,
            shutdown_code=self.shutdown_code or 0,
            paused=self.pause_count > 0,
            blocked=not down,
            running=False,
            runs_xenstore=self.runs_xenstore,
            vcpus_online=self.vcpus,
            max_vcpu_id=self.vcpus - 1,
            memory_kib=self.memory_kib,
            max_memory_kib=self.memory_kib,
            cpu_time_ns=self.xen.now_ns,
            cpupool=0,
        )

    # -- what it is given

    def give_card(self, address: str, **card: Any) -> FakeCard:
        """Pass a PCI device through to it, as libxl and pciback do it."""
        toolstack, home = self.xen.toolstack, f"/local/domain/0/backend/pci/{self.domid}/0"
        number = len(self.cards)
        toolstack.write(f"{home}/state", b"4")
        toolstack.write(f"{home}/num_devs", b"%d" % (number + 1))
        toolstack.write(f"{home}/key-{number}", address.encode())
        toolstack.write(f"{home}/dev-{number}", address.encode())
        toolstack.write(f"{home}/vdev-{number}", b"0000:00:%02x.00" % number)
        toolstack.write(f"{home}/state-{number}", b"3")
        toolstack.write(f"{home}/opts-{number}", b"msitranslate=0,power_mgmt=0,permissive=0")
        given = self.cards[address] = self.xen.cards[address] = FakeCard(**card)
        return given

    def give_device(
        self, kind: str, devid: int, server: int = 0, backend: str = "", **script: Any
    ) -> FakeBackend:
        """Give it a split device whose backend is in domain `server`, connected."""
        toolstack = self.xen.toolstack
        back = f"/local/domain/{server}/backend/{backend or kind}/{self.domid}/{devid}"
        front = f"{self.home}/device/{kind}/{devid}"
        for path in (front, f"/libxl/{self.domid}/device/{kind}/{devid}"):
            toolstack.write(f"{path}/backend", back.encode())
        toolstack.write(f"/libxl/{self.domid}/device/{kind}/{devid}/frontend", front.encode())
        toolstack.write(f"{back}/frontend", front.encode())
        toolstack.write(f"{front}/state", CONNECTED)
        toolstack.write(f"{back}/state", CONNECTED)
        toolstack.write(f"{back}/online", b"1")
        port = max(self.channels) + 1
        self.channels[port] = server
        toolstack.write(f"{front}/event-channel", b"%d" % port)
        served = FakeBackend(self, server, front, back, port, **script)
        self.backends.append(served)
        return served

    # -- what may happen to it

    def suspend(self) -> None:
        """It makes the suspend hypercall."""
        if self.running:
            self.suspensions += 1
            for card in self.cards.values():
                card.sleep()
            self.shut_down(ShutdownReason.SUSPEND)

    def crash(self) -> None:
        """Its kernel panics."""
        self.shut_down(ShutdownReason.CRASH)

    def power_off(self) -> None:
        """It powers off; nobody destroys it."""
        self.shut_down(ShutdownReason.POWEROFF)

    def reboot(self, after_ns: int = 50 * MS) -> None:
        """It reboots: the toolstack destroys it and builds it anew under another domid."""

        def rebuild() -> None:
            self.destroy()
            self.xen.add_guest(self.name, uuid=self.uuid, type=self.type)

        self.shut_down(ShutdownReason.REBOOT)
        self.xen.after(after_ns, rebuild)

    def shut_down(self, reason: int) -> None:
        """It leaves the scheduler."""
        if self.running:
            self.shutdown_code = int(reason)
            self.xen.store.has_shut_down(self.domid)

    def destroy(self, teardown_ns: int = 0, dying_ns: int = 0) -> None:
        """The toolstack destroys it, as libxl does: pauses it, empties xenstore, kills it.

        Args:
            teardown_ns: how long it is still there without its nodes in xenstore.
            dying_ns: how long it is dying before its domid is free.
        """
        if self.gone or self.dying:
            return
        self.pause_count += 1
        self.xen.toolstack.remove(self.home)
        for path in (f"/libxl/{self.domid}", f"/local/domain/0/backend/pci/{self.domid}"):
            if path in self.xen.store.nodes:
                self.xen.toolstack.remove(path)
        self.xen.after(teardown_ns, lambda: self._kill(dying_ns))

    # -- what the hypervisor does to it

    def pause(self) -> None:
        """One more pause."""
        self.pause_count += 1

    def unpause(self) -> None:
        """One pause less; without any, it goes on with what it was at."""
        self.pause_count = max(0, self.pause_count - 1)
        if self.pause_count == 0:
            if self.over and self.running:
                self._start_over()
            work, self._paused_work = self._paused_work, []
            for step in work:
                self.xen.after(0, lambda step=step: self._step(step))  # type: ignore[misc]

    def resume(self, cooperative: bool) -> None:
        """XEN_DOMCTL_resumedomain, with what libxc does around it; harmful unless suspended."""
        if not self.suspended:
            self.corrupted = "resumed when it was not suspended"
        elif not cooperative and (self.type is not DomainType.PV or 3 in self.channels):
            self.corrupted = "told to start over without being given fresh ground"
        elif not cooperative:
            self.over = True
        elif not self.over and any(backend.state != CONNECTED for backend in self.backends):
            self.corrupted = "told to go on with devices that were closed"
        self.resumptions += 1
        self.shutdown_code = None
        self._asked = False
        for card in self.cards.values():
            card.wake(self.xen)

    def soft_reset(self) -> None:
        """XEN_DOMCTL_soft_reset."""
        if self.type is DomainType.PV:
            self.shutdown_code = ShutdownReason.CRASH
            self.corrupted = "reset as only PVH guests can be"
        if not self.suspended or not self.pause_count:
            raise hypercall_error("xc_domain_soft_reset", errno.EINVAL)
        self.channels.clear()
        self.shutdown_code = None
        self.over, self.seeded, self._asked = True, False, False

    def reset_channels(self) -> None:
        """EVTCHNOP_reset."""
        if not self.pause_count:
            raise hypercall_error("xc_evtchn_reset", errno.EINVAL)
        self.channels.clear()

    def allocate_channel(self) -> int:
        """EVTCHNOP_alloc_unbound: the lowest free port."""
        port = next(port for port in range(1, 4096) if port not in self.channels)
        self.channels[port] = None
        return port

    def introduce(self, gfn: int, port: int) -> None:
        """XS_INTRODUCE on a domain that xenstored knows: it binds the new channel."""
        assert gfn == 0xFEFFC
        if self.channels.get(port, 0) is None:
            self.channels[port] = 0
        self._connection.watches.clear()

    # -- its kernel

    def _start_over(self) -> None:
        """Its suspend hypercall returns 0: it uses what it was given."""
        self.over = False
        self.restarts += 1
        store, console = self.hvm_params[STORE_EVTCHN], self.hvm_params[CONSOLE_EVTCHN]
        if (
            (store, console) != (1, 2)
            or self.channels.get(store) != 0
            or console not in (self.channels)
        ):
            self.corrupted = f"started over with the channels {self.channels}"
        elif not self.seeded:
            self.corrupted = "started over without grants for its store and console"
        elif self.xen.store.shut_down.get(self.domid):
            self.corrupted = "started over while xenstored takes it for suspended"
        elif self.xen.store.nodes[f"{self.home}/store/port"].value != b"1":
            self.corrupted = "started over with another port in xenstore"
        elif self.ring_bytes > 1000:
            self.corrupted = "started over with xenstored in the middle of a message to it"
        self.ring_bytes = 0
        for backend in self.backends:
            backend.frontend_starts(self)
        self._connection.watch(self.request_path, "shutdown")

    def _build(self) -> None:
        toolstack = self.xen.toolstack
        mine = [Permission(self.domid, read=False, write=False)]
        toolstack.write(self.home, b"")
        readable = [Permission(0, read=False, write=False), Permission(self.domid, True, False)]
        toolstack.set_permissions(self.home, readable)
        toolstack.write(f"{self.home}/name", self.name.encode("utf-8", "surrogateescape"))
        toolstack.write(f"{self.home}/store/port", b"1")
        toolstack.write(f"{self.home}/store/ring-ref", b"%d" % 0xFEFFC)
        toolstack.write(f"{self.home}/console/port", b"2")
        toolstack.write(f"{self.home}/console/ring-ref", b"%d" % 0xFEFFF)
        toolstack.write(f"{self.home}/vm", b"/vm/%s" % str(self.uuid).encode())
        toolstack.write(self.request_path, b"")
        toolstack.set_permissions(self.request_path, mine)
        if self.feature_suspend is not None:
            toolstack.write(f"{self.home}/control/feature-suspend", self.feature_suspend)
        self.xen.store.introduce(self.domid)
        self._connection = StoreConnection(self.xen.store, self.domid, self._request_changed)
        self._connection.watch(self.request_path, "shutdown")

    def _kill(self, dying_ns: int) -> None:
        self.dying = True
        self._connection.close()
        if dying_ns:
            self.xen.after(dying_ns, self._vanish)
        else:
            self._vanish()
        self.xen.store.release(self.domid)

    def _vanish(self) -> None:
        self.gone = True
        if self.xen.guests.get(self.domid) is self:
            del self.xen.guests[self.domid]

    def _later(self, delay_ns: int, step: Action) -> None:
        self.xen.after(delay_ns, lambda: self._step(step))

    def _step(self, step: Action) -> None:
        """Go on, if the guest is alive; when it is paused, later."""
        if not self.running:
            return
        if self.pause_count:
            self._paused_work.append(step)
        else:
            step()

    def _request_changed(self) -> None:
        self._connection.events.clear()
        if self.request == b"suspend" and not self._asked and self.acknowledge_ns is not None:
            self._asked = True
            self._later(self.acknowledge_ns, self.acknowledge)

    def offer_channel(self) -> int:
        """Offer an event channel for asking it to suspend, as classic PV kernels do."""
        self.suspend_port = self.allocate_channel()
        path = f"{self.home}/device/suspend/event-channel"
        self.xen.toolstack.write(path, b"%d" % self.suspend_port)
        return self.suspend_port

    def notified(self, port: int) -> None:
        """Its event channel fires."""
        if port != self.suspend_port or port not in self.channels:
            raise hypercall_error("xc_suspend_evtchn_init_exclusive", errno.EINVAL)
        if self.suspend_ns is not None:
            self._later(self.suspend_ns, self.suspend)

    def acknowledge(self) -> None:
        """It takes the request, if there still is one."""
        self._asked = False
        if self.request != b"suspend":
            return
        if self.acknowledge_by == "writing":
            self._connection.write(self.request_path, b"")
        elif self.acknowledge_by == "deleting":
            self._connection.remove(self.request_path)
        else:
            assert self.acknowledge_by == "nothing"
        if self.suspend_ns is not None:
            self._later(self.suspend_ns, self.suspend)


class FakeBackend:
    """One device's backend driver, in domain 0 or a driver domain: follows the frontend's states.

    Attributes:
        close_ns: how long it takes for each state; None: it does nothing any more.
        busy_until_ns: until then it works at requests, and keeps the ring when it closes.
        connect_ns: how long it takes to connect anew; None: for ever.
    """

    def __init__(
        self,
        guest: FakeGuest,
        server: int,
        frontend: str,
        path: str,
        port: int,
        *,
        close_ns: int | None = 1 * MS,
        busy_until_ns: int = 0,
        connect_ns: int | None = 0,
    ) -> None:
        self.guest, self.server, self.frontend, self.path = guest, server, frontend, path
        self.port = port
        self.close_ns, self.busy_until_ns = close_ns, busy_until_ns
        self.connect_ns = connect_ns
        self._woken = False
        self._connection = StoreConnection(guest.xen.store, server, self._changed)
        self._connection.watch(f"{frontend}/state", "state")

    @property
    def state(self) -> bytes:
        """Its own state."""
        return self.guest.xen.store.nodes[f"{self.path}/state"].value

    def frontend_starts(self, guest: FakeGuest) -> None:
        """The frontend connects: this must be able to."""
        if self.guest.xen.now_ns < self.busy_until_ns:
            guest.corrupted = f"{self.path} still writes to its memory"
        elif self.state != INIT_WAIT:
            guest.corrupted = f"started over while {self.path} is {self.state!r}"
        port = guest.allocate_channel()
        guest.channels[port] = self.server
        self.port = port
        guest.xen.toolstack.write(f"{self.frontend}/event-channel", b"%d" % port)
        if self.connect_ns == 0:
            self._connect()
        elif self.connect_ns is not None:
            guest.xen.after(self.connect_ns, self._connect)

    def _connect(self) -> None:
        for path in (self.path, self.frontend):
            if f"{path}/state" in self.guest.xen.store.nodes:
                self.guest.xen.toolstack.write(f"{path}/state", CONNECTED)

    def _changed(self) -> None:
        self._connection.events.clear()
        self.guest.ring_bytes += 100  # which its frontend and its watch of the backend cost
        if self.close_ns is not None and not self._woken:
            self._woken = True
            self.guest.xen.after(self.close_ns, self._follow)

    def _follow(self) -> None:
        self._woken = False
        xen = self.guest.xen
        node = xen.store.nodes.get(f"{self.frontend}/state")
        if node is None or f"{self.path}/state" not in xen.store.nodes:
            return
        if node.value == CLOSED and self.state != CLOSED:
            if xen.now_ns >= self.busy_until_ns and self.port in self.guest.channels:
                self.guest.channels[self.port] = None
            xen.toolstack.write(f"{self.path}/state", CLOSED)
        elif node.value == INITIALISING and self.state == CLOSED:
            xen.toolstack.write(f"{self.path}/state", INIT_WAIT)


@dataclass
class FakeCard:
    """A PCI Express network card, whose driver quiesces it in a suspension and brings it back.

    Attributes:
        interrupts: what its driver uses when it is up: "msi-x", "msi", "intx".
        up: whether the driver has it switched on.
        present: whether it answers at all.
        back_ns: how long the driver takes for bringing it back; None: for ever.
        back_with: the interrupts that it comes back with; None: the same.
        lanes: of its link.
    """

    interrupts: str = "msi-x"
    up: bool = True
    present: bool = True
    back_ns: int | None = 200 * MS
    back_with: str | None = None
    lanes: int = 4

    @property
    def config(self) -> bytes:
        """Its configuration space."""
        space = bytearray(b"\xff" * 256)
        if not self.present:
            return bytes(space)
        space[:] = bytes(256)
        intx = self.up and self.interrupts == "intx"
        words = {
            0x00: 0x8086,
            0x02: 0x10D3,
            0x04: (0x7 if self.up else 0) | (0 if intx or not self.up else 0x400),
            0x06: 0x10,
            0xC8: 0xD001,  # power management, next at 0xd0
            0xD0: 0xE005,  # MSI
            0xD2: 1 if self.up and self.interrupts == "msi" else 0,
            0xE0: 0xA010,  # PCI Express
            0xF2: self.lanes << 4 | 1,
            0xA0: 0x0011,  # MSI-X, the last
            0xA2: 0x8000 if self.up and self.interrupts == "msi-x" else 0,
        }
        for at, word in words.items():
            space[at : at + 2] = word.to_bytes(2, "little")
        space[0x34], space[0x3D] = 0xC8, 1 if intx else 0
        return bytes(space)

    def sleep(self) -> None:
        """The driver's suspend."""
        self.up = False

    def wake(self, xen: FakeXen) -> None:
        """The driver's resume begins."""

        def back() -> None:
            self.up = True
            self.interrupts = self.back_with or self.interrupts

        if self.back_ns is not None:
            xen.after(self.back_ns, back)


# -- the host


@dataclass
class _Hook:
    """Something to do before calls of one name, or after them."""

    name: str
    skip: int  # calls still to let through
    times: int | None  # calls to act upon; None: all
    action: Callable[[str], object]
    after: bool = False

    def call(self, name: str, *, after: bool) -> None:
        if self.after is not after or self.name not in (name, "*"):
            return
        if self.skip > 0:
            self.skip -= 1
        elif self.times is None or self.times > 0:
            if self.times is not None:
                self.times -= 1
            self.action(name)


class FakeXen:
    """The host: its domains, its xenstored, its clock; `ports` gives a connection to it.

    Attributes:
        now_ns: the virtual time.
        call_ns: how much of it a call through the ports takes.
        guests: the domains other than domain 0, by domid.
        store: xenstored.
        toolstack: a connection of dom0's own to it.
        locks: who holds which domain's lock.
        calls: how often each method of the ports was called.
        cards: the PCI devices of the host, by address.
        kernels: the images that show whether their suspend may be cancelled, by path.
    """

    def __init__(self, version: tuple[int, int] = (4, 17)) -> None:
        self.version = version
        self.now_ns = SECOND
        self.call_ns = 0
        self.guests: dict[int, FakeGuest] = {}
        self.store = FakeXenstored()
        self.toolstack = StoreConnection(self.store)
        self.toolstack.write("/local/domain/0/name", b"Domain-0")
        self.locks: dict[int, FakeLocks] = {}
        self.calls: Counter[str] = Counter()
        self.mutex = threading.RLock()
        self.cards: dict[str, FakeCard] = {}
        self.kernels: dict[str, bool] = {}
        self.sleep_states = ("freeze", "mem")
        self.sleep_ns = 60 * SECOND  # how long the machine sleeps; 0: the write returns at once
        self.programs: dict[str, FakeProgram] = {}  # by path
        self.hanging: list[object] = []  # what a function gives back when it is to hang as a job
        self.started: list[tuple[tuple[str, ...], dict[str, str]]] = []  # programs
        self.jobs: list[FakeJob] = []
        self.journal: list[dict[str, Any]] = []  # of a host suspend
        self._next_domid = 1
        self._agenda: list[tuple[int, int, Action]] = []
        self._appointments = 0
        self._hooks: list[_Hook] = []

    def ports(self) -> Ports:
        """A new connection to this host."""
        store = FakeStore(self)
        return Ports(
            FakeHypervisor(self),
            store,
            FakeLocks(self),
            FakePoller(self, store),
            FakePci(self),
            FakeKernels(self),
            FakePower(self),
            FakeJobs(self),
            FakeJournal(self),
        )

    def add_guest(self, name: str, *, domid: int | None = None, **script: Any) -> FakeGuest:
        """Build a domain.

        Args:
            name: what it is called; several may be called the same.
            domid: its number; the next free one when None.
            script: `uuid`, `type`, `vcpus`, `memory_kib`, `feature_suspend` (None: no such node),
                `hvm_params`, `runs_xenstore`, and how it suspends: `acknowledge_ns` after the
                request (None: never), by "writing", "deleting" the node or "nothing"
                (`acknowledge_by`), and suspends `suspend_ns` after that (None: never).
        """
        if domid is None:
            domid = self._next_domid
        self._next_domid = max(self._next_domid, domid + 1)
        assert domid not in self.guests
        guest = self.guests[domid] = FakeGuest(self, domid, name, **script)
        return guest

    # -- time

    def after(self, delay_ns: int, action: Action) -> None:
        """Do something that much later; at once when it is 0 and nobody waits."""
        self._appointments += 1
        heapq.heappush(self._agenda, (self.now_ns + delay_ns, self._appointments, action))

    def run_next(self, until_ns: int) -> bool:
        """Go to the next appointment and keep it; False when there is none before `until_ns`."""
        if not self._agenda or self._agenda[0][0] > until_ns:
            return False
        when, _, action = heapq.heappop(self._agenda)
        self.now_ns = max(self.now_ns, when)
        action()
        return True

    def pass_time(self, duration_ns: int) -> None:
        """Let time pass."""
        until = self.now_ns + duration_ns
        while self.run_next(until):
            pass
        self.now_ns = max(self.now_ns, until)

    def settle(self) -> None:
        """Let everything happen that is going to."""
        while self.run_next(1 << 63):
            pass

    # -- calls

    def before(self, name: str, action: Action, nth: int = 1, times: int | None = 1) -> None:
        """Do something right before a call through the ports: the `nth` from now on.

        Args:
            name: a method of the ports; "*" for any.
            action: what to do; what it raises, the call raises.
            nth: which of the calls to come, beginning with 1.
            times: how many calls in a row from there on; None for all.
        """
        self._hooks.append(_Hook(name, nth - 1, times, lambda _: action()))

    def fail(
        self, name: str, code: int, nth: int = 1, times: int | None = 1, *, after: bool = False
    ) -> None:
        """Make calls fail with an errno; arguments as for `before`.

        Args:
            after: whether they fail although they have done their work.
        """

        def action(called: str) -> None:
            if called == "sleep":
                raise SleepFailed("mem", code, "made to fail")
            if called.startswith("journal"):
                raise JournalError(code, "made to fail")
            kind = hypercall_error if called in HYPERCALLS else store_error
            if called in C_NAMES:  # locks and poller do not fail
                raise kind(C_NAMES[called], code, "made to fail")

        self._hooks.append(_Hook(name, nth - 1, times, action, after))

    def stop_failing(self) -> None:
        """Forget all that was told to `fail` and `before`."""
        self._hooks.clear()

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A call through the ports is being made."""
        with self.mutex:
            self.calls[name] += 1
            if self.call_ns:
                self.pass_time(self.call_ns)
            for hook in list(self._hooks):
                hook.call(name, after=False)
            yield
            for hook in list(self._hooks):
                hook.call(name, after=True)

    # -- what the hypervisor answers

    def infos(self) -> list[DomainInfo]:
        """All domains, by rising domid."""
        zero = DomainInfo(
            domid=0,
            handle=bytes(16),
            type=DomainType.PV,
            dying=False,
            shutdown=False,
            shutdown_code=0,
            paused=False,
            blocked=False,
            running=True,
            runs_xenstore=False,
            vcpus_online=1,
            max_vcpu_id=0,
            memory_kib=1 << 20,
            max_memory_kib=1 << 20,
            cpu_time_ns=self.now_ns,
            cpupool=0,
        )
        return [zero, *(self.guests[domid].info for domid in sorted(self.guests))]

    # -- what is left behind

    @property
    def watches(self) -> list[tuple[str, str]]:
        """All watches of dom0's programs that stand in the store."""
        return [
            watch
            for connection in self.store.connections
            if connection.domid == 0 and not connection.is_kernel
            for watch in connection.watches
        ]

    @property
    def open_transactions(self) -> int:
        """How many transactions were begun and not ended."""
        return sum(len(connection.transactions) for connection in self.store.connections)


# -- the ports


class _Port:
    """A part of a connection to the host."""

    def __init__(self, xen: FakeXen) -> None:
        self._xen = xen
        self._closed = False

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        if self._closed:
            raise ValueError(f"this {type(self).__name__} is closed")
        with self._xen.call(name):
            yield

    def close(self) -> None:
        """Use after this is an error."""
        self._closed = True


class FakeHypervisor(_Port):
    """`xenpm.ports.Hypervisor` on the fake host."""

    def version(self) -> tuple[int, int]:
        """The hypervisor's release."""
        with self._call("version"):
            return self._xen.version

    def domain_info(self, domid: int) -> DomainInfo | None:
        """What the hypervisor says of one domain."""
        with self._call("domain_info"):
            return next((info for info in self._xen.infos() if info.domid == domid), None)

    def domain_list(self) -> list[DomainInfo]:
        """All domains, by rising domid."""
        with self._call("domain_list"):
            return self._xen.infos()

    def vcpu_info(self, domid: int, vcpu: int) -> VcpuInfo:
        """What the hypervisor says of one vCPU."""
        with self._call("vcpu_info"):
            guest = self._guest("vcpu_info", domid)
            runs = guest.running and not guest.pause_count and vcpu not in guest.stuck_vcpus
            return VcpuInfo(True, not runs, self._xen.now_ns if runs else SECOND // 2)

    def pause(self, domid: int) -> None:
        """Take a domain off the CPUs."""
        with self._call("pause"):
            self._guest("pause", domid).pause()

    def unpause(self, domid: int) -> None:
        """Undo one `pause`."""
        with self._call("unpause"):
            self._guest("unpause", domid).unpause()

    def resume(self, domid: int, cooperative: bool) -> None:
        """Let a suspended domain run on."""
        with self._call("resume"):
            self._guest("resume", domid).resume(cooperative)

    def hvm_param_get(self, domid: int, param: int) -> int:
        """A HVM parameter; PV domains have none."""
        with self._call("hvm_param_get"):
            guest = self._guest("hvm_param_get", domid)
            if guest.type is DomainType.PV:
                raise hypercall_error("xc_hvm_param_get", errno.EINVAL)
            return guest.hvm_params.get(param, 0)

    def hvm_param_set(self, domid: int, param: int, value: int) -> None:
        """Set a HVM parameter."""
        with self._call("hvm_param_set"):
            self._guest("hvm_param_set", domid).hvm_params[param] = value

    def evtchn_alloc_unbound(self, domid: int, remote_domid: int) -> int:
        """A new port of a domain."""
        with self._call("evtchn_alloc_unbound"):
            assert remote_domid == 0
            return self._guest("evtchn_alloc_unbound", domid).allocate_channel()

    def evtchn_remote(self, domid: int, port: int) -> int | None:
        """Who is at the other end of a domain's port."""
        with self._call("evtchn_remote"):
            if port >= 4096:
                raise hypercall_error("xc_evtchn_status", errno.EINVAL)
            return self._guest("evtchn_remote", domid).channels.get(port)

    def suspend_evtchn_notify(self, domid: int, port: int) -> None:
        """Ask a guest to suspend over an event channel."""
        with self._call("suspend_evtchn_notify"):
            self._guest("suspend_evtchn_notify", domid).notified(port)

    def store_ring_discard(self, domid: int, gfn: int) -> int:
        """Take what xenstored has written to a domain: 100 bytes for each event, ten at a time."""
        with self._call("store_ring_discard"):
            guest = self._guest("store_ring_discard", domid)
            assert gfn == 0xFEFFC
            taken, guest.ring_bytes = min(guest.ring_bytes, 1000), max(0, guest.ring_bytes - 1000)
            if guest.running and not guest.pause_count:
                guest.corrupted = "its ring was taken from while it ran"
            return taken

    def evtchn_reset(self, domid: int) -> None:
        """Close all event channels of a domain."""
        with self._call("evtchn_reset"):
            self._guest("evtchn_reset", domid).reset_channels()

    def soft_reset(self, domid: int) -> None:
        """Clear what the hypervisor has of a suspended domain."""
        with self._call("soft_reset"):
            self._guest("soft_reset", domid).soft_reset()

    def gnttab_seed(
        self,
        domid: int,
        *,
        is_hvm: bool,
        console_gfn: int,
        xenstore_gfn: int,
        console_domid: int,
        xenstore_domid: int,
    ) -> None:
        """Grant the console's and the store's page."""
        with self._call("gnttab_seed"):
            guest = self._guest("gnttab_seed", domid)
            assert is_hvm is (guest.type is not DomainType.PV)
            assert (console_domid, xenstore_domid) == (0, 0)
            assert (console_gfn, xenstore_gfn) == (0xFEFFF, 0xFEFFC)
            guest.seeded = True

    def _guest(self, name: str, domid: int) -> FakeGuest:
        if domid not in self._xen.guests:
            raise hypercall_error(C_NAMES[name], errno.ESRCH)
        return self._xen.guests[domid]


class FakeStore(_Port):
    """`xenpm.ports.Store` on the fake host: a `StoreConnection` whose calls count and can fail."""

    def __init__(self, xen: FakeXen) -> None:
        super().__init__(xen)
        self.connection = StoreConnection(xen.store)

    def close(self) -> None:
        """Hang up."""
        super().close()
        self.connection.close()

    def fileno(self) -> int:
        """Nothing that could be polled: only a `FakePoller` can wait for this store."""
        if self._closed:
            raise ValueError("this FakeStore is closed")
        return -1

    def read(self, path: str, transaction: int = 0) -> bytes:
        """The value of a node."""
        with self._call("read"):
            return self.connection.read(path, transaction)

    def write(self, path: str, value: bytes, transaction: int = 0) -> None:
        """Set the value of a node."""
        with self._call("write"):
            self.connection.write(path, value, transaction)

    def remove(self, path: str, transaction: int = 0) -> None:
        """Remove a node and all below it."""
        with self._call("remove"):
            self.connection.remove(path, transaction)

    def list(self, path: str, transaction: int = 0) -> builtins.list[str]:
        """The names of a node's children."""
        with self._call("list"):
            return self.connection.directory(path, transaction)

    def set_permissions(
        self, path: str, permissions: builtins.list[Permission], transaction: int = 0
    ) -> None:
        """Set who may read and write a node."""
        with self._call("set_permissions"):
            self.connection.set_permissions(path, permissions, transaction)

    def transaction_start(self) -> int:
        """Begin a transaction."""
        with self._call("transaction_start"):
            return self.connection.transaction_start()

    def transaction_end(self, transaction: int, abort: bool = False) -> None:
        """Commit or abort a transaction; it is over also when this fails."""
        try:
            with self._call("transaction_end"):
                self.connection.transaction_end(transaction, abort)
        except CALL_ERRORS:
            self.connection.transactions.pop(transaction, None)
            raise

    def watch(self, path: str, token: str) -> None:
        """Report changes at and below a node."""
        with self._call("watch"):
            self.connection.watch(path, token)

    def unwatch(self, path: str, token: str) -> None:
        """Undo a `watch`."""
        with self._call("unwatch"):
            self.connection.unwatch(path, token)

    def check_watch(self) -> tuple[str, str] | None:
        """The next event, or None."""
        with self._call("check_watch"):
            return self.connection.check_watch()

    def introduce_domain(self, domid: int, gfn: int, port: int) -> None:
        """Connect to a domain anew."""
        with self._call("introduce_domain"):
            self._xen.guests[domid].introduce(gfn, port)

    def resume_domain(self, domid: int) -> None:
        """A domain that had shut down runs again."""
        with self._call("resume_domain"):
            self.connection.resume_domain(domid)


class FakeJournal(_Port):
    """`xenpm.ports.Journal` in the host's memory; it outlives this connection."""

    def read(self) -> builtins.list[dict[str, Any]]:
        """What has been noted."""
        with self._call("journal_read"):
            return json.loads(json.dumps(self._xen.journal))  # type: ignore[no-any-return]

    def begin(self, entry: dict[str, Any]) -> None:
        """Make a new one."""
        with self._call("journal_begin"):
            assert not self._xen.journal
            self._xen.journal.append(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """Note something."""
        with self._call("journal_add"):
            assert self._xen.journal
            self._xen.journal.append(entry)

    def end(self) -> None:
        """Remove it."""
        with self._call("journal_end"):
            self._xen.journal.clear()


class FakePci(_Port):
    """`xenpm.ports.PciBus` on the fake host."""

    def config(self, address: str) -> bytes | None:
        """A device's configuration space; None when it is not there."""
        with self._call("config"):
            card = self._xen.cards.get(address)
            return None if card is None else card.config


class FakeKernels(_Port):
    """`xenpm.ports.Kernels` on the fake host."""

    def suspend_cancel(self, path: str) -> bool | None:
        """Whether an image says that its suspend may be cancelled."""
        with self._call("suspend_cancel"):
            return self._xen.kernels.get(path)


class FakePower(_Port):
    """`xenpm.ports.Power` on the fake host: the monotonic clock stands still during a sleep.

    `FakeXen.fail("sleep", errno.EBUSY)` has it refused, and `FakeXen.before("sleep", ...)` makes
    something happen right before.
    """

    def states(self) -> tuple[str, ...]:
        """The sleep states of this host."""
        with self._call("states"):
            return self._xen.sleep_states

    def sleep(self, state: str) -> Sleep:
        """Sleep for `FakeXen.sleep_ns`, between two halves of a second for the devices."""
        with self._call("sleep"):
            if state not in self._xen.sleep_states:
                raise SleepFailed(state, errno.EINVAL, "not offered")
            began_ns = self._xen.now_ns
            self._xen.pass_time(SECOND)
            return Sleep(
                state,
                began_ns,
                self._xen.now_ns,
                slept_ns=self._xen.sleep_ns,
                successes=(0, 1),
                failures=(0, 0),
                woken_by=("PNP0C0C:00",),
                wakeup_irq=9,
                wakeup_irq_name="acpi",
            )


@dataclass
class FakeProgram:
    """How a program behaves."""

    lasts_ns: int | None = 0  #: None: it hangs
    status: int = 0
    output: str = ""
    heeds: tuple[int, ...] = (SIGTERM, SIGKILL)  #: signals that end it


class FakeJob:
    """A program or a function on the fake host."""

    def __init__(self, xen: FakeXen, heeds: tuple[int, ...] = ()) -> None:
        self.done = False
        self.ending: Ending | None = None
        self.signals: list[int] = []
        self._heeds = heeds
        self._number = -2 - len(xen.jobs)
        xen.jobs.append(self)

    def end(self, ending: Ending) -> None:
        """It ends, if it has not yet."""
        self.ending = self.ending or ending

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Something that only a `FakePoller` can wait for."""
        return () if self.done else (self._number,)

    def work(self) -> None:
        """See whether it has ended."""
        self.done = self.ending is not None

    def signal(self, signum: int) -> None:
        """End it, if it heeds that."""
        self.signals.append(signum)
        if signum in self._heeds:
            self.end(Ending(-signum))

    def result(self) -> Ending:
        """How it has ended."""
        assert self.ending is not None
        return self.ending

    def close(self) -> None:
        """Let go of it."""
        if not self.done:
            self.signal(SIGKILL)
        self.done = True


class FakeJobs(_Port):
    """`xenpm.ports.Jobs` on the fake host: `FakeXen.programs`, and functions that take no time."""

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> FakeJob:
        """Start one of the host's programs."""
        with self._call("run"):
            program = self._xen.programs.get(command[0])
            if program is None:
                raise XenError(f"{command[0]} cannot be started: no such program")
            self._xen.started.append((tuple(command), dict(environment)))
            job = FakeJob(self._xen, program.heeds)
            ending = Ending(program.status, output=program.output)
            if program.lasts_ns is not None:
                self._xen.after(program.lasts_ns, lambda: job.end(ending))
            return job

    def call(self, function: Callable[[], object]) -> FakeJob:
        """Call a function, and say that it has ended."""
        with self._call("call"):
            job = FakeJob(self._xen)
            try:
                if function() not in self._xen.hanging:
                    job.end(Ending(None))
            except Exception as error:
                job.end(Ending(None, f"{type(error).__name__}: {error}"))
            return job


class FakeLocks(_Port):
    """`xenpm.ports.Locks` on the fake host."""

    def acquire(self, domid: int) -> bool:
        """Take a domain's lock, unless another connection has it."""
        with self._call("acquire"):
            return self._xen.locks.setdefault(domid, self) is self

    def release(self, domid: int) -> None:
        """Give a domain's lock back."""
        with self._call("release"):
            if self._xen.locks.get(domid) is self:
                del self._xen.locks[domid]

    def close(self) -> None:
        """Give all locks back."""
        super().close()
        for domid in [domid for domid, owner in self._xen.locks.items() if owner is self]:
            del self._xen.locks[domid]


class FakePoller(_Port):
    """`xenpm.ports.Poller` on the fake host: waiting makes virtual time pass."""

    def __init__(self, xen: FakeXen, store: FakeStore) -> None:
        super().__init__(xen)
        self._store = store
        self._woken = False

    def now_ns(self) -> int:
        """The virtual time."""
        return self._xen.now_ns

    def wait(self, fd: int, timeout_ns: int, others: Sequence[int] = ()) -> None:
        """Let things happen until there is an event in the store, a `wake`, or time is up.

        Of the jobs whose descriptors are the others, one that ends is such an event.
        """
        assert fd == self._store.fileno()
        with self._call("wait"):
            deadline = self._xen.now_ns + timeout_ns
            awaited = [job for job in self._xen.jobs if set(job.descriptors) & set(others)]
            while not (
                self._woken
                or self._store.connection.events
                or any(job.ending is not None for job in awaited)
            ):
                if not self._xen.run_next(deadline):
                    self._xen.now_ns = max(self._xen.now_ns, deadline)
                    break
            self._woken = False

    def wake(self) -> None:
        """End the present or next `wait`."""
        self._woken = True
