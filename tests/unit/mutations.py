"""Random changes to the configurations of the corpus."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
_WORDS = re.compile(rb"""[^\s,="'\[\]]+|[,="'\[\]]|\n""")
_BYTES = b",=:.;@*#\\\"'[] \t\r\n0159afx\x7f\xc3"


def mutated(rnd: random.Random, nul: bool = False) -> Iterator[bytes]:
    """Without end: one of the corpus, with one to three changes; with NUL bytes only if asked."""
    texts = [path.read_bytes() for path in sorted(CORPUS.glob("*.cfg"))]
    words = sorted({word for text in texts for word in _WORDS.findall(text)})
    single = _BYTES + (b"\0" if nul else b"")
    while True:
        text = bytearray(rnd.choice(texts))
        for _ in range(rnd.choice((1, 1, 1, 2, 3))):
            start = rnd.randrange(len(text) + 1)
            end = start + rnd.randrange(1, 6)
            kind = rnd.randrange(6)
            if kind == 0:
                del text[start:end]
            elif kind == 1:
                text[start:start] = rnd.choice(words)
            elif kind == 2:
                text[start:end] = rnd.choice(words)
            elif kind == 3:
                text[start:start] = text[start:end] * rnd.choice((1, 2, 50))
            elif kind == 4:
                text[start:start] = bytes([rnd.choice(single)])
            else:
                lines = text.split(b"\n")
                rnd.shuffle(lines)
                text = bytearray(b"\n".join(lines))
        yield bytes(text)
