"""xenstored: nodes, permissions, transactions, watches."""

from __future__ import annotations

import builtins
import errno
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Optional

from xenpm.errors import CALL_ERRORS, store_error
from xenpm.types import Permission

from .calls import C_NAMES, Port
from .clock import Action

if TYPE_CHECKING:
    from .host import FakeXen

RELEASE_DOMAIN = "@releaseDomain"
INTRODUCE_DOMAIN = "@introduceDomain"


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


class FakeStore(Port):
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
