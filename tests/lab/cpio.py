"""Initramfs archives: the newc format of cpio, and kernel modules in the order of their needs."""

from __future__ import annotations

import lzma
import stat
from pathlib import Path


class Archive:
    """A cpio archive that is put together in memory; needs neither root nor a cpio command."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0
        self._made: set[str] = set()
        self.directory("dev")
        # Without it the kernel starts /init with neither input nor output.
        self._add("dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))

    def directory(self, name: str) -> None:
        """Add a directory and those above it, once."""
        for path in [*reversed(Path(name).parents), Path(name)]:
            text = str(path)
            if text != "." and text not in self._made:
                self._made.add(text)
                self._add(text, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file and the directories above it."""
        self.directory(str(Path(name).parent))
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link and the directories above it."""
        self.directory(str(Path(name).parent))
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = [self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0]
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += b"\0" * (-len(self._data) % 4)

    def write(self, path: Path) -> None:
        """Finish the archive and write it, uncompressed: unpacking is what costs in emulation."""
        self._add("TRAILER!!!", 0, b"")
        path.write_bytes(self._data)


def add_modules(archive: Archive, modules: Path, names: list[str]) -> None:
    """Add kernel modules with all that they need, and `modules/order`, in which to load them.

    Names of modules that are built into the kernel, or that it does not know, are left out.
    """
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, wanted = line.partition(":")
        needs[_module_name(path)] = (path, [_module_name(need) for need in wanted.split()])
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name not in needs:
            return
        for need in needs[name][1]:
            visit(need)
        order.append(name)

    for name in names:
        visit(name.replace("-", "_"))
    for name in order:
        source = modules / needs[name][0]
        content = source.read_bytes()
        if source.suffix == ".xz":
            content = lzma.decompress(content)
        archive.file(f"modules/{name}", content)
    archive.file("modules/order", "".join(f"{name}\n" for name in order).encode())


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")
