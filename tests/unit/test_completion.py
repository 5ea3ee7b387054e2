"""Completion, asked of a real bash."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xenpm
from xenpm import cli
from xenpm.testing import FakeXen

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash here")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "xenpm.bash"
    made = subprocess.run(
        [sys.executable, "-m", "xenpm", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    path.write_text(made.stdout)
    return path


def complete(script: Path, *words: str, before: str = "") -> list[str]:
    """What bash offers for the last word; `python` is a function that knows two domains."""
    program = f"""
        {before}
        compopt() {{ :; }}  # which there only is while bash completes
        source {shlex.quote(str(script))}
        python() {{
            [[ "$*" == "-m xenpm completion domains" ]] &&
                printf '%s\\n' web1 'mail 2' 'no$(touch executed)'
        }}
        COMP_WORDS=(python {shlex.join(words)})
        COMP_CWORD={len(words)}
        _xenpm python
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert BASH is not None
    done = subprocess.run([BASH, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def test_verbs(script: Path) -> None:
    assert complete(script, "-m", "xenpm", "res") == ["restore", "resume"]
    assert complete(script, "-m", "xenpm", "host", "pl") == ["plan"]
    assert complete(script, "-m", "xenpm", "completion", "b") == ["bash"]


def test_options_are_those_of_the_verb(script: Path) -> None:
    assert complete(script, "-m", "xenpm", "suspend", "--l") == ["--lightweight", "--late-timeout"]
    assert complete(script, "-m", "xenpm", "host", "suspend", "--l") == []
    assert complete(script, "-m", "xenpm", "host", "plan", "--r") == ["--rule"]


def test_domains(script: Path) -> None:
    assert complete(script, "-m", "xenpm", "suspend", "-L", "")[:2] == ["web1", "mail\\ 2"]
    assert complete(script, "-m", "xenpm", "resume", "web1", "m") == ["mail\\ 2"]
    assert complete(script, "-m", "xenpm", "host", "plan", "--rule", "w") == ["web1="]
    assert complete(script, "-m", "xenpm", "host", "plan", "--rule", "=", "w") == ["web1="]


def test_files(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.chdir(tmp_path)
    assert complete(script, "-m", "xenpm", "restore", "a") == ["a file"]
    assert complete(script, "-m", "xenpm", "suspend", "--heavy", "") == ["a file"]
    assert complete(script, "-m", "xenpm", "suspend", "--timeout", "") == []


def test_whose_python_it_is_else(script: Path) -> None:
    """What completed `python` before goes on for all that is not ours."""
    before = "others() { COMPREPLY=(theirs); }; complete -F others python"
    assert complete(script, "-m", "json.tool", "", before=before) == ["theirs"]
    assert complete(script, "-m", "json.tool", "") == []
    assert complete(script, "-m", "xenpm", "lis", before=before) == ["list"]


def test_names_of_the_domains(
    xen: FakeXen, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "Host", lambda: xenpm.Host(ports=xen.ports()))
    xen.add_guest("web")
    xen.add_guest("db")
    assert cli.main(["completion", "domains"]) == 0
    assert capsys.readouterr().out == "web\ndb\n"


def test_no_name_is_run(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete(script, "-m", "xenpm", "resume", "n") == ["no\\$\\(touch\\ executed\\)"]
    assert list(tmp_path.iterdir()) == []
