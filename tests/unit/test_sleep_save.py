"""Guests that are saved to files while the host sleeps, on a fake host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import xenpm
from xenpm import OnFailure, Outcome, Phase, Policy, Rule, Settings
from xenpm.testing import SECOND, FakeGuest, FakeXen

from .checks import killed
from .fake_worker import SIZE, FakeWorker, Saved
from .test_sleep import assert_all_run, drivers, outcomes

pytestmark = pytest.mark.usefixtures("nothing_installed")


@pytest.fixture
def worker(xen: FakeXen) -> FakeWorker:
    return FakeWorker(xen)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(save_directory=tmp_path / "save", domains={"web": Rule(Policy.SAVE)})


@pytest.fixture
def web(xen: FakeXen) -> FakeGuest:
    xen.add_guest("db")
    guest = xen.add_guest("web")
    guest.give_device("vbd", 51712)
    return guest


def test_saved_before_and_restored_after(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, web: FakeGuest, settings: Settings
) -> None:
    down: list[bool] = []
    xen.before("sleep", lambda: down.append(web.domid in xen.guests))
    told: list[str] = []
    report = host.suspend(settings=settings, progress=told.append)
    assert down == [False]
    assert outcomes(report) == {"db": Outcome.RUNNING, "web": Outcome.RUNNING}
    each = report.domains[web.domid]
    assert each.saving is not None
    assert each.saving.size_bytes == SIZE
    assert each.restored == host.domain("web").ref
    assert each.restored.domid != web.domid
    assert report.problems == []
    assert report.to_dict()["domains"][1]["restored"]["name"] == "web"
    assert "saved in" in report.to_text()
    path = settings.save_directory / f"{host.domain('web').uuid}.save"
    assert any(f"saved to {path}" in line for line in told)
    assert any("web (domain 3): restored in" in line for line in told)
    assert worker.files == {}
    assert settings.save_directory.stat().st_mode & 0o777 == 0o700
    spans = {span.what for span in report.timeline if span.row.startswith("web")}
    assert spans >= {"save", "saved", "restore", "check"}
    assert_all_run(xen)


def test_what_others_depend_on_is_not_saved(xen: FakeXen, host: xenpm.Host) -> None:
    drivers(xen)
    plan = host.plan(settings=Settings(default=Rule(Policy.SAVE)))
    assert {each.domain.name: each.policy for each in plan.entries} == {
        "net": Policy.ABORT,
        "store": Policy.ABORT,
        "web": Policy.SAVE,
    }
    assert any("cannot be saved, as the configuration says" in each for each in plan.refusals)
    assert "save" in str(plan)


def test_directory_that_cannot_be_made(
    xen: FakeXen, host: xenpm.Host, web: FakeGuest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(save_directory=tmp_path / "file" / "save", default=Rule(Policy.SAVE))
    with pytest.raises(xenpm.ConfigError, match="cannot be made"):
        host.suspend(settings=settings)
    assert web.running
    assert_all_run(xen)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_save_that_fails(
    xen: FakeXen, host: xenpm.Host, web: FakeGuest, settings: Settings, on_failure: OnFailure
) -> None:
    FakeWorker(xen, dies="suspended")
    rules = {host.domain("web"): Rule(Policy.SAVE, on_failure)}
    if on_failure is OnFailure.UNDO:
        with pytest.raises(xenpm.HostSuspendError, match="was not saved") as caught:
            host.suspend(settings=settings, rules=rules)
        assert caught.value.rolled_back
        assert xen.calls["sleep"] == 0
    else:
        report = host.suspend(settings=settings, rules=rules)
        assert xen.calls["sleep"] == 1
        assert "was paused, for it could not be suspended" in report.problems[0]
    assert web.running
    assert_all_run(xen)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_saved_but_not_destroyed(
    xen: FakeXen, host: xenpm.Host, web: FakeGuest, settings: Settings, on_failure: OnFailure
) -> None:
    """It is suspended beside its complete file: nobody may take it for one that runs."""
    worker = FakeWorker(xen)
    ref = host.domain("web").ref
    worker.refusal = xenpm.SaveError(ref, "could not be destroyed", phase=Phase.SUSPENDED)
    worker.refusal.state_known = False
    web.suspend()
    path = str(settings.save_directory / f"{web.info.uuid}.save")
    script = {"uuid": web.info.uuid, "type": web.info.type}
    worker.files[path] = Saved("web", script)
    web.resume(True)
    xen.before("run", web.suspend)
    rules = {host.domain("web"): Rule(Policy.SAVE, on_failure)}
    with pytest.raises(xenpm.HostSuspendError, match="could not be destroyed") as caught:
        host.suspend(settings=settings, rules=rules)
    assert not caught.value.rolled_back
    assert outcomes(caught.value.report)["web"] is Outcome.LOST
    assert xen.journal
    worker.refusal = None
    assert host.recover() is not None
    assert host.domain("web").state is xenpm.DomainState.RUNNING
    assert worker.files == {}
    assert_all_run(xen)


def test_restore_that_fails_can_be_tried_again(
    xen: FakeXen, host: xenpm.Host, worker: FakeWorker, web: FakeGuest, settings: Settings
) -> None:
    xen.before("sleep", lambda: setattr(worker, "refusal", xenpm.RestoreError(Path("/a"), "no")))
    with pytest.raises(xenpm.HostSuspendError, match="no") as caught:
        host.suspend(settings=settings)
    assert not caught.value.rolled_back
    assert outcomes(caught.value.report)["web"] is Outcome.LOST
    worker.refusal = None
    report = host.resume_domains(settings=settings)
    assert report is not None
    assert outcomes(report)["web"] is Outcome.RUNNING
    assert worker.files == {}
    assert web.domid not in xen.guests
    assert_all_run(xen)


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize("left", ["", "/a could not be removed (Read-only file system)"])
def test_restored_by_hand_and_then_recovered(
    left: str,
    xen: FakeXen,
    host: xenpm.Host,
    worker: FakeWorker,
    settings: Settings,
) -> None:
    """Its file does not fit its disks any more, and would be in the way of the next save."""
    xen.before("sleep", lambda: setattr(worker, "refusal", xenpm.RestoreError(Path("/a"), "no")))
    with pytest.raises(xenpm.HostSuspendError, match="no"):
        host.suspend(settings=settings)
    worker.refusal, worker.left = None, left
    ((_, saved),) = worker.files.items()
    again = xen.add_guest(saved.name, **saved.script)
    report = host.recover(settings=settings)
    assert report is not None
    (each,) = [each for each in report.domains.values() if each.entry.domain.name == "web"]
    assert (each.outcome, each.problems) == (Outcome.RUNNING, [left] if left else [])
    assert each.restored is not None
    assert each.restored.domid == again.domid
    assert worker.files == {}


def test_time_is_over_while_it_is_saved(
    xen: FakeXen, host: xenpm.Host, web: FakeGuest, settings: Settings
) -> None:
    FakeWorker(xen, lasts_ns=400 * SECOND)
    with pytest.raises(xenpm.HostSuspendError, match="not all was down after 300 s"):
        host.suspend(settings=settings)
    assert web.running
    assert_all_run(xen)


@pytest.mark.parametrize("settle", [False, True])
@pytest.mark.parametrize("name", ["journal_begin", "journal_add", "run", "sleep", "journal_end"])
def test_killed_anywhere_and_recovered(name: str, settle: bool, tmp_path: Path) -> None:
    """Whatever the moment, the worker goes on, and recover() makes of it what there is."""
    settings = Settings(save_directory=tmp_path, domains={"web": Rule(Policy.SAVE)})
    for nth in range(1, 20):
        xen = FakeXen()
        worker = FakeWorker(xen)
        xen.add_guest("db")
        xen.add_guest("web")
        if not killed(xen, settings, name, nth):
            assert nth > 1
            return
        if settle:
            xen.settle()
        with xenpm.Host(ports=xen.ports()) as host:
            if worker.busy and host._connection.ports.journal.read():
                with pytest.raises(xenpm.HostSuspendError, match="another process"):
                    host.recover(settings=settings)
                xen.settle()
            host.recover(settings=settings)
            assert host.recover(settings=settings) is None
            assert host.domain("web").state is xenpm.DomainState.RUNNING
        assert worker.files == {}
        assert_all_run(xen)
    pytest.fail("it is never done")


@pytest.mark.parametrize("dies", ["before", "suspended", "complete", "done"])
@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_both_workers_die(
    dies: str, on_failure: OnFailure, xen: FakeXen, host: xenpm.Host, settings: Settings
) -> None:
    """Whatever they have left: the domain comes back when all others do, or at the next try."""
    xen.add_guest("web")
    worker = FakeWorker(xen, dies=dies, second_dies=True)
    rule = Rule(Policy.SAVE, on_failure)
    failed: xenpm.HostSuspendError | None = None
    try:
        report = host.suspend(settings=replace(settings, domains={"web": rule}))
    except xenpm.HostSuspendError as error:
        failed = error
    else:
        assert report.problems
    if failed is not None:
        assert failed.rolled_back is not bool(xen.journal)
    worker.dies, worker.second_dies = "", False
    host.recover()
    (guest,) = [guest for guest in xen.guests.values() if guest.name == "web"]
    assert guest.running
    assert not guest.pause_count
    assert host.recover() is None
