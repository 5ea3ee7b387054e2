"""A PVH guest in the middle of checked disk I/O.

A soak, for under this load QEMU's emulation of a virtualised processor loses the guest at times,
with xenpm or without it; such a test is reported as skipped.
"""

from __future__ import annotations

import pytest

from .test_load import GuestOf, work_through

SCENE = "load-pvh"
pytestmark = pytest.mark.soak


@pytest.mark.parametrize("cycles", [50, 500])
def test_disk_io_survives(cycles: int, guest: GuestOf) -> None:
    work_through(guest("io-pvh"), "io", "verified", cycles)
