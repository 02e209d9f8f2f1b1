"""What must be admitted: sequences and concurrency keys, on every database, with many who admit at once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import psycopg
import pytest
import trio

from continuum.db.admission import PAGE
from continuum.db.database import SqlDatabase
from continuum.db.memory import MemoryDatabase
from continuum.db.protocol import Database
from continuum.model import (
    Cancellation,
    ClaimedTask,
    Completion,
    Limit,
    NewTask,
    Retry,
    Scope,
    Status,
    Wakeup,
)
from tests.support.listener import listening


def in_sequence(key: str, **values: object) -> NewTask:
    return NewTask(code="pass", sequence_key=key, **values)  # type: ignore[arg-type]


def with_key(key: str, **values: object) -> NewTask:
    return NewTask(code="pass", concurrency_key=key, **values)  # type: ignore[arg-type]


def ended(task: ClaimedTask, status: Status = Status.COMPLETED, retry_in: float | None = None) -> Completion:
    return Completion(task.id, task.attempt, status, 0, "", "", None, retry_in)


async def allow(database: Database, limits: dict[str, int]) -> None:
    """Let so many tasks of each key run at a time."""
    for name, most in limits.items():
        await database.set_limit(Limit(Scope.KEY, name, max_running=most))


async def admit_all(database: Database) -> int:
    """Look through everything that waits; how many were admitted."""
    found = await database.admit_page()
    total = found.admitted
    while found.below is not None:
        found = await database.admit_page(found.below)
        total += found.admitted
    return total


async def claimed(database: Database, limit: int = 100) -> list[int]:
    return [task.id for task in await database.claim("w", limit, lease=30)]


async def test_a_task_with_a_key_is_claimed_only_when_admitted(database: Database) -> None:
    first, second, free = await database.submit([in_sequence("a"), with_key("a"), NewTask(code="pass")])
    assert await claimed(database) == [free]
    assert await admit_all(database) == 2
    assert await claimed(database) == [first, second]
    assert await admit_all(database) == 0
    assert [record.admitted for record in await database.fetch([first, second, free])] == [True, True, False]


async def test_a_paused_key_lets_nobody_be_admitted(database: Database) -> None:
    (first,) = await database.submit([with_key("a")])
    await database.set_limit(Limit(Scope.KEY, "a", max_running=3, paused=True))
    assert await admit_all(database) == 0
    await database.set_limit(Limit(Scope.KEY, "a", max_running=3))
    assert await admit_all(database) == 1
    assert await claimed(database) == [first]


async def test_a_sequence_runs_one_after_another_in_the_order_of_ids_whatever_their_priorities(
    database: Database,
) -> None:
    ids = await database.submit([in_sequence("a", priority=priority) for priority in (3, 2, 1, 2)])
    order = []
    await admit_all(database)
    while tasks := await database.claim("w", 10, lease=30):
        (task,) = tasks
        order.append(task.id)
        await database.complete("w", [ended(task)])
        assert (await database.admit_after([task.id])).admitted == (len(order) < len(ids))
    assert order == ids


async def test_keys_are_a_tenants_own_and_of_two_kinds(database: Database) -> None:
    ids = await database.submit(
        [in_sequence("a"), in_sequence("a", tenant="one"), in_sequence("a", tenant="two"), with_key("a"), with_key("b")]
    )
    await database.submit([in_sequence("a"), with_key("a"), with_key("b")])
    await admit_all(database)
    assert sorted(await claimed(database)) == ids


@pytest.mark.parametrize("kind", [in_sequence, with_key])
async def test_a_retry_that_waits_and_a_task_given_back_keep_the_key(database: Database, kind: type[NewTask]) -> None:
    first, second = await database.submit([kind("a"), kind("a")])
    await admit_all(database)
    (task,) = await database.claim("w", 10, lease=30)
    await database.complete("w", [ended(task, Status.PENDING, retry_in=0.05)])
    assert (await database.admit_after([first])).admitted == await admit_all(database) == 0
    with trio.fail_after(10):
        while not (await database.promote()).count:
            await trio.sleep(0.01)
    (task,) = await database.claim("w", 10, lease=30)
    assert task.id == first, "claimable again without being admitted once more"
    await database.release("w", [task.lease])
    assert await admit_all(database) == 0
    (task,) = await database.claim("w", 10, lease=30)
    await database.complete("w", [ended(task, Status.FAILED)])
    assert (await database.admit_after([first])).admitted == 1
    assert await claimed(database) == [second]


async def test_what_was_cancelled_or_deleted_is_waited_for_no_longer(database: Database, queue_url: str) -> None:
    first, second, third = await database.submit([in_sequence("a"), in_sequence("a"), in_sequence("a")])
    assert await database.cancel(first) is Cancellation.CANCELLED
    if isinstance(database, MemoryDatabase):
        del database.tasks[second]
    else:
        with psycopg.connect(queue_url, autocommit=True) as connection:
            connection.execute("DELETE FROM tasks WHERE id = %s", (second,))
    assert await admit_all(database) == 1
    assert await claimed(database) == [third]


async def test_a_scheduled_task_of_a_sequence_is_waited_for_and_one_of_a_key_is_not(database: Database) -> None:
    import datetime as dt

    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=365 * 20)
    await database.submit([in_sequence("a", run_at=later), in_sequence("a"), with_key("a", run_at=later)])
    (free,) = await database.submit([with_key("a")])
    assert await admit_all(database) == 1
    assert await claimed(database) == [free]


async def test_as_many_of_a_key_as_the_limits_say_the_most_urgent_first_and_a_change_holds_at_once(
    database: Database, queue_url: str
) -> None:
    await allow(database, {"a": 3, "*": 2})
    of_a = await database.submit([with_key("a", priority=priority) for priority in (9, 9, 1, 9, 1, 1)])
    of_b = await database.submit([with_key("b")] * 4)
    assert await admit_all(database) == 5
    assert sorted(await claimed(database)) == sorted([of_a[2], of_a[4], of_a[5], *of_b[:2]])
    await allow(database, {"a": 5})
    assert await admit_all(database) == 2
    assert await claimed(database) == of_a[:2]
    await allow(database, {"a": 0})
    assert await database.cancel(of_b[2]) is Cancellation.CANCELLED
    assert await admit_all(database) == 0


async def test_what_waits_in_many_pages_behind_full_keys_hides_nothing(database: Database) -> None:
    other, *_ = await database.submit([with_key("other")])
    await database.submit([with_key("a")] * (PAGE + 20) + [in_sequence("a")] * PAGE)
    assert await admit_all(database) == 3
    assert other in await claimed(database)
    assert await admit_all(database) == 0


async def test_a_copy_of_a_task_that_ended_has_its_keys(database: Database) -> None:
    (first,) = await database.submit([NewTask(code="pass", sequence_key="a", concurrency_key="b")])
    await database.cancel(first)
    again = await database.retry(first)
    assert again.outcome is Retry.SUBMITTED
    (record,) = await database.fetch([again.task_id or 0])
    assert (record.sequence_key, record.concurrency_key, record.admitted) == ("a", "b", False)


async def test_admission_wakes_who_claims_and_a_task_with_a_key_wakes_who_admits(database: Database) -> None:
    async with listening(database) as listener:
        listener.forget()
        await database.submit([in_sequence("a")])
        await listener.woken(30, of=Wakeup.GATED)
        listener.forget()
        await admit_all(database)
        await listener.woken(30, of=Wakeup.PENDING)


async def test_limits_and_order_hold_at_every_instant_however_many_admit_and_end_tasks_at_once(
    database: Database, queue_url: str
) -> None:
    """Several workers, each of which admits, claims and ends tasks in its own time; some tasks have both kinds of key, some are
    cancelled, some fail for a while. What runs is counted by who claims and ends it: never less than the record says."""
    limits = {"k0": 1, "k1": 2, "k2": 3}
    if isinstance(database, SqlDatabase):
        database.deadline = 60  # who admits waits for the others who do
    total, workers = (36, 4) if database.dialect == "cockroach" else (120, 6)
    await allow(database, limits)
    rng = random.Random(8)
    sequences, keys = 4, 3
    news = [
        NewTask(
            code="pass",
            sequence_key=f"s{rng.randrange(sequences)}" if place % 3 != 1 else None,
            concurrency_key=f"k{rng.randrange(keys)}" if place % 3 != 0 else None,
            priority=rng.randrange(3),
        )
        for place in range(total)
    ]
    running: Counter[str] = Counter()
    begun: dict[str, list[int]] = {}
    done: set[int] = set()
    of: dict[int, NewTask] = {}

    async def produce() -> None:
        for at in range(0, total, 6):
            ids = await database.submit(news[at : at + 6])
            of.update(zip(ids, news[at : at + 6], strict=True))
            await trio.sleep(0.002)

    def names(task: ClaimedTask) -> Sequence[str]:
        return [name for name in (of[task.id].sequence_key, of[task.id].concurrency_key) if name is not None]

    async def work(name: str, rng: random.Random) -> None:
        while len(done) < total:
            await database.admit_page()
            tasks = await database.claim(name, 4, lease=30)
            for task in tasks:
                with trio.fail_after(5):
                    while task.id not in of:
                        await trio.sleep(0.001)
                for each in names(task):
                    running[each] += 1
                    assert running[each] <= limits.get(each, 1), (each, running)
                sequence = of[task.id].sequence_key
                if sequence is not None and task.attempt == 1:
                    begun.setdefault(sequence, []).append(task.id)
            await trio.sleep(rng.random() * 0.01)
            for task in tasks:
                again = task.attempt < 3 and rng.random() < 0.2
                for each in names(task):
                    running[each] -= 1
                await database.complete(name, [ended(task, Status.PENDING if again else Status.COMPLETED)])
                if not again:
                    done.add(task.id)
                    await database.admit_after([task.id])
            await trio.sleep(0.001)

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            for number in range(workers):
                nursery.start_soon(work, f"w{number}", random.Random(number))
    assert len(done) == total
    assert all(ids == sorted(ids) for ids in begun.values()), begun
