"""A whole host sleeps with its guests, on real Xen with real S3; needs what `make test` needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.__main__ import IN_DOM0
from tests.lab.machine import Machine

from .stage import Stage, on_stage, stage

DEAF = "--rule deaf=timeout=5"  # it would have 30 seconds
XENPM = f"{IN_DOM0} && python -m xenpm"


@pytest.fixture(
    scope="module",
    params=["bookworm", *(pytest.param(r, marks=pytest.mark.soak) for r in ("trixie", "bullseye"))],
)
def night(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The host with all its guests, one of which is paused."""
    with stage(request.param, "night", "xl pause idle") as it:
        yield it


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


@on_stage
def test_plan(night: Machine) -> None:
    plan = json.loads(night.ssh(f"{XENPM} host plan --json").stdout)
    names = [{ref["name"] for ref in step} for step in plan["steps"]]
    assert names == [{"web", "db", "mail", "deaf"}, {"net"}]
    reasons = {each["domain"]["name"]: each["reason"] for each in plan["entries"]}
    assert "owns 0000:00:10.0" in reasons["net"]
    assert reasons["idle"] == "is paused already"


@pytest.mark.parametrize("sleeps", [1, pytest.param(10, marks=pytest.mark.soak)])
@on_stage
def test_sleeps_in_a_row(sleeps: int, night: Machine) -> None:
    for number in range(sleeps):
        marked(night)
        status, output = night.through_sleep(f"{XENPM} host suspend --json {DEAF}")
        report = report_of(output)
        assert outcomes(report) == ALL_WELL, (number, output)
        # Linux's e1000e at times comes back with MSI: xenpm is right to say so
        known = ("deaf", "lost MSI-X")
        assert [p for p in report["problems"] if not any(word in p for word in known)] == []
        assert report["sleep"]["slept_ns"] > 4e9
        assert status == 1, output  # that one was paused instead is to be told
        all_goes_on(night)


# What stands in for one of the library's parts, in a process of its own: {patch} sees `self`.
PATCHED = """
import os, signal, subprocess, sys
from xenpm import cli
from xenpm.power import SystemPower
sleep = SystemPower.sleep
def patched(self, state):
    {patch}
SystemPower.sleep = patched
sys.exit(cli.main({arguments!r}))
"""


def patched(host: Machine, patch: str, *arguments: str) -> str:
    """The command that runs xenpm so; {patch} is the body of its sleep."""
    text = PATCHED.format(patch=patch.replace("\n", "\n    "), arguments=list(arguments))
    host.ssh("cat > /root/patched.py", input_=text.encode())
    return f"{IN_DOM0} && python /root/patched.py"


@pytest.mark.soak
@on_stage
def test_sleep_that_returns_at_once_is_an_error(night: Machine) -> None:
    """What this board does, once it has slept, without a helping hand."""
    marked(night)
    status, output = night.through_sleep(f"{XENPM} host suspend {DEAF}", seconds=None)
    assert status == 1
    assert "the host did not sleep: the write may have returned without a sleep" in output
    all_goes_on(night)


@pytest.mark.soak
@on_stage
def test_driver_domain_that_cannot_suspend_keeps_the_machine_awake(night: Machine) -> None:
    marked(night)
    status, output = night.through_sleep(
        f"{XENPM} host suspend {DEAF} --rule net=timeout=0.001", seconds=None
    )
    assert status == 1
    assert "the host did not sleep: net (domain" in output
    all_goes_on(night)


@on_stage
def test_killed_in_the_sleep_and_recovered(night: Machine) -> None:
    marked(night)
    patch = "sleep(self, state)\nos.kill(os.getpid(), signal.SIGKILL)"
    command = patched(night, patch, "host", "suspend", *DEAF.split())
    status, _ = night.through_sleep(command)
    assert status == 128 + 9
    asleep = json.loads(night.ssh(f"{XENPM} list --json").stdout)
    assert {each["name"]: each["state"] for each in asleep} == {
        "net": "suspended", "web": "suspended", "db": "suspended", "mail": "suspended",
        "idle": "paused", "deaf": "paused",
    }  # fmt: skip
    report = json.loads(night.ssh(f"{XENPM} host recover --json", timeout=120).stdout)
    assert outcomes(report) == ALL_WELL
    assert report["problems"] == []
    all_goes_on(night)


ON_ASYNCIO = """
import asyncio, json
from xenpm import Rule, aio
async def main():
    async with aio.Host() as host:
        rules = {await host.domain("deaf"): Rule(timeout=5)}
        print(json.dumps((await host.suspend(rules=rules)).to_dict()))
asyncio.run(main())
"""


@pytest.mark.soak
@on_stage
def test_on_asyncio(night: Machine) -> None:
    marked(night)
    night.ssh("cat > /root/on_asyncio.py", input_=ON_ASYNCIO.encode())
    status, output = night.through_sleep(f"{IN_DOM0} && python /root/on_asyncio.py")
    assert status == 0, output
    report = json.loads(output.splitlines()[-1])  # before it: warnings of the loggers
    assert outcomes(report) == ALL_WELL
    assert report["sleep"]["slept_ns"] > 4e9
    all_goes_on(night)


@pytest.mark.soak
@on_stage
def test_systemctl_suspend(night: Machine) -> None:
    night.ssh(f"{XENPM} host install-systemd")
    night.ssh("printf '[domain deaf]\\npolicy = pause\\n' > /etc/xen/xenpm.conf")
    marked(night)
    night.through_sleep("systemctl suspend")
    unit = "xenpm-sleep.service"
    night.ssh(
        f"timeout 120 sh -c 'until [ $(systemctl is-active {unit}) = inactive ]; do sleep 1; done'",
        timeout=150,
    )
    journal = night.ssh(f"journalctl --no-pager -u {unit}").stdout
    assert "net (domain" in journal
    assert "resumed in" in journal
    all_goes_on(night)
    night.ssh(f"{XENPM} host install-systemd --remove && rm /etc/xen/xenpm.conf")


@pytest.mark.soak
@on_stage
def test_guest_that_dies_in_the_sleep(night: Machine) -> None:
    """The last test, for that guest is gone then."""
    patch = "subprocess.run(['xl', 'destroy', 'db'], check=True)\nreturn sleep(self, state)"
    command = patched(night, patch, "host", "suspend", "--json", *DEAF.split())
    status, output = night.through_sleep(command)
    assert status == 1
    report = report_of(output)
    assert outcomes(report) == {**ALL_WELL, "db": "gone"}
    assert any("db (domain" in each and "is gone" in each for each in report["problems"])
