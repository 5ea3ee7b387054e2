"""Installing the unit of systemd, into a directory."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xenpm import XenError, cli, systemd

UNIT = Path("etc/systemd/system/xenpm-sleep.service")
LINK = Path("etc/systemd/system/sleep.target.requires/xenpm-sleep.service")


def read(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_a_failed_start_keeps_the_machine_awake() -> None:
    unit = read(systemd.unit("/opt/xenpm/bin/python"))
    assert unit["Unit"]["Before"] == "sleep.target"
    assert unit["Install"]["RequiredBy"] == "sleep.target"
    assert unit["Service"]["Type"] == "oneshot"  # the target waits for the end of ExecStart


def test_guests_are_resumed_after_the_sleep_and_after_a_failure() -> None:
    unit = read(systemd.unit("/opt/xenpm/bin/python"))
    assert unit["Unit"]["StopWhenUnneeded"] == "yes"
    service = unit["Service"]
    assert service["RemainAfterExit"] == "yes"
    assert service["ExecStart"] == '"/opt/xenpm/bin/python" -m xenpm host suspend-domains'
    assert service["ExecStopPost"] == '"/opt/xenpm/bin/python" -m xenpm host resume-domains'


def test_install_and_remove(tmp_path: Path) -> None:
    for _ in range(2):
        assert systemd.install(tmp_path, "/usr/bin/python3") == tmp_path / UNIT
        assert (tmp_path / UNIT).read_text() == systemd.unit("/usr/bin/python3")
        assert (tmp_path / UNIT).stat().st_mode & 0o777 == 0o644
        assert (tmp_path / LINK).resolve() == (tmp_path / UNIT).resolve()
    assert sorted(path.name for path in (tmp_path / UNIT).parent.iterdir()) == [
        "sleep.target.requires",
        UNIT.name,
    ]
    assert systemd.remove(tmp_path)
    assert not (tmp_path / UNIT).exists()
    assert not (tmp_path / LINK).is_symlink()
    assert not systemd.remove(tmp_path)


def test_install_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(XenError, match="cannot be written"):
        systemd.install(tmp_path)


@pytest.mark.parametrize("python", ["python3", "/opt/a\nb/python"])
def test_a_python_that_no_unit_can_name(tmp_path: Path, python: str) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        systemd.install(tmp_path, python)
    assert list(tmp_path.iterdir()) == []


def test_odd_characters_in_the_path() -> None:
    assert '"/opt/a b%%c\\"d/python" -m' in systemd.unit('/opt/a b%c"d/python')


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_it(tmp_path: Path) -> None:
    path = tmp_path / systemd.UNIT
    path.write_text(systemd.unit("/bin/sh"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], check=False, capture_output=True, text=True
    )
    assert systemd.UNIT not in done.stderr, done.stderr


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install = ["host", "install-systemd", "--root", str(tmp_path)]
    assert cli.main(install) == 0
    assert (tmp_path / UNIT).read_text() == systemd.unit(sys.executable)
    assert f"{tmp_path / UNIT} is installed and enabled" in capsys.readouterr().out
    assert cli.main([*install, "--remove"]) == 0
    assert not (tmp_path / UNIT).exists()
    assert "is removed" in capsys.readouterr().out
    assert cli.main([*install, "--remove"]) == 0
    assert "nothing was touched" in capsys.readouterr().out
