"""Letting go of finished tasks that were kept long enough.

One worker at a time does it, whichever comes first: it takes the duty in the record, and keeps it while there is something to
do. Batches are small, and between two of them it rests for as long as the last one took, so that claims never wait for long and
the database is never busy with nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from continuum.archive import Archive
from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import EndedFilter, Status
from continuum.nursery.archiving import Archiving, portions
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
    _archiving: Archiving | None = None

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
        if await self._database_expires():
            return
        self._renew_at = 0.0
        for status in self.settings.retention:
            before = self.deleted
            try:
                await self._delete(status)
            except OSError as error:
                log.error("tasks past their retention cannot be archived, and are kept", reason=str(error))
            if self.deleted > before:
                log.info("deleted tasks past their retention", status=status.value, count=self.deleted - before)

    async def _database_expires(self) -> bool:
        """Whether the database deletes by itself: it archives nothing before."""
        ages = self.settings.retention if self.settings.archive_dir is None else {}
        if (
            self._expires_after != ages or not ages
        ):  # over and over: a worker without ARCHIVE_DIR may have told it otherwise
            self._expires = await self.database.expire(ages)
            self._expires_after = ages
        return self._expires

    async def _delete(self, status: Status) -> None:
        """Delete all that ended so for long enough, batch after batch. Raises OSError when it cannot be archived."""
        while (age := self.settings.retention.get(status)) is not None and await self._has_duty():
            began, limit = trio.current_time(), self._limit
            if self.settings.archive_dir is None:
                deleted = await self.database.purge(status, age, limit)
                self.deleted += deleted
                again = deleted == limit
            else:
                again = await self._archive(self.settings.archive_dir, status, age, limit)
            if not again:
                return
            await self._rest(trio.current_time() - began)

    async def _archive(self, directory: Path, status: Status, age: float, limit: int) -> bool:
        """Archive and delete a batch; return whether there may be more."""
        archiving = self._archiving
        if archiving is None or archiving.archive.directory != directory:
            archiving = self._archiving = Archiving(self.database, Archive(directory, self.state.id))
        found = await self.database.ended(EndedFilter(status, age), limit)
        before = self.deleted
        for portion in portions(found):
            if not await self._has_duty():
                return False
            written, _ = await archiving.archive_tasks(portion)
            self.deleted += await self.database.delete_ended(written)
        return len(found) == limit and self.deleted > before

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
