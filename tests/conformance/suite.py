"""What holds of suspending and resuming, whoever asks and on whatever host."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import pytest

import xenpm
from xenpm import DomainEventKind, DomainState, Phase, ShutdownReason, aio

from .api import APIS, Api

ENDS = [ShutdownReason.CRASH, ShutdownReason.POWEROFF, ShutdownReason.REBOOT, None]
CONTROL = "control/shutdown"
MOMENTS = 100  # at which a call is cancelled
LONG = 60.0  # seconds, for what ends by something else


class World(Protocol):
    """The guests "victim-pv", "victim-pvh", "stall" and "bystander", and what may happen to them.

    All run at the beginning of each test.
    """

    def read(self, path: str) -> bytes: ...
    def write(self, path: str, value: bytes) -> None: ...

    def shut_down(self, name: str, reason: ShutdownReason) -> None:
        """The hypervisor shuts a guest down, and nobody does anything about it."""

    def destroy(self, name: str) -> None:
        """The toolstack destroys a guest."""

    def create(self, name: str) -> None:
        """The toolstack makes a guest that was destroyed anew."""

    def unharmed(self, name: str) -> AbstractContextManager[None]:
        """Within: at the end it must run on, and be the guest that it was."""

    def stalled(self) -> AbstractContextManager[Callable[[], None]]:
        """Within: "stall" takes requests and does not suspend, until what this gives is called."""

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something while a call is under way."""

    def cancel_after(self, seconds: float, task: asyncio.Task[None]) -> None:
        """Cancel a task of the running event loop."""


def state_of(domain: xenpm.Domain | aio.Domain) -> DomainState:
    """What it is doing now."""
    return domain.state


