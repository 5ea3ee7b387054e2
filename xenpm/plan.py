"""What a host suspend would do with each domain, in which order, and why.  Nothing is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from .actions import GetParam, Machine, Read
from .errors import HypercallError
from .policy import POLICY, OnFailure, Policy, Rule, Settings, merge, parse_rule
from .protocol import (
    HVM_PARAM_ACPI_S_STATE,
    HVM_PARAM_CALLBACK_IRQ,
    started_over,
    supports_cooperative_resume,
)
from .timeline import columns, printable
from .topology import Member, Topology, read_topology
from .types import DomainRef, DomainState, DomainType, plain

__all__ = ["Plan", "PlanEntry", "decide", "make_plan"]

_DOWN = (Policy.SUSPEND, Policy.PAUSE, Policy.SAVE)


@dataclass(frozen=True)
class PlanEntry:
    """What is to happen to one domain, and why."""

    domain: DomainRef
    policy: Policy
    reason: str  #: why this policy, in words
    on_failure: OnFailure
    timeout: float | None  #: seconds that it has for suspending; None: as `Domain.suspend`
    after: tuple[int, ...]  #: the domids that must be down before its turn comes
    needs: tuple[int, ...]  #: the domids that must be up again before it is resumed

    @property
    def goes_down(self) -> bool:
        """Whether it is suspended, paused or saved."""
        return self.policy in _DOWN

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PlanEntry:
        """The entry of which `plain` has made these values."""
        ref = values["domain"]
        return cls(
            DomainRef(int(ref["domid"]), UUID(ref["uuid"]).bytes, str(ref["name"])),
            Policy[values["policy"].upper()],
            str(values["reason"]),
            OnFailure[values["on_failure"].upper()],
            values["timeout"],
            tuple(values["after"]),
            tuple(values["needs"]),
        )


@dataclass(frozen=True)
class Plan:
    """What a host suspend would do.  As a string it is a table for the terminal."""

    entries: tuple[PlanEntry, ...]  #: by domid
    steps: tuple[tuple[DomainRef, ...], ...]  #: the order; within a step all at once
    refusals: tuple[str, ...]  #: why the host must not sleep; empty when it may

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        values: dict[str, Any] = plain(self)
        return values

    def to_rows(self) -> list[tuple[str, ...]]:
        """A row of a table for each domain, as they go down; the first row has the titles."""
        step_of = {
            ref.domid: str(number) for number, step in enumerate(self.steps, 1) for ref in step
        }
        rows: list[tuple[str, ...]] = [("STEP", "DOMAIN", "POLICY", "IF IT FAILS", "BECAUSE")]
        for entry in sorted(
            self.entries, key=lambda e: (int(step_of.get(e.domain.domid, 1 << 16)), e.domain.domid)
        ):
            down = entry.policy in (Policy.SUSPEND, Policy.SAVE)
            rows.append(
                (
                    step_of.get(entry.domain.domid, "-"),
                    printable(str(entry.domain)),
                    entry.policy.value,
                    entry.on_failure.value if down else "-",
                    entry.reason,
                )
            )
        return rows

    @property
    def remarks(self) -> list[str]:
        """The lines below the table: each refusal."""
        return [f"the host must not sleep: {refusal}" for refusal in self.refusals]

    def __str__(self) -> str:
        return "\n".join([*columns(self.to_rows()), *self.remarks])


def make_plan(settings: Settings, rules: Mapping[int, Rule]) -> Machine[Plan]:
    """Decide what is to happen to each domain but domain 0.

    Args:
        settings: what the host's configuration says.
        rules: what the caller says, by domid.

    Raises:
        ConfigError: a domain's ``xenpm/policy`` in xenstore makes no sense.
    """
    topology: Topology = yield from read_topology()
    decided: dict[int, tuple[Policy, str, Rule]] = {}
    for member in topology.members:
        decided[member.domain.domid] = yield from decide(member, settings, rules, topology)
    for member in topology.members:  # a stub domain shares its guest's fate
        guest = decided.get(-1 if member.stub_for is None else member.stub_for)
        policy, _, rule = decided[member.domain.domid]
        if guest is not None and policy not in (Policy.LEAVE, Policy.ABORT):
            # with a guest that is saved it is destroyed, and made anew
            fate = Policy.PAUSE if guest[0] in (Policy.SUSPEND, Policy.PAUSE) else Policy.LEAVE
            reason = f"emulates devices for domain {member.stub_for}"
            decided[member.domain.domid] = (fate, reason, rule)
    down = {domid for domid, (policy, _, _) in decided.items() if policy in _DOWN}
    entries = []
    for member in topology.members:
        domid = member.domain.domid
        policy, reason, rule = decided[domid]
        entries.append(
            PlanEntry(
                member.domain,
                policy,
                reason,
                rule.on_failure or _on_failure(member, topology),
                rule.timeout,
                tuple(sorted(topology.needed_by(domid) & down)),
                tuple(sorted(topology.needs(domid) & down)),
            )
        )
    steps = (tuple(ref for ref in step if ref.domid in down) for step in topology.suspend_order())
    return Plan(
        tuple(entries),
        tuple(step for step in steps if step),
        tuple(f"{each.domain}: {each.reason}" for each in entries if each.policy is Policy.ABORT),
    )


def decide(
    member: Member, settings: Settings, rules: Mapping[int, Rule], topology: Topology
) -> Machine[tuple[Policy, str, Rule]]:
    """One domain's policy, the reason for it, and what else was said of it."""
    home = f"/local/domain/{member.domain.domid}"
    said = yield Read(f"{home}/{POLICY}")
    feature = yield Read(f"{home}/control/feature-suspend")
    in_store = parse_rule((said or b"").decode("utf-8", "replace"), f"{home}/{POLICY}")
    sources = [
        ("the caller", rules.get(member.domain.domid, Rule())),
        ("its xenpm/policy in xenstore", in_store),
        ("the configuration", settings.rule(member.domain)),
    ]
    rule = merge(*(each for _, each in sources))
    driver = str(topology.driver_domain(member.domain.domid))
    who = next((name for name, each in sources if each.policy is not None), "")
    if rule.policy is Policy.ABORT:
        return Policy.ABORT, f"{who} says so", rule
    if member.info.state is not DomainState.RUNNING:
        already = f"is {member.info.state.value} already"
        if (yield from started_over(member.domain, member.info)).doing:
            already += ", in the middle of being started over"
        harmed = member.info.state is DomainState.PAUSED and member.owns
        if harmed and rule.policy not in (Policy.PAUSE, Policy.LEAVE):
            return Policy.ABORT, f"{already}; it {driver}, which is not quiesced", rule
        return Policy.LEAVE, already, rule
    if member.info.runs_xenstore:
        return Policy.LEAVE, "runs xenstored, which the others need", rule
    if rule.policy not in (None, Policy.SUSPEND):
        if rule.policy is Policy.SAVE and driver:
            return Policy.ABORT, f"cannot be saved, as {who} says, for it {driver}", rule
        return rule.policy, f"{who} says so", rule
    cannot = ""
    if member.info.type is DomainType.HVM:
        cannot = yield from _deaf(member.domain.domid)
    if not cannot and feature == b"0":
        cannot = "its kernel says that it cannot suspend"
    if not cannot and member.info.type is DomainType.PV:
        support = yield from supports_cooperative_resume(member.domain, member.info)
        cannot = "" if support else f"could not be resumed: {support.evidence}"
    if not cannot:
        return Policy.SUSPEND, f"driver domain: {driver}" if driver else "can suspend itself", rule
    if member.owns:
        return Policy.ABORT, f"{cannot}; it {driver}, which a mere pause would harm", rule
    return Policy.PAUSE, cannot, rule


def _deaf(domid: int) -> Machine[str]:
    """Why an HVM guest hears no request to suspend; empty when it does."""
    try:
        if (yield GetParam(domid, HVM_PARAM_ACPI_S_STATE)):
            return "sleeps by itself (ACPI S3)"
        if not (yield GetParam(domid, HVM_PARAM_CALLBACK_IRQ)):
            return "is an HVM guest without PV drivers"
    except HypercallError as error:  # gone meanwhile
        return f"is an HVM guest of which nothing is known ({error})"
    return ""


def _on_failure(member: Member, topology: Topology) -> OnFailure:
    """Hardware must be quiesced; a guest without any is not to keep the host awake."""
    known = topology.driver_domain(member.domain.domid).known
    return OnFailure.PAUSE if known is False else OnFailure.UNDO
