"""What a host suspend does with each guest, and who has said so: the call, a file, the xenstore.

Nothing here touches Xen: values, and the readers of the two places where they are written.
"""

from __future__ import annotations

import configparser
import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from .errors import ConfigError
from .types import DomainRef

__all__ = [
    "OnFailure",
    "OnHookFailure",
    "Policy",
    "Rule",
    "Settings",
    "merge",
    "parse_rule",
    "read_settings",
]

T = TypeVar("T")

SETTINGS = Path("/etc/xen/xenpm.conf")

_LONGEST = 86_400  # seconds; so that a slip of the pen does not keep a lid closed for a year
_SECTIONS = "[host], [default], [domain NAME-or-UUID]"

POLICY = "xenpm/policy"  # the node in a domain's home that says what is to become of it


class Policy(enum.Enum):
    """What happens to a guest when its host goes to sleep."""

    SUSPEND = "suspend"  #: it suspends itself, with its memory in place
    PAUSE = "pause"  #: it is taken off the CPUs and not told
    SAVE = "save"  #: its memory is written to a file and it is destroyed, and made anew afterwards
    LEAVE = "leave"  #: nothing is done with it; Xen stops it, as it stops all
    ABORT = "abort"  #: while it is there, the host does not sleep


class OnFailure(enum.Enum):
    """What happens when a guest does not suspend."""

    PAUSE = "pause"  #: this one is paused instead, and the host sleeps
    UNDO = "undo"  #: all guests are resumed, and the host does not sleep


class OnHookFailure(enum.Enum):
    """What happens when a hook fails or hangs before the sleep."""

    IGNORE = "ignore"  #: it is reported, and the host sleeps
    UNDO = "undo"  #: all guests are resumed, and the host does not sleep


@dataclass(frozen=True)
class Rule:
    """What somebody has said about a guest; None: nothing."""

    policy: Policy | None = None  #: what becomes of it when the host sleeps
    on_failure: OnFailure | None = None  #: what is done when it does not suspend
    timeout: float | None = None  #: seconds that it has for suspending

    def __str__(self) -> str:
        """As `parse_rule` reads it."""
        words = [self.policy.value] if self.policy else []
        if self.timeout is not None:
            words.append(f"timeout={self.timeout:.15g}")
        if self.on_failure:
            words.append(f"on-failure={self.on_failure.value}")
        return " ".join(words)


@dataclass(frozen=True)
class Settings:
    """What stands in ``/etc/xen/xenpm.conf``."""

    timeout: float = 300.0  #: seconds that all has together until the machine sleeps
    hook_timeout: float = 30.0  #: seconds that each hook has
    on_hook_failure: OnHookFailure = OnHookFailure.IGNORE  #: of a hook before the sleep
    save_directory: Path = Path("/var/lib/xenpm/save")  #: for the files of guests that are saved
    default: Rule = Rule()  #: for every domain
    domains: Mapping[str, Rule] = field(default_factory=dict)  #: by name, or UUID in lower case

    def rule(self, domain: DomainRef) -> Rule:
        """What they say about a domain: its UUID's section, then its name's, then the default."""
        nothing = Rule()
        by_uuid = self.domains.get(str(domain.uuid), nothing)
        return merge(by_uuid, self.domains.get(domain.name, nothing), self.default)


def merge(*rules: Rule) -> Rule:
    """One rule of several: of each of the three, what the first says that says anything."""
    return Rule(
        next((rule.policy for rule in rules if rule.policy is not None), None),
        next((rule.on_failure for rule in rules if rule.on_failure is not None), None),
        next((rule.timeout for rule in rules if rule.timeout is not None), None),
    )


def parse_rule(text: str, source: str = POLICY) -> Rule:
    """The rule in a domain's xenstore node: ``suspend timeout=60 on-failure=undo``.

    The words may stand in any order, and each may be missing.

    Args:
        text: what stands there.
        source: where, for the error's text.

    Raises:
        ConfigError: a word is unknown, stands there twice or has a wrong value; its column is told.
    """
    said: dict[str, Any] = {}
    for match in re.finditer(r"\S+", text):
        key, equals, value = match.group().partition("=")
        if not equals:
            key, value = "policy", key
        try:
            if key not in _RULE or (key == "policy" and equals):
                raise ValueError(
                    f"unknown word {match.group()!r}; there may be a policy "
                    f"({_values(Policy)}), timeout=SECONDS and on-failure={_values(OnFailure, '|')}"
                )
            if _attribute(key) in said:
                raise ValueError(f"there is more than one {key}")
            said[_attribute(key)] = _RULE[key](value)
        except ValueError as error:
            raise ConfigError(str(error), source, 1, match.start() + 1) from None
    return Rule(**said)


