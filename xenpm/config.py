"""Driver domains from configuration: which domains own PCI devices or serve others once they run.

xl's files are read through libxlutil, and the JSON that libxl keeps of a running domain through
libxl.  Both give the same `DomainConfig`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Union
from uuid import UUID

from . import xlcfg
from .domain import Domain
from .errors import ConfigError, NoSuchDomain, XenlightError
from .system import open_now, open_xenlight, xenlight
from .types import DomainType

__all__ = [
    "Backend",
    "Configurations",
    "DomainConfig",
    "PciSpec",
    "PlannedDriverDomain",
    "assignable",
    "from_json",
    "of",
    "parse",
    "read",
    "read_directory",
    "read_files",
]

Path_ = Union[str, "os.PathLike[str]"]

XL_CONF = Path("/etc/xen/xl.conf")
_MAX_BYTES = 64 * 1024
_ALL_FUNCTIONS = 0xFFFFFFFF

#: what xl calls the devices of each list in libxl's JSON that may have a backend in any domain
_KINDS = {
    "disks": "disk",
    "nics": "vif",
    "vfbs": "vfb",
    "vkbs": "vkb",
    "virtios": "virtio",
    "vtpms": "vtpm",
    "p9s": "p9",
    "pvcallsifs": "pvcalls",
    "vdispls": "vdispl",
    "vsnds": "vsnd",
    "channels": "channel",
    "usbctrls": "usbctrl",
}
_DOMAIN_0 = ("", "0", "Domain-0")
_MOST_DIGITS = 100  # Python refuses to convert thousands of them


@dataclass(frozen=True)
class PciSpec:
    """A PCI device that a domain's configuration gives it: ``libxl_device_pci``."""

    #: ``0000:00:10.0``; ``0000:00:10.*`` for all functions; None for one given by `name`
    address: str | None
    name: str | None = None  #: the name it was made assignable under (Xen 4.17 and later)
    vdevfn: int = 0  #: slot and function in the guest (slot times 8 plus function); 0: any
    msitranslate: bool = False  #: as the option of that name
    power_mgmt: bool = False  #: the guest may set its power state
    permissive: bool = False  #: the guest may write all of its configuration space
    seize: bool = False  #: xl makes it assignable by itself
    rdm_policy: str | None = None  #: ``strict`` or ``relaxed``; None: not said
    line: int | None = field(default=None, compare=False)  #: where it stands in the file
    column: int | None = field(default=None, compare=False)  #: where in that line

    def __str__(self) -> str:
        return self.address or f"name={self.name}"

    def overlaps(self, other: PciSpec) -> bool:
        """Whether both are, or have in them, the same device."""
        if self.address is None or other.address is None:
            return self.name is not None and self.name == other.name
        one, two = self.address.split("."), other.address.split(".")
        return one[0] == two[0] and (one[1] == two[1] or "*" in (one[1], two[1]))


@dataclass(frozen=True)
class Backend:
    """A device of a domain whose backend is in another domain than domain 0."""

    kind: str  #: xl's key: ``disk``, ``vif``, ``vkb``, ``p9``, …
    device: str  #: the ``vdev`` of a disk, the number of another; empty: not given yet
    domain: str | int  #: the backend domain's name, or its number


