"""Timelines as text, plain values and trace events."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from xenpm.timeline import HOST, SLEEP, Span, Timeline
from xenpm.types import Sleep

MS = 1_000_000
SLEPT = Sleep("mem", 1200 * MS, 1700 * MS, 59_500 * MS, (0, 1), (0, 0))


@pytest.fixture
def timeline() -> Timeline:
    timeline = Timeline()
    for span in (
        Span("web", "suspend", 1000 * MS, 1040 * MS),
        Span("net", "suspend", 1040 * MS, 1100 * MS, "driver domain"),
        Span("web", "suspended", 1040 * MS, 1800 * MS),
        Span("web", "resume", 1800 * MS, 1810 * MS, "no\x1b[2J device", failed=True),
        Span("web", "acknowledge", 1000 * MS, 1010 * MS),
    ):
        timeline.add(span)
    timeline.add_sleep(SLEPT)
    return timeline


def test_rows_keep_their_order(timeline: Timeline) -> None:
    assert timeline.rows == [HOST, "web", "net"]
    assert [span.what for span in timeline.of_row("web")] == [
        "suspend",
        "acknowledge",
        "suspended",
        "resume",
    ]
    assert (timeline.began_ns, timeline.ended_ns) == (1000 * MS, 61_310 * MS)
    assert timeline.sleep is not None
    assert timeline.sleep.duration_ns == 60_000 * MS


def test_text(timeline: Timeline) -> None:
    assert timeline.to_text().splitlines() == [
        "host",
        "        200.0 ms     60,000.0 ms  sleep  mem for 59.5 s",
        "web",
        "          0.0 ms         40.0 ms  suspend",
        "          0.0 ms         10.0 ms  acknowledge",
        "         40.0 ms     60,260.0 ms  suspended",
        "     60,300.0 ms         10.0 ms  resume  FAILED  no\\x1b[2J device",
        "net",
        "         40.0 ms         60.0 ms  suspend  driver domain",
    ]


def test_plain_values(timeline: Timeline) -> None:
    plain = json.loads(json.dumps(timeline.to_dict()))
    assert [row["row"] for row in plain["rows"]] == [HOST, "web", "net"]
    assert plain["rows"][1]["spans"][3] == {
        "row": "web",
        "what": "resume",
        "began_ns": 61_300 * MS,
        "ended_ns": 61_310 * MS,
        "detail": "no\x1b[2J device",
        "failed": True,
    }


def test_chrome_trace(timeline: Timeline) -> None:
    trace = json.loads(json.dumps(timeline.to_chrome_trace()))
    events = trace["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads == {1: HOST, 2: "web", 3: "net"}
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == len(timeline)
    assert {key: complete[0][key] for key in ("name", "ts", "dur", "pid", "tid")} == {
        "name": SLEEP,
        "ts": 200_000,
        "dur": 60_000_000,
        "pid": 1,
        "tid": 1,
    }
    assert [event["cat"] for event in complete].count("failed") == 1


def test_a_sleep_that_was_none(timeline: Timeline) -> None:
    with pytest.raises(ValueError, match="already"):
        timeline.add_sleep(SLEPT)
    timeline = Timeline()
    timeline.add_sleep(replace(SLEPT, slept_ns=0))
    assert timeline.sleep is not None
    assert timeline.sleep.failed
    assert "returned without a sleep" in timeline.sleep.detail


def test_nothing_happened() -> None:
    timeline = Timeline()
    assert (timeline.rows, timeline.sleep, timeline.began_ns) == ([], None, 0)
    assert timeline.to_text() == ""
    assert timeline.to_dict()["rows"] == []
    assert len(timeline.to_chrome_trace()["traceEvents"]) == 1


def test_a_span_does_not_end_before_it_begins() -> None:
    with pytest.raises(ValueError, match="ends before it begins"):
        Span("web", "suspend", 2, 1)


def test_round_trip_of_a_night() -> None:
    timeline = Timeline()
    timeline.add(Span("web1", "suspend", 0, 40 * MS, "in time"))
    timeline.add_sleep(Sleep("mem", 50 * MS, 950 * MS, 60_000 * MS, successes=(0, 1)))
    timeline.add(Span("web1", "resume", 960 * MS, 965 * MS, failed=True))
    again = Timeline.of(timeline.to_dict())
    assert again.to_dict() == timeline.to_dict()
    assert again.sleep is not None
    assert again.sleep.duration_ns == timeline.sleep.duration_ns  # type: ignore[union-attr]
