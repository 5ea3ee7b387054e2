"""The command line on a real host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from .guest import Guest, run

SCENE = "trio"
NAMES = ["pv1", "pv4", "pvh2"]


def _xenpm(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "xenpm", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_list_says_what_xl_says() -> None:
    code, out, _ = _xenpm("list", "--json")
    assert code == 0
    ours = {row["name"]: (row["domid"], row["vcpus"], row["type"]) for row in json.loads(out)}
    configurations = json.loads(run("xl", "list", "-l"))
    theirs = {
        entry["config"]["c_info"]["name"]: (
            entry["domid"],
            entry["config"]["b_info"]["max_vcpus"],
            entry["config"]["c_info"]["type"].lower(),
        )
        for entry in configurations
        if entry["domid"] != 0
    }
    assert ours == theirs
    _, table, _ = _xenpm("list")
    assert table.splitlines()[0].split() == ["DOMID", "NAME", "TYPE", "VCPUS", "MEMORY", "STATE"]
    assert sorted(line.split()[1] for line in table.splitlines()[1:]) == sorted(NAMES)


def test_suspend_and_resume_several(guest: Callable[[str], Guest]) -> None:
    subjects = [guest(name) for name in NAMES]
    counts = {subject.name: subject.count for subject in subjects}
    code, out, _ = _xenpm("suspend", "-L", "--json", *NAMES)
    assert code == 0
    rows = json.loads(out)
    assert [row["domain"]["name"] for row in rows] == NAMES
    assert all(row["ok"] and row["total_ns"] > 0 for row in rows)
    _, table, _ = _xenpm("list")
    assert all(line.split()[-1] == "suspended" for line in table.splitlines()[1:])
    code, out, _ = _xenpm("resume", *NAMES)
    assert code == 0
    assert out.count("resumed in") == len(NAMES)
    for subject in subjects:
        subject.wait_counting(counts[subject.name])


def test_failures_have_exit_codes_and_touch_nothing(guest: Callable[[str], Guest]) -> None:
    with guest("pv1").unharmed():
        code, out, errors = _xenpm("suspend", "-L", "pv1", "nobody")
        assert (code, out) == (4, "")
        assert "nobody" in errors
        code, _, errors = _xenpm("suspend", "pv1")
        assert code == 2
        code, _, errors = _xenpm("suspend", "-L", "--timeout", "-1", "pv1")
        assert code == 2
        code, _, errors = _xenpm("resume", "pv1")
        assert code == 1
        assert "not suspended" in errors
        code, out, errors = _xenpm("resume", "--json", "pv1")
        assert code == 1
        assert json.loads(out)[0]["error"] == "NotSuspended"
    assert guest("pv1").state == "running"
