"""Schedules: what they are, and when they are due. No I/O, and no clock: what time it is, the database says.

A cron expression has five fields (minute, hour, day of the month, month, day of the week) or six that begin with seconds, and is
read in the schedule's time zone. Where clocks are changed, expressions that name minutes and hours (neither begins with `*`)
are due as people expect of a time of day: one that a day leaves out is due at the first moment after the gap, and one that a day
has twice is due the first time. All others follow the time that passes: `0 * * * *` is due every 3,600 seconds.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from cronsim import CronSim, CronSimError

from continuum.model import NewTask

LONGEST_CRON = 200
LONGEST_JITTER = 3600.0
"""Seconds."""
LATE = dt.timedelta(seconds=60)
"""How late a due time may be fired where `catch_up` is `none`."""
COUNTED = 1000
"""Due times that are counted one by one when many passed; of more, some are not in `missed`."""
LOOK_AGAIN = dt.timedelta(seconds=60)
"""After what time a schedule that cannot be fired as it stands is looked at again."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", re.ASCII)
NAME_ALLOWED = "1 to 100 letters, digits, dots, colons, hyphens and underscores, the first a letter or a digit"
_SECOND, _HOUR = dt.timedelta(seconds=1), dt.timedelta(hours=1)
_AFTER_A_CHANGE = dt.timedelta(hours=48)
"""For how long after clocks were changed the way of cronsim may be crooked."""
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_OF_THIS_MACHINE = frozenset({"localtime", "posixrules", "Factory"})
"""Names of zones that are another one on each machine, or none."""


class ScheduleError(ValueError):
    """A schedule cannot be as it is written; the message begins with the name of the field."""


class CatchUp(enum.StrEnum):
    """What is fired of the due times that passed while nobody could fire them."""

    NONE = "none"
    """Nothing that is later than `LATE`."""
    ONE = "one"
    """The last of them."""
    ALL = "all"
    """Each of them, one after the other."""


class Overlap(enum.StrEnum):
    """What happens at a due time while the schedule's last task is open."""

    ALLOW = "allow"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule to store. `task` is what it makes at each due time, named like it where it has no name. Its payload is an object
    or None. jitter: seconds up to which it is fired later, the same for a due time on every worker."""

    name: str
    cron: str
    task: NewTask
    time_zone: str = "UTC"
    catch_up: str = CatchUp.ONE
    overlap: str = Overlap.ALLOW
    jitter: float = 0.0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """One row of SCHEDULES, read back; times are aware and UTC. due_at: what it is fired for next, at next_at. last_due: the last
    due time that was dealt with. last_error: why it is not fired."""

    name: str
    cron: str
    time_zone: str
    catch_up: str
    overlap: str
    jitter: float
    paused: bool
    task_name: str
    description: str | None
    code_id: str
    payload: str | None = field(repr=False)
    priority: int
    tenant: str | None
    max_attempts: int
    timeout: float | None
    worker_tags: str
    webhook: str | None
    retry: str | None
    next_at: dt.datetime | None
    due_at: dt.datetime | None
    last_due: dt.datetime | None
    last_fired_at: dt.datetime | None
    last_task_id: int | None
    fired: int
    skipped: int
    missed: int
    last_error: str | None
    created_at: dt.datetime
    updated_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a worker must know of a schedule to move it on. Where one of these has changed meanwhile, it is not moved."""

    name: str
    cron: str
    time_zone: str
    catch_up: str
    jitter: float
    next_at: dt.datetime | None
    due_at: dt.datetime | None
    last_due: dt.datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Looked:
    """What there was to do when somebody looked.

    now: the database's time. waiting: schedules to be moved, the longest due first. next_in: seconds until there will be more: 0
    when there are more now, None when there is none.
    """

    now: dt.datetime
    waiting: list[Waiting]
    next_in: float | None