@dataclass(frozen=True)
class DomainConfig:
    """What a domain is or will be made of, as far as its devices go."""

    name: str  #: the domain's name
    type: DomainType  #: PV, PVH or HVM
    uuid: UUID | None  #: None: a new one for each start
    driver_domain: bool  #: whether it says ``driver_domain = 1``
    pci: tuple[PciSpec, ...]  #: the PCI devices that it gets
    backends: tuple[Backend, ...]  #: its devices that other domains than domain 0 serve
    source: str = field(compare=False)  #: the file that it was read from
    #: what xl would warn of: keys that are of the wrong kind and so are ignored, each with its line
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def check(self, assignable: Iterable[PciSpec] | None = None) -> None:
        """Look for what xl takes from a file, but cannot start a domain with.

        Args:
            assignable: the devices that this host can give away, see `assignable`; None: do not
                look at that.

        Raises:
            ConfigError: a device is named twice, or is not assignable.
        """
        free = None if assignable is None else list(assignable)
        for index, device in enumerate(self.pci):
            for other in self.pci[:index]:
                if device.overlaps(other):
                    raise self._wrong(device, f"names {device} twice ({other} is before it)")
            if free is not None and not device.seize and not any(map(device.overlaps, free)):
                raise self._wrong(
                    device,
                    f"{device} is not assignable here: 'xl pci-assignable-add' makes it so, if no "
                    "running domain has it",
                )

    def _wrong(self, device: PciSpec, what: str) -> ConfigError:
        return ConfigError(f"pci: {what}", self.source, device.line, device.column)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        return {
            "source": self.source,
            "name": self.name,
            "type": self.type.value,
            "uuid": None if self.uuid is None else str(self.uuid),
            "driver_domain": self.driver_domain,
            "pci": [asdict(device) for device in self.pci],
            "backends": [asdict(backend) for backend in self.backends],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class PlannedDriverDomain:
    """Whether a domain will be a driver domain, and what says so.

    As a truth value it is True with any evidence and False without.  Where there is none and not
    all configurations could be read, nobody knows, and asking raises `ConfigError`.
    """

    name: str  #: which domain
    owns: tuple[str, ...] = ()  #: the PCI devices that it gets
    serves: tuple[str, ...] = ()  #: the domains whose configurations name it as a backend
    declared: bool = False  #: whether it says ``driver_domain = 1``
    unreadable: tuple[str, ...] = ()  #: what may name it as a backend, and cannot tell

    @property
    def known(self) -> bool | None:
        """The same as the truth value, with None for unknown."""
        if self.owns or self.serves or self.declared:
            return True
        return None if self.unreadable else False

    def __bool__(self) -> bool:
        if self.known is None:
            raise ConfigError(
                f"whether {self.name} will be a driver domain is unknown: "
                f"{', '.join(self.unreadable)} may name it as a backend, and cannot tell"
            )
        return self.known

    def __str__(self) -> str:
        """The evidence in words; empty when there is none."""
        said = []
        if self.owns:
            said.append("owns " + ", ".join(self.owns))
        if self.serves:
            said.append("serves " + ", ".join(self.serves))
        if self.declared:
            said.append("says driver_domain = 1")
        return "; ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for ``json.dumps``."""
        return {**asdict(self), "known": self.known}


@dataclass(frozen=True)
class Configurations:
    """Several configurations, and what they say of each other."""

    #: for each source what was read from it, or why it could not be
    results: Mapping[str, DomainConfig | ConfigError]

    @property
    def configs(self) -> list[DomainConfig]:
        """Those that could be read."""
        return [each for each in self.results.values() if isinstance(each, DomainConfig)]

    @property
    def errors(self) -> list[ConfigError]:
        """Why the others could not."""
        return [each for each in self.results.values() if isinstance(each, ConfigError)]

    def driver_domain(self, name: str) -> PlannedDriverDomain:
        """Whether the domain of that name will be a driver domain, and why.

        A domain that none of these configures is one if one of them names it as a backend.
        """
        named = [config for config in self.configs if config.name == name]
        serves, vague = [], [source for source, each in self.results.items() if _is_error(each)]
        for config in self.configs:
            domains = {backend.domain for backend in config.backends}
            if name in domains:
                serves.append(config.name)
            if any(isinstance(domain, int) for domain in domains):
                vague.append(config.source)  # a number may come to mean any domain
        return PlannedDriverDomain(
            name,
            owns=tuple(dict.fromkeys(str(device) for config in named for device in config.pci)),
            serves=tuple(dict.fromkeys(serves)),
            declared=any(config.driver_domain for config in named),
            unreadable=tuple(vague),
        )

    def driver_domains(self) -> dict[str, PlannedDriverDomain]:
        """The same for every domain that is configured here or named as a backend."""
        names = [config.name for config in self.configs]
        for config in self.configs:
            names += [each.domain for each in config.backends if isinstance(each.domain, str)]
        return {name: self.driver_domain(name) for name in dict.fromkeys(names)}


def _is_error(result: object) -> bool:
    return isinstance(result, ConfigError)


def parse(text: str, source: str = "<string>") -> DomainConfig:
    """Parse an xl configuration: ``xlu_cfg_readdata``, ``xlu_pci_parse_spec_string`` and others.

    It gets the verdict that ``xl create`` would give as far as name, type, UUID and devices go.
    What xl takes from ``/etc/xen/xl.conf``, ``vif.default.backend``, is taken from there.

    Args:
        text: the configuration.
        source: what errors call it.

    Raises:
        ConfigError: xl would refuse it.
        LibraryMismatch: libxlutil is not here.
    """
    module = xenlight()
    parsed = xlcfg.to_json(module, text, source, _default_vif_backend())
    return _config(parsed.json, source, parsed.pci, parsed.warnings)


def _default_vif_backend() -> str | None:
    """The backend domain that xl gives to a vif that names none."""
    try:
        text = _content(XL_CONF)
    except FileNotFoundError:
        return None
    key = "vif.default.backend"
    try:
        found, _ = xenlight().read_settings(text, (key,))
    except ConfigError as error:
        raise ConfigError(
            f"xl itself cannot read its settings: {error.what}", str(XL_CONF)
        ) from None
    backend: str | None = found.get(key)
    return backend


def read(path: Path_) -> DomainConfig:
    """Read a file for xl; see `parse`.

    Args:
        path: the file, of at most 64 KiB.

    Raises:
        ConfigError: xl would refuse it, or it cannot be read.
        LibraryMismatch: libxlutil is not here.
    """
    try:
        text = _content(Path(path))
    except FileNotFoundError:
        raise ConfigError("there is no such file", str(path)) from None
    return parse(text, str(path))


def _content(path: Path) -> str:
    """What is in a file that may be a configuration."""
    try:
        with open(path, "rb", opener=open_now) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError("is not a file", str(path))
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(path)) from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(
            f"is larger than {_MAX_BYTES // 1024} KiB, so it is no configuration", str(path)
        )
    return content.decode("utf-8", "surrogateescape")


