"""What lab guests boot: dom0's kernel with an initramfs of one worker program."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import cache, chroot, cpio
from .image import Image

WORKER = Path(__file__).parent / "guest"
TINY = Path(__file__).parent / "tiny"
TINY_FLAGS = (
    "-O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fno-pic -no-pie -mno-red-zone"
    " -mno-mmx -mno-sse -fcf-protection=none -fno-asynchronous-unwind-tables -nostdlib -static"
    " -Wl,-T,tiny.ld -Wl,--build-id=none"
)
MODULES = [
    "xen-blkfront", "xen-netfront", "xen-pcifront", "e1000e",
    "xen-blkback", "xen-netback", "bridge",
]  # fmt: skip


@dataclass(frozen=True)
class Initramfs:
    """A finished archive."""

    path: Path

    @property
    def archive(self) -> Path:
        """The archive itself."""
        return self.path / "initramfs"

    @property
    def tiny(self) -> Path:
        """A PV guest of its own, without Linux."""
        return self.path / "tiny"

    @property
    def key(self) -> str:
        """The hash that names it."""
        return self.path.name.rpartition("-")[2]


def initramfs(image: Image) -> Initramfs:
    """The initramfs for the kernel of an image, built when the cache has none."""
    key = cache.digest(
        image.key,
        MODULES,
        cache.digest_files(WORKER),
        cache.digest_files(TINY),
        TINY_FLAGS,
        "recipe 3",
    )
    kind = f"guest-{image.release.name}"
    return Initramfs(cache.entry(kind, key, lambda work: _build(image, work)))


def _build(image: Image, work: Path) -> None:
    shutil.copytree(WORKER, work / "source")
    # The image has a compiler, so the outside needs none.
    chroot.run(
        image.root,
        "gcc -static -O2 -Wall -Wextra -Werror -o /mnt/work /mnt/source/*.c && strip /mnt/work",
        binds={work: "/mnt"},
    )
    shutil.copytree(TINY, work / "tiny-source")
    chroot.run(
        image.root,
        f"cd /mnt/tiny-source && gcc {TINY_FLAGS} -o /mnt/tiny start.S tiny.c",
        binds={work: "/mnt"},
    )
    archive = cpio.Archive()
    for name in ("proc", "sys"):
        archive.directory(name)
    archive.file("init", (work / "work").read_bytes(), 0o755)
    for name in ("sbin/poweroff", "sbin/reboot"):
        archive.link(name, "/init")
    cpio.add_modules(archive, image.modules, MODULES)
    archive.write(work / "initramfs")
