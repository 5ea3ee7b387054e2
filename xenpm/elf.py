"""What a guest's kernel image says of itself: the ELF notes of Xen's public/elfnote.h."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["suspend_cancel"]

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_HEADER_32 = struct.Struct("<16sHHIIIIIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SEGMENT_32 = struct.Struct("<IIIIIIII")
_NOTE = struct.Struct("<III")
_PT_NOTE = 4
_XEN_ELFNOTE_GUEST_OS, _XEN_ELFNOTE_SUSPEND_CANCEL = 6, 14
_LOADERS = (b"GRUB", b"Mini-OS")  # PV-GRUB, the old one too: what it loads has notes of its own
_MOST_BYTES = 1 << 20  # of notes; a kernel has some hundreds


def suspend_cancel(image: BinaryIO) -> bool | None:
    """Whether a kernel says that its suspend hypercall may return 1; None: that does not show.

    Kernels of today do (``XEN_ELFNOTE_SUSPEND_CANCEL``).  A compressed one, such as a bzImage, does
    not show its notes, and neither does a boot loader that of what it loads.

    Args:
        image: the file, open for reading.
    """
    try:
        notes = _notes(image)
    except (struct.error, ValueError):
        return None
    if notes is None:
        return None
    found = dict(_values(notes))
    if found.get(_XEN_ELFNOTE_GUEST_OS, b"").rstrip(b"\0") in _LOADERS:
        return None
    return any(found.get(_XEN_ELFNOTE_SUSPEND_CANCEL, b""))


def _notes(image: BinaryIO) -> bytes | None:
    start = image.read(_HEADER.size)
    if start[:4] != b"\x7fELF" or start[5:6] != b"\1":  # little-endian, as all x86 is
        return None
    wide = start[4] == 2
    header = (_HEADER if wide else _HEADER_32).unpack_from(start)
    segment = _SEGMENT if wide else _SEGMENT_32
    at, count = header[5], header[10]
    image.seek(at)
    table = image.read(segment.size * count)
    notes = b""
    for fields in segment.iter_unpack(table):
        if fields[0] != _PT_NOTE:
            continue
        offset, size = (fields[2], fields[5]) if wide else (fields[1], fields[4])
        if size > _MOST_BYTES:
            raise ValueError(f"{size} bytes of notes")
        image.seek(offset)
        notes += image.read(size)
    return notes


def _values(notes: bytes) -> Iterator[tuple[int, bytes]]:
    """Xen's notes, by number."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        at += _NOTE.size
        name = notes[at : at + name_size]
        at += -(-name_size // 4) * 4
        if name == b"Xen\0":
            yield kind, notes[at : at + size]
        at += -(-size // 4) * 4