def read_files(paths: Iterable[Path_]) -> Configurations:
    """Read several files for xl; one that is wrong does not stop the others.

    Args:
        paths: the files.

    Raises:
        LibraryMismatch: libxlutil is not here.
    """
    results: dict[str, DomainConfig | ConfigError] = {}
    for path in paths:
        try:
            results[str(path)] = read(path)
        except ConfigError as error:
            results[str(path)] = error
    return Configurations(results)


def read_directory(path: Path_) -> Configurations:
    """Read all files of a directory, such as ``/etc/xen/auto`` or ``/etc/xen``; see `read_files`.

    Left out are directories, hidden files, those that end in ``~``, ``.conf`` or ``.sxp`` and those
    that begin with ``README``: in ``/etc/xen`` these are settings of Xen's own programs.

    Args:
        path: the directory.

    Raises:
        ConfigError: it is no directory or cannot be read.
        LibraryMismatch: libxlutil is not here.
    """
    try:
        files = sorted(entry for entry in Path(path).iterdir() if not entry.is_dir())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(path)) from error
    return read_files(file for file in files if not _is_other(file.name))


def _is_other(name: str) -> bool:
    return name.startswith((".", "README")) or name.endswith(("~", ".conf", ".sxp"))


def of(domain: Domain) -> DomainConfig:
    """What a running domain is made of now: ``libxl_retrieve_domain_configuration``.

    Args:
        domain: which; one that libxl has made.

    Raises:
        NoSuchDomain: it is gone.
        XenlightError: libxl knows nothing of it, or somebody else is changing it (EBUSY).
        ConfigError: libxl gives something unknown to xenpm.
        LibraryMismatch, NotPermitted, NotXenHost: see `Host`.
    """
    with open_xenlight() as context:
        try:
            text = context.domain_configuration(domain.domid)
        except XenlightError:
            domain.info  # noqa: B018  (raises what says more when it is gone)
            raise
    config = from_json(text, f"<domain {domain.domid}>")
    if config.uuid != domain.uuid:
        raise NoSuchDomain(f"{domain.ref} is gone")
    return config


def assignable() -> list[PciSpec]:
    """The PCI devices that this host can give to a domain: ``libxl_device_pci_assignable_list``.

    Raises:
        XenlightError: libxl cannot tell.
        LibraryMismatch, NotPermitted, NotXenHost: see `Host`.
    """
    with open_xenlight() as context:
        return [_pci(json.loads(text)) for text in context.assignable_pci()]


