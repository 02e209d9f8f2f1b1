"""Schedules on the virtual clock: workers that come, go and stumble, and a database in memory."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.db.errors import InvalidSchedule, NotPermitted, OutcomeUnknown
from continuum.db.memory import EPOCH, MemoryDatabase
from continuum.model import NewTask, Status, Wakeup
from continuum.nursery.schedules import ScheduleFiring
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState
from continuum.schedules import LOOK_AGAIN, Looked, Move, Moved, NewSchedule
from continuum.telemetry import Telemetry
from tests.support.harness import settings as worker_settings
from tests.support.harness import worker

TASK = NewTask(code="print()")
MINUTELY = NewSchedule("minutely", "* * * * *", TASK)


@dataclass
class Stumbling(MemoryDatabase):
    """Does what is next in `plan` instead of answering, at each call of a worker's two verbs: `lose` the answer of what it did,
    `fail` before it did anything."""

    plan: list[str] = field(default_factory=list)
    moves: int = 0

    async def look_at_schedules(self, limit: int = 100) -> Looked:
        return await self._stumble(lambda: MemoryDatabase.look_at_schedules(self, limit))  # type: ignore[no-any-return]

    async def move_schedules(self, moves: Sequence[Move]) -> list[Moved]:
        self.moves += 1
        return await self._stumble(lambda: MemoryDatabase.move_schedules(self, moves))  # type: ignore[no-any-return]

    async def _stumble(self, call: Any) -> Any:
        step = self.plan.pop(0) if self.plan else "answer"
        if step == "fail":
            raise OutcomeUnknown("nothing was done")
        answer = await call()
        if step == "lose":
            raise OutcomeUnknown("it was done")
        return answer


def firing(database: MemoryDatabase, **values: object) -> ScheduleFiring:
    state = WorkerState(id="worker", slots=1)
    return ScheduleFiring(database, state, Telemetry(), worker_settings(**values), Signal(), Signal())


@asynccontextmanager
async def firers(database: MemoryDatabase, count: int = 1) -> AsyncIterator[list[ScheduleFiring]]:
    """So many workers' services, which nobody tells of changes."""
    services = [firing(database, polling_interval=5.0) for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for service in services:
            nursery.start_soon(service.run)
        yield services
        nursery.cancel_scope.cancel()


def fired(database: MemoryDatabase, name: str = "minutely") -> list[float]:
    """The due times of its tasks, in seconds since the test's time began."""
    return sorted(
        (task.due_at - EPOCH).total_seconds()
        for task in database.tasks.values()
        if task.schedule == name and task.due_at is not None
    )


async def next_at(database: MemoryDatabase, name: str = "minutely") -> dt.datetime | None:
    return database.schedule_rows[name].next_at


@pytest.mark.parametrize("workers", [1, 3])
async def test_each_due_time_makes_one_task_however_many_workers_there_are(
    workers: int, autojump_clock: MockClock
) -> None:
    database = MemoryDatabase()
    await database.put_schedule(replace(MINUTELY, task=replace(TASK, payload='{"a": 1}', tenant="acme", priority=3)))
    async with firers(database, workers):
        await trio.sleep(600.5)
    assert fired(database) == [60.0 * number for number in range(1, 11)]
    task = database.tasks[1]
    assert (task.name, task.tenant, task.priority) == ("minutely", "acme", 3)
    assert json.loads(task.payload or "") == {"a": 1, "schedule": "minutely", "due_at": "2026-01-01T00:01:00Z"}
    row = database.schedule_rows["minutely"]
    assert (row.fired, row.missed, row.skipped, row.last_task_id) == (10, 0, 0, 10)
    assert (row.last_due, row.due_at) == (EPOCH + dt.timedelta(minutes=10), EPOCH + dt.timedelta(minutes=11))


async def test_a_schedule_is_fired_within_the_second_by_a_worker_that_slept_until_then(
    autojump_clock: MockClock,
) -> None:
    database = MemoryDatabase()
    await database.put_schedule(replace(MINUTELY, cron="*/2 * * * * *"))
    async with firers(database):
        await trio.sleep(20.01)
    assert fired(database) == [2.0 * number for number in range(1, 11)]
    late = [(task.created_at - task.due_at).total_seconds() for task in database.tasks.values() if task.due_at]
    assert max(late) < 0.01


@pytest.mark.parametrize(("catch_up", "times", "missed"), [
    ("one", [60.0, 600.0, 660.0], 8), ("all", [60.0 * number for number in range(1, 12)], 0),
])  # fmt: skip
async def test_what_was_due_while_the_database_was_away_is_caught_up_as_it_should_be(
    catch_up: str, times: list[float], missed: int, autojump_clock: MockClock
) -> None:
    database = MemoryDatabase()
    await database.put_schedule(replace(MINUTELY, catch_up=catch_up))
    async with firers(database, 2):
        await trio.sleep(90)
        database.unavailable = True
        await trio.sleep(520)
        database.unavailable = False
        await trio.sleep(70)
    assert fired(database) == times
    assert database.schedule_rows["minutely"].missed == missed


async def test_none_leaves_out_what_is_too_late(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    await database.put_schedule(replace(MINUTELY, catch_up="none", cron="*/10 * * * *"))
    async with firers(database):
        await trio.sleep(1)
        database.unavailable = True
        await trio.sleep(700)
        database.unavailable = False
        await trio.sleep(600)
    assert fired(database) == [1200.0]
    assert database.schedule_rows["minutely"].missed == 1


async def test_a_due_time_is_skipped_while_the_task_before_is_open(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    await database.put_schedule(replace(MINUTELY, overlap="skip"))
    async with firers(database, 2):
        await trio.sleep(150)
        await database.cancel(1)
        await trio.sleep(60)
    assert fired(database) == [60.0, 180.0]
    assert database.schedule_rows["minutely"].skipped == 1
    assert database.schedule_rows["minutely"].last_task_id == 2


async def test_a_paused_schedule_makes_nothing_and_leaves_out_what_was_due_meanwhile(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    await database.put_schedule(replace(MINUTELY, catch_up="all"))
    async with firers(database) as (service,):
        await trio.sleep(61)
        assert await database.pause_schedule("minutely")
        await trio.sleep(300)
        assert await database.pause_schedule("minutely", False)
        service.changed.notify()
        await trio.sleep(60)
    assert fired(database) == [60.0, 420.0]
    assert not await database.pause_schedule("another")


async def test_replacing_a_schedule_with_the_same_times_changes_nothing_about_when_it_is_due(
    autojump_clock: MockClock,
) -> None:
    database = MemoryDatabase()
    await database.put_schedule(replace(MINUTELY, cron="*/10 * * * *"))
    async with firers(database) as (service,):
        await trio.sleep(1)
        known = database.schedule_rows["minutely"]
        assert await next_at(database) is not None
        await database.put_schedule(
            replace(MINUTELY, cron="*/10 * * * *", task=replace(TASK, priority=9)), replace=True
        )
        assert await next_at(database) == known.next_at
        assert database.schedule_rows["minutely"].priority == 9
        await database.put_schedule(MINUTELY, replace=True)
        assert await next_at(database) is None
        service.changed.notify()
        await trio.sleep(60)
    assert fired(database) == [60.0]


async def test_a_row_that_cannot_be_read_is_told_once_and_fired_once_somebody_mends_it(
    autojump_clock: MockClock,
) -> None:
    database = MemoryDatabase()
    await database.put_schedule(MINUTELY)
    database.schedule_rows["minutely"] = replace(database.schedule_rows["minutely"], cron="61 * * * *")
    with structlog.testing.capture_logs() as logs:
        async with firers(database):
            await trio.sleep(10 * LOOK_AGAIN.total_seconds())
            row = database.schedule_rows["minutely"]
            assert (row.last_error or "").startswith("cron: ")
            database.schedule_rows["minutely"] = replace(row, cron="* * * * *")
            await trio.sleep(2 * LOOK_AGAIN.total_seconds() + 60)
    assert database.schedule_rows["minutely"].last_error is None
    assert [line["schedule"] for line in logs if line["event"] == "a schedule cannot be fired"] == ["minutely"]
    assert fired(database)


async def test_a_task_that_the_database_refuses_holds_up_no_other_schedule(autojump_clock: MockClock) -> None:
    class Refusing(MemoryDatabase):
        async def move_schedules(self, moves: Sequence[Move]) -> list[Moved]:
            if any(move.fire and move.schedule.name == "bad" for move in moves):
                raise InvalidSchedule("the database refused it: no")
            return await super().move_schedules(moves)

    database = Refusing()
    await database.put_schedule(MINUTELY)
    await database.put_schedule(replace(MINUTELY, name="bad"))
    async with firers(database):
        await trio.sleep(181)
    assert fired(database) == [60.0, 120.0, 180.0]
    row = database.schedule_rows["bad"]
    assert row.last_error == "the database refused it: no"
    assert row.due_at == EPOCH + dt.timedelta(minutes=1)


async def test_a_worker_that_may_not_use_the_table_goes_on_without(autojump_clock: MockClock) -> None:
    class Forbidden(MemoryDatabase):
        async def look_at_schedules(self, limit: int = 100) -> Looked:
            raise NotPermitted("no")

    with structlog.testing.capture_logs() as logs:
        async with firers(Forbidden()):
            await trio.sleep(90)
    assert [line["event"] for line in logs] == ["this worker fires no schedules"] * 2


async def test_very_many_schedules_are_moved_in_batches(autojump_clock: MockClock) -> None:
    database = Stumbling()
    for number in range(250):
        await database.put_schedule(replace(MINUTELY, name=f"s{number}", cron="0 * * * *"))
    async with firers(database):
        await trio.sleep(600)
        assert database.moves == 3  # and none for an hour
        await trio.sleep(3000.5)
    assert database.moves == 6
    assert all(row.fired == 1 for row in database.schedule_rows.values())


STEPS = st.lists(st.sampled_from(["answer", "lose", "fail"]), max_size=40)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, kills=st.lists(st.floats(0.5, 200.0), max_size=6), catch_up=st.sampled_from(["one", "all"]))
def test_lost_answers_and_killed_workers_never_make_a_second_task(
    steps: list[str], kills: list[float], catch_up: str
) -> None:
    """Workers end at any moment and others begin; each due time has one task at most, and with `all`, one."""

    async def main() -> None:
        database = Stumbling(plan=list(steps))
        await MemoryDatabase.put_schedule(database, replace(MINUTELY, catch_up=catch_up, cron="*/20 * * * * *"))
        row = database.schedule_rows["minutely"]
        due = EPOCH + dt.timedelta(seconds=trio.current_time())
        database.schedule_rows["minutely"] = replace(row, next_at=due, due_at=due)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(firing(database, polling_interval=5.0).run)
            for pause in kills:
                with trio.move_on_after(pause):
                    await firing(database, polling_interval=5.0).run()
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        times = [task.due_at for task in database.tasks.values()]
        assert len(times) == len(set(times))
        row = database.schedule_rows["minutely"]
        assert row.fired == len(times)
        if catch_up == "all":
            assert row.due_at is not None
            assert len(times) == (row.due_at - due).total_seconds() / 20
        else:
            assert len(times) + row.missed == ((row.due_at or due) - due).total_seconds() / 20

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_whole_worker_runs_what_its_schedule_makes_and_hears_of_changes(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worker(database, polling_interval=3600.0))
        await trio.sleep(10)
        await database.put_schedule(replace(MINUTELY, task=replace(TASK, code="hello")))
        await trio.sleep(120)
    assert fired(database) == [60.0, 120.0]
    assert {task.status for task in database.tasks.values()} == {Status.COMPLETED}


@pytest.mark.parametrize(("values", "field"), [
    ({"name": "a b"}, "name"), ({"name": ""}, "name"), ({"name": "x" * 101}, "name"), ({"cron": "x"}, "cron"),
    ({"time_zone": "Berlin"}, "time_zone"), ({"catch_up": "some"}, "catch_up"), ({"overlap": "queue"}, "overlap"),
    ({"jitter": -1}, "jitter"), ({"jitter": 3601}, "jitter"), ({"jitter": float("nan")}, "jitter"),
    ({"task": replace(TASK, payload="[1]")}, "payload"), ({"task": replace(TASK, payload="{")}, "payload"),
    ({"task": replace(TASK, idempotency_key="k")}, "idempotency_key"), ({"task": replace(TASK, run_at=EPOCH)}, "run_at"),
    ({"task": replace(TASK, priority=2**40)}, "priority"), ({"task": NewTask()}, "give code"),
])  # fmt: skip
async def test_what_is_wrong_with_a_schedule_is_told_by_its_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSchedule) as refused:
        await MemoryDatabase().put_schedule(replace(MINUTELY, **values))
    assert str(refused.value).startswith(field)


async def test_a_change_of_schedules_wakes_the_service(autojump_clock: MockClock) -> None:
    woken: list[Wakeup] = []

    class Listener:
        worker_id, claimed, running, saturated = "l", 0, 0, False

        def wake(self, wakeup: Wakeup) -> None:
            woken.append(wakeup)

    database = MemoryDatabase()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.listen, Listener())
        await trio.sleep(1)
        woken.clear()
        await database.put_schedule(MINUTELY)
        nursery.cancel_scope.cancel()
    assert woken == [Wakeup.SCHEDULES]
