"""Limits on pending tasks: what a process that submits counts, and when, on the virtual clock."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping

import pytest
import trio
import trio.testing

from continuum.client import Client, QueueFull
from continuum.db.errors import OutcomeUnknown
from continuum.db.memory import MemoryDatabase
from continuum.db.room import EVERY_TENANT, QUEUE, Limits, Room
from continuum.model import Limit, NewTask, Scope

TASK = NewTask(code="pass")


class Queue:
    """Counts how often it is asked. took: seconds for a count."""

    def __init__(self, limits: Limits) -> None:
        self.limits = dict(limits)
        self.pending: Counter[str] = Counter()
        self.reads = self.counts = 0
        self.took = 0.0
        self.room = Room(self.read_limits, self.count)

    async def read_limits(self) -> Limits:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        return self.limits

    async def count(self) -> Mapping[str, int]:
        self.counts += 1
        seen = self.pending.copy()
        await trio.sleep(self.took)
        return seen

    async def submit(self, number: int = 1, tenant: str | None = None, takes: float = 0.0) -> None:
        async with self.room.taken_by([NewTask(code="pass", tenant=tenant)] * number):
            await trio.sleep(takes)
            self.pending[tenant or ""] += number

    async def refused(self, number: int = 1, tenant: str | None = None) -> QueueFull:
        with pytest.raises(QueueFull) as caught:
            await self.submit(number, tenant)
        return caught.value


async def test_without_limits_nothing_is_counted_and_limits_are_looked_for_once_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = Queue({})
    for _ in range(30):
        await queue.submit()
        await trio.sleep(0.1)
    assert queue.counts == 0
    assert queue.reads == 3
    queue.limits[QUEUE] = 30
    await trio.sleep(1)
    await queue.refused()


async def test_one_process_alone_never_goes_beyond_a_limit_and_counts_seldom(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = Queue({QUEUE: 100, EVERY_TENANT: 60, ("tenant", "b"): 5})

    async def submit(tenant: str) -> None:
        for _ in range(40):
            try:
                await queue.submit(1, tenant, takes=0.01)
            except QueueFull:
                await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for tenant in "aabbccc":
            nursery.start_soon(submit, tenant)
    assert queue.pending.total() == 100
    assert queue.pending["b"] == 5
    assert max(queue.pending.values()) <= 60
    assert queue.counts <= 8, "about ten a second while it is full, and one while it is not"


async def test_what_is_refused_says_whose_limit_it_is_and_when_to_try_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = Queue({("tenant", "acme"): 10, ("tenant", ""): 1, ("tenant", "closed"): 0})
    queue.pending["acme"] = 9
    full = await queue.refused(2, "acme")
    assert (
        str(full) == "9 tasks of tenant 'acme' are pending and LIMITS allows 10: no room for 2 more; try again in 1 s"
    )
    assert (full.tenant, full.limit, full.pending, full.refused, full.retry_after) == ("acme", 10, 9, 2, 1)
    assert str(pickle.loads(pickle.dumps(full))) == str(full)
    await queue.submit(1, "acme")
    assert "nor will there ever be; submit at most 10 together" in str(await queue.refused(11, "acme"))
    assert str(await queue.refused(1, "closed")).endswith("LIMITS allows 0: no room for 1 more; none is taken")
    await queue.submit(1)
    assert str(await queue.refused()).startswith("1 tasks without a tenant are pending")


async def test_where_there_is_no_room_it_is_looked_for_soon_and_seldomer_where_that_takes_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = Queue({QUEUE: 10})
    await queue.submit(10)
    await trio.sleep(0.2)
    await queue.refused()
    queue.pending[""] = 0
    await queue.refused()
    await trio.sleep(0.11)
    await queue.submit()
    queue.took, queue.pending[""] = 1.0, 10
    await trio.sleep(2)
    full = await queue.refused()
    assert full.retry_after == 20, "a count takes no more than a twentieth of the time"
    counts = queue.counts
    for _ in range(19):
        await trio.sleep(1)
        await queue.refused()
    assert queue.counts == counts
    queue.pending[""] = 0
    await trio.sleep(1.1)
    await queue.submit()


async def test_what_failed_leaves_its_places_and_what_may_have_happened_keeps_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = Queue({QUEUE: 10})
    for error in (ValueError, ValueError, OutcomeUnknown):
        with pytest.raises(error):
            async with queue.room.taken_by([TASK] * 6):
                raise error
    await queue.refused(6)
    await queue.submit(4)


async def test_a_client_waits_for_room_and_gives_up_in_time(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    await database.set_limit(Limit(Scope.QUEUE, "", max_pending=2))
    async with Client(database=database) as client:
        first, _ = await client.submit_many([TASK] * 2)
        began = trio.current_time()
        with pytest.raises(QueueFull):
            await client.submit("pass")
        assert 25 < trio.current_time() - began <= 30
        with pytest.raises(QueueFull, match="at most 2 together"):
            await client.submit_many([TASK] * 3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.submit, "pass")
            await trio.sleep(5)
            await client.cancel(first)
    assert len(database.tasks) == 3


async def test_who_waits_for_room_may_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    await database.set_limit(Limit(Scope.QUEUE, "", max_pending=1))
    async with Client(database=database) as client:
        await client.submit("pass")
        with trio.move_on_after(3) as scope:
            await client.run("pass")
        assert scope.cancelled_caught
    assert len(database.tasks) == 1
