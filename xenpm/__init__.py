"""Power management of Xen guests: light suspend, resume in place.

Example::

    import xenpm

    dom = xenpm.Domain("web1")
    dom.suspend(lightweight=True)  # the guest has suspended itself, its memory is in place
    dom.resume()  # and continues where it stopped
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

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

if _TYPE_CHECKING:
    from . import config

    __version__: str
else:

    def __getattr__(name: str) -> _Any:
        """What takes long to load and few need, when somebody asks for it."""
        if name == "config":
            return _importlib.import_module("xenpm.config")
        if name != "__version__":
            raise AttributeError(f"module 'xenpm' has no attribute {name!r}")
        metadata = _importlib.import_module("importlib.metadata")
        try:
            return metadata.version("xenpm")
        except metadata.PackageNotFoundError:  # a source tree that was never installed
            return "unknown"


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
