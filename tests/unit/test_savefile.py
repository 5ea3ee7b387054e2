"""Files of saved domains: what is in them, and what is refused."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xenpm
from xenpm import DomainType, savefile

from . import save_files
from .save_files import libxc, libxl, memory, record, whole

KINDS = list(DomainType)


def read(tmp_path: Path, data: bytes) -> savefile.SavedDomain:
    path = tmp_path / "guest.save"
    path.write_bytes(data)
    with savefile.open_checked(path) as file:
        return savefile.read(file, path)


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(xenpm.SaveFileError) as caught:
        read(tmp_path, data)
    assert caught.value.path == tmp_path / "guest.save"
    return caught.value.what


@pytest.mark.parametrize("kind", KINDS)
def test_whole_file(tmp_path: Path, kind: DomainType) -> None:
    data = whole(kind)
    saved = read(tmp_path, data)
    assert (saved.name, saved.uuid, saved.type) == ("web", save_files.UUID_, kind)
    assert (saved.pages, saved.xen_version, saved.size_bytes) == (2, (4, 17), len(data))
    assert data[saved.stream_offset :].startswith(b"LibxlFmt")
    assert json.loads(saved.config)["c_info"]["name"] == "web"


def test_header_is_as_xl_writes_it() -> None:
    config = '{"c_info": {"name": "web", "domid": 7}}'
    text = b'{"c_info": {"name": "web"}}\0'
    assert savefile.header(config) == (
        b"Xen saved domain, xl format\n \0 \r"
        + struct.pack("=IIIII", 0x01020304, 3, 0, 4 + len(text), len(text))
        + text
    )


def test_older_streams_and_what_follows_are_accepted(tmp_path: Path) -> None:
    """Version 2 of libxc's stream has no end of static data; xl reads no further than the end."""
    needed = [record(each, b"x") for each in save_files.NEEDED[DomainType.PV]]
    old = libxc(records=[record(1, memory()), *needed, record(0)], version=2)
    stream = libxl(records=[record(1) + old, record(0x80000009, b"optional"), record(0)])
    assert read(tmp_path, whole(stream=stream) + b"more").pages == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused(tmp_path: Path, kind: DomainType) -> None:
    data = whole(kind)
    lengths = {*range(len(data) - 2 * save_files.PAGE), *range(0, len(data), 61), len(data) - 1}
    path = tmp_path / "guest.save"
    path.write_bytes(data)
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        with (
            savefile.open_checked(path) as file,
            pytest.raises(xenpm.SaveFileError, match=r"is cut off|is empty"),
        ):
            savefile.read(file, path)


PV = DomainType.PV
STREAM = libxl()
NEEDED = [record(each, b"x") for each in save_files.NEEDED[PV]]


def in_libxc(*records: bytes) -> bytes:
    return libxl(records=[record(1) + libxc(records=[*records, record(0)]), record(0)])


def described(config: str) -> bytes:
    """What is before the stream, for any text in the place of the configuration."""
    text = config.encode() + b"\0"
    flags = savefile._JSON | savefile._STREAM_V2
    size = savefile._LENGTH.size + len(text)
    head = savefile._HEADER.pack(savefile.MAGIC, savefile._BYTE_ORDER, flags, 0, size)
    return head + savefile._LENGTH.pack(len(text)) + text


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"#!/bin/sh\n" * 30, "begins with other bytes"),
        (b"Xen", "is cut off"),
        (b"libvirt-xml\n \0 \r\2\0\0\0\0\4\0\0<domain type='xen'", "virsh restore"),
        (whole()[:32] + b"\4\3\2\1"[::-1] + whole()[36:], "another byte order"),
        (whole()[:36] + b"\7\0\0\0" + whole()[40:], "newer xl"),
        (whole()[:36] + b"\1\0\0\0" + whole()[40:], "Xen 4.5"),
        (whole()[:36] + b"\2\0\0\0" + whole()[40:], "no configuration as JSON"),
        (whole()[:44] + b"\0\0\0\0" + whole()[48:], "no configuration as JSON"),
        (whole()[:44] + b"\xff\xff\xff\x7f" + whole()[48:], "which makes no sense"),
        (whole()[:48] + b"\xff\xff\0\0" + whole()[52:], "longer than the room"),
        (whole()[:53] + b"\xff" + whole()[54:], "not UTF-8"),
        (whole()[:53] + b"{" + whole()[54:], "makes no sense"),
        (savefile.header('{"c_info": {}}') + STREAM, "makes no sense"),
        (described(save_files.config(name="")) + STREAM, "name is ''"),
        (described(save_files.config().replace('"web"', "null")) + STREAM, "name is None"),
        (described("[" * 100_000) + STREAM, "RecursionError"),
        (whole(stream=b"X" + STREAM[1:]), "no stream of libxl"),
        (whole(stream=STREAM[:8] + b"\0\0\0\1" + STREAM[12:]), "no stream of libxl"),
        (whole(stream=libxl(records=[record(0)])), "there is no memory"),
        (whole(stream=libxl(records=[record(1) + libxc(), record(1) + libxc()])), "more than one"),
        (whole(stream=libxl(records=[record(4)])), "checkpoints"),
        (whole(stream=libxl(records=[record(6)])), "unknown record 0x6 in libxl"),
        (whole(stream=libxl(records=[record(3, bytes(8))])), "device model's state, for a pv"),
        (
            whole(DomainType.HVM, libxl(records=[record(1) + libxc(DomainType.HVM), record(0)])),
            "no device model's state",
        ),
        (whole(DomainType.PVH, STREAM), "memory of another kind of domain than pvh"),
        (whole(stream=libxl(records=[record(1) + libxc(version=4)])), "version 4"),
        (whole(stream=libxl(records=[record(1) + b"X" + libxc()[1:]])), "no stream of libxc"),
        (whole(stream=in_libxc(record(14))), "checkpoints"),
        (whole(stream=in_libxc(record(19))), "unknown record 0x13 in libxc"),
        (whole(stream=in_libxc(struct.pack("<II", 2, 1 << 30))), "too long"),
        (whole(stream=in_libxc(record(1, b"four"))), "too short"),
        (whole(stream=in_libxc(record(1, memory(())))), "another number of pages"),
        (whole(stream=in_libxc(record(1, memory() + bytes(8)))), "another number of pages"),
        (whole(stream=in_libxc(record(1, memory((5,))))), "unknown kind"),
        (whole(stream=in_libxc(record(16), *NEEDED)), "lacks PAGE_DATA"),
        (whole(stream=in_libxc(record(1, memory()), *NEEDED)), "lacks STATIC_DATA_END"),
        (whole(stream=in_libxc(record(1, memory()), record(16), *NEEDED[1:])), "X86_PV_INFO"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, data: bytes, what: str) -> None:
    assert what in refused(tmp_path, data)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "nothing", "No such file"),
        (tmp_path, "no regular file"),
        (tmp_path / "pipe", "no regular file"),
    ):
        with pytest.raises(xenpm.SaveFileError, match=what):
            savefile.open_checked(path)


@given(st.binary(max_size=200), st.integers(0, len(whole()) - 1))
def test_no_garbage_is_more_than_refused(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, place: int
) -> None:
    """Whatever is in a file, it is read or refused."""
    path = tmp_path_factory.mktemp("garbage") / "guest.save"
    data = whole()
    path.write_bytes(data[:place] + garbage + data[place + len(garbage) :])
    with savefile.open_checked(path) as file, suppress(xenpm.SaveFileError):
        savefile.read(file, path)
