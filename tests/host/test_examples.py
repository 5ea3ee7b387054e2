"""The programs of docs/examples that put the machine to sleep, on real Xen with real S3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.__main__ import IN_DOM0
from tests.lab.machine import Machine

from .stage import Stage, on_stage, stage

pytestmark = pytest.mark.soak  # the clock's alarm is minutes away

EXAMPLE = f"{IN_DOM0} && python docs/examples"
RUNNING = ["running"] * 3


@pytest.fixture(scope="module")
def night() -> Iterator[Stage]:
    with stage("bookworm", "trio", "true") as it:
        yield it


def states(host: Machine) -> list[str]:
    listed = host.ssh(f"{IN_DOM0} && python -m xenpm list").stdout.splitlines()
    return [line.split()[-1] for line in listed if " Domain-0 " not in line][1:]


@on_stage
def test_people_are_told_of_the_sleep(night: Machine) -> None:
    night.ssh("printf '#!/bin/sh\\necho \"$1\" >> /root/told\\n' > /root/tell; chmod +x /root/tell")
    status, output = night.through_sleep(f"{EXAMPLE}/notify.py /root/tell")
    assert status == 0, output
    told = night.ssh("cat /root/told").stdout.splitlines()
    assert told == ["This host goes to sleep (mem) now.", "This host is back: ok"]
    assert states(night) == RUNNING


@on_stage
def test_clock_wakes_the_machine(night: Machine) -> None:
    night.sleep_quirk()
    night.qmp.forget_events()
    soon = '"$(date -d "2 minutes" +%H:%M)"'  # at least a minute from now
    night.ssh(
        f"{{ {EXAMPLE}/night.py {soon}; echo ended with $?; }} > /root/night 2>&1 </dev/null &"
    )
    night.qmp.wait_event("SUSPEND", 120)
    night.qmp.wait_event("WAKEUP", 180)  # nobody but its own clock tells it
    night.disconnect()
    night.connect()
    night.ssh("timeout 60 sh -c 'until grep -q ended /root/night; do sleep 0.2; done'", timeout=90)
    said = night.ssh("cat /root/night").stdout
    assert said.endswith("ended with 0\n"), said
    assert night.ssh("cat /sys/class/rtc/rtc0/wakealarm").stdout == ""
    assert states(night) == RUNNING
