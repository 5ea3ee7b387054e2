"""Parks idle guests: those that use next to no CPU are suspended until this program ends.

    python park_idle.py 0.01 60       # who has used less than 1 % of a CPU for a minute

Driver domains, and guests that others need, are never parked. On Ctrl-C and SIGTERM all
parked guests go on. One that somebody else has resumed or destroyed meanwhile is left alone.
"""

import signal
import sys
import time
from contextlib import ExitStack

import xenpm


def cpu_time_ns(domain):
    """The CPU time that a guest has used so far."""
    return domain.info.cpu_time_ns


def idle_domains(host, share, seconds):
    """The running guests that use less than this share of a CPU, and serve nobody."""
    before = {
        domain: cpu_time_ns(domain)
        for domain in host.domains()
        if domain.state is xenpm.DomainState.RUNNING and not domain.is_driver_domain
    }
    time.sleep(seconds)
    idle = []
    for domain, used_ns in before.items():
        try:
            if cpu_time_ns(domain) - used_ns < share * seconds * 1e9:
                idle.append(domain)
        except xenpm.NoSuchDomain:  # destroyed meanwhile
            pass
    return idle


def park(domains, wait):
    """Suspend guests, call wait(), and let them go on."""
    try:
        with ExitStack() as parked:
            for domain in domains:
                try:
                    parked.enter_context(domain.suspended(timeout=20))
                    print(f"parked: {domain.name}")
                except (xenpm.SuspendError, xenpm.NoSuchDomain) as error:
                    print(f"not parked: {error}")
            wait()
    except (xenpm.NotSuspended, xenpm.NoSuchDomain) as error:  # all others go on all the same
        print(f"left alone: {error}")


def main(share, seconds):
    """Park the guests that are idle now, until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with xenpm.Host() as host:
            park(idle_domains(host, share, seconds), signal.pause)
    except KeyboardInterrupt:
        sys.exit(130)
    except xenpm.XenError as error:
        sys.exit(f"park_idle: {error}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(float(sys.argv[1]), float(sys.argv[2]))
