"""What the hypervisor does, and the numbers of its HVM parameters."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xenpm.errors import hypercall_error
from xenpm.types import DomainInfo, DomainType, VcpuInfo

from .calls import C_NAMES, Port
from .clock import SECOND

if TYPE_CHECKING:
    from .guests import FakeGuest


class FakeHypervisor(Port):
    """`xenpm.ports.Hypervisor` on the fake host."""

    def version(self) -> tuple[int, int]:
        """The hypervisor's release."""
        with self._call("version"):
            return self._xen.version

    def domain_info(self, domid: int) -> DomainInfo | None:
        """What the hypervisor says of one domain."""
        with self._call("domain_info"):
            return next((info for info in self._xen.infos() if info.domid == domid), None)

    def domain_list(self) -> list[DomainInfo]:
        """All domains, by rising domid."""
        with self._call("domain_list"):
            return self._xen.infos()

    def vcpu_info(self, domid: int, vcpu: int) -> VcpuInfo:
        """What the hypervisor says of one vCPU."""
        with self._call("vcpu_info"):
            guest = self._guest("vcpu_info", domid)
            runs = guest.running and not guest.pause_count and vcpu not in guest.stuck_vcpus
            return VcpuInfo(
                True, not runs and not guest.pause_count, self._xen.now_ns if runs else SECOND // 2
            )

    def pause(self, domid: int) -> None:
        """Take a domain off the CPUs."""
        with self._call("pause"):
            self._guest("pause", domid).pause()

    def unpause(self, domid: int) -> None:
        """Undo one `pause`."""
        with self._call("unpause"):
            self._guest("unpause", domid).unpause()

    def send_trigger(self, domid: int, trigger: int, vcpu: int) -> None:
        """Press one of a domain's buttons."""
        with self._call("send_trigger"):
            self._guest("send_trigger", domid).press(trigger, vcpu)

    def resume(self, domid: int, cooperative: bool) -> None:
        """Let a suspended domain run on."""
        with self._call("resume"):
            self._guest("resume", domid).resume(cooperative)

    def hvm_param_get(self, domid: int, param: int) -> int:
        """A HVM parameter; PV domains have none."""
        with self._call("hvm_param_get"):
            guest = self._guest("hvm_param_get", domid)
            if guest.type is DomainType.PV:
                raise hypercall_error("xc_hvm_param_get", errno.EINVAL)
            return guest.hvm_params.get(param, 0)

    def hvm_param_set(self, domid: int, param: int, value: int) -> None:
        """Set a HVM parameter."""
        with self._call("hvm_param_set"):
            self._guest("hvm_param_set", domid).hvm_params[param] = value

    def evtchn_alloc_unbound(self, domid: int, remote_domid: int) -> int:
        """A new port of a domain."""
        with self._call("evtchn_alloc_unbound"):
            assert remote_domid == 0
            return self._guest("evtchn_alloc_unbound", domid).allocate_channel()

    def evtchn_remote(self, domid: int, port: int) -> int | None:
        """Who is at the other end of a domain's port."""
        with self._call("evtchn_remote"):
            if port >= 4096:
                raise hypercall_error("xc_evtchn_status", errno.EINVAL)
            return self._guest("evtchn_remote", domid).channels.get(port)

    def suspend_evtchn_notify(self, domid: int, port: int) -> None:
        """Ask a guest to suspend over an event channel."""
        with self._call("suspend_evtchn_notify"):
            self._guest("suspend_evtchn_notify", domid).notified(port)

    def store_ring_discard(self, domid: int, gfn: int) -> int:
        """Take what xenstored has written to a domain: 100 bytes for each event, ten at a time."""
        with self._call("store_ring_discard"):
            guest = self._guest("store_ring_discard", domid)
            assert gfn == 0xFEFFC
            taken, guest.ring_bytes = min(guest.ring_bytes, 1000), max(0, guest.ring_bytes - 1000)
            if guest.running and not guest.pause_count:
                guest.corrupted = "its ring was taken from while it ran"
            return taken

    def evtchn_reset(self, domid: int) -> None:
        """Close all event channels of a domain."""
        with self._call("evtchn_reset"):
            self._guest("evtchn_reset", domid).reset_channels()

    def soft_reset(self, domid: int) -> None:
        """Clear what the hypervisor has of a suspended domain."""
        with self._call("soft_reset"):
            self._guest("soft_reset", domid).soft_reset()

    def gnttab_seed(
        self,
        domid: int,
        *,
        is_hvm: bool,
        console_gfn: int,
        xenstore_gfn: int,
        console_domid: int,
        xenstore_domid: int,
    ) -> None:
        """Grant the console's and the store's page."""
        with self._call("gnttab_seed"):
            guest = self._guest("gnttab_seed", domid)
            assert is_hvm is (guest.type is not DomainType.PV)
            assert (console_domid, xenstore_domid) == (0, 0)
            assert (console_gfn, xenstore_gfn) == (0xFEFFF, 0xFEFFC)
            guest.seeded = True

    def _guest(self, name: str, domid: int) -> FakeGuest:
        if domid not in self._xen.guests:
            raise hypercall_error(C_NAMES[name], errno.ESRCH)
        return self._xen.guests[domid]
