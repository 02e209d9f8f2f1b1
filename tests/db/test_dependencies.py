"""Tasks that depend on others, on every database, with what other hands write, and with many who end and admit at once."""

from __future__ import annotations

import random

import psycopg
import pytest
import trio

from continuum.db.admission import PAGE
from continuum.db.database import SqlDatabase
from continuum.db.errors import InvalidTask
from continuum.db.outputs import PART
from continuum.db.protocol import Database
from continuum.dependencies import OUTPUTS
from continuum.model import ClaimedTask, Completion, Dependency, NewTask, Status, TaskRecord, Wakeup
from tests.support.listener import listening


def after(*ids: int, **values: object) -> NewTask:
    return NewTask(code="pass", depends_on=ids, **values)  # type: ignore[arg-type]


def ended(task: ClaimedTask, status: Status = Status.COMPLETED, output: str = "") -> Completion:
    return Completion(task.id, task.attempt, status, 0, output, "", None)


async def submitted(database: Database, *tasks: NewTask) -> list[int]:
    return await database.submit(tasks or [NewTask(code="pass")])


async def finish(database: Database, *ids: int, status: Status = Status.COMPLETED, output: str = "") -> None:
    """Bring these to an end, which nobody follows."""
    claimed = await database.claim("w", 1000, lease=30)
    assert {each.id for each in claimed} >= set(ids)
    await database.complete("w", [ended(each, status, output) for each in claimed if each.id in ids])
    await database.release("w", [each.lease for each in claimed if each.id not in ids])


async def claimable(database: Database) -> list[int]:
    claimed = await database.claim("w", 1000, lease=30)
    await database.release("w", [each.lease for each in claimed])
    return [each.id for each in claimed]


async def record_of(database: Database, task_id: int) -> TaskRecord:
    (record,) = await database.fetch([task_id])
    return record


@pytest.mark.parametrize("lost", [False, True], ids=["followed", "found by the look"])
async def test_a_task_is_admitted_once_all_have_completed_or_any_one(database: Database, lost: bool) -> None:
    async def end(*ids: int, status: Status = Status.COMPLETED) -> int:
        await finish(database, *ids, status=status)
        found = await (database.admit_page() if lost else database.admit_after(ids))
        return found.admitted

    first, second, third = await submitted(database, *[NewTask(code="pass")] * 3)
    both, either, whatever = await submitted(
        database,
        after(first, second),
        after(first, second, depends_any=True),
        after(second, third, depends_ended=True),
    )
    assert await claimable(database) == [first, second, third]
    assert (await database.admit_page()).admitted == 0
    assert await end(first) == 1
    assert await claimable(database) == [second, third, either]
    assert await end(second) == 1
    assert both in await claimable(database)
    assert await end(third, status=Status.FAILED) == 1
    assert await claimable(database) == [both, either, whatever]
    record = await record_of(database, either)
    assert (record.depends_on, record.depends_any, record.depends_ended) == ((first, second), True, False)


@pytest.mark.parametrize("lost", [False, True], ids=["followed", "found by the look"])
async def test_what_waits_in_vain_is_cancelled_with_the_reason_and_so_is_what_waits_for_that(
    database: Database, lost: bool
) -> None:
    first, second = await submitted(database, *[NewTask(code="pass")] * 2)
    both, either, neither = await submitted(
        database,
        after(first, second, webhook="https://example.com/"),
        after(first, second, depends_any=True),
        after(first, depends_any=True),
    )
    (behind,) = await submitted(database, after(both))
    await finish(database, first, status=Status.FAILED)
    found = await (database.admit_page() if lost else database.admit_after([first]))
    assert set(found.cancelled) == {both, neither}
    for task_id in (both, neither):
        record = await record_of(database, task_id)
        assert record.status == Status.CANCELLED
        assert record.finished is not None
        assert record.last_error == f"Not run: task {first}, which it depends on, failed"
    assert [each.task_id for each in await database.claim_webhooks(5, lease=30)] == [both]
    assert (await database.admit_after(found.cancelled)).cancelled == (behind,)
    assert (await record_of(database, behind)).last_error == f"Not run: task {both}, which it depends on, was cancelled"
    assert (await record_of(database, either)).status == Status.PENDING
    assert (await database.statistics(latest=True)).cancelled == 3


