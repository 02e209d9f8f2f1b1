"""The whole queue, counted now and then for those who read this worker's metrics; while nobody does, nobody counts."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import trio

from continuum.db.errors import DatabaseError
from continuum.db.protocol import Database
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

INTERVAL = 15.0
"""Seconds between two counts: what a collector usually leaves between two of its own."""
PART_OF_THE_TIME = 0.05
"""For how much of the time all workers together may have the database count: with many workers and a long queue they count more
seldom."""


@dataclass(slots=True)
class QueueWatch:
    """The service that counts."""

    database: Database
    telemetry: Telemetry

    async def run(self) -> None:
        """Count when somebody has read the metrics since the last time; never return."""
        while True:
            pause = INTERVAL
            if self.telemetry.queue_is_wanted():
                pause = await self.look()
            await trio.sleep(pause)

    async def look(self) -> float:
        """Count once, and return for how many seconds that will do. What could not be counted is not told."""
        began = trio.current_time()
        try:
            statistics, oldest = await self.database.statistics(), await self.database.oldest_pending()
            held_back = await self.database.held_back()
        except DatabaseError as error:
            log.debug("the queue could not be counted", error=str(error))
            self.telemetry.queue_unseen()
            return INTERVAL
        took = trio.current_time() - began
        pause = max(INTERVAL, took * max(1, statistics.workers) / PART_OF_THE_TIME)
        self.telemetry.queue_seen(statistics, oldest, held_back, pause)
        return pause
