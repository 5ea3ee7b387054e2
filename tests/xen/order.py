"""What the order of suspending is worth: the same guests in the right order and in the wrong one.

Run in dom0 of the scene drivers: ``python -m tests.xen.order``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import xenpm
from tests.bench.light import say, show_table
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from .guest import Guest

LATE = 5.0


def in_order(host: xenpm.Host, timeout: float | None = None) -> dict[str, xenpm.XenError]:
    """Suspend all guests in the order of the topology and resume them; who failed."""
    topology = host.topology()
    return _cycle(host, topology.suspend_order(), topology.resume_order(), timeout)


def in_wrong_order(host: xenpm.Host, timeout: float | None = None) -> dict[str, xenpm.XenError]:
    """The same, with backends first when suspending."""
    topology = host.topology()
    return _cycle(host, topology.resume_order(), topology.resume_order(), timeout)


def _cycle(
    host: xenpm.Host,
    down: Iterable[tuple[xenpm.DomainRef, ...]],
    up: Iterable[tuple[xenpm.DomainRef, ...]],
    timeout: float | None,
) -> dict[str, xenpm.XenError]:
    failed: dict[str, xenpm.XenError] = {}
    asleep = set()
    for step in down:
        outcomes = host.suspend_each(
            [host.domain(ref) for ref in step], timeout=timeout, late_timeout=LATE
        )
        for domain, outcome in outcomes.items():
            if isinstance(outcome, xenpm.XenError):
                failed[domain.name] = outcome
            else:
                asleep.add(domain.ref)
    for step in up:
        domains = [host.domain(ref) for ref in step if ref in asleep]
        for resumed in host.resume_each(domains).values():
            if isinstance(resumed, xenpm.XenError):
                raise resumed
    return failed


def main() -> None:
    """Print both side by side."""
    with xenpm.Host() as host, Xenstore() as store, Xenctrl() as control:
        guests = [Guest(each.name, host, store, control) for each in host.domains()]
        say("\n".join(host.topology().to_tree()))
        ways: dict[str, Callable[..., dict[str, xenpm.XenError]]] = {
            "right: frontends first": in_order,
            "wrong: backends first": in_wrong_order,
        }
        rows: list[tuple[str, ...]] = [("order", "suspended", "failed", "pings back after")]
        for way, cycle in ways.items():
            began = time.monotonic()
            failed = cycle(host, timeout=40)
            for each in guests:
                each.wait_pinging(1)
            seconds = time.monotonic() - began
            names = ", ".join(f"{name} ({type(error).__name__})" for name, error in failed.items())
            good = f"{len(guests) - len(failed)} of {len(guests)}"
            rows.append((way, good, names or "-", f"{seconds:.1f} s"))
        show_table(rows)


if __name__ == "__main__":
    main()
