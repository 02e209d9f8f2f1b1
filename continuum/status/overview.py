"""The view over all workers, read from the database at most once a second however many ask."""

from __future__ import annotations

import trio

from continuum.db.errors import DatabaseError
from continuum.db.protocol import Database
from continuum.status.views import Json, global_status

MAXIMUM_AGE = 1.0
"""Seconds that an answer, or a failure, is served again."""
DEADLINE = 3.0
"""Seconds for the database to answer. Who asks meanwhile waits for the same answer."""


class OverviewUnavailable(Exception):
    """The database did not say; the message says why."""


class Overview:
    """What `/global-status` answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asking = trio.Lock()
        self._read_at = float("-inf")
        self._last: Json | OverviewUnavailable = OverviewUnavailable("not read yet")

    async def read(self) -> Json:
        """The totals and the workers, about a second old at most. Raises `OverviewUnavailable`."""
        async with self._asking:
            if trio.current_time() - self._read_at >= MAXIMUM_AGE:
                self._last = await self._ask()
                self._read_at = trio.current_time()
        if isinstance(self._last, OverviewUnavailable):
            raise OverviewUnavailable(str(self._last))
        return self._last

    async def _ask(self) -> Json | OverviewUnavailable:
        try:
            with trio.fail_after(DEADLINE):
                return global_status(await self._database.statistics(), await self._database.workers())
        except DatabaseError as error:
            return OverviewUnavailable(str(error))
        except trio.TooSlowError:
            return OverviewUnavailable(f"the database did not answer within {DEADLINE:g} s")
