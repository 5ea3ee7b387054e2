"""A whole host sleeps with its guests, on real Xen with real S3; needs what `make test` needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import carry
from tests.lab.__main__ import IN_DOM0
from tests.lab.machine import Machine

RELEASE = "bookworm"
DEAF = "--rule deaf=timeout=5"  # it would have 30 seconds
XENPM = f"{IN_DOM0} && python -m xenpm"


@pytest.fixture(scope="module")
def night() -> Iterator[Machine]:
    """The host with all its guests, one of which is paused."""
    with carry.host(RELEASE, "night") as host:
        host.ssh("xl pause idle")
        yield host


def marked(host: Machine) -> None:
    host.ssh(f"{IN_DOM0} && python -m tests.xen.night mark")


def all_goes_on(host: Machine) -> None:
    done = host.ssh(f"{IN_DOM0} && python -m tests.xen.night check", timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def report_of(output: str) -> dict[str, Any]:
    """The JSON in what a command has written; what is not indented before it is progress."""
    return dict(json.loads(output[output.index("\n{\n") if output[0] != "{" else 0 :]))


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {each["domain"]["name"]: each["outcome"] for each in report["domains"]}


ALL_WELL = {
    "net": "running", "web": "running", "db": "running", "mail": "running", "idle": "left",
    "deaf": "running",
}  # fmt: skip


def test_plan(night: Machine) -> None:
    plan = json.loads(night.ssh(f"{XENPM} host plan --json").stdout)
    names = [[ref["name"] for ref in step] for step in plan["steps"]]
    assert names == [["web", "db", "mail", "deaf"], ["net"]]
    reasons = {each["domain"]["name"]: each["reason"] for each in plan["entries"]}
    assert "owns 0000:00:10.0" in reasons["net"]
    assert reasons["idle"] == "is paused already"


def test_ten_sleeps_in_a_row(night: Machine) -> None:
    for number in range(10):
        marked(night)
        status, output = night.through_sleep(f"{XENPM} host suspend --json {DEAF}")
        report = report_of(output)
        assert outcomes(report) == ALL_WELL, (number, output)
        assert [each for each in report["problems"] if not each.startswith("deaf")] == []
        assert report["sleep"]["slept_ns"] > 4e9
        assert status == 1, "that one was paused instead is to be told"
        all_goes_on(night)
