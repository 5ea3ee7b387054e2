"""An HVM guest, saved with its device model to a file and restored: by us and by xl."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xenpm

from . import killed
from .guest import Guest, run
from .saving import going_on

SCENE = "hvm"
pytestmark = pytest.mark.soak  # an HVM guest takes minutes here
PATH = Path("/root/hvm1.save")


@pytest.fixture
def subject(guest: Callable[[str], Guest]) -> Iterator[Guest]:
    subject = guest("hvm1")
    subject.wait("data/io", bool, "its work has not begun")
    yield subject
    PATH.unlink(missing_ok=True)


def test_saved_and_restored(subject: Guest) -> None:
    with going_on(subject):
        subject.domain.suspend(lightweight=False, path=PATH)
        assert xenpm.restore(PATH).type is xenpm.DomainType.HVM


def test_saved_by_us_restored_by_xl(subject: Guest) -> None:
    with going_on(subject):
        subject.domain.suspend(lightweight=False, path=PATH)
        run("xl", "restore", str(PATH))


def test_saved_by_xl_restored_by_us(subject: Guest) -> None:
    with going_on(subject):
        run("xl", "save", "hvm1", str(PATH))
        xenpm.restore(PATH)


def test_guest_whose_save_was_given_up_runs_on(subject: Guest) -> None:
    """Its device model, too: it answers when it is saved afterwards."""
    with subject.unharmed(), pytest.raises(xenpm.SaveError, match="its time is over"):
        subject.domain.suspend(lightweight=False, path=PATH, timeout=1)
    assert not PATH.exists()
    with going_on(subject):
        subject.domain.suspend(lightweight=False, path=PATH)
        xenpm.restore(PATH)


@pytest.mark.parametrize("stage", ["in write", "after write", "before destroy"])
def test_worker_killed_while_saving(
    subject: Guest, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the guest and its model run on, or the file is complete."""
    with going_on(subject):
        killed.while_saving(subject, PATH, stage, monkeypatch)


@pytest.mark.parametrize("stage", ["in finish", "after finish"])
def test_worker_killed_while_restoring(
    subject: Guest, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with going_on(subject):
        killed.while_restoring(subject, PATH, stage, monkeypatch)
