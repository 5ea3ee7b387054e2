"""Tests that need no Xen."""

import pytest

pytest.register_assert_rewrite("tests.unit.checks")