def read_settings(path: Path = SETTINGS) -> Settings:
    """Read the file of settings; without one, the defaults hold.

    It is an INI file as `configparser` reads it, without interpolation.  Section ``[host]`` has
    ``timeout``, ``hook-timeout``, ``on-hook-failure`` and ``save-directory``; ``[default]`` and
    ``[domain NAME]``, with a name or a UUID, have ``policy``, ``on-failure`` and ``timeout``.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; file and line are told.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(path)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError("this is not UTF-8", str(path), line) from None
    return _settings(text, str(path))


class _Parser(configparser.RawConfigParser):
    """INI without surprises: every line counts, and keys are as they are written."""

    SECTCRE = re.compile(r"\[(?P<header>[^]]+)\]\s*$")

    def __init__(self) -> None:
        super().__init__(
            delimiters=("=",),
            default_section="",  # no section is called so: [default] is one of ours
            empty_lines_in_values=False,
        )

    def optionxform(self, optionstr: str) -> str:
        """Keep the case of keys."""
        return optionstr


def _settings(text: str, source: str) -> Settings:
    parser = _Parser()
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        what, line = _syntax(error)
        raise ConfigError(what, source, line) from None
    places = _places(text)
    host: dict[str, Any] = {}
    rules: dict[str, Rule] = {}
    for section in parser.sections():
        domain = re.fullmatch(r"domain\s+(.*\S)\s*", section)
        if domain is None and section not in ("host", "default"):
            what = f"unknown section [{section}]; there are {_SECTIONS}"
            raise ConfigError(what, source, places[section, ""])
        name = _domain(domain[1]) if domain else ""
        known = _HOST if section == "host" else _RULE
        if name in rules:
            what = f"there is a section of this domain already: [{section}]"
            raise ConfigError(what, source, places[section, ""])
        said: dict[str, Any] = {}
        for key, value in parser.items(section):
            try:
                if key not in known:
                    raise ValueError(
                        f"unknown key {key!r} in [{section}]; there are {', '.join(known)}"
                    )
                said[_attribute(key)] = known[key](value)
            except ValueError as error:
                raise ConfigError(str(error), source, places[section, key]) from None
        if section == "host":
            host = said
        else:
            rules[name] = Rule(**said)
    return Settings(**host, default=rules.pop("", Rule()), domains=rules)


def _syntax(error: configparser.Error) -> tuple[str, int | None]:
    """What configparser complains of, and in which line."""
    if isinstance(error, configparser.DuplicateSectionError):
        return f"there is a section [{error.section}] already", error.lineno
    if isinstance(error, configparser.DuplicateOptionError):
        return f"there is a {error.option!r} in [{error.section}] already", error.lineno
    if isinstance(error, configparser.MissingSectionHeaderError):
        return "before the first key there must be a [section]", error.lineno
    if isinstance(error, configparser.ParsingError) and error.errors:
        return "neither '[section]' nor 'key = value'", error.errors[0][0]
    return str(error), None


def _places(text: str) -> dict[tuple[str, str], int]:
    """The line of each section (with an empty key) and key: configparser does not keep them."""
    places: dict[tuple[str, str], int] = {}
    section = ""
    for number, line in enumerate(text.split("\n"), 1):
        header = _Parser.SECTCRE.match(line.strip())
        if header is not None:
            section = header["header"]
        key = "" if header else line.partition("=")[0].strip()
        places.setdefault((section, key), number)
    return places


def _domain(text: str) -> str:
    """A domain as a section names it: UUIDs in one spelling."""
    try:
        return str(UUID(text))
    except ValueError:
        return text


def _attribute(key: str) -> str:
    return key.replace("-", "_")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:  # neither is a NaN
        raise ValueError(f"must be seconds, more than 0 and at most {_LONGEST}, not {text!r}")
    return seconds


def _directory(text: str) -> Path:
    if not os.path.isabs(text):
        raise ValueError(f"must be an absolute path, not {text!r}")
    return Path(text)


def _one_of(kind: type[T]) -> Callable[[str], T]:
    """The reader of an enumeration's values."""

    def read(text: str) -> T:
        try:
            return kind(text)  # type: ignore[call-arg]
        except ValueError:
            raise ValueError(f"must be one of {_values(kind)}, not {text!r}") from None

    return read


def _values(kind: Any, between: str = ", ") -> str:
    return between.join(each.value for each in kind)


#: the keys of a section, and what reads their values
_RULE: dict[str, Callable[[str], Any]] = {
    "policy": _one_of(Policy),
    "on-failure": _one_of(OnFailure),
    "timeout": _seconds,
}
_HOST: dict[str, Callable[[str], Any]] = {
    "timeout": _seconds,
    "hook-timeout": _seconds,
    "on-hook-failure": _one_of(OnHookFailure),
    "save-directory": _directory,
}
