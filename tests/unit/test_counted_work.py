"""Work that can be counted: what a task costs a worker, and what it leaves. Counts do not jitter as times do.

The limits are a little above what was counted when they were set: a change that needs more must have a reason.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import MockClock

from continuum.db.memory import MemoryDatabase
from continuum.model import Claim, Completion, Lease
from tests.support.harness import RunningWorker, worker

ROUND_TRIP = 0.002
"""Seconds for a claim or a completion."""


class Counted(MemoryDatabase):
    """Counts the statements of the hot path."""

    statements = 0

    async def claim(self, *args: Any, **values: Any) -> Claim:
        self.statements += 1
        await trio.sleep(ROUND_TRIP)
        return await super().claim(*args, **values)

    async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        self.statements += 1
        await trio.sleep(ROUND_TRIP)
        return await super().complete(worker_id, completions)


class Steps(trio.abc.Instrument):
    """Counts how often one of Trio's tasks went on, and how often all of them waited."""

    steps = passes = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1

    def before_io_wait(self, timeout: float) -> None:
        self.passes += 1


@asynccontextmanager
async def warm_worker(database: MemoryDatabase) -> AsyncIterator[RunningWorker]:
    """A worker with eight slots that has run some tasks, so that it claims ahead."""
    async with worker(database, slots=8) as w:
        await _end(w, 400)
        yield w


async def _end(w: RunningWorker, count: int) -> None:
    """Submit so many tasks that end at once, and see them end without looking often."""
    ended = w.state.processed + count
    await w.submit(*["hello"] * count)
    with trio.fail_after(600):
        while w.state.processed < ended:
            await trio.sleep(0.05)


async def test_a_task_costs_so_much_of_its_worker(autojump_clock: MockClock) -> None:
    count = 1000
    database, loop = Counted(), Steps()
    async with warm_worker(database) as w:
        database.statements = 0
        trio.lowlevel.add_instrument(loop)
        await _end(w, count)
        trio.lowlevel.remove_instrument(loop)
    assert database.statements / count <= 0.05, "statements"
    assert loop.steps / count <= 4.5, "steps of Trio's tasks"
    assert loop.passes / count <= 2, "passes of Trio's loop"


async def test_a_task_leaves_nothing_in_its_worker(autojump_clock: MockClock) -> None:
    """But for what the test's own database and sandboxes keep of it, which is taken out, and for deadlines that have passed: Trio
    forgets those a thousand at a time."""
    count = 1000
    database = MemoryDatabase()
    async with warm_worker(database) as w:
        blocks = []
        for _ in range(3):
            await _end(w, count)
            database.tasks.clear()
            w.backend.ran.clear()
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    assert blocks[2] - blocks[1] < count, "a block of memory for each task"
