"""Long polls on the virtual clock: what is answered when, and how often the database is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from quart.typing import TestClientProtocol as Client

from continuum.db.memory import MemoryDatabase
from continuum.following import LATENESS, LONGEST_PAUSE, PART_OF_THE_TIME, SHORTEST_PAUSE
from continuum.model import Completion, NewTask, Status
from continuum.nursery.state import WorkerState
from continuum.status import api_tasks
from continuum.status.app import create_app
from continuum.telemetry import Telemetry
from tests.support.harness import settings

BEARER = {"Authorization": "Bearer t"}


@dataclass
class Asked(MemoryDatabase):
    """Counts the looks at tasks that are waited for."""

    looks: list[int] = field(default_factory=list)
    slowness: float = 0.0

    async def still_open(self, task_ids: Sequence[int]) -> frozenset[int]:
        self.looks.append(len(task_ids))
        await trio.sleep(self.slowness)
        return await super().still_open(task_ids)

    async def end(self, task_id: int) -> None:
        (task,) = await self.claim("w", 1, lease=30)
        assert task.id == task_id
        await self.complete("w", [Completion(task.id, task.attempt, Status.COMPLETED, 0, "done\n", "", None)])


@dataclass
class Serving:
    client: Client
    ending: trio.Event
    answers: list[tuple[int, float]] = field(default_factory=list)

    async def wait(self, task_id: int, seconds: float = 30) -> int:
        """The status of the answer."""
        began = trio.current_time()
        answer = await self.client.get(f"/tasks/{task_id}/wait?seconds={seconds}", headers=BEARER)
        self.answers.append((answer.status_code, trio.current_time() - began))
        return answer.status_code


@asynccontextmanager
async def serving(database: MemoryDatabase) -> AsyncIterator[Serving]:
    ending = trio.Event()
    app = create_app(settings(api_token="t"), WorkerState(id="w", slots=1), database, Telemetry(), ending)
    async with trio.open_nursery() as nursery:
        for service in app.services:
            nursery.start_soon(service)
        yield Serving(app.test_client(), ending)
        nursery.cancel_scope.cancel()


async def test_an_end_is_seen_soon_after_it_happened(autojump_clock: trio.testing.MockClock) -> None:
    for ends_after in (0.02, 0.5, 20.0):
        database = Asked()
        (task_id,) = await database.submit([NewTask(code="x")])
        async with serving(database) as served, trio.open_nursery() as nursery:
            nursery.start_soon(served.wait, task_id)
            await trio.sleep(ends_after)
            await database.end(task_id)
        ((status, after),) = served.answers
        assert status == 200
        assert after - ends_after <= max(SHORTEST_PAUSE, min(LONGEST_PAUSE, 2 * LATENESS * ends_after)) + 0.001


async def test_a_task_that_has_ended_is_answered_at_once_and_one_that_has_not_with_204(
    autojump_clock: trio.testing.MockClock,
) -> None:
    database = Asked()
    ended, still_open = await database.submit([NewTask(code="x"), NewTask(code="x")])
    await database.end(ended)
    async with serving(database) as served:
        for seconds in (0, 30):
            assert await served.wait(ended, seconds) == 200
        assert await served.wait(still_open, 0) == 204
        assert await served.wait(still_open, 2.5) == 204
        assert await served.wait(99) == 404
    assert [round(after, 1) for _, after in served.answers] == [0, 0, 0, 2.5, 0]


async def test_a_thousand_waiters_cost_the_looks_of_one(autojump_clock: trio.testing.MockClock) -> None:
    async def looks(waiters: int, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr(api_tasks, "HELD", 1000)
        database = Asked()
        ids = await database.submit([NewTask(code="x")] * waiters)
        async with serving(database) as served, trio.open_nursery() as nursery:
            for task_id in ids:
                nursery.start_soon(served.wait, task_id)
            await trio.sleep(10)
            for task_id in ids:
                await database.end(task_id)
        assert {status for status, _ in served.answers} == {200}
        assert len(served.answers) == waiters
        assert max(after for _, after in served.answers) <= 10 + LONGEST_PAUSE + 0.01
        return len(database.looks)

    with pytest.MonkeyPatch.context() as monkeypatch:
        one = await looks(1, monkeypatch)
        assert await looks(1000, monkeypatch) <= one + 5


async def test_those_who_come_one_after_another_are_seen_soon_and_keep_the_database_not_busy(
    autojump_clock: trio.testing.MockClock,
) -> None:
    database = Asked(slowness=0.01)
    ids = await database.submit([NewTask(code="x")] * 200)
    for task_id in ids:
        await database.end(task_id)
    async with serving(database) as served, trio.open_nursery() as nursery:
        began = trio.current_time()
        for task_id in ids:
            nursery.start_soon(served.wait, task_id)
            await trio.sleep(0.01)
    assert max(after for _, after in served.answers) <= 0.01 + 0.01 / PART_OF_THE_TIME + 0.02
    assert len(database.looks) * 0.01 <= (trio.current_time() - began) * PART_OF_THE_TIME + 0.02


async def test_nobody_asks_while_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    database = Asked()
    (task_id,) = await database.submit([NewTask(code="x")])
    async with serving(database) as served:
        await served.wait(task_id, 1)
        await trio.sleep(1)
        asked = len(database.looks)
        await trio.sleep(3600)
        assert len(database.looks) == asked


async def test_a_client_that_leaves_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    database = Asked()
    (task_id,) = await database.submit([NewTask(code="x")])
    async with serving(database) as served:
        with trio.move_on_after(1):
            await served.wait(task_id)
        await trio.sleep(1)
        asked = len(database.looks)
        await trio.sleep(60)
        assert len(database.looks) == asked


async def test_an_outage_is_waited_out_but_told_who_comes_in_it(autojump_clock: trio.testing.MockClock) -> None:
    database = Asked()
    (task_id,) = await database.submit([NewTask(code="x")])
    async with serving(database) as served, trio.open_nursery() as nursery:
        nursery.start_soon(served.wait, task_id)
        await trio.sleep(1)
        database.unavailable = True
        await trio.sleep(1)
        assert await served.wait(task_id) == 503
        await trio.sleep(10)
        database.unavailable = False
        await database.end(task_id)
    assert [status for status, _ in served.answers] == [503, 200]


async def test_when_the_server_is_about_to_end_all_are_answered(autojump_clock: trio.testing.MockClock) -> None:
    database = Asked()
    ids = await database.submit([NewTask(code="x")] * 3)
    async with serving(database) as served, trio.open_nursery() as nursery:
        for task_id in ids:
            nursery.start_soon(served.wait, task_id)
        await trio.sleep(1)
        served.ending.set()
    assert [(status, round(after, 1)) for status, after in served.answers] == [(204, 1)] * 3


async def test_too_many_who_wait_are_turned_away(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_tasks, "HELD", 2)
    database = Asked()
    (task_id,) = await database.submit([NewTask(code="x")])
    async with serving(database) as served, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(served.wait, task_id, 1)
    assert sorted(status for status, _ in served.answers) == [204, 204, 429]
