"""What a guest's kernel image says of itself: the ELF notes of Xen's public/elfnote.h."""

from __future__ import annotations

import struct
from typing import BinaryIO

__all__ = ["suspend_cancel"]

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_HEADER_32 = struct.Struct("<16sHHIIIIIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SEGMENT_32 = struct.Struct("<IIIIIIII")
_NOTE = struct.Struct("<III")
_PT_NOTE = 4
_XEN_ELFNOTE_SUSPEND_CANCEL = 14
_MOST_BYTES = 1 << 20  # of notes; a kernel has some hundreds


def suspend_cancel(image: BinaryIO) -> bool | None:
    """Whether a kernel says that its suspend hypercall may return 1; None: it is no ELF image.

    Kernels of today do (``XEN_ELFNOTE_SUSPEND_CANCEL``).  A compressed one, such as a bzImage, does
    not show its notes.

    Args:
        image: the file, open for reading.
    """
    try:
        notes = _notes(image)
    except (struct.error, ValueError):
        return None
    return None if notes is None else _value(notes) not in (None, 0)


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


def _value(notes: bytes) -> int | None:
    """What stands in Xen's note about it; None when there is no such note."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        at += _NOTE.size
        name = notes[at : at + name_size]
        at += -(-name_size // 4) * 4
        if name == b"Xen\0" and kind == _XEN_ELFNOTE_SUSPEND_CANCEL:
            return int.from_bytes(notes[at : at + size], "little")
        at += -(-size // 4) * 4
    return None
