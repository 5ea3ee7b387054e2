"""The main job, shown: guests suspended in place, then a whole Xen host that sleeps with them.

`make demo` runs it: first guests one by one, with ``xl save`` beside it; then the emulated machine
is put into S3 and woken, the story is printed, and its picture is left in build/demo.
"""

from __future__ import annotations

import json

from xenpm import plot
from xenpm.timeline import Timeline

from . import carry
from .cache import LabError, say

PICTURES = carry.ROOT / "build" / "demo"
REPORT = "/root/night-report.json"
ASLEEP = 8.0  # seconds
SCENE = "night"


def show(release: str, in_dom0: str) -> int:
    """Show it; 0 when all was as it should be."""
    with carry.host(release, "trio") as host:
        status = host.stream(
            f"{in_dom0} && python -m tests.bench.light",
            lambda line: print(line, flush=True),
            timeout=900,
        )
    if status:
        return status
    _print("", "Now the whole machine sleeps, with its guests.")
    with carry.host(release, SCENE) as host:
        host.ssh("xl pause idle")
        _print(
            "net owns the network card and serves web and mail; db, web and mail have disks under "
            "checked I/O;\nidle is paused already; deaf hears no request to suspend.",
            host.ssh(f"{in_dom0} && python -m xenpm topology").stdout,
            "# python -m xenpm host plan",
            host.ssh(f"{in_dom0} && python -m xenpm host plan").stdout,
        )
        host.ssh(f"{in_dom0} && python -m tests.xen.night mark")
        say(f"python -m xenpm host suspend, and {ASLEEP:g} s asleep")
        _, story = host.through_sleep(
            f"{in_dom0} && python -m xenpm host suspend --report {REPORT} --rule deaf=timeout=5",
            seconds=ASLEEP,
        )
        _print("# python -m xenpm host suspend --rule deaf=timeout=5", story)
        checked = host.ssh(
            f"{in_dom0} && python -m tests.xen.night check", timeout=300, check=False
        )
        report = json.loads(host.read(REPORT))
    if checked.returncode:
        raise LabError(f"not all is as it was: {checked.stdout}{checked.stderr}")
    _print(
        "Every guest is the one that it was: counters went on, I/O without a wrong byte, pings "
        "through the\ndriver domain answered, nothing in any log; the paused one is still paused."
    )
    PICTURES.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        plot.draw(Timeline.of(report["timeline"]), PICTURES / f"night.{kind}")
    _print(f"The picture is in {PICTURES.relative_to(carry.ROOT)}/night.svg and night.png.")
    return 0


def _print(*texts: str) -> None:
    for text in texts:
        print(text.rstrip() + "\n", flush=True)
