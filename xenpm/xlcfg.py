"""The text of an xl configuration, brought into the shape of the JSON that libxl makes of a domain.

libxlutil parses the file, the PCI devices and the disks.  What is here is what xl does by itself:
the strings of all other devices, with the same verdict, and where in the text an item stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Callable, NamedTuple
from uuid import UUID

from .errors import ConfigError

__all__ = ["Place", "items", "to_json"]

_STRINGS = ("name", "uuid", "type", "builder", "kernel", "bootloader", "firmware", "rdm")
_NUMBERS = ("driver_domain", "pci_msitranslate", "pci_power_mgmt", "pci_permissive", "pci_seize")
_PCI_FORM = "write [DOMAIN:]BUS:DEVICE.FUNCTION[@SLOT][,OPTION=VALUE...] in hexadecimal digits"


class Place(NamedTuple):
    """Where something stands in a text: both from 1."""

    line: int
    column: int


# -- places

_TOKEN = re.compile(
    r"""(?P<blank>[ \t]+)
      | (?P<newline>\n|\#.*\n)
      | (?P<name>[a-z][._0-9a-z]*)
      | (?P<number>[0-9][0-9a-fx]*)
      | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
      | (?P<set>=)
      | (?P<add>\+=)
      | (?P<punctuation>[,;\[\]])
      | (?P<junk>[^ \t\n]+)""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int
    place: Place


def _tokens(text: str) -> Iterator[_Token]:
    """The tokens of libxlutil's lexer, with their places."""
    line, begin = 1, 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "junk"
        start = match.start()
        if kind != "blank":
            yield _Token(kind, match[0], start, match.end(), Place(line, start - begin + 1))
        if kind == "newline":
            line, begin = line + 1, match.end()


def items(text: str) -> dict[str, list[Place]]:
    """Where each key's value stands, of a list each of its items; of a text that libxlutil accepts.

    As in libxlutil the last assignment counts, and ``+=`` appends to the one before.
    """
    found: dict[str, list[Place]] = {}
    name, depth = "", 0
    for token in _tokens(text):
        if token.kind == "name":
            name = token.text
        elif token.kind == "set":
            found[name] = []
        elif token.kind == "add":
            found.setdefault(name, [])
        elif token.text == "]":
            depth -= 1
        elif token.text == "[" or token.kind in ("number", "string"):
            if depth == 1 or (depth == 0 and token.text != "["):
                found[name].append(token.place)
            depth += token.text == "["
    return found


#: more of what is quoted helps nobody
_LONG_TEXT = 400
#: longer lines are not searched for a column, which could take long
_LONG_LINE = 4096

_REPORT = re.compile(
    r"(?P<line>\d+): config parsing error near (?:`(?P<near>.*)'|<newline>): (?P<what>.*)",
    re.DOTALL,
)


def _syntax_error(xenlight: ModuleType, text: str, source: str, report: str) -> ConfigError:
    """What libxlutil says of a text, whose line it tells and whose column it does not."""
    match = _REPORT.match(report.partition("\n")[0])
    if match is None:
        return ConfigError(f"cannot be read as an xl configuration: {report}", source)
    line, near, what = int(match["line"]), match["near"], match["what"]
    if "unexpected NEWLINE" in what:
        line += 1  # libxlutil takes off one too many
        near = None
    lines = re.findall(r".*\n|.+", text)
    words = lines[line - 1] if line <= len(lines) else ""
    column = None
    if len(words) <= _LONG_LINE:
        found = [
            token
            for token in _tokens(words)
            if (token.kind == "newline" if near is None else _shown(token.text) == near)
        ]
        start = sum(map(len, lines[: line - 1]))
        # Of several that look alike, the first that libxlutil does not take.
        low, high = 0, len(found) - 1
        while low < high:
            middle = (low + high) // 2
            if _ends_in(xenlight, text[: start + found[middle].end], match.group("line", "near")):
                high = middle
            else:
                low = middle + 1
        column = found[low].place.column if found else len(words.rstrip("\n")) + 1
    what += f", at {near!r}" if near and near.isprintable() else ""
    if near and "\r" in near:
        return ConfigError(
            f"{what}: ends its lines as DOS does; remove the \\r", source, line, column
        )
    return ConfigError(f"{what}; xl.cfg(5) has the syntax", source, line, column)


def _shown(text: str) -> str:
    """Text as libxlutil's report has it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").rstrip(" \t")


def _ends_in(xenlight: ModuleType, text: str, at: tuple[str, ...]) -> bool:
    """Whether the beginning of a text has the error already that the whole has there."""
    try:
        xenlight.read_settings(text)
    except ConfigError as error:
        match = _REPORT.match(error.what.partition("\n")[0])
        return match is not None and match.group("line", "near") == at
    return False


# -- what xl parses by itself

Device = dict[str, Any]


class _Refused(Exception):
    """What xl refuses, in words."""


def _words(spec: str) -> list[str]:
    """The parts of a device's string, as strtok(3) splits them."""
    return [word.lstrip(" ") for word in spec.split(",") if word]


def _pairs(spec: str, at_first: bool) -> list[tuple[str, str]]:
    """The KEY=VALUE pairs of a string of which all parts must be such."""
    pairs = []
    for word in [word for word in spec.split(",") if word] or [""]:
        key, equals, value = word.partition("=")
        if not at_first:  # then xl lets strtok(3) do it
            key, value = ([part for part in word.split("=") if part] + ["", ""])[:2]
        if not equals or not value:
            raise _Refused(f"{word!r} is not KEY=VALUE")
        pairs.append((key.strip(_SPACE), value.strip(_SPACE)))
    return pairs


_SPACE = " \t\n\v\f\r"


def _unsigned(text: str) -> int:
    """A number as xl takes it with strtoul(3), base 10, which stops at what is no digit."""
    match = re.match(rf"[{_SPACE}]*([+-]?)([0-9]+)", text)
    number = int(match[2]) if match and len(match[2]) < 30 else 1 << 64
    if match and match[1] == "-":
        number = (1 << 64) - number
    if not 0 <= number < (1 << 64) - 1:
        raise _Refused(f"{text!r} is not a number")
    return number


def _known(word: str, keys: tuple[str, ...]) -> tuple[str, str]:
    """A word as KEY=VALUE with one of these keys."""
    key, equals, value = word.partition("=")
    if not equals or key not in keys:
        raise _Refused(f"{word!r} is unknown; known are {', '.join(keys)}, each with =VALUE")
    return key, value


def _one_of(value: str, values: tuple[str, ...], what: str) -> None:
    if value.lower() not in values:
        raise _Refused(f"{what} is one of {', '.join(values)}, not {value!r}")


def _vif(xenlight: ModuleType, spec: str) -> Device:
    device: Device = {}
    for word in _words(spec):
        key, equals, value = word.partition("=")
        if not equals:
            continue  # as with unknown keys, xl warns and goes on
        if key == "backend":
            device["backend_domname"] = value
        elif key == "rate":
            xenlight.check_rate(value)
        elif key == "devid":
            device["devid"] = _unsigned(value)
        elif key == "mtu" and xenlight.VIF_MTU:
            _unsigned(value)
    return device


_VKB = (
    "backend", "backend-type", "unique-id", "feature-disable-keyboard", "feature-disable-pointer",
    "feature-abs-pointer", "feature-raw-pointer", "feature-multi-touch", "multi-touch-width",
    "multi-touch-height", "multi-touch-num-contacts", "width", "height",
)  # fmt: skip


def _vkb(_xenlight: ModuleType, spec: str) -> Device:
    given = dict(_known(word, _VKB) for word in _words(spec))
    _one_of(given.get("backend-type", "none"), ("qemu", "linux"), "backend-type")
    sizes = [given.get(f"multi-touch-{part}", "0") for part in ("width", "height", "num-contacts")]
    if _is_set(given.get("feature-multi-touch", "0")) and not any(map(_is_set, sizes)):
        raise _Refused("feature-multi-touch needs multi-touch-width, -height and -num-contacts")
    return _backend(given)


def _is_set(number: str) -> bool:
    """Whether strtoul(3), base 0, makes something else than 0 of it."""
    digits = re.match(rf"[{_SPACE}]*[+-]?(?:0[xX]([0-9a-fA-F]+)|0([0-7]*)|([0-9]+))", number)
    return bool(digits and (digits[1] or digits[2] or digits[3] or "").strip("0"))


def _backend(given: dict[str, str]) -> Device:
    return {"backend_domname": given["backend"]} if "backend" in given else {}


def _old_pairs(spec: str, keys: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE pairs up to the first part that is none, where xl stops without a word."""
    given: dict[str, str] = {}
    for word in _words(spec):
        if "=" not in word:
            break
        key, value = _known(word, keys)
        given[key] = value
    return given


def _vtpm(_xenlight: ModuleType, spec: str) -> Device:
    given = _old_pairs(spec, ("backend", "uuid"))
    if "uuid" in given:
        _uuid(given["uuid"])
    if "backend" not in given:
        raise _Refused("a vtpm needs backend=")
    return _backend(given)


def _pvcalls(_xenlight: ModuleType, spec: str) -> Device:
    return _backend(_old_pairs(spec, ("backend",)))


def _uuid(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise _Refused(f"{text!r} is not a UUID")
    return str(UUID(text))


class _P9:
    """The 9pfs devices; before 4.18 xl takes what one does not say from the one before."""

    KEYS = ("security_model", "path", "tag", "backend")
    TYPES = ("type", "max-files", "max-open-files", "max-space", "auto-delete")

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def __call__(self, xenlight: ModuleType, spec: str) -> Device:
        if not xenlight.P9_PAIRS:
            self._given.update(_old_pairs(spec, self.KEYS))
            given = self._given
        else:
            keys = self.KEYS + (self.TYPES if xenlight.P9_TYPES else ())
            given = dict(_known("=".join(pair), keys) for pair in _pairs(spec, at_first=True))
        if "type" in given:
            _one_of(given["type"], ("unknown", "qemu", "xen_9pfsd"), "type")
        for key in self.TYPES[1:4]:
            _unsigned(given.get(key, "0"))
        if not xenlight.P9_TYPES and not {*self.KEYS[:3]} <= {*given}:
            raise _Refused("a 9pfs needs path=, security_model= and tag=")
        return {"devid": -1, **_backend(given)}


def _vdispl(_xenlight: ModuleType, spec: str) -> Device:
    given = dict(_known(word, ("backend", "be-alloc", "connectors")) for word in _words(spec))
    connectors = [word for word in given.get("connectors", "").split(";") if word]
    if not connectors:
        raise _Refused("a vdispl needs connectors=ID:WIDTHxHEIGHT[;...]")
    for connector in connectors:
        if not re.match(r"[^:]+:[0-9]+x[0-9]+", connector):
            raise _Refused(f"the connector {connector!r} is not ID:WIDTHxHEIGHT")
    return _backend(given)


_VSND = ("sample-rates", "sample-formats", "channels-min", "channels-max", "buffer-size")
_VSND_OF = {
    "card": ("backend", "short-name", "long-name"),
    "pcm": ("name",),
    "stream": ("unique-id", "type"),
}


def _vsnd(_xenlight: ModuleType, card: Any) -> Device:
    device: Device = {}
    if not isinstance(card, list):
        raise _Refused("a vsnd is a list of strings")
    for spec in _strings(card):
        kind, *words = _words(spec) or ["card"]
        _one_of(kind, tuple(_VSND_OF), "a part of a vsnd")
        given = dict(_known(word, _VSND + _VSND_OF[kind.lower()]) for word in words)
        device.update(_backend(given))
    return device


def _channel(xenlight: ModuleType, spec: str) -> Device:
    given = dict(_pairs(spec, at_first=xenlight.P9_PAIRS))
    _one_of(given.get("connection", "none"), ("pty", "socket"), "connection")
    if given["connection"] == "socket" and "path" not in given:
        raise _Refused("connection=socket needs path=")
    return {**({"devid": -1} if xenlight.P9_PAIRS else {}), **_backend(given)}


def _usbctrl(_xenlight: ModuleType, spec: str) -> Device:
    given = dict(_known(word, ("type", "version", "ports")) for word in _words(spec))
    _one_of(given.get("type", "auto"), ("auto", "pv", "devicemodel", "qusb"), "type")
    return {}


_USBDEV = ("type", "hostbus", "hostaddr", "controller", "port")


def _usbdev(_xenlight: ModuleType, spec: str) -> Device:
    given = dict(_known(word, _USBDEV) for word in _words(spec))
    _one_of(given.get("type", "hostdev"), ("hostdev",), "type")
    return {}


def _virtio(_xenlight: ModuleType, spec: str) -> Device:
    given: dict[str, str] = {}
    words = iter(_words(spec))
    for word in words:
        if word.startswith("type=virtio") and next(words, None) is None:  # has a comma in it
            raise _Refused("a type= of virtio has two parts, as type=virtio,device22")
        key, value = _known(word, ("backend", "type", "transport", "grant_usage"))
        given[key] = value
    _one_of(given.get("transport", "unknown"), ("unknown", "mmio"), "transport")
    return _backend(given)


Parse = Callable[[ModuleType, Any], Device]


def _parsers(xenlight: ModuleType) -> dict[str, tuple[str, Parse]]:
    """For each key of xl what libxl's JSON calls it, and who parses an item of it."""
    return {
        "disk": ("disks", lambda _, spec: dict(json.loads(xenlight.parse_disk(spec)))),
        "p9": ("p9s", _P9()),
        "vtpm": ("vtpms", _vtpm),
        "vdispl": ("vdispls", _vdispl),
        "pvcalls": ("pvcallsifs", _pvcalls),
        "vsnd": ("vsnds", _vsnd),
        "channel": ("channels", _channel),
        "vif": ("nics", _vif),
        "usbctrl": ("usbctrls", _usbctrl),
        "usbdev": ("usbdevs", _usbdev),
        "vkb": ("vkbs", _vkb),
        **({"virtio": ("virtios", _virtio)} if xenlight.VIRTIO else {}),
    }


def _strings(values: list[Any]) -> list[str]:
    """The items of a list that xl sees: it stops at the first that is not a string."""
    seen = []
    for value in values:
        if not isinstance(value, str):
            break
        seen.append(value)
    return seen


# -- the whole


class Parsed(NamedTuple):
    """A configuration in the shape of libxl's JSON, where its PCI devices stand, and warnings."""

    json: dict[str, Any]
    pci: list[Place]
    warnings: list[str]


def to_json(xenlight: ModuleType, text: str, source: str, vif_backend: str | None = None) -> Parsed:
    """Parse an xl configuration with the verdict of xl, as far as its devices go.

    Args:
        xenlight: the extension module.
        text: the whole configuration.
        source: what errors call it.
        vif_backend: the backend domain of a vif that names none (``vif.default.backend``).

    Raises:
        ConfigError: xl would refuse it.
    """
    parsers = _parsers(xenlight)
    try:
        found, warnings = xenlight.read_settings(
            text, _STRINGS, (*_NUMBERS, "vnc"), ("pci", "vfb", *parsers)
        )
    except ConfigError as error:
        raise _syntax_error(xenlight, text, source, error.what) from None
    places = items(text)

    def refused(key: str, index: int, what: str) -> ConfigError:
        what = what if len(what) <= _LONG_TEXT else f"{what[:_LONG_TEXT]}…"
        return ConfigError(f"{key}: {what}", source, *places[key][index])

    def each(key: str, parse: Parse) -> list[Device]:
        values = found.get(key, [])
        devices = []
        for index, value in enumerate(values if key == "vsnd" else _strings(values)):
            try:
                devices.append(parse(xenlight, value))
            except (_Refused, ConfigError) as error:
                what = error.what if isinstance(error, ConfigError) else str(error)
                raise refused(key, index, what) from None
        return devices

    if "name" not in found:
        raise ConfigError('no domain: it gives no name; add name = "..."', source)
    try:
        kind = _type(found)
    except _Refused as error:
        raise refused("builder" if "builder" in found else "type", 0, str(error)) from None
    created = {"type": kind, "name": found["name"]}
    try:
        created.update({"uuid": _uuid(found["uuid"])} if "uuid" in found else {})
    except _Refused as error:
        raise refused("uuid", 0, str(error)) from None
    if "driver_domain" in found:
        created["driver_domain"] = str(found["driver_domain"] != 0)

    options = {key[4:]: bool(found.get(key)) for key in _NUMBERS[1:]}
    policy = xenlight.parse_rdm(found["rdm"]) if "rdm" in found else None
    if policy is None:
        policy = -1 if kind == "hvm" else 0  # xl finds no default there, and 0 is strict
    result: dict[str, Any] = {"c_info": created}

    def pci(_: ModuleType, spec: str) -> Device:
        try:
            text = xenlight.parse_pci(spec, rdm_policy=policy, **options)
        except ConfigError as error:
            what = f" ({error.what})" if error.what else ""
            raise _Refused(f"{spec!r} is not a PCI device{what}; {_PCI_FORM}") from None
        return dict(json.loads(text))

    result["pcidevs"] = each("pci", pci)
    for key, (name, parse) in parsers.items():
        result[name] = each(key, parse)
    for nic in result["nics"]:
        if vif_backend is not None:
            nic.setdefault("backend_domname", vif_backend)
    # each vfb brings a vkb along, and so does vnc= for a PV domain without a vfb
    vfbs = len(_strings(found.get("vfb", []))) or int(kind == "pv" and bool(found.get("vnc")))
    result["vkbs"] = [{} for _ in range(vfbs)] + result["vkbs"]
    for name, devices in result.items():
        if name not in ("c_info", "pcidevs", "disks"):
            for index, device in enumerate(devices):
                device.setdefault("devid", index)
    if kind != "hvm":
        if "firmware" in found and "kernel" in found:
            raise refused("firmware", 0, "given beside kernel=; remove one")
        if "firmware" in found and not any(
            name.startswith(found["firmware"]) for name in ("pvgrub32", "pvgrub64")
        ):
            raise refused("firmware", 0, f"{found['firmware']!r} is none of pvgrub32, pvgrub64")
        if not {"kernel", "bootloader", "firmware"} & {*found}:
            raise ConfigError("a PV or PVH domain needs kernel=, bootloader= or firmware=", source)
    return Parsed(result, places.get("pci", []), warnings)


def _type(found: dict[str, Any]) -> str:
    """The domain's type, of which xl lets the beginning of a word be enough."""
    kinds = {}
    for key, names in (("type", ("hvm", "pv", "pvh")), ("builder", ("hvm", "generic"))):
        if key in found:
            fitting = [name for name in names if name.startswith(found[key])]
            if not fitting:
                raise _Refused(f"{found[key]!r} is none of {', '.join(names)}")
            kinds[key] = fitting[0].replace("generic", "pv")
    if len({*kinds.values()}) > 1:
        raise _Refused("builder= contradicts type=; remove builder=")
    return next(iter(kinds.values()), "pv")
