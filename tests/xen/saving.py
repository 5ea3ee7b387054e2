"""What the tests of saved guests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xenpm
from xenpm import heavy

from .guest import Guest

NAMES = ["save-pv", "save-pvh"]  # of the scene "save"
GuestOf = Callable[[str], Guest]


@contextmanager
def fresh_path() -> Iterator[Path]:
    """A path for a file; nothing else may be left beside it."""
    directory = Path("/root/saved")
    directory.mkdir(exist_ok=True)
    path = directory / "guest.save"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)
    assert list(directory.iterdir()) == []


def save(subject: Guest, path: Path, progress: heavy.Progress = None) -> xenpm.Saving:
    """Suspend it the heavy way."""
    return subject.domain.suspend(lightweight=False, path=path, progress=progress)


@contextmanager
def going_on(subject: Guest) -> Iterator[None]:
    """Within it is saved and restored; it must be the same guest afterwards, and its disk, too."""
    boot, count = subject.boot, subject.count
    verified = int(subject.report("io")["verified"])
    yield
    assert subject.state == "running"
    subject.wait("data/counter", bool, "it does not come back")  # it makes its nodes anew
    subject.wait_counting(max(count, subject.count))
    report = subject.wait_working("io", "verified", 3)
    assert report["errors"] == "0"
    assert int(report["verified"]) > verified
    assert subject.boot == boot


def none_of(name: str) -> bool:
    """Whether there is no domain of that name."""
    with xenpm.Host() as host:
        return name not in [domain.name for domain in host.domains()]
