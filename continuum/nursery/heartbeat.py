"""Keeping leases alive, and learning which of them were cancelled or lost.

The heartbeat shares nothing with the claim path: its connection is its own, and no queue, slot or sandbox can hold
it up. A worker whose heartbeat fails stops claiming.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import structlog
import trio

from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.logs import trace_fields
from continuum.model import Lease
from continuum.nursery.backoff import Backoff, note_database_failure, note_database_success
from continuum.nursery.completion import Completions
from continuum.nursery.signals import Signal
from continuum.nursery.state import StopReason, WorkerState

log = structlog.get_logger(__name__)

LATE = 2 / 3
"""Part of the lease after which, without a heartbeat that worked, nothing new is claimed."""


@dataclass(slots=True)
class Heartbeat:
    """The heartbeat service. `lease` and `interval` in seconds; `now` is raised to have the next one at once."""

    database: Database
    state: WorkerState
    completions: Completions
    lease: float
    interval: float
    now: Signal
    work: Signal

    async def run(self) -> None:
        """Beat every `interval`, sooner after a failure or when asked; never return."""
        backoff = Backoff()
        last_success = trio.current_time()
        while True:
            try:
                await self.beat()
            except DatabaseUnavailable as error:
                note_database_failure(self.state, "heartbeat", error)
                self.state.steady_since = math.inf
                if trio.current_time() - last_success > LATE * self.lease:
                    self.state.health.report("heartbeat", f"no heartbeat got through: {error}")
                await trio.sleep(min(backoff.next_delay(), self.interval))
            else:
                backoff.reset()
                last_success = trio.current_time()
                self.state.steady_since = min(self.state.steady_since, last_success)
                note_database_success(self.state)
                if "heartbeat" in self.state.health.problems:
                    self.state.health.report("heartbeat", None)
                    self.work.notify()
                await self.now.wait(self.interval)

    async def beat(self) -> None:
        """Extend every lease held, stop what was cancelled or lost, say that this worker lives, and learn whether to drain."""
        held = [*self.state.running, *self.state.waiting, *self.completions.leases()]
        if held:
            answer = await self.database.heartbeat(self.state.id, held, lease=self.lease)
            for lost in answer.lost:
                self._stop(lost, StopReason.LOST)
            for cancelled in answer.cancelled:
                self._stop(cancelled, StopReason.CANCELLED)
        self._drain(await self.database.report(self.state.report()))

    def _drain(self, draining: bool) -> None:
        if draining == self.state.draining:
            return
        self.state.draining, self.state.drained = draining, False
        if draining:
            log.info("draining: nothing new is claimed", running=len(self.state.running))
            self.state.give_back_waiting()
        else:
            log.info("claiming again")
        self.work.notify()

    def _stop(self, lease: Lease, reason: StopReason) -> None:
        # A lease that ended while the heartbeat was under way looks lost; what runs or waits no more needs no stop.
        running = self.state.held(lease)
        if running is not None:
            log.info(
                "stopping a running task",
                **lease._asdict(),
                reason=reason.value,
                **trace_fields(running.traceparent),
            )
            running.stop(reason)
