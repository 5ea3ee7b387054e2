"""The table of what was seen in the lab, from logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import seen
from tests.lab.cache import LabError

OLD = """\
[bookworm/trio] tests/xen/test_cli.py::test_list_says_what_xl_says PASSED                [ 50%]
[bookworm/trio] tests/xen/test_cli.py::test_suspend_and_resume_several[old name] FAILED     [100%]
[trixie/trio] tests/xen/test_cli.py::test_list_says_what_xl_says[x y] PASSED
[trixie/trio] tests/xen/test_cli.py::test_list_says_what_xl_says[z] FAILED
[bookworm/trio] tests/xen/test_cli.py::test_that_is_no_more PASSED
[bookworm/trio] tests/xen/test_that_is_no_more.py::test_c PASSED
what else is in a log
"""
NEW = "[bookworm/trio] tests/xen/test_cli.py::test_suspend_and_resume_several[x y] PASSED  [9%]\n"


def test_the_last_run_counts(tmp_path: Path) -> None:
    old, new = tmp_path / "z.log", tmp_path / "a.log"
    old.write_text(OLD)
    new.write_text(NEW)
    os.utime(old, (1, 1))
    seen.write_table([new, old], tmp_path / "seen.csv")
    head, row = (tmp_path / "seen.csv").read_text().splitlines()
    assert head == "What,Tests,Xen 4.14,Xen 4.17,Xen 4.20"
    assert row.endswith('``test_cli.py``,not run,2 passed,"0 passed, 1 failed"')


def test_what_no_log_tells_stays(tmp_path: Path) -> None:
    """But for modules that are no more; a run of some tests does not hide the others."""
    table, log = tmp_path / "seen.csv", tmp_path / "log"
    table.write_text(
        "What,Tests,Xen 4.14,Xen 4.17,Xen 4.20\n"
        'a,``test_cli.py``,3 passed,"1 passed, 1 failed",not run\n'
        "b,``test_that_is_no_more.py``,1 passed,1 passed,1 passed\n"
        "c,``test_cycle.py``,4 passed,not run,5 passed\n"
    )
    log.write_text(
        "[bullseye/trio] tests/xen/test_cli.py::test_list_says_what_xl_says PASSED\n"
        "[bookworm/trio] tests/xen/test_cli.py::test_list_says_what_xl_says PASSED\n"
        "[trixie/trio] tests/xen/test_cli.py::test_list_says_what_xl_says FAILED\n" + NEW
    )
    seen.write_table([log], table)
    _, cli, cycle = table.read_text().splitlines()
    assert cli.endswith('``test_cli.py``,3 passed,2 passed,"0 passed, 1 failed"')
    assert cycle.endswith("``test_cycle.py``,4 passed,not run,5 passed")


def test_logs_without_results(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("nothing\n")
    with pytest.raises(LabError, match="no log has a result"):
        seen.write_table([tmp_path / "log"], tmp_path / "seen.csv")
    assert not (tmp_path / "seen.csv").exists()
