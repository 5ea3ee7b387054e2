"""The calls that come in through the ports: counted, and made to fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

from xenpm.errors import JournalError, SleepFailed, hypercall_error, store_error

from .clock import Action, Clock

if TYPE_CHECKING:
    from .host import FakeXen

#: the C function behind each method of the ports, as it stands in errors
C_NAMES = {
    "version": "xc_version",
    "domain_info": "xc_domain_getinfolist",
    "domain_list": "xc_domain_getinfolist",
    "vcpu_info": "xc_vcpu_getinfo",
    "pause": "xc_domain_pause",
    "unpause": "xc_domain_unpause",
    "send_trigger": "xc_domain_send_trigger",
    "resume": "xc_domain_resume",
    "hvm_param_get": "xc_hvm_param_get",
    "hvm_param_set": "xc_hvm_param_set",
    "evtchn_alloc_unbound": "xc_evtchn_alloc_unbound",
    "evtchn_remote": "xc_evtchn_status",
    "suspend_evtchn_notify": "xc_suspend_evtchn_init_exclusive",
    "store_ring_discard": "xenforeignmemory_map",
    "evtchn_reset": "xc_evtchn_reset",
    "soft_reset": "xc_domain_soft_reset",
    "gnttab_seed": "xc_dom_gnttab_seed",
    "read": "xs_read",
    "write": "xs_write",
    "mkdir": "xs_mkdir",
    "remove": "xs_rm",
    "list": "xs_directory",
    "get_permissions": "xs_get_permissions",
    "set_permissions": "xs_set_permissions",
    "transaction_start": "xs_transaction_start",
    "transaction_end": "xs_transaction_end",
    "watch": "xs_watch",
    "unwatch": "xs_unwatch",
    "check_watch": "xs_check_watch",
    "introduce_domain": "xs_introduce_domain",
    "resume_domain": "xs_resume_domain",
}
HYPERCALLS = frozenset(name for name, function in C_NAMES.items() if not function.startswith("xs_"))
STORE_REQUESTS = frozenset(C_NAMES) - HYPERCALLS
_OTHERS_THAT_FAIL = ("sleep", "journal_read", "journal_begin", "journal_add", "journal_end")


@dataclass
class _Hook:
    """Something to do before calls of one name, or after them."""

    name: str
    skip: int  # calls still to let through
    times: int | None  # calls to act upon; None: all
    action: Callable[[str], object]
    after: bool = False

    def call(self, name: str, *, after: bool) -> None:
        if self.after is not after or self.name not in (name, "*"):
            return
        if self.skip > 0:
            self.skip -= 1
        elif self.times is None or self.times > 0:
            if self.times is not None:
                self.times -= 1
            self.action(name)


class Calls(Clock):
    """Counts calls through the ports, and does something before those that are chosen.

    Attributes:
        call_ns: how much of the virtual time a call through the ports takes.
        calls: how often each method of the ports was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.call_ns = 0
        self.calls: Counter[str] = Counter()
        self.mutex = threading.RLock()
        self._hooks: list[_Hook] = []

    def before(self, name: str, action: Action, nth: int = 1, times: int | None = 1) -> None:
        """Do something right before a call through the ports: the `nth` from now on.

        Args:
            name: a method of the ports; "*" for any.
            action: what to do; what it raises, the call raises.
            nth: which of the calls to come, beginning with 1.
            times: how many calls in a row from there on; None for all.
        """
        self._hooks.append(_Hook(name, nth - 1, times, lambda _: action()))

    def fail(
        self, name: str, code: int, nth: int = 1, times: int | None = 1, *, after: bool = False
    ) -> None:
        """Make calls fail with an errno.

        Args:
            name: a method of the ports; "*" for any.
            code: the errno.
            nth: which of the calls to come, beginning with 1.
            times: how many calls in a row from there on; None for all.
            after: whether they fail although they have done their work.
        """
        if name != "*" and name not in C_NAMES and name not in _OTHERS_THAT_FAIL:
            raise ValueError(f"no call of the ports that is called {name!r} can fail")

        def action(called: str) -> None:
            if called == "sleep":
                raise SleepFailed("mem", code, "made to fail")
            if called.startswith("journal"):
                raise JournalError(code, "made to fail")
            kind = hypercall_error if called in HYPERCALLS else store_error
            if called in C_NAMES:  # locks and poller do not fail
                raise kind(C_NAMES[called], code, "made to fail")

        self._hooks.append(_Hook(name, nth - 1, times, action, after))

    def stop_failing(self) -> None:
        """Forget all that was told to `fail` and `before`."""
        self._hooks.clear()

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A call through the ports is being made."""
        with self.mutex:
            self.calls[name] += 1
            if self.call_ns:
                self.pass_time(self.call_ns)
            for hook in list(self._hooks):
                hook.call(name, after=False)
            yield
            for hook in list(self._hooks):
                hook.call(name, after=True)


class Port:
    """A part of a connection to the host."""

    def __init__(self, xen: FakeXen) -> None:
        self._xen = xen
        self._closed = False

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        if self._closed:
            raise ValueError(f"this {type(self).__name__} is closed")
        with self._xen.call(name):
            yield

    def close(self) -> None:
        """Use after this is an error."""
        self._closed = True
