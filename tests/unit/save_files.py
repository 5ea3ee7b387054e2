"""Small files of saved domains, as libxl and libxc write them; made by the specification."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from uuid import UUID

from xenpm import DomainType, savefile

PAGE = 4096
UUID_ = UUID("12345678-1234-4321-9876-0123456789ab")
NEEDED = {
    DomainType.PV: (2, 3, 4, 7),
    DomainType.PVH: (9, 10),
    DomainType.HVM: (9, 10),
}


def record(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def memory(kinds: Sequence[int] = (0, 0xF, 0)) -> bytes:
    """The body of a record of pages, of which some have no data."""
    pfns = [(kind << 60) | number for number, kind in enumerate(kinds)]
    data = b"".join(bytes([kind]) * PAGE for kind in kinds if kind < 0xD)
    return struct.pack("<II", len(kinds), 0) + struct.pack(f"<{len(kinds)}Q", *pfns) + data


def libxc(
    kind: DomainType = DomainType.PV, records: Sequence[bytes] | None = None, version: int = 3
) -> bytes:
    """The stream of libxc."""
    number = 1 if kind is DomainType.PV else 2
    if records is None:
        needed = [record(each, b"context") for each in NEEDED[kind]]
        records = [record(16), record(1, memory()), record(0x80000001, b"odd"), *needed, record(0)]
    return (
        struct.pack(">QIIHHI", (1 << 64) - 1, 0x58454E46, version, 0, 0, 0)
        + struct.pack("<IHHII", number, 12, 0, 4, 17)
        + b"".join(records)
    )


def libxl(kind: DomainType = DomainType.PV, records: Sequence[bytes] | None = None) -> bytes:
    """The stream of libxl."""
    if records is None:
        emulator = [record(2, b"\x02\0\0\0\0\0\0\0"), record(3, b"\x02\0\0\0\0\0\0\0state")]
        records = [
            record(1) + libxc(kind),
            *(emulator if kind is DomainType.HVM else []),
            record(0),
        ]
    return b"LibxlFmt" + struct.pack(">II", 2, 0) + b"".join(records)


def config(kind: DomainType = DomainType.PV, name: str = "web") -> str:
    return json.dumps({"c_info": {"type": kind.value, "name": name, "uuid": str(UUID_)}})


def whole(kind: DomainType = DomainType.PV, stream: bytes | None = None) -> bytes:
    """A whole file."""
    return savefile.header(config(kind)) + (libxl(kind) if stream is None else stream)
