"""A libvirtd beside xenpm, in dom0 of the lab."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from .guest import DEADLINE, Guest, run, until

CONFIGURATION = """
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
CPUS = Path("/usr/share/libvirt/cpu_map")
# It has no model of a processor that has as little as Xen shows of the emulated one.
MODEL = """<cpus>
  <model name='lab'><decode host='on' guest='on'/><feature name='fpu'/></model>
</cpus>
"""
# Its users are made by a package that the lab does not have.
QEMU_DRIVER = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")
LOG = Path("/var/log/libvirtd.log")


class Libvirtd:
    """The daemon, running within the context."""

    def __enter__(self) -> Libvirtd:
        Path("/etc/libvirt/libvirtd.conf").write_text(CONFIGURATION)
        QEMU_DRIVER.unlink(missing_ok=True)
        (CPUS / "x86_lab.xml").write_text(MODEL)
        index = CPUS / "index.xml"
        include = "<include filename='x86_lab.xml'/>"
        if include not in index.read_text():
            index.write_text(index.read_text().replace("</arch>", f"{include}</arch>", 1))
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    def _start(self) -> None:
        with LOG.open("a") as log:
            self._process = subprocess.Popen(["libvirtd"], stdout=log, stderr=log)
        until(self._answers, "libvirtd does not answer")  # there is a socket before it does

    def _answers(self) -> bool:
        assert self._process.poll() is None, LOG.read_text()
        return "Running hypervisor" in self.virsh("version", check=False)

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)

    def restart(self) -> None:
        """What `systemctl restart libvirtd` does; guests go on meanwhile."""
        self._stop()
        self._start()

    def virsh(self, *words: str, check: bool = True) -> str:
        """What a command of virsh says."""
        return run("virsh", "-c", "xen:///system", *words, check=check).strip()

    def state(self, name: str) -> str:
        """What it calls a guest's state."""
        return self.virsh("domstate", name)

    def make(self, guest: Guest) -> None:
        """Make a guest of the lab anew, by libvirt."""
        run("xl", "destroy", guest.name, check=False)
        native = f"/root/guests/{guest.name}.cfg"
        xml = Path(f"/root/guests/{guest.name}.xml")
        text = self.virsh("domxml-from-native", "xen-xl", native)
        # who has told neither gets a mouse and a keyboard, which nobody serves
        xml.write_text(re.sub(r" *<input [^>]*/>\n", "", text))
        self.virsh("create", str(xml))
        guest.wait("data/counter", bool, "it does not come up")
