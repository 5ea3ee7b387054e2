"""Random input for parsers: python -m tests.unit.fuzz_config SEED COUNT FILE.

To be run as a process of its own, for what is looked for are crashes of libxlutil.  FILE then has
the input that it crashed on.
"""

from __future__ import annotations

import json
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from xenpm import ConfigError, config
from xenpm._ext import xenlight

from .mutations import CORPUS, mutated

_CHARACTERS = "0123456789abcdefABCDEFgx:.,=@*-+ \t\n\r\\'\"[]/_~\u00e9\udce9\0"
_PIECES = (
    "00:10.0", "0000:", "@", ".*", "bdf=", "name=", "vslot=", "permissive=1", "rdm_policy=strict",
    "backend=net", "vdev=xvda", "target=", "phy:", "format=raw", ",", "=", "access=r", "script=",
    "10Mb/s", "@50ms", "GB/s", "strategy=host", "policy=relaxed", ":cdrom", "iscsi:",
)  # fmt: skip


def spec(rnd: random.Random) -> str:
    """A string that looks a little like a device's."""
    if rnd.random() < 0.02:
        return rnd.choice(_CHARACTERS[:-1]) * rnd.randrange(20_000)
    parts = (rnd.choice((rnd.choice(_PIECES), rnd.choice(_CHARACTERS))) for _ in range(9))
    return "".join(list(parts)[: rnd.randrange(10)])


def changed(rnd: random.Random, value: Any) -> Any:
    """JSON, with something in it that libxl does not write."""
    if isinstance(value, dict) and value and rnd.random() < 0.9:
        key = rnd.choice(sorted(value))
        return {**value, key: changed(rnd, value[key])}
    if isinstance(value, list) and value and rnd.random() < 0.9:
        at = rnd.randrange(len(value))
        return [*value[:at], changed(rnd, value[at]), *value[at + 1 :]]
    return rnd.choice((None, True, -1, 1 << 70, 0.5, "", "True", "0", [], {}, [[]], [{}]))


def main(seed: str, count: str, path: str) -> None:
    """Run that many rounds; anything but a `ConfigError` ends it."""
    rnd = random.Random(int(seed))  # noqa: S311
    file = Path(path)
    mutations = mutated(rnd, nul=True)
    accepted = 0
    like_libxl = {
        "c_info": {"type": "pv", "name": "web", "uuid": "00112233-4455-6677-8899-aabbccddeeff"},
        "pcidevs": [{"dev": 16, "vfunc_mask": 1, "rdm_policy": "strict"}],
        "disks": [{"backend_domname": "store", "vdev": "xvda", "backend_domid": 3}],
        "nics": [{"devid": 0, "backend_domid": 2}],
    }
    for _ in range(int(count)):
        text = next(mutations).decode("utf-8", "surrogateescape")
        string = spec(rnd)
        wrong = json.dumps(changed(rnd, like_libxl))
        file.write_text(repr((text, string, wrong)))
        with suppress(ConfigError):
            config.parse(text)
            accepted += 1
        for parse in (xenlight.parse_pci, xenlight.parse_disk, xenlight.check_rate):
            with suppress(ConfigError):
                parse(string)
        with suppress(ConfigError):
            xenlight.parse_rdm(string)
        with suppress(ConfigError):
            config.from_json(wrong)
        with suppress(ConfigError):
            config.from_json(wrong[: rnd.randrange(len(wrong))])
    assert accepted or not any(CORPUS.iterdir())
    sys.stdout.write(f"{count} rounds, {accepted} files accepted\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
