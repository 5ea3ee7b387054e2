"""The command line, on the fake host."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import xenpm
from xenpm import cli
from xenpm.testing import MS, SECOND, FakeXen

from . import save_files
from .checks import assert_nothing_left, assert_runs_on
from .fake_worker import FakeWorker


@pytest.fixture(autouse=True)
def _fake_host(xen: FakeXen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "Host", lambda: xenpm.Host(ports=xen.ports()))


Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and complaints of one command; no traceback ever."""
    try:
        code: Any = cli.main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    output, complaints = capsys.readouterr()
    assert "Traceback" not in complaints
    return code, output, complaints


# -- list


def test_list(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest("web1", vcpus=2, memory_kib=2 << 20)
    xen.add_guest("a-long-name", type=xenpm.DomainType.HVM).suspend()
    xen.add_guest("db").crash()
    code, output, complaints = run(capsys, "list")
    assert code == 0
    assert complaints == ""
    assert output.splitlines() == [
        "DOMID  NAME         TYPE  VCPUS    MEMORY  STATE",
        "    1  web1         pvh       2  2048 MiB  running",
        "    2  a-long-name  hvm       1   256 MiB  suspended",
        "    3  db           pvh       1   256 MiB  crashed",
    ]


def test_list_json(xen: FakeXen, capsys: Capture) -> None:
    web = xen.add_guest("web", memory_kib=1024)
    web.suspend()
    code, output, _ = run(capsys, "list", "--json")
    assert code == 0
    assert json.loads(output) == [
        {
            "domid": 1,
            "name": "web",
            "uuid": str(web.uuid),
            "type": "pvh",
            "vcpus": 1,
            "memory_kib": 1024,
            "state": "suspended",
            "shutdown_reason": "suspend",
        }
    ]


def test_list_of_nothing(capsys: Capture) -> None:
    assert run(capsys, "list")[:2] == (0, "DOMID  NAME  TYPE  VCPUS  MEMORY  STATE\n")
    assert run(capsys, "list", "--json")[:2] == (0, "[]\n")


def test_list_while_one_goes(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest("web")
    db = xen.add_guest("db")
    xen.before("domain_info", db.destroy)
    xen.before("domain_info", xen.settle)
    code, output, _ = run(capsys, "list")
    assert code == 0
    assert "web" in output
    assert "db" not in output


def test_list_of_a_name_that_is_no_utf8(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest(os.fsdecode(b"caf\xe9"))
    code, output, _ = run(capsys, "list")
    assert code == 0
    assert "caf" in output


# -- suspend and resume


def test_suspend_and_resume(xen: FakeXen, capsys: Capture) -> None:
    web, db = xen.add_guest("web"), xen.add_guest("db", suspend_ns=99 * MS)
    code, output, complaints = run(capsys, "suspend", "-L", "web", "2")
    assert code == 0
    assert output.splitlines() == [
        "web (domain 1): suspended in 41.0 ms",
        "db (domain 2): suspended in 100.0 ms",
    ]
    assert complaints == ""
    assert web.suspended
    assert db.suspended

    code, output, complaints = run(capsys, "resume", str(web.uuid), "db")
    assert code == 0
    assert output.splitlines() == [
        "web (domain 1): resumed in 0.0 ms",
        "db (domain 2): resumed in 0.0 ms",
    ]
    assert complaints == ""
    assert_runs_on(web)
    assert_runs_on(db)


def test_resume_by_starting_over(xen: FakeXen, capsys: Capture) -> None:
    web = xen.add_guest("web")
    web.give_device("vbd", 51712)
    run(capsys, "suspend", "-L", "web")
    code, output, complaints = run(capsys, "resume", "--reinit", "web")
    assert (code, complaints) == (0, "")
    assert output.startswith(
        "web (domain 1): resumed by starting over (asked for; devices 2.0 ms, reset 0.0 ms"
    )
    assert web.restarts == 1


def test_suspend_and_resume_json(xen: FakeXen, capsys: Capture) -> None:
    web = xen.add_guest("web")
    domain = {"domid": 1, "name": "web", "uuid": str(web.uuid)}
    code, output, _ = run(capsys, "suspend", "--lightweight", "--json", "web")
    assert code == 0
    assert json.loads(output) == [
        {
            "ok": True,
            "domain": domain,
            "request_ns": 0,
            "acknowledge_ns": 1 * MS,
            "suspend_ns": 40 * MS,
            "pci": [],
            "serves": [],
            "model_ns": 0,
            "total_ns": 41 * MS,
        }
    ]
    code, output, _ = run(capsys, "resume", "--json", "web")
    assert code == 0
    assert json.loads(output) == [
        {
            "ok": True,
            "domain": domain,
            "cooperative": True,
            "total_ns": 0,
            "pci": [],
            "serves": [],
            "check_ns": 0,
            "problems": [],
            "reason": "it is a PVH guest that has set up an interrupt for events",
            "steps": [],
            "model_ns": 0,
        }
    ]


def test_trigger(xen: FakeXen, capsys: Capture) -> None:
    guest = xen.add_guest("web", type=xenpm.DomainType.HVM)
    assert run(capsys, "trigger", "web", "power") == (0, "web (domain 1): power triggered\n", "")
    code, output, _ = run(capsys, "trigger", "--json", "1", "nmi", "--vcpu", "0")
    assert (code, json.loads(output)["name"]) == (0, "web")
    assert guest.pressed == [3, 0]
    code, _, complaint = run(capsys, "trigger", "web", "s3resume")
    assert (code, "does not sleep" in complaint) == (1, True)
    code, _, complaint = run(capsys, "trigger", "web", "nmi", "--vcpu", "-1")
    assert (code, "number of a vCPU" in complaint) == (2, True)


def test_some_fail(xen: FakeXen, capsys: Capture) -> None:
    web = xen.add_guest("web")
    deaf = xen.add_guest("deaf", acknowledge_ns=None)
    code, output, complaints = run(capsys, "suspend", "-L", "deaf", "web", "--timeout", "0.5")
    assert code == 1
    assert output == "web (domain 1): suspended in 41.0 ms\n"
    assert re.fullmatch(
        r"xenpm: deaf \(domain 2\): did not take the request .* within 0\.5 s; .*\n", complaints
    )
    assert web.suspended
    assert deaf.running

    code, output, complaints = run(capsys, "resume", "deaf", "web", "--json")
    assert code == 1
    assert complaints == ""
    first, second = json.loads(output)
    assert first == {
        "ok": False,
        "domain": {"domid": 2, "name": "deaf", "uuid": str(deaf.uuid)},
        "error": "NotSuspended",
        "message": "deaf (domain 2): is not suspended but running",
    }
    assert second["ok"] is True
    assert web.running


def test_failure_in_json_names_the_phase(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest("web", suspend_ns=None)
    code, output, _ = run(
        capsys, "suspend", "-L", "--json", "web", "--timeout=1", "--late-timeout=2"
    )
    assert code == 1
    (row,) = json.loads(output)
    assert (row["ok"], row["error"], row["phase"]) == (
        False,
        "SuspendNotCompleted",
        "acknowledged",
    )


def test_named_twice_is_done_once(xen: FakeXen, capsys: Capture) -> None:
    web = xen.add_guest("web")
    code, output, _ = run(capsys, "suspend", "-L", "web", "1", str(web.uuid))
    assert code == 0
    assert len(output.splitlines()) == 1


def test_nobody_is_touched_when_one_is_not_there(xen: FakeXen, capsys: Capture) -> None:
    web = xen.add_guest("web")
    for verb in (["suspend", "-L"], ["resume"]):
        code, output, complaints = run(capsys, *verb, "web", "nobody")
        assert (code, output) == (4, "")
        assert complaints == "xenpm: there is no domain 'nobody'\n"
    assert web.suspensions == 0
    assert xen.calls["write"] == 0


@pytest.mark.parametrize("reference", ["77", "99999", "-1", str(UUID(int=77))])
def test_nobody(xen: FakeXen, capsys: Capture, reference: str) -> None:
    xen.add_guest("web")
    assert run(capsys, "resume", "--", reference)[0] == 4


# -- the heavy way


def test_save_and_restore(xen: FakeXen, capsys: Capture, tmp_path: Path) -> None:
    worker = FakeWorker(xen)
    path = tmp_path / "web.save"
    guest = xen.add_guest("web", uuid=save_files.UUID_)
    code, output, complaints = run(capsys, "suspend", "--heavy", str(path), "web")
    assert (code, complaints) == (0, "")
    assert output == f"web (domain 1): saved to {path} in 1001.0 ms\n"
    assert guest.domid not in xen.guests
    path.write_bytes(save_files.whole())
    code, output, complaints = run(capsys, "restore", str(path))
    assert (code, complaints) == (0, "")
    assert output == f"web (domain 2): restored from {path}\n"
    worker.files[str(tmp_path / "other")] = worker.files[str(path)]
    code, output, _ = run(capsys, "restore", "--json", str(path))
    assert json.loads(output) == {"domid": 3, "name": "web", "uuid": str(save_files.UUID_)}


def test_save_and_restore_that_fail(xen: FakeXen, capsys: Capture, tmp_path: Path) -> None:
    worker = FakeWorker(xen, dies="before")
    xen.add_guest("web")
    path = tmp_path / "web.save"
    code, output, complaints = run(capsys, "suspend", "--heavy", str(path), "web")
    assert (code, output) == (1, "")
    assert "was not saved" in complaints
    code, output, _ = run(capsys, "suspend", "--json", "--heavy", str(path), "web")
    assert code == 1
    assert json.loads(output)[0]["error"] == "SaveError"
    code, output, complaints = run(capsys, "restore", str(path))
    assert (code, output) == (1, "")
    assert "No such file" in complaints
    assert len(worker.orders) == 4


def test_a_terminal_sees_how_far_it_is(
    xen: FakeXen, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeWorker(xen, lasts_ns=4 * SECOND)
    xen.add_guest("web")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    code, output, complaints = run(capsys, "suspend", "--heavy", str(tmp_path / "a"), "web")
    assert code == 0
    assert "\r 50 %  0 of 0 MiB" in complaints
    assert complaints.endswith("\r\033[K")
    assert "%" not in output


# -- wrong usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sleep"],
        ["suspend", "web"],
        ["suspend", "-L"],
        ["resume"],
        ["suspend", "-L", "web", "--timeout", "soon"],
        ["suspend", "-L", "web", "--timeout", "0"],
        ["suspend", "-L", "web", "--timeout=-1"],
        ["suspend", "-L", "web", "--timeout", "nan"],
        ["suspend", "-L", "web", "--late-timeout", "inf"],
        ["list", "web"],
        ["suspend", "-L", ""],
        ["suspend", "-L", "--heavy", "/tmp/web", "web"],
        ["suspend", "--heavy", "", "web"],
        ["suspend", "--heavy", "/tmp/web", "web", "db"],
        ["restore"],
        ["restore", "/tmp/web", "--timeout", "0"],
    ],
)
def test_wrong_usage(xen: FakeXen, capsys: Capture, arguments: list[str]) -> None:
    web = xen.add_guest("web")
    code, output, complaints = run(capsys, *arguments)
    assert code == 2
    assert output == ""
    assert complaints
    assert web.suspensions == 0


def test_the_missing_option_is_explained(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest("web")
    assert "give -L (--lightweight)" in run(capsys, "suspend", "web")[2]


@pytest.mark.parametrize("arguments", [("-v", "list"), ("list", "-v"), ("list", "--verbose")])
@pytest.mark.usefixtures("xen")
def test_verbose_anywhere(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    levels: list[object] = []
    monkeypatch.setattr(
        "xenpm.cli.logging.basicConfig", lambda **settings: levels.append(settings["level"])
    )
    assert run(capsys, *arguments)[0] == 0
    assert levels == [logging.DEBUG]


def test_help_and_version(capsys: Capture) -> None:
    code, output, _ = run(capsys, "--help")
    assert code == 0
    assert "suspend" in output
    code, output, _ = run(capsys, "suspend", "--help")
    assert code == 0
    assert "--late-timeout" in output
    assert run(capsys, "--version")[:2] == (0, f"xenpm {xenpm.__version__}\n")


# -- no host


@pytest.mark.parametrize(
    "error",
    [
        xenpm.NotXenHost("no hypervisor"),
        xenpm.LibraryMismatch("built for another"),
        xenpm.NotPermitted("xc_interface_open", errno.EACCES, "it takes root in dom0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_host(capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def host() -> xenpm.Host:
        raise error

    monkeypatch.setattr(cli, "Host", host)
    code, output, complaints = run(capsys, "list")
    assert (code, output) == (3, "")
    assert complaints == f"xenpm: {error}\n"


def test_failing_call(xen: FakeXen, capsys: Capture) -> None:
    xen.fail("domain_list", errno.EIO)
    code, _, complaints = run(capsys, "list")
    assert code == 1
    assert "xc_domain_getinfolist: Input/output error" in complaints


# -- interruptions


@pytest.fixture
def _own_handlers() -> Any:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("_own_handlers")
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(xen: FakeXen, capsys: Capture, signum: signal.Signals, exit_code: int) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    web, db = xen.add_guest("web"), xen.add_guest("db", suspend_ns=SECOND)
    xen.after(500 * MS, lambda: signal.raise_signal(signum))
    code, output, _ = run(capsys, "suspend", "-L", "web", "db")
    assert code == exit_code
    assert output == ""
    for guest in (web, db):
        assert (guest.suspensions, guest.resumptions) == (1, 1)
        assert guest.running
    assert_nothing_left(xen)
    assert signal.getsignal(signal.SIGTERM) is handler


# -- as a program


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )


def test_module_runs() -> None:
    done = python("-m", "xenpm", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"xenpm {xenpm.__version__}\n"


def test_output_that_nobody_reads() -> None:
    """As in ``python -m xenpm list | true``: no complaint."""
    script = (
        "import sys, xenpm, xenpm.cli as cli\n"
        "from xenpm.testing import FakeXen\n"
        "cli.Host = lambda: xenpm.Host(ports=FakeXen().ports())\n"
        "sys.exit(cli.main(['list']))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert done.stderr == ""


# -- host


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which nothing is configured."""
    monkeypatch.setattr("xenpm.host.read_settings", xenpm.Settings)
    monkeypatch.setattr("xenpm.host.find_hooks", list)


@pytest.mark.usefixtures("bare")
def test_host_plan(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest("web1")
    xen.add_guest("db")
    code, output, complaints = run(capsys, "host", "plan", "--rule", "db=leave")
    assert (code, complaints) == (0, "")
    assert output.splitlines() == [
        "STEP  DOMAIN           POLICY   IF IT FAILS  BECAUSE",
        "1     web1 (domain 1)  suspend  pause        can suspend itself",
        "-     db (domain 2)    leave    -            the caller says so",
    ]
    code, output, _ = run(capsys, "host", "plan", "--json", "--rule", "db=abort")
    assert code == 1
    assert json.loads(output)["refusals"] == ["db (domain 2): the caller says so"]


@pytest.mark.usefixtures("bare")
def test_host_suspend(xen: FakeXen, capsys: Capture, tmp_path: Any) -> None:
    xen.add_guest("web1")
    trace, picture = tmp_path / "trace.json", tmp_path / "night.svg"
    code, output, complaints = run(
        capsys, "host", "suspend", "--trace", str(trace), "--picture", str(picture)
    )
    assert code == 0
    assert re.match(r"web1 \(domain 1\)  running  suspend  suspended in \d+\.\d ms, resu", output)
    assert "the machine slept for 60.0 s (mem); woken by PNP0C0C:00" in output
    assert "suspended in" in complaints  # the progress
    assert json.loads(trace.read_text())["traceEvents"]
    assert picture.read_text().startswith("<?xml")


@pytest.mark.usefixtures("bare")
def test_host_suspend_with_problems(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest("deaf", acknowledge_ns=None)
    code, output, complaints = run(capsys, "host", "suspend", "--quiet", "--json")
    assert code == 1
    assert complaints == ""
    assert "was paused, for it could not be suspended" in json.loads(output)["problems"][0]
    code, _, _ = run(capsys, "host", "suspend-domains")
    assert code == 0, "the machine may sleep: the guest is paused, as its rule says"
    code, output, _ = run(capsys, "host", "resume-domains")
    assert code == 0
    assert "deaf (domain 1)  running" in output


@pytest.mark.usefixtures("bare")
def test_host_suspend_that_fails(xen: FakeXen, capsys: Capture) -> None:
    xen.add_guest("web1")
    xen.fail("sleep", errno.EBUSY)
    code, output, complaints = run(capsys, "host", "suspend")
    assert code == 1
    assert output.startswith("web1 (domain 1)  running")
    assert "xenpm: the host did not sleep" in complaints


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("verb", ["resume-domains", "recover"])
def test_host_with_nothing_to_bring_back(verb: str, capsys: Capture) -> None:
    code, output, complaints = run(capsys, "host", verb)
    assert (code, complaints) == (0, "")
    assert output == "nothing is down: there is nothing to bring back\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["suspend", "--rule", "web1"], "is not DOMAIN=RULE"),
        (["plan", "--rule", "web1=sleep"], "must be one of"),
        (["suspend", "--picture", "x.pdf"], "a picture is a .svg or a .png file"),
    ],
)
def test_host_wrong_usage(arguments: list[str], said: str, capsys: Capture) -> None:
    code, _, complaints = run(capsys, "host", *arguments)
    assert code == 2
    assert said in complaints


@pytest.mark.usefixtures("bare")
def test_host_trace_that_cannot_be_written(xen: FakeXen, capsys: Capture, tmp_path: Any) -> None:
    guest = xen.add_guest("web1")
    code, _, complaints = run(capsys, "host", "suspend", "--trace", str(tmp_path))
    assert code == 1
    assert "the timeline cannot be written" in complaints
    assert guest.running
