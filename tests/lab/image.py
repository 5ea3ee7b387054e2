"""The disk, kernel and hypervisor of dom0, one per Debian release."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import cache, chroot, cpio
from .cache import LabError, say

HERE = Path(__file__).parent
DISK_MIB = 4096


@dataclass(frozen=True)
class Release:
    """A Debian release and what it carries."""

    name: str
    xen: str
    python: str
    device_model: str
    """the package that has QEMU with Xen in it"""

    @property
    def site_packages(self) -> str:
        """Where the packages of dom0's virtual environment live."""
        return f"/opt/xenpm/lib/python{self.python}/site-packages"


RELEASES = {
    release.name: release
    for release in (
        Release("bullseye", "4.14", "3.9", "qemu-system-x86"),
        Release("bookworm", "4.17", "3.11", "qemu-system-xen"),
        Release("trixie", "4.20", "3.13", "qemu-system-xen"),
    )
}
DEFAULT = "bookworm"

PACKAGES = """
    systemd-sysv udev kmod iproute2 procps pciutils openssh-server busybox-static linux-image-amd64
    xen-utils-{xen} xen-utils-common xen-hypervisor-{xen}-amd64 xenstore-utils libxen-dev
    {device_model} python3 python3-dev python3-venv python3-pip gcc libc6-dev pkg-config
    dmsetup ethtool iputils-ping strace gdb zstd
    libvirt-daemon libvirt-daemon-driver-xen libvirt-clients
"""

# What pip puts into dom0's virtual environment. The last line is what Pythons before 3.11 need in
# addition: pip judges such conditions by the Python it runs on, not by the one it downloads for.
PYTHON_PACKAGES = """
    pip>=24 setuptools>=77 setuptools-scm>=8 wheel Cython>=3.1 pytest>=8.3,<9
    exceptiongroup tomli typing-extensions importlib-metadata
"""

# The commands that building an image takes, and the Debian packages that bring them.
TOOLS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "ssh-keygen": "openssh-client",
    "setpriv": "util-linux", "unshare": "util-linux",
}  # fmt: skip

# Files that dom0 never reads; fewer files are a faster build and a smaller image.
EXCLUDE = """
    /usr/share/man/* /usr/share/doc/* /usr/share/locale/* /usr/share/info/* /usr/share/lintian/*
    {modules}/sound/* {modules}/drivers/gpu/* {modules}/drivers/media/* {modules}/drivers/usb/*
    {modules}/drivers/infiniband/* {modules}/drivers/staging/* {modules}/drivers/iio/*
    {modules}/drivers/net/wireless/* {modules}/drivers/net/ethernet/mellanox/*
    {modules}/drivers/net/ethernet/broadcom/* {modules}/drivers/net/ethernet/chelsio/*
    {modules}/drivers/net/ethernet/qlogic/* {modules}/drivers/net/ethernet/marvell/*
    /usr/bin/qemu-system-x86_64* /usr/bin/qemu-storage-daemon /usr/share/qemu/[!kl]* /usr/lib/ipxe/*
    /usr/share/iso-codes/*
"""
MODULE_TREES = ("/lib/modules/*/kernel", "/usr/lib/modules/*/kernel")

# Units that only cost time in a machine that lives for minutes.
MASK = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
    logrotate.timer man-db.timer systemd-tmpfiles-clean.timer systemd-timesyncd.service
    e2scrub_reap.service xendomains.service systemd-logind.service getty@tty1.service getty.target
    serial-getty@hvc0.service systemd-random-seed.service systemd-update-utmp.service
    systemd-update-utmp-runlevel.service systemd-journal-flush.service systemd-pstore.service
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount
    systemd-binfmt.service keyboard-setup.service console-setup.service ssh.socket sshd.socket
    systemd-machine-id-commit.service modprobe@drm.service systemd-hostnamed.socket
    virtlogd.service virtlogd.socket virtlogd-admin.socket
