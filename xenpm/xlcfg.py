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

_STRINGS = ("name", "uuid", "type", "builder", "rdm")
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
      | (?P<add>\+=)
      | (?P<punctuation>[,;=\[\]])
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
    """Where the values of each key stand that counts in the end, of a list each of its items.

    The text must be one that libxlutil accepts.
    """
    found: dict[str, list[Place]] = {}
    key, adds, depth, last, places = "", False, 0, "", [Place(1, 1)]
    for token in _tokens(text):
        if token.kind == "name":
            key, depth, places = token.text, 0, []
        elif token.text in ("=", "+="):
            adds = token.kind == "add"
            found[key] = places = found.get(key, []) if adds else []
        elif token.text == "]":
            depth -= 1
        elif token.text == "[" or token.kind in ("string", "number"):
            if depth == 0 and token.text != "[":
                places[:] = [token.place]  # one string, however many were added up
            elif depth == 1:
                places.append(token.place)
            depth += token.text == "["
    return found
