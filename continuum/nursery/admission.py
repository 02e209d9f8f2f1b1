"""Admission: tasks that wait for others are made claimable as soon as these have ended, those of a code that was paused as soon
as it is no more.

What this worker has brought to an end is followed at once, by one statement for as many as ended while the last one ran, and only
while anything waits for others at all. Everything else is found by looking through what waits: when there is word of a new task
that must be admitted, and every POLLING_INTERVAL for what was lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import trio

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.model import Admission
from continuum.nursery.backoff import until_available
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState

BATCH = 200
"""Ended tasks that are followed by one statement."""
REST = 20.0
"""A look through what waits is followed by a rest that takes so many times as long as the database took to answer: however much
waits, and however many workers queue for the lock, it costs a twentieth of one connection."""
FEW_WAIT = 4
"""Where a look has seen all that waits at once, it rests for no longer than so many times POLLING_INTERVAL."""


@dataclass(slots=True)
class Admissions:
    """The admission service.

    gated: raised when there may be a new task that must be admitted. work: raised when one was.
    """

    database: Database
    state: WorkerState
    settings: Settings
    gated: Signal
    work: Signal
    _ended: dict[int, None] = field(default_factory=dict)
    _to_follow: Signal = field(default_factory=Signal)
    _waiting: bool = True
    """Whether anything may wait for others."""

    async def run(self) -> None:
        """Follow what ends, and look for what was lost; never return."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_ends)
            nursery.start_soon(self._look)

    def ended(self, task_ids: Iterable[int]) -> None:
        """Learn that this worker brought these tasks to an end, which stands in the record."""
        if self._waiting:
            self._ended.update(dict.fromkeys(task_ids))
            self._to_follow.notify()

    async def _follow_ends(self) -> None:
        while True:
            await self._to_follow.wait(float("inf"))
            while batch := list(self._ended)[:BATCH]:
                await self._admit(partial(self.database.admit_after, batch))
                for task_id in batch:
                    self._ended.pop(task_id, None)

    async def _look(self) -> None:
        next_whole = trio.current_time()
        while True:
            began = trio.current_time()
            whole = began >= next_whole
            rest = await self._look_through(whole=whole)
            if whole:
                next_whole = began + max(self.settings.polling_interval, rest)
            await trio.sleep(rest)
            await self.gated.wait(max(0.0, next_whole - trio.current_time()))

    async def _look_through(self, *, whole: bool) -> float:
        """Go through what waits, the newest first; unless the whole is wanted, as far as there is something to admit. Returns how
        long to rest, in seconds."""
        self._waiting = True  # what ends from now on may be what something waits for that is seen here
        below: int | None = None
        rest = 0.0
        while True:
            found, took = await self._admit(partial(self.database.admit_page, below))
            rest += REST * took
            if below is None and whole and found.parked:
                await self._resume_codes()
            if below is None and not found.seen:
                self._waiting = False
                self._ended.clear()
            if below is None and found.below is None:
                return min(rest, FEW_WAIT * self.settings.polling_interval)
            below = found.below
            if below is None or (not whole and not found.admitted):
                return rest

    async def _resume_codes(self) -> None:
        while await until_available(self.state, "admission", self.database.resume_codes):
            self.work.notify()

    async def _admit(self, call: Callable[[], Awaitable[Admission]]) -> tuple[Admission, float]:
        """Returns how long it took as well, in seconds, without the calls that failed: after an outage nobody rests."""

        async def timed() -> tuple[Admission, float]:
            began = trio.current_time()
            return await call(), trio.current_time() - began

        found, took = await until_available(self.state, "admission", timed)
        if found.admitted:
            self.work.notify()
        if found.cancelled:
            self.ended(found.cancelled)
        return found, took