"""

# The modules that dom0 needs to reach its disk, and the network card that must become eth0.
INITRD_MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "virtio_net"]


@dataclass(frozen=True)
class Image:
    """A finished image: immutable, shared by every machine of the release."""

    release: Release
    path: Path

    disk = property(lambda self: self.path / "disk.img")
    xen = property(lambda self: self.path / "xen")
    kernel = property(lambda self: self.path / "vmlinux")
    initrd = property(lambda self: self.path / "initrd")
    ssh_key = property(lambda self: self.path / "ssh_key")
    root = property(lambda self: self.path / "root")

    @property
    def key(self) -> str:
        """The hash that names it."""
        return self.path.name.rpartition("-")[2]

    @property
    def modules(self) -> Path:
        """The directory of its kernel's modules."""
        return _only(self.path / "root", "lib/modules/*")


def release_named(name: str) -> Release:
    """The release of that name."""
    if name not in RELEASES:
        raise LabError(f"no release {name!r}; there are: {', '.join(RELEASES)}")
    return RELEASES[name]


def image(release: Release) -> Image:
    """The image of a release, built when the cache has none of this recipe."""
    key = cache.digest(
        release,
        PACKAGES,
        PYTHON_PACKAGES,
        EXCLUDE,
        MODULE_TREES,
        MASK,
        INITRD_MODULES,
        DISK_MIB,
        cache.digest_files(HERE / "dom0"),
        # What is done with all these is the recipe too.
        *[(HERE / name).read_text() for name in ("image.py", "cpio.py")],
    )
    path = cache.entry(
        f"image-{release.name}",
        key,
        lambda work: _build(release, work),
        outdates=(f"host-{release.name}", f"scene-{release.name}", f"guest-{release.name}"),
    )
    return Image(release, path)


def _build(release: Release, work: Path) -> None:
    cache.require(TOOLS)
    if os.geteuid() != 0:
        raise LabError("building an image needs root, for the owners of its files")
    root = work / "root"
    say(f"{release.name}: building the image (about two minutes); bootstrap")
    wheels = work / "wheels"
    # Downloads and unpacking overlap: the wheels wait for the network, mmdebstrap for the disk.
    fetch = subprocess.Popen(
        cache.dying_with_us(_wheel_command(release, wheels)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        _bootstrap(release, root)
        _, complaints = fetch.communicate(timeout=300)
    finally:
        fetch.kill()
        fetch.wait()
    if fetch.returncode:
        raise LabError(f"pip could not download dom0's Python packages:\n{complaints[-2000:]}")
    say(f"{release.name}: Python packages")
    _python(release, root, wheels)
    cache.remove(wheels)
    say(f"{release.name}: configuration, kernel, initrd")
    _configure(root, work)
    _boot_files(root, work)
    say(f"{release.name}: disk image")
    cache.run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-E",
        "lazy_itable_init=1",
        "-m",
        "0",
        "-d",
        root,
        work / "disk.img",
        f"{DISK_MIB}M",
    )
    say(f"{release.name}: image done")


def _bootstrap(release: Release, root: Path) -> None:
    options = ["--variant=minbase", "--format=directory", "--quiet", "--mode=root"]
    options += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
    for tree in MODULE_TREES:
        options += [
            f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDE.format(modules=tree).split()
        ]
    # The lab makes its own, much smaller initrd.
    options.append(
        '--essential-hook=chroot "$1" dpkg-divert --local --rename --add /usr/sbin/update-initramfs'
        ' && ln -s /bin/true "$1/usr/sbin/update-initramfs"'
    )
    packages = PACKAGES.format(xen=release.xen, device_model=release.device_model)
    options.append("--include=" + ",".join(packages.split()))
    # A private mount namespace: what mmdebstrap mounts is gone with it, however it ends.
    cache.run(
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "mmdebstrap",
        *options,
        release.name,
        root,
        timeout=900,
    )


def _wheel_command(release: Release, into: Path) -> list[str]:
    version = release.python.replace(".", "")
    platforms = [
        f"--platform=manylinux{suffix}_x86_64" for suffix in ("_2_28", "_2_17", "2014", "_2_5")
    ]
    return [
        "python3",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={version}",
        *platforms,
        "--abi=cp" + version,
        "--abi=abi3",
        "--abi=none",
        "--dest",
        str(into),
        *PYTHON_PACKAGES.split(),
    ]


def _python(release: Release, root: Path, wheels: Path) -> None:
    cache.remove(root / "wheels")
    wheels.rename(root / "wheels")
    install = "/opt/xenpm/bin/python -m pip install --quiet --no-index --find-links=/wheels"
    names = " ".join(f"'{name}'" for name in PYTHON_PACKAGES.split())
    chroot.run(
        root,
        f"python3 -m venv /opt/xenpm && {install} --upgrade 'pip>=24' && {install} {names} && "
        f"test -d {release.site_packages}",
        writable=True,
    )
    (root / "wheels").rename(wheels)


def _configure(root: Path, work: Path) -> None:
    cache.run("cp", "-a", "--no-preserve=ownership", f"{HERE / 'dom0' / 'etc'}", root)
    for unit in MASK.split():
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    # Made here, for not every way of copying a source tree keeps symbolic links.
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "lab-net.service").symlink_to("../lab-net.service")
    # A Linux guest that is resumed in place leaves those transactions open in xenstored that its
    # programs had open when it was suspended; for the load tests there must be room for more.
    quotas = root / "etc/xen/oxenstored.conf"
    default = quotas.read_text()
    raised = default.replace("quota-transaction = 10\n", "quota-transaction = 1000\n")
    if raised == default:
        raise LabError(f"{quotas} has no quota-transaction = 10")
    quotas.write_text(raised)
    # Bookworm's libxl asks for the device model where it was before it had a package of its own.
    where, model = root / "usr/bin/qemu-system-i386", root / "usr/libexec/xen-qemu-system-i386"
    if model.exists() and not where.exists():
        where.symlink_to("../libexec/xen-qemu-system-i386")
    # What of the outside mmdebstrap copied in has no meaning in the lab.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("00000000000000000000000000000001\n")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    cache.run(
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "lab",
        "-f",
        root / "etc/ssh/ssh_host_ed25519_key",
    )
    cache.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", work / "ssh_key")
    dot_ssh = root / "root/.ssh"
    dot_ssh.mkdir(mode=0o700, exist_ok=True)
    (dot_ssh / "authorized_keys").write_bytes((work / "ssh_key.pub").read_bytes())
    (root / "root/guests").mkdir()
    (root / "var/log/xen/console").mkdir(parents=True, exist_ok=True)
    for old in (root / "var/lib/apt/lists", root / "var/cache/apt"):
        cache.remove(old)


