"""How soon a client sees the end that it waits for; on the virtual clock."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from continuum.client.logs import LONGEST_PAUSE, SHORTEST_PAUSE
from continuum.client.trio_client import Client
from continuum.client.waiting import LATENESS, SELDOM
from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask


class Hesitant(MemoryDatabase):
    """Answers one of its questions late, as after the loss of a node."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self.late = late
        self.asked = 0

    async def still_open(self, task_ids: Sequence[int]) -> frozenset[int]:
        self.asked += 1
        if self.asked == 2:
            await trio.sleep(self.late)
        return await super().still_open(task_ids)


async def seen_after(database: Hesitant, ends_after: float) -> float:
    """Seconds from a task's end, so long after the wait for it has begun, until that is over."""
    (task_id,) = await database.submit([NewTask(code="")])
    end = trio.current_time() + ends_after

    async def cancel() -> None:
        await trio.sleep_until(end)
        await database.cancel(task_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        async with Client(database=database) as client:
            await client.wait(task_id)
    return trio.current_time() - end


@pytest.mark.parametrize("ends_after", [0.001, 0.02, 1.0, 60.0])
async def test_an_end_is_seen_no_later_than_a_tenth_of_the_wait(autojump_clock: MockClock, ends_after: float) -> None:
    latest = max(SHORTEST_PAUSE, min(LONGEST_PAUSE, 2 * LATENESS * ends_after))
    assert 0 <= await seen_after(Hesitant(late=0), ends_after) <= latest + 1e-6


async def test_one_late_answer_puts_off_the_next_question_for_a_second_at_most(
    autojump_clock: MockClock,
) -> None:
    assert await seen_after(Hesitant(late=4.9), 5.0) <= SELDOM
