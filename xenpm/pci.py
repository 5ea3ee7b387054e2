"""Passed-through PCI devices: which ones a domain has, and how they are.

libxl keeps one directory of xenstore for all PCI devices of a domain, that of their backend in
domain 0, for PV and HVM domains alike; PVH domains have none.  Configuration space is laid out in
the PCI Local Bus and PCI Express specifications.
"""

from __future__ import annotations

import re

from .actions import List, Machine, PciConfig, Read
from .types import PciCondition, PciDevice, XenbusState

__all__ = ["conditions", "pci_devices", "problems", "settled"]

_ADDRESS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])\.0?([0-7])")
_MOST_DEVICES = 1024  # more than any host has: such a number is nonsense

# offsets in configuration space
_VENDOR, _COMMAND, _STATUS, _CAPABILITIES, _INTERRUPT_PIN = 0x00, 0x04, 0x06, 0x34, 0x3D
_COMMAND_DECODES, _COMMAND_MASTER, _COMMAND_NO_INTX = 0x3, 0x4, 0x400
_STATUS_CAPABILITIES = 0x10
_CAP_POWER, _CAP_MSI, _CAP_EXPRESS, _CAP_MSIX = 0x01, 0x05, 0x10, 0x11


def pci_devices(domid: int, unreadable: list[str]) -> Machine[tuple[PciDevice, ...]]:
    """The PCI devices that are passed through to a domain at this moment.

    What makes no sense is added to `unreadable`, in words.
    """
    home = f"/local/domain/0/backend/pci/{domid}/0"
    if not (yield List(home)):
        return ()
    text = yield Read(f"{home}/num_devs")
    count = None if text is None else number(text, _MOST_DEVICES)
    if text is None and not (yield List(home)):  # all were unplugged meanwhile
        return ()
    if count is None:
        unreadable.append(f"{home}/num_devs is {shown(text)}")
        return ()
    backend_state = yield from state_of(home, unreadable)
    found = []
    for index in range(count):
        device = yield from _pci_device(home, index, backend_state, unreadable)
        if device is not None:
            found.append(device)
    return tuple(found)


def _pci_device(
    home: str, index: int, backend_state: XenbusState | None, unreadable: list[str]
) -> Machine[PciDevice | None]:
    path = f"{home}/dev-{index}"
    text = yield Read(path)
    address = None if text is None else _address(text)
    if address is None:
        # One that was unplugged since the devices were counted is no mistake.
        now = number((yield Read(f"{home}/num_devs")) or b"0", _MOST_DEVICES)
        if now is None or index < now:
            unreadable.append(f"{path} is {shown(text)}")
        return None
    slot = yield Read(f"{home}/vdevfn-{index}")  # by libxl, for a device model
    virtual = yield Read(f"{home}/vdev-{index}")  # by the backend, for a PV guest
    state = yield from state_of(f"{home}/state-{index}", unreadable, node="")
    options = yield Read(f"{home}/opts-{index}")
    return PciDevice(
        address,
        _virtual_address(slot, virtual),
        state,
        backend_state,
        _options(options or b""),
    )


def state_of(
    directory: str, unreadable: list[str], node: str = "/state"
) -> Machine[XenbusState | None]:
    """One end's state; None when it has none."""
    text = yield Read(directory + node)
    if text is None:
        return None
    value = number(text, max(XenbusState))
    if value is None:
        unreadable.append(f"{directory}{node} is {shown(text)}")
        return None
    return XenbusState(value)


def number(text: bytes, most: int) -> int | None:
    """A number from 0 to `most` as xenstore has it; None when it is none."""
    if not re.fullmatch(rb"[0-9]{1,9}", text) or int(text) > most:
        return None
    return int(text)


def shown(text: bytes | None) -> str:
    """A node's value for an error message."""
    return "missing" if text is None else repr(text[:60].decode("utf-8", "replace"))


def _address(text: bytes) -> str | None:
    match = _ADDRESS.fullmatch(text.decode("ascii", "replace").lower())
    return "{}:{}:{}.{}".format(*match.groups()) if match else None


def _virtual_address(slot: bytes | None, virtual: bytes | None) -> str | None:
    if slot is not None and re.fullmatch(rb"[0-9a-fA-F]{1,4}", slot):
        devfn = int(slot, 16)
        return f"0000:00:{devfn >> 3 & 0x1F:02x}.{devfn & 7}"
    return None if virtual is None else _address(virtual)


