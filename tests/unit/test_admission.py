"""The admission service in a whole worker, and the rules of admission under whatever order of events."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.db.memory import MemoryDatabase
from continuum.model import ClaimedTask, Completion, Limit, NewTask, Scope, Status
from continuum.nursery.admission import FEW_WAIT
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import worker

POLLING = 5.0


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


async def test_a_sequence_goes_on_without_a_pause(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, polling_interval=POLLING) as w:
        (first,) = await w.submit("hello")
        await w.wait_for(first)
        began = trio.current_time()
        ids = await w.submit(*["sleep 1"] * 5, sequence_key="a")
        records = await w.wait_for(*ids)
    assert w.backend.most_running == 1
    assert [record.started for record in records] == sorted(record.started for record in records if record.started)
    assert trio.current_time() - began < 5 + 0.2, "one directly after another"


async def test_two_workers_keep_a_limit_together(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    await database.set_limit(Limit(Scope.KEY, "a", max_running=3))
    backend = FakeBackend()
    async with worker(database, backend) as one, worker(database, backend):
        ids = await one.submit(*["sleep 1"] * 12, concurrency_key="a")
        await one.wait_for(*ids)
    assert backend.most_running == 3


async def test_what_a_dead_worker_or_a_client_ended_is_found_by_the_clock(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, polling_interval=POLLING) as w:
        first, second = await w.submit("sleep 1000", "hello", sequence_key="a")
        await w.wait_for(first, status="processing")
        await database.cancel(first)
        await w.wait_for(second)
        third, fourth = await w.submit("sleep 1000", "hello", sequence_key="b", priority=1)
        await w.wait_for(third, status="processing")
        task = database.tasks[third]
        await database.complete(w.state.id, [Completion(third, task.attempt, Status.FAILED, 1, "", "", "no")])
        began = trio.current_time()
        await w.wait_for(fourth)
        assert trio.current_time() - began <= POLLING + 0.1


async def test_an_outage_between_an_end_and_its_admission_loses_nothing(
    autojump_clock: MockClock, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit_after = MemoryDatabase.admit_after

    async def breaks(self: MemoryDatabase, ended: Any) -> Any:
        if not broken:
            broken.append(True)
            self.unavailable = True
        return await admit_after(self, ended)

    broken: list[bool] = []
    monkeypatch.setattr(MemoryDatabase, "admit_after", breaks)
    async with worker(database) as w:
        first, second = await w.submit("hello", "hello", sequence_key="a")
        with trio.fail_after(60):
            while not broken:
                await trio.sleep(0.01)
        await trio.sleep(20)
        database.unavailable = False
        await w.wait_for(first, second, seconds=30)


async def test_after_an_outage_what_waits_is_looked_through_as_soon_as_ever(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, polling_interval=POLLING) as w:
        running, _ = await w.submit("sleep 1000", "hello", sequence_key="a")
        await w.wait_for(running, status="processing")
        database.unavailable = True
        await trio.sleep(60)
        database.unavailable = False
        await trio.sleep(POLLING)
        began = trio.current_time()
        (free,) = await w.submit("hello", sequence_key="b")
        await w.wait_for(free)
        assert trio.current_time() - began <= POLLING


async def test_a_slow_database_is_looked_through_more_seldom_but_not_for_ever(
    autojump_clock: MockClock, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    admit_page = MemoryDatabase.admit_page

    async def slow(self: MemoryDatabase, below: int | None = None) -> Any:
        looks.append(trio.current_time())
        await trio.sleep(3)
        return await admit_page(self, below)

    async with worker(database, polling_interval=POLLING) as w:
        running, _ = await w.submit("sleep 1000", "hello", sequence_key="a")
        await w.wait_for(running, status="processing")
        monkeypatch.setattr(MemoryDatabase, "admit_page", slow)
        await trio.sleep(200)
    pauses = [after - before for before, after in pairwise(looks)]
    assert POLLING < max(pauses) <= FEW_WAIT * POLLING + 3


KEYS = st.sampled_from([None, "a", "b"])
LIMITS = {"a": 1, "b": 2}
EVENTS = st.one_of(
    st.tuples(st.just("submit"), KEYS, KEYS, st.integers(0, 2)),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from([Status.COMPLETED, Status.FAILED, Status.PENDING])),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(1, 30)),
    st.tuples(st.just("sweep")),
)


@settings(max_examples=60, deadline=None)
@given(events=st.lists(EVENTS, max_size=60))
def test_order_and_limits_hold_after_every_event_and_everything_ends(events: list[tuple[Any, ...]]) -> None:
    trio.run(_play, events)


async def _play(events: list[tuple[Any, ...]]) -> None:
    database = MemoryDatabase()
    for name, most in LIMITS.items():
        await database.set_limit(Limit(Scope.KEY, name, max_running=most))
    held: list[ClaimedTask] = []
    for name, *values in [*events, *[("sweep",), ("claim", 9), ("end", 0, Status.COMPLETED)] * 3 * len(events)]:
        match name:
            case "submit":
                sequence, key, priority = values
                await database.submit(
                    [NewTask(code="pass", sequence_key=sequence, concurrency_key=key, priority=priority)]
                )
            case "claim":
                held += await database.claim("w", values[0], lease=1000)
            case "end" if held:
                task = held.pop(values[0] % len(held))
                await database.complete("w", [Completion(task.id, task.attempt, values[1], 0, "", "", None)])
                await database.admit_after([task.id])
            case "release" if held:
                await database.release("w", [held.pop(values[0] % len(held)).lease])
            case "cancel":
                await database.cancel(values[0])
            case "sweep":
                await database.admit_page()
        _check(database)
    assert all(task.finished_for_good for task in database.tasks.values()), "nothing is stuck"


def _check(database: MemoryDatabase) -> None:
    admitted = [task for task in database.tasks.values() if task.admitted and not task.finished_for_good]
    sequences = Counter(task.sequence_key for task in admitted if task.sequence_key)
    keys = Counter(task.concurrency_key for task in admitted if task.concurrency_key)
    assert all(count == 1 for count in sequences.values()), sequences
    assert all(count <= LIMITS[key] for key, count in keys.items()), keys
    for task in admitted:
        before = [other for other in database.tasks.values() if other.id < task.id and not other.finished_for_good]
        assert task.sequence_key is None or task.sequence_key not in {other.sequence_key for other in before}
