"""The real `xenpm.ports.Journal`: what a killed process leaves for `xenpm.Host.recover`.

One line of JSON for each thing that is about to happen or has happened, in a file of a directory
that is empty after a boot.  The first line is the plan; a domain that no later line names was not
touched.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from .errors import JournalError

__all__ = ["FileJournal"]


class FileJournal:
    """A file that only grows, a line at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        """What has been noted; empty when nothing is under way.

        Raises:
            JournalError: it cannot be read, or is no journal.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise JournalError(f"the journal cannot be read: {error}") from error
        *lines, _torn = data.split(b"\n")  # what a torn line speaks of was not done yet
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise JournalError(
                f"the journal {self._path} makes no sense ({error}): look with 'python -m xenpm "
                "list' which guests are suspended or paused, put them back by hand, and remove it"
            ) from error

    def begin(self, entry: dict[str, Any]) -> None:
        """Make a new one, whole or not at all.

        Raises:
            JournalError: it cannot be written; nothing was touched.
        """
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            self._append(fresh, os.O_TRUNC, entry)
            fresh.rename(self._path)
        except OSError as error:
            raise JournalError(
                f"the journal {self._path} cannot be written: {error}; nothing was touched"
            ) from error

    def add(self, entry: dict[str, Any]) -> None:
        """Note something, before what it says is done.

        Raises:
            JournalError: it cannot be written.
        """
        try:
            self._append(self._path, os.O_APPEND, entry)
        except OSError as error:
            raise JournalError(f"the journal {self._path} cannot be written: {error}") from error

    def end(self) -> None:
        """Remove it: everything is put back.

        Raises:
            JournalError: it cannot be removed.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise JournalError(f"the journal {self._path} cannot be removed: {error}") from error

    @staticmethod
    def _append(path: Path, how: int, entry: dict[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
        try:
            size = os.fstat(fd).st_size
            before = os.pread(fd, size, 0).rfind(b"\n") + 1
            if before != size:  # a crash has torn the last line
                os.ftruncate(fd, before)
            if os.write(fd, line) != len(line):
                os.ftruncate(fd, before)  # or the next line would be a part of this one
                raise OSError(errno.ENOSPC, "no space is left for a line")
        finally:
            os.close(fd)
