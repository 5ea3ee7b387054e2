"""Who is whose backend, and the order of suspending that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .actions import List, ListDomains, Machine, Read
from .devices import used_by
from .errors import StoreDataError
from .pci import number, pci_devices, shown
from .types import Device, DomainInfo, DomainRef, PciDevice, plain

__all__ = ["DriverDomain", "Member", "Topology", "read_topology"]

_LAST_DOMID = 0x7FEF  # DOMID_FIRST_RESERVED of public/xen.h, less one


@dataclass(frozen=True)
class DriverDomain:
    """Whether a domain is a driver domain, and what says so.

    True when it owns PCI devices of the host or is a backend of other guests.  When it is seen to
    do neither, but something in xenstore that might say otherwise makes no sense, then asking for
    the truth value raises `StoreDataError`: unknown is not "no".
    """

    domain: DomainRef
    owns: tuple[PciDevice, ...]  #: the PCI devices that are passed through to it
    serves: tuple[Device, ...]  #: the devices of other guests that it is the backend of
    stub_for: int | None  #: the domain that it emulates devices for, when it is a stub domain
    unreadable: tuple[str, ...]  #: what in xenstore made no sense

    @property
    def known(self) -> bool | None:
        """The same as the truth value, with None for unknown."""
        return True if self.owns or self.serves else None if self.unreadable else False

    def __bool__(self) -> bool:
        if self.known is None:
            raise StoreDataError(
                f"whether {self.domain} is a driver domain is unknown, for xenstore makes no "
                f"sense: {'; '.join(self.unreadable)}"
            )
        return self.known

    def __str__(self) -> str:
        """The evidence in words; empty when there is none."""
        said = []
        if self.owns:
            said.append("owns " + ", ".join(map(str, self.owns)))
        if self.serves:
            users = sorted({device.frontend_domid for device in self.serves})
            said.append("serves " + ", ".join(f"domain {domid}" for domid in users))
        return "; ".join(said)


@dataclass(frozen=True)
class Member:
    """One domain of a `Topology`."""

    info: DomainInfo
    domain: DomainRef
    uses: tuple[Device, ...]  #: its devices, without the consoles; their states are not looked at
    owns: tuple[PciDevice, ...]  #: the PCI devices that are passed through to it
    stub_for: int | None  #: the domain that it emulates devices for, when it is a stub domain
    unreadable: tuple[str, ...]  #: what xenstore says of it and makes no sense


class Topology:
    """All domains of a host but domain 0, who uses whom, and the order that this gives.

    A domain that uses another is suspended before it and resumed after it.  The same holds for a
    guest and the stub domain that emulates its devices.  Domains that use each other in a cycle
    have no order among themselves and go together.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = {member.domain.domid: member for member in members}
        uses: dict[int, set[int]] = {domid: set() for domid in self._members}
        for domid, member in self._members.items():
            uses[domid] |= {device.backend_domid for device in member.uses} & set(uses) - {domid}
            if member.stub_for is not None and member.stub_for in uses:
                uses[member.stub_for].add(domid)
        self._groups = _groups(uses)

    @property
    def members(self) -> tuple[Member, ...]:
        """All domains, by domid."""
        return tuple(self._members[domid] for domid in sorted(self._members))

    def driver_domain(self, domid: int) -> DriverDomain:
        """Whether that domain is a driver domain, and what says so.

        Raises:
            KeyError: the topology has no such domain.
        """
        member = self._members[domid]
        return DriverDomain(
            member.domain,
            member.owns,
            self.served_by(domid),
            member.stub_for,
            tuple(each for other in self.members for each in other.unreadable),
        )

    def served_by(self, domid: int) -> tuple[Device, ...]:
        """The devices of other guests that a domain is the backend of."""
        return tuple(
            device
            for member in self.members
            for device in member.uses
            if device.backend_domid == domid and device.frontend_domid != domid
        )

    def needed_by(self, domid: int) -> frozenset[int]:
        """The domains that must be suspended before that one: those that use it, cycles apart.

        Raises:
            KeyError: the topology has no such domain.
        """
        return self._around(domid, lambda group: group.users)

    def needs(self, domid: int) -> frozenset[int]:
        """The domains that must run before that one is resumed: those it uses, cycles apart.

        Raises:
            KeyError: the topology has no such domain.
        """
        return self._around(domid, lambda group: group.used)

    def _around(self, domid: int, side: Callable[[_Group], set[int]]) -> frozenset[int]:
        self._members[domid]  # or raise
        group = next(group for group in self._groups if domid in group.domids)
        return frozenset(other for number_ in side(group) for other in self._groups[number_].domids)

    @property
    def cycles(self) -> tuple[tuple[DomainRef, ...], ...]:
        """The sets of domains that use each other in a cycle."""
        return tuple(self._refs(group.domids) for group in self._groups if len(group.domids) > 1)

    def suspend_order(self) -> list[tuple[DomainRef, ...]]:
        """Steps, one after the other; the domains of one step may go at the same time.

        Each domain is in the first step in which nobody needs it any more.
        """
        return self._steps(lambda group: group.users)

    def resume_order(self) -> list[tuple[DomainRef, ...]]:
        """Steps, one after the other; the domains of one step may go at the same time.

        Each domain is in the first step in which all that it uses runs.
        """
        return self._steps(lambda group: group.used)

    def _steps(self, needs: Callable[[_Group], set[int]]) -> list[tuple[DomainRef, ...]]:
        steps: list[list[int]] = []
        step_of: dict[int, int] = {}
        left = dict(enumerate(self._groups))
        while left:
            ready = [number for number, group in left.items() if needs(group) <= set(step_of)]
            steps.append([])
            for number_ in ready:
                steps[-1] += left.pop(number_).domids
            step_of.update(dict.fromkeys(ready, len(steps)))
        return [self._refs(step) for step in steps]

    def _refs(self, domids: Iterable[int]) -> tuple[DomainRef, ...]:
        return tuple(self._members[domid].domain for domid in sorted(domids))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        return {
            "domains": [
                {
                    "domain": plain(member.domain),
                    "type": member.info.type.value,
                    "state": member.info.state.value,
                    "driver_domain": self.driver_domain(member.domain.domid).known,
                    "owns": plain(member.owns),
                    "uses": plain(member.uses),
                    "stub_for": member.stub_for,
                    "unreadable": list(member.unreadable),
                }
                for member in self.members
            ],
            "cycles": [[ref.domid for ref in cycle] for cycle in self.cycles],
            "suspend_order": [[ref.domid for ref in step] for step in self.suspend_order()],
            "resume_order": [[ref.domid for ref in step] for step in self.resume_order()],
        }

    def to_dot(self) -> str:
        """The same as a graph for Graphviz: an arrow goes from a domain to one that it uses."""
        lines = ["digraph topology {", "    rankdir=BT;", "    node [shape=box];"]
        cycles = {ref.domid for cycle in self.cycles for ref in cycle}
        for member in self.members:
            domid = member.domain.domid
            driver = self.driver_domain(domid)
            label = "\n".join(
                filter(None, [str(member.domain), member.info.type.value, str(driver)])
            )
            style = (
                ' style="bold"' if driver.known else ' style="dashed"' if driver.unreadable else ""
            )
            colour = ' color="red"' if domid in cycles else ""
            lines.append(f"    {domid} [label={_quoted(label)}{style}{colour}];")
        for member in self.members:
            for backend in sorted({device.backend_domid for device in member.uses} - {0}):
                label = ", ".join(_kinds(member, backend))
                lines.append(f"    {member.domain.domid} -> {backend} [label={_quoted(label)}];")
            if member.stub_for is not None:
                label = _quoted("device model")
                lines.append(f"    {member.stub_for} -> {member.domain.domid} [label={label}];")
        return "\n".join([*lines, "}"]) + "\n"

    def to_tree(self) -> list[str]:
        """The same as lines of a tree for the terminal: below each domain those that use it."""
        lines: list[str] = []
        drawn: set[int] = set()  # each whole but once
        roots = sorted(domid for group in self._groups if not group.used for domid in group.domids)
        # what is still to draw, the next last: domain, whose user it is, its prefix and its users'
        pending: list[tuple[int, int | None, str, str]]
        pending = [(domid, None, "", "") for domid in reversed(roots)]
        while pending:
            domid, server, first, rest = pending.pop()
            again = domid in drawn
            if again and server is None:
                continue
            drawn.add(domid)
            users = self._users(domid)
            line = first + self._said(domid, server, again=again)
            if again and users:
                line += " (shown above, with what uses it)"
            lines.append(line)
            for user in reversed([] if again else users):
                here, below = ("└─ ", "   ") if user == users[-1] else ("├─ ", "│  ")
                pending.append((user, domid, rest + here, rest + below))
        return lines

    def _users(self, domid: int) -> list[int]:
        """What is drawn below a domain."""
        users = sorted({device.frontend_domid for device in self.served_by(domid)})
        stub_for = self._members[domid].stub_for
        return [*users, stub_for] if stub_for is not None and stub_for in self._members else users

    def _said(self, domid: int, server: int | None, *, again: bool) -> str:
        """The line of a domain, below that of its server; shorter when it is there already."""
        member = self._members[domid]
        said = [str(member.domain), member.info.type.value]
        if server is not None:
            said.append("uses " + (", ".join(_kinds(member, server)) or "it as device model"))
        if again:
            return "  ".join(said)
        driver = self.driver_domain(domid)
        if driver.known is not False:
            said.append(f"driver domain: {driver if driver.known else 'unknown'}")
        if member.stub_for is not None:
            said.append(f"stub domain of domain {member.stub_for}")
        lost = {device.backend_domid for device in member.uses} - {0} - set(self._members)
        said += [f"its backend, domain {gone}, is gone" for gone in sorted(lost)]
        return "  ".join(said)


