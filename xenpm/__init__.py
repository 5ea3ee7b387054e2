"""Power management of Xen guests: light suspend, resume in place.

Example::

    import xenpm

    dom = xenpm.Domain("web1")
    dom.suspend(lightweight=True)  # the guest has suspended itself, its memory is in place
    dom.resume()  # and continues where it stopped
"""

from __future__ import annotations

from importlib import metadata as _metadata

from . import config
from .domain import Domain, restore
from .errors import *  # noqa: F403
from .errors import __all__ as _errors
from .hooks import HookEvent, HookPoint, HookResult
from .host import Host
from .plan import Plan, PlanEntry
from .policy import OnFailure, OnHookFailure, Policy, Rule, Settings
from .sleep import DomainReport, Outcome, Report
from .system import versions
from .timeline import Span, Timeline
from .topology import DriverDomain, Member, Topology
from .types import *  # noqa: F403
from .types import __all__ as _types

try:
    __version__ = _metadata.version("xenpm")
except _metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "unknown"

__all__ = [  # noqa: PLE0604
    "Domain",
    "DomainReport",
    "DriverDomain",
    "HookEvent",
    "HookPoint",
    "HookResult",
    "Host",
    "Member",
    "OnFailure",
    "OnHookFailure",
    "Outcome",
    "Plan",
    "PlanEntry",
    "Policy",
    "Report",
    "Rule",
    "Settings",
    "Span",
    "Timeline",
    "Topology",
    "__version__",
    "config",
    "restore",
    "versions",
    *_errors,
    *_types,
]
