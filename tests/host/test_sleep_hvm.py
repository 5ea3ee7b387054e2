"""A host sleeps with an HVM guest and its device model, on real Xen with real S3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.machine import Machine

from .stage import Stage, on_stage, stage
from .test_sleep import XENPM, all_goes_on, marked, outcomes, report_of

pytestmark = pytest.mark.soak  # an HVM guest takes minutes here


@pytest.fixture(scope="module", params=["bookworm", "trixie", "bullseye"])
def night(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param, "hvm", "true") as it:
        yield it


@on_stage
def test_sleep(night: Machine) -> None:
    for _ in range(2):
        marked(night)
        status, output = night.through_sleep(f"{XENPM} host suspend --json")
        report = report_of(output)
        assert (status, report["problems"]) == (0, []), output
        assert outcomes(report) == {"hvm1": "running"}
        all_goes_on(night)
