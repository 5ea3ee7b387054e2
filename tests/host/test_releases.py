"""Files of saved guests, from one release of Xen to another, as when a host is upgraded."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import carry
from tests.lab.__main__ import IN_DOM0
from tests.lab.cache import say
from tests.lab.machine import Machine

pytestmark = pytest.mark.soak
MOVED = f"{IN_DOM0} && python -m tests.xen.moved"
GUESTS = ["pv1", "pvh2"]  # of the scene "trio"
FILE = "/root/moved.save"
Saved = dict[str, tuple[Path, dict[str, str]]]
"""by the guest's name: its file, packed, and what it was"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """A function that saves both guests on a release, once."""

    @functools.lru_cache
    def on(release: str) -> Saved:
        found = {}
        with carry.host(release, "trio") as machine:
            for name in GUESTS:
                was = json.loads(machine.ssh(f"{MOVED} save {name} {FILE}").stdout)
                machine.ssh(f"zstd -q -f {FILE} -o {FILE}.zst && rm {FILE}")
                packed = tmp_path_factory.mktemp(release) / name
                machine.get(f"{FILE}.zst", packed)
                found[name] = packed, was
        return found

    return on


def restored(machine: Machine, name: str, packed: Path, was: dict[str, str]) -> tuple[int, str]:
    """Restore one there; status and errors of that."""
    machine.put(packed, f"{FILE}.zst")
    machine.ssh(f"zstd -q -d -f {FILE}.zst -o {FILE}")
    words = shlex.join([name, FILE, json.dumps(was)])
    done = machine.ssh(f"{MOVED} restore {words}", timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("older", "newer"), [("bullseye", "bookworm"), ("bookworm", "trixie"), ("bullseye", "trixie")]
)
def test_upgrade(saved: Callable[[str], Saved], older: str, newer: str) -> None:
    files = saved(older)
    with carry.host(newer, "trio") as machine:
        for name in GUESTS:
            status, errors = restored(machine, name, *files[name])
            assert status == 0, f"{name}: {errors}"


def test_downgrade(saved: Callable[[str], Saved]) -> None:
    """Xen does not promise that: it works, or an error says so and nothing is left."""
    files = saved("trixie")
    with carry.host("bookworm", "trio") as machine:
        for name in GUESTS:
            status, errors = restored(machine, name, *files[name])
            say(f"{name}, from 4.20 to 4.17: {errors if status else 'goes on'}")
            if status:
                assert "was not restored" in errors, errors
                left = json.loads(machine.ssh(f"{IN_DOM0} && python -m xenpm list --json").stdout)
                assert name not in [each["name"] for each in left]
