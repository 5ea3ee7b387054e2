"""The journal of a host suspend, as a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import xenpm
from xenpm.journal import FileJournal

PLAN: dict[str, Any] = {"event": "plan", "entries": []}
ASKED = {"event": "asked", "domid": 1, "how": "suspend"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_it_outlives_its_writer(path: Path) -> None:
    journal = FileJournal(path)
    assert journal.read() == []
    journal.begin(PLAN)
    journal.add(ASKED)
    assert FileJournal(path).read() == [PLAN, ASKED]
    assert path.stat().st_mode & 0o077 == 0
    journal.end()
    journal.end()
    assert FileJournal(path).read() == []
    assert list(path.parent.iterdir()) == []


def test_names_of_any_bytes(path: Path) -> None:
    entry = {"event": "plan", "name": "caf\udce9 \u2028 \n"}
    journal = FileJournal(path)
    journal.begin(entry)
    assert journal.read() == [entry]


@pytest.mark.parametrize("kept", range(len(b'{"event": "asked"')))
def test_torn_line_was_not_done(kept: int, path: Path) -> None:
    journal = FileJournal(path)
    journal.begin(PLAN)
    whole = path.read_bytes()
    journal.add(ASKED)
    path.write_bytes(path.read_bytes()[: len(whole) + kept])
    assert journal.read() == [PLAN]


@pytest.mark.parametrize("text", [b"nonsense\n", b"[1]\n", b"7\n", b"\n"])
def test_nonsense(text: bytes, path: Path) -> None:
    path.write_bytes(text)
    with pytest.raises(xenpm.JournalError, match="makes no sense"):
        FileJournal(path).read()
    assert path.read_bytes() == text


def test_disk_full_before_the_first_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(xenpm.JournalError, match="No space left on device; nothing was touched"):
        FileJournal(path).begin(PLAN)
    monkeypatch.undo()
    assert FileJournal(path).read() == []


def test_disk_full_in_the_middle_of_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = FileJournal(path)
    journal.begin(PLAN)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(xenpm.JournalError, match="no space is left"):
        journal.add(ASKED)
    monkeypatch.undo()
    journal.add(ASKED)  # there is space again: no line was spoilt
    assert journal.read() == [PLAN, ASKED]


def test_directory_that_is_gone(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "gone" / "journal")
    with pytest.raises(xenpm.JournalError, match="cannot be written"):
        journal.begin(PLAN)
    with pytest.raises(xenpm.JournalError, match="cannot be written"):
        journal.add(PLAN)


def test_torn_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    journal.begin({"event": "plan"})
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'{"event": "ask')
    journal.add({"event": "up"})
    assert journal.read() == [{"event": "plan"}, {"event": "up"}]
