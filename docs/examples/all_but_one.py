"""Has the machine to one guest, for the time of a command: all others are suspended meanwhile.

    python all_but_one.py db1 ./measure-the-disks

What the guest stands on, such as the driver domain with its disks, stays up, too. Guests that
were paused or suspended before are left so. When the command ends or fails, on Ctrl-C and on
SIGTERM all come back; after kill -9, ``python -m xenpm host recover`` brings them back.
"""

import signal
import subprocess
import sys

import xenpm
from xenpm import OnFailure, Policy, Rule


def stands_on(topology, domid):
    """The domids of a domain and of all that it needs, directly or not; cycles whole."""
    found, new = set(), {domid}
    while new:
        found |= new
        cycles = [{ref.domid for ref in cycle} for cycle in topology.cycles]
        used = [topology.needs(each) for each in new] + [c for c in cycles if c & new]
        new = set().union(*used) - found
    return found


def all_but_one(name, work):
    """Suspend all guests but one and those it needs, call work(), and let them go on."""
    with xenpm.Host() as host:
        stays = stands_on(host.topology(), host.domain(name).domid)
        leave, suspend = Rule(policy=Policy.LEAVE), Rule(on_failure=OnFailure.UNDO)
        rules = {d: leave if d.domid in stays else suspend for d in host.domains()}
        host.suspend_domains(rules=rules)
        try:
            return work()
        finally:
            host.resume_domains()


def run(command):
    """The exit status of a command."""
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(all_but_one(sys.argv[1], lambda: run(sys.argv[2:])))
    except (xenpm.XenError, OSError) as error:
        sys.exit(f"all_but_one: {error}")
