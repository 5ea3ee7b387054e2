"""The Python in the manual and the README, page by page, on the fake host.

What stands in ``docs/examples`` has tests of its own, and ``make docs`` runs the doctests.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
import shlex
import signal
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import xenpm
from xenpm import aio, cli
from xenpm.testing import MS, SECOND, FakeXen

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.rst"))]
NEEDS_XEN = [  # the beginnings of what cannot run here
    "from xenpm._ext.xenctrl import",  # the hypervisor; see tests/xen/test_bindings.py
    "web.check(config.assignable())",  # the same; see tests/xen/test_config.py
    'config.of(xenpm.Domain("web"))',
    "found = config.read_directory",  # libxlutil, and files; see test_config.py
    "from xenpm import config",
    'domain = xenpm.Domain("web1")\ndomain.suspend(lightweight=False',  # libxl; see test_heavy.py
]
_RST = re.compile(r"\.\. code-block:: (?:python|pycon)\n((?:\n|[ ]+.*\n)*)")
_COMMAND = re.compile(r"python -m xenpm ([^`\n|>&;)]+)")
_MARKDOWN = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text()
    found = (_MARKDOWN if page.endswith(".md") else _RST).findall(text)
    cleaned = (textwrap.dedent(block).strip() for block in found)
    return [each for each in cleaned if not each.startswith(tuple(NEEDS_XEN))]


@pytest.fixture
def names(xen: FakeXen, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a reader has at hand: guests that are called as in the manual, functions of his own."""
    monkeypatch.setattr("xenpm.host.read_settings", xenpm.Settings)
    monkeypatch.setattr("xenpm.host.find_hooks", list)
    pv1 = xen.add_guest("pv1")
    web1 = xen.add_guest("web1")
    net = xen.add_guest("net")
    net.give_card("0000:00:10.0")
    web1.give_device("vif", 0, server=net.domid)

    def snapshot_its_disks() -> None:
        assert pv1.suspended or web1.suspended

    before = signal.getsignal(signal.SIGTERM)
    yield {"xenpm": xenpm, "aio": aio, "snapshot_its_disks": snapshot_its_disks, "alert": print}
    signal.signal(signal.SIGTERM, before)


def run(block: str, names: dict[str, Any], xen: FakeXen) -> None:
    if block.startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block, names, "block", None, None)
        result = doctest.DocTestRunner().run(test, clear_globs=False)
        assert result.failed == 0
        names.update(test.globs)
        return
    code = compile(block, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if not code.co_flags & inspect.CO_COROUTINE:
        exec(code, names)  # noqa: S102
        return

    async def main() -> None:
        task = asyncio.ensure_future(eval(code, names))  # noqa: S307
        xen.after(500 * MS, xen.guests[1].suspend)
        xen.after(SECOND, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_of_a_page(page: str, names: dict[str, Any], xen: FakeXen) -> None:
    for block in blocks(page):
        run(block, names, xen)
    for guest in xen.guests.values():
        assert guest.running or page in ("docs/quickstart.rst", "docs/aio.rst"), guest.name


def test_the_exceptions_are_still_there() -> None:
    """A block that is run now, or is no more, must not be named as one that cannot."""
    text = "\n\n".join(
        textwrap.dedent(block).strip()
        for page in PAGES
        for block in _RST.findall((ROOT / page).read_text())
    )
    assert [each for each in NEEDS_XEN if each not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line takes them; ``python -m xenpm resume`` alone is the verb's name."""
    for said in _COMMAND.findall((ROOT / page).read_text()):
        words = shlex.split(said, comments=True)
        if len(words) > 1 or words[0] == "list":
            with suppress(SystemExit):  # of --help, too
                cli._parser().parse_args(words)
            assert not capsys.readouterr().err, said