async def test_dependencies_come_before_keys(database: Database) -> None:
    (first,) = await submitted(database)
    waits, behind, free = await submitted(
        database,
        after(first, sequence_key="a", concurrency_key="b"),
        NewTask(code="pass", sequence_key="a"),
        NewTask(code="pass", concurrency_key="b"),
    )
    assert (await database.admit_page()).admitted == 1
    assert await claimable(database) == [first, free]
    await finish(database, first)
    assert (await database.admit_after([first])).admitted == 0, "the key is taken"
    await finish(database, free)
    assert (await database.admit_after([free])).admitted == 1
    await finish(database, waits)
    assert (await database.admit_after([waits])).admitted == 1
    assert await claimable(database) == [behind]


async def test_a_task_is_told_of_those_that_it_depends_on_in_their_order_within_bounds(database: Database) -> None:
    tasks = [NewTask(code="pass", name=name) for name in ("one", "two", "three", "four")]
    first, second, third, fourth = await submitted(database, *tasks)
    (last,) = await submitted(database, after(fourth, second, first, third, depends_any=True))
    await finish(database, first, output="x" * (OUTPUTS - PART))
    await finish(database, second, output="two")
    await finish(database, third, output="3" * (PART - 2))
    await database.admit_after([first])
    assert (await database.dependencies(last)).dependencies == [
        Dependency(fourth, "four", "pending"),
        Dependency(second, "two", "completed", 0, "two"),
        Dependency(first, "one", "completed", 0, "x" * (OUTPUTS - PART)),
        Dependency(third, "three", "completed", 0, None, left_out=True),
    ]
    claimed = await database.claim("w", 10, lease=30)
    assert {task.id: task.depends for task in claimed} == {fourth: False, last: True}


async def test_only_tasks_of_the_tenant_that_are_there_can_be_depended_on(database: Database) -> None:
    (first,) = await submitted(database, NewTask(code="pass", tenant="one"))
    with pytest.raises(InvalidTask, match=f"there is no task {first} of the same tenant"):
        await submitted(database, after(first, tenant="two"))
    with pytest.raises(InvalidTask, match="there is no task 123456 of the same tenant"):
        await submitted(database, NewTask(code="pass"), after(123456))
    assert await claimable(database) == [first]
    await submitted(database, after(first, first, tenant="one"))


async def test_a_copy_depends_on_the_last_copies_of_what_the_task_depended_on(database: Database) -> None:
    first, second = await submitted(database, *[NewTask(code="pass")] * 2)
    (last,) = await submitted(database, after(second, first, depends_ended=True))
    copies = [first]
    for _ in range(2):
        await database.cancel(copies[-1])
        copies.append((await database.retry(copies[-1])).task_id or 0)
    await database.cancel(last)
    for copied in ((await database.retry(last)).task_id or 0, *await database.retry_many([last])):
        record = await record_of(database, copied)
        assert record.depends_on == (second, copies[-1])
        assert (record.depends_ended, record.admitted) == (True, False)


async def test_a_fan_out_of_many_is_admitted_and_cancelled_whole(database: Database) -> None:
    total = PAGE + 30
    good, bad = await submitted(database, *[NewTask(code="pass")] * 2)
    await submitted(database, *[after(good)] * total, *[after(bad)] * total)
    await finish(database, good)
    await finish(database, bad, status=Status.FAILED)
    assert (await database.admit_after([good])).admitted == total
    assert len((await database.admit_after([bad])).cancelled) == total
    assert len(await claimable(database)) == total


async def test_a_task_that_depends_on_others_wakes_who_admits(database: Database) -> None:
    (first,) = await submitted(database)
    async with listening(database) as listener:
        listener.forget()
        await submitted(database, after(first))
        await listener.woken(30, of=Wakeup.GATED)


