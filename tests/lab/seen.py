"""A table for the manual, made of the logs of test runs: which test passed on which Xen."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from . import carry
from .cache import LabError

TABLE = carry.ROOT / "docs" / "seen.csv"
SUITE = carry.ROOT / "tests" / "conformance" / "suite.py"
NOT_RUN = "not run"
RELEASES = {"bullseye": "Xen 4.14", "bookworm": "Xen 4.17", "trixie": "Xen 4.20"}

# pytest -v behind the prefix of runner.py
_LINE = re.compile(
    r"^\[(\w+)/[\w-]+\] (tests/xen/\w+\.py)::(?:\w+::)*(\w+).*? (PASSED|FAILED|ERROR)\b"
)


def results(logs: Iterable[Path]) -> dict[tuple[str, str], dict[str, bool]]:
    """By module and release: whether each test has passed, in all its cases, in its last log.

    Tests that are no more are left out; their cases may be called otherwise than they were.
    """
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for log in sorted(logs, key=lambda path: path.stat().st_mtime):
        here: dict[tuple[str, str], dict[str, bool]] = {}
        for line in log.read_text(errors="replace").splitlines():
            match = _LINE.match(line)
            if match and match[1] in RELEASES and match[3] in _tests(match[2]):
                tests = here.setdefault((match[2], match[1]), {})
                tests[match[3]] = tests.get(match[3], True) and match[4] == "PASSED"
        for key, tests in here.items():
            found.setdefault(key, {}).update(tests)
    return found


@lru_cache
def _tests(module: str) -> frozenset[str]:
    """The names of the tests that a module has now, imported ones and the suite's included."""
    path = carry.ROOT / module
    sources = [path, SUITE] if path.exists() else []
    return frozenset(
        node.name
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.alias)) and node.name.startswith("test_")
    )


def write_table(logs: Iterable[Path], table: Path = TABLE) -> None:
    """Bring the table up to date; what the logs do not tell stays as it is.

    A run of fewer tests of a module than stand in the table says nothing of the others, and changes
    nothing unless one has failed.

    Raises:
        LabError: no log has a result.
    """
    found = results(logs)
    if not found:
        raise LabError("no log has a result of a test in dom0: keep what `make test-all` prints")
    before = _read(table)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["What", "Tests", *RELEASES.values()])
        for module in sorted({module for module, _ in found} | set(before)):
            cells = [
                _cell(found.get((module, release), {}), before.get(module, {}).get(name, NOT_RUN))
                for release, name in RELEASES.items()
            ]
            writer.writerow([_subject(module), f"``{Path(module).name}``", *cells])


def _read(table: Path) -> dict[str, dict[str, str]]:
    """What the table says of the modules that there are: its rows, by module."""
    if not table.exists():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = {f"tests/xen/{row['Tests'].strip('`')}": row for row in csv.DictReader(file)}
    return {module: row for module, row in rows.items() if (carry.ROOT / module).exists()}


def _subject(module: str) -> str:
    """The first line of a module's docstring, without its full stop."""
    said = ast.get_docstring(ast.parse((carry.ROOT / module).read_text())) or module
    return said.partition("\n")[0].rstrip(".")


def _cell(passed: dict[str, bool], before: str) -> str:
    good = sum(passed.values())
    bad = len(passed) - good
    if not passed or (not bad and len(passed) < sum(map(int, re.findall(r"\d+", before)))):
        return before
    return f"{good} passed" + (f", {bad} failed" if bad else "")