@dataclass(frozen=True, slots=True)
class Move:
    """What is to become of a schedule, all of it or nothing: a task for the due time `fire` (None: none), due next at `due_at`,
    looked at next at `next_at`. missed: due times that are left out. error: why it cannot be fired."""

    schedule: Waiting
    fire: dt.datetime | None
    due_at: dt.datetime | None
    next_at: dt.datetime
    missed: int = 0
    error: str | None = None

    @property
    def fire_as_text(self) -> str | None:
        """The due time as the task's payload says it: `2026-03-29T01:30:00Z`."""
        return None if self.fire is None else self.fire.strftime("%Y-%m-%dT%H:%M:%SZ")

    def put_off(self, now: dt.datetime, error: str) -> Move:
        """Instead of this move: the same due time later, and why."""
        return Move(self.schedule, None, self.schedule.due_at, now + LOOK_AGAIN, error=error)


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that was made. task_id: the task that came of it; None where none was wanted, where the one before is open, or where
    there was one for this due time."""

    name: str
    fire: dt.datetime | None
    task_id: int | None
    skipped: bool


class Timetable:
    """The due times of one schedule. Raises `ScheduleError` for an expression or a zone that is none."""

    def __init__(self, name: str, cron: str, time_zone: str, jitter: float = 0.0) -> None:
        self._name = name
        parsed, self._time_of_day = _parsed(cron)
        # The seconds of a time of day are none of cronsim's: with them it would leave out what a change of clocks leaves out.
        self._seconds = [dt.timedelta(seconds=each) for each in (sorted(parsed.seconds) if self._time_of_day else [0])]
        self._steps_of = " ".join(parsed.parts[1:] if self._time_of_day else parsed.parts)
        self._zone = _zone(time_zone)
        self._jitter = jitter

    def after(self, moment: dt.datetime) -> dt.datetime:
        """The first due time after a moment. Raises `ScheduleError` where there is none."""
        for due in self._walk(moment):
            if due > moment:  # in the second of two equal hours, the walk begins in the first
                return due
        raise AssertionError("unreachable")

    def upcoming(self, moment: dt.datetime) -> Iterator[dt.datetime]:
        """The due times after a moment, without an end."""
        while True:
            moment = self.after(moment)
            yield moment

    def fires_at(self, due: dt.datetime) -> dt.datetime:
        """When a due time is fired: always before the next one is due."""
        if not self._jitter:
            return due
        digest = hashlib.sha256(f"{self._name} {due.timestamp():.0f}".encode()).digest()
        longest = min(self._jitter, (self.after(due) - due).total_seconds())
        return due + dt.timedelta(milliseconds=int(longest * 1000 * int.from_bytes(digest[:4]) / 2**32))

    def latest(self, due: dt.datetime, now: dt.datetime) -> tuple[dt.datetime, int]:
        """The last of the due times from `due` on that are to be fired by now, and how many others there are."""
        surely = now - dt.timedelta(seconds=self._jitter)
        left_out, walk = 0, self._walk(due)
        while (later := next(walk)) <= surely or self.fires_at(later) <= now:
            if later <= due:
                continue
            due, left_out = later, left_out + 1
            if left_out == COUNTED and (jump := self._before(surely)) > due:
                due, walk = jump, self._walk(jump)
        return due, left_out

    def _before(self, moment: dt.datetime) -> dt.datetime:
        return self._seconds[0] + next(self._steps(moment - self._seconds[0], back=True))

    def _walk(self, moment: dt.datetime) -> Iterator[dt.datetime]:
        """The due times from a moment on, at least those after it. Raises `ScheduleError` where there are none."""
        while True:
            for step in self._steps(moment - self._seconds[-1]):
                first = step if self._time_of_day else self._first_after_a_change(moment, step)
                yield from (first + seconds for seconds in self._seconds)
                moment = first + self._seconds[-1]
                if first != step:
                    break  # and walk on from there

    def _steps(self, moment: dt.datetime, *, back: bool = False) -> Iterator[dt.datetime]:
        try:
            for step in CronSim(self._steps_of, moment.astimezone(self._zone), reverse=back):
                yield step.astimezone(dt.UTC)
        except (OverflowError, ValueError) as error:
            raise ScheduleError(f"cron: {self._steps_of!r} leads beyond all calendars: {error}") from None
        raise ScheduleError(f"cron: {self._steps_of!r} is never due")

    def _first_after_a_change(self, moment: dt.datetime, due: dt.datetime) -> dt.datetime:
        """The first due time after a moment, for which cronsim says `due`. It steps from hour to hour by 3,600 s, and passes the
        beginning of hours after a clock was changed by a part of one, as on Lord Howe Island."""
        before, after = due - _AFTER_A_CHANGE, due
        if not (self._offset(after) - self._offset(before)) % _HOUR:
            return due
        while after - before > _SECOND:
            middle = before + (after - before) // 2
            before, after = (middle, after) if self._offset(middle) == self._offset(before) else (before, middle)
        changed = after.replace(microsecond=0)
        local = changed.astimezone(self._zone)
        full_hour = changed + (-dt.timedelta(minutes=local.minute, seconds=local.second)) % _HOUR
        starts = [start - _SECOND for start in (changed, full_hour) if start > moment]
        return min([due, *(next(self._steps(start)) for start in starts)])

    def _offset(self, moment: dt.datetime) -> dt.timedelta:
        return moment.astimezone(self._zone).utcoffset() or dt.timedelta(0)


def plan(schedule: Waiting, now: dt.datetime) -> Move:
    """What is to become of a schedule that somebody looked at. now: the database's time."""
    try:
        times = Timetable(schedule.name, schedule.cron, schedule.time_zone, schedule.jitter)
        if schedule.next_at is None or schedule.due_at is None:
            due = times.after(max(now, schedule.last_due or now))
            return Move(schedule, None, due, times.fires_at(due))
        fire: dt.datetime | None = schedule.due_at
        last, missed = schedule.due_at, 0
        if schedule.catch_up != CatchUp.ALL:
            last, missed = times.latest(schedule.due_at, now)
            fire = last
        if schedule.catch_up == CatchUp.NONE and now - times.fires_at(last) > LATE:
            fire, missed = None, missed + 1
        due = times.after(last)
        return Move(schedule, fire, due, times.fires_at(due), missed)
    except ScheduleError as error:
        return Move(schedule, None, None, now + LOOK_AGAIN, error=str(error))


