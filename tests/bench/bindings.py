"""How fast xenpm's bindings are, beside those of xen-utils and pyxs.

``python -m tests.lab run bookworm --scene flock -- python -m tests.bench.bindings``

pyxs is measured if its wheel is in /root/wheels, where ``python -m tests.bench bindings`` puts it.
"""

from __future__ import annotations

import importlib
import select
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import xenpm
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from . import side_by_side
from .side_by_side import Report, Spread, Table, calls_within, digits, ratios, timed

OURS, LOWLEVEL, PYXS = "xenpm", "xen.lowlevel", "pyxs"
ROUNDS = 40
ROUND_SECONDS = 0.03  # that xenpm works in each round
NODE = "/tool/bench"
VALUE = b"a value of some twenty bytes"[:20]

Call = Callable[[], object]
Calls = dict[str, dict[str, Call]]
"""by operation, then by way"""


def lowlevel(name: str) -> Any:
    """A module of xen-utils, which are nowhere on Python's path."""
    for path in Path("/usr/lib").glob("xen-*/lib/python"):
        if str(path) not in sys.path:
            sys.path.append(str(path))
    return importlib.import_module(f"xen.lowlevel.{name}")


def pyxs() -> Any:
    """The module pyxs, or None when nobody has brought it."""
    sys.path += map(str, Path("/root/wheels").glob("pyxs-*.whl"))
    try:
        return importlib.import_module("pyxs")
    except ModuleNotFoundError:
        return None


def ours(stack: ExitStack) -> dict[str, Call]:
    control = stack.enter_context(Xenctrl())
    store, watching = (stack.enter_context(Xenstore()) for _ in range(2))
    last = control.domain_list()[-1].domid
    poll = select.poll()
    poll.register(watching.fileno(), select.POLLIN)
    values = count()

    def transaction() -> None:
        number = store.transaction_start()
        store.read(NODE, number)
        store.write(NODE, VALUE, number)
        store.transaction_end(number)

    def round_trip() -> None:
        watching.write(f"{NODE}/{OURS}", b"%d" % next(values))
        poll.poll()
        while watching.check_watch() is None:
            poll.poll()

    watching.write(f"{NODE}/{OURS}", b"")
    watching.watch(f"{NODE}/{OURS}", "bench")
    while watching.check_watch() is None:  # what every watch begins with
        poll.poll()
    return {
        "info of a domain": lambda: control.domain_info(last),
        "list of domains": control.domain_list,
        "store: read": lambda: store.read(NODE),
        "store: write": lambda: store.write(NODE, VALUE),
        "store: transaction": transaction,
        "store: watch": round_trip,
    }


def theirs() -> dict[str, Call]:
    control = lowlevel("xc").xc()
    store, watching = (lowlevel("xs").xs() for _ in range(2))
    last = control.domain_getinfo()[-1]["domid"]
    values = count()

    def transaction() -> None:
        number = store.transaction_start()
        store.read(number, NODE)
        store.write(number, NODE, VALUE)
        store.transaction_end(number)

    def round_trip() -> None:
        watching.write("", f"{NODE}/lowlevel", b"%d" % next(values))
        watching.read_watch()

    watching.write("", f"{NODE}/lowlevel", b"")
    watching.watch(f"{NODE}/lowlevel", "bench")
    watching.read_watch()
    return {
        "info of a domain": lambda: control.domain_getinfo(last, 1),
        "list of domains": control.domain_getinfo,
        "store: read": lambda: store.read("", NODE),
        "store: write": lambda: store.write("", NODE, VALUE),
        "store: transaction": transaction,
        "store: watch": round_trip,
    }


def pure(module: Any, stack: ExitStack) -> dict[str, Call]:
    store, watching = (stack.enter_context(module.Client()) for _ in range(2))
    monitor = stack.enter_context(watching.monitor())
    node, watched = NODE.encode(), f"{NODE}/{PYXS}".encode()
    values = count()
    events = monitor.wait()

    def transaction() -> None:
        store.transaction()
        store.read(node)
        store.write(node, VALUE)
        store.commit()

    def round_trip() -> None:
        watching.write(watched, b"%d" % next(values))
        next(events)

    watching.write(watched, b"-")  # it refuses an empty value
    monitor.watch(watched, b"bench")
    next(events)
    return {
        "store: read": lambda: store.read(node),
        "store: write": lambda: store.write(node, VALUE),
        "store: transaction": transaction,
        "store: watch": round_trip,
    }


def measure() -> Report:
    with xenpm.Host() as host, ExitStack() as stack:
        domains = len(host.domains())  # all paused, for they only have to be there
        ways = {OURS: ours(stack), LOWLEVEL: theirs()}
        module = pyxs()
        if module is not None:
            ways[PYXS] = pure(module, stack)
        where = side_by_side.host(host.xen_version)
        samples = {
            operation: side_by_side.in_turns(
                {
                    way: timed(calls[operation], calls_within(call, ROUND_SECONDS))
                    for way, calls in ways.items()
                    if operation in calls
                },
                ROUNDS,
            )
            for operation, call in ways[OURS].items()
        }
        with Xenstore() as store:
            store.remove(NODE)
    others = [way for way in ways if way != OURS]
    rows = [["", *(f"{way}, calls/s" for way in ways), *(f"xenpm : {way}" for way in others)]]
    points: list[list[Any]] = []
    for operation, taken in samples.items():
        name = f"list of {domains} domains" if operation == "list of domains" else operation
        rates = [digits(1 / Spread.of(taken[way]).median) if way in taken else "" for way in ways]
        found = {way: ratios(taken[way], taken[OURS]) for way in others if way in taken}
        rows.append([name, *rates, *(found[way].ratio() if way in found else "" for way in others)])
        points += [[f"{name}, {way}", *spread] for way, spread in found.items()]
    notes = [f"{where}; {domains} domains, all but domain 0 paused; {ROUNDS} rounds."]
    if module is None:
        notes.append("pyxs was not there.")
    plot = {"kind": "ratios", "title": "Calls per second, xenpm : other", "rows": points}
    return Report(notes, [Table(rows)], [plot])


if __name__ == "__main__":
    side_by_side.in_dom0(measure, __doc__ or "")
