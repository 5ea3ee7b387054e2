"""QEMU as the lab runs it: the machine's own, without a mistake that PVH and HVM guests die of.

QEMU's emulation of AMD's VMRUN (`helper_vmrun` in target/i386/tcg/sysemu/svm_helper.c) delivers an
interrupt that the hypervisor injects, and notes it as an exception under way besides, which it
never clears. When the emulated processor is then interrupted by anything but a VMEXIT, that is
delivered, too: the same interrupt once more, in the middle of its own handler, with interrupts
disabled. Guests then hang on locks that they hold themselves, or end in a triple fault. Seen in
7.2, and still there in the sources of later ones.

So the lab runs a copy in which the store of that note is six bytes of nothing.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from . import cache
from .cache import say

NAME = "qemu-system-x86_64"
# The store, between its neighbours in the case SVM_EVTINJ_TYPE_INTR: the vector is taken out of the
# event, error_code set, then exception_index, exception_is_int = 0, and exception_next_eip = -1.
_NOTE = re.compile(
    rb"\x41\x0f\xb6[\xe0-\xff]"  # movzbl %rNb, %esi or another
    rb"\x44\x89[\x80-\xbf].{4}"  # movl %rNd, error_code(%rbx)
    rb"(\x89[\x80-\xbf].{4})"  # movl %esi, exception_index(%rbx)
    rb"\xc7[\x80-\x87].{4}\0{4}"  # movl $0, exception_is_int(%rbx)
    rb"\x48\xc7[\x80-\x87].{4}\xff{4}",  # movq $-1, exception_next_eip(%rbx)
    re.DOTALL,
)
_NOTHING = b"\x66\x0f\x1f\x44\0\0"  # nopw 0(%rax,%rax,1)


def mended(program: bytes) -> bytes | None:
    """The program without the mistake; None: it is not where it is looked for, or not alone."""
    found = list(_NOTE.finditer(program))
    if len(found) != 1:
        return None
    begin, end = found[0].span(1)
    return program[:begin] + _NOTHING + program[end:]


def qemu() -> Path:
    """The QEMU to run."""
    own = Path(cache.find(NAME) or NAME)
    program = own.read_bytes()
    return cache.entry("qemu", cache.digest(program, "recipe 2"), lambda work: _make(own, work)) / (
        f"bin/{NAME}"
    )


def _make(own: Path, work: Path) -> None:
    program = mended(own.read_bytes())
    if program is None:
        say(f"{own} is not as the lab knows it; PVH and HVM guests may be lost at times")
    target = work / "bin" / NAME
    target.parent.mkdir()
    for name in ("lib", "share"):  # it looks for its modules and firmware from where it is
        (work / name).symlink_to(own.resolve().parent.parent / name)
    shutil.copy(own, target)
    if program is not None:
        target.write_bytes(program)
