"""Sixteen guests at once, through one engine, from one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import xenpm

from .guest import Guest

SCENE = "crowd"


def test_sixteen_guests_at_once(host: xenpm.Host, guest: Callable[[str], Guest]) -> None:
    subjects = [guest(f"g{number:02}") for number in range(1, 17)]
    domains = [subject.domain for subject in subjects]
    boots = [subject.boot for subject in subjects]
    python_threads = threading.active_count()

    outcomes = host.suspend_each(domains)

    failed = [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
    assert not failed
    assert list(outcomes) == domains
    assert {domain.state for domain in domains} == {xenpm.DomainState.SUSPENDED}
    assert threading.active_count() == python_threads
    counts = [subject.count for subject in subjects]

    resumed = host.resume_each(domains)

    assert not [outcome for outcome in resumed.values() if isinstance(outcome, Exception)]
    for subject, boot, count in zip(subjects, boots, counts):
        subject.wait_counting(count)
        assert subject.boot == boot
