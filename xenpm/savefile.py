"""Files of saved domains, as xl writes and reads them; no library of Xen is needed to check one.

A file is xl's header, the domain's configuration as libxl's JSON, and libxl's stream with libxc's
in it: docs/specs/libxl-migration-stream and libxc-migration-stream of Xen.  There is no checksum: a
file that was cut off or put together wrongly is found out, a page with a flipped bit is not.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from .errors import SaveFileError
from .types import DomainType

__all__ = ["SavedDomain", "header", "open_checked", "read"]

MAGIC = b"Xen saved domain, xl format\n \0 \r"
_LIBVIRT = b"libvirt-xml\n \0 \r"  # LIBXL_SAVE_MAGIC of libvirt
_HEADER = struct.Struct("=32sIIII")  # magic, byte order, mandatory and optional flags, length
_BYTE_ORDER = 0x01020304
_JSON, _STREAM_V2 = 1, 2  # the mandatory flags
_LENGTH = struct.Struct("=I")
_MOST_CONFIG = 16 << 20  # bytes; real ones have some thousands

_XL_HEADER = struct.Struct(">8sII")  # ident, version, options
_XL_END, _XL_LIBXC = 0, 1
_XL_EMULATOR = (2, 3)  # its xenstore data, its context
_XL_CHECKPOINT = (4, 5)

_XC_HEADER = struct.Struct(">QIIHHI")  # marker, id, version, options, and reserved
_XC_DOMAIN = struct.Struct("<IHHII")  # type, page shift, reserved, Xen's major and minor
_XC_VERSIONS = (2, 3)
_XC_TYPES = {1: (DomainType.PV,), 2: (DomainType.PVH, DomainType.HVM)}
_XC_END, _XC_PAGES, _XC_CHECKPOINT, _XC_STATIC_END = 0, 1, 14, 16
_XC_LAST = 18  # what Xen 4.14 to 4.20 know
_XC_MOST = 128 << 20  # bytes of a record: REC_LENGTH_MAX of libxc
_OPTIONAL = 1 << 31
#: the records without which a domain cannot be built: name by type
_XC_NEEDED = {
    1: {2: "X86_PV_INFO", 3: "X86_PV_P2M_FRAMES", 4: "X86_PV_VCPU_BASIC", 7: "SHARED_INFO"},
    2: {9: "HVM_CONTEXT", 10: "HVM_PARAMS"},
}

_RECORD = struct.Struct("<II")  # type, length
_PAGES = struct.Struct("<II")  # count, reserved
_PAGE_BYTES = 4096
_WITHOUT_DATA = (0xD, 0xE, 0xF)  # broken, allocated only, invalid: the upper four bits of a pfn
_RESERVED = (5, 6, 7, 8)


@dataclass(frozen=True)
class SavedDomain:
    """What the file of a saved domain says."""

    name: str  #: the domain's
    uuid: UUID  #: the domain's
    type: DomainType  #: PV, PVH or HVM
    pages: int  #: how many pages of memory are in the file
    xen_version: tuple[int, int]  #: of the host that it was saved on
    size_bytes: int  #: how long the file is
    config: str  #: libxl's JSON of the domain
    stream_offset: int  #: where libxl's stream begins


def header(config: str) -> bytes:
    """What stands before libxl's stream: xl's header, and the domain's configuration.

    Args:
        config: libxl's JSON of the domain.
    """
    values = json.loads(config)
    values["c_info"].pop("domid", None)  # it gets a new one, as xl has it
    text = json.dumps(values).encode() + b"\0"
    optional = _LENGTH.pack(len(text)) + text
    return _HEADER.pack(MAGIC, _BYTE_ORDER, _JSON | _STREAM_V2, 0, len(optional)) + optional


def open_checked(path: Path) -> BinaryIO:
    """Open a file for `read`.

    Raises:
        SaveFileError: it cannot be opened, or is no regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # or a pipe would keep us
    except OSError as error:
        raise SaveFileError(path, f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SaveFileError(path, "is no regular file")
    return open(fd, "rb")


def read(file: BinaryIO, path: Path) -> SavedDomain:
    """Read the file of a saved domain from its beginning to its end, but for the memory in it.

    Args:
        file: as `open_checked` opens it.
        path: how it is called in errors.

    Raises:
        SaveFileError: it is cut off, or another kind of file, or nothing that could be restored.
    """
    return _Reader(file, path).run()


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size
        self._at = 0
        self._pages = 0

    def error(self, what: str) -> SaveFileError:
        return SaveFileError(self._path, what)

    def skip(self, count: int, what: str) -> None:
        """Go on by `count` bytes, all of which must be there."""
        if count > self._size - self._at:
            raise self.error(
                f"is cut off: it has {self._size} bytes, and {what} ends at byte {self._at + count}"
            )
        self._at += count
        self._file.seek(self._at)

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, all of which must be there."""
        begin = self._at
        self.skip(count, what)
        self._file.seek(begin)
        data = self._file.read(count)
        if len(data) != count:
            raise self.error(f"has become shorter while {what} was read")
        return data

    def run(self) -> SavedDomain:
        if self._size == 0:
            raise self.error("is empty")
        config = self.config()
        stream_offset = self._at
        try:
            values = json.loads(config)
            name, uuid = values["c_info"]["name"], UUID(values["c_info"]["uuid"])
            kind = DomainType(values["c_info"]["type"].lower())
            if not name or not isinstance(name, str):
                raise ValueError(f"the domain's name is {name!r}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self.error(f"has a configuration that makes no sense ({error!r})") from error
        version = self.stream(kind)
        return SavedDomain(
            name, uuid, kind, self._pages, version, self._size, config, stream_offset
        )

    def config(self) -> str:
        """The header of xl, and the configuration behind it."""
        magic = self.take(min(len(MAGIC), self._size), "xl's header")
        if magic.startswith(_LIBVIRT):
            raise self.error("was saved by libvirt; restore it with 'virsh restore'")
        if not MAGIC.startswith(magic):
            raise self.error("is no domain saved by xl or xenpm: it begins with other bytes")
        self._at = 0
        _, order, mandatory, _, length = _HEADER.unpack(self.take(_HEADER.size, "xl's header"))
        if order != _BYTE_ORDER:
            raise self.error("was saved on a machine with another byte order")
        if mandatory & ~(_JSON | _STREAM_V2):
            raise self.error(f"was saved by a newer xl: it needs flags {mandatory:#x}")
        if not mandatory & _STREAM_V2:
            raise self.error("was saved by Xen 4.5 or an older one")
        if not mandatory & _JSON or length < _LENGTH.size:
            raise self.error("has no configuration as JSON in it; restore it with xl and a file")
        if length > _MOST_CONFIG:
            raise self.error(f"has a configuration of {length} bytes, which makes no sense")
        optional = self.take(length, "the configuration")
        (count,) = _LENGTH.unpack_from(optional)
        if count > length - _LENGTH.size:
            raise self.error("has a configuration that is longer than the room for it")
        text = optional[_LENGTH.size : _LENGTH.size + count]
        try:
            return text.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise self.error("has a configuration that is not UTF-8") from error

    def stream(self, kind: DomainType) -> tuple[int, int]:
        """The stream of libxl, to its end; the release of Xen that libxc's in it names."""
        ident, version, options = _XL_HEADER.unpack(
            self.take(_XL_HEADER.size, "the header of libxl's stream")
        )
        if ident != b"LibxlFmt" or version != 2 or options & 1:
            raise self.error("has no stream of libxl, of version 2 and little-endian, in it")
        xen: tuple[int, int] | None = None
        emulated = False
        while True:
            type_, length = self.record("libxl's stream")
            if type_ == _XL_END:
                break
            if type_ == _XL_LIBXC:
                if xen is not None:
                    raise self.error("has more than one stream of libxc in it")
                xen = self.libxc(kind)
            elif type_ in _XL_EMULATOR:
                if kind is not DomainType.HVM:
                    raise self.error(f"has a device model's state, for a {kind.value} domain")
                emulated = emulated or type_ == _XL_EMULATOR[1]
                self.skip(_padded(length), "the device model's state")
            elif type_ in _XL_CHECKPOINT:
                raise self.error("is a stream with checkpoints, and no saved domain")
            elif type_ & _OPTIONAL:
                self.skip(_padded(length), f"record {type_:#x} of libxl's stream")
            else:
                raise self.error(f"has an unknown record {type_:#x} in libxl's stream")
        if xen is None:
            raise self.error("has no stream of libxc in it: there is no memory")
        if kind is DomainType.HVM and not emulated:
            raise self.error("has no device model's state, which an HVM domain needs")
        return xen

    def record(self, where: str) -> tuple[int, int]:
        type_, length = _RECORD.unpack(self.take(_RECORD.size, f"a record of {where}"))
        return type_, length

    def libxc(self, kind: DomainType) -> tuple[int, int]:
        """The stream of libxc, to its end; the release of Xen that it names."""
        where = "libxc's stream"
        marker, ident, version, options, _, _ = _XC_HEADER.unpack(
            self.take(_XC_HEADER.size, f"the header of {where}")
        )
        if marker != (1 << 64) - 1 or ident.to_bytes(4, "big") != b"XENF" or options & 1:
            raise self.error("has no stream of libxc, little-endian, in it")
        if version not in _XC_VERSIONS:
            raise self.error(f"has a stream of libxc of version {version}; known are 2 and 3")
        type_, shift, _, major, minor = _XC_DOMAIN.unpack(
            self.take(_XC_DOMAIN.size, "the domain's header")
        )
        if kind not in _XC_TYPES.get(type_, ()) or 1 << shift != _PAGE_BYTES:
            raise self.error(f"has memory of another kind of domain than {kind.value}")
        seen: set[int] = set()
        while True:
            record, length = self.record(where)
            if length > _XC_MOST:
                raise self.error(f"has a record of {length} bytes in {where}, which is too long")
            if record == _XC_CHECKPOINT:
                raise self.error("is a stream with checkpoints, and no saved domain")
            if record > _XC_LAST and not record & _OPTIONAL:
                raise self.error(f"has an unknown record {record:#x} in {where}")
            if record == _XC_PAGES:
                self.memory(length)
            else:
                self.skip(_padded(length), f"record {record:#x} of {where}")
            seen.add(record)
            if record == _XC_END:
                break
        needed: dict[int, str] = {_XC_PAGES: "PAGE_DATA", **_XC_NEEDED[type_]}
        if version == _XC_VERSIONS[-1]:
            needed[_XC_STATIC_END] = "STATIC_DATA_END"
        missing = [name for number, name in needed.items() if number not in seen]
        if missing:
            raise self.error(f"lacks {', '.join(missing)} in {where}")
        return major, minor

    def memory(self, length: int) -> None:
        """A record of pages, which must be as long as the pages in it are."""
        if length < _PAGES.size:
            raise self.error(f"has a record of memory of {length} bytes, which is too short")
        begin = self._at
        (count, _) = _PAGES.unpack(self.take(_PAGES.size, "a record of memory"))
        if not 0 < count <= (length - _PAGES.size) // 8:
            raise self.error("has a record of memory with another number of pages than it says")
        pfns = struct.unpack(f"<{count}Q", self.take(8 * count, "a record of memory"))
        kinds = [pfn >> 60 for pfn in pfns]
        if any(kind in _RESERVED for kind in kinds):
            raise self.error("has a page of an unknown kind")
        present = sum(kind not in _WITHOUT_DATA for kind in kinds)
        if length != _PAGES.size + 8 * count + present * _PAGE_BYTES:
            raise self.error("has a record of memory with another number of pages than it says")
        self._pages += present
        self.skip(begin + _padded(length) - self._at, "a record of memory")


def _padded(length: int) -> int:
    return -(-length // 8) * 8
