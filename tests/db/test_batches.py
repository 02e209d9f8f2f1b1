"""Tasks that belong to batches and tasks that wait for these, on every database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from continuum.db.admission import PAGE
from continuum.db.errors import InvalidTask
from continuum.db.protocol import Database
from continuum.dependencies import MOST_DEPENDENCIES
from continuum.model import BatchProgress, Dependency, HeldBackBy, NewTask, Status, TaskFilter, WaitsFor, Wakeup
from tests.db.test_dependencies import claimable, finish, record_of, submitted
from tests.support.listener import listening


def of(batch: str, **values: Any) -> NewTask:
    return NewTask(code="pass", batch=batch, **values)


def behind(batch: str, **values: Any) -> NewTask:
    return NewTask(code="pass", depends_batch=batch, **values)


async def look(database: Database) -> list[int]:
    """Look through what waits and follow what that cancels; return what was cancelled, in order."""
    found = await database.admit_page()
    cancelled = [*found.cancelled]
    to_follow: Sequence[int] = found.cancelled
    while to_follow:
        to_follow = (await database.admit_after(to_follow)).cancelled
        cancelled += to_follow
    return cancelled


async def reason(database: Database, task_id: int) -> str | None:
    record = await record_of(database, task_id)
    return record.last_error if record.status == Status.CANCELLED else None


@pytest.mark.parametrize("lost", [False, True], ids=["followed", "found by the look"])
async def test_a_task_begins_once_its_batch_has_ended_as_it_wants(database: Database, lost: bool) -> None:
    async def end(*ids: int, status: Status = Status.COMPLETED) -> int:
        await finish(database, *ids, status=status)
        found = await (database.admit_page() if lost else database.admit_after(ids))
        return found.admitted

    first, second, other = await submitted(database, of("a"), of("a"), of("a", tenant="else"))
    whole, either, whatever = await submitted(
        database, behind("a"), behind("a", depends_any=True), behind("a", depends_ended=True)
    )
    assert await claimable(database) == [first, second, other]
    assert await database.waits_for(whole) == WaitsFor(HeldBackBy.OTHER_TASKS, (first, second))
    assert (await database.admit_page()).admitted == 0
    assert await end(first) == 1
    assert await claimable(database) == [second, other, either]
    (third,) = await submitted(database, of("a"))
    assert await end(second) == 0, "a task came into the batch"
    assert await end(third) == 2
    assert await claimable(database) == [other, whole, either, whatever]
    record = await record_of(database, either)
    assert (record.batch, record.depends_batch, record.depends_any) == (None, "a", True)
    assert (await record_of(database, first)).batch == "a"
    assert await database.batch(None, "a") == BatchProgress("a", completed=3)
    assert await database.batch("else", "a") == BatchProgress("a", pending=1)
    assert await database.batch(None, "b") == BatchProgress("b")
    assert [task.id for task in await database.search(TaskFilter(batch="a", tenant="else"))] == [other]


@pytest.mark.parametrize("lost", [False, True], ids=["followed", "found by the look"])
async def test_a_member_that_fails_cancels_who_waits_and_copies_of_both_go_on(database: Database, lost: bool) -> None:
    first, second = await submitted(database, of("a"), of("a"))
    whole, either, whatever = await submitted(
        database, behind("a"), behind("a", depends_any=True), behind("a", depends_ended=True)
    )
    await finish(database, first, status=Status.FAILED)
    found = await (database.admit_page() if lost else database.admit_after([first]))
    assert (found.admitted, found.cancelled) == (0, (whole,))
    assert await reason(database, whole) == f"Not run: task {first} of the batch a, which it depends on, failed"
    await finish(database, second)
    found = await (database.admit_page() if lost else database.admit_after([second]))
    assert found.admitted == 2
    assert await claimable(database) == [either, whatever]
    (copy,) = await database.retry_many([first])
    assert (await record_of(database, copy)).batch == "a"
    assert await database.batch(None, "a") == BatchProgress("a", pending=1, completed=1)
    again = (await database.retry(whole)).task_id or 0
    assert (await record_of(database, again)).depends_batch == "a"
    assert await look(database) == []
    await finish(database, copy)
    assert (await database.admit_after([copy])).admitted == 1
    assert (await database.dependencies(again)).batch == BatchProgress("a", completed=2)


async def test_a_task_may_wait_for_others_and_a_batch_together(database: Database) -> None:
    single, bad, first, second = await submitted(database, NewTask(code="pass"), NewTask(code="pass"), of("a"), of("b"))
    both, other = await submitted(database, behind("a", depends_on=[single]), behind("b", depends_on=[bad, second]))
    keyed, free = await submitted(database, behind("a", sequence_key="s"), NewTask(code="pass", sequence_key="s"))
    await finish(database, first)
    assert (await database.admit_after([first])).admitted == 1
    assert await claimable(database) == [single, bad, second, keyed]
    await finish(database, single)
    assert (await database.admit_after([single])).admitted == 1
    await finish(database, bad, status=Status.FAILED)
    await finish(database, second)
    assert (await database.admit_after([second])).cancelled == (other,)
    assert await reason(database, other) == f"Not run: task {bad}, which it depends on, failed"
    assert await claimable(database) == [both, keyed]
    await finish(database, keyed)
    assert (await database.admit_after([keyed])).admitted == 1
    assert await claimable(database) == [both, free]


async def test_a_task_is_told_of_its_batch_and_of_the_first_of_its_tasks(database: Database) -> None:
    (single,) = await submitted(database, NewTask(code="pass", name="single"))
    first, second = await submitted(database, of("a", name="one"), of("a", name="two"))
    (last,) = await submitted(database, behind("a", depends_on=[second, single], depends_any=True))
    await finish(database, first, output="1")
    await database.cancel(second)
    told = await database.dependencies(last)
    assert told.batch == BatchProgress("a", completed=1, cancelled=1)
    assert told.dependencies == [
        Dependency(second, "two", "cancelled", left_out=False),
        Dependency(single, "single", "pending"),
        Dependency(first, "one", "completed", 0, "1"),
    ]
    await submitted(database, *[of("a")] * MOST_DEPENDENCIES)
    told = await database.dependencies(last)
    assert len(told.dependencies) == MOST_DEPENDENCIES + 1
    assert told.batch is not None
    assert (told.batch.total, told.batch.open, told.batch.ended) == (MOST_DEPENDENCIES + 2, MOST_DEPENDENCIES, False)


async def test_a_batch_that_is_not_there_is_refused_when_a_task_is_submitted(database: Database) -> None:
    with pytest.raises(InvalidTask, match="depends_batch: there is no task of the batch 'a' of the same tenant"):
        await submitted(database, behind("a"))
    with pytest.raises(InvalidTask, match="there is no task of the batch 'a'"):
        await submitted(database, of("a", tenant="one"), behind("a"))
    with pytest.raises(InvalidTask, match="depends_batch names its own batch 'a'"):
        await submitted(database, of("a"), of("a", depends_batch="a"))
    with pytest.raises(InvalidTask, match="batch is empty"):
        await submitted(database, of(""))
    assert await claimable(database) == []
    await submitted(database, behind("a"), of("a"), of("b", tenant="one"), behind("b", tenant="one"))


async def test_a_batch_whose_tasks_are_gone_has_ended_and_did_not_complete(database: Database) -> None:
    first, waits, anyway = await submitted(database, of("a"), behind("a"), behind("a", depends_ended=True))
    await finish(database, first)
    assert await database.purge(Status.COMPLETED, -60) == 1
    found = await database.admit_page()
    assert (found.admitted, found.cancelled) == (1, (waits,))
    assert await reason(database, waits) == "Not run: the batch a, which it depends on, has no tasks"
    assert await claimable(database) == [anyway]


async def test_all_that_wait_for_one_batch_are_admitted_and_cancelled_whole(database: Database) -> None:
    total = PAGE + 30
    good, bad = await submitted(database, of("good"), of("bad"))
    keyed = await submitted(database, *[behind("good", concurrency_key="k")] * (PAGE + 1))
    await submitted(database, *[behind("good")] * total, *[behind("bad")] * total)
    await finish(database, good)
    await finish(database, bad, status=Status.FAILED)
    admitted = (await database.admit_after([good])).admitted
    found = await database.admit_page()
    while found.below is not None:
        admitted += found.admitted
        found = await database.admit_page(found.below)
    assert admitted + found.admitted == total + 1, "all, and one with the key"
    assert keyed[0] in await claimable(database)
    assert (await database.batch(None, "bad")).failed == 1
    assert (await database.statistics(latest=True)).cancelled == total


async def test_one_of_a_circle_through_batches_is_cancelled(database: Database) -> None:
    first, second = await submitted(database, of("a"), of("b"))
    x, y = await submitted(database, of("a", depends_batch="b"), of("b", depends_batch="a"))
    (after_both,) = await submitted(database, behind("a", depends_ended=True))
    assert await look(database) == [y, x]
    assert await reason(database, y) == f"Not run: it depends on the batch a, of which task {x} waits for this one"
    assert await reason(database, x) == f"Not run: task {y} of the batch b, which it depends on, was cancelled"
    await finish(database, first)
    assert (await database.admit_after([first])).admitted == 1
    assert await claimable(database) == [second, after_both]


async def test_a_circle_through_a_batch_and_ids_and_sequences_is_found_however_it_is_long(database: Database) -> None:
    (first,) = await submitted(database, of("a"))
    (waits,) = await submitted(database, behind("a", sequence_key="s"))
    (behind_it,) = await submitted(database, NewTask(code="pass", sequence_key="s"))
    (between,) = await submitted(database, NewTask(code="pass", depends_on=[behind_it]))
    (last,) = await submitted(database, of("a", depends_on=[between]))
    await finish(database, first)
    assert await look(database) == [last, waits]
    assert await reason(database, last) == f"Not run: it depends on task {between}, which waits for this one"
    assert await claimable(database) == [behind_it]


async def test_what_may_go_on_another_way_is_in_no_circle(database: Database) -> None:
    (runs,) = await submitted(database, NewTask(code="pass"))
    one, other = await submitted(database, of("a", depends_on=[runs]), of("b"))
    (x,) = await submitted(database, behind("a", depends_any=True))
    (y,) = await submitted(database, of("a", depends_on=[x]))
    assert await look(database) == []
    await finish(database, runs)
    assert (await database.admit_after([runs])).admitted == 1
    await finish(database, one)
    assert (await database.admit_after([one])).admitted == 1
    assert await claimable(database) == [other, x]
    await finish(database, x)
    assert (await database.admit_after([x])).admitted == 1
    assert await claimable(database) == [other, y]


async def test_a_task_that_waits_for_a_batch_wakes_who_admits(database: Database) -> None:
    await submitted(database, of("a"))
    async with listening(database) as listener:
        listener.forget()
        await submitted(database, behind("a"))
        await listener.woken(30, of=Wakeup.GATED)


async def test_what_other_hands_write_of_batches_is_admitted_or_refused(database: Database, sql_url: str) -> None:
    ids = await submitted(database, *[NewTask(code="pass")] * 4)
    itself, missing, member, waits = ids
    with psycopg.connect(sql_url, autocommit=True) as connection:
        connection.execute("UPDATE tasks SET batch = 'a', depends_batch = 'a' WHERE id = %s", (itself,))
        connection.execute("UPDATE tasks SET depends_batch = 'none' WHERE id = %s", (missing,))
        connection.execute("UPDATE tasks SET batch = '' WHERE id = %s", (member,))
        connection.execute("UPDATE tasks SET depends_batch = '' WHERE id = %s", (waits,))
    assert sorted(await look(database)) == [itself, missing]
    assert await reason(database, itself) == (
        f"Not run: it depends on the batch a, of which task {itself} waits for this one"
    )
    assert await reason(database, missing) == "Not run: the batch none, which it depends on, has no tasks"
    await finish(database, member)
    assert (await database.admit_after([member])).admitted == 1
