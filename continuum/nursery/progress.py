"""Showing what running tasks have written so far, so that their output can be followed while they run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import structlog
import trio

from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import Lease, PartialOutput, Stream
from continuum.nursery.backoff import note_database_failure
from continuum.nursery.signals import Signal
from continuum.nursery.state import Running, WorkerState

log = structlog.get_logger(__name__)

INTERVAL = 1.0
"""Seconds between two looks. A script that ends sooner is never shown half way."""
CHARACTERS_PER_SECOND = 65_536
"""How much one task may cost: the whole text is written each time, so that a longer one is written less often."""


@dataclass(slots=True)
class _Shown:
    size: int
    at: float


@dataclass(slots=True)
class Progress:
    """The progress service."""

    database: Database
    state: WorkerState
    task_began: Signal
    """Raised when a task begins."""
    _shown: dict[Lease, _Shown] = field(default_factory=dict)

    async def run(self) -> None:
        """Show new output every `INTERVAL` while something runs; never return. What a failure keeps back is shown the next
        time."""
        while True:
            if not self.state.running:
                await self.task_began.wait(math.inf)
            await trio.sleep(INTERVAL)
            try:
                await self.show()
            except DatabaseUnavailable as error:
                note_database_failure(self.state, "progress", error)

    async def show(self) -> int:
        """Write the outputs that have grown; return how many."""
        now = trio.current_time()
        self._shown = {lease: shown for lease, shown in self._shown.items() if lease in self.state.running}
        grown = {lease: running for lease, running in self.state.running.items() if self._is_due(lease, running, now)}
        if grown:
            sizes = {lease: running.transcript.size for lease, running in grown.items()}
            await self.database.progress(self.state.id, [_partial(*item) for item in grown.items()])
            self._shown.update({lease: _Shown(size, now) for lease, size in sizes.items()})
        return len(grown)

    def _is_due(self, lease: Lease, running: Running, now: float) -> bool:
        shown = self._shown.get(lease)
        if shown is None:
            return running.transcript.size > 0 and now - running.since >= INTERVAL
        pause = shown.size / CHARACTERS_PER_SECOND
        return running.transcript.size > shown.size and now - shown.at >= pause


def _partial(lease: Lease, running: Running) -> PartialOutput:
    return PartialOutput(
        lease.task_id,
        lease.attempt,
        running.transcript.text(Stream.OUTPUT),
        running.transcript.text(Stream.ERROR),
    )
