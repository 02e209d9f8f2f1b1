"""When schedules are due: time zones, changed clocks, jitter, what is caught up. No clock is read."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continuum.schedules import COUNTED, LOOK_AGAIN, Timetable, Waiting, plan

MINUTE, DAY = dt.timedelta(minutes=1), dt.timedelta(days=1)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def due(cron: str, zone: str, after: str, count: int = 4) -> list[str]:
    """The next due times, in UTC, as the day of the month and the time of day."""
    return [f"{each:%d %H:%M}" for each in islice(Timetable("s", cron, zone).upcoming(utc(after)), count)]


def waiting(cron: str = "0 * * * *", due_at: str | None = None, **values: object) -> Waiting:
    at = utc(due_at) if due_at else None
    plain = Waiting("s", cron, "UTC", "one", 0.0, at, at, None, None)
    return replace(plain, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cron", "zone", "after", "times"),
    [
        # Berlin, 29 March 2026: from 02:00 CET (01:00 UTC) it is 03:00 CEST at once.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", ["28 01:30", "29 01:00", "30 00:30", "31 00:30"]),
        ("0,30 2,3 * * *", "Europe/Berlin", "2026-03-29 00:00", ["29 01:00", "29 01:30", "30 00:00", "30 00:30"]),
        ("0 * * * *", "Europe/Berlin", "2026-03-28 23:30", ["29 00:00", "29 01:00", "29 02:00", "29 03:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", ["28 01:00", "28 01:30", "30 00:00", "30 00:30"]),
        # Berlin, 25 October 2026: from 03:00 CEST (01:00 UTC) it is 02:00 CET once more.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", ["25 00:30", "26 01:30", "27 01:30", "28 01:30"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 00:30", ["26 01:30", "27 01:30", "28 01:30", "29 01:30"]),
        ("45 2 * * *", "Europe/Berlin", "2026-10-25 01:20", ["26 01:45", "27 01:45", "28 01:45", "29 01:45"]),
        ("0 * * * *", "Europe/Berlin", "2026-10-24 23:30", ["25 00:00", "25 01:00", "25 02:00", "25 03:00"]),
        # Lord Howe changes by half an hour. 4 October 2026: from 02:00 (15:30 UTC the day before) it is 02:30.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-02 16:00", ["03 15:30", "04 15:15", "05 15:15", "06 15:15"]),
        ("*/20 * * * *", "Australia/Lord_Howe", "2026-10-03 15:00", ["03 15:10", "03 15:40", "03 16:00", "03 16:20"]),
        # 5 April 2026: from 02:00 (15:00 UTC the day before) it is 01:30 once more.
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-03 15:00", ["04 14:45", "05 15:15", "06 15:15", "07 15:15"]),
        # Samoa had no 30 December 2011.
        ("0 12 * * *", "Pacific/Apia", "2011-12-29 00:00", ["29 22:00", "30 10:00", "30 22:00", "31 22:00"]),
        # Five and a half hours, all year.
        ("0 9 * * MON-FRI", "Asia/Kolkata", "2026-01-02 00:00", ["02 03:30", "05 03:30", "06 03:30", "07 03:30"]),
        ("@daily", "UTC", "2026-01-01 00:00", ["02 00:00", "03 00:00", "04 00:00", "05 00:00"]),
        ("0 0 L * *", "UTC", "2026-01-01 00:00", ["31 00:00", "28 00:00", "31 00:00", "30 00:00"]),
        ("30 30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", ["29 01:00", "30 00:30", "31 00:30", "01 00:30"]),
        ("15,45 59 1 * * *", "UTC", "2026-01-01 01:59:20", ["01 01:59", "02 01:59", "02 01:59", "03 01:59"]),
        ("0 30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", ["29 01:00", "30 00:30", "31 00:30", "01 00:30"]),
    ],
)  # fmt: skip
def test_due_times_where_clocks_are_changed(cron: str, zone: str, after: str, times: list[str]) -> None:
    assert due(cron, zone, after) == times


def of_all_minutes(cron: str, zone: str, start: dt.datetime, minutes: int) -> Iterator[dt.datetime]:
    """Each minute that passes and whose time of day fits; of the expression, minute and hour."""
    minute, hour = cron.split()[:2]

    def fits(field: str, value: int) -> bool:
        return field == "*" or (value % int(field[2:]) == 0 if field.startswith("*/") else value == int(field))

    for number in range(1, minutes + 1):
        moment = start + number * MINUTE
        local = moment.astimezone(zoneinfo.ZoneInfo(zone))
        if fits(minute, local.minute) and fits(hour, local.hour):
            yield moment


ZONES = st.sampled_from(
    ["Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "Asia/Kolkata", "Africa/Casablanca"]
)
CHANGES = st.sampled_from(
    [utc(f"2026-{day} 12:00") for day in ("03-28", "10-24", "10-03", "04-04", "03-07", "10-31", "02-14")]
)


@settings(deadline=None, max_examples=30)
@given(
    zone=ZONES,
    start=st.builds(lambda day, minutes: day + minutes * MINUTE, CHANGES, st.integers(0, 24 * 60)),
    minute=st.one_of(st.just("*"), st.integers(2, 40).map("*/{}".format), st.integers(0, 59).map(str)),
    hour=st.one_of(st.just("*"), st.integers(2, 11).map("*/{}".format), st.integers(0, 23).map(str)),
)
def test_what_follows_the_time_that_passes_is_due_whenever_the_clock_shows_it(
    zone: str, start: dt.datetime, minute: str, hour: str
) -> None:
    cron = f"{minute} {hour} * * *"
    whole = 36 * 60
    found = []
    for each in Timetable("s", cron, zone).upcoming(start):
        if each > start + whole * MINUTE:
            break
        found.append(each)
    expected = list(of_all_minutes(cron, zone, start, whole))
    if "*" in minute or "*" in hour:
        assert found == expected
    else:
        # A time of day: once a day, and what the clock shows twice the first time only.
        days = [each.astimezone(zoneinfo.ZoneInfo(zone)).date() for each in found]
        assert len(days) == len(set(days))
        ambiguous = {each for each in expected if each.astimezone(zoneinfo.ZoneInfo(zone)).fold}
        assert set(expected) - ambiguous <= set(found)


CRONS = [
    "* * * * *", "*/7 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 * * * *", "17 */5 * * *", "*/30 2 * * *", "30 15 1-3 * * *",
    "*/20 * * * * *",
]  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(
    zone=ZONES,
    now=st.builds(lambda day, seconds: day + dt.timedelta(seconds=seconds), CHANGES, st.integers(0, 3 * 86400)),
    ago=st.integers(1, 40 * 24 * 60),
    cron=st.sampled_from(CRONS),
    jitter=st.sampled_from([0.0, 5.0, 3600.0]),
)
def test_the_last_due_time_is_found_however_many_passed(
    zone: str, now: dt.datetime, ago: int, cron: str, jitter: float
) -> None:
    """The short way through more than `COUNTED` ends where the long one does."""
    times = Timetable("s", cron, zone, jitter)
    first = times.after(now - ago * MINUTE)
    if times.fires_at(first) > now:
        return
    last, left_out = times.latest(first, now)
    assert times.fires_at(last) <= now < times.fires_at(times.after(last))
    if left_out < COUNTED:
        assert last == (first if not left_out else list(islice(times.upcoming(first), left_out))[-1])


def test_jitter_is_the_same_for_everybody_differs_from_time_to_time_and_never_reaches_the_next_due_time() -> None:
    times = Timetable("s", "*/10 * * * *", "UTC", 3600)
    delays = []
    for each in islice(times.upcoming(utc("2026-01-01 00:00")), 200):
        assert times.fires_at(each) == Timetable("s", "*/10 * * * *", "UTC", 3600).fires_at(each)
        delays.append((times.fires_at(each) - each).total_seconds())
    assert 0 <= min(delays) < 60
    assert 540 < max(delays) < 600
    assert len(set(delays)) > 150
    assert Timetable("t", "*/10 * * * *", "UTC", 3600).fires_at(each) != times.fires_at(each)


def test_a_new_schedule_is_due_after_now_and_never_again_for_what_it_was_fired_for() -> None:
    now = utc("2026-01-01 10:20:30")
    assert plan(waiting(), now).due_at == utc("2026-01-01 11:00")
    assert plan(waiting(), now).fire is None
    assert plan(waiting(last_due=utc("2026-01-01 13:00")), now).due_at == utc("2026-01-01 14:00")


@pytest.mark.parametrize(
    ("catch_up", "now", "fire", "next_due", "missed"),
    [
        ("one", "10:00:01", "10:00", "11:00", 0),
        ("one", "12:30:00", "12:00", "13:00", 2),
        ("all", "12:30:00", "10:00", "11:00", 0),
        ("none", "10:00:59", "10:00", "11:00", 0),
        ("none", "10:01:01", None, "11:00", 1),
        ("none", "12:30:00", None, "13:00", 3),
        ("none", "12:00:30", "12:00", "13:00", 2),
    ],
)
def test_what_is_caught_up(catch_up: str, now: str, fire: str | None, next_due: str, missed: int) -> None:
    move = plan(waiting(due_at="2026-01-01 10:00", catch_up=catch_up), utc(f"2026-01-01 {now}"))
    assert move.fire == (utc(f"2026-01-01 {fire}") if fire else None)
    assert (move.due_at, move.missed, move.error) == (utc(f"2026-01-01 {next_due}"), missed, None)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"), ({"cron": ""}, "cron"), ({"cron": "* * * *"}, "cron"), ({"cron": "x" * 300}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"), ({"cron": "@reboot"}, "cron"), ({"cron": "\u0661 * * * *"}, "cron"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"), ({"time_zone": ""}, "time_zone"), ({"time_zone": "Europe"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"), ({"time_zone": "localtime"}, "time_zone"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_by_its_field_and_looked_at_again(values: dict[str, object], field: str) -> None:
    now = utc("2026-01-01 00:00")
    move = plan(waiting(**values), now)  # type: ignore[arg-type]
    assert move.fire is None
    assert move.error is not None
    assert move.error.startswith(f"{field}: ")
    assert move.next_at == now + LOOK_AGAIN


@given(st.text(st.sampled_from("0123456789*/,-#LW? SUNMON@"), max_size=30))
def test_any_text_has_due_times_or_is_refused(text: str) -> None:
    move = plan(waiting(text), utc("2026-01-01 00:00"))
    assert (move.error or "cron: ").startswith("cron: ")
    assert move.next_at > utc("2026-01-01 00:00")
