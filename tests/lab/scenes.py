"""The sets of guests that tests are played on; a new one is a few lines at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from .cache import LabError

CARD = "0000:00:10.0"  # as machine.py plugs it
VIF = "/root/guests/vif"
EMPTY_CD = "/root/guests/empty-cd"  # a block script that gives the drive no medium
# xl runs it for each network interface that dom0 serves: dom0's end becomes the guest's gateway.
# Its address is its own: a bridge in the guest has ports with the one that Linux gives it.
VIF_SCRIPT = """#!/bin/sh
[ "$1" = online ] || exit 0
ip link set $vif address 0a:00:00:00:00:02
ip addr add $(xenstore-read $XENBUS_PATH/ip)/24 dev $vif && ip link set $vif up
xenstore-write $XENBUS_PATH/hotplug-status connected
"""


@dataclass(frozen=True)
class Guest:
    """One guest; its xl configuration is /root/guests/NAME.cfg in dom0."""

    name: str
    kind: str = "pv"
    """pv, pvh or hvm"""
    started: bool = True
    """False: only its configuration is there"""
    linux: str = ""
    """the Debian release whose Linux a PV or PVH guest runs; dom0's own unless told"""
    tiny: bool = False
    """whether it is the PV guest of tests/lab/tiny instead of a Linux"""
    vcpus: int = 1
    memory_mib: int = 128
    disk_mib: int = 0
    """size of /dev/xvda, a loop device over a file in dom0; 0: none"""
    more_disks: bool = False
    """whether it also has /dev/xvdb, as large, a read-only /dev/xvdc, and an empty CD drive"""
    disk_from: str = ""
    """the storage driver domain whose /dev/xvda is this one's"""
    card: bool = False
    """whether it owns the host's second network card"""
    net_from: str = ""
    """the network driver domain that its eth0 hangs on; dom0: a network of its own with dom0"""
    screen: bool = False
    """whether a PV or PVH guest has a frame buffer and a keyboard, which QEMU in dom0 serves"""
    address: str = ""
    """of its eth0, or of the bridge that eth0 is a port of"""
    stallable: bool = False
    """put a device-mapper device NAME-disk between, so that `dmsetup suspend` can stall the disk"""
    preserved: bool = False
    """whether xl leaves it as it is when it has crashed, rebooted or powered off"""
    pace_ms: int = 0
    """how long it rests after each operation on a disk"""
    native_tsc: bool = False
    """whether it, a PV guest, reads the same clock of the processor as dom0 (rdtsc)"""
    parked: bool = field(default=False, repr=False)  # no part of what a snapshot is
    """whether it stays paused when a host is started"""
    deaf: bool = False
    """whether its kernel does not hear requests to suspend"""
    work: str = ""
    """what it does besides counting (comma list): io, xs, ping; backends: serve other guests, with
    bridge: also its network"""

    @property
    def modules(self) -> list[str]:
        """The kernel modules it loads at boot."""
        works = self.work.split(",")
        wanted = {
            "xen_blkfront": self.disk_mib or self.disk_from,
            "xen_netfront": self.net_from,
            "xen_pcifront": self.card and self.kind == "pv",
            "pps_core ptp e1000e": self.card,
            "xen_blkback xen_netback": "backends" in works,
            "llc stp bridge": "bridge" in works,
        }
        return [name for names, want in wanted.items() if want for name in names.split()]

    @property
    def disk(self) -> str:
        """The block device in dom0 behind its disk."""
        return f"/dev/mapper/{self.name}-disk" if self.stallable else f"/dev/lab/{self.name}-disk"

    @property
    def gateway(self) -> str:
        """What it pings, in its own network."""
        return self.address.rpartition(".")[0] + ".2"

    @property
    def options(self) -> str:
        """Its kernel's command line."""
        extra = "console=hvc0 panic=-1 rdinit=/init"
        if self.card and self.kind == "pv":
            extra += (
                " iommu=soft swiotlb=8192,force"  # it has no other memory that the card can reach
            )
        if self.deaf:
            extra += " initcall_blacklist=xen_setup_shutdown_event"
        extra += f" modules={','.join(self.modules)} work={self.work} address={self.address}"
        return extra + (f" pace={self.pace_ms}" if self.pace_ms else "")

    def config(self) -> str:
        """Its configuration for xl."""
        lines = [
            f'name = "{self.name}"',
            f'type = "{self.kind}"',
            f"vcpus = {self.vcpus}",
            f"memory = {self.memory_mib}",
        ]
        if self.tiny:
            lines.append('kernel = "/root/guests/tiny"')
        else:
            suffix = f"-{self.linux}" if self.linux else ""
            kernel = "vmlinuz" if self.kind == "hvm" else f"vmlinux{suffix}"
            lines += [
                f'kernel = "/root/guests/{kernel}"',
                f'ramdisk = "/root/guests/initramfs{suffix}"',
                f'extra = "{self.options}"',
            ]
        if self.kind == "pvh" or self.native_tsc:
            # else Xen emulates rdtsc, and each return to a PVH guest is one where QEMU may lose it
            lines.append('tsc_mode = "native"')
        if self.kind == "hvm":
            lines += ['vga = "none"', "vnc = 0"]
        if self.preserved:
            lines += [f'on_{end} = "preserve"' for end in ("crash", "reboot", "poweroff")]
        if self.disk_from:
            disk = f"backend={self.disk_from},format=raw,vdev=xvda,access=rw,target=/dev/xvda"
            lines.append(f'disk = ["{disk}"]')
        elif self.disk_mib:
            disks = [f"phy:{self.disk},xvda,w"]
            if self.more_disks:
                disks += [f"phy:/dev/lab/{self.name}-{each}" for each in ("b,xvdb,w", "c,xvdc,r")]
                drive = f"format=raw,vdev=xvdd,devtype=cdrom,access=r,script={EMPTY_CD},target=none"
                disks.append(drive)
            lines.append(f"disk = {json.dumps(disks)}")
        if self.net_from == "dom0":
            only = "type=vif," if self.kind == "hvm" else ""  # without an emulated card beside it
            lines.append(f'vif = ["{only}script={VIF},ip={self.gateway}"]')
        elif self.net_from:
            lines.append(f'vif = ["backend={self.net_from}"]')
        if self.card:
            lines.append(f'pci = ["{CARD}"]')
        if self.screen:
            lines.append('vfb = ["vnc=1,vncunused=1"]')
        return "\n".join(lines) + "\n"

    @property
    def serves(self) -> bool:
        """Whether others need it while they boot."""
        return "backends" in self.work.split(",")

    def prepare(self) -> list[str]:
        """Shell commands in dom0 that make its disk and free its card, once."""
        lines = [f"modprobe xen-pciback && xl pci-assignable-add {CARD}"] if self.card else []
        if self.net_from == "dom0":
            lines += [f"cat > {VIF} <<'EOF'", VIF_SCRIPT + "EOF", f"chmod +x {VIF}"]
        if not self.disk_mib:
            return lines
        if self.more_disks:
            lines.append(f"printf '#!/bin/sh\\n' > {EMPTY_CD} && chmod +x {EMPTY_CD}")
            for each in "bc":
                image = f"/root/guests/{self.name}-{each}.img"
                link = f"/dev/lab/{self.name}-{each}"
                lines += [
                    f"truncate -s {self.disk_mib}M {image}",
                    f"mkdir -p /dev/lab && ln -s $(losetup -f --show {image}) {link}",
                ]
        path = f"/root/guests/{self.name}.img"
        # A link whose name says whose disk it is: loop devices are numbered as they come.
        lines += [f"truncate -s {self.disk_mib}M {path}", f"loop=$(losetup -f --show {path})"]
        if self.stallable:
            table = f"0 {self.disk_mib * 2048} linear $loop 0"
            lines.append(f'dmsetup create {self.name}-disk --table "{table}"')
        else:
            lines.append(f"mkdir -p /dev/lab && ln -s $loop {self.disk}")
        return lines


