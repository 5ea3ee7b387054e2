"""What the lab mends in QEMU."""

from __future__ import annotations

from tests.lab.qemu import mended

# as Debian's 7.2 has it
VECTOR = bytes.fromhex("410fb6f4 4489ab80330000")
NOTE = bytes.fromhex("89b354efffff")
REST = bytes.fromhex("c7838433000000000000 48c78388330000ffffffff")


def test_the_note_is_not_taken_any_more() -> None:
    program = b"before" + VECTOR + NOTE + REST + b"behind" + NOTE
    nothing = bytes.fromhex("660f1f440000")
    assert mended(program) == b"before" + VECTOR + nothing + REST + b"behind" + NOTE


def test_what_is_not_known_is_left_alone() -> None:
    assert mended(b"another program") is None
    assert mended(2 * (VECTOR + NOTE + REST)) is None