def _kinds(member: Member, server: int) -> list[str]:
    return [str(device) for device in member.uses if device.backend_domid == server]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


@dataclass(frozen=True)
class _Group:
    """Domains that have no order among themselves: one, or those of a cycle."""

    domids: tuple[int, ...]
    used: set[int]  # the numbers of the groups that it uses
    users: set[int]  # the numbers of those that use it


def _groups(uses: Mapping[int, set[int]]) -> list[_Group]:
    """The strongly connected components of the graph, with the edges between them."""
    reach = {domid: _reachable(uses, domid) for domid in uses}
    number_of: dict[int, int] = {}
    parts: list[tuple[int, ...]] = []
    for domid in sorted(uses):
        if domid in number_of:
            continue
        cycle = {other for other in reach[domid] if domid in reach[other]}
        part = tuple(sorted({domid} | cycle))
        number_of.update(dict.fromkeys(part, len(parts)))
        parts.append(part)
    used = [
        {number_of[other] for domid in part for other in uses[domid]} - {index}
        for index, part in enumerate(parts)
    ]
    users = [
        {other for other, theirs in enumerate(used) if index in theirs}
        for index in range(len(parts))
    ]
    return [_Group(*each) for each in zip(parts, used, users)]


def _reachable(uses: Mapping[int, set[int]], start: int) -> set[int]:
    found: set[int] = set()
    left = [start]
    while left:
        new = uses[left.pop()] - found
        found |= new
        left += new
    return found


