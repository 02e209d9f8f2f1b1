"""Firing schedules: whichever worker comes first makes the task, and nobody leads.

What time it is, the database says, when it is asked what is due and once more when a schedule is moved on; this worker's clock is
only how it waits. A schedule is moved from where it was seen, together with the task that this makes, so that a worker that comes
second, repeats itself because an answer was lost, or dies between two steps, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from continuum.config import Settings
from continuum.db.errors import InvalidSchedule, NotPermitted
from continuum.db.protocol import Database
from continuum.nursery.backoff import Backoff, until_available
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState
from continuum.schedules import Looked, Move, Moved, plan
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

BATCH = 100
"""Schedules that are moved in one statement."""
OTHERS_ARE_AT_IT = (0.02, 1.0)
"""Seconds after which a worker looks again where all was moved by others, at first and at most."""
NOT_PERMITTED = 60.0
"""Seconds after which a worker tries again that may not use the table."""


@dataclass(slots=True)
class ScheduleFiring:
    """The service that fires schedules. work: raised when there are new tasks. changed: raised by the database's listener."""

    database: Database
    state: WorkerState
    telemetry: Telemetry
    settings: Settings
    work: Signal
    changed: Signal

    async def run(self) -> None:
        """Fire what is due, and wait for what comes next; never return."""
        while True:
            try:
                next_in = await self.fire_due()
            except NotPermitted as error:
                log.warning("this worker fires no schedules", reason=str(error))
                next_in = NOT_PERMITTED
            await self.changed.wait(next_in)

    async def fire_due(self) -> float:
        """Move on everything that is due, and return for how many seconds that will do. Raises `NotPermitted`."""
        backoff = Backoff(*OTHERS_ARE_AT_IT)
        while True:
            looked = await until_available(self.state, "schedules", partial(self.database.look_at_schedules, BATCH))
            if not looked.waiting:
                longest = self.settings.polling_interval
                return longest if looked.next_in is None else min(looked.next_in, longest)
            if await self._move_on(looked):
                backoff.reset()
            else:
                await trio.sleep(backoff.next_delay())

    async def _move_on(self, looked: Looked) -> bool:
        """Move what was seen, as far as nobody else did; return whether anything was moved."""
        moves = []
        for schedule in looked.waiting:
            moves.append(plan(schedule, looked.now))
            await trio.lowlevel.checkpoint()  # where very many due times passed, each takes its while
        made = await self._move(moves, looked)
        self._tell(made)
        if any(moved.task_id is not None for _, moved in made):
            self.work.notify()
        return bool(made)

    async def _move(self, moves: Sequence[Move], looked: Looked) -> list[tuple[Move, Moved]]:
        """Make moves, and return those that were made; where the database refuses the task of one, that is put off."""
        by_name = {move.schedule.name: move for move in moves}
        try:
            moved = await until_available(self.state, "schedules", partial(self.database.move_schedules, moves))
            return [(by_name[each.name], each) for each in moved]
        except InvalidSchedule as error:
            if len(moves) > 1:
                return [made for move in moves for made in await self._move([move], looked)]
            (move,) = moves
            if move.error is not None:
                raise
            return await self._move([move.put_off(looked.now, str(error))], looked)

    def _tell(self, made: Sequence[tuple[Move, Moved]]) -> None:
        for move, moved in made:
            if move.error is not None and move.error != move.schedule.last_error:
                log.warning("a schedule cannot be fired", schedule=moved.name, reason=move.error)
            if moved.skipped:
                log.info(
                    "the task before is open: a due time is skipped", schedule=moved.name, due_at=move.fire_as_text
                )
            if move.missed:
                log.warning("due times passed while nobody fired", schedule=moved.name, missed=move.missed)
        fired = sum(moved.task_id is not None for _, moved in made)
        skipped = sum(moved.skipped for _, moved in made)
        self.telemetry.schedules_fired(fired, skipped, sum(move.missed for move, _ in made))
