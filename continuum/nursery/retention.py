"""Letting go of finished tasks that were kept long enough.

One worker at a time does it, whichever comes first: it takes the duty in the record, and keeps it while there is something to
do. Batches are small, and between two of them it rests for as long as the last one took, so that claims never wait for long and
the database is never busy with nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import structlog
import trio

from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import Status
from continuum.nursery.backoff import Backoff, note_database_failure, note_database_success
from continuum.nursery.state import WorkerState

log = structlog.get_logger(__name__)

DUTY = "retention"
HELD = 180.0
"""Seconds for which the duty is taken; renewed in the middle of it. A worker that dies with it is followed then."""
INTERVAL = 60.0
"""Seconds between two looks for tasks past their retention."""
MOST, LEAST = 1000, 10
"""Tasks deleted in one statement."""
BATCH_SECONDS = 0.1
"""How long a statement should take: longer ones get fewer tasks, since those with large outputs cost more."""
REST = 1.0
"""Of a batch's own time, how much passes before the next."""


@dataclass(slots=True)
class Retention:
    """The retention service."""

    database: Database
    state: WorkerState
    settings: Settings
    deleted: int = 0
    """Tasks, so far."""
    _limit: int = MOST
    _expires: bool = False
    _expires_after: dict[Status, float] | None = None
    _renew_at: float = 0.0

    async def run(self) -> None:
        """Look at once and then every `INTERVAL`, a little apart from other workers; never return."""
        backoff = Backoff()
        while True:
            try:
                if self.settings.retention:
                    await self.retain()
            except DatabaseUnavailable as error:
                note_database_failure(self.state, "retention", error)
                await trio.sleep(backoff.next_delay())
            else:
                backoff.reset()
                note_database_success(self.state)
                await trio.sleep(INTERVAL * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def retain(self) -> None:
        """Let go of what was kept long enough, unless the database does it by itself or another worker does. Raises
        `DatabaseUnavailable`."""
        ages = self.settings.retention
        if self._expires_after != ages:
            self._expires = await self.database.expire(ages)
            self._expires_after = ages
        if self._expires:
            return
        self._renew_at = 0.0
        for status in ages:
            before = self.deleted
            await self._purge(status)
            if self.deleted > before:
                log.info("deleted tasks past their retention", status=status.value, count=self.deleted - before)

    async def _purge(self, status: Status) -> None:
        """Delete all that ended so for long enough, batch after batch."""
        while (age := self.settings.retention.get(status)) is not None and await self._has_duty():
            began, limit = trio.current_time(), self._limit
            deleted = await self.database.purge(status, age, limit)
            self.deleted += deleted
            if deleted < limit:
                return
            await self._rest(trio.current_time() - began)

    async def _has_duty(self) -> bool:
        """Take the duty, or renew it in time; False when another worker has it."""
        now = trio.current_time()
        if now < self._renew_at:
            return True
        taken = await self.database.take_duty(DUTY, self.state.id, HELD)
        self._renew_at = now + HELD / 2 if taken else 0.0
        return taken

    async def _rest(self, took: float) -> None:
        """After a full batch: see that the next takes as long as it should, and leave the database to others meanwhile."""
        fitting = self._limit * BATCH_SECONDS / max(took, BATCH_SECONDS / 2)
        self._limit = max(LEAST, min(MOST, int(fitting)))
        await trio.sleep(took * REST)
