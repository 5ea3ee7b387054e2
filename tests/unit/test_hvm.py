"""HVM guests: the device model stands still while the guest is suspended, whatever happens."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Iterator

import pytest

import xenpm
from xenpm import DomainType, Host, Phase, Settings
from xenpm.aio import Host as AsyncHost
from xenpm.model import ANSWER_NS
from xenpm.testing import MS, SECOND, FakeGuest, FakeXen
from xenpm.testing.guests import CALLBACK_IRQ
from xenpm.testing.models import ACPI_S_STATE, FakeModel

from .checks import assert_nothing_left, assert_runs_on, killed, outcome_of


@pytest.fixture
def guest(xen: FakeXen) -> FakeGuest:
    return xen.add_guest("web", type=DomainType.HVM)


@pytest.fixture
def model(guest: FakeGuest) -> FakeModel:
    return model_of(guest)


@pytest.fixture
def web(guest: FakeGuest, host: xenpm.Host) -> Iterator[xenpm.Domain]:
    """The guest; at the end nothing may have harmed it."""
    yield host.domain(guest.domid)
    guest.xen.settle()
    assert_nothing_left(guest.xen)


def model_of(guest: FakeGuest) -> FakeModel:
    assert guest.model is not None
    return guest.model


def assert_safe(guest: FakeGuest) -> None:
    """It runs with its model, or is suspended and can be resumed."""
    guest.xen.settle()
    model = model_of(guest)
    assert not guest.corrupted
    if guest.suspended:
        model.answer_ns, model.busy = MS, 0
        model.broken.clear()
        with Host(ports=guest.xen.ports()) as host:
            host.domain(guest.domid).resume()
    assert guest.running
    assert model.status == "running"
    assert_runs_on(guest)


# -- the good case


def test_model_stands_still_meanwhile(
    guest: FakeGuest, model: FakeModel, web: xenpm.Domain
) -> None:
    suspension = web.suspend()
    assert guest.suspended
    assert model.status == "paused"
    assert suspension.model_ns == 2 * MS
    assert suspension.total_ns == sum(
        (
            suspension.request_ns,
            suspension.acknowledge_ns,
            suspension.suspend_ns,
            suspension.model_ns,
        )
    )
    resumption = web.resume()
    assert (resumption.cooperative, resumption.model_ns) == (True, 2 * MS)
    assert model.status == "running"
    assert model.commands == ["", "stop", "cont"]
    assert_runs_on(guest)


def test_others_have_no_model(xen: FakeXen, host: xenpm.Host) -> None:
    xen.add_guest("pv", type=DomainType.PV)
    assert host.domain("pv").suspend().model_ns == 0
    assert host.domain("pv").resume().model_ns == 0
    assert xen.calls["ask"] == 0


def test_others_who_wait_for_the_model_are_waited_for(
    guest: FakeGuest, model: FakeModel, web: xenpm.Domain
) -> None:
    model.busy = 3
    web.suspend()
    model.busy = 3
    web.resume()
    assert_runs_on(guest)


def test_resumed_by_another_process(guest: FakeGuest, web: xenpm.Domain) -> None:
    web.suspend()
    with Host(ports=guest.xen.ports()) as other:
        other.domain("web").resume()
    assert_safe(guest)


# -- what is refused, before anything is touched


def refused(guest: FakeGuest, web: xenpm.Domain, kind: type[xenpm.SuspendError]) -> str:
    with pytest.raises(kind) as caught:
        web.suspend()
    assert type(caught.value) is kind
    assert caught.value.phase is Phase.IDLE
    assert guest.xen.calls["write"] == 0
    assert "stop" not in model_of(guest).commands
    assert_runs_on(guest)
    return str(caught.value)


def test_guest_without_drivers(guest: FakeGuest, web: xenpm.Domain) -> None:
    guest.hvm_params[CALLBACK_IRQ] = 0
    assert "without PV drivers" in refused(guest, web, xenpm.SuspendNotSupported)


def test_guest_that_sleeps_by_itself(guest: FakeGuest, web: xenpm.Domain) -> None:
    guest.hvm_params[ACPI_S_STATE] = 3
    assert "trigger('s3resume')" in refused(guest, web, xenpm.SuspendNotSupported)


def test_model_that_does_not_answer(guest: FakeGuest, model: FakeModel, web: xenpm.Domain) -> None:
    model.answer_ns = None
    assert "did not answer within 30 s" in refused(guest, web, xenpm.SuspendError)


def test_no_model(guest: FakeGuest, web: xenpm.Domain) -> None:
    model, guest.model = guest.model, None
    with pytest.raises(xenpm.SuspendError, match="cannot be reached"):
        web.suspend()
    guest.model = model
    assert_safe(guest)


@pytest.mark.parametrize("status", ["paused", "inmigrate", "finish-migrate"])
def test_model_that_somebody_else_has(
    guest: FakeGuest, model: FakeModel, web: xenpm.Domain, status: str
) -> None:
    model.status = status
    assert status in refused(guest, web, xenpm.SuspendInProgress)


# -- what fails in between


def test_model_that_refuses_to_stop(guest: FakeGuest, model: FakeModel, web: xenpm.Domain) -> None:
    model.broken.add("stop")
    with pytest.raises(xenpm.SuspendError, match=r"refuses stop.*has been resumed"):
        web.suspend()
    assert_safe(guest)
    assert guest.resumptions == 1


def test_model_that_stops_too_late(guest: FakeGuest, model: FakeModel, web: xenpm.Domain) -> None:
    """It takes the command when nobody waits any more, and is continued after that."""
    guest.xen.before("ask", lambda: setattr(model, "answer_ns", ANSWER_NS + SECOND), nth=2)
    guest.xen.before("ask", lambda: setattr(model, "answer_ns", 2 * SECOND), nth=3)
    with pytest.raises(xenpm.SuspendError, match=r"did not answer.*has been resumed"):
        web.suspend()
    assert model.commands == ["", "stop", "cont"]
    assert_safe(guest)


def test_model_that_hangs_from_then_on(
    guest: FakeGuest, model: FakeModel, web: xenpm.Domain
) -> None:
    guest.xen.before("ask", lambda: setattr(model, "answer_ns", None), nth=2)
    with pytest.raises(xenpm.ResumeError, match=r"still suspended.*did not answer"):
        web.suspend()
    assert guest.suspended
    with pytest.raises(xenpm.ResumeError, match=r"still suspended.*did not answer"):
        web.resume()
    assert guest.resumptions == 0
    assert_safe(guest)


def test_model_that_does_not_go_on(guest: FakeGuest, model: FakeModel, web: xenpm.Domain) -> None:
    web.suspend()
    model.broken.add("cont")
    with pytest.raises(xenpm.ResumeError, match="must not run without"):
        web.resume()
    assert guest.suspended
    assert guest.resumptions == 0
    assert_safe(guest)


def test_somebody_resumes_it_while_the_model_stops(
    guest: FakeGuest, model: FakeModel, host: xenpm.Host
) -> None:
    """It must not go on running with a model that stands still."""

    def resume() -> None:
        guest.resume(True)
        guest.xen.toolstack.resume_domain(guest.domid)

    guest.xen.before("ask", resume, nth=2)
    with pytest.raises(xenpm.SuspendInProgress, match="somebody else has resumed it"):
        host.domain("web").suspend()
    assert guest.running
    assert model.status == "running"
    guest.corrupted = ""  # that it ran so for a moment was the doing of who resumed it


def test_guest_destroyed_while_the_model_stops(guest: FakeGuest, web: xenpm.Domain) -> None:
    guest.xen.before("ask", guest.destroy, nth=2)
    with pytest.raises(xenpm.SuspendInterrupted, match="destroyed"):
        web.suspend()


def test_guest_destroyed_while_the_model_goes_on(guest: FakeGuest, web: xenpm.Domain) -> None:
    web.suspend()
    guest.xen.before("ask", guest.destroy)
    with pytest.raises(xenpm.NoSuchDomain):
        web.resume()


def test_somebody_resumes_it_while_the_model_goes_on(
    guest: FakeGuest, model: FakeModel, web: xenpm.Domain
) -> None:
    web.suspend()

    def resume() -> None:
        model.status = "running"
        guest.resume(cooperative=True)

    guest.xen.before("ask", resume)
    with pytest.raises(xenpm.NotSuspended, match="any more"):
        web.resume()
    assert guest.resumptions == 1


def test_late_guest_is_resumed_with_its_model_untouched(
    guest: FakeGuest, model: FakeModel, web: xenpm.Domain
) -> None:
    guest.suspend_ns = 3 * SECOND
    with pytest.raises(xenpm.SuspendNotCompleted):
        web.suspend(timeout=1, late_timeout=5)
    assert model.commands == [""]
    assert_safe(guest)


CALLS = ("ask", "acquire", "domain_info", "hvm_param_get", "read", "write", "watch",
         "transaction_start", "transaction_end", "resume", "resume_domain")  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("ask", "acquire")])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_call_fails(guest: FakeGuest, web: xenpm.Domain, name: str, nth: int) -> None:
    guest.xen.fail(name, errno.EIO, nth=nth)
    for verb in (web.suspend, web.resume):
        outcome = outcome_of(verb)
        assert isinstance(outcome, (xenpm.Suspension, xenpm.Resumption, xenpm.XenError))
    guest.xen.stop_failing()
    if guest.request:  # whose clearing failed, as the error says
        guest.xen.toolstack.write(guest.request_path, b"")
    assert_safe(guest)


@pytest.mark.parametrize("name", CALLS)
def test_killed(xen: FakeXen, name: str) -> None:
    """At every call of a host suspend; who comes afterwards brings the guest back."""
    for nth in range(1, 40):
        guest = xen.add_guest(f"web{nth}", type=DomainType.HVM)
        came_so_far = killed(xen, Settings(), name, nth)
        with Host(ports=xen.ports()) as host:
            host.recover()
        assert_safe(guest)
        guest.destroy()
        xen.settle()
        if not came_so_far:
            return
    raise AssertionError(f"there is no end of {name}")


@pytest.mark.parametrize("nth", range(1, 5))
def test_interrupted_while_waiting(guest: FakeGuest, web: xenpm.Domain, nth: int) -> None:
    guest.xen.before("wait", lambda: signal.raise_signal(signal.SIGINT), nth=nth)
    with pytest.raises(KeyboardInterrupt):
        web.suspend()
    assert_safe(guest)


def test_twice_interrupted_is_told(
    guest: FakeGuest, model: FakeModel, web: xenpm.Domain, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        if model_of(guest).commands and guest.suspended:
            signal.raise_signal(signal.SIGINT)

    guest.xen.before("wait", interrupt, times=None)
    guest.xen.before("ask", lambda: setattr(model, "answer_ns", None), nth=2)
    with pytest.raises(KeyboardInterrupt):
        web.suspend()
    guest.xen.stop_failing()
    assert "should it, resume it" in caplog.text
    assert_safe(guest)


def test_with_asyncio(xen: FakeXen, guest: FakeGuest, model: FakeModel) -> None:
    async def cycle() -> None:
        async with AsyncHost(ports=xen.ports()) as host:
            web = await host.domain("web")
            assert (await web.suspend()).model_ns == 2 * MS
            assert model.status == "paused"
            await web.resume()
            await web.trigger("power")

    asyncio.run(cycle())
    assert guest.pressed == [3]
    assert_safe(guest)


# -- the host's sleep


def test_host_sleeps_and_wakes(xen: FakeXen, host: xenpm.Host, guest: FakeGuest) -> None:
    bare = xen.add_guest("bare", type=DomainType.HVM, hvm_params={CALLBACK_IRQ: 0})
    asleep = xen.add_guest("asleep", type=DomainType.HVM, hvm_params={ACPI_S_STATE: 3})
    statuses: list[str] = []
    xen.before("sleep", lambda: statuses.extend(model_of(g).status for g in (guest, bare, asleep)))
    report = host.suspend()
    assert not report.problems
    assert statuses == ["paused", "running", "running"]
    assert (guest.suspensions, bare.suspensions, asleep.suspensions) == (1, 0, 0)
    assert asleep.hvm_params[ACPI_S_STATE] == 3
    told = report.domains[guest.domid].suspension
    assert told is not None
    assert told.model_ns == 2 * MS
    for each in (guest, bare, asleep):
        assert_safe(each)


def test_stub_domain_goes_down_after_its_guest_and_comes_up_before(
    xen: FakeXen, host: xenpm.Host, guest: FakeGuest
) -> None:
    stub = xen.add_guest("web-dm", type=DomainType.PV)
    xen.toolstack.write(f"{stub.home}/target", b"%d" % guest.domid)
    xen.before("pause", lambda: _expect(guest.suspended and model_of(guest).status == "paused"))
    xen.before("resume", lambda: _expect(not stub.pause_count))
    host.suspend()
    assert (guest.suspensions, guest.resumptions, stub.suspensions) == (1, 1, 0)
    assert_safe(guest)


def _expect(condition: bool) -> None:
    assert condition


@pytest.mark.parametrize("on_failure", ["pause", "undo"])
def test_host_suspend_with_a_model_that_hangs(
    xen: FakeXen, host: xenpm.Host, guest: FakeGuest, model: FakeModel, on_failure: str
) -> None:
    """The guest is down although its suspension failed, and comes back with the others."""
    xen.toolstack.write(f"{guest.home}/xenpm/policy", f"on-failure={on_failure}".encode())
    xen.before("ask", lambda: setattr(model, "answer_ns", None), nth=2)
    xen.before("ask", lambda: setattr(model, "answer_ns", MS), nth=4)
    outcome = outcome_of(host.suspend)
    if on_failure == "undo":
        assert isinstance(outcome, xenpm.HostSuspendError)
        assert outcome.rolled_back
    else:
        assert isinstance(outcome, xenpm.Report)
        assert "did not answer" in outcome.problems[0]
    assert guest.running
    assert_safe(guest)


# -- triggers


@pytest.mark.parametrize(("what", "code"), [("power", 3), ("sleep", 4), ("nmi", 0)])
def test_trigger(guest: FakeGuest, web: xenpm.Domain, what: str, code: int) -> None:
    web.trigger(what)
    assert guest.pressed == [code]


def test_woken(guest: FakeGuest, model: FakeModel, web: xenpm.Domain) -> None:
    guest.hvm_params[ACPI_S_STATE], model.status = 3, "suspended"
    web.trigger("s3resume")
    assert (guest.hvm_params[ACPI_S_STATE], model.status) == (0, "running")
    web.suspend()
    web.resume()


def test_not_woken(guest: FakeGuest, model: FakeModel, web: xenpm.Domain) -> None:
    with pytest.raises(xenpm.XenError, match="does not sleep"):
        web.trigger("s3resume")
    guest.hvm_params[ACPI_S_STATE], model.answer_ns = 3, None
    with pytest.raises(xenpm.XenError, match="did not answer"):
        web.trigger("s3resume")


def test_wrong_triggers(guest: FakeGuest, web: xenpm.Domain) -> None:
    with pytest.raises(ValueError, match="one of power, sleep, nmi, s3resume"):
        web.trigger("reset")
    with pytest.raises(ValueError, match="number of a vCPU"):
        web.trigger("nmi", vcpu=-1)
    with pytest.raises(TypeError, match="number of a vCPU"):
        web.trigger("nmi", vcpu="0")  # type: ignore[arg-type]
    with pytest.raises(xenpm.HypercallError, match="xc_domain_send_trigger"):
        web.trigger("nmi", vcpu=7)
    assert guest.pressed == []


@pytest.mark.parametrize("kind", [DomainType.PV, DomainType.PVH])
def test_others_have_no_buttons(xen: FakeXen, host: xenpm.Host, kind: DomainType) -> None:
    other = xen.add_guest("other", type=kind)
    with pytest.raises(xenpm.XenError, match="only HVM guests have ACPI"):
        host.domain("other").trigger("power")
    host.domain("other").trigger("nmi")
    assert other.pressed == [0]


def test_not_triggered_while_it_is_being_suspended(guest: FakeGuest, web: xenpm.Domain) -> None:
    guest.xen.ports().locks.acquire(guest.domid)
    with pytest.raises(xenpm.XenError, match="another process"):
        web.trigger("power")
    guest.xen.locks.clear()
