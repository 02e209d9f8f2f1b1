"""Schedules on each kind of database: what many workers do to them at once, what a foreign hand writes, what a look costs."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import replace

import psycopg
import pytest
import trio

from continuum.db.errors import InvalidSchedule
from continuum.db.memory import MemoryDatabase
from continuum.db.protocol import Database
from continuum.model import NewTask, TaskFilter, Wakeup
from continuum.nursery.schedules import ScheduleFiring
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState
from continuum.retry import RetryPolicy
from continuum.schedules import Move, NewSchedule, Waiting, plan
from continuum.telemetry import Telemetry
from tests.db.conftest import open_url
from tests.support.harness import settings
from tests.support.listener import listening

SECONDLY = NewSchedule(
    "nightly",
    "* * * * * *",
    NewTask(
        code="print('hello')",
        payload='{"a": [1, "ä"]}',
        tenant="acme",
        priority=2,
        timeout=1.5,
        max_attempts=2,
        retry=RetryPolicy(max_attempts=5),
        worker_tags=("gpu",),
    ),
    time_zone="Europe/Berlin",
    catch_up="all",
    jitter=0.25,
)
HOUR = dt.timedelta(hours=1)
EVERY = dt.timedelta(seconds=10)


def firing(database: Database) -> ScheduleFiring:
    return ScheduleFiring(database, WorkerState(id="w", slots=1), Telemetry(), settings(), Signal(), Signal())


async def place(database: Database, *names: str) -> list[Waiting]:
    """Work out when these are due, and return them as somebody sees them who looks at them when they are."""
    looked = await database.look_at_schedules()
    await database.move_schedules([plan(each, looked.now) for each in looked.waiting if each.next_at is None])
    records = [await database.fetch_schedule(name) for name in names]
    return [
        Waiting(r.name, r.cron, r.time_zone, r.catch_up, r.jitter, r.next_at, r.due_at, r.last_due, r.last_error)
        for r in records
        if r is not None
    ]


async def set_back(database: Database, name: str, by: dt.timedelta | dt.datetime) -> Waiting:
    """Have a schedule be due since a while ago, at whole seconds, or since then."""
    (seen,) = await place(database, name)
    now = (await database.look_at_schedules()).now
    due = by if isinstance(by, dt.datetime) else (now - by).replace(microsecond=0)
    assert await database.move_schedules([Move(seen, None, due, due)])
    return replace(seen, due_at=due, next_at=due)


async def tasks_of(database: Database) -> list[tuple[str, dt.datetime]]:
    found: list[tuple[str, dt.datetime]] = []
    for record in await database.fetch([task.id for task in await database.search(TaskFilter(limit=1000))]):
        assert record.schedule is not None
        assert record.due_at is not None
        assert record.max_attempts == 5
        assert json.loads(record.payload or "")["due_at"] == f"{record.due_at:%Y-%m-%dT%H:%M:%SZ}"
        found.append((record.schedule, record.due_at))
    return found


async def test_a_schedule_is_stored_read_replaced_and_removed(database: Database) -> None:
    assert await database.put_schedule(SECONDLY)
    assert not await database.put_schedule(replace(SECONDLY, cron="0 0 * * *"))
    record = await database.fetch_schedule("nightly")
    assert record is not None
    assert (record.cron, record.time_zone, record.catch_up, record.overlap) == (
        "* * * * * *",
        "Europe/Berlin",
        "all",
        "allow",
    )
    assert (record.jitter, record.paused, record.task_name, record.tenant) == (0.25, False, "", "acme")
    assert (record.priority, record.timeout, record.max_attempts, record.fired) == (2, 1.5, 2, 0)
    assert json.loads(record.payload or "") == {"a": [1, "ä"]}
    assert (record.next_at, record.due_at, record.last_error) == (None, None, None)
    code = await database.fetch_code(record.code_id)
    assert code is not None
    assert code.code == "print('hello')"

    await place(database)
    placed = await database.fetch_schedule("nightly")
    assert placed is not None
    assert placed.next_at is not None
    assert await database.put_schedule(replace(SECONDLY, overlap="skip"), replace=True)
    kept = await database.fetch_schedule("nightly")
    assert kept is not None
    assert (kept.overlap, kept.next_at) == ("skip", placed.next_at)
    assert await database.put_schedule(replace(SECONDLY, cron="0 0 * * *"), replace=True)
    changed = await database.fetch_schedule("nightly")
    assert changed is not None
    assert changed.next_at is None

    await database.put_schedule(replace(SECONDLY, name="another"))
    assert [each.name for each in await database.schedules()] == ["another", "nightly"]
    assert [each.name for each in await database.schedules(1)] == ["another"]
    assert [each.name for each in await database.schedules(after="another")] == ["nightly"]
    assert await database.remove_schedule("nightly")
    assert not await database.remove_schedule("nightly")
    assert await database.fetch_schedule("nightly") is None
    assert not await database.pause_schedule("nightly")


async def test_a_schedule_whose_code_does_not_exist_is_refused(database: Database) -> None:
    nowhere = NewTask(code_id="6f1d2a9c-0a52-5d7e-9a53-0f3d51c0de00")
    with pytest.raises(InvalidSchedule, match="code_id"):
        await database.put_schedule(replace(SECONDLY, task=nowhere))


async def test_a_move_is_made_once_and_only_from_where_it_was_seen(database: Database) -> None:
    await database.put_schedule(replace(SECONDLY, jitter=0))
    seen = await set_back(database, "nightly", HOUR)
    looked = await database.look_at_schedules()
    assert looked.waiting == [replace(seen, last_due=None)]
    assert looked.next_in is None
    move = plan(seen, looked.now)
    assert move.fire == seen.due_at
    for changed in ({"cron": "0 0 * * *"}, {"due_at": None}, {"next_at": None}, {"time_zone": "UTC"}, {"jitter": 1.0}):
        assert await database.move_schedules([replace(move, schedule=replace(seen, **changed))]) == []
    (moved,) = await database.move_schedules([move])
    assert moved.task_id is not None
    assert await database.move_schedules([move]) == []  # an answer that was lost, or a second worker
    again = await set_back(database, "nightly", seen.due_at or looked.now)  # by hand: it has its task
    (repeated,) = await database.move_schedules([replace(move, schedule=again)])
    assert (repeated.task_id, repeated.skipped) == (None, False)
    record = await database.fetch_schedule("nightly")
    assert record is not None
    assert (record.fired, record.last_task_id, record.last_due) == (1, moved.task_id, move.fire)
    assert await tasks_of(database) == [("nightly", move.fire)]


async def test_nothing_is_fired_before_it_is_due_on_the_databases_clock_whatever_a_worker_believes(
    database: Database,
) -> None:
    await database.put_schedule(replace(SECONDLY, cron="0 0 1 1 *"))
    (seen,) = await place(database, "nightly")
    assert seen.next_at is not None
    early = plan(seen, seen.next_at + HOUR)  # somebody whose clock is months ahead
    assert early.fire == seen.due_at
    assert await database.move_schedules([early]) == []
    assert await tasks_of(database) == []


async def test_a_paused_schedule_is_not_seen_and_leaves_out_what_was_due_meanwhile(database: Database) -> None:
    await database.put_schedule(SECONDLY)
    seen = await set_back(database, "nightly", HOUR)
    assert await database.pause_schedule("nightly")
    assert (await database.look_at_schedules()).waiting == []
    assert await database.move_schedules([plan(seen, (seen.due_at or dt.datetime.now(dt.UTC)) + HOUR)]) == []
    assert await database.pause_schedule("nightly", False)
    (resumed,) = (await database.look_at_schedules()).waiting
    assert resumed.next_at is None
    assert plan(resumed, (await database.look_at_schedules()).now).fire is None


async def test_a_due_time_is_skipped_while_the_task_before_is_open(database: Database) -> None:
    await database.put_schedule(replace(SECONDLY, overlap="skip"))
    await set_back(database, "nightly", dt.timedelta(seconds=3))
    service = firing(database)
    await service.fire_due()
    record = await database.fetch_schedule("nightly")
    assert record is not None
    assert record.fired == 1
    assert record.skipped >= 2
    assert record.last_task_id is not None
    await database.cancel(record.last_task_id)
    with trio.fail_after(10):
        while (record := await database.fetch_schedule("nightly")) is None or record.fired < 2:
            await trio.sleep(await service.fire_due())


@pytest.mark.parametrize("schedules", [1, 7])
async def test_of_many_who_fire_at_once_each_due_time_gets_one_task(queue_url: str, schedules: int) -> None:
    """Eight workers, each with connections of its own, fire forty due times that passed, and what comes due meanwhile."""
    shared = MemoryDatabase()
    names = [f"s{number}" for number in range(schedules)]
    behind = EVERY * (40 // schedules)
    started: dict[str, dt.datetime] = {}

    async def fire(ready: Iterable[object]) -> None:
        if not queue_url:
            await firing(shared).fire_due()
            return
        async with open_url(queue_url) as database:
            await firing(database).fire_due()

    async with open_url(queue_url or "postgresql://nowhere") as opened:
        database = opened if queue_url else shared
        await database.migrate()
        for name in names:
            await database.put_schedule(replace(SECONDLY, name=name, jitter=0, cron="*/10 * * * * *"))
        for name in names:
            now = (await database.look_at_schedules()).now
            whole = now.replace(second=now.second // 10 * 10, microsecond=0)
            due = (await set_back(database, name, whole - behind)).due_at
            assert due is not None
            started[name] = due
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(fire, ())
        await database.pause_schedule(names[0])
        tasks = await tasks_of(database)
        assert len(tasks) == len(set(tasks))
        for name in names:
            record = await database.fetch_schedule(name)
            assert record is not None
            assert record.due_at is not None
            times = (record.due_at - started[name]) // EVERY
            assert times >= behind // EVERY
            expected = [started[name] + number * EVERY for number in range(times)]
            assert sorted(due for each, due in tasks if each == name) == expected
            assert record.fired == times


SERVERS = pytest.mark.parametrize("queue_url", ["postgres", "cockroach"], indirect=True)


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


@SERVERS
async def test_what_a_foreign_hand_writes_is_fired_or_told(queue_url: str) -> None:
    async with open_url(queue_url) as database:
        await database.migrate()
        code = await database.store_code("print()")
        columns = {
            "plain": {},
            "nowhere": {"time_zone": "'Mars/Olympus'"},
            "wrong": {"cron": "'61 * * * *'"},
            "never": {"next_at": "'infinity'"},
            "ever": {"next_at": "'-infinity'", "due_at": "'infinity'"},
            "odd": {"next_at": "now()", "due_at": "'infinity'", "last_due": "'-infinity'"},
            "refused": {
                "next_at": "now() - interval '1 s'",
                "due_at": "now() - interval '1 s'",
                "task_name": "'refused'",
            },
        }
        execute(queue_url, "ALTER TABLE tasks ADD CONSTRAINT picky CHECK (name <> 'refused')")
        for name, values in columns.items():
            given = {"name": f"'{name}'", "cron": "'* * * * * *'", "code": f"'{code}'"} | values
            execute(queue_url, f"INSERT INTO schedules ({', '.join(given)}) VALUES ({', '.join(given.values())})")
        service = firing(database)
        with trio.fail_after(20):
            while (record := await database.fetch_schedule("plain")) is None or record.fired < 2:
                await trio.sleep(min(0.2, await service.fire_due()))
        records = {record.name: record for record in await database.schedules()}
        assert (records["nowhere"].last_error or "").startswith("time_zone: 'Mars/Olympus'")
        assert (records["wrong"].last_error or "").startswith("cron: '61 * * * *'")
        assert (records["refused"].last_error or "").startswith("the database refused it: ")
        assert records["refused"].due_at is not None
        assert records["never"].fired == records["ever"].fired == 0
        assert records["odd"].fired >= 1
        for name in ("a b", "", "x" * 101, "-x"):
            with pytest.raises(psycopg.errors.CheckViolation):
                execute(queue_url, f"INSERT INTO schedules (name, cron, code) VALUES ('{name}', '@daily', '{code}')")
        with pytest.raises(psycopg.errors.CheckViolation):
            execute(
                queue_url, f"INSERT INTO schedules (name, cron, code, payload) VALUES ('p', '@daily', '{code}', '[]')"
            )


async def test_a_worker_is_told_of_a_schedule_that_somebody_inserted(empty_postgres: str) -> None:
    async with open_url(empty_postgres) as database:
        await database.migrate()
        code = await database.store_code("print()")
        async with listening(database) as listener:
            listener.forget()
            execute(empty_postgres, f"INSERT INTO schedules (name, cron, code) VALUES ('plain', '@daily', '{code}')")
            await listener.woken(of=Wakeup.SCHEDULES)
            listener.forget()
            await place(database)
            execute(empty_postgres, "UPDATE schedules SET cron = '@hourly', next_at = NULL")
            await listener.woken(of=Wakeup.SCHEDULES)


@SERVERS
async def test_a_look_reads_no_more_than_what_is_due_among_ten_thousand(queue_url: str) -> None:
    """Schedules of which two are due: the plan reads the index for those, and the first of the others."""
    from continuum.db import statements_schedules as statements

    async with open_url(queue_url) as database:
        await database.migrate()
        code = await database.store_code("print()")
        due = "now() + (CASE WHEN n < 2 THEN -1 ELSE n END) * interval '1 minute'"
        execute(
            queue_url,
            "INSERT INTO schedules (name, cron, code, due_at, next_at) "
            f"SELECT 's' || n, '@daily', '{code}', {due}, {due} FROM generate_series(0, 9999) AS n",
        )
        execute(
            queue_url, "ANALYZE schedules" if "cockroach" not in queue_url else "CREATE STATISTICS s FROM schedules"
        )
        looked = await database.look_at_schedules()
        assert [each.name for each in looked.waiting] == ["s0", "s1"]
        assert looked.next_in is not None
        with psycopg.connect(queue_url, autocommit=True) as connection:
            is_postgres = not connection.info.parameter_status("crdb_version")
            for statement in (statements.LOOK, statements.NEXT):
                explain = "EXPLAIN " if is_postgres else "EXPLAIN (VERBOSE) "
                lines = [row[0] for row in connection.execute((explain + statement).encode(), {"limit": 100})]
                text = "\n".join(lines)
                assert "schedules_next" in text, text
                assert "Seq Scan" not in text, text
                assert "FULL SCAN" not in text, text
