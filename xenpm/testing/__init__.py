"""A Xen host that is not there, for unit tests of what uses xenpm.

Example::

    def test_my_toolstack(xen_host):  # a fixture that pytest finds by itself
        web = xen_host.add_guest("web1", suspend_ns=40 * MS)
        xenpm.Domain("web1").suspend()
        assert web.suspended

Hypervisor, xenstored, guests, devices and clock are imitated on `xenpm.ports`; all of xenpm above
that is the real one.  Time is virtual: it moves only while somebody waits, then at once to the next
thing that is to happen.  Guests follow the protocol as Linux does unless they are told otherwise;
`FakeXen.after` makes anything happen at a chosen time, `FakeXen.before` at a chosen call, and
`FakeXen.fail` makes calls fail.  `FakeXen.calls` counts the calls that came in through the ports.
"""

from __future__ import annotations

from .calls import HYPERCALLS, STORE_REQUESTS
from .clock import MS, SECOND
from .devices import FakeBackend, FakeCard
from .guests import FakeGuest
from .host import FakeXen
from .jobs import FakeProgram
from .models import FakeModel

__all__ = [
    "HYPERCALLS",
    "MS",
    "SECOND",
    "STORE_REQUESTS",
    "FakeBackend",
    "FakeCard",
    "FakeGuest",
    "FakeModel",
    "FakeProgram",
    "FakeXen",
]
