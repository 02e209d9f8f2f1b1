"""Laws 1 and 2 on any interleaving of what workers, janitors, producers and time may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.db.memory import MemoryDatabase
from continuum.model import TERMINAL, ClaimedTask, Ending, NewTask, Outcome
from continuum.nursery.completion import decide

WORKERS = ("one", "two", "three")
LEASE = 10.0

step = st.one_of(
    st.tuples(st.just("claim"), st.sampled_from(WORKERS), st.integers(1, 3)),
    st.tuples(
        st.just("complete"), st.integers(0, 40), st.sampled_from([Ending.COMPLETED, Ending.FAILED, Ending.TIMED_OUT])
    ),
    st.tuples(st.just("release"), st.integers(0, 40)),
    st.tuples(st.just("heartbeat"), st.integers(0, 40)),
    st.tuples(st.just("cancel"), st.integers(1, 6)),
    st.tuples(st.just("recover")),
    st.tuples(st.just("promote")),
    st.tuples(st.just("wait"), st.floats(0.1, 15)),
)


class History:
    """What happened so far, held against the laws after every step."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.database = database
        self.claims: list[tuple[str, ClaimedTask]] = []
        self.terminal: dict[int, Any] = {}
        self.attempts: dict[int, int] = {}

    async def run(self, kind: str, *arguments: Any) -> None:
        await getattr(self, kind)(*arguments)
        self.check()

    async def claim(self, worker: str, limit: int) -> None:
        for task in await self.database.claim(worker, limit, lease=LEASE):
            assert task.attempt > self.attempts.get(task.id, 0), "a fencing token was used twice"
            assert task.id not in self.terminal
            self.claims.append((worker, task))

    async def complete(self, number: int, ending: Ending) -> None:
        if self.claims:
            worker, task = self.claims[number % len(self.claims)]
            before = self.database.tasks[task.id]
            written = await self.database.complete(
                worker, [decide(task, Outcome(ending, 0, f"{worker} {task.attempt}"))]
            )
            after = self.database.tasks[task.id]
            holder = (before.status, before.worker_id, before.attempt) == ("processing", worker, task.attempt)
            assert holder or after == before, "somebody without the lease changed a task"
            assert not holder or task.lease in written

    async def release(self, number: int) -> None:
        if self.claims:
            worker, task = self.claims[number % len(self.claims)]
            await self.database.release(worker, [task.lease])

    async def heartbeat(self, number: int) -> None:
        if self.claims:
            worker, task = self.claims[number % len(self.claims)]
            await self.database.heartbeat(worker, [task.lease], lease=LEASE)

    async def cancel(self, task_id: int) -> None:
        await self.database.cancel(task_id)

    async def recover(self) -> None:
        await self.database.recover("janitor")

    async def promote(self) -> None:
        await self.database.promote()

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def check(self) -> None:
        for task in self.database.tasks.values():
            assert task.attempt >= self.attempts.get(task.id, 0), "an attempt went down"
            self.attempts[task.id] = task.attempt
            assert 0 <= task.released <= task.attempt
            assert (task.worker_id is not None and task.lease_expires_at is not None) == (
                task.status == "processing"
            ) or (task.status in TERMINAL)
            if task.id in self.terminal:
                assert task == self.terminal[task.id], "a terminal state was left or written twice"
            elif task.status in TERMINAL:
                self.terminal[task.id] = task


@settings(max_examples=200, deadline=None)
@given(st.lists(step, max_size=60))
def test_no_interleaving_breaks_the_laws_and_every_task_ends(steps: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        database = MemoryDatabase()
        await database.submit([NewTask(code="hello", max_attempts=2)] * 6)
        history = History(database)
        for each in steps:
            await history.run(*each)
        with trio.fail_after(3600):
            while len(history.terminal) < 6:
                await trio.sleep(LEASE)
                for kind in ("recover", "promote"):
                    await history.run(kind)
                await history.run("claim", "one", 6)
                for number in range(len(history.claims)):
                    await history.run("complete", number, Ending.COMPLETED)

    run: Callable[..., None] = trio.run
    run(play, clock=MockClock(autojump_threshold=0))
