"""Sandboxes that nobody needs any more: idle ones, and those that dead workers left on this host.

It also brings a backend that failed back into use: as long as no sandbox can be started, nothing is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import trio

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.nursery.backoff import Backoff, until_available
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState
from continuum.sandbox.pool import SandboxPool
from continuum.sandbox.protocol import Backend, BackendUnavailable

log = structlog.get_logger(__name__)

SWEEP_INTERVAL = 60.0
"""Seconds between two looks for what dead workers left. The first is before the first claim."""
LONGEST_RETRY = 10.0
"""Seconds between tries to get a failed backend back."""


@dataclass(slots=True)
class Reaper:
    """The reaper service."""

    backend: Backend
    pool: SandboxPool
    database: Database
    state: WorkerState
    work: Signal
    settings: Settings

    async def run(self) -> None:
        """Make the backend usable, then keep it so and tidy; never return."""
        next_sweep = trio.current_time()
        while True:
            if "sandbox" in self.state.health.problems:
                await self.restore()
            elif trio.current_time() >= next_sweep:
                next_sweep = trio.current_time() + SWEEP_INTERVAL
                try:
                    await self.sweep()
                except BackendUnavailable as error:
                    self.state.health.report("sandbox", str(error))
            idle_timeout = self.settings.container_idle_timeout
            self.pool.remove_idle(idle_timeout)
            with trio.move_on_after(max(1.0, min(SWEEP_INTERVAL, idle_timeout) / 4)):
                await self.state.health.wait_for_problem("sandbox")

    async def restore(self) -> None:
        """Prepare the backend, tidy up, and start one sandbox, again and again until that works."""
        backoff = Backoff(first=0.5, longest=LONGEST_RETRY)
        while True:
            try:
                await self.backend.prepare()
                await self.sweep()
                await self.pool.warm()
            except BackendUnavailable as error:
                log.warning("no sandbox can be started", backend=self.backend.name, error=str(error))
                self.state.health.report("sandbox", str(error))
                await trio.sleep(backoff.next_delay())
            else:
                self.state.sandbox = self.backend.description
                log.info("sandboxes are ready", sandbox=self.backend.description)
                self.state.health.report("sandbox", None)
                self.work.notify()
                return

    async def sweep(self) -> None:
        """Remove the sandboxes of workers that are dead. Raises `BackendUnavailable`."""
        workers = await until_available(self.state, "reaper", self.database.workers)
        live = {worker.id for worker in workers if worker.alive} | {self.state.id}
        removed = await self.backend.sweep(live)
        if removed:
            log.warning("removed sandboxes that dead workers had left", removed=removed)