def _options(text: bytes) -> dict[str, str]:
    pairs = (each.partition("=") for each in text.decode("utf-8", "replace").split(",") if each)
    return {name.strip(): value.strip() for name, _, value in pairs}


def conditions(devices: tuple[PciDevice, ...]) -> Machine[tuple[PciCondition, ...]]:
    """How the devices are at this moment."""
    found = []
    for device in devices:
        config = yield PciConfig(device.address)
        found.append(_condition(device.address, config, device.backend_state))
    return tuple(found)


def _condition(
    address: str, config: bytes | None, backend_state: XenbusState | None
) -> PciCondition:
    """What a configuration space says of its device."""
    if config is None or len(config) < 64 or _u16(config, _VENDOR) == 0xFFFF:
        return PciCondition(address, present=False, backend_state=backend_state)
    command = _u16(config, _COMMAND)
    capabilities = _capabilities(config)
    power_state = link_width = None
    msi = msix = False
    for kind, at in capabilities:
        if kind == _CAP_POWER:
            power_state = f"D{_u16(config, at + 4) & 3}"
        elif kind == _CAP_MSI:
            msi = bool(_u16(config, at + 2) & 1)
        elif kind == _CAP_MSIX:
            msix = bool(_u16(config, at + 2) & 0x8000)
        elif kind == _CAP_EXPRESS:
            link_width = _u16(config, at + 0x12) >> 4 & 0x3F
    intx = bool(config[_INTERRUPT_PIN]) and not command & _COMMAND_NO_INTX
    return PciCondition(
        address,
        present=True,
        in_use=bool(command & _COMMAND_MASTER and command & _COMMAND_DECODES),
        interrupts="msi-x" if msix else "msi" if msi else "intx" if intx else None,
        power_state=power_state,
        link_width=link_width,
        backend_state=backend_state,
    )


def _u16(config: bytes, at: int) -> int:
    return int.from_bytes(config[at : at + 2], "little")


def _capabilities(config: bytes) -> list[tuple[int, int]]:
    """The device's capabilities as (kind, offset); a list that goes in circles ends."""
    if not _u16(config, _STATUS) & _STATUS_CAPABILITIES:
        return []
    found: dict[int, int] = {}
    at = config[_CAPABILITIES] & 0xFC
    while 0x40 <= at <= len(config) - 4 and at not in found:
        found[at] = config[at]
        at = config[at + 1] & 0xFC
    return [(kind, at) for at, kind in found.items()]


def settled(before: PciCondition | None, now: PciCondition) -> bool:
    """Whether the guest's driver is done with bringing the device back, as far as can be seen."""
    if before is None or not before.in_use:
        return True
    return (
        now.in_use
        and now.backend_state == before.backend_state
        and (now.interrupts is None) == (before.interrupts is None)
        and (now.interrupts != "intx" or before.interrupts == "intx")  # drivers pass through it
    )


def problems(before: PciCondition | None, now: PciCondition) -> list[str]:
    """What of a device is not as it was before the suspension, in words."""
    said = []
    name = f"PCI device {now.address}"
    if not now.present:
        return [f"{name} does not answer"]
    if now.backend_state not in (None, XenbusState.CONNECTED):
        said.append(f"{name}: its backend is not connected ({now.backend_state.name.lower()})")
    if now.power_state not in (None, "D0") and (before is None or before.power_state == "D0"):
        said.append(f"{name} sleeps, in power state {now.power_state}")
    if before is None or not before.present:
        return said
    if before.in_use and not now.in_use:
        said.append(f"{name} is switched off: the guest's driver has not brought it back")
    elif before.in_use and before.interrupts != now.interrupts:
        said.append(
            f"{name} has lost {_INTERRUPTS[before.interrupts]}, "
            f"it has {_INTERRUPTS[now.interrupts]} now"
        )
    if before.link_width and before.link_width != now.link_width:
        lanes = f"{now.link_width} of {before.link_width} lanes" if now.link_width else "down"
        said.append(f"{name}: its link is {lanes}")
    return said


_INTERRUPTS = {"msi-x": "MSI-X", "msi": "MSI", "intx": "an interrupt line", None: "no interrupt"}
