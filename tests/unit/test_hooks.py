"""Hooks: finding them, and what the engine makes of good, failing and hanging ones."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable
from uuid import UUID

import pytest

from xenpm import ConfigError
from xenpm import hooks as hooks_module
from xenpm.engine import DeferredSignals, Engine, Task, run
from xenpm.hooks import Hook, HookEvent, HookPoint, HookResult, find_hooks, run_hooks
from xenpm.jobs import SystemJobs
from xenpm.ports import Ports
from xenpm.system import SystemPoller
from xenpm.testing import MS, SECOND, FakeProgram, FakeXen
from xenpm.types import DomainRef

from .checks import assert_nothing_left

WEB = DomainRef(3, UUID(int=7).bytes, "web1")
BEFORE = HookEvent(HookPoint.DOMAIN_PRE, "mem", WEB)
ONE, TWO = Path("/etc/xenpm/hooks.d/10-one"), Path("/etc/xenpm/hooks.d/20-two")


@pytest.fixture
def ports(xen: FakeXen) -> Ports:
    return xen.ports()


def run_all(
    ports: Ports, hooks: Sequence[Hook], event: HookEvent = BEFORE, timeout_ns: int = SECOND
) -> tuple[HookResult, ...]:
    """What the hooks came to, run by the engine."""
    machine = run_hooks(hooks, event, ports.poller.now_ns, timeout_ns)
    tasks: list[Task[tuple[HookResult, ...]]] = []
    engine = Engine(ports)
    with DeferredSignals(ports.poller.wake) as signals:
        run(engine, [machine], tasks, None, signals)
    assert engine.idle
    assert engine.descriptors == ()
    return tasks[0].result()


def drive(engine: Engine, task: Task[Any]) -> None:
    """Go on until a machine has ended, others beside it."""
    poller, store = engine.ports.poller, engine.ports.store
    while not task.done:
        poller.wait(store.fileno(), SECOND, engine.descriptors)
        engine.dispatch()


# -- programs, on the fake host


def test_programs_run_in_order_and_are_told(xen: FakeXen, ports: Ports) -> None:
    xen.programs = {str(TWO): FakeProgram(5 * MS), str(ONE): FakeProgram(20 * MS, output="hello\n")}
    results = run_all(ports, [ONE, TWO])
    assert [command for command, _ in xen.started] == [
        (str(ONE), "domain-pre"),
        (str(TWO), "domain-pre"),
    ]
    environment = xen.started[0][1]
    told = environment.keys() - os.environ.keys()
    assert {key: environment[key] for key in told} == {
        "XENPM_EVENT": "domain-pre",
        "XENPM_STATE": "mem",
        "XENPM_RESULT": "",
        "XENPM_DOMID": "3",
        "XENPM_DOMAIN": "web1",
        "XENPM_UUID": str(WEB.uuid),
    }
    assert environment["PATH"] == os.environ["PATH"]
    assert results == (
        HookResult("10-one", HookPoint.DOMAIN_PRE, WEB, 20 * MS, 0, output="hello\n"),
        HookResult("20-two", HookPoint.DOMAIN_PRE, WEB, 5 * MS, 0),
    )
    assert not any(result.failed for result in results)


def test_host_events_name_no_domain(
    xen: FakeXen, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENPM_DOMID", "9")
    xen.programs = {str(ONE): FakeProgram()}
    run_all(ports, [ONE], HookEvent(HookPoint.HOST_POST, "mem", result="ok"))
    environment = xen.started[0][1]
    assert environment["XENPM_RESULT"] == "ok"
    assert not {"XENPM_DOMID", "XENPM_DOMAIN", "XENPM_UUID"} & set(environment)


def test_a_failing_hook_does_not_keep_the_next(
    xen: FakeXen, ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    xen.programs = {str(ONE): FakeProgram(status=3, output="a\nno disk\n"), str(TWO): FakeProgram()}
    with caplog.at_level(logging.INFO, "xenpm.hooks"):
        one, two = run_all(ports, [ONE, TWO])
    assert one.failed
    assert not two.failed
    assert str(one) == (
        "hook 10-one (domain-pre, web1 (domain 3)): ended with status 3, its last words: no disk"
    )
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        str(one)
    ]
    assert "hook 10-one: no disk" in caplog.messages


def test_a_hook_that_cannot_be_started(ports: Ports) -> None:
    (result,) = run_all(ports, [ONE])
    assert result.failed
    assert "cannot be started" in str(result)


@pytest.mark.parametrize(
    ("heeds", "signals", "status", "words"),
    [
        ((signal.SIGTERM,), [15, 9], -15, "ended after 1.0 s"),
        ((signal.SIGKILL,), [15, 9], -9, "ended after 3.0 s"),
        ((), [15, 9, 9], None, "after 5.0 s it still runs"),
    ],
)
def test_a_hanging_hook(
    xen: FakeXen, heeds: tuple[int, ...], signals: list[int], status: int | None, words: str
) -> None:
    ports = xen.ports()
    xen.programs = {str(ONE): FakeProgram(None, heeds=heeds), str(TWO): FakeProgram()}
    one, two = run_all(ports, [ONE, TWO])
    assert one.timed_out
    assert one.failed
    assert one.status == status
    assert words in str(one)
    assert xen.jobs[0].signals == signals
    assert not two.failed
    assert_nothing_left(xen)


# -- functions, on the fake host


def test_a_callable_gets_the_event(ports: Ports) -> None:
    seen: list[HookEvent] = []
    (result,) = run_all(ports, [seen.append])
    assert seen == [BEFORE]
    assert result == HookResult("list.append", HookPoint.DOMAIN_PRE, WEB, 0)
    assert not result.failed


def test_a_callable_that_raises(ports: Ports) -> None:
    def refuse(_event: HookEvent) -> None:
        raise ValueError("not now")

    (result,) = run_all(ports, [refuse])
    assert result.failed
    assert result.error == "ValueError: not now"
    assert str(result).endswith("refuse (domain-pre, web1 (domain 3)): ValueError: not now")


def test_a_callable_that_hangs_is_reported(xen: FakeXen, ports: Ports) -> None:
    xen.hanging = ["hang"]
    (result,) = run_all(ports, [lambda _: "hang"])
    assert result.timed_out
    assert result.failed
    assert result.duration_ns == SECOND
    assert "still runs" in str(result)


# -- beside guests, and interrupted


def test_guests_go_on_beside_a_hook(xen: FakeXen, ports: Ports) -> None:
    xen.programs = {str(ONE): FakeProgram(10 * SECOND)}
    engine = Engine(ports)
    hooks = engine.start(run_hooks([ONE], BEFORE, ports.poller.now_ns, 60 * SECOND))
    other = engine.start(run_hooks([lambda _: None], BEFORE, ports.poller.now_ns, SECOND))
    drive(engine, other)
    assert not hooks.done
    assert xen.now_ns < 2 * SECOND
    engine.cancel(hooks)
    drive(engine, hooks)
    assert xen.jobs[0].signals == [15, 9]
    assert not hooks.succeeded


def test_dropped_hooks_are_killed(xen: FakeXen, ports: Ports) -> None:
    xen.programs = {str(ONE): FakeProgram(None)}
    engine = Engine(ports)
    engine.start(run_hooks([ONE], BEFORE, ports.poller.now_ns, 60 * SECOND))
    engine.drop_all()
    assert xen.jobs[0].signals == [9]
    assert engine.descriptors == ()


# -- real programs and threads


@pytest.fixture
def real(xen: FakeXen) -> Ports:
    """A fake store that never has news, and real programs and time."""

    class Store:
        def __init__(self) -> None:
            self.fd = os.eventfd(0) if hasattr(os, "eventfd") else os.pipe()[0]

        def fileno(self) -> int:
            return self.fd

        def check_watch(self) -> None:
            return None

        def close(self) -> None:
            os.close(self.fd)

    ports = xen.ports()
    ports.store = Store()  # type: ignore[assignment]
    ports.poller = SystemPoller()
    ports.jobs = SystemJobs()
    return ports


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_real_programs(real: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "_GRACE_NS", 200 * MS)
    good = script(tmp_path / "10-good", 'echo "$1 $XENPM_DOMAIN"')
    stubborn = script(tmp_path / "20-stubborn", "trap 'echo no' TERM; while :; do sleep 60; done")
    results = run_all(real, [good, stubborn, lambda event: event.domain], timeout_ns=200 * MS)
    real.close()
    assert [result.failed for result in results] == [False, True, False]
    assert results[0].output == "domain-pre web1\n"
    assert results[1].timed_out


# -- finding them


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hooks_module, "_TRUSTED_UID", os.getuid())
    directory = tmp_path / "hooks.d"
    directory.mkdir(mode=0o755)
    return directory


def test_no_directory(tmp_path: Path) -> None:
    assert find_hooks(tmp_path / "hooks.d") == []


def test_names_as_run_parts_has_them(directory: Path) -> None:
    names = ["20-b", "10-a", "a.sh", "c~", "d.dpkg-old", "#e", "f g", "Z_9"]
    for name in names:
        script(directory / name, "")
    (directory / "README").write_text("not executable")
    (directory / "30-directory").mkdir()
    (directory / "40-nowhere").symlink_to("nothing")
    found = find_hooks(directory)
    assert [path.name for path in found] == ["10-a", "20-b", "Z_9"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o775), "writable by others"),
        (lambda path: path.chmod(0o757), "chmod go-w"),
    ],
)
@pytest.mark.parametrize("which", ["hook", "directory"])
def test_what_others_may_change_is_refused(
    directory: Path, spoil: Callable[[Path], object], words: str, which: str
) -> None:
    hook = script(directory / "10-a", "")
    spoil(hook if which == "hook" else directory)
    with pytest.raises(ConfigError, match=words) as caught:
        find_hooks(directory)
    assert caught.value.source == str(hook if which == "hook" else directory)


def test_what_belongs_to_another_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(directory / "10-a", "")
    monkeypatch.setattr(hooks_module, "_TRUSTED_UID", os.getuid() + 1)
    with pytest.raises(ConfigError, match="chown root"):
        find_hooks(directory)


def test_a_file_instead_of_the_directory(directory: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        find_hooks(script(directory / "10-a", ""))
