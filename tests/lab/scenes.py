"""The sets of guests that tests are played on; a new one is a few lines at the end."""

from __future__ import annotations

from dataclasses import dataclass

from .cache import LabError


@dataclass(frozen=True)
class Guest:
    """One guest; its xl configuration is /root/guests/NAME.cfg in dom0."""

    name: str
    kind: str = "pv"
    """pv or pvh"""
    vcpus: int = 1
    memory_mib: int = 128
    disk_mib: int = 0
    """size of /dev/xvda, a loop device over a file in dom0; 0: none"""
    stallable: bool = False
    """put a device-mapper device NAME-disk between, so that `dmsetup suspend` can stall the disk"""
    preserved: bool = False
    """whether xl leaves it as it is when it has crashed, rebooted or powered off"""
    work: str = ""
    """what it does besides counting: io, xs (comma list)"""

    @property
    def modules(self) -> list[str]:
        """The kernel modules it loads at boot."""
        return ["xen_blkfront"] if self.disk_mib else []

    @property
    def disk(self) -> str:
        """The block device in dom0 behind its disk."""
        return f"/dev/mapper/{self.name}-disk" if self.stallable else f"/dev/lab/{self.name}-disk"

    @property
    def options(self) -> str:
        """Its kernel's command line."""
        extra = "console=hvc0 panic=-1 rdinit=/init"
        return extra + f" modules={','.join(self.modules)} work={self.work}"

    def config(self) -> str:
        """Its configuration for xl."""
        lines = [
            f'name = "{self.name}"',
            f'type = "{self.kind}"',
            'kernel = "/root/guests/vmlinux"',
            'ramdisk = "/root/guests/initramfs"',
            f"vcpus = {self.vcpus}",
            f"memory = {self.memory_mib}",
            f'extra = "{self.options}"',
        ]
        if self.preserved:
            lines += [f'on_{end} = "preserve"' for end in ("crash", "reboot", "poweroff")]
        if self.disk_mib:
            lines.append(f'disk = ["phy:{self.disk},xvda,w"]')
        return "\n".join(lines) + "\n"

    def prepare(self) -> list[str]:
        """Shell commands in dom0 that make its disk, once."""
        if not self.disk_mib:
            return []
        path = f"/root/guests/{self.name}.img"
        # A link whose name says whose disk it is: loop devices are numbered as they come.
        lines = [f"truncate -s {self.disk_mib}M {path}", f"loop=$(losetup -f --show {path})"]
        if self.stallable:
            table = f"0 {self.disk_mib * 2048} linear $loop 0"
            lines.append(f'dmsetup create {self.name}-disk --table "{table}"')
        else:
            lines.append(f"mkdir -p /dev/lab && ln -s $loop {self.disk}")
        return lines


@dataclass(frozen=True)
class Scene:
    """A named set of guests, all running and counting."""

    name: str
    guests: tuple[Guest, ...]


def scene_named(name: str) -> Scene:
    """The scene of that name."""
    if name not in SCENES:
        raise LabError(f"no scene {name!r}; there are: {', '.join(SCENES)}")
    return SCENES[name]


EMPTY = Scene("empty", ())

SCENES = {
    scene.name: scene
    for scene in (
        EMPTY,
        Scene("trio", (Guest("pv1"), Guest("pv4", vcpus=4), Guest("pvh2", "pvh", vcpus=2))),
        Scene("load", (
            Guest("io-pv", vcpus=2, disk_mib=64, work="io"),
            Guest("xs-pv", vcpus=2, work="xs"),
        )),
        Scene("load-pvh", (Guest("io-pvh", "pvh", vcpus=2, disk_mib=64, work="io"),)),
        # PV alone: of several PVH guests beside each other the emulation loses one too often
        Scene("crowd", tuple(Guest(f"g{number:02}", memory_mib=96) for number in range(1, 17))),
        Scene("faults", (
            Guest("victim-pv", preserved=True),
            Guest("victim-pvh", "pvh", preserved=True),
            Guest("stall", disk_mib=16, stallable=True, preserved=True),
            Guest("bystander"),
        )),
    )
}  # fmt: skip
