"""How long one to thirty-two guests take to go to sleep and come back, and a sleep of them all.

``python -m tests.bench.crowd bookworm`` (on the machine that runs the lab).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable

import xenpm
from xenpm.timeline import HOST, Timeline, columns

SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5


def _numbers(timeline: Timeline, what: str) -> tuple[float, float, float]:
    """Of all guests' spans of a kind: milliseconds altogether, of the slowest, and their sum."""
    spans = [span for span in timeline if span.what == what and span.row != HOST]
    total = max(span.ended_ns for span in spans) - min(span.began_ns for span in spans)
    lengths = [span.duration_ns for span in spans]
    return total / 1e6, max(lengths) / 1e6, sum(lengths) / 1e6


def _medians(rounds: Iterable[tuple[float, float, float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*rounds)]


def in_dom0() -> dict[int, list[float]]:
    """Down and up, `ROUNDS` times for each size; the medians."""
    rows = {}
    leave = xenpm.Rule(policy=xenpm.Policy.LEAVE)
    with xenpm.Host() as host:
        domains = host.domains()
        for size in SIZES:
            rules = dict.fromkeys(domains[size:], leave)
            down, up = [], []
            for _ in range(ROUNDS):
                down.append(_numbers(host.suspend_domains(rules=rules).timeline, "suspend"))
                report = host.resume_domains()
                assert report is not None
                assert not report.problems, report.problems
                up.append(_numbers(report.timeline, "resume"))
            rows[size] = [*_medians(down), *_medians(up)]
    return rows


def on_the_outside(release: str) -> None:
    """The growth, then one sleep of the whole machine."""
    from tests.lab import carry
    from tests.lab.__main__ import IN_DOM0

    with carry.host(release, "crowd32") as host:
        done = host.ssh(f"{IN_DOM0} && python -m tests.bench.crowd --in-dom0", timeout=1200)
        rows = json.loads(done.stdout.splitlines()[-1])
        status, output = host.through_sleep(f"{IN_DOM0} && python -m xenpm host suspend --json -q")
        if status:
            raise SystemExit(output)
    head = ("guests", "suspended", "slowest", "sum", "of one", "resumed", "slowest", "sum",
            "of one")  # fmt: skip
    first = next(iter(rows.values()))
    table = [
        (size, *(f"{ms:.0f} ms" for ms in row[:3]), f"{row[0] / first[0]:.1f}x",
         *(f"{ms:.0f} ms" for ms in row[3:]), f"{row[3] / first[3]:.1f}x")
        for size, row in rows.items()
    ]  # fmt: skip
    print("\n".join(columns([head, *table], right=range(len(head)))))
    timeline = Timeline.of(json.loads(output)["timeline"])
    down, up = _numbers(timeline, "suspend"), _numbers(timeline, "resume")
    slept = timeline.sleep
    assert slept is not None
    print(f"\nOne sleep of {SIZES[-1]} guests: suspended in {down[0]:.0f} ms (the slowest took "
          f"{down[1]:.0f} ms), slept {slept.duration_ns / 1e9:.1f} s, resumed in {up[0]:.0f} ms; "
          f"{(timeline.ended_ns - timeline.began_ns - slept.duration_ns) / 1e6:.0f} ms in all "
          "besides the sleep, with the look at every guest.")  # fmt: skip


def main() -> None:
    """Outside a table; with --in-dom0, the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", nargs="?", default="bookworm")
    parser.add_argument("--in-dom0", action="store_true")
    options = parser.parse_args()
    if options.in_dom0:
        print(json.dumps(in_dom0()))
    else:
        on_the_outside(options.release)


if __name__ == "__main__":
    main()
