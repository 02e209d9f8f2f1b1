"""The verbs of schedules: a part of `protocol.Database`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from continuum.schedules import Looked, Move, Moved, NewSchedule, ScheduleRecord


class Schedules(Protocol):
    """What a database knows of schedules."""

    async def look_at_schedules(self, limit: int = 100) -> Looked:
        """Up to `limit` schedules that are to be fired now, or whose due time is to be worked out. It changes nothing."""
        ...

    async def move_schedules(self, moves: Sequence[Move]) -> list[Moved]:
        """Move schedules on, each only from where it was when it was looked at, and make the task of each due time together with
        that. Return the moves that were made; the others were made by somebody else, or are not to be made any more, so that it
        does no harm to repeat this. Nothing is fired before it is due on the database's clock. Raises `InvalidSchedule` where the
        database refuses a task: no move was made then."""
        ...

    async def put_schedule(self, schedule: NewSchedule, *, replace: bool = False) -> bool:
        """Store a schedule, and its code. False where there is one of this name and it is not to be replaced. Replacing one that
        has the same times changes nothing about when it is due next. Raises `InvalidSchedule`."""
        ...

    async def schedules(self, limit: int = 50, after: str | None = None) -> list[ScheduleRecord]:
        """Schedules in the order of their names, those after `after`."""
        ...

    async def fetch_schedule(self, name: str) -> ScheduleRecord | None:
        """Read a schedule; None where there is none of this name."""
        ...

    async def pause_schedule(self, name: str, paused: bool = True) -> bool:
        """Let a schedule rest, or go on; what was due while it rested is left out. False where there is none of this name."""
        ...

    async def remove_schedule(self, name: str) -> bool:
        """Forget a schedule; its tasks stay. False where there is none of this name."""
        ...
