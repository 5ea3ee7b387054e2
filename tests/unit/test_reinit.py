"""Starting a guest over: every step, every step failing, a process killed between any two."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

import pytest

import xenpm
from xenpm import DomainType, reinit
from xenpm.engine import Engine
from xenpm.testing import MS, SECOND, FakeGuest, FakeXen
from xenpm.testing.devices import CONNECTED
from xenpm.testing.guests import CALLBACK_IRQ

from .checks import Killed, assert_nothing_left, assert_released, outcome_of

STEPS = ["devices", "reset", "channels", "grants", "store", "run"]
NOTE = "/local/domain/1/xenpm/reinit"


def suspended(xen: FakeXen, **script: Any) -> FakeGuest:
    """A suspended guest with two disks, one of them served by another guest, and a network."""
    guest = xen.add_guest("web", **script)
    xen.add_guest("store")
    guest.give_device("vbd", 51712)
    guest.give_device("vbd", 51728, server=2)
    guest.give_device("vif", 0, close_ns=3 * MS)
    with xenpm.Host(ports=xen.ports()) as host:
        host.domain("web").suspend()
    return guest


def killed(xen: FakeXen, nth: int, *, force: bool = False) -> bool:
    """Start the guest over in a process that is killed at its n-th call; False if it has fewer."""
    ports = xen.ports()
    engine = Engine(ports)
    ref = xenpm.Host(ports=ports).domain("web").ref

    def die() -> None:
        raise Killed

    xen.before("*", die, nth=nth, times=None)
    try:
        task = engine.start(reinit.resume(ref, ports.poller.now_ns, SECOND, False, force))
        while not task.done:
            ports.poller.wait(-1, SECOND)
            engine.dispatch()
    except Killed:
        return True
    finally:
        xen.stop_failing()
        ports.close()  # as the kernel does
    return False


def assert_started_over(guest: FakeGuest) -> None:
    xen = guest.xen
    xen.settle()
    assert guest.running
    assert not guest.corrupted, guest.corrupted
    assert guest.restarts == 1
    assert guest.pause_count == 0
    assert NOTE not in xen.store.nodes
    assert [backend.state for backend in guest.backends] == [CONNECTED] * 3
    assert_nothing_left(xen)
    with xenpm.Host(ports=xen.ports()) as host:  # it can be suspended again, and resumed either way
        host.domain("web").suspend()
        assert host.domain("web").resume().cooperative
        host.domain("web").suspend()
        host.domain("web").resume(cooperative=False)
    assert guest.restarts == 2
    assert not guest.corrupted, guest.corrupted


# -- the good case


def test_starts_over(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    began = xen.now_ns
    resumption = host.domain("web").resume(cooperative=False)
    assert not resumption.cooperative
    assert resumption.reason == "asked for"
    assert [step.name for step in resumption.steps] == STEPS
    assert resumption.total_ns == xen.now_ns - began == sum(step.ns for step in resumption.steps)
    assert resumption.steps[0].ns == 6 * MS, "the slowest backend closes, and opens again"
    assert resumption.to_dict()["steps"][0] == {"name": "devices", "ns": 6 * MS}
    assert_started_over(guest)


def test_channel_that_it_had_offered_is_gone(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.offer_channel()
    host.domain("web").resume(cooperative=False)
    assert xen.toolstack.read("/local/domain/1/device/suspend/event-channel") == b""
    assert_started_over(guest)


def test_xenstored_is_left_between_two_messages(xen: FakeXen, host: xenpm.Host) -> None:
    """However many events the guest's own watches have fired while its devices were closed."""
    guest = suspended(xen)
    guest.ring_bytes = 25_000
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


