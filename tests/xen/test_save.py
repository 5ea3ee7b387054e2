"""Guests with checked disk I/O, saved to files and restored: by us and by xl."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import xenpm
from xenpm import savefile

from .guest import Guest, run
from .saving import NAMES, GuestOf, fresh_path, going_on, none_of, save

SCENE = "save"
pytestmark = pytest.mark.soak  # not seen to pass for a PVH guest on a busy machine


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest, guest: GuestOf) -> Guest:
    return guest(request.param)


@pytest.fixture
def path() -> Iterator[Path]:
    with fresh_path() as path:
        yield path


def test_saved_and_restored(subject: Guest, path: Path) -> None:
    far: list[tuple[int, int]] = []
    with going_on(subject):
        domid = subject.domain.domid
        saving = save(subject, path, lambda done, total: far.append((done, total)))
        assert none_of(subject.name)
        assert path.stat().st_size == saving.size_bytes
        assert path.stat().st_mode & 0o777 == 0o600
        restored = xenpm.restore(path)
        assert (restored.name, restored.domid != domid) == (subject.name, True)
    assert far == sorted(far)
    assert far[-1][0] == saving.size_bytes <= far[-1][1]


def test_saved_by_us_restored_by_xl(subject: Guest, path: Path) -> None:
    with going_on(subject):
        save(subject, path)
        run("xl", "restore", str(path))


def test_saved_by_xl_restored_by_us(subject: Guest, path: Path) -> None:
    with going_on(subject):
        run("xl", "save", subject.name, str(path))
        xenpm.restore(path)


def test_restored_guest_suspends_lightly(subject: Guest, path: Path) -> None:
    with going_on(subject):
        save(subject, path)
        domain = xenpm.restore(path)
        domain.suspend()
        domain.resume()


def test_domain_that_is_there_is_not_made_twice(subject: Guest, path: Path) -> None:
    with going_on(subject):
        save(subject, path)
        xenpm.restore(path)
        with pytest.raises(xenpm.RestoreError, match="is there already"):
            xenpm.restore(path)


def test_file_that_is_there_is_not_written_over(subject: Guest, path: Path) -> None:
    path.write_text("precious")
    with subject.unharmed(), pytest.raises(xenpm.SaveError, match="is there already"):
        save(subject, path)
    assert path.read_text() == "precious"


def test_cut_off_files_are_refused(guest: GuestOf, path: Path) -> None:
    subject = guest("save-pvh")
    places = random.Random(1)  # noqa: S311
    with going_on(subject):
        size = save(subject, path).size_bytes
        with savefile.open_checked(path) as file:
            begin = savefile.read(file, path).stream_offset
        cut = path.with_name("cut")
        shutil.copyfile(path, cut)
        # many of them in the headers, which are short
        lengths = {0, size - 1, *(places.randrange(begin + 64) for _ in range(16))}
        while len(lengths) < 50:
            lengths.add(places.randrange(size))
        for length in sorted(lengths, reverse=True):
            os.truncate(cut, length)
            with pytest.raises(xenpm.SaveFileError, match=r"is cut off|is empty"):
                xenpm.restore(cut)
            assert none_of(subject.name)
        cut.unlink()
        xenpm.restore(path)


def test_policy_of_a_host_suspend(host: xenpm.Host, guest: GuestOf) -> None:
    """Both at once, each by a worker of its own."""
    rules = {host.domain(name): xenpm.Rule(xenpm.Policy.SAVE) for name in NAMES}
    directory = xenpm.Settings().save_directory
    with going_on(guest("save-pv")), going_on(guest("save-pvh")):
        report = host.suspend_domains(rules=rules)
        assert report.problems == []
        assert host.domains() == []
        assert len(list(directory.iterdir())) == 2
        back = host.resume_domains()
        assert back is not None
        assert back.problems == []
        assert sorted(str(each.restored and each.restored.name) for each in back.domains.values())
        assert list(directory.iterdir()) == []
