"""Tasks that are not begun in time, and tasks that take down what runs them, and failed ones tried again
by the many, on every database."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import psycopg
import pytest
import trio

from continuum.db import memory, statements
from continuum.db.dead_letters import SHOWN, retry_failed
from continuum.db.memory import MemoryDatabase
from continuum.db.protocol import Database
from continuum.model import EXPIRED, Completion, DeadLetterFilter, NewTask, Recovered, Status, TaskFilter, WorkerReport
from continuum.retry import RetryPolicy, quarantine_note

HELLO = NewTask(code="print('hello')")


def now_of(database: Database) -> dt.datetime:
    if isinstance(database, MemoryDatabase):
        from continuum.db.memory import _now

        return _now()
    return dt.datetime.now(dt.UTC)


# -- deadlines ---------------------------------------------------------------------------------------------------------------


async def test_what_has_not_begun_in_time_is_cancelled_with_the_reason_and_counted(database: Database) -> None:
    now = now_of(database)
    late = replace(HELLO, expires_at=now - dt.timedelta(seconds=5), webhook="https://example.org/told")
    parked = replace(late, run_at=now + dt.timedelta(hours=1), webhook=None)
    early = replace(HELLO, expires_at=now + dt.timedelta(hours=1))
    ids = await database.submit([late, parked, early, HELLO])
    promoted = await database.promote()
    assert promoted.expires_in is not None
    assert promoted.expires_in <= 0
    assert await database.cancel_late("one", limit=1) == 1
    assert await database.cancel_late("one") == 1
    assert await database.cancel_late("one") == 0
    records = await database.fetch(ids)
    assert [record.status for record in records] == ["cancelled", "cancelled", "pending", "pending"]
    assert [record.last_error for record in records] == [EXPIRED, EXPIRED, None, None]
    assert [record.expires_at for record in records] == [late.expires_at, late.expires_at, early.expires_at, None]
    assert (records[1].run_at, records[1].finished is not None) == (None, True)
    assert (await database.statistics(latest=True)).cancelled == 2
    assert [each.task_id for each in await database.claim_webhooks(9, lease=30)] == ids[:1]
    assert (await database.promote()).expires_in == pytest.approx(3600, abs=60)
    claimed = await database.claim("one", 9, lease=30)
    assert [task.id for task in claimed] == ids[2:]
    assert claimed[0].expires_in == pytest.approx(3600, abs=60)
    assert claimed[1].expires_in is None


async def test_a_claim_says_that_a_task_is_too_late(database: Database) -> None:
    await database.submit([replace(HELLO, expires_at=now_of(database) - dt.timedelta(days=400))])
    (task,) = await database.claim("one", 1, lease=30)
    assert task.expires_in is not None
    assert task.expires_in < 0


async def test_a_retry_that_would_come_too_late_is_not_made_and_the_failure_is_kept(database: Database) -> None:
    (task_id,) = await database.submit([replace(HELLO, expires_at=now_of(database) + dt.timedelta(seconds=0.3))])
    await database.claim("one", 1, lease=30)
    await database.complete("one", [Completion(task_id, 1, Status.PENDING, 1, "", "", "ValueError: no", 3600.0)])
    with trio.fail_after(10):
        while not await database.cancel_late("one"):
            await trio.sleep(0.05)
    (record,) = await database.fetch([task_id])
    assert (record.status, record.last_error) == ("cancelled", f"{EXPIRED}\nValueError: no")
    assert len(record.history) == 1


@pytest.mark.parametrize("time", ["infinity", "-infinity", "290000-01-01"])
async def test_a_time_that_no_clock_reaches_harms_nothing(database: Database, sql_url: str, time: str) -> None:
    with psycopg.connect(sql_url, autocommit=True) as connection:
        connection.execute("INSERT INTO tasks (name, expires_at) VALUES ('x', %s)", [time])
    promoted = await database.promote()
    if time == "-infinity":
        assert promoted.expires_in == pytest.approx(-86400)
    else:
        assert promoted.expires_in is None
    (task,) = await database.claim("one", 1, lease=30)
    assert (task.expires_in or 0) == pytest.approx(-86400 if time == "-infinity" else 100 * 31_557_600, rel=0.01)


# -- quarantine --------------------------------------------------------------------------------------------------------------


async def lose_worker(database: Database, worker: str, count: int) -> Recovered:
    """A worker claims so many tasks and is not heard of again."""
    assert len(await database.claim(worker, count, lease=0.01)) == count
    await trio.sleep(0.05)
    return await database.recover("janitor", quarantine_after=2)


RESTLESS = replace(HELLO, max_attempts=99, retry=RetryPolicy(delays=(0,)))


async def test_a_task_that_took_down_two_workers_alone_is_quarantined(database: Database) -> None:
    (task_id,) = await database.submit([RESTLESS])
    assert await lose_worker(database, "one", 1) == Recovered(retried=1)
    assert await lose_worker(database, "two", 1) == Recovered(failed=1)
    (record,) = await database.fetch([task_id])
    assert (record.status, record.quarantined, record.crashes, record.attempt) == ("failed", True, 2, 2)
    assert (record.last_error or "").splitlines() == [
        "Quarantined: Timeout/Crash: worker two stopped extending its lease on attempt 2", quarantine_note(task_id),
    ]  # fmt: skip
    assert [each.id for each in await database.search(TaskFilter(quarantined=True))] == [task_id]
    copy = (await database.retry(task_id)).task_id
    assert copy is not None
    (record,) = await database.fetch([copy])
    assert (record.status, record.quarantined, record.crashes) == ("pending", False, 0)


async def test_innocent_tasks_of_a_worker_that_ran_several_are_not_quarantined_so_soon(database: Database) -> None:
    ids = await database.submit([RESTLESS] * 2)
    for worker in ("one", "two", "three"):
        assert await lose_worker(database, worker, 2) == Recovered(retried=2)
    assert [(each.crashes, each.quarantined) for each in await database.fetch(ids)] == [(1.5, False)] * 2
    assert await lose_worker(database, "four", 2) == Recovered(failed=2)


async def test_what_a_worker_ran_when_it_was_last_heard_of_counts_as_well(database: Database) -> None:
    (task_id,) = await database.submit([RESTLESS])
    await database.report(WorkerReport("one", "host", 1, "0", 4, 3, "fake"))
    await lose_worker(database, "one", 1)
    assert (await database.fetch([task_id]))[0].crashes == 0.5


async def test_a_worker_that_ended_in_order_and_a_task_given_back_count_for_nothing(database: Database) -> None:
    (task_id,) = await database.submit([RESTLESS])
    (task,) = await database.claim("one", 1, lease=30)
    await database.release("one", [task.lease])
    await database.report(WorkerReport("two", "host", 1, "0", 4, 1, "fake"))
    await database.sign_off("two")
    await lose_worker(database, "two", 1)
    (record,) = await database.fetch([task_id])
    assert (record.crashes, record.quarantined, record.status) == (0, False, "pending")


async def test_a_lost_sandbox_and_a_lost_worker_add_up(database: Database) -> None:
    (task_id,) = await database.submit([RESTLESS])
    (task,) = await database.claim("one", 1, lease=30)
    lost = Completion(task.id, 1, Status.PENDING, None, "", "", "Sandbox lost: gone", 0.0, crashes=1.0)
    assert await database.complete("one", [lost]) == {task.lease}
    (task,) = await database.claim("one", 1, lease=30)
    assert task.crashes == 1
    ended = Completion(task.id, 2, Status.FAILED, None, "", "", "Quarantined: x", crashes=1.0, quarantined=True)
    await database.complete("one", [ended])
    (record,) = await database.fetch([task_id])
    assert (record.crashes, record.quarantined, record.status) == (2, True, "failed")


# -- dead letters ------------------------------------------------------------------------------------------------------------


async def fail(database: Database, tasks: list[NewTask], error: str = "ValueError: order 7") -> list[int]:
    """Submit tasks that fail."""
    ids = await database.submit(tasks)
    claimed = await database.claim("one", len(tasks), lease=30)
    ended = [Completion(task.id, task.attempt, Status.FAILED, 1, "", "", error) for task in claimed]
    assert len(await database.complete("one", ended)) == len(tasks)
    return ids


async def test_failed_tasks_are_tried_again_once_by_what_they_have_in_common(database: Database) -> None:
    acme = replace(HELLO, tenant="acme", name="invoice 4", payload='{"n": 4}', retry=RetryPolicy(delays=(9,)))
    first = await fail(database, [acme, replace(acme, name="letter")])
    other = await fail(database, [HELLO], "KeyError: 'x'")
    await database.submit([HELLO])
    code_id = (await database.fetch(first[:1]))[0].code_id
    for wanted, ids in (
        (DeadLetterFilter(tenant="acme"), first),
        (DeadLetterFilter(name="VOICE"), first[:1]),
        (DeadLetterFilter(error="ValueError: order #"), first),
        (DeadLetterFilter(error="ValueError: order 7"), []),
        (DeadLetterFilter(code_id=code_id), first + other),
        (DeadLetterFilter(code_id="11111111-1111-1111-1111-111111111111"), []),
        (DeadLetterFilter(code_id="no id"), []),
        (DeadLetterFilter(since=now_of(database) - dt.timedelta(hours=1)), first + other),
        (DeadLetterFilter(since=now_of(database) + dt.timedelta(hours=1)), []),
        (DeadLetterFilter(), first + other),
    ):
        looked = await retry_failed(database, wanted, dry_run=True)
        assert (looked.found, looked.retried, looked.next) == (len(ids), 0, None)
        assert sorted(each.id for each in looked.newest) == ids
    done = await retry_failed(database, DeadLetterFilter(tenant="acme"))
    assert (done.found, done.retried) == (2, 2)
    again = await retry_failed(database, DeadLetterFilter(tenant="acme"))
    assert (again.found, again.retried) == (0, 0)
    originals = await database.fetch(first)
    copies = await database.fetch([each.retried_as or 0 for each in originals])
    assert [(each.retry_of, each.name, each.tenant, each.status) for each in copies] == [
        (first[0], "invoice 4", "acme", "pending"), (first[1], "letter", "acme", "pending"),
    ]  # fmt: skip
    assert [each.retry for each in copies] == [each.retry for each in originals]
    assert await database.retry_many([*first, *other, 10**15]) == [(await database.fetch(other))[0].retried_as]


async def test_what_is_in_quarantine_or_was_refused_is_left_alone(database: Database) -> None:
    ids = await database.submit([HELLO] * 2)
    one, two = await database.claim("one", 2, lease=30)
    await database.complete("one", [
        Completion(one.id, 1, Status.FAILED, None, "", "", "Quarantined: x", crashes=2.0, quarantined=True),
        Completion(two.id, 1, Status.MALICIOUS, None, "", "", "Refused"),
    ])  # fmt: skip
    assert (await retry_failed(database, DeadLetterFilter())).found == 0
    assert len(await database.retry_many(ids)) == 2, "each by itself may be"


async def test_many_are_gone_through_in_pages_and_what_fails_meanwhile_is_not_tried_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "DEAD_LETTERS_SEEN", 10)
    monkeypatch.setattr(memory, "DEAD_LETTERS_SEEN", 10)
    ids = await fail(database, [replace(HELLO, name=f"task {number}") for number in range(35)])
    page = await database.dead_letters(DeadLetterFilter())
    assert len(page.tasks) == 10
    retry_many = database.retry_many

    async def retry_and_fail(task_ids: list[int]) -> list[int]:
        copies = await retry_many(task_ids)
        claimed = await database.claim("one", 99, lease=30)
        await database.complete("one", [Completion(t.id, 1, Status.FAILED, 1, "", "", "again") for t in claimed])
        return copies

    monkeypatch.setattr(database, "retry_many", retry_and_fail)
    done = await retry_failed(database, DeadLetterFilter())
    assert (done.found, done.retried, len(done.newest)) == (35, 35, SHOWN)
    assert {each.id for each in done.newest} <= set(ids)
    first = await retry_failed(database, DeadLetterFilter(), dry_run=True, seconds=0)
    assert (first.found, first.next is not None) == (10, True)
    rest = await retry_failed(database, DeadLetterFilter(), dry_run=True, before=first.next)
    assert (rest.found, rest.next) == (25, None), "the copies that failed"
