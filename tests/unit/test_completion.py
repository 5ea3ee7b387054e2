"""Completion, asked of a real bash and a real fish."""

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
FISH = shutil.which("fish")


def made(shell: str, directory: Path) -> Path:
    path = directory / f"xenpm.{shell}"
    program = [sys.executable, "-m", "xenpm", "completion", shell]
    path.write_text(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BASH is None:
        pytest.skip("there is no bash here")
    return made("bash", tmp_path_factory.mktemp("completion"))


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


@pytest.mark.skipif(FISH is None, reason="there is no fish here")
def test_fish(tmp_path: Path) -> None:
    script = made("fish", tmp_path)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nprintf '%s\\n' web1 'no$(touch executed)'\n")
    python.chmod(0o755)

    def offered(line: str) -> list[str]:
        assert FISH is not None
        command = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
        done = subprocess.run(
            [FISH, "--no-config", "-c", command],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        return [each.partition("\t")[0] for each in done.stdout.splitlines()]

    assert offered("python -m xenpm res") == ["restore", "resume"]
    assert offered("python -m xenpm host pl") == ["plan"]
    assert offered("python -m xenpm suspend --la") == ["--late-timeout"]
    assert offered("python -m xenpm host suspend --la") == []
    assert offered("python -m xenpm resume w") == ["web1"]
    assert offered("python -m xenpm host plan --rule w") == ["web1="]
    assert offered("python -m xenpm restore xenpm.f") == ["xenpm.fish"]
    assert offered("python -m xenpm suspend --timeout x") == []
    assert offered("python -m json.tool xenpm.f") == ["xenpm.fish"]
    assert offered("python -m xenpm resume no") == ["no$(touch executed)"]
    assert not (tmp_path / "executed").exists()
