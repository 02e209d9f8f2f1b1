"""Claiming ahead of free slots: where tasks are short, never far, and never for long; on the virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from continuum.db.memory import MemoryDatabase
from continuum.model import Cancellation, Claim, Completion, Lease, Status
from continuum.nursery.pace import AHEAD, MOST_AHEAD, PATIENCE, Pace
from tests.support.harness import RunningWorker, worker


class Counting(MemoryDatabase):
    """Counts the calls that a real database would take a round trip for, each of which takes 2 ms here."""

    claims = completes = 0

    async def claim(self, *args: Any, **values: Any) -> Claim:
        self.claims += 1
        await trio.sleep(0.002)
        return await super().claim(*args, **values)

    async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        self.completes += 1
        await trio.sleep(0.002)
        return await super().complete(worker_id, completions)


@pytest.fixture
def database() -> Counting:
    return Counting()


async def after_many_short_tasks(w: RunningWorker) -> None:
    await w.wait_for(*await w.submit(*["hello"] * 200))


def test_it_is_measured_in_time() -> None:
    pace = Pace()
    assert pace.ahead(4, []) == 0, "nothing is known yet"
    pace.note(AHEAD / 2)
    assert pace.ahead(4, []) == 8
    assert pace.ahead(4, [0.0, 60.0]) == 8, "one slot moves on"
    assert pace.ahead(4, [60.0, 61.0]) == 0, "nothing moves"
    for _ in range(100):
        pace.note(0.0)
    assert pace.ahead(4, []) == 4 * MOST_AHEAD
    for _ in range(100):
        pace.note(5.0)
    assert pace.ahead(4, []) == 0


async def test_short_tasks_share_their_round_trips(autojump_clock: MockClock, database: Counting) -> None:
    async with worker(database, slots=2) as w:
        await after_many_short_tasks(w)
        before = database.claims + database.completes
        await w.wait_for(*await w.submit(*["hello"] * 400))
        assert database.claims + database.completes - before < 400 / 4
        assert w.backend.most_running <= 2


async def test_outcomes_that_are_written_slowly_hold_claims_up_for_no_longer_than_that(
    autojump_clock: MockClock, database: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = database.complete

    async def slow(worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        await trio.sleep(0.3)
        return await complete(worker_id, completions)

    monkeypatch.setattr(database, "complete", slow)
    async with worker(database, slots=2, polling_interval=600) as w:
        await after_many_short_tasks(w)
        ids = await w.submit(*["hello"] * 400)
        with trio.fail_after(60):
            await w.wait_for(*ids)


async def test_long_tasks_are_not_claimed_ahead(autojump_clock: MockClock, database: Counting) -> None:
    async with worker(database, slots=2) as w:
        await w.wait_for(*await w.submit(*["sleep 1"] * 10))
        await w.submit(*["sleep 10"] * 10)
        for _ in range(50):
            await trio.sleep(0.5)
            assert sum(record.status == Status.PROCESSING for record in database.tasks.values()) <= 2


async def test_what_gets_no_slot_soon_is_given_back_once_and_uncounted(
    autojump_clock: MockClock, database: Counting
) -> None:
    async with worker(database, slots=2) as w:
        await after_many_short_tasks(w)
        ids = await w.submit(*["sleep 10"] * 12)
        await trio.sleep(PATIENCE / 2)
        assert len(w.state.waiting) > 2
        await trio.sleep(PATIENCE * 5)
        assert not w.state.waiting
        records = [await w.record(task_id) for task_id in ids]
        assert sum(record.status == Status.PENDING for record in records) == 10
        assert all(record.released <= 1 for record in records)
        records = await w.wait_for(*ids)
        assert {record.attempt - record.released for record in records} == {1}


async def test_a_worker_that_stops_gives_back_what_waits_at_once(autojump_clock: MockClock, database: Counting) -> None:
    async with worker(database, slots=2, shutdown_grace=60) as w:
        await after_many_short_tasks(w)
        ids = await w.submit(*["sleep 10"] * 12)
        await trio.sleep(PATIENCE / 2)
        w.shutdown.request()
        await trio.sleep(0.1)
        statuses = [(await w.record(task_id)).status for task_id in ids]
        assert (statuses.count(Status.PROCESSING), statuses.count(Status.PENDING)) == (2, 10)
        await w.stopped.wait()


async def test_a_task_that_waits_for_its_slot_can_be_cancelled_and_keeps_its_lease(
    autojump_clock: MockClock, database: Counting
) -> None:
    async with worker(database, slots=1, heartbeat_interval=0.2) as w:
        await after_many_short_tasks(w)
        first, second = await w.submit("sleep 5", "sleep 5")
        await trio.sleep(0.1)
        (waiting,) = w.state.waiting
        assert waiting.task_id == second
        assert await database.cancel(second) is Cancellation.REQUESTED
        (record,) = await w.wait_for(second)
        assert (record.status, record.output) == (Status.CANCELLED, "")
        assert (await w.record(first)).status == Status.PROCESSING
