"""One suite for the blocking API and the one for asyncio, on the fake host and on real Xen."""

import pytest

pytest.register_assert_rewrite("tests.conformance.suite")

from .api import Api  # noqa: E402
from .suite import Conformance, World  # noqa: E402  (its assertions are rewritten from here on)

__all__ = ["Api", "Conformance", "World"]
