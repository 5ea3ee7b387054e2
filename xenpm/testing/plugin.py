"""The fixture for pytest, which finds it by the entry point ``pytest11``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .host import FakeXen


@pytest.fixture
def xen_host() -> Iterator[FakeXen]:
    """A fake Xen host on which this test's `xenpm.Domain` and `xenpm.Host` stand.

    At its end the test fails if one of the guests was harmed: see `FakeXen.check`.
    """
    xen = FakeXen()
    with xen.installed():
        yield xen
    xen.check()
