"""The verbs of schedules on real databases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from continuum.db import statements_schedules as statements
from continuum.db.classify import describe
from continuum.db.codes import code_of
from continuum.db.errors import InvalidSchedule
from continuum.db.rows import in_utc
from continuum.db.validation import check_new_schedule
from continuum.retry import policy_text
from continuum.schedules import Looked, Move, Moved, NewSchedule, ScheduleRecord, Waiting
from continuum.tags import written

Rows = list[tuple[Any, ...]]


class SqlSchedules:
    """A part of `SqlDatabase`, which says how statements are run."""

    _run: Callable[..., Awaitable[Rows]]
    _read: Callable[..., Awaitable[Rows]]
    long_deadline: float

    async def look_at_schedules(self, limit: int = 100) -> Looked:
        found = (await self._read(statements.LOOK, {"limit": limit}))[:limit]
        waiting = [Waiting(*in_utc(row)[1:]) for row in found]
        if len(found) == limit:
            return Looked(in_utc(found[0])[0], waiting, 0.0)
        ((now, next_in),) = await self._read(statements.NEXT)
        (now,) = in_utc((now,))
        return Looked(now, waiting, None if next_in is None else max(0.0, next_in))

    async def move_schedules(self, moves: Sequence[Move]) -> list[Moved]:
        schedules = [move.schedule for move in moves]
        parameters = {
            "names": [each.name for each in schedules],
            "crons": [each.cron for each in schedules],
            "time_zones": [each.time_zone for each in schedules],
            "catch_ups": [each.catch_up for each in schedules],
            "jitters": [each.jitter for each in schedules],
            "nexts": [each.next_at for each in schedules],
            "dues": [each.due_at for each in schedules],
            "fires": [move.fire for move in moves],
            "fires_as_text": [move.fire_as_text for move in moves],
            "new_dues": [move.due_at for move in moves],
            "new_nexts": [move.next_at for move in moves],
            "missed": [move.missed for move in moves],
            "errors": [move.error for move in moves],
        }
        with _refused():
            found = await self._run(statements.MOVE, parameters, writes=True)
        return [Moved(*in_utc(row)) for row in found]

    async def put_schedule(self, schedule: NewSchedule, *, replace: bool = False) -> bool:
        check_new_schedule(schedule)
        task, code = schedule.task, code_of(schedule.task)
        parameters: Mapping[str, Any] = {
            "code_ids": [code.id] if code else [],
            "scripts": [code.text] if code else [],
            "requirements": [code.requirements] if code else [],
            "task_name": task.name,
            "code": code.id if code else task.code_id,
            "worker_tags": written(task.worker_tags),
            "retry": task.retry and policy_text(task.retry),
            **{name: getattr(task, name) for name in TEMPLATE},
            **{name: getattr(schedule, name) for name in TIMES},
        }
        statement = statements.REPLACE if replace else statements.INSERT
        with _refused():
            return bool(await self._run(statement, parameters, deadline=self.long_deadline, writes=True))

    async def schedules(self, limit: int = 50, after: str | None = None) -> list[ScheduleRecord]:
        found = await self._read(statements.LIST, {"limit": limit, "after": after or ""})
        return [ScheduleRecord(*in_utc(row)) for row in found]

    async def fetch_schedule(self, name: str) -> ScheduleRecord | None:
        found = await self._run(statements.FETCH, {"names": [name.replace("\x00", "")]})
        return ScheduleRecord(*in_utc(found[0])) if found else None

    async def pause_schedule(self, name: str, paused: bool = True) -> bool:
        parameters = {"name": name.replace("\x00", ""), "paused": paused}
        return bool(await self._run(statements.PAUSE, parameters, writes=True))

    async def remove_schedule(self, name: str) -> bool:
        return bool(await self._run(statements.REMOVE, {"name": name.replace("\x00", "")}, writes=True))


@contextmanager
def _refused() -> Iterator[None]:
    """Turn what the database has against a schedule, or a task of one, into `InvalidSchedule`."""
    try:
        yield
    except psycopg.errors.ForeignKeyViolation as error:
        raise InvalidSchedule("code_id: there is no such code; store it first") from error
    except psycopg.Error as error:
        if error.sqlstate is not None and error.sqlstate.startswith(("22", "23", "54")):
            raise InvalidSchedule(f"the database refused it: {describe(error)}") from error
        raise


TEMPLATE = ("description", "payload", "priority", "tenant", "max_attempts", "timeout", "webhook")
"""What a schedule hands to its tasks as it is."""
TIMES = ("name", "cron", "time_zone", "catch_up", "overlap", "jitter", "paused")