def from_json(text: str, source: str = "<string>") -> DomainConfig:
    """Take a domain's configuration from the JSON of a ``libxl_domain_config``.

    That is what ``xl -N create`` prints, what ``xl list -l`` has under ``config``, and what libxl
    keeps of a running domain.

    Args:
        text: the JSON.
        source: what errors call it.

    Raises:
        ConfigError: it is none.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"is not JSON: {error.msg}; it must be complete and as libxl writes it",
            source,
            error.lineno,
            error.colno,
        ) from None
    except RecursionError:
        raise ConfigError("is not JSON of libxl: nested too deeply", source) from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"is not JSON of libxl: {error}", source) from None
    return _config(values, source)


class _Strange(Exception):
    """What libxl does not write."""


def _config(
    values: Any, source: str, places: list[xlcfg.Place] | None = None, warnings: Iterable[str] = ()
) -> DomainConfig:
    try:
        created = _get(_is(values, dict, "it"), "c_info", dict)
        uuid = _get(created, "uuid", str, "")
        backends = [
            Backend(kind, *described)
            for key, kind in _KINDS.items()
            for device in _get(values, key, list, [])
            for described in [_backend(_is(device, dict, key))]
            if described is not None
        ]
        pci = [_pci(_is(each, dict, "pcidevs")) for each in _get(values, "pcidevs", list, [])]
        if places is not None:
            pci = [replace(each, line=at.line, column=at.column) for each, at in zip(pci, places)]
        return DomainConfig(
            name=_get(created, "name", str),
            type=DomainType(_get(created, "type", str)),
            uuid=UUID(uuid) if uuid else None,
            driver_domain=_get(created, "driver_domain", str, "") == "True",
            pci=tuple(pci),
            backends=tuple(backends),
            source=source,
            warnings=tuple(f"{source}:{warning}" for warning in warnings),
        )
    except (_Strange, ValueError) as error:
        raise ConfigError(
            f"is not the JSON of a domain as libxl writes it: {error}", source
        ) from None


def _is(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Strange(f"{what} is not of type {kind.__name__}")
    return value


_MISSING = object()


def _get(values: dict[str, Any], key: str, kind: type, default: Any = _MISSING) -> Any:
    """A member of that type; libxl leaves out those that have their default."""
    value = values.get(key, default)
    if value is _MISSING:
        raise _Strange(f"{key} is missing")
    return default if value is default else _is(value, kind, key)


def _number(values: dict[str, Any], key: str, most: int) -> int:
    number: int = _get(values, key, int, 0)
    if not 0 <= number <= most:
        raise _Strange(f"{key} is {number}")
    return number


def _backend(device: dict[str, Any]) -> tuple[str, str | int] | None:
    """Which device, and which domain serves it, if that is not domain 0."""
    name = _get(device, "backend_domname", str, None)
    number = _number(device, "backend_domid", 0xFFFF)
    domain: str | int = number if name is None else name
    if isinstance(domain, str) and domain.isascii() and domain.isdigit():
        domain = int(domain[:_MOST_DIGITS])
    which = _get(device, "vdev", str, "")
    devid = _get(device, "devid", int, -1)
    if domain == 0 or domain in _DOMAIN_0:
        return None
    return which or ("" if devid < 0 else str(devid)), domain


def _pci(device: dict[str, Any]) -> PciSpec:
    name = _get(device, "name", str, None)
    function = str(_number(device, "func", 0xFF))
    if _number(device, "vfunc_mask", _ALL_FUNCTIONS) == _ALL_FUNCTIONS:
        function = "*"
    address = "{:04x}:{:02x}:{:02x}.{}".format(
        _number(device, "domain", 0xFFFF),
        _number(device, "bus", 0xFF),
        _number(device, "dev", 0xFF),
        function,
    )
    policy = _get(device, "rdm_policy", str, None)
    return PciSpec(
        address=address if name is None or address != "0000:00:00.0" else None,
        name=name,
        vdevfn=_number(device, "vdevfn", 0xFFFFFFFF),
        msitranslate=_get(device, "msitranslate", bool, False),
        power_mgmt=_get(device, "power_mgmt", bool, False),
        permissive=_get(device, "permissive", bool, False),
        seize=_get(device, "seize", bool, False),
        rdm_policy=None if policy == "invalid" else policy,
    )
