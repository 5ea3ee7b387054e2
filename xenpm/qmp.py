"""The real `xenpm.ports.DeviceModels`: QEMU's machine protocol, over the socket that libxl made.

See QEMU's docs/interop/qmp-spec.  QEMU serves one client at a time, libxl or us; whoever comes
meanwhile is connected and greeted when the other has gone.  So a conversation is short, and has a
connection of its own.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

from .errors import XenError
from .types import Ending

__all__ = ["QmpModels"]

_SOCKETS = Path("/var/run/xen")  # XEN_RUN_DIR
_LONGEST = 1 << 20  # of a message; those awaited here have some hundred bytes


class QmpModels:
    """The device models whose sockets are in one directory."""

    def __init__(self, directory: Path = _SOCKETS) -> None:
        self._directory = directory

    def ask(self, domid: int, command: str) -> Conversation:
        """Give a domain's model a command, if any, and ask then how it is; never waits.

        Raises:
            XenError: no socket can be made.
        """
        return Conversation(self._directory / f"qmp-libxl-{domid}", command)


class Conversation:
    """One connection, from the greeting to the answer of ``query-status``."""

    def __init__(self, path: Path, command: str) -> None:
        self.done = False
        self._ending = Ending(None)
        self._received = b""
        self._asked = ""  # nothing yet: the greeting is awaited
        self._to_ask = [each for each in ("qmp_capabilities", command, "query-status") if each]
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise XenError(f"a socket for a device model cannot be made: {error}") from error
        self._socket.setblocking(False)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._fail(f"cannot be reached at {path}: {error.strerror}", error.errno)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The connection."""
        return () if self.done else (self._socket.fileno(),)

    @property
    def output(self) -> str:
        """The model's state as QEMU names it, once it is known: ``running``, ``paused``, ..."""
        return self._ending.output

    def work(self) -> None:
        """Take what has come, and ask the next; never waits."""
        try:
            data = self._socket.recv(_LONGEST)
            self._received += data
            *lines, self._received = self._received.split(b"\n")
            for line in lines:
                if line.strip() and not self.done:
                    self._take(line)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"has broken the connection: {error.strerror}", error.errno)
            return
        if not self.done and not data:
            self._fail("has closed the connection", errno.EPIPE)
        elif not self.done and len(self._received) > _LONGEST:
            self._fail("does not stop writing", errno.EMSGSIZE)

    def _take(self, line: bytes) -> None:
        try:
            message: dict[str, Any] = json.loads(line)
            if "event" in message:
                return
            if "error" in message:
                self._fail(f"refuses {self._asked}: {message['error']['desc']}", errno.EIO)
                return
            answer = message["return" if self._asked else "QMP"]
            if self._asked == "query-status":
                self._end(Ending(None, output=str(answer["status"])))
                return
        except (ValueError, LookupError, TypeError, RecursionError):
            self._fail(f"says what makes no sense: {line[:60]!r}", errno.EPROTO)
            return
        self._asked = self._to_ask.pop(0)
        self._socket.send(json.dumps({"execute": self._asked}).encode() + b"\n")

    def signal(self, signum: int) -> None:
        """Nothing: only closing it ends it."""

    def result(self) -> Ending:
        """The model's state as output; or what went wrong as error, with an errno as status."""
        return self._ending

    def close(self) -> None:
        """Let go of it; the model may yet take the command."""
        self._end(Ending(errno.ECANCELED, "was not waited for"))

    def _fail(self, what: str, code: int | None) -> None:
        self._end(Ending(code, os.fsdecode(what.encode("utf-8", "replace"))))

    def _end(self, ending: Ending) -> None:
        if not self.done:
            self.done = True
            self._ending = ending
            self._socket.close()
