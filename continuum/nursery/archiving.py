"""From the database into the archive: finished tasks are read, written, and only then deleted.

Between any two of these steps everything may end: a task that was written and not deleted is written again the next time,
and none is deleted that was not written.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import trio

from continuum.archive import Archive
from continuum.db.protocol import Database
from continuum.model import EndedTask

TEXT_AT_ONCE = 8 * 1024 * 1024
"""Bytes of payloads and outputs that are read and written together."""
WRITE_DEADLINE = 60.0
"""Seconds for a directory to take them, which may be on a network and hang."""


class Archiving:
    """One writer's way into its archive. Where a directory hangs, it holds one thread and no more."""

    def __init__(self, database: Database, archive: Archive) -> None:
        self.archive = archive
        self._database = database
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def archive_tasks(self, tasks: Sequence[EndedTask]) -> tuple[list[EndedTask], Path | None]:
        """Write these tasks, as far as they are still there and as they were; return which those are, once they are on disk, and
        where. Raises OSError, and DatabaseUnavailable."""
        records = {record.id: record for record in await self._database.fetch([task.id for task in tasks])}
        there = [
            task
            for task in tasks
            if (record := records.get(task.id)) is not None
            and record.finished_for_good
            and (record.attempt, record.finished) == (task.attempt, task.finished)
        ]
        if not there:
            return [], None
        write = partial(self.archive.write, [records[task.id] for task in there])
        try:
            with trio.fail_after(WRITE_DEADLINE):
                path = await trio.to_thread.run_sync(write, abandon_on_cancel=True, limiter=self._one_at_a_time)
        except trio.TooSlowError:
            # Whoever still writes has the old one: what comes of it, if anything does, is lines that are there twice.
            self.archive = Archive(self.archive.directory, f"{self.archive.owner}-{secrets.token_hex(2)}")
            raise OSError(f"{self.archive.directory} took nothing within {WRITE_DEADLINE:g} s") from None
        return there, path


def portions(tasks: Sequence[EndedTask]) -> Iterator[list[EndedTask]]:
    """Tasks in their order, so many at a time as may be in memory together; one at least."""
    portion: list[EndedTask] = []
    size = 0
    for task in tasks:
        if portion and size + task.size > TEXT_AT_ONCE:
            yield portion
            portion, size = [], 0
        portion.append(task)
        size += task.size
    if portion:
        yield portion
