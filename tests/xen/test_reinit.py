"""A PVH guest that is started over: its disks, its network, its console and its xenstore go on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

import xenpm

from .guest import Guest, LogWatch

SCENE = "reinit"
VCPUS = 1
GuestOf = Callable[[str], Guest]
STEPS = ["devices", "reset", "channels", "grants", "store", "run"]


@pytest.fixture
def over(guest: GuestOf, request: pytest.FixtureRequest) -> Guest:
    """The guest of this scene."""
    subject = guest("over")
    assert subject.domain.info.vcpus_online == request.module.VCPUS
    return subject


def start_over(subject: Guest) -> xenpm.Resumption:
    subject.domain.suspend()
    resumption = subject.domain.resume(cooperative=False)
    assert not resumption.cooperative
    return resumption


def assert_all_works(subject: Guest) -> None:
    """Both disks, the network, xenstore from inside, the console both ways."""
    subject.wait_pinging()
    for report in ("io", "io-b"):
        assert subject.wait_working(report, "verified")["errors"] == "0"
    subject.command("start")  # which it has done already: only that it answers matters
    with LogWatch(subject.log) as log:
        word = f"{random.getrandbits(64):x}"
        with open(subject.read("console/tty"), "wb", buffering=0) as console:
            console.write(word.encode() + b"\n")
        log.wait(f"heard {word}")
    for device in subject.domain.backends:
        medium = subject.store.read(f"{device.backend}/params") if device.kind == "vbd" else b""
        if device.kind != "console" and medium != b"none":
            assert device.frontend_state is device.backend_state is xenpm.XenbusState.CONNECTED


@pytest.mark.core
def test_starts_over(over: Guest) -> None:
    with over.unharmed():
        assert over.domain.supports_reinit.evidence == "it is a PVH guest; devices: vbd, vif"
        assert over.domain.supports_cooperative_resume
        resumption = start_over(over)
        assert [step.name for step in resumption.steps] == STEPS
        assert resumption.reason == "asked for"
        assert over.state == "running"
        assert_all_works(over)
        assert start_over(over).domain == over.domain.ref


def test_default_is_cooperative(over: Guest) -> None:
    with over.unharmed():
        over.domain.suspend()
        assert over.domain.resume().cooperative
        assert_all_works(over)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_cycles_at_random(seed: int, over: Guest) -> None:
    """Nothing is lost, however the two ways of resuming follow each other.

    In five parts, so that a guest that the emulator loses costs one of them.
    """
    chance = random.Random(seed)  # noqa: S311
    with over.unharmed():
        for cycle in range(10):
            ways = [False] + [True] * chance.randrange(3)
            chance.shuffle(ways)
            for cooperative in ways:
                over.domain.suspend()
                resumption = over.domain.resume(cooperative=cooperative)
                assert resumption.cooperative is cooperative, f"in cycle {cycle}"
                assert resumption.problems == ()
            assert_all_works(over)


def test_nothing_is_left_behind(over: Guest) -> None:
    with over.unharmed():
        before = nodes_of(over)
        start_over(over)
        assert_all_works(over)
        assert nodes_of(over) == before


def nodes_of(subject: Guest) -> set[str]:
    """The names of all its nodes in xenstore but those that it writes itself."""

    def below(path: str) -> set[str]:
        names = {f"{path}/{name}" for name in subject.store.list(path)}
        return names.union(*map(below, names))

    ours = (f"{subject.home}/data/", f"{subject.home}/xenpm")
    return {path for path in below(subject.home) if not path.startswith(ours)}


def test_paused_before_and_after(over: Guest) -> None:
    with over.unharmed():
        over.domain.suspend()
        over.domain.pause()
        over.domain.resume(cooperative=False)
        assert over.state == "paused"
        assert not over.starting_over
        over.domain.unpause()
        assert_all_works(over)
