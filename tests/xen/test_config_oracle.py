"""Configurations for xl: xl itself as the oracle."""

from __future__ import annotations

import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Optional

import pytest

from tests.unit.mutations import CORPUS, mutated
from xenpm import ConfigError, config

SCENE = "empty"
pytestmark = pytest.mark.soak  # xl is asked hundreds of times
FILES = sorted(CORPUS.glob("*.cfg"))


def by_xl(path: Path) -> config.DomainConfig | None:
    """What xl makes of a file; None when it refuses it."""
    done = subprocess.run(
        ["xl", "-N", "create", "-q", "-f", path], capture_output=True, timeout=60, check=False
    )
    if done.returncode != 0:
        return None
    return config.from_json(done.stdout.decode("utf-8", "surrogateescape"))


def by_us(path: Path, like: config.DomainConfig | None) -> config.DomainConfig | None:
    """What xenpm makes of it; where it has no UUID, with the one that xl has made up."""
    try:
        ours = config.read(path)
    except ConfigError:
        return None
    return replace(ours, uuid=like.uuid) if like and ours.uuid is None else ours


Reading = Optional[config.DomainConfig]


def readings(paths: list[Path]) -> dict[str, tuple[Reading, Reading]]:
    """What xl and xenpm make of each file."""
    found = {}
    for path in paths:
        theirs = by_xl(path)
        found[path.name] = theirs, by_us(path, theirs)
    return found


def differences(found: dict[str, tuple[Reading, Reading]]) -> dict[str, tuple[Reading, Reading]]:
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def by_class() -> dict[str, list[Path]]:
    """The corpus in pieces, by the first word of the names."""
    pieces: dict[str, list[Path]] = {}
    for path in FILES:
        word = path.stem.partition("-")[0]
        if word != "undefined":
            pieces.setdefault(word if word in ("disk", "pci", "syntax", "vif") else "others", [])
            pieces[word if word in pieces else "others"].append(path)
    return pieces


@pytest.mark.parametrize("piece", by_class())
def test_corpus_as_xl_reads_it(piece: str) -> None:
    found = readings(by_class()[piece])
    accepted = [theirs for theirs, _ in found.values() if theirs]
    assert 3 <= len(accepted) <= len(found) - 3, "the oracle does not work"
    assert differences(found) == {}


def test_files_that_xl_crashes_on_are_refused() -> None:
    for path in FILES:
        if path.name.startswith("undefined-"):
            with pytest.raises(ConfigError, match="is not a PCI device"):
                config.read(path)


def test_mutated_corpus_as_xl_reads_it(tmp_path: Path) -> None:
    mutations = mutated(random.Random(1))  # noqa: S311
    paths = []
    for number in range(2000):
        path = tmp_path / f"{number}.cfg"
        path.write_bytes(next(mutations))
        paths.append(path)
    # what is undefined in libxlutil has no right answer
    paths = [path for path in paths if not re.search(rb"bdf=|rdm", path.read_bytes())]
    assert differences(readings(paths)) == {}


def test_default_backend_of_xl_conf(tmp_path: Path) -> None:
    settings = Path("/etc/xen/xl.conf")
    before = settings.read_bytes()
    guest = tmp_path / "guest.cfg"
    guest.write_text('name = "g"\nkernel = "/k"\nvif = ["", "backend=other"]\n')
    try:
        settings.write_bytes(before + b'\nvif.default.backend = "net"\n')
        assert differences(readings([guest, CORPUS / "vif-plain.cfg"])) == {}
        assert [each.domain for each in config.read(guest).backends] == ["net", "other"]
    finally:
        settings.write_bytes(before)


def test_etc_xen() -> None:
    """What Debian puts there is read without complaint."""
    found = config.read_directory("/etc/xen")
    assert found.errors == []
    assert {"/etc/xen/xlexample.hvm", "/etc/xen/xlexample.pvlinux"} <= set(found.results)
