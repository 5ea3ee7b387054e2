"""The split devices of domains: who uses whose backend.

libxl records every device that it has made at ``/libxl/<domid>/device/<kind>/<devid>``, where only
domain 0 may write.  A backend is at ``/local/domain/<domid>/backend/<kind>/<user>/<devid>``, which
belongs to the domain that serves; see Xen's docs/misc/xenstore-paths.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .actions import List, Machine, Read
from .pci import number, shown, state_of
from .types import Device

__all__ = ["served_by", "used_by", "with_states"]

_BACKEND = re.compile(r"/local/domain/([0-9]{1,5})/backend/([^/]+)/([0-9]{1,5})/([0-9]{1,9})")
_MOST_DEVID = 999_999_999
# Frontends that are called otherwise than the backend, which names the program that it runs in.
_FRONTENDS = {"qdisk": "vbd", "qusb": "vusb"}


def used_by(
    domid: int, unreadable: list[str], *, states: bool = True, without: tuple[str, ...] = ()
) -> Machine[tuple[Device, ...]]:
    """The devices that a domain uses, by kind and number; all whose frontend it has.

    Args:
        domid: which domain.
        unreadable: gets what of xenstore makes no sense, in words.
        states: whether to read how far both ends are.
        without: kinds that do not matter.
    """
    found = []
    home = f"/libxl/{domid}/device"
    for kind in sorted((yield List(home))):
        if kind in without:
            continue
        for text in sorted((yield List(f"{home}/{kind}")), key=_by_number):
            device = yield from _used(domid, kind, text, unreadable)
            if device is not None:
                found.append((yield from with_states(device, unreadable)) if states else device)
    return tuple(found)


def _used(domid: int, kind: str, text: str, unreadable: list[str]) -> Machine[Device | None]:
    path = f"/libxl/{domid}/device/{kind}/{text}"
    backend = yield Read(f"{path}/backend")
    match = None if backend is None else _BACKEND.fullmatch(backend.decode("utf-8", "replace"))
    devid = number(text.encode(), _MOST_DEVID)
    if match is None or devid is None or (int(match[3]), int(match[4])) != (domid, devid):
        # One that was unplugged since its kind was listed is no mistake.
        if text in (yield List(f"/libxl/{domid}/device/{kind}")):
            unreadable.append(f"{path}/backend is {shown(backend)}")
        return None
    return _device(kind, match)


def _device(kind: str, backend: re.Match[str]) -> Device:
    server, user, devid = int(backend[1]), int(backend[3]), int(backend[4])
    frontend = f"/local/domain/{user}/device/{kind}/{devid}"
    if kind == "console" and devid == 0:  # the one that every domain has
        frontend = f"/local/domain/{user}/console"
    return Device(kind, devid, user, server, frontend, backend[0])


def served_by(domid: int, unreadable: list[str]) -> Machine[tuple[Device, ...]]:
    """The devices that a domain serves, as its own directory tells.

    Cheap, for it looks at one domain alone; but that domain may write there what it likes.
    """
    found = []
    home = f"/local/domain/{domid}/backend"
    for kind in sorted((yield List(home))):
        for user in sorted((yield List(f"{home}/{kind}")), key=_by_number):
            for text in sorted((yield List(f"{home}/{kind}/{user}")), key=_by_number):
                path = f"{home}/{kind}/{user}/{text}"
                match = _BACKEND.fullmatch(path)
                if match is None:
                    unreadable.append(f"{path} is no backend's directory")
                    continue
                device = _device(_FRONTENDS.get(kind, kind), match)
                found.append((yield from with_states(device, unreadable)))
    return tuple(found)


def with_states(device: Device, unreadable: list[str]) -> Machine[Device]:
    """The device with how far both its ends are at this moment."""
    return replace(
        device,
        frontend_state=(yield from state_of(device.frontend, unreadable)),
        backend_state=(yield from state_of(device.backend, unreadable)),
    )


def _by_number(text: str) -> tuple[int, str]:
    return (int(text) if text.isascii() and text.isdigit() else _MOST_DEVID, text)