@dataclass(frozen=True)
class Scene:
    """A named set of guests, all running and counting unless they are not started."""

    name: str
    guests: tuple[Guest, ...]

    @property
    def linuxes(self) -> list[str]:
        """The releases whose Linux its guests run beside dom0's own."""
        return sorted({each.linux for each in self.guests} - {""})

    @property
    def started(self) -> list[Guest]:
        """Those that run."""
        return [each for each in self.guests if each.started]


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
        # two that are made anew in seconds
        Scene("pair", (Guest("one", memory_mib=96), Guest("other", memory_mib=96))),
        Scene("load", (
            Guest("io-pv", vcpus=2, disk_mib=64, work="io"),
            Guest("xs-pv", vcpus=2, work="xs"),
        )),
        Scene("load-pvh", (Guest("io-pvh", "pvh", vcpus=2, disk_mib=64, work="io"),)),
        # with domain 0 sixty-four domains, for what it costs to list them
        Scene("flock", tuple(
            Guest(f"t{number:02}", tiny=True, memory_mib=16, parked=True) for number in range(1, 64)
        )),
        # PV alone: of several PVH guests beside each other the emulation loses one too often
        *(
            Scene(name, tuple(Guest(f"g{number:02}", memory_mib=96) for number in range(1, last)))
            for name, last in (("crowd", 17), ("crowd32", 33))
        ),
        Scene("faults", (
            Guest("victim-pv", preserved=True),
            Guest("victim-pvh", "pvh", preserved=True),
            Guest("stall", disk_mib=16, stallable=True, preserved=True),
            Guest("bystander"),
        )),
        # at full speed on two disks the emulation loses a PVH guest too often; Linux's
        # network loses 1 MiB for each of its queues when it starts over (docs/limits.rst)
        Scene("reinit", (
            Guest("over", "pvh", memory_mib=256, disk_mib=16, more_disks=True, stallable=True,
                  net_from="dom0", address="10.9.1.40", work="io,ping", pace_ms=20),
        )),
        # Linux 5.10 hangs here with four vCPUs, also when nobody suspends it
        Scene("reinit4", (
            Guest("over", "pvh", linux="bookworm", vcpus=4, memory_mib=512, disk_mib=16,
                  more_disks=True, stallable=True, net_from="dom0", address="10.9.1.40",
                  work="io,ping", pace_ms=20),
        )),
        Scene("pending", (
            Guest("over", "pvh", disk_mib=16, stallable=True),
            Guest("served", "pvh", disk_from="store", net_from="store", address="10.9.3.42",
                  screen=True, work="ping"),
            Guest("store", disk_mib=16, net_from="dom0", address="10.9.3.40",
                  work="backends,bridge"),
        )),
        Scene("tiny", (
            Guest("tiny", tiny=True, memory_mib=16, preserved=True),
            Guest("linux", memory_mib=96, preserved=True),
        )),
        Scene("card", (
            Guest("card", card=True, address="10.0.2.40", work="ping"),
            Guest("plain"),
        )),
        # the second only where it does not run: the emulated host stops when it touches the card
        Scene("hvm", (
            Guest("hvm1", "hvm", memory_mib=256, disk_mib=64, net_from="dom0", address="10.9.2.40",
                  work="io,ping", pace_ms=50),
            Guest("card", "hvm", memory_mib=256, card=True, started=False),
        )),
        Scene("save", (
            Guest("save-pv", vcpus=2, disk_mib=16, work="io", pace_ms=20),
            Guest("save-pvh", "pvh", disk_mib=16, work="io", pace_ms=50),
        )),
        # the same guest four times; what is measured grows with its memory alone
        Scene("memory", tuple(Guest(f"m{mib}", memory_mib=mib) for mib in (128, 256, 512, 1024))),
        # a whole host: two are served by a driver domain, one hears nothing, one is left alone
        Scene("night", (
            Guest("net", card=True, address="10.0.2.40", work="backends,bridge,ping"),
            Guest("web", disk_mib=16, net_from="net", address="10.0.2.42", work="io,ping",
                  pace_ms=20),
            Guest("db", vcpus=2, disk_mib=16, work="io", pace_ms=20),
            Guest("mail", "pvh", disk_mib=16, net_from="net", address="10.0.2.43",
                  work="io,ping", pace_ms=50),
            Guest("idle"),
            Guest("deaf", deaf=True),
        )),
        # for what a suspension costs: processes are started on command (tests/bench/phases.py)
        Scene("phases", (
            Guest("one", memory_mib=256, native_tsc=True),
            Guest("four", vcpus=4, memory_mib=256, native_tsc=True),
            Guest("one-card", memory_mib=256, native_tsc=True, card=True, address="10.0.2.40",
                  work="ping"),
            Guest("four-card", vcpus=4, memory_mib=256, native_tsc=True, card=True,
                  address="10.0.2.40", work="ping", started=False),
        )),
        # three levels: both of the last need store or net, and store needs net
        Scene("drivers", (
            Guest("net", card=True, address="10.0.2.40", work="backends,bridge,ping"),
            Guest("store", disk_mib=64, net_from="net", address="10.0.2.41", work="backends,ping"),
            Guest("disk", disk_from="store", net_from="net", address="10.0.2.42", work="ping,io"),
            Guest("wire", net_from="net", address="10.0.2.43", work="ping"),
        )),
    )
}  # fmt: skip
