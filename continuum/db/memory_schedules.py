"""Schedules of the database in memory."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from continuum.db.codes import Code, code_of
from continuum.db.errors import InvalidSchedule
from continuum.db.validation import check_new_schedule
from continuum.model import NewTask, Status, TaskRecord, Wakeup
from continuum.retry import parse_policy, policy_text
from continuum.schedules import Looked, Move, Moved, NewSchedule, Overlap, ScheduleRecord, Waiting
from continuum.tags import written


class MemorySchedules:
    """A part of `MemoryDatabase`, which says what time it is, and takes the tasks."""

    tasks: dict[int, TaskRecord]
    schedule_rows: dict[str, ScheduleRecord]
    _fired_for: dict[tuple[str, dt.datetime], int]
    _scripts: dict[str, Code]

    if TYPE_CHECKING:

        async def _answer(self) -> None: ...
        def _insert(self, task: NewTask) -> int: ...
        def _notify(self, wakeup: Wakeup) -> None: ...
        def _time(self) -> dt.datetime: ...

    async def look_at_schedules(self, limit: int = 100) -> Looked:
        await self._answer()
        now = self._time()
        awake = [row for row in self.schedule_rows.values() if not row.paused]
        waiting = [row for row in awake if row.next_at is None]
        times = sorted((row.next_at, row.name) for row in awake if row.next_at is not None)
        waiting += [self.schedule_rows[name] for at, name in times if at <= now]
        later = [(at - now).total_seconds() for at, _ in times if at > now]
        more = 0.0 if len(waiting) >= limit else min(later, default=None)
        return Looked(now, [_waiting(row) for row in waiting[:limit]], more)

    async def move_schedules(self, moves: Sequence[Move]) -> list[Moved]:
        await self._answer()
        return [moved for move in moves if (moved := self._move(move)) is not None]

    def _move(self, move: Move) -> Moved | None:
        row = self.schedule_rows.get(move.schedule.name)
        if (
            row is None
            or row.paused
            or replace(_waiting(row), last_due=None, last_error=None)
            != replace(move.schedule, last_due=None, last_error=None)
        ):
            return None
        if move.fire is not None and (row.next_at is None or row.next_at > self._time()):
            return None
        last = self.tasks.get(row.last_task_id or 0)
        is_open = last is not None and last.status in (Status.PENDING, Status.PROCESSING)
        busy = move.fire is not None and row.overlap == Overlap.SKIP and is_open
        task_id = None
        if move.fire is not None and not busy and (row.name, move.fire) not in self._fired_for:
            task_id = self._fired_for[row.name, move.fire] = self._insert(_task_of(row, move))
            self.tasks[task_id] = replace(self.tasks[task_id], schedule=row.name, due_at=move.fire)
        self.schedule_rows[row.name] = replace(
            row,
            due_at=move.due_at,
            next_at=move.next_at,
            last_due=move.fire or row.last_due,
            last_fired_at=self._time() if task_id else row.last_fired_at,
            last_task_id=task_id or row.last_task_id,
            fired=row.fired + (task_id is not None),
            skipped=row.skipped + busy,
            missed=row.missed + move.missed,
            last_error=move.error,
        )
        return Moved(row.name, move.fire, task_id, busy)

    async def put_schedule(self, schedule: NewSchedule, *, replace: bool = False) -> bool:
        await self._answer()
        check_new_schedule(schedule)
        task, code = schedule.task, code_of(schedule.task)
        known = self.schedule_rows.get(schedule.name)
        if known is not None and not replace:
            return False
        try:
            json.loads(task.payload or "{}")
        except ValueError as error:
            raise InvalidSchedule(f"payload: it is no JSON: {error}") from None
        if code is not None:
            self._scripts[code.id] = code
        code_id = code.id if code else (task.code_id or "").lower()
        if code_id not in self._scripts:
            raise InvalidSchedule("code_id: there is no such code; store it first")
        times = ("cron", "time_zone", "jitter")
        same = known is not None and not known.paused
        same = same and all(getattr(known, name) == getattr(schedule, name) for name in times)
        now = self._time()
        self.schedule_rows[schedule.name] = ScheduleRecord(
            name=schedule.name,
            cron=schedule.cron,
            time_zone=schedule.time_zone,
            catch_up=schedule.catch_up,
            overlap=schedule.overlap,
            jitter=schedule.jitter,
            paused=schedule.paused,
            task_name=task.name,
            description=task.description,
            code_id=code_id,
            payload=task.payload,
            priority=task.priority,
            tenant=task.tenant,
            max_attempts=task.max_attempts,
            timeout=task.timeout,
            worker_tags=written(task.worker_tags),
            webhook=task.webhook,
            retry=policy_text(task.retry) if task.retry else None,
            next_at=known.next_at if known and same else None,
            due_at=known.due_at if known else None,
            last_due=known.last_due if known else None,
            last_fired_at=known.last_fired_at if known else None,
            last_task_id=known.last_task_id if known else None,
            fired=known.fired if known else 0,
            skipped=known.skipped if known else 0,
            missed=known.missed if known else 0,
            last_error=known.last_error if known else None,
            created_at=known.created_at if known else now,
            updated_at=now,
        )
        self._notify(Wakeup.SCHEDULES)
        return True

    async def schedules(self, limit: int = 50, after: str | None = None) -> list[ScheduleRecord]:
        await self._answer()
        return [row for name, row in sorted(self.schedule_rows.items()) if name > (after or "")][:limit]

    async def fetch_schedule(self, name: str) -> ScheduleRecord | None:
        await self._answer()
        return self.schedule_rows.get(name)

    async def pause_schedule(self, name: str, paused: bool = True) -> bool:
        await self._answer()
        row = self.schedule_rows.get(name)
        if row is None:
            return False
        next_at = None if row.paused and not paused else row.next_at
        self.schedule_rows[name] = replace(row, paused=paused, next_at=next_at, updated_at=self._time())
        self._notify(Wakeup.SCHEDULES)
        return True

    async def remove_schedule(self, name: str) -> bool:
        await self._answer()
        return self.schedule_rows.pop(name, None) is not None


def _waiting(row: ScheduleRecord) -> Waiting:
    return Waiting(
        row.name,
        row.cron,
        row.time_zone,
        row.catch_up,
        row.jitter,
        row.next_at,
        row.due_at,
        row.last_due,
        row.last_error,
    )


def _task_of(row: ScheduleRecord, move: Move) -> NewTask:
    payload = json.loads(row.payload or "{}") | {"schedule": row.name, "due_at": move.fire_as_text}
    return NewTask(
        name=row.task_name or row.name,
        description=row.description,
        code_id=row.code_id,
        payload=json.dumps(payload),
        priority=row.priority,
        max_attempts=row.max_attempts,
        timeout=row.timeout,
        tenant=row.tenant,
        webhook=row.webhook,
        worker_tags=tuple(filter(None, row.worker_tags.split(","))),
        retry=parse_policy(row.retry) if row.retry else None,
    )
