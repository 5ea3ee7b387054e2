"""Completion, asked of a real bash, a real fish and a real zsh."""

from __future__ import annotations

import os
import pty
import select
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
ZSH = shutil.which("zsh")


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
    assert complete(script, "-m", "xenpm", "trigger", "w") == ["web1"]


def test_second_argument(script: Path) -> None:
    assert complete(script, "-m", "xenpm", "trigger", "web1", "po") == ["power"]


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


def fake_python(directory: Path) -> Path:
    """A `python` that knows two domains."""
    python = directory / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nprintf '%s\\n' web1 'no$(touch executed)'\n")
    python.chmod(0o755)
    return python


@pytest.mark.skipif(FISH is None, reason="there is no fish here")
def test_fish(tmp_path: Path) -> None:
    script = made("fish", tmp_path)
    python = fake_python(tmp_path)

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


ZSH_SETUP = """
autoload -Uz compinit && compinit -D -u
source xenpm.zsh
compadd() {  # tells what matches, before it is offered
    local -a matching
    if [[ ${@[1,(i)(-|--)]} != *-[OAD]* ]]; then
        builtin compadd -O matching "$@"
        print -rl -- $matching >> offered
    fi
    builtin compadd "$@"
}
tell() { print -rn -- "$BUFFER" > line; BUFFER=exit; zle accept-line }
zle -N tell
bindkey '^I' complete-word '^T' tell
print ready
"""


@pytest.mark.skipif(ZSH is None, reason="there is no zsh here")
class TestZsh:
    @pytest.fixture(autouse=True)
    def _in_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made("zsh", tmp_path)
        (tmp_path / "setup").write_text(ZSH_SETUP)
        monkeypatch.chdir(tmp_path)
        self.environment = {
            "PATH": f"{fake_python(tmp_path).parent}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "TERM": "dumb",
        }

    def completed(self, line: str) -> tuple[str, list[str]]:
        """What becomes of a line by the key Tab, and what was offered for its end."""
        assert ZSH is not None
        Path("offered").write_text("")
        terminal, its_end = pty.openpty()
        shell = subprocess.Popen(
            [ZSH, "-f", "-i"],
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            start_new_session=True,
            env=self.environment,
        )
        os.close(its_end)
        os.write(terminal, b"source ./setup\n")
        said = b""
        while b"ready" not in said.replace(b"print ready", b""):
            said += self._read(terminal)
        os.write(terminal, line.encode() + b"\t\x14")
        while self._read(terminal):
            pass
        assert shell.wait(30) == 0
        os.close(terminal)
        return Path("line").read_text(), Path("offered").read_text().split("\n")[:-1]

    @staticmethod
    def _read(terminal: int) -> bytes:
        assert select.select([terminal], [], [], 30)[0], "zsh does not answer"
        try:
            return os.read(terminal, 4096)
        except OSError:  # it has ended
            return b""

    @pytest.mark.parametrize(
        ("line", "becomes"),
        [
            ("host pl", "host plan "),
            ("suspend --la", "suspend --late-timeout "),
            ("host suspend --la", "host suspend --la"),
            ("resume w", "resume web1 "),
            ("resume no", "resume no\\$\\(touch\\ executed\\) "),
            ("host plan --rule w", "host plan --rule web1="),
            ("host plan --rule=w", "host plan --rule=web1="),
            ("restore xenpm.z", "restore xenpm.zsh "),
            ("suspend --heavy xenpm.z", "suspend --heavy xenpm.zsh "),
            ("suspend --timeout x", "suspend --timeout x"),
            ("trigger web1 po", "trigger web1 power "),
            ("completion z", "completion zsh "),
        ],
    )
    def test_line_is_completed(self, line: str, becomes: str) -> None:
        assert self.completed(f"python -m xenpm {line}")[0] == f"python -m xenpm {becomes}"
        assert not Path("executed").exists()

    def test_what_is_offered(self) -> None:
        assert self.completed("python -m xenpm res")[1] == ["restore", "resume"]
        assert self.completed("python -m xenpm host plan --r")[1] == ["--rule"]

    def test_whose_python_it_is_else(self) -> None:
        """What completed `python` before goes on for all that is not ours."""
        Path("other.py").touch()
        assert self.completed("python oth")[0] == "python other.py "
