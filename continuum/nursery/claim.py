"""Claiming: as many tasks as there are free slots, and a few ahead where tasks are short, whenever there may be work."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio

from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable, OutcomeUnknown
from continuum.db.protocol import Database
from continuum.model import Claim, ClaimedTask, Lease
from continuum.nursery.backoff import Backoff, note_database_failure, note_database_success
from continuum.nursery.completion import Completions
from continuum.nursery.lower import LowerTurns
from continuum.nursery.signals import Shutdown, Signal
from continuum.nursery.state import WorkerState
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

UNWRITTEN_LIMIT = 4
"""No more is claimed while outcomes for so many times the tasks held wait to be written: a database that grants claims
but takes no completions must not fill the worker's memory."""


LATE_CLAIM = 40.0
"""Seconds for which a claim without an answer may still take effect: longer than the server's statement timeout."""
GIVE_BACK_AGAIN = 5.0
"""Seconds between two looks for such claims."""


@dataclass(slots=True)
class Claims:
    """The claim service: `run` is its whole life."""

    database: Database
    state: WorkerState
    completions: Completions
    telemetry: Telemetry
    settings: Settings
    work: Signal
    """Raised when there may be something to claim: work arrived, a slot became free, outcomes were written, the sandboxes work
    again."""
    shutdown: Shutdown
    _lower: LowerTurns = field(default_factory=LowerTurns)
    _taken: set[Lease] = field(default_factory=set)
    _give_back_at: float = math.inf
    _unheard_until: float = -math.inf

    async def run(self, execute: Callable[[ClaimedTask], Awaitable[None]], executions: trio.Nursery) -> None:
        """Claim until shutdown is requested, starting `execute` in `executions` for each claimed task."""

        async def hold_slot(task: ClaimedTask) -> None:
            try:
                await execute(task)
            finally:
                self._taken.remove(task.lease)
                self.work.notify()

        backoff = Backoff()
        while not self.shutdown.requested.is_set():
            wanted = self._places()
            self.state.drained = self.state.draining and self._holds_nothing()
            if wanted == 0 and trio.current_time() < self._give_back_at:
                await self.work.wait(self.settings.polling_interval)
                continue
            if self.state.pace.slow:
                await self._let_slots_gather()
                wanted = 0 if self.shutdown.requested.is_set() else self._places()
            began = trio.current_time()
            beyond = self._lower.beyond(wanted) if self.settings.priority_share else None
            try:
                tasks = await self._claim(wanted, beyond)
            except DatabaseUnavailable as error:
                if isinstance(error, OutcomeUnknown):
                    self._give_back_at = trio.current_time()
                    self._unheard_until = self._give_back_at + LATE_CLAIM
                note_database_failure(self.state, "claim", error)
                await self._pause(backoff.next_delay())
                continue
            backoff.reset()
            note_database_success(self.state)
            self.state.claimed += len(tasks)
            self._lower.note([task.priority for task in tasks], self.settings.priority_share, beyond=beyond)
            took = trio.current_time() - began
            self.telemetry.tasks_claimed(tasks, took)
            if wanted:
                self.state.pace.note_claim(took)
            for task in tasks:
                if self.shutdown.requested.is_set() or self.state.draining:
                    self.completions.release(task.lease)
                else:
                    self._taken.add(task.lease)
                    self.state.admit(task)
                    executions.start_soon(hold_slot, task)
            if len(tasks) < wanted and beyond is None:
                rest = self.settings.polling_interval
                await self.work.wait(rest if tasks.again_in is None else min(rest, tasks.again_in))

    def _places(self) -> int:
        """How many tasks to claim now."""
        if not {"sandbox", "screening", "heartbeat"}.isdisjoint(self.state.health.problems):
            return 0
        if self.state.draining:
            return 0
        ahead = self.state.ahead()
        most = self.state.most_running + ahead
        if len(self.completions) >= UNWRITTEN_LIMIT * most:
            return 0
        if len(self._taken) > most - ahead // 2:
            return 0  # enough are still there: a claim for many costs no more than one for few
        return most - len(self._taken)

    async def _let_slots_gather(self) -> None:
        """Wait for more free slots while the database is slow: until half of them are, or for as long as is worth it."""
        with trio.move_on_after(self.state.pace.gathering()):
            while 0 < 2 * self._places() < self.state.most_running and not self.shutdown.requested.is_set():
                await self.work.wait(math.inf)

    def _holds_nothing(self) -> bool:
        """Whether the record holds nothing more for this worker, as far as it can know."""
        return not self._taken and not len(self.completions) and math.isinf(self._give_back_at)

    async def _claim(self, wanted: int, beyond: int | None) -> Claim:
        if trio.current_time() >= self._give_back_at:
            await self._give_back_unheard_claims()
        if wanted == 0:
            return Claim()
        return await self.database.claim(
            self.state.id,
            wanted,
            lease=self.settings.lease_seconds,
            min_priority=self.settings.min_priority,
            max_priority=self.settings.max_priority,
            tags=self.settings.worker_tags,
            beyond=beyond,
        )

    async def _give_back_unheard_claims(self) -> None:
        """A claim's answer was lost, so the record may hold tasks for us that we never heard of, or will: a node that hung
        may go on with it."""
        began = trio.current_time()
        held = [*{*self._taken, *self.completions.leases()}]
        released = await self.database.release_except(self.state.id, held)
        self._give_back_at = began + GIVE_BACK_AGAIN if began < self._unheard_until else math.inf
        if released:
            log.info("gave back tasks whose claim was never answered", released=released)

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.shutdown.requested.wait()
