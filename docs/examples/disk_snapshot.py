"""Takes a consistent snapshot of a running guest's disks, with any command that can make one.

    python disk_snapshot.py web1 lvcreate --snapshot --size 2G --name web1-snap vg0/web1

While the command runs the guest is suspended, and asks nothing of its disks; a request that
its backend had before may still be carried out. What the guest has not written yet is in its
memory, so the snapshot is as after a power cut, which file systems with a journal are made
for. Whatever the command comes to, the guest goes on, also on Ctrl-C and SIGTERM.
"""

import signal
import subprocess
import sys

import xenpm


def snapshot(name, command, timeout=20, command_timeout=60):
    """Suspend the guest, run the command, and let the guest go on."""
    with xenpm.Domain(name).suspended(timeout=timeout):
        subprocess.run(command, check=True, timeout=command_timeout)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        snapshot(sys.argv[1], sys.argv[2:])
    except (xenpm.XenError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"no snapshot: {error}")
