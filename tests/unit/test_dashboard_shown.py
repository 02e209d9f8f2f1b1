"""How the dashboard says and draws things."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
import trio
import trio.testing
from jinja2 import Environment

from continuum.db.memory import MemoryDatabase
from continuum.model import AttemptRecord, CodeRecord, NewTask, Status, TaskRecord
from continuum.nursery.recent import INTERVAL, INTERVALS, Interval
from continuum.status import task_page
from continuum.status.board import _Totals
from continuum.status.charts import latency, quantiles, throughput
from continuum.status.views import CONTENT_LIMIT
from continuum.status.words import duration, install, rate, relative, span, visible

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\N{EN DASH}"), (0, "0 ms"), (0.0008, "0.8 ms"), (0.0123, "12 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"),
        (9.99, "9.99 s"), (12.34, "12.3 s"), (59.99, "59 s"), (125, "2 min 5 s"), (11_520, "3 h 12 min"), (356_400, "4 d 3 h"),
    ],
)  # fmt: skip
def test_a_duration_has_three_digits_or_two_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"), (-1.5, "just now"), (12, "12 s ago"), (299, "4 min ago"), (7200, "2 h ago"), (200_000, "2 days ago"),
        (-300, "in 5 min"),
    ],
)  # fmt: skip
def test_how_long_ago_is_said_in_one_unit(seconds: float, text: str) -> None:
    assert relative(seconds) == text


def test_a_clock_that_is_behind_counts_nothing_backwards() -> None:
    assert span(-3) == "0 s"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "\N{EN DASH}"), (0, "0"), (0.25, "0.2"), (12, "12"), (1234.5, "1,234")]
)
def test_a_rate_has_no_more_digits_than_needed(value: float | None, text: str) -> None:
    assert rate(value) == text


def test_a_time_has_the_exact_one_beside_it_and_is_left_to_the_script_where_there_is_one() -> None:
    environment = Environment(autoescape=True)
    install(environment)
    template = environment.from_string("{{ t | ago }} {{ t | at }}")
    shown = template.render(t=NOON)
    assert '<time datetime="2026-01-31T12:00:00.000Z" title="2026-01-31 12:00:00 UTC" data-ago>' in shown
    assert shown.endswith('<time datetime="2026-01-31T12:00:00.000Z">2026-01-31 12:00:00 UTC</time>')
    assert "data-ago></time>" in template.render(t=NOON, live=True)
    assert template.render(t="2026-01-31T12:00:00Z") == shown
    assert template.render(t=None) == "\N{EN DASH} \N{EN DASH}"


def test_characters_that_reorder_others_are_shown_as_what_they_are() -> None:
    assert visible("access = 'user\u202e\u2066' # admin") == "access = 'user[U+202E][U+2066]' # admin"
    assert visible("Größe 数 🎉") == "Größe 数 🎉"


def busy(count: int) -> list[Interval]:
    made = [Interval(completed=place % 7) for place in range(count)]
    for one in made:
        one.runs.add(0.02)
        one.waits.add(3.0)
    return made


def test_a_chart_ends_at_its_right_edge_and_begins_where_the_worker_did() -> None:
    chart = throughput(busy(10), None)
    assert [curve.name for curve in chart.curves] == ["completed", "not completed"]
    assert chart.curves[0].line.startswith(f"M{INTERVALS - 10} ")
    assert f"L{INTERVALS - 1} " in chart.curves[0].line
    assert chart.ticks == ("5", "2.5", "0")
    assert chart.curves[0].now == "1/s"
    assert chart.curves[1].line == f"M{INTERVALS - 10} 100L{INTERVALS - 1} 100"  # a level line has two points


def test_a_chart_of_nothing_is_empty_and_says_so() -> None:
    for chart in (throughput([], None), latency([]), latency([Interval()] * 5)):
        assert all(curve.line == "" for curve in chart.curves if curve.kind in ("run", "slow", "wait"))
        assert len(chart.ticks) >= 3
    assert latency([]).curves[0].now == "\N{EN DASH}"
    assert quantiles([]) == {"run": None, "slow": None, "wait": None}


def test_latency_is_drawn_on_a_scale_of_powers_of_ten() -> None:
    chart = latency(busy(INTERVALS))
    assert chart.ticks == ("10 s", "1 s", "100 ms", "10 ms")
    assert [curve.now for curve in chart.curves] == ["3.02 s", "20 ms", "20 ms"] or chart.curves[0].now.startswith("3")
    assert len(chart.summary) < 200


def test_a_line_goes_on_over_a_short_gap_and_stops_at_a_long_one() -> None:
    intervals = [Interval() for _ in range(INTERVALS)]
    for place in (10, 14, 40, 41, 90):
        intervals[place].runs.add(0.02)
    line = latency(intervals).curves[2].line
    assert line.count("M") == 3
    assert "M10 " in line
    assert "L14 " in line
    assert line.endswith("h.01")


def test_no_chart_is_large_however_lively() -> None:
    lively = [Interval(completed=place * 7919 % 1000, failed=place * 31 % 17) for place in range(INTERVALS)]
    chart = throughput(lively, [one.completed / 3 for one in lively])
    assert sum(len(curve.line) + len(curve.area) for curve in chart.curves) < 12_000


async def test_what_all_workers_do_is_known_where_somebody_looked(autojump_clock: trio.testing.MockClock) -> None:
    totals = _Totals()
    await trio.sleep(1000)
    for second in range(20):
        totals.add(second * 10)
        await trio.sleep(1)
    await trio.sleep(30)
    for second in range(10):
        totals.add(1000 + second * 20)
        await trio.sleep(1)
    rates = totals.rates()
    assert len(rates) == INTERVALS
    known = [value for value in rates if value is not None]
    assert known[:9] == pytest.approx([10.0] * 9)
    assert known[-3:] == pytest.approx([20.0] * 3)
    assert rates[-15] is None
    for _ in range(10_000):
        totals.add(5000)
        await trio.sleep(INTERVAL)
    assert len(totals._readings) <= 2 * INTERVALS


async def record(**values: object) -> TaskRecord:
    database = MemoryDatabase()
    await database.submit([NewTask(code="hello")])
    return replace(database.tasks[1], **values)  # type: ignore[arg-type]


async def test_the_timeline_tells_the_attempts_that_ended_and_the_one_that_runs_newest_first() -> None:
    ended = AttemptRecord(1, "w1", NOON, NOON + dt.timedelta(seconds=3), "lost", None, None)
    task = await record(status=Status.PROCESSING, attempt=2, worker_id="w2", started=NOON, history=(ended,))
    assert [(one.attempt, one.ending, one.seconds) for one in task_page.attempts(task)] == [
        (2, "running", None),
        (1, "lost", 3.0),
    ]
    done = replace(task, status=Status.COMPLETED, finished=NOON + dt.timedelta(seconds=1), exit_code=0)
    assert [(one.ending, one.seconds) for one in task_page.attempts(done)] == [("completed", 1.0), ("lost", 3.0)]
    assert task_page.attempts(await record()) == []


async def test_the_line_of_the_code_is_found_that_the_traceback_names_last() -> None:
    trace = 'File "/sandbox/task/script.py", line 16, in <module>\n  File "/sandbox/task/script.py", line 9, in total\nKeyError'
    assert task_page.culprit(await record(last_error="KeyError\n", error_output=trace)) == 9
    assert task_page.culprit(await record(last_error="killed", error_output='File "/usr/lib/json.py", line 3')) is None
    assert task_page.culprit(await record(error_output='File "script.py", line ' + "9" * 100)) == 999_999_999


async def test_long_texts_are_cut_and_say_so() -> None:
    long = "x" * (CONTENT_LIMIT + 5)
    start, end = task_page.start_of(long), task_page.end_of("begin" + long)
    assert start is not None
    assert (len(start.text), start.left_out) == (CONTENT_LIMIT, 5)
    assert end is not None
    assert (len(end.text), end.left_out) == (CONTENT_LIMIT, 10)
    assert task_page.end_of("") is None
    listing = task_page.listing(await record(), CodeRecord("id", "pass\n" * 100_000, None))
    assert len(listing.lines) == task_page.LINES
    assert listing.left_out == 100_000 - task_page.LINES


async def test_code_keeps_its_lines_and_a_payload_is_indented_when_it_is_short_json() -> None:
    listing = task_page.listing(await record(), CodeRecord("id", "a\r\nb\n\n\u2028c\n", "six==1.16.0"))
    assert (listing.lines, listing.left_out) == (("a", "b", "", "\u2028c"), 0)
    payload = task_page.payload_of(await record(payload='{"a":["ö"]}'))
    assert payload is not None
    assert payload.text == '{\n  "a": [\n    "ö"\n  ]\n}'
    deep = task_page.payload_of(await record(payload="[" * 10_000 + "]" * 10_000))
    assert deep is not None
    assert task_page.payload_of(await record()) is None
