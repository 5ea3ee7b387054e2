"""What asyncio has besides the conformance suite: cancelling, many calls, many loops."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import random
import signal
from collections.abc import Coroutine
from typing import Any

import pytest

import xenpm
from xenpm import aio
from xenpm.errors import hypercall_error
from xenpm.testing import MS, SECOND, FakeXen

from .checks import assert_nothing_left, assert_released, assert_runs_on

SETTINGS = xenpm.Settings()


def cancelled_after(xen: FakeXen, delay_ns: int, coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine in a loop of its own, and cancel it at that time."""

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        xen.after(delay_ns, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


async def suspend(name: str = "web", late_timeout: float = 30) -> None:
    async with aio.Host() as host:
        await (await host.domain(name)).suspend(late_timeout=late_timeout)


# -- cancelling


def test_cancelled_while_requested(xen: FakeXen) -> None:
    web = xen.add_guest("web", acknowledge_ns=SECOND)
    began = xen.now_ns
    cancelled_after(xen, 500 * MS, suspend())
    assert xen.now_ns == began + 500 * MS, "it did not end at once"
    assert_runs_on(web)
    assert web.suspensions == 0


def test_cancelled_while_acknowledged(xen: FakeXen) -> None:
    web = xen.add_guest("web", suspend_ns=4 * SECOND)
    cancelled_after(xen, SECOND, suspend())
    assert (web.suspensions, web.resumptions) == (1, 1)
    assert_runs_on(web)


def test_cancelled_and_never_suspended(xen: FakeXen, caplog: pytest.LogCaptureFixture) -> None:
    web = xen.add_guest("web", suspend_ns=None)
    began = xen.now_ns
    cancelled_after(xen, SECOND, suspend(late_timeout=5))
    assert xen.now_ns == began + 6 * SECOND
    assert "web (domain 1): took the request to suspend, and still runs" in caplog.text
    assert_runs_on(web)


def test_cancelled_when_it_has_suspended(xen: FakeXen) -> None:
    """The loop has not told the coroutine yet."""
    web = xen.add_guest("web")

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(suspend())
        while not web.suspended:
            await asyncio.sleep(0)
        while xen.listening:  # the engine has noticed
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (web.suspensions, web.resumptions) == (1, 1)
    assert_runs_on(web)


def test_cancelled_in_each_round_of_the_loop(xen: FakeXen) -> None:
    """Between any two steps of a cycle."""
    web = xen.add_guest("web")

    async def cycle() -> None:
        async with aio.Host() as host, (await host.domain("web")).suspended():
            await asyncio.sleep(0)

    async def main() -> bool:
        task = asyncio.get_running_loop().create_task(cycle())
        for _ in range(rounds):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        await asyncio.wait([task])
        return ended

    rounds = 0
    while not asyncio.run(main()):
        assert web.running
        assert_nothing_left(xen)
        rounds += 1
    assert rounds > 5


def test_cancelled_at_a_hundred_random_moments(xen: FakeXen) -> None:
    """No guest stays suspended, whatever was under way, and no descriptor stays open."""
    dice = random.Random(1)  # noqa: S311
    guests = [
        xen.add_guest(f"g{i}", acknowledge_ns=3 * MS + i * MS, suspend_ns=(20 + 30 * i) * MS)
        for i in range(4)
    ]

    async def each(host: aio.Host) -> None:
        await host.suspend_each(await host.domains())

    async def block(host: aio.Host) -> None:
        domains = await host.domains()
        async with domains[0].suspended(), domains[3].suspended():
            async for _ in host.events():
                pass

    async def transaction(host: aio.Host) -> None:
        await host.suspend_domains(settings=SETTINGS)

    async def sleep(host: aio.Host) -> None:
        await host.suspend(settings=SETTINGS)

    async def main() -> bool:
        async with aio.Host() as host:
            task = asyncio.get_running_loop().create_task(dice.choice(verbs)(host))
            xen.after(dice.randrange(200 * MS), task.cancel)
            await asyncio.wait([task])
        return task.cancelled()

    verbs = [each, block, transaction, sleep]
    descriptors = len(os.listdir("/proc/self/fd"))
    cancelled = 0
    for _ in range(100):
        if asyncio.run(main()):
            cancelled += 1
        else:  # all was done before the moment came: put it back for the next
            with xenpm.Host() as host:
                host.resume_domains(settings=SETTINGS)
                host.resume_each([each for each in host.domains() if each.info.suspended])
        for guest in guests:
            assert_runs_on(guest)
    assert cancelled > 60
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert_nothing_left(xen)


def test_cancelled_twice_is_watched_on(xen: FakeXen) -> None:
    web = xen.add_guest("web", suspend_ns=4 * SECOND)

    async def main() -> None:
        async with aio.Host() as host:
            domain = await host.domain("web")
            task = asyncio.get_running_loop().create_task(domain.suspend())
            xen.after(SECOND, task.cancel)
            xen.after(2 * SECOND, task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert web.running
            # closing waits for it

    asyncio.run(main())
    assert (web.suspensions, web.resumptions) == (1, 1)
    assert_runs_on(web)


def test_closing_cancelled_names_who_is_not_watched(
    xen: FakeXen, caplog: pytest.LogCaptureFixture
) -> None:
    xen.add_guest("web", suspend_ns=4 * SECOND)

    async def main() -> None:
        host = aio.Host()
        domain = await host.domain("web")
        task = asyncio.get_running_loop().create_task(domain.suspend())
        xen.after(SECOND, task.cancel)
        xen.after(2 * SECOND, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        closing = asyncio.get_running_loop().create_task(host.close())
        xen.after(SECOND, closing.cancel)
        with pytest.raises(asyncio.CancelledError):
            await closing

    asyncio.run(main())
    assert "web (domain 1): no longer watched over" in caplog.text
    assert_released(xen)


def test_cancelling_many_undoes_all(xen: FakeXen) -> None:
    guests = [xen.add_guest(f"g{n}", suspend_ns=n * SECOND) for n in range(1, 6)]

    async def main() -> None:
        async with aio.Host() as host:
            await host.suspend_each(await host.domains())

    cancelled_after(xen, 3500 * MS, main())
    for guest in guests:
        assert (guest.suspensions, guest.resumptions) == (1, 1)
        assert_runs_on(guest)


def test_what_cannot_be_undone_is_told(xen: FakeXen, caplog: pytest.LogCaptureFixture) -> None:
    xen.add_guest("quick")
    slow = xen.add_guest("slow", acknowledge_ns=None)
    xen.fail("resume", errno.EIO)

    async def main() -> None:
        async with aio.Host() as host:
            await host.suspend_each(await host.domains())

    cancelled_after(xen, SECOND, main())
    assert "cancelled, quick (domain 1) not undone" in caplog.text
    assert slow.running
    assert_released(xen)


def test_block_resumes_when_cancelled(xen: FakeXen) -> None:
    web = xen.add_guest("web")

    async def main() -> None:
        async with aio.Host() as host, (await host.domain("web")).suspended():
            assert web.suspended
            await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.get_running_loop().create_task(main())
        await asyncio.sleep(0.05)
        assert web.suspended
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert_runs_on(web)


def test_cancelling_does_not_end_the_starting_over_of_a_block(xen: FakeXen) -> None:
    """A PVH guest that cannot be resumed otherwise, whose backend takes its time."""
    web = xen.add_guest("web", hvm_params={0: 1})
    web.give_device("vbd", 51712, close_ns=SECOND)

    async def main() -> None:
        async with aio.Host() as host, (await host.domain("web")).suspended():
            web.hvm_params[0] = 0  # as a kernel does that is about to start over
            xen.after(500 * MS, tasks[0].cancel)

    async def run() -> None:
        tasks.append(asyncio.get_running_loop().create_task(main()))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(run())
    assert web.restarts == 1
    assert web.running
    assert_released(xen)


def test_timeout_of_asyncio(xen: FakeXen) -> None:
    """Real time, in which nothing else happens: an idle fake host lets none of its own pass."""
    xen.add_guest("web")

    async def main() -> None:
        async with aio.Host() as host:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(host.events().__anext__(), 0.02)

    asyncio.run(main())
    assert_released(xen)


@pytest.mark.parametrize("delay_ns", [0, 1 * MS, 20 * MS, 41 * MS, 60 * MS])
def test_host_suspend_cancelled(xen: FakeXen, delay_ns: int) -> None:
    guests = [xen.add_guest("web"), xen.add_guest("db", suspend_ns=80 * MS)]

    async def main() -> None:
        async with aio.Host() as host:
            await host.suspend(settings=SETTINGS)

    cancelled_after(xen, delay_ns, main())
    for guest in guests:
        assert_runs_on(guest)
    assert xen.calls["sleep"] == 0
    assert xen.journal == []


def test_suspend_domains_cancelled_when_done(xen: FakeXen) -> None:
    web = xen.add_guest("web")

    async def down() -> None:
        async with aio.Host() as host:
            await host.suspend_domains(settings=SETTINGS)

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(down())
        while not web.suspended:
            await asyncio.sleep(0)
        while xen.listening:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert_runs_on(web)
    assert xen.journal == []


def test_host_sleeps(xen: FakeXen) -> None:
    web = xen.add_guest("web")

    async def main() -> xenpm.Report:
        async with aio.Host() as host:
            told: list[str] = []
            report = await host.suspend(settings=SETTINGS, progress=told.append)
            assert any("suspended in" in text for text in told)
            with pytest.raises(ValueError, match="must not be empty"):
                await host.suspend("")
            return report

    report = asyncio.run(main())
    assert report.problems == []
    assert report.sleep is not None
    assert_runs_on(web)


# -- signals


def test_interrupted_in_the_middle_of_a_step(xen: FakeXen) -> None:
    """A handler that raises, at each call to Xen: no machine ends in the middle of something."""

    class Alarm(BaseException):
        pass

    def handler(*_: object) -> None:
        raise Alarm

    web = xen.add_guest("web")
    before = signal.signal(signal.SIGALRM, handler)
    try:
        nth = 1
        while True:
            xen.calls.clear()
            xen.before("*", lambda: signal.raise_signal(signal.SIGALRM), nth=nth)
            try:
                asyncio.run(suspend())
            except Alarm:
                assert web.running, f"at call {nth}"
                assert_runs_on(web)
            else:
                break
            finally:
                xen.stop_failing()
            nth += 1
        assert nth > 10
    finally:
        signal.signal(signal.SIGALRM, before)


# -- many calls, hosts and loops


def test_calls_beside_each_other(xen: FakeXen) -> None:
    for number in range(20):
        xen.add_guest(f"g{number}", suspend_ns=(number + 1) * 10 * MS)

    async def cycle(domain: aio.Domain) -> int:
        async with domain.suspended() as suspension:
            return suspension.suspend_ns

    async def main() -> list[int]:
        async with aio.Host() as host:
            return await asyncio.gather(*[cycle(domain) for domain in await host.domains()])

    began = xen.now_ns
    took = asyncio.run(main())
    assert took == [(number + 1) * 10 * MS for number in range(20)]
    assert xen.now_ns - began < 300 * MS, "one after the other"
    assert_nothing_left(xen)


def test_one_domain_twice(xen: FakeXen) -> None:
    xen.add_guest("web")

    async def main() -> tuple[object, object]:
        async with aio.Host() as host:
            web = await host.domain("web")
            return await asyncio.gather(web.suspend(), web.suspend(), return_exceptions=True)

    first, second = asyncio.run(main())
    assert isinstance(first, xenpm.Suspension)
    assert isinstance(second, xenpm.SuspendInProgress)


def test_two_hosts_wait_by_their_own_deadlines(xen: FakeXen) -> None:
    """Of the virtual time, none passes the earlier deadline unheard."""
    xen.add_guest("web", acknowledge_ns=None)
    xen.add_guest("db", acknowledge_ns=None)

    async def main() -> tuple[object, object]:
        async with aio.Host() as one, aio.Host() as two:
            web, db = await one.domain("web"), await two.domain("db")
            return await asyncio.gather(
                web.suspend(timeout=30), db.suspend(timeout=5), return_exceptions=True
            )

    elapsed = [getattr(error, "elapsed", None) for error in asyncio.run(main())]
    assert elapsed == [30, 5]


def test_a_loop_has_its_own_default_connection(xen: FakeXen) -> None:
    xen.add_guest("web")
    kept: list[aio.Domain] = []

    async def first() -> None:
        kept.append(aio.Domain("web"))
        assert aio.Domain("web")._connection is kept[0]._connection

    async def second() -> None:
        assert aio.Domain("web") == kept[0]
        assert aio.Domain("web")._connection is not kept[0]._connection
        with pytest.raises(RuntimeError, match="another event loop"):
            await kept[0].suspend()

    connections = len(xen.store.connections)
    asyncio.run(first())
    asyncio.run(second())
    kept.clear()
    gc.collect()
    assert len(aio._of_loop) == 0
    assert len(xen.store.connections) == connections + 2  # FakeStore has no destructor


def test_without_a_loop(xen: FakeXen) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.Host()
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.Domain("web")
    assert_released(xen)


def test_domains_of_others_are_refused(xen: FakeXen) -> None:
    xen.add_guest("web")

    async def main() -> None:
        async with aio.Host() as host, aio.Host() as other:
            for wrong in (await other.domain("web"), xenpm.Domain("web")):
                with pytest.raises(ValueError, match="another connection"):
                    await host.suspend_each([wrong])  # type: ignore[list-item]
            with pytest.raises(TypeError, match=r"must be xenpm\.Domain objects"):
                await host.suspend_each(["web"])  # type: ignore[list-item]

    asyncio.run(main())


def test_use_after_close(xen: FakeXen) -> None:
    xen.add_guest("web")

    async def main() -> None:
        host = aio.Host()
        domain = await host.domain("web")
        await host.close()
        await host.close()
        for verb in (domain.suspend, domain.resume, host.domains, host.topology):
            with pytest.raises(ValueError, match="closed"):
                await verb()

    asyncio.run(main())


def test_closed_under_a_call(xen: FakeXen) -> None:
    web = xen.add_guest("web", acknowledge_ns=SECOND)

    async def main() -> None:
        host = aio.Host()
        domain = await host.domain("web")
        events = asyncio.ensure_future(host.events().__anext__())
        suspending = asyncio.ensure_future(domain.suspend())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await host.close()
        for task in (events, suspending):
            with pytest.raises(xenpm.XenError, match="was closed"):
                await task

    asyncio.run(main())
    assert_runs_on(web)


def test_nothing_begins_while_it_is_closed(xen: FakeXen) -> None:
    """But what makes a guest safe: close() says that nobody has to be watched over any more."""
    slow = xen.add_guest("slow", suspend_ns=5 * SECOND)
    web, held = xen.add_guest("web"), xen.add_guest("held")

    async def main() -> None:
        host = aio.Host()
        web_domain = await host.domain("web")
        suspending = asyncio.ensure_future((await host.domain("slow")).suspend())
        block = (await host.domain("held")).suspended()
        await block.__aenter__()
        closing: list[asyncio.Future[None]] = []
        tried: list[asyncio.Future[Any]] = []

        def close_and_try() -> None:
            closing.extend(asyncio.ensure_future(host.close()) for _ in range(2))
            xen.after(100 * MS, lambda: tried.append(asyncio.ensure_future(web_domain.suspend())))
            xen.after(
                SECOND, lambda: tried.append(asyncio.ensure_future(block.__aexit__(*3 * (None,))))
            )

        xen.after(500 * MS, close_and_try)
        with pytest.raises(xenpm.XenError, match="was closed"):
            await suspending
        await asyncio.gather(*closing)
        assert xen.now_ns >= 5 * SECOND
        late, ended = tried
        with pytest.raises(ValueError, match="being closed"):
            await late
        await ended

    asyncio.run(main())
    assert web.suspensions == 0
    assert_runs_on(slow)
    assert_runs_on(held)


def test_waiting_for_an_event_again(xen: FakeXen) -> None:
    """What was given up, and what has failed, does not end the events, and loses none."""
    web = xen.add_guest("web")

    async def main() -> list[str]:
        async with aio.Host() as host:
            events = host.events()
            for _ in range(2):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(events.__anext__(), 0.02)
            xen.after(MS, web.suspend)
            xen.fail("domain_list", errno.EINTR)
            with pytest.raises(xenpm.HypercallError):
                await events.__anext__()
            web.destroy()
            xen.settle()
            return [str(await events.__anext__())]

    assert asyncio.run(main()) == ["web (domain 1): gone"]


def test_event_that_came_with_the_cancelling(xen: FakeXen) -> None:
    web = xen.add_guest("web")

    async def main() -> str:
        async with aio.Host() as host:
            events = host.events()
            waiting = asyncio.ensure_future(events.__anext__())

            def both() -> None:
                web.suspend()
                waiting.cancel()

            xen.after(MS, both)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return str(await events.__anext__())

    assert asyncio.run(main()) == "web (domain 1): suspended"


def test_what_the_test_raises_meanwhile_reaches_it(xen: FakeXen) -> None:
    web = xen.add_guest("web")

    def check() -> None:
        raise AssertionError("not as it should be")

    xen.after(10 * MS, check)
    with pytest.raises(AssertionError, match="not as it should be"):
        asyncio.run(asyncio.wait_for(suspend(), 10))
    assert_runs_on(web)


def test_forked_child(xen: FakeXen) -> None:
    xen.add_guest("web")

    async def main() -> None:
        async with aio.Host() as host:
            domain = await host.domain("web")
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    await domain.suspend()
                except RuntimeError:
                    await host.close()  # does nothing
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            await domain.suspend()

    asyncio.run(main())


# -- what fails


def test_failed_dispatch_cancels_all(xen: FakeXen, caplog: pytest.LogCaptureFixture) -> None:
    """Of one fault of xenpm's own the guests are not to suffer."""
    web = xen.add_guest("web", acknowledge_ns=SECOND)
    xen.before("check_watch", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(suspend())
    assert "no longer watched" not in caplog.text
    assert_runs_on(web)


def test_dispatch_that_fails_again_drops_all(
    xen: FakeXen, caplog: pytest.LogCaptureFixture
) -> None:
    xen.add_guest("web", suspend_ns=10 * SECOND)
    xen.before("check_watch", lambda: 1 / 0, nth=5, times=None)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(suspend())
    assert "web (domain 1): no longer watched over" in caplog.text
    xen.stop_failing()
    assert xen.locks == {}


def test_loop_that_cannot_listen(xen: FakeXen, caplog: pytest.LogCaptureFixture) -> None:
    xen.add_guest("web")
    xen.before("listen", lambda: 1 / 0)
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        asyncio.run(suspend())
    assert "no longer watched over" in caplog.text
    assert_released(xen)


def test_calls_that_fail_are_the_callers(xen: FakeXen) -> None:
    web = xen.add_guest("web")
    xen.fail("domain_info", errno.EFAULT)
    with pytest.raises(xenpm.HypercallError) as caught:
        asyncio.run(suspend())
    assert type(caught.value) is type(hypercall_error("xc_domain_getinfolist", errno.EFAULT))
    assert_runs_on(web)


# -- events


def test_events_beside_all_else(xen: FakeXen) -> None:
    xen.add_guest("old")
    seen: list[str] = []

    async def main() -> None:
        async with aio.Host() as host:
            events = host.events()
            web = xen.add_guest("web")

            async def watch() -> None:
                async for event in events:
                    seen.append(str(event))
                    if event.kind is xenpm.DomainEventKind.GONE:
                        return

            watching = asyncio.get_running_loop().create_task(watch())
            async with (await host.domain("web")).suspended():
                while len(seen) < 2:
                    await asyncio.sleep(0)
            while len(seen) < 3:
                await asyncio.sleep(0)
            web.destroy()
            await watching

    asyncio.run(main())
    assert seen == [
        "web (domain 2): appeared",
        "web (domain 2): suspended",
        "web (domain 2): resumed",
        "web (domain 2): gone",
    ]
    assert_released(xen)
