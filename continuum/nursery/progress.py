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
"""How much one task may write on average: after much at once, what follows is shown later."""


@dataclass(slots=True)
class _Shown:
    """How many characters of each output are shown, and when more may be."""

    sizes: dict[Stream, int]
    again_at: float

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


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
            parts = [self._partial(*item) for item in grown.items()]
            await self.database.progress(self.state.id, parts)
            self._shown.update({Lease(part.task_id, part.attempt): _shown(part, now) for part in parts})
        return len(grown)

    def _is_due(self, lease: Lease, running: Running, now: float) -> bool:
        shown = self._shown.get(lease)
        if shown is None:
            return running.transcript.size > 0 and now - running.since >= INTERVAL
        return running.transcript.size > shown.size and now >= shown.again_at

    def _partial(self, lease: Lease, running: Running) -> PartialOutput:
        shown = self._shown.get(lease)
        return PartialOutput(
            lease.task_id,
            lease.attempt,
            running.transcript.text(Stream.OUTPUT),
            running.transcript.text(Stream.ERROR),
            shown.sizes if shown else {},
        )


def _shown(part: PartialOutput, now: float) -> _Shown:
    sizes = {Stream.OUTPUT: len(part.output), Stream.ERROR: len(part.error_output)}
    new = sum(sizes.values()) - sum(part.shown.values())
    return _Shown(sizes, now + new / CHARACTERS_PER_SECOND)
