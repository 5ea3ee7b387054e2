"""A xenstored on a unix socket, so that the real libxenstore can be driven without Xen.

It speaks Xen's public/io/xs_wire.h on behalf of the store of a `FakeXen`: what a guest of that host
does is seen through libxenstore, and the other way round.
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

from xenpm.errors import CALL_ERRORS
from xenpm.testing import FakeXen
from xenpm.testing.store import StoreConnection
from xenpm.types import Permission


class Request(enum.IntEnum):
    """``enum xsd_sockmsg_type``, as far as it is served."""

    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    RESUME = 18
    DIRECTORY_PART = 22


_HEADER = struct.Struct("=IIII")  # type, request, transaction, length
_DONE = b"OK\0"
_PAYLOAD_MAX = 4096
_LETTERS = {(False, False): "n", (True, False): "r", (False, True): "w", (True, True): "b"}
_FLAGS = {letter: flags for flags, letter in _LETTERS.items()}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"


def _part(names: bytes) -> bytes:
    """As many names as fit, after the generation of their node; the end has an empty one."""
    generation = b"1\0"
    room = _PAYLOAD_MAX - len(generation) - 1
    if len(names) <= room:
        return generation + names + b"\0"
    return generation + names[: names.rindex(b"\0", 0, room) + 1]


class WireXenstored:
    """The daemon; everything happens in threads of its own.

    Args:
        path: where its socket shall be.
        xen: whose store it serves.

    Attributes:
        requests: how many of each have come.
        errors: requests that are to be answered with that error number.
        dies_at: the request at which it dies without an answer.
    """

    def __init__(self, path: Path, xen: FakeXen) -> None:
        self.xen = xen
        self.requests: Counter[Request] = Counter()
        self.errors: dict[Request, int] = {}
        self.dies_at: Request | None = None
        self._clients: list[_Client] = []
        self._dead = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self.xen.mutex:
                client = _Client(self, connection)
                self._clients.append(client)
                if self._dead:
                    client.hang_up()

    def die(self) -> None:
        """End at once: all connections break, nobody listens any more."""
        with self.xen.mutex:
            self._dead = True
            # Without the shutdown, the thread would go on waiting for the closed socket.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for client in self._clients:
                client.hang_up()

    def stop(self) -> None:
        """End, and wait for the threads."""
        if not self._dead:
            self.die()
        self._thread.join()
        for client in self._clients:
            client.thread.join()


class _Client:
    """One connection, and the thread that serves it."""

    def __init__(self, daemon: WireXenstored, connection: socket.socket) -> None:
        self._daemon = daemon
        self._socket = connection
        self._answering = False
        self._store = StoreConnection(daemon.xen.store, 0, self._send_events)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def hang_up(self) -> None:
        self._store.close()
        with suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _send(self, kind: Request, request: int, transaction: int, payload: bytes) -> None:
        header = _HEADER.pack(kind, request, transaction, len(payload))
        self._socket.sendall(header + payload)

    def _send_events(self) -> None:
        while not self._answering and self._store.events:
            path, token = self._store.events.popleft()
            try:
                self._send(Request.WATCH_EVENT, 0, 0, _bytes(path) + _bytes(token))
            except OSError:
                return

    def _serve(self) -> None:
        daemon = self._daemon
        try:
            while True:
                kind, request, transaction, length = _HEADER.unpack(self._receive(_HEADER.size))
                payload = self._receive(length)
                with daemon.xen.mutex:
                    if daemon.dies_at == kind:
                        daemon.die()
                        return
                    daemon.requests[Request(kind)] += 1
                    self._answering = True
                    answer_kind, answer = self._answer(Request(kind), transaction, payload)
                    self._send(answer_kind, request, transaction, answer)
                    self._answering = False
                    self._send_events()
                    daemon.xen.pass_time(0)  # guests that need no time act now
        except (EOFError, OSError):
            pass  # the client has hung up
        finally:
            with daemon.xen.mutex:
                self._store.close()
            self._socket.close()

    def _answer(self, kind: Request, transaction: int, payload: bytes) -> tuple[Request, bytes]:
        try:
            if kind in self._daemon.errors:
                raise OSError(self._daemon.errors[kind], "")
            return kind, self._perform(kind, transaction, payload)
        except (*CALL_ERRORS, OSError) as error:
            return Request.ERROR, errno.errorcode[error.errno or errno.EIO].encode() + b"\0"

    def _perform(self, kind: Request, transaction: int, payload: bytes) -> bytes:
        store = self._store
        first, _, rest = payload.partition(b"\0")
        path = _text(first)
        if kind is Request.READ:
            return store.read(path, transaction)
        if kind is Request.DIRECTORY:
            names = b"".join(_bytes(name) for name in store.directory(path, transaction))
            if len(names) > _PAYLOAD_MAX:
                raise OSError(errno.E2BIG, "")  # it is then asked for in parts
            return names
        if kind is Request.DIRECTORY_PART:
            names = b"".join(_bytes(name) for name in store.directory(path, transaction))
            return _part(names[int(rest.rstrip(b"\0")) :])
        if kind is Request.GET_PERMS:
            return b"".join(
                _bytes(f"{_LETTERS[entry.read, entry.write]}{entry.domid}")
                for entry in store.get_permissions(path, transaction)
            )
        if kind is Request.TRANSACTION_START:
            return _bytes(str(store.transaction_start()))
        if kind is Request.WRITE:
            store.write(path, rest, transaction)
        elif kind is Request.MKDIR:
            store.mkdir(path, transaction)
        elif kind is Request.RM:
            store.remove(path, transaction)
        elif kind is Request.SET_PERMS:
            entries = [_text(entry) for entry in rest.split(b"\0") if entry]
            permissions = [Permission(int(text[1:]), *_FLAGS[text[0]]) for text in entries]
            store.set_permissions(path, permissions, transaction)
        elif kind is Request.TRANSACTION_END:
            store.transaction_end(transaction, abort=path == "F")
        elif kind is Request.WATCH:
            store.watch(path, _text(rest.rstrip(b"\0")))
        elif kind is Request.UNWATCH:
            store.unwatch(path, _text(rest.rstrip(b"\0")))
        elif kind is Request.INTRODUCE:
            store.introduce_domain(int(path))
        elif kind is Request.RELEASE:
            store.release_domain(int(path))
        elif kind is Request.RESUME:
            store.resume_domain(int(path))
        else:
            raise OSError(errno.ENOSYS, "")
        return _DONE
