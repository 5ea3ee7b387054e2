"""What people see: on a real pseudo-terminal with rich and without, and in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")

SCRIPT = """
import sys
import xenpm
from xenpm import cli
from xenpm.testing import FakeXen

if {without_rich}:
    sys.modules["rich"] = None  # as where it is not installed
xen = FakeXen()
xen.add_guest("web").suspend()
xen.add_guest("[bold]db\\x1b[2J")
xen.add_guest("deaf", acknowledge_ns=None)
cli.Host = lambda: xenpm.Host(ports=xen.ports())
xenpm.host.read_settings = xenpm.Settings
xenpm.host.find_hooks = list
sys.exit(cli.main({arguments!r}))
"""
ROOT = Path(__file__).resolve().parents[2]
COLOUR = re.compile(r"\x1b\[[0-9;]*[0-9]m")
ESCAPE = "\x1b"


def on_terminal(*arguments: str, without_rich: bool = False, **environment: str) -> str:
    """What a terminal gets of one command: both streams together."""
    ours, its = pty.openpty()
    program = SCRIPT.format(arguments=arguments, without_rich=without_rich)
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    inherited.update({"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"})
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=its, stderr=its, env={**inherited, **environment}
    ):
        os.close(its)
        text = all_of(ours)
    assert "Traceback" not in text, text
    return text.replace("\r\n", "\n")


def all_of(terminal: int) -> str:
    """What is written to a terminal, until nobody has it open any more."""
    text = b""
    while True:
        try:
            text += os.read(terminal, 65536)
        except OSError:  # Linux's EIO: nobody writes any more
            os.close(terminal)
            return text.decode()


def in_pipe(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(arguments=arguments, without_rich=False)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"},
    ).stdout


def test_a_table_in_colours() -> None:
    text = on_terminal("list")
    assert "\x1b[36msuspended" in text
    assert "\x1b[32mrunning" in text
    assert "─" in text
    assert "[bold]db\\x1b[2J" in text, "a name is neither markup nor a terminal's command"


def test_plain_without_rich() -> None:
    text = on_terminal("list", without_rich=True)
    assert ESCAPE not in text
    assert text.splitlines()[:2] == [
        "DOMID  NAME             TYPE  VCPUS   MEMORY  STATE",
        "    1  web              pvh       1  256 MiB  suspended",
    ]
    assert text == in_pipe("list")


def test_plain_in_a_pipe() -> None:
    assert ESCAPE not in in_pipe("list")


def test_plain_on_a_dumb_terminal() -> None:
    assert on_terminal("list", TERM="dumb") == in_pipe("list")


def test_no_colours_when_not_wanted() -> None:
    text = on_terminal("list", NO_COLOR="1")
    assert "suspended" in text
    assert not re.search(r"\x1b\[(?:\d+;)*3\d", text)


@pytest.mark.parametrize("without_rich", [True, False])
def test_json_is_untouched(without_rich: bool) -> None:
    assert on_terminal("list", "--json", without_rich=without_rich) == in_pipe("list", "--json")


def test_the_plan_and_the_story() -> None:
    text = on_terminal("host", "plan")
    assert "\x1b[36msuspend" in text
    text = on_terminal("host", "suspend")
    assert "host suspend" in text, "what the spinner stands beside"
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"\d\.\d{3}  all guests are down, the machine goes to sleep \(mem\)\n", plain)
    assert "the machine slept for 60.0 s" in plain
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"


def test_failures_are_red() -> None:
    text = on_terminal("suspend", "-L", "deaf", "--timeout", "1")
    assert "\x1b[31mxenpm: deaf (domain 3): did not take" in text


def test_progress_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar by itself; what feeds it is libxl's."""
    from xenpm import terminal

    ours, its = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(its, "w") as stream, terminal.on(stream).meter("saving web") as show:
        assert show is not None
        show(512 << 20, 1 << 30)
    text = all_of(ours)
    assert "saving web" in text
    assert "0.5/1.0 GiB" in text
    with open(os.devnull, "w") as nowhere, terminal.on(nowhere).meter("saving web") as show:
        assert show is None
