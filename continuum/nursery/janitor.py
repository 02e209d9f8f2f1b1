"""Housekeeping in the record: attempts whose worker is gone.

Every worker does it; rows are locked and skipped, so none waits for another. After the database was away, leases have
expired that nobody gave up: every worker gets the time of a heartbeat to extend its own before any is recovered.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import structlog
import trio

from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.nursery.backoff import Backoff, note_database_failure, note_database_success
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

BATCH = 100
"""Expired leases recovered in one statement."""


@dataclass(slots=True)
class Janitor:
    """The janitor service. `interval` and `heartbeat_interval` in seconds."""

    database: Database
    state: WorkerState
    telemetry: Telemetry
    interval: float
    heartbeat_interval: float
    settings: Settings
    retry_scheduled: Signal

    async def run(self) -> None:
        """Recover at once and then every `interval`, a little apart from other workers; never return."""
        backoff = Backoff()
        while True:
            await self.wait_until_steady()
            try:
                await self.recover()
            except DatabaseUnavailable as error:
                # Not tried again right here: after an outage the heartbeats come first.
                note_database_failure(self.state, "janitor", error)
                await trio.sleep(backoff.next_delay())
            else:
                backoff.reset()
                note_database_success(self.state)
                await trio.sleep(self.interval * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def wait_until_steady(self) -> None:
        """Wait until heartbeats have got through for a heartbeat's interval; at the start, when none has failed, not
        at all."""
        while (left := self.state.steady_since + self.heartbeat_interval - trio.current_time()) > 0:  # noqa: ASYNC110
            await trio.sleep(min(left, self.heartbeat_interval))

    async def recover(self) -> int:
        """End every attempt whose lease has expired; return how many there were. Raises `DatabaseUnavailable`."""
        total = 0
        while True:
            recovered = await self.database.recover(
                self.state.id, BATCH, quarantine_after=self.settings.quarantine_after
            )
            total += recovered.total
            if recovered.total:
                log.warning(
                    "recovered tasks whose lease had expired",
                    retried=recovered.retried,
                    failed=recovered.failed,
                    cancelled=recovered.cancelled,
                )
                self.telemetry.leases_recovered(recovered)
            if recovered.retried:
                self.retry_scheduled.notify()
            if recovered.total < BATCH:
                return total
