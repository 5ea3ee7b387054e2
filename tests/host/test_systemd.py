"""The unit of systemd, on a real host that really sleeps; needs what `make test` installs.

The verbs that the unit runs are played by a script: this is about what systemd does with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.lab import carry
from tests.lab.machine import Machine, QemuError

pytestmark = pytest.mark.soak  # six sleeps of the machine

SCRIPT = """#!/bin/sh
echo "$4" >> /root/called
[ "$4" != suspend-domains ] || exec /root/before-the-sleep
"""
INSTALL = """/opt/xenpm/bin/python -c "
from xenpm import systemd; systemd.install(python='/root/python')
" """


@pytest.fixture(scope="module")
def host() -> Iterator[Machine]:
    with carry.host("bookworm", "empty") as host:
        host.ssh("cat > /root/python && chmod +x /root/python", input_=SCRIPT.encode())
        host.ssh(INSTALL)
        yield host


def before_the_sleep(host: Machine, command: str) -> None:
    """What the call before the sleep does; forgets the calls that were made."""
    text = f"#!/bin/sh\n{command}\n"
    host.ssh(
        "cat > /root/before-the-sleep && chmod +x /root/before-the-sleep", input_=text.encode()
    )
    host.ssh("rm -f /root/called")


def called(host: Machine) -> list[str]:
    return host.ssh("cat /root/called 2>/dev/null", check=False).stdout.split()


def wait_calls(host: Machine, count: int) -> list[str]:
    host.ssh(
        f"timeout 100 sh -c 'until [ $(wc -l < /root/called) -ge {count} ]; do sleep 0.2; done'",
        timeout=120,
    )
    return called(host)


def sleep_and_wake(host: Machine) -> None:
    host.sleep_quirk()
    host.qmp.forget_events()
    host.ssh("systemctl suspend --no-block")
    host.wake_after(0)


def test_the_guests_are_called_around_the_sleep(host: Machine) -> None:
    before_the_sleep(host, "exit 0")
    for _ in range(2):
        host.ssh("rm -f /root/called")
        sleep_and_wake(host)
        assert wait_calls(host, 2) == ["suspend-domains", "resume-domains"]


@pytest.mark.parametrize("how", ["exit 1", "kill -9 $$"])
def test_a_failure_keeps_the_machine_awake(host: Machine, how: str) -> None:
    before_the_sleep(host, how)
    host.sleep_quirk()
    host.qmp.forget_events()
    done = host.ssh("systemctl suspend", check=False, timeout=100)
    assert wait_calls(host, 2) == ["suspend-domains", "resume-domains"]
    with contextlib.suppress(QemuError):
        host.qmp.wait_event("SUSPEND", 3)
        pytest.fail("the machine sleeps though the guests could not be suspended")
    state = host.ssh("systemctl is-active sleep.target suspend.target", check=False).stdout
    assert "active" not in state.split(), (done.stdout, done.stderr)


def test_a_call_that_hangs_is_ended(host: Machine) -> None:
    drop_in = "/run/systemd/system/xenpm-sleep.service.d"
    host.ssh(
        f"mkdir -p {drop_in} && printf '[Service]\\nTimeoutStartSec=3\\nTimeoutStopSec=3\\n'"
        f" > {drop_in}/t.conf && systemctl daemon-reload"
    )
    before_the_sleep(host, "sleep 1000")
    host.qmp.forget_events()
    host.ssh("systemctl suspend", check=False, timeout=100)
    assert wait_calls(host, 2) == ["suspend-domains", "resume-domains"]
    host.ssh(f"rm -r {drop_in} && systemctl daemon-reload")


def test_removed(host: Machine) -> None:
    before_the_sleep(host, "exit 1")
    host.ssh("/opt/xenpm/bin/python -m xenpm host install-systemd --remove")
    sleep_and_wake(host)
    assert called(host) == []