def _boot_files(root: Path, work: Path) -> None:
    (work / "xen").write_bytes(gzip.decompress(_only(root, "boot/xen-*.gz").read_bytes()))
    packed = _only(root, "boot/vmlinuz-*")
    kernel = _unpack_kernel(packed.read_bytes(), root, work)
    (work / "vmlinux").write_bytes(kernel)
    # Guests boot the same kernel; unpacked, `xl create` takes half the time.
    (root / "root/guests/vmlinux").write_bytes(kernel)
    # The firmware of HVM guests loads it packed only.
    (root / "root/guests/vmlinuz").symlink_to("/" + str(packed.relative_to(root)))
    archive = cpio.Archive()
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), 0o755)
    archive.file("init", (HERE / "dom0/init").read_bytes(), 0o755)
    archive.directory("root")
    cpio.add_modules(archive, _only(root, "lib/modules/*"), INITRD_MODULES)
    archive.write(work / "initrd")


def _unpack_kernel(bz_image: bytes, root: Path, work: Path) -> bytes:
    """The ELF kernel inside a bzImage, whichever way it is compressed."""
    # The header of the boot protocol says where the compressed kernel is.
    setup_sectors = bz_image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bz_image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bz_image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # Python's zstd came with 3.14; the image has the command.
        packed, plain = work / "kernel.zst", work / "kernel"
        # The four bytes behind the stream are its size unpacked.
        packed.write_bytes(payload[:-4])
        chroot.run(root, "zstd -q -d /mnt/kernel.zst -o /mnt/kernel", binds={work: "/mnt"})
        data = plain.read_bytes()
        packed.unlink()
        plain.unlink()
        if data.startswith(b"\x7fELF"):
            return data
    raise LabError("the kernel is compressed in a way that the lab cannot unpack")


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        raise LabError(f"expected one {pattern} in the image, found {[str(p) for p in found]}")
    return found[0]