def next_due(record: ScheduleRecord, now: dt.datetime, count: int) -> list[dt.datetime]:
    """The next due times of a schedule; the first may have passed, where nobody fired it. Raises `ScheduleError`."""
    times = Timetable(record.name, record.cron, record.time_zone)
    waiting = [record.due_at] if record.due_at and record.next_at and not record.paused else []
    return [*waiting, *islice(times.upcoming(waiting[0] if waiting else now), count)][:count]


def problems_of(schedule: NewSchedule) -> Iterator[str]:
    """What is wrong with a schedule, apart from its task, a line for each field."""
    if not isinstance(schedule.name, str) or not NAME.fullmatch(schedule.name):
        yield f"name: {schedule.name!r:.60} is none; {NAME_ALLOWED}"
    try:
        Timetable(schedule.name, schedule.cron, schedule.time_zone).after(dt.datetime.now(dt.UTC))
    except ScheduleError as error:
        yield str(error)
    for name, kind in (("catch_up", CatchUp), ("overlap", Overlap)):
        if getattr(schedule, name) not in [*kind]:
            yield f"{name}: {getattr(schedule, name)!r:.60} is none of {', '.join([*kind])}"
    if not isinstance(schedule.jitter, int | float) or not 0 <= schedule.jitter <= LONGEST_JITTER:
        yield f"jitter: {schedule.jitter!r:.60} is out of range: 0 to {LONGEST_JITTER:g} seconds"
    yield from _problems_of_its_task(schedule.task)


def _problems_of_its_task(task: NewTask) -> Iterator[str]:
    for name in ("run_at", "idempotency_key", "idempotency_window", "unique", "expires_at", "traceparent"):
        if getattr(task, name):
            yield f"{name}: it has no meaning for the tasks of a schedule, which are made once for each due time"
    if isinstance(task.payload, str) and not task.payload.lstrip().startswith(
        "{"
    ):  # the rest is the database's to judge
        yield "payload: it is no JSON object; `schedule` and `due_at` are put into it"


@lru_cache(1024)
def _parsed(cron: str) -> tuple[CronSim, bool]:
    """What cronsim reads in an expression, and whether that names a time of day: minutes and hours, and not all of them."""
    if not isinstance(cron, str) or not cron.strip():
        raise ScheduleError("cron: there is no expression; write one such as `30 2 * * *`")
    if len(cron) > LONGEST_CRON:
        raise ScheduleError(f"cron: the expression has {len(cron)} characters; at most {LONGEST_CRON} are allowed")
    try:
        parsed = CronSim(_NICKNAMES.get(cron.strip().lower(), cron), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except CronSimError as error:
        raise _bad_cron(cron, str(error)) from None
    except Exception as error:  # whatever it stumbles over is no expression
        raise _bad_cron(cron, repr(error)) from None
    return parsed, not any(field.startswith("*") for field in parsed.parts[1:3])


def _bad_cron(cron: str, reason: str) -> ScheduleError:
    return ScheduleError(
        f"cron: {cron!r:.80} cannot be read: {reason[:1].lower()}{reason[1:]}. Write minute, hour, day of the month, month and "
        "day of the week, with seconds before them or without, such as `30 2 * * MON-FRI`"
    )


def _zone(time_zone: str) -> dt.tzinfo:
    if time_zone in ("UTC", "Etc/UTC"):
        return dt.UTC
    try:
        if time_zone in _OF_THIS_MACHINE:
            raise ValueError("it is another zone on each machine")
        return zoneinfo.ZoneInfo(time_zone)
    except (KeyError, ValueError, OSError, TypeError):
        raise ScheduleError(
            f"time_zone: {time_zone!r:.60} is no time zone that is known here; write one such as Europe/Berlin"
        ) from None
