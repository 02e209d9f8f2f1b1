"""Low priorities run though there is always something more urgent, where PRIORITY_SHARE says so; on the virtual clock."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from continuum.model import Status
from continuum.nursery.lower import LowerTurns
from tests.support.harness import worker
from tests.unit.test_ahead import Counting


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 40), (0.5, 200)])
async def test_lower_priorities_get_their_share(autojump_clock: MockClock, share: float, expected: int) -> None:
    database = Counting()
    async with worker(database, slots=4, priority_share=share) as w:
        await w.submit(*["sleep 1"] * 600)
        for priority in (1, 5, 9, 100):
            await w.submit(*["sleep 1"] * 60, priority=priority)
        while w.state.processed < 400:
            await trio.sleep(0.1)
        ran = Counter(task.priority for task in database.tasks.values() if task.status == Status.COMPLETED)
    lower = ran.total() - ran[0]
    assert abs(lower - expected) <= 8, ran
    if share:
        assert all(ran[priority] >= lower / 8 for priority in (1, 5, 9, 100)), ran


async def test_it_costs_few_claims(autojump_clock: MockClock) -> None:
    claims = {}
    for share in (0.0, 0.1):
        database = Counting()
        async with worker(database, slots=4, priority_share=share) as w:
            await w.submit(*["sleep 1"] * 200)
            await w.submit(*["sleep 1"] * 200, priority=3)
            while w.state.processed < 400:
                await trio.sleep(0.1)
        claims[share] = database.claims
    assert claims[0.1] <= 1.2 * claims[0.0], "one in a while that finds that all had their turns"


def test_each_priority_has_its_turn() -> None:
    turns = LowerTurns()
    assert turns.beyond(1) is None
    turns.note([-1, -1, 0, 0], 0.5, beyond=None)
    assert (turns.beyond(3), turns.beyond(1)) == (None, -1)
    turns.note([0], 0.5, beyond=-1)
    assert turns.beyond(1) == 0
    turns.note([], 0.5, beyond=0)
    assert turns.beyond(1) is None, "all had theirs"
    turns.note([-1], 0.5, beyond=None)
    assert turns.beyond(2) == -1
    turns.note([], 0.5, beyond=-1)
    turns.note([-1], 0.5, beyond=None)
    assert turns.beyond(1) is None, "there was nobody"