class Conformance:
    """The tests; whoever inherits them has a fixture `world`."""

    @pytest.fixture(params=APIS)
    def api(self, request: pytest.FixtureRequest) -> Iterator[Api]:
        api = Api(request.param)
        yield api
        api.close()

    @pytest.fixture
    def host(self, api: Api, world: World) -> xenpm.Host:  # noqa: ARG002  (the host must be there)
        return api.host()

    # -- the good case

    @pytest.mark.core
    @pytest.mark.parametrize("name", ["victim-pv", "victim-pvh"])
    def test_cycle(self, name: str, host: xenpm.Host, world: World) -> None:
        domain = host.domain(name)
        assert state_of(domain) is DomainState.RUNNING
        with world.unharmed(name):
            for _ in range(3):
                suspension = domain.suspend(lightweight=True)
                assert suspension.domain == domain.ref
                assert suspension.suspend_ns > 0
                assert state_of(domain) is DomainState.SUSPENDED
                assert domain.shutdown_reason is ShutdownReason.SUSPEND
                assert world.read(f"/local/domain/{domain.domid}/{CONTROL}") == b""
                resumption = domain.resume()
                assert resumption.cooperative
                assert resumption.problems == ()
                assert state_of(domain) is DomainState.RUNNING

    def test_default_connection(self, api: Api, world: World) -> None:
        domain = api.domain("victim-pv")
        with world.unharmed("victim-pv"):
            domain.suspend()
            domain.resume()

    def test_ways_to_name_a_domain(self, host: xenpm.Host) -> None:
        known = host.domain("victim-pv")
        for reference in (known.domid, str(known.domid), known.uuid, str(known.uuid), known.ref):
            assert host.domain(reference) == known
        assert known in host.domains()
        for unknown in ("no-such-guest", 4000):
            with pytest.raises(xenpm.NoSuchDomain):
                host.domain(unknown)
        with pytest.raises(TypeError, match="not by float"):
            host.domain(1.5)  # type: ignore[arg-type]

    def test_block(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("victim-pvh")
        with world.unharmed("victim-pvh"):
            with domain.suspended() as suspension:
                assert suspension.domain == domain.ref
                assert state_of(domain) is DomainState.SUSPENDED
            assert state_of(domain) is DomainState.RUNNING
            with pytest.raises(ZeroDivisionError), domain.suspended():
                raise ZeroDivisionError
            assert state_of(domain) is DomainState.RUNNING

    def test_pause(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("victim-pv")
        with world.unharmed("victim-pv"):
            domain.pause()
            assert state_of(domain) is DomainState.PAUSED
            domain.unpause()
            assert state_of(domain) is DomainState.RUNNING

    def test_many_each_for_itself(self, host: xenpm.Host, world: World) -> None:
        one, other, paused = (host.domain(n) for n in ("victim-pv", "victim-pvh", "bystander"))
        with world.unharmed("victim-pv"), world.unharmed("victim-pvh"):
            paused.pause()
            outcomes = host.suspend_each([one, paused, other], timeout=3)
            paused.unpause()
            assert list(outcomes) == [one, paused, other]
            assert isinstance(outcomes[one], xenpm.Suspension)
            assert isinstance(outcomes[paused], xenpm.SuspendNotAcknowledged)
            assert isinstance(outcomes[other], xenpm.Suspension)
            again = host.resume_each([one, paused, other])
            assert isinstance(again[one], xenpm.Resumption)
            assert isinstance(again[paused], xenpm.NotSuspended)
            assert isinstance(again[other], xenpm.Resumption)

    # -- refused

    def test_wrong_arguments(self, host: xenpm.Host) -> None:
        domain = host.domain("victim-pv")
        for timeout in (0, -1, float("nan"), float("inf"), 1e9):
            with pytest.raises(ValueError, match="timeout must be more than 0"):
                domain.suspend(timeout=timeout)
        with pytest.raises(TypeError, match="timeout must be a number"):
            domain.suspend(timeout="1")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="takes a path"):
            domain.suspend(lightweight=False)  # type: ignore[call-overload]
        assert state_of(domain) is DomainState.RUNNING

    def test_not_twice(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("victim-pv")
        with world.unharmed("victim-pv"):
            with pytest.raises(xenpm.NotSuspended, match="running"):
                domain.resume()
            with domain.suspended():
                with pytest.raises(xenpm.AlreadySuspended):
                    domain.suspend()
                assert state_of(domain) is DomainState.SUSPENDED

    def test_guest_that_says_it_cannot(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("victim-pv")
        feature = f"/local/domain/{domain.domid}/control/feature-suspend"
        before = world.read(feature)
        world.write(feature, b"0")
        with pytest.raises(xenpm.SuspendNotSupported, match="feature-suspend"):
            domain.suspend()
        world.write(feature, before)
        assert state_of(domain) is DomainState.RUNNING

    def test_domain_0(self, host: xenpm.Host) -> None:
        with pytest.raises(xenpm.SuspendNotSupported, match="domain 0"):
            host.domain(0).suspend()

    # -- the requested phase

    def test_never_acknowledged(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("victim-pv")
        with world.unharmed("victim-pv"):
            domain.pause()
            with pytest.raises(xenpm.SuspendNotAcknowledged, match="It is paused") as caught:
                domain.suspend(timeout=1.5, late_timeout=LONG)
            assert caught.value.phase is Phase.REQUESTED
            assert 1.5 <= caught.value.elapsed < LONG
            assert world.read(f"/local/domain/{domain.domid}/{CONTROL}") == b""
            domain.unpause()
            domain.suspend()
            domain.resume()

    def test_foreign_request(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("victim-pv")
        path = f"/local/domain/{domain.domid}/{CONTROL}"
        with world.unharmed("victim-pv"):
            domain.pause()  # or it would reboot
            world.write(path, b"reboot")
            with pytest.raises(xenpm.SuspendInProgress, match="reboot"):
                domain.suspend(timeout=5)
            assert world.read(path) == b"reboot"
            world.write(path, b"")
            domain.unpause()

    @pytest.mark.trouble
    @pytest.mark.parametrize("end", ENDS)
    def test_ends_while_requested(
        self, end: ShutdownReason | None, host: xenpm.Host, world: World
    ) -> None:
        domain = host.domain("victim-pv")
        domain.pause()
        self._end_after(0.5, "victim-pv", end, world)
        with pytest.raises(xenpm.SuspendInterrupted) as caught:
            domain.suspend(timeout=LONG)
        assert caught.value.phase is Phase.REQUESTED
        assert caught.value.reason is end

    # -- the acknowledged phase

    @pytest.mark.core
    @pytest.mark.trouble
    def test_acknowledged_and_late(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("stall")
        with world.unharmed("stall"), world.stalled() as release:
            world.after(4, release)
            with pytest.raises(xenpm.SuspendNotCompleted, match="resumed") as caught:
                domain.suspend(timeout=1, late_timeout=LONG)
            assert caught.value.phase is Phase.SUSPENDED
            assert caught.value.resumed_late

    @pytest.mark.trouble
    @pytest.mark.parametrize("end", ENDS)
    def test_ends_while_acknowledged(
        self, end: ShutdownReason | None, host: xenpm.Host, world: World
    ) -> None:
        domain = host.domain("stall")
        with world.stalled():
            self._end_after(3, "stall", end, world)
            with pytest.raises(xenpm.SuspendInterrupted) as caught:
                domain.suspend(timeout=LONG)
            assert caught.value.phase is Phase.ACKNOWLEDGED
            assert caught.value.reason is end

    def _end_after(
        self, seconds: float, name: str, end: ShutdownReason | None, world: World
    ) -> None:
        if end is None:
            world.after(seconds, lambda: world.destroy(name))
        else:
            world.after(seconds, lambda: world.shut_down(name, end))

    @pytest.mark.trouble
    def test_somebody_else_is_at_it(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("stall")
        others: list[xenpm.XenError] = []

        def other() -> None:
            with xenpm.Host() as second:
                for verb in (second.domain("stall").suspend, second.domain("stall").resume):
                    try:
                        verb()
                    except xenpm.XenError as error:
                        others.append(error)

        with world.unharmed("stall"), world.stalled() as release:
            world.after(1, other)
            world.after(4, release)
            domain.suspend(timeout=LONG)
            assert [type(error) for error in others] == [
                xenpm.SuspendInProgress,
                xenpm.ResumeError,
            ]
            domain.resume()

    # -- the whole host

    @pytest.mark.trouble
    def test_gone(self, host: xenpm.Host, world: World) -> None:
        domain = host.domain("victim-pv")
        world.destroy("victim-pv")
        for verb in (domain.suspend, domain.resume, domain.pause, domain.unpause):
            with pytest.raises(xenpm.NoSuchDomain):
                verb()
        for reference in ("victim-pv", domain.domid, domain.uuid):
            with pytest.raises(xenpm.NoSuchDomain):
                host.domain(reference)

    @pytest.mark.core
    @pytest.mark.trouble
    def test_events(self, host: xenpm.Host, world: World) -> None:
        events = host.events()
        domain = host.domain("victim-pv")
        domain.suspend()
        assert next(events) == (DomainEventKind.SUSPENDED, domain.ref)
        domain.resume()
        assert next(events) == (DomainEventKind.RESUMED, domain.ref)
        world.after(0.2, lambda: world.destroy("victim-pv"))
        assert next(events) == (DomainEventKind.GONE, domain.ref)
        world.create("victim-pv")
        assert next(events) == (DomainEventKind.APPEARED, host.domain("victim-pv").ref)

    def test_all_guests_down_and_up(self, host: xenpm.Host, world: World) -> None:
        names = ["victim-pv", "victim-pvh", "stall", "bystander"]
        settings = xenpm.Settings()
        assert {e.domain.name for e in host.plan(settings=settings).entries if e.goes_down} == {
            *names
        }
        assert {member.domain.name for member in host.topology().members} >= {*names}
        with world.unharmed("victim-pv"), world.unharmed("victim-pvh"):
            report = host.suspend_domains(settings=settings)
            assert report.problems == []
            assert {host.domain(name).state for name in names} == {DomainState.SUSPENDED}
            with pytest.raises(xenpm.JournalError, match="down already"):
                host.suspend_domains(settings=settings)
            with pytest.raises(xenpm.JournalError, match="on purpose"):
                host.recover(settings=settings)
            again = host.resume_domains(settings=settings)
            assert again is not None
            assert again.problems == []
            assert host.recover(settings=settings) is None
        assert {host.domain(name).state for name in names} == {DomainState.RUNNING}

    # -- cancelling, which only asyncio can

    @pytest.mark.core
    @pytest.mark.parametrize("name", ["victim-pv", "victim-pvh"])
    def test_cancelled_at_any_moment(self, name: str, api: Api, world: World) -> None:
        if not api.has_loop:
            pytest.skip("what blocks is interrupted by signals, which has tests of its own")
        rnd = random.Random(name)  # noqa: S311

        async def cycle(domain: aio.Domain) -> None:
            async with domain.suspended():
                await asyncio.sleep(0)
            await domain.suspend()
            await domain.resume()  # begins before anybody can cancel

        async def cancel_again_and_again() -> None:
            descriptors = len(os.listdir("/proc/self/fd"))
            async with aio.Host() as host:
                domain = await host.domain(name)
                took_ns = (await domain.suspend()).total_ns + (await domain.resume()).total_ns
                cancelled = 0
                for _ in range(MOMENTS):  # all over the two of them
                    task = asyncio.get_running_loop().create_task(cycle(domain))
                    world.cancel_after(rnd.uniform(0, 2 * took_ns / 1e9), task)
                    try:
                        await task
                    except asyncio.CancelledError:
                        cancelled += 1
                    assert state_of(domain) is DomainState.RUNNING
                assert cancelled > MOMENTS // 2
            assert len(os.listdir("/proc/self/fd")) == descriptors

        with world.unharmed(name):
            api.run(cancel_again_and_again())
