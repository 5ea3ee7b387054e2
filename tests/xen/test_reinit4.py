"""A PVH guest with four virtual CPUs that is started over: each has an area of its own with Xen."""

from __future__ import annotations

import pytest

from .test_reinit import (  # noqa: F401
    over,
    test_cycles_at_random,
    test_default_is_cooperative,
    test_starts_over,
)

pytestmark = pytest.mark.soak
SCENE = "reinit4"
VCPUS = 4
