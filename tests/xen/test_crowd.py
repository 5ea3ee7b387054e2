"""Sixteen guests at once, through one engine, from one thread."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

import pytest

import xenpm
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenstore import Xenstore

from .guest import DEADLINE, Guest, Resources

SCENE = "crowd"
pytestmark = pytest.mark.soak  # sixteen guests take the emulated host minutes to start
GuestOf = Callable[[str], Guest]


@pytest.fixture
def subjects(guest: GuestOf) -> list[Guest]:
    return [guest(f"g{number:02}") for number in range(1, 17)]


def _cycle(host: xenpm.Host, domains: list[xenpm.Domain]) -> None:
    suspended = host.suspend_each(domains)
    assert not [outcome for outcome in suspended.values() if isinstance(outcome, Exception)]
    assert list(suspended) == domains
    assert {domain.state for domain in domains} == {xenpm.DomainState.SUSPENDED}
    resumed = host.resume_each(domains)
    assert not [outcome for outcome in resumed.values() if isinstance(outcome, Exception)]


def test_sixteen_guests_leave_the_process_as_it_was(
    host: xenpm.Host, subjects: list[Guest]
) -> None:
    domains = [subject.domain for subject in subjects]
    boots = [subject.boot for subject in subjects]
    _cycle(host, domains)  # whatever is made on first use is there now
    before = Resources()
    for _ in range(3):
        _cycle(host, domains)
    Resources().assert_as(before)
    counts = [subject.count for subject in subjects]
    for subject, boot, count in zip(subjects, boots, counts):
        subject.wait_counting(count)
        assert subject.boot == boot


def test_one_that_does_not_answer_holds_nobody_up(host: xenpm.Host, subjects: list[Guest]) -> None:
    """The first one is let go only when all others are suspended: one after the other cannot do."""
    domains = [subject.domain for subject in subjects]
    domains[0].pause()
    others = [domain.domid for domain in domains[1:]]
    seen: list[bool] = []

    def release() -> None:
        with Xenctrl() as control, Xenstore() as store:
            store.watch("@releaseDomain", "end")
            until = time.monotonic() + DEADLINE
            while True:
                infos = {info.domid: info for info in control.domain_list()}
                done = all(infos[domid].suspended for domid in others)
                left = until - time.monotonic()
                if done or left <= 0:
                    seen.append(done)
                    control.unpause(domains[0].domid)
                    return
                select.select([store.fileno()], [], [], left)
                while store.check_watch() is not None:
                    pass

    helper = threading.Thread(target=release)
    helper.start()
    outcomes = host.suspend_each(domains, timeout=DEADLINE + 30)
    helper.join()
    assert seen == [True]
    assert not [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
    resumed = host.resume_each(domains)
    assert not [outcome for outcome in resumed.values() if isinstance(outcome, Exception)]
    for subject in subjects:
        subject.wait_counting(subject.count)
