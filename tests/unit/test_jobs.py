"""Programs and functions beside the engine, real ones."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from xenpm import XenError
from xenpm.jobs import OUTPUT_BYTES, Function, Program, SystemJobs

DEADLINE = 60.0
SH = "/bin/sh"


def finish(job: Program | Function) -> None:
    """Do what the engine does until the job has ended."""
    until = time.monotonic() + DEADLINE
    while not job.done:
        assert time.monotonic() < until, "the job does not end"
        select.select(job.descriptors, [], [], DEADLINE)
        job.work()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def test_output_and_status_of_a_program() -> None:
    job = SystemJobs().run((SH, "-c", "echo $A; echo err >&2; cat; exit 3"), {"A": "out"})
    finish(job)
    assert job.descriptors == ()
    assert job.result() == (3, "", "out\nerr\n")
    job.close()
    assert job.result() == (3, "", "out\nerr\n")


def test_a_program_runs_apart_from_this_terminal() -> None:
    job = SystemJobs().run((SH, "-c", "kill -PIPE $$"), {})
    assert os.getsid(job._pid) == job._pid
    finish(job)
    assert job.result().status == -signal.SIGPIPE  # which Python ignores
    job.close()


def test_the_end_of_long_output_is_kept() -> None:
    job = SystemJobs().run(
        (SH, "-c", f"head -c {5 * OUTPUT_BYTES} /dev/zero | tr '\\0' x; echo end"), os.environ
    )
    finish(job)
    output = job.result().output
    assert len(output) <= OUTPUT_BYTES
    assert output.endswith("xend\n")
    job.close()


def test_a_program_that_writes_without_end_does_not_hold_us() -> None:
    job = SystemJobs().run((SH, "-c", "exec yes"), os.environ)
    select.select(job.descriptors, [], [], DEADLINE)
    job.work()  # returns
    assert not job.done
    job.signal(signal.SIGTERM)
    finish(job)
    assert job.result().status == -signal.SIGTERM
    job.close()


def test_a_daemon_that_keeps_the_output_does_not_keep_the_program() -> None:
    job = SystemJobs().run((SH, "-c", "sleep 300 & echo $!"), os.environ)
    finish(job)
    status, _, output = job.result()
    assert status == 0
    job.close()
    os.kill(int(output), signal.SIGKILL)  # not ours to kill: it is left alone until here


def test_a_signal_reaches_all_that_it_has_started() -> None:
    job = SystemJobs().run((SH, "-c", "sleep 300 & echo $!; wait"), os.environ)
    while b"\n" not in job._output:
        select.select(job.descriptors, [], [], DEADLINE)
        job.work()
    child = os.pidfd_open(int(job._output))
    job.signal(signal.SIGKILL)
    assert select.select([child], [], [], DEADLINE)[0]
    os.close(child)
    finish(job)
    job.close()


def test_one_that_is_to_be_left_looks_itself_after_what_it_has_started() -> None:
    script = "trap 'echo told; wait' TERM; sleep 300 & echo $!; wait; wait"
    job = SystemJobs().run((SH, "-c", script), os.environ, leave=True)
    while b"\n" not in job._output:
        select.select(job.descriptors, [], [], DEADLINE)
        job.work()
    child = os.pidfd_open(int(job._output))
    job.signal(signal.SIGTERM)
    while b"told" not in job._output:
        select.select(job.descriptors, [], [], DEADLINE)
        job.work()
    assert not select.select([child], [], [], 0)[0]
    job.signal(signal.SIGKILL)
    assert select.select([child], [], [], DEADLINE)[0]
    os.close(child)
    finish(job)
    job.close()


def test_close_kills_what_runs() -> None:
    job = SystemJobs().run((SH, "-c", "sleep 300"), os.environ)
    watched = os.pidfd_open(job._pid)
    job.close()
    assert job.done
    assert select.select([watched], [], [], DEADLINE)[0]
    os.close(watched)
    with suppress(ChildProcessError):  # close was so late that it could reap it
        os.waitpid(job._pid, 0)
    job.signal(signal.SIGTERM)  # nothing to do
    job.close()


@pytest.mark.parametrize("command", ["/nonexistent", "/etc/passwd", "/bin/sh\0"])
def test_what_cannot_be_started(command: str) -> None:
    with pytest.raises(XenError, match="cannot be started"):
        SystemJobs().run((command,), {})


def test_somebody_else_takes_the_exit_status() -> None:
    job = SystemJobs().run((SH, "-c", "exit 3"), {})
    os.waitpid(job._pid, 0)
    finish(job)
    job.signal(signal.SIGKILL)  # the number may be another's by now
    status, error, _ = job.result()
    assert status is None
    assert "lost" in error
    job.close()


def test_a_function() -> None:
    seen: list[str] = []
    job = SystemJobs().call(lambda: seen.append(threading.current_thread().name))
    finish(job)
    assert seen == ["xenpm hook"]
    assert job.result() == (None, "", "")
    job.signal(signal.SIGTERM)
    job.close()


def test_a_function_that_raises() -> None:
    def fail() -> None:
        raise SystemExit("no")

    job = SystemJobs().call(fail)
    finish(job)
    assert job.result().error == "SystemExit: no"
    job.close()


def test_a_function_that_is_abandoned_does_no_harm(tmp_path: Path) -> None:
    let_go = threading.Event()
    job = SystemJobs().call(let_go.wait)
    job.work()
    assert not job.done
    (thread,) = (each for each in threading.enumerate() if each.name == "xenpm hook")
    assert thread.daemon
    job.close()
    with (tmp_path / "file").open("w"):  # takes the number of the closed descriptor
        let_go.set()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def no_more(*_args: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("call", ["pipe2", "pidfd_open"])
def test_no_descriptor_is_left_for_a_program(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, no_more)
    with pytest.raises(XenError, match="cannot be"):
        SystemJobs().run((SH, "-c", "sleep 300"), os.environ)
    with pytest.raises(ChildProcessError):  # no process is left
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)


def test_no_thread_is_left_for_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(XenError, match="can't start new thread"):
        SystemJobs().call(lambda: None)