async def test_what_other_hands_write_is_admitted_or_refused(database: Database, sql_url: str) -> None:
    ids = await submitted(database, *[NewTask(code="pass")] * 8)
    (late,) = await submitted(database, NewTask(code="pass", sequence_key="s"))
    first, second, third, lonely, missing, empty, null, early = ids
    with psycopg.connect(sql_url, autocommit=True) as connection:

        def write(task_id: int, value: str) -> None:
            connection.execute(f"UPDATE tasks SET depends_on = '{value}' WHERE id = {task_id}".encode())

        write(first, f"{{{second},{third}}}")
        write(second, f"{{{third}}}")
        write(third, f"{{{first}}}")
        write(lonely, f"{{{lonely}}}")
        write(missing, f"{{{late + 1000}}}")
        write(empty, "{}")
        write(null, "{NULL}")
        write(early, f"{{{late}}}")
        connection.execute(b"UPDATE tasks SET sequence_key = 's' WHERE id = %s", (second,))
    found = await database.admit_page()
    to_follow = list(found.cancelled)
    while to_follow:
        to_follow = list((await database.admit_after(to_follow)).cancelled)
    await database.admit_page()
    reasons = {each.id: (each.last_error or "") for each in await database.fetch(ids)}
    assert reasons[third] == f"Not run: it depends on task {first}, which waits for this one"
    assert reasons[second] == f"Not run: task {third}, which it depends on, was cancelled"
    assert reasons[first].startswith("Not run: ")
    assert reasons[lonely] == f"Not run: it depends on task {lonely}, which waits for this one"
    assert reasons[missing] == f"Not run: task {late + 1000}, which it depends on, is not there"
    assert reasons[null] == "Not run: a task, which it depends on, is not there"
    assert await claimable(database) == [empty, late]
    await finish(database, late)
    assert (await database.admit_after([late])).admitted == 1, "a later task that waits for nothing"


async def test_every_graph_ends_in_order_however_many_end_and_admit_at_once(database: Database) -> None:
    """Workers that claim, end and follow in their own time; now and then one dies between the end and what follows, which a look
    finds. Some tasks wait for batches, and some of these in circles."""
    if isinstance(database, SqlDatabase):
        database.deadline = 60  # who admits waits for the others who do
    total, workers = (40, 3) if database.dialect == "cockroach" else (150, 5)
    rng = random.Random(9)
    ids: list[int] = []
    batches: set[str | None] = set()
    for _ in range(total):
        wanted = rng.sample(ids, min(len(ids), rng.choice([0, 1, 2, 5])))
        any_one, ended_enough = rng.random() < 0.3, rng.random() < 0.3
        of = {
            "batch": rng.choice([None, None, "a", "b"]),
            "depends_batch": rng.choice([None, None, None, None, *sorted({"a", "b"} & batches)]),
        }
        if of["batch"] == of["depends_batch"]:
            of["depends_batch"] = None
        batches |= {of["batch"]}
        ids += await submitted(database, after(*wanted, depends_any=any_one, depends_ended=ended_enough, **of))
    records = {each.id: each for each in await database.fetch(ids)}
    statuses: dict[int, Status] = {}

    def may_begin(task_id: int) -> bool:
        record = records[task_id]
        members = [each.id for each in records.values() if each.batch == record.depends_batch is not None]
        good = [
            each in statuses if record.depends_ended else statuses.get(each) == Status.COMPLETED
            for each in [*record.depends_on, *members]
        ]
        return not good or (any(good) if record.depends_any else all(good))

    async def follow(ended_ids: list[int]) -> None:
        while ended_ids:
            ended_ids = list((await database.admit_after(ended_ids)).cancelled)
            statuses.update(dict.fromkeys(ended_ids, Status.CANCELLED))

    async def work(name: str, rng: random.Random) -> None:
        while len(statuses) < total:
            tasks = await database.claim(name, 4, lease=30)
            if not all(
                may_begin(task.id) for task in tasks
            ):  # what another one who admits has cancelled is not told yet
                cancelled = [each.id for each in await database.fetch(ids) if each.status == Status.CANCELLED]
                statuses.update(dict.fromkeys(cancelled, Status.CANCELLED))
            for task in tasks:
                assert may_begin(task.id), (records[task.id], statuses)
            await trio.sleep(rng.random() * 0.005)
            for task in tasks:
                status = Status.FAILED if rng.random() < 0.15 else Status.COMPLETED
                statuses[task.id] = status
                await database.complete(name, [ended(task, status)])
            if rng.random() < 0.7:
                await follow([task.id for task in tasks])
            else:
                found = await database.admit_page()
                statuses.update(dict.fromkeys(found.cancelled, Status.CANCELLED))
            await trio.sleep(0.001)

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for number in range(workers):
                nursery.start_soon(work, f"w{number}", random.Random(number))
    assert {each.id: each.status for each in await database.fetch(ids)} == statuses
