"""Long outputs: whole for every reader, and no more than their beginnings in TASKS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import trio

from continuum.db.outputs import PART
from continuum.db.protocol import Database
from continuum.model import ClaimedTask, Completion, EndedFilter, NewTask, PartialOutput, Status, Stream

LONG = "".join(f"line {number}: ü\n" for number in range(20_000))
"""More than four parts."""
TOLD = {Stream.OUTPUT: PART + 10, Stream.ERROR: 0}


async def claimed(database: Database, lease: float = 30) -> ClaimedTask:
    with trio.fail_after(10):
        while not (tasks := await database.claim("one", 1, lease=lease)):
            await trio.sleep((await database.promote()).next_in or 0.01)
    return tasks[0]


async def submitted(database: Database, lease: float = 30) -> ClaimedTask:
    await database.submit([NewTask(code="print()")])
    return await claimed(database, lease)


def ended(task: ClaimedTask, output: str, error_output: str = "", **values: Any) -> Completion:
    return replace(Completion(*task.lease, Status.COMPLETED, 0, output, error_output, None), **values)


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


async def read(database: Database, task: ClaimedTask) -> tuple[str | None, str | None]:
    (record,) = await database.fetch([task.id])
    return record.output, record.error_output


async def test_an_output_of_any_length_is_read_as_it_was_written(database: Database) -> None:
    sizes = (0, 1, PART, PART + 1, 2 * PART, 2 * PART + 1)
    texts = {(await submitted(database)).lease: (LONG[:size], LONG[len(LONG) - size :]) for size in sizes}
    batch = [Completion(*lease, Status.COMPLETED, 0, *both, None) for lease, both in texts.items()]
    assert await database.complete("one", batch) == set(texts)
    assert await database.complete("one", batch) == set(texts), "it stands already"
    records = await database.fetch([lease.task_id for lease in texts])
    assert [(record.output, record.error_output) for record in records] == list(texts.values())


async def test_sql_finds_the_beginning_in_tasks_and_the_whole_in_a_view(database: Database, sql_url: str) -> None:
    task, other = await submitted(database), await submitted(database)
    await database.complete("one", [ended(task, LONG, LONG[: PART + 5]), ended(other, "short")])
    found = rows(
        sql_url, "SELECT output, output_parts, length(error_output), error_output_parts FROM tasks ORDER BY id"
    )
    assert found == [(LONG[:PART], (len(LONG) - 1) // PART, PART, 1), ("short", 0, 0, 0)]
    assert rows(sql_url, f"SELECT output, error_output FROM whole_outputs WHERE id = {task.id}") == [
        (LONG, LONG[: PART + 5])
    ]
    assert rows(sql_url, "SELECT count(*) FROM task_outputs") == [((len(LONG) - 1) // PART + 1,)]
    assert len(rows(sql_url, "SELECT * FROM whole_outputs WHERE output = 'short'")) == 1


async def test_what_was_shown_of_a_growing_output_is_not_written_again(database: Database) -> None:
    task = await submitted(database)
    await database.progress("one", [PartialOutput(*task.lease, LONG[: PART + 10], "oh")])
    assert await read(database, task) == (LONG[: PART + 10], "oh")
    (running,) = await database.running(tail=5)
    assert LONG[: PART + 10].endswith(running.tail)
    told = TOLD | {Stream.ERROR: 2}
    await database.progress("one", [PartialOutput(*task.lease, LONG, "oh, no", told)])
    assert await read(database, task) == (LONG, "oh, no")
    (running,) = await database.running(tail=5)
    assert running.tail == LONG[-5:]
    await database.complete("one", [ended(task, f"{LONG}end", "oh, no")])
    assert await read(database, task) == (f"{LONG}end", "oh, no")


async def test_of_a_long_error_output_the_end_is_listed_where_there_is_no_other(database: Database) -> None:
    task = await submitted(database)
    await database.progress("one", [PartialOutput(*task.lease, "", LONG)])
    (running,) = await database.running(tail=9)
    assert running.tail == LONG[-9:]


async def test_an_output_that_ends_shorter_than_it_was_shown_is_as_it_ended(database: Database) -> None:
    for length in (10, PART + 10):
        task = await submitted(database)
        await database.progress("one", [PartialOutput(*task.lease, LONG, LONG)])
        await database.complete("one", [ended(task, LONG[:length])])
        assert await read(database, task) == (LONG[:length], "")


async def test_a_new_attempt_shows_nothing_of_the_one_before_and_leaves_nothing_of_it(
    database: Database, queue_url: str
) -> None:
    first = await submitted(database)
    await database.progress("one", [PartialOutput(*first.lease, LONG, "")])
    failed = ended(first, LONG, "why", status=Status.PENDING, exit_code=1, last_error="no", retry_in=0.01)
    assert await database.complete("one", [failed]) == {first.lease}
    assert await read(database, first) == (LONG, "why"), "until it is tried again"
    second = await claimed(database)
    assert await read(database, second) == (None, None)
    await database.progress("one", [PartialOutput(*second.lease, LONG[PART:], "")])
    assert await read(database, second) == (LONG[PART:], "")
    assert await database.complete("one", [ended(second, LONG[: PART + 1])]) == {second.lease}
    assert await read(database, second) == (LONG[: PART + 1], "")
    if queue_url:
        assert rows(queue_url, "SELECT DISTINCT attempt FROM task_outputs") == [(2,)]


async def test_who_lost_a_lease_adds_nothing(database: Database, queue_url: str) -> None:
    lost = await submitted(database, lease=0.01)
    await database.progress("one", [PartialOutput(*lost.lease, "mine", "")])
    with trio.fail_after(10):
        while not (await database.recover("janitor")).retried:
            await trio.sleep(0.01)
    for expected in (("mine", ""), (None, None)):
        await database.progress("one", [PartialOutput(*lost.lease, LONG, LONG)])
        assert await database.complete("one", [ended(lost, LONG, LONG)]) == frozenset()
        assert await read(database, lost) == expected
        if queue_url:
            assert rows(queue_url, "SELECT count(*) FROM task_outputs") == [(0,)]
        if expected[0]:
            await claimed(database)


async def test_parts_are_deleted_with_their_tasks_and_counted_without_being_read(
    database: Database, queue_url: str
) -> None:
    tasks = [await submitted(database) for _ in range(3)]
    await database.complete("one", [ended(task, LONG) for task in tasks])
    found = await database.ended(EndedFilter(Status.COMPLETED))
    assert all(len(LONG) <= task.size <= len(LONG) + 4 * PART for task in found)
    assert await database.delete_ended(found[:1]) == 1
    assert await database.purge(Status.COMPLETED, 0, limit=1) == 1
    if queue_url:
        assert rows(queue_url, "SELECT DISTINCT task_id FROM task_outputs") == [(found[2].id,)]
        rows(queue_url, f"DELETE FROM tasks WHERE id = {found[2].id} RETURNING id")
        assert rows(queue_url, "SELECT count(*) FROM task_outputs") == [(0,)]


async def test_a_long_output_in_tasks_as_earlier_versions_wrote_it_is_read_whole(
    database: Database, sql_url: str
) -> None:
    task = await submitted(database)
    rows(
        sql_url,
        f"UPDATE tasks SET status = 'completed', output = repeat('x', 300000) WHERE id = {task.id} RETURNING id",
    )
    assert await read(database, task) == ("x" * 300_000, None)
    assert rows(sql_url, "SELECT output FROM whole_outputs") == [("x" * 300_000,)]