def read_topology() -> Machine[Topology]:
    """Look at all domains of the host.

    Requests to xenstored: three for each domain, and one for each device and each kind of device
    that it has, without consoles; eight for one passed-through PCI device, five for each more.
    """
    members = []
    with_pci = set((yield List("/local/domain/0/backend/pci")))
    for info in (yield ListDomains()):
        if info.domid != 0:
            members.append((yield from _member(info, with_pci)))
    # What was destroyed meanwhile may have been seen half.
    there = {(info.domid, info.handle) for info in (yield ListDomains())}
    return Topology(m for m in members if (m.domain.domid, m.domain.handle) in there)


def _member(info: DomainInfo, with_pci: set[str]) -> Machine[Member]:
    unreadable: list[str] = []
    home = f"/local/domain/{info.domid}"
    name = (yield Read(f"{home}/name")) or b""
    target = yield Read(f"{home}/target")
    stub_for = None if target is None else number(target, _LAST_DOMID)
    if target is not None and stub_for is None:
        unreadable.append(f"{home}/target is {shown(target)}")
    uses = yield from used_by(info.domid, unreadable, states=False, without=("console",))
    owns: tuple[PciDevice, ...] = ()
    if str(info.domid) in with_pci:
        owns = yield from pci_devices(info.domid, unreadable)
    return Member(
        info,
        DomainRef(info.domid, info.handle, name.decode("utf-8", "surrogateescape")),
        uses,
        owns,
        stub_for,
        tuple(unreadable),
    )
