"""What kernel images say of themselves."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest

from xenpm.elf import suspend_cancel
from xenpm.system import KernelFiles


def note(name: bytes, kind: int, value: bytes) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(value), kind) + padded(name) + padded(value)


def image(notes: bytes, *, wide: bool = True) -> bytes:
    """An ELF file with two segments: some data, and the notes."""
    if wide:
        header = b"\x7fELF\x02\x01\x01" + bytes(9)
        header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        at = 64 + 2 * 56
        table = struct.pack("<IIQQQQQQ", 1, 0, 0, 0, 0, at, at, 0)
        table += struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 4)
    else:
        header = b"\x7fELF\x01\x01\x01" + bytes(9)
        header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
        at = 52 + 2 * 32
        table = struct.pack("<IIIIIIII", 1, 0, 0, 0, at, at, 0, 0)
        table += struct.pack("<IIIIIIII", 4, at, 0, 0, len(notes), len(notes), 0, 4)
    return header + table + notes


OTHERS = note(b"GNU\0", 14, b"\1\0\0\0") + note(b"Xen\0", 6, b"linux\0")
CAN = note(b"Xen\0", 14, b"\1\0\0\0")
CANNOT = note(b"Xen\0", 14, b"\0\0\0\0")


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("notes", "expected"),
    [(OTHERS + CAN, True), (CAN + OTHERS, True), (OTHERS + CANNOT, False), (OTHERS, False)],
)
def test_note(notes: bytes, expected: bool, wide: bool) -> None:
    assert suspend_cancel(io.BytesIO(image(notes, wide=wide))) is expected


@pytest.mark.parametrize("loader", [b"GRUB\0", b"Mini-OS\0"])
def test_loader_says_nothing_of_what_it_loads(loader: bytes) -> None:
    assert suspend_cancel(io.BytesIO(image(note(b"Xen\0", 6, loader)))) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"MZ" + bytes(1000), b"\x7fELF", b"\x7fELF\x02\x02" + bytes(100)],
    ids=["empty", "bzImage", "short", "big-endian"],
)
def test_what_shows_no_notes(data: bytes) -> None:
    assert suspend_cancel(io.BytesIO(data)) is None


@pytest.mark.parametrize("cut", range(0, len(image(OTHERS + CAN)), 3))
def test_cut_short(cut: int) -> None:
    suspend_cancel(io.BytesIO(image(OTHERS + CAN)[:cut]))  # raises nothing


def test_nonsense() -> None:
    huge = bytearray(image(CAN))
    huge[64 + 56 + 32 : 64 + 56 + 40] = struct.pack("<Q", 1 << 60)
    assert suspend_cancel(io.BytesIO(bytes(huge))) is None


def test_files(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(image(CAN))
    assert KernelFiles().suspend_cancel(str(kernel)) is True
    assert KernelFiles().suspend_cancel(str(tmp_path / "gone")) is None
    assert KernelFiles().suspend_cancel(str(tmp_path)) is None
    assert KernelFiles().suspend_cancel("a\0b") is None
    os.mkfifo(tmp_path / "pipe")
    assert KernelFiles().suspend_cancel(str(tmp_path / "pipe")) is None
