"""Hosts that were booted once and are started from where they stood, any number of times.

A snapshot is three files that never change again: a qcow2 overlay, the machine's memory, and the
state of its devices. The memory file is mapped privately by each machine that starts from it, so
starting copies nothing; QEMU calls this `x-ignore-shared`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import cache, initramfs, machine, scenes
from .cache import LabError, say
from .image import Image, image, release_named
from .machine import Machine, QemuError
from .scenes import EMPTY, Scene

BOOT_SECONDS = 400
CREATE_ATTEMPTS = 4


@dataclass(frozen=True)
class Snapshot:
    """A frozen host."""

    path: Path

    @property
    def disk(self) -> Path:
        """The frozen overlay."""
        return self.path / "disk.qcow2"

    @property
    def memory(self) -> Path:
        """The memory, sparse."""
        return self.path / "memory"

    @property
    def state(self) -> Path:
        """Processors and devices."""
        return self.path / "state"

    @property
    def key(self) -> str:
        """The hash that names it."""
        return self.path.name.rpartition("-")[2]


def snapshot(release: str, scene: str) -> tuple[Image, Snapshot]:
    """The snapshot of a scene, made when the cache has none."""
    return _snapshot(image(release_named(release)), scenes.scene_named(scene))


@contextlib.contextmanager
def start(release: str, scene: str) -> Iterator[Machine]:
    """A fresh machine from the snapshot of a scene."""
    image_, frozen = snapshot(release, scene)
    with contextlib.ExitStack() as stack:
        try:
            host = stack.enter_context(_started(image_, frozen))
        except QemuError as problem:
            say(f"{release}/{scene}: the snapshot does not load, making it anew ({problem})")
            cache.remove(frozen.path)
            image_, frozen = snapshot(release, scene)
            host = stack.enter_context(_started(image_, frozen))
        played = scenes.scene_named(scene).started
        _xl(host, "unpause", [each for each in played if not each.parked])
        yield host


@contextlib.contextmanager
def _started(image_: Image, frozen: Snapshot) -> Iterator[Machine]:
    with cache.scratch("run") as work:
        disk = work / "disk.qcow2"
        _overlay(disk, frozen.disk, "qcow2")
        _read_ahead(frozen.memory)
        with Machine.launch(
            image_, work, disk, frozen.memory, share=False, state=frozen.state
        ) as host:
            host.connect()
            yield host


def _snapshot(image_: Image, scene: Scene) -> tuple[Image, Snapshot]:
    name = image_.release.name
    # The forwarded port is chosen by the system, so the command line is the same every time.
    key = cache.digest(image_.key, machine.qemu_version(), machine.qemu_command(image_), "recipe 1")
    base = Snapshot(
        cache.entry(
            f"host-{name}", key, lambda work: _boot(image_, work), outdates=(f"scene-{name}",)
        )
    )
    if scene == EMPTY:
        return image_, base
    worker = initramfs.initramfs(image_)
    files = {"initramfs": worker.archive, "tiny": worker.tiny}
    keys = [worker.key]
    for other in map(image, map(release_named, scene.linuxes)):
        theirs = initramfs.initramfs(other)
        keys += [other.key, theirs.key]
        files[f"vmlinux-{other.release.name}"] = other.kernel
        files[f"initramfs-{other.release.name}"] = theirs.archive
    key = cache.digest(
        base.key,
        keys,
        scene,
        [each.config() for each in scene.guests],
        [each.prepare() for each in scene.guests],
        "recipe 4",
    )
    path = cache.entry(
        f"scene-{name}-{scene.name}", key, lambda work: _play(image_, base, files, scene, work)
    )
    return image_, Snapshot(path)


def _boot(image_: Image, work: Path) -> None:
    """Boot a host from its image and freeze it."""
    began = time.monotonic()
    say(f"{image_.release.name}: booting Xen and dom0 (about a minute)")
    disk = work / "disk.qcow2"
    _overlay(disk, Path("..") / image_.path.name / "disk.img", "raw")
    with Machine.launch(image_, work, disk, work / "memory", share=True, state=None) as host:
        host.connect(timeout=BOOT_SECONDS)
        host.ssh(
            "xl list && systemctl is-system-running --wait; systemctl --failed --no-legend",
            timeout=120,
        )
        say(f"{image_.release.name}: dom0 answers, {time.monotonic() - began:.0f} s after power-on")
        _freeze(host, work)


def _play(image_: Image, base: Snapshot, files: dict[str, Path], scene: Scene, work: Path) -> None:
    """Create the guests of a scene on a booted host and freeze it with them."""
    name = f"{image_.release.name}/{scene.name}"
    began = time.monotonic()
    say(f"{name}: creating {len(scene.started)} guests")
    disk = work / "disk.qcow2"
    _overlay(disk, Path("..") / base.path.name / "disk.qcow2", "qcow2")
    cache.run("cp", "--sparse=always", "--reflink=auto", base.memory, work / "memory")
    with Machine.launch(image_, work, disk, work / "memory", share=True, state=base.state) as host:
        host.connect()
        for file, source in files.items():
            host.put(source, f"/root/guests/{file}")
        lines = ["set -e", "cd /root/guests"]
        for each in scene.guests:
            lines += [f"cat > {each.name}.cfg <<'EOF'", each.config() + "EOF", *each.prepare()]
        host.ssh("\n".join(lines))
        # One after the other, and those that are up wait: alone, each boots fastest. After those
        # that serve comes PVH, for under emulation one that boots beside others dies at times.
        for each in sorted(scene.started, key=lambda each: (not each.serves, each.kind != "pvh")):
            _create(host, each)
            if not each.serves:
                _xl(host, "pause", [each])
        workers = [each for each in scene.started if each.work]
        if workers:
            _xl(host, "unpause", [each for each in workers if not each.serves])
            host.ssh(_START.format(names=" ".join(each.name for each in workers)))
            _xl(host, "pause", reversed(workers))
        say(f"{name}: all guests count, after {time.monotonic() - began:.0f} s")
        _freeze(host, work)


def _xl(host: Machine, verb: str, guests: Iterable[scenes.Guest]) -> None:
    """Pause or unpause guests.

    No guest runs while the machine is frozen: QEMU saves the state of a processor that is inside a
    PVH guest wrongly, and the guest, or all of Xen, goes astray once that is loaded.
    """
    names = " ".join(each.name for each in guests)
    host.ssh(f"for name in {names}; do xl {verb} $name || exit 1; done", timeout=240)


# Lets the guests begin their heavy work; done when all of them have acknowledged.
_START = """
for name in {names}; do
    data=/local/domain/$(xl domid $name)/data
    begins() {{ [ "$(xenstore-read $data/command-done 2>/dev/null)" = "start: ok" ]; }}
    xenstore-write $data/command start
    # Looked at by the clock too: the answer may come just before the watch is registered.
    for i in 1 2 3 4 5 6 7 8 9 10; do
        begins && continue 2
        timeout 5 xenstore-watch -n 2 $data/command-done >/dev/null
    done
    begins || {{
        echo "$name does not begin its work; what it and Xen said last:"
        xl list; tail -n 25 /var/log/xen/console/guest-$name.log; xl dmesg | tail -n 40
        exit 1
    }} >&2