def test_xenstored_that_never_stops_writing(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.ring_bytes = 1 << 60
    with pytest.raises(xenpm.ResumeError, match="does not stop writing to the guest"):
        host.domain("web").resume(cooperative=False)
    assert guest.suspended
    guest.ring_bytes = 0
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


def test_devices_are_seen_to_connect_again(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    for backend in guest.backends:
        backend.connect_ns = 300 * MS
    resumption = host.domain("web").resume(cooperative=False)
    assert resumption.check_ns == 300 * MS
    assert resumption.problems == ()
    assert_started_over(guest)


def test_device_that_does_not_connect_again(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.backends[1].connect_ns = None
    resumption = host.domain("web").resume(cooperative=False, timeout=5)
    assert resumption.problems == ("vbd 51728 has not connected again",)
    assert resumption.check_ns == 5 * SECOND
    assert guest.running
    assert_released(xen)


def test_device_that_was_not_connected_is_not_waited_for(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    drive = guest.backends[0]
    xen.toolstack.write(f"{drive.frontend}/state", b"3")
    xen.toolstack.write(f"{drive.path}/state", b"2")
    drive.connect_ns = None
    resumption = host.domain("web").resume(cooperative=False)
    assert (resumption.problems, resumption.check_ns) == ((), 0)
    assert not guest.corrupted


def test_backend_that_has_not_begun_is_not_waited_for(xen: FakeXen, host: xenpm.Host) -> None:
    """As QEMU leaves the screen of a PVH guest at times; it does not hear the frontend at all."""
    guest = suspended(xen)
    screen = guest.backends[0]
    xen.toolstack.write(f"{screen.frontend}/state", b"3")
    xen.toolstack.write(f"{screen.path}/state", b"1")
    screen.close_ns = screen.connect_ns = None
    guest.channels[screen.port] = None
    resumption = host.domain("web").resume(cooperative=False)
    assert (resumption.problems, resumption.check_ns) == ((), 0)
    assert not guest.corrupted
    assert xen.toolstack.read(f"{screen.path}/state") == b"1"
    assert xen.toolstack.read(f"{guest.backends[1].path}/state") == b"4"


def test_guest_that_ends_while_it_connects(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.backends[1].connect_ns = None
    xen.after(SECOND, guest.crash)
    resumption = host.domain("web").resume(cooperative=False)
    assert resumption.problems == ("it has shut down or is gone since it was resumed",)


def test_guest_without_devices(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    host.domain("web").suspend()
    assert host.domain("web").resume(cooperative=False).steps[0].ns == 0
    assert guest.restarts == 1


def test_what_the_toolstack_had_paused_stays_paused(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    host.domain("web").pause()
    host.domain("web").resume(cooperative=False)
    assert guest.pause_count == 1
    assert NOTE not in xen.store.nodes
    host.domain("web").unpause()
    assert_started_over(guest)


def test_backend_still_at_work_is_waited_for(xen: FakeXen, host: xenpm.Host) -> None:
    """Its requests go to the guest's memory: the guest must not run before they are done."""
    guest = suspended(xen)
    disk = guest.backends[0]
    disk.busy_until_ns = xen.now_ns + 3 * SECOND
    resumption = host.domain("web").resume(cooperative=False)
    assert xen.now_ns >= disk.busy_until_ns
    assert resumption.total_ns < 5 * SECOND
    assert_started_over(guest)


def test_nonsense_of_the_guest_is_passed_over(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    front = guest.backends[0].frontend
    for name, value in (("event-channel-tx", b"77777"), ("event-channel-rx", b"-1")):
        xen.toolstack.write(f"{front}/{name}", value)
    xen.toolstack.write(f"{front}/queue-0/event-channel", b"\xff")
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


def test_channel_of_a_queue_counts(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    port = guest.backends[2].port
    front = guest.backends[2].frontend
    xen.toolstack.remove(f"{front}/event-channel")
    xen.toolstack.write(f"{front}/queue-1/event-channel-rx", b"%d" % port)
    guest.backends[2].busy_until_ns = xen.now_ns + SECOND
    host.domain("web").resume(cooperative=False)
    assert xen.now_ns >= guest.backends[2].busy_until_ns
    assert guest.restarts == 1
    assert not guest.corrupted


# -- the choice


def test_cooperative_where_the_guest_can(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    resumption = host.domain("web").resume()
    assert resumption.cooperative
    assert "PVH" in resumption.reason
    assert resumption.steps == ()
    assert guest.restarts == 0


def test_started_over_where_it_cannot(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.hvm_params[CALLBACK_IRQ] = 0
    resumption = host.domain("web").resume()
    assert not resumption.cooperative
    assert "interrupt" in resumption.reason
    guest.hvm_params[CALLBACK_IRQ] = 1
    assert_started_over(guest)


@pytest.mark.parametrize(
    ("note", "can", "text"),
    [
        (True, True, "has note SUSPEND_CANCEL"),
        (False, False, "has no note SUSPEND_CANCEL"),
        (None, True, "does not show its notes"),
    ],
)
def test_kernel_image_of_a_pv_guest(
    xen: FakeXen, host: xenpm.Host, note: bool | None, can: bool, text: str
) -> None:
    guest = xen.add_guest("web", type=DomainType.PV)
    domain = host.domain("web")
    xen.toolstack.write(f"/vm/{guest.uuid}/image/kernel", b"/boot/vmlinux")
    if note is not None:
        xen.kernels["/boot/vmlinux"] = note
    support = domain.supports_cooperative_resume
    assert bool(support) is can
    assert text in support.evidence
    (entry,) = host.plan(settings=xenpm.Settings()).entries
    if can:
        assert entry.policy is xenpm.Policy.SUSPEND
        domain.suspend()
        assert text in domain.resume().reason
        return
    assert entry.policy is xenpm.Policy.PAUSE
    assert text in entry.reason
    with pytest.raises(xenpm.SuspendNotSupported, match=f"{text}.*Save it, or pause it"):
        domain.suspend()
    with pytest.raises(xenpm.SuspendNotSupported, match=text), domain.suspended():
        pytest.fail("it is suspended, and cannot be resumed")
    assert guest.suspensions == 0
    guest.suspend()  # somebody else has it suspended
    with pytest.raises(xenpm.ReinitNotSupported, match=f"{text}.*force=True"):
        domain.resume()
    assert domain.resume(cooperative=True).cooperative
    assert guest.running


def test_host_with_a_guest_that_could_not_be_resumed(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("old", type=DomainType.PV)
    xen.toolstack.write(f"/vm/{guest.uuid}/image/kernel", b"/boot/vmlinux")
    xen.kernels["/boot/vmlinux"] = False
    report = host.suspend("mem", settings=xenpm.Settings())
    assert [each.outcome for each in report.domains.values()] == [xenpm.Outcome.RUNNING]
    assert guest.suspensions == 0
    assert guest.running
    assert guest.pause_count == 0


@pytest.mark.parametrize(
    "arguments", [{"cooperative": "no"}, {"cooperative": 0}, {"force": "no"}, {"force": None}]
)
def test_arguments_of_the_wrong_type(
    xen: FakeXen, host: xenpm.Host, arguments: dict[str, Any]
) -> None:
    guest = suspended(xen)
    with pytest.raises(TypeError, match=f"{next(iter(arguments))} must be"):
        host.domain("web").resume(**arguments)
    assert guest.suspended


def test_backend_that_is_gone_in_the_middle(xen: FakeXen, host: xenpm.Host) -> None:
    """It is too late to refuse: the guest is started over without it, and that is told."""
    guest = suspended(xen)
    domain = host.domain("web")
    store = guest.backends[1]
    store.close_ns = None
    with pytest.raises(xenpm.ResumeError, match="if it cannot be, destroy it"):
        domain.resume(cooperative=False, timeout=2)
    assert not domain.supports_cooperative_resume
    assert "in the middle" in domain.supports_cooperative_resume.evidence
    plan = host.plan(settings=xenpm.Settings())
    assert "in the middle of being started over" in plan.entries[0].reason
    xen.guests[2].destroy()
    guest.backends.remove(store)
    resumption = domain.resume()
    assert resumption.problems == ("vbd 51728 has no backend any more",)
    assert guest.running
    assert guest.restarts == 1
    assert [each.state for each in guest.backends] == [CONNECTED, CONNECTED]
    assert NOTE not in xen.store.nodes


def test_note_that_stands_does_not_outlive_a_pause(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail("remove", errno.EIO)
    with pytest.raises(xenpm.ResumeError, match="runs again, but the note"):
        domain.resume(cooperative=False)
    assert NOTE in xen.store.nodes
    domain.pause()
    assert NOTE not in xen.store.nodes
    domain.unpause()
    assert_started_over(guest)


def test_device_that_comes_in_the_middle(xen: FakeXen, host: xenpm.Host) -> None:
    """The error does not pretend that nothing has happened to the guest."""
    guest = suspended(xen)
    domain = host.domain("web")
    guest.backends[1].close_ns = None
    with pytest.raises(xenpm.ResumeError):
        domain.resume(cooperative=False, timeout=2)
    guest.give_device("9pfs", 0)
    with pytest.raises(xenpm.ResumeError, match=r"9pfs 0 would not come back.*still suspended"):
        domain.resume()
    assert guest.suspended


def test_devices_of_another_toolstack(xen: FakeXen, host: xenpm.Host) -> None:
    """They would not be closed, and go on writing into its memory."""
    guest = suspended(xen)
    xen.toolstack.remove("/libxl/1")
    domain = host.domain("web")
    assert "of which libxl knows nothing" in domain.supports_reinit.evidence
    with pytest.raises(xenpm.ReinitNotSupported, match=r"device/vbd/51712.*another toolstack"):
        domain.resume(cooperative=False)
    assert domain.resume().cooperative
    assert guest.running


def test_supports_reinit(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    domain = host.domain("web")
    assert domain.supports_reinit
    assert domain.supports_reinit.evidence == "it is a PVH guest; devices: none"
    guest.give_device("vif", 0)
    guest.give_device("vbd", 51712)
    assert domain.supports_reinit.evidence == "it is a PVH guest; devices: vbd, vif"
    guest.give_device("9pfs", 0)
    assert not domain.supports_reinit
    assert "9pfs 0 would not come back" in domain.supports_reinit.evidence
    assert not xen.watches
    assert not xen.locks


def test_supports_cooperative_resume_of_pvh(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web")
    assert host.domain("web").supports_cooperative_resume
    guest.hvm_params[CALLBACK_IRQ] = 0
    support = host.domain("web").supports_cooperative_resume
    assert not support
    assert "interrupt" in support.evidence


# -- refused, nothing touched


def refuses(xen: FakeXen, host: xenpm.Host, text: str) -> None:
    """And the guest can still be resumed cooperatively."""
    nodes = dict(xen.store.nodes)
    with pytest.raises(xenpm.ReinitNotSupported, match=text):
        host.domain("web").resume(cooperative=False)
    assert xen.store.nodes == nodes
    assert_released(xen)
    assert xen.guests[1].pause_count == 0
    assert host.domain("web").resume(cooperative=True).reason == "asked for"
    assert not xen.guests[1].corrupted
    assert xen.guests[1].running


def test_pv_is_refused(xen: FakeXen, host: xenpm.Host) -> None:
    suspended(xen, type=DomainType.PV)
    refuses(xen, host, "PV guest")


def test_pv_by_force(xen: FakeXen, host: xenpm.Host) -> None:
    guest = xen.add_guest("web", type=DomainType.PV)
    host.domain("web").suspend()
    resumption = host.domain("web").resume(cooperative=False, force=True)
    assert [step.name for step in resumption.steps] == STEPS
    assert guest.restarts == 1
    assert not guest.corrupted
    assert_nothing_left(xen)
    assert NOTE not in xen.store.nodes


@pytest.mark.parametrize("nth", range(1, 120))
def test_pv_by_force_killed_at_any_call(xen: FakeXen, nth: int) -> None:
    guest = xen.add_guest("web", type=DomainType.PV)
    with xenpm.Host(ports=xen.ports()) as host:
        host.domain("web").suspend()
    if not killed(xen, nth, force=True):
        return  # it has fewer calls
    with xenpm.Host(ports=xen.ports()) as host:
        domain = host.domain("web")
        if guest.suspended or guest.pause_count:
            domain.resume()
        if not guest.restarts:  # the first one had touched nothing
            domain.suspend()
            domain.resume(cooperative=False, force=True)
    assert guest.running
    assert guest.pause_count == 0
    assert guest.restarts == 1
    assert not guest.corrupted, guest.corrupted


@pytest.mark.parametrize("kind", ["9pfs", "pvcalls", "vusb"])
def test_device_that_would_not_come_back(xen: FakeXen, host: xenpm.Host, kind: str) -> None:
    suspended(xen).give_device(kind, 0)
    refuses(xen, host, f"{kind} 0 would not come back")


def test_device_that_is_being_unplugged(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    xen.toolstack.write(f"{guest.backends[0].path}/online", b"0")
    refuses(xen, host, "vbd 51712 is being unplugged")


def test_device_whose_backend_is_gone(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    state = xen.store.nodes[f"{guest.backends[1].path}/state"].value
    xen.toolstack.remove(f"{guest.backends[1].path}/state")
    with pytest.raises(xenpm.ReinitNotSupported, match="vbd 51728 has no backend: is domain 2"):
        host.domain("web").resume(cooperative=False)
    xen.toolstack.write(f"{guest.backends[1].path}/state", state)
    host.domain("web").resume()


def test_driver_domain_is_refused(xen: FakeXen, host: xenpm.Host) -> None:
    suspended(xen)
    xen.guests[2].give_device("vbd", 51712, server=1)
    refuses(xen, host, r"backend of others' devices \(vbd 51712 of domain 2\)")


def test_channels_of_other_numbers(xen: FakeXen, host: xenpm.Host) -> None:
    suspended(xen)
    xen.toolstack.write("/local/domain/1/console/port", b"3")
    refuses(xen, host, "event channels")


@pytest.mark.parametrize("end", ["store", "console"])
@pytest.mark.parametrize("value", [b"", b"odd", b"0", b"-1"])
def test_page_of_a_ring_that_makes_no_sense(
    xen: FakeXen, host: xenpm.Host, end: str, value: bytes
) -> None:
    suspended(xen)
    xen.toolstack.write(f"/local/domain/1/{end}/ring-ref", value)
    refuses(xen, host, f"{end}/ring-ref is")


@pytest.mark.parametrize("path", ["/local/domain/1/console/backend-id", "/tool/xenstored/domid"])
@pytest.mark.parametrize("value", [b"", b"odd", b"-1", b"32752"])
def test_server_of_a_ring_that_makes_no_sense(
    xen: FakeXen, host: xenpm.Host, path: str, value: bytes
) -> None:
    """It must not pass for domain 0, which would get the guest's page."""
    suspended(xen)
    xen.toolstack.write(path, value)
    refuses(xen, host, f"{path} is")


def test_nonsense_that_comes_in_the_middle(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    xen.fail("gnttab_seed", errno.EIO)
    with pytest.raises(xenpm.ResumeError, match="do not unpause it"):
        host.domain("web").resume(cooperative=False)
    page = xen.toolstack.read("/local/domain/1/console/ring-ref")
    xen.toolstack.write("/local/domain/1/console/ring-ref", b"odd")
    with pytest.raises(xenpm.ResumeError, match=r"ring-ref is 'odd'.*paused half-way"):
        host.domain("web").resume(cooperative=False)
    xen.toolstack.write("/local/domain/1/console/ring-ref", page)
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


@pytest.mark.parametrize("cooperative", [None, False])
def test_not_suspended(xen: FakeXen, host: xenpm.Host, cooperative: bool | None) -> None:
    guest = xen.add_guest("web")
    with pytest.raises(xenpm.NotSuspended, match="running"):
        host.domain("web").resume(cooperative=cooperative)
    guest.crash()
    with pytest.raises(xenpm.NotSuspended, match="crashed"):
        host.domain("web").resume(cooperative=cooperative)


def test_somebody_else_is_at_it(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    with xenpm.Host(ports=xen.ports()) as other:
        other._connection.ports.locks.acquire(1)
        with pytest.raises(xenpm.ResumeError, match="another process"):
            host.domain("web").resume(cooperative=False)
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), 1e6])
def test_bad_timeout(xen: FakeXen, host: xenpm.Host, timeout: float) -> None:
    suspended(xen)
    with pytest.raises(ValueError, match="timeout"):
        host.domain("web").resume(cooperative=False, timeout=timeout)


# -- backends that do not do their part


def test_backend_that_never_closes(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    disk = guest.backends[1]
    disk.close_ns = None
    began = xen.now_ns
    with pytest.raises(xenpm.ResumeError, match=r"do not close: vbd 51728 \(in domain 2\)") as it:
        host.domain("web").resume(cooperative=False, timeout=5)
    assert "cooperative=False again" in str(it.value)
    assert xen.now_ns - began == 5 * SECOND
    assert guest.suspended
    assert guest.pause_count == 0
    assert_released(xen)
    # neither a cooperative resume nor a second suspend now; starting it over, when it is mended
    with pytest.raises(xenpm.ResumeError, match="middle of being started over"):
        host.domain("web").resume(cooperative=True)
    with pytest.raises(xenpm.SuspendInProgress, match="first finish it"):
        host.domain("web").suspend()
    disk.close_ns = MS
    assert "devices" in host.domain("web").resume().reason
    assert_started_over(guest)


@pytest.mark.parametrize("close_ms", [1, 1200])  # the deadline finds it closing again
def test_backend_that_never_ends_its_work(xen: FakeXen, host: xenpm.Host, close_ms: int) -> None:
    guest = suspended(xen)
    guest.backends[0].close_ns = close_ms * MS
    guest.backends[0].busy_until_ns = xen.now_ns + 3600 * SECOND
    with pytest.raises(xenpm.ResumeError, match=r"still at work for it: vbd 51712 \(in domain 0\)"):
        host.domain("web").resume(cooperative=False, timeout=5)
    assert guest.suspended
    guest.backends[0].busy_until_ns = 0
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


def test_destroyed_meanwhile(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.backends[0].close_ns = None
    xen.after(SECOND, guest.destroy)
    with pytest.raises(xenpm.NoSuchDomain):
        host.domain("web").resume(cooperative=False)
    assert not [path for path in xen.store.nodes if path.startswith("/local/domain/1/")]


def test_cancelled(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.backends[0].close_ns = None
    connection = host._connection
    machine = reinit.resume(
        host.domain("web").ref, connection.ports.poller.now_ns, 30 * SECOND, False, False
    )
    task = connection._engine.start(machine)
    connection._engine.cancel(task)
    with pytest.raises(xenpm.ResumeError, match="was cancelled; it is still suspended"):
        task.result()
    guest.backends[0].close_ns = MS
    host.domain("web").resume()
    assert_started_over(guest)


# -- any call that fails, a process killed at any call


def test_unpaused_between_two_tries(xen: FakeXen, host: xenpm.Host) -> None:
    """The note of the first says that its toolstack had it paused; that does not hold any more."""
    guest = suspended(xen)
    domain = host.domain("web")
    domain.pause()
    xen.fail("soft_reset", errno.EIO)
    with pytest.raises(xenpm.ResumeError):
        domain.resume(cooperative=False)
    guest.unpause()
    domain.resume(cooperative=False)
    assert_started_over(guest)


def test_paused_between_two_tries(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail("soft_reset", errno.EIO)
    with pytest.raises(xenpm.ResumeError):
        domain.resume(cooperative=False)
    guest.pause()
    before = xen.now_ns
    done = domain.resume(cooperative=False)
    assert done.problems == ()
    assert xen.now_ns - before < SECOND  # one that stays paused is not waited for
    assert guest.pause_count == 1
    guest.unpause()
    assert_started_over(guest)


def test_unpaused_while_its_devices_close(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    guest.pause()
    xen.after(MS, guest.unpause)
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


@pytest.mark.parametrize("nth", range(1, 12))
def test_all_calls_fail_from_one_on(xen: FakeXen, host: xenpm.Host, nth: int) -> None:
    """Once it is touched the error says what state it is in, or that this is not known."""
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail("domain_info", errno.EIO, nth=nth, times=None)
    xen.fail("soft_reset", errno.EIO)
    outcome = outcome_of(lambda: domain.resume(cooperative=False))
    if NOTE in xen.store.nodes:
        assert isinstance(outcome, xenpm.ResumeError)
    xen.stop_failing()
    if guest.suspended:
        domain.resume(cooperative=None if NOTE in xen.store.nodes else False)
    assert_started_over(guest)


def calls_of_a_good_run() -> Counter[str]:
    xen = FakeXen()
    suspended(xen)
    connection = xenpm.Host(ports=xen.ports())._connection
    machine = connection.resumptions([connection.find("web")], False)[0]
    before = xen.calls.copy()
    connection.transact(machine, [])
    return xen.calls - before


GOOD_RUN = calls_of_a_good_run()
CALLS = range(1, sum(GOOD_RUN.values()) + 1)
CHANGES = [
    (name, nth)
    for name in (
        "transaction_end", "remove", "pause", "soft_reset", "evtchn_reset", "evtchn_alloc_unbound",
        "hvm_param_set", "store_ring_discard", "gnttab_seed", "introduce_domain", "resume_domain",
        "unpause",
    )
    for nth in range(1, GOOD_RUN[name] + 1)
]  # fmt: skip


@pytest.mark.parametrize("nth", CALLS)
def test_any_call_fails(xen: FakeXen, host: xenpm.Host, nth: int) -> None:
    """The error says in what state the guest is, and resuming it again mends everything."""
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail("*", errno.EIO, nth=nth)
    assert_made_up_for(guest, host, domain)


@pytest.mark.parametrize(("name", "nth"), CHANGES)
def test_any_change_fails_that_was_made(
    xen: FakeXen, host: xenpm.Host, name: str, nth: int
) -> None:
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail(name, errno.EIO, nth=nth, after=True)
    assert_made_up_for(guest, host, domain)


def assert_made_up_for(guest: FakeGuest, host: xenpm.Host, domain: xenpm.Domain) -> None:
    """A call fails: the guest is as the error says, and is started over by a second resume."""
    xen = guest.xen
    outcome: object = None
    try:
        outcome = domain.resume(cooperative=False)
    except xenpm.XenError as error:
        outcome = error
    xen.stop_failing()
    assert xen.locks == {}
    assert xen.open_transactions == 0
    assert not guest.corrupted, guest.corrupted
    if isinstance(outcome, xenpm.Resumption):
        host.close()  # a watch that could not be removed goes with the connection
        assert_started_over(guest)
        return
    if not isinstance(outcome, xenpm.ResumeError):  # a bare one of a call: nothing was touched
        assert guest.suspended
        assert NOTE not in xen.store.nodes
        assert guest.pause_count == 0
    elif guest.suspended:
        assert "still suspended" in str(outcome)
        assert guest.pause_count == 0
    elif guest.pause_count:
        assert "paused" in str(outcome)
    else:
        assert f"xenstore-rm {NOTE}" in str(outcome)
        xen.toolstack.remove(NOTE)
        assert_started_over(guest)
        return
    domain.resume(cooperative=False)
    assert_started_over(guest)


def test_note_is_taken_back_when_nothing_else_was_touched(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail("watch", errno.EIO)
    with pytest.raises(xenpm.StoreError):
        domain.resume(cooperative=False)
    assert NOTE not in xen.store.nodes
    assert domain.resume(cooperative=True).cooperative
    assert guest.running
    assert guest.restarts == 0


def test_note_that_cannot_be_taken_back(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail("watch", errno.EIO)
    xen.fail("remove", errno.EIO)
    with pytest.raises(xenpm.ResumeError, match=f"as it was, but a note.*xenstore-rm {NOTE}"):
        domain.resume(cooperative=False)
    assert guest.suspended
    domain.resume(cooperative=False)
    assert_started_over(guest)


def test_note_of_another_process_is_not_taken_back(xen: FakeXen, host: xenpm.Host) -> None:
    """For that one may have closed devices."""
    guest = suspended(xen)
    domain = host.domain("web")
    xen.toolstack.write(NOTE, b"devices unpause vbd/51712 vbd/51728 vif/0")
    xen.fail("watch", errno.EIO)
    with pytest.raises(xenpm.ResumeError, match="no longer be resumed cooperatively"):
        domain.resume(cooperative=False)
    assert NOTE in xen.store.nodes
    domain.resume()
    assert_started_over(guest)


@pytest.mark.parametrize("how", [None, False])
@pytest.mark.parametrize("nth", CALLS)
def test_killed_at_any_call(xen: FakeXen, nth: int, how: bool | None) -> None:
    """Whoever comes next makes up for it."""
    guest = suspended(xen)
    assert killed(xen, nth)
    with xenpm.Host(ports=xen.ports()) as host:
        if guest.running and not guest.pause_count:  # killed when all was done but the note
            with pytest.raises(xenpm.NotSuspended):
                host.domain("web").resume(cooperative=how)
            xen.toolstack.remove(NOTE)
        else:
            resumption = host.domain("web").resume(cooperative=how)
            if resumption.cooperative:
                assert guest.restarts == 0, "the first one had touched nothing"
                host.domain("web").suspend()
                host.domain("web").resume(cooperative=False)
    assert_started_over(guest)


def test_stale_note_of_a_running_guest_does_no_harm(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    host.domain("web").resume(cooperative=False)
    xen.toolstack.write(NOTE, b"run unpause")
    host.domain("web").suspend()
    assert host.domain("web").resume().cooperative
    host.domain("web").suspend()
    host.domain("web").resume(cooperative=False)
    assert guest.restarts == 2
    assert NOTE not in xen.store.nodes


@pytest.mark.parametrize("note", [b"devices unpause", b"ground unpause"])
def test_set_running_by_somebody_in_the_middle(xen: FakeXen, host: xenpm.Host, note: bytes) -> None:
    xen.add_guest("web")
    xen.toolstack.write(NOTE, note)
    with pytest.raises(xenpm.ResumeError, match="set running by somebody else"):
        host.domain("web").resume(cooperative=False)
    with pytest.raises(xenpm.SuspendInProgress, match="first finish it"):
        host.domain("web").suspend()


def test_is_not_unpaused_in_the_middle(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)
    domain = host.domain("web")
    xen.fail("gnttab_seed", errno.EIO)
    with pytest.raises(xenpm.ResumeError, match="do not unpause it"):
        domain.resume(cooperative=False)
    with pytest.raises(xenpm.ResumeError, match="in the middle of being started over"):
        domain.unpause()
    assert domain.state is xenpm.DomainState.PAUSED
    domain.resume(cooperative=False)
    assert guest.running
    domain.pause()
    domain.unpause()
    assert guest.running


@pytest.mark.parametrize("kind", [DomainType.PV, DomainType.PVH])
def test_note_that_makes_no_sense(xen: FakeXen, host: xenpm.Host, kind: DomainType) -> None:
    """It must not pass for the consent to start a PV guest over."""
    guest = suspended(xen, type=kind)
    xen.toolstack.write(NOTE, b"odd")
    with pytest.raises(xenpm.ResumeError, match="makes no sense: 'odd'"):
        host.domain("web").resume()
    assert guest.suspended
    xen.toolstack.remove(NOTE)
    assert host.domain("web").resume().cooperative


def test_reset_that_crashes_the_domain(xen: FakeXen, host: xenpm.Host) -> None:
    guest = suspended(xen)

    def crash() -> None:
        guest.shutdown_code = xenpm.ShutdownReason.CRASH
        raise xenpm.HypercallError("xc_domain_soft_reset", errno.EINVAL)

    xen.before("soft_reset", crash)
    with pytest.raises(xenpm.ResumeError, match="it has ended with that: it is crashed"):
        host.domain("web").resume(cooperative=False)
    with pytest.raises(xenpm.NotSuspended, match="crashed, in the middle"):
        host.domain("web").resume(cooperative=False)


def test_xenstored_that_does_not_bind(xen: FakeXen, host: xenpm.Host) -> None:
    """It says nothing of that by itself."""
    guest = suspended(xen)
    introduce = guest.introduce
    guest.introduce = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(xenpm.ResumeError, match="did not bind the event channel"):
        host.domain("web").resume(cooperative=False)
    assert guest.pause_count == 1
    guest.introduce = introduce  # type: ignore[method-assign]
    host.domain("web").resume(cooperative=False)
    assert_started_over(guest)