done
"""


def _create(host: Machine, each: scenes.Guest) -> None:
    """Create a guest and wait until it counts; again, when emulation made it die on the way."""
    hold = f"""'extra="{each.options} hold=1"'""" if each.work else ""
    for attempt in range(1, CREATE_ATTEMPTS + 1):
        try:
            # libxl's hotplug scripts have a deadline, and on a busy machine miss it
            host.ssh(f"xl create -q /root/guests/{each.name}.cfg {hold}", timeout=240)
            wait_counting(host, [each.name], 300)
        except LabError as problem:
            if (
                attempt == CREATE_ATTEMPTS
                or not host.ssh(f"xl domid {each.name}", check=False).returncode
            ):
                raise
            say(f"{each.name} died while it booted, creating it again ({problem})")
        else:
            return


def wait_counting(host: Machine, names: list[str], timeout: float) -> None:
    """Wait until guests have published counters; the error shows the consoles of the others."""
    script = """
end=$(($(date +%s) + {seconds})); missing=
counts() {{
    domid=$(xl domid $1 2>/dev/null) && xenstore-exists /local/domain/$domid/data/counter
}}
for name in {names}; do
    until counts $name; do
        left=$((end - $(date +%s)))
        [ $left -gt 0 ] || break
        # Each watch fires once when it is registered; one more event tells something. Look again
        # by the clock too, for it may have died just before.
        if [ -n "$domid" ]; then
            counter=/local/domain/$domid/data/counter
            timeout 20 xenstore-watch -n 3 $counter @releaseDomain >/dev/null
        else
            # It died while it booted; xl may start it again, under another number.
            timeout 15 xenstore-watch -n 2 @introduceDomain >/dev/null || counts $name || break
        fi
    done
    counts $name || missing="$missing $name"
done
[ -z "$missing" ] && exit
xl list
for name in $missing; do
    echo "no counter from $name; what it and xl said last:"
    tail -n 25 /var/log/xen/console/guest-$name.log /var/log/xen/xl-$name.log
done
false
""".format(seconds=int(timeout), names=" ".join(names))
    done = host.ssh(script, timeout=timeout + 60, check=False)
    if done.returncode:
        raise LabError(f"not all guests came up:\n{done.stdout}{done.stderr}")


def _freeze(host: Machine, work: Path) -> None:
    """Make the memory small, and save the state."""
    host.ssh("sync")
    with cache.scratch("trial") as trial:
        _overlay(trial / "disk.qcow2", host.image.disk, "raw")
        host.save(work / "state", trial / "disk.qcow2", work / "memory")
    cache.run("fallocate", "--dig-holes", work / "memory")
    blocks = sum(path.stat().st_blocks for path in work.iterdir()) * 512
    say(f"{host.release.name}: frozen, {blocks / 2**20:.0f} MiB")


def _overlay(path: Path, backing: Path, backing_format: str) -> None:
    # A relative backing file is looked for from where the overlay is.
    cache.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-b", backing, path)


def _read_ahead(path: Path) -> None:
    """Have the kernel read a file into its cache while QEMU starts."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(handle)
