"""What every database must do, told in the verbs of the protocol. Runs unchanged on each of them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest
import trio

from continuum.db.dialect import SCHEMA_VERSION
from continuum.db.errors import InvalidTask, QueueFull
from continuum.db.protocol import Database
from continuum.model import (
    HISTORY_LENGTH,
    Cancellation,
    ClaimedTask,
    Completion,
    EndedFilter,
    EndedTask,
    Lease,
    Limit,
    NewTask,
    PartialOutput,
    Promoted,
    QueueDepth,
    Recovered,
    Retried,
    Retry,
    Scope,
    Status,
    TaskFilter,
    Wakeup,
    WorkerReport,
)
from continuum.retry import RetryPolicy, parse_policy
from tests.support.listener import listening

HELLO = NewTask(code="print('hello')")
SAME = NewTask(code="print('hello')", payload='{"a": 1, "b": [2]}', unique=True)


def completed(task: ClaimedTask, output: str = "done\n") -> Completion:
    return Completion(task.id, task.attempt, Status.COMPLETED, 0, output, "", None)


def failed(task: ClaimedTask) -> Completion:
    return Completion(task.id, task.attempt, Status.FAILED, 1, "", "trace", "ValueError: no")


def retry(task: ClaimedTask, seconds: float = 60.0) -> Completion:
    return Completion(task.id, task.attempt, Status.PENDING, 1, "", "trace", "ValueError: no", seconds)


async def claim_one(database: Database, worker: str = "one", lease: float = 30) -> ClaimedTask:
    (task,) = await database.claim(worker, 1, lease=lease)
    return task


def report(worker: str, **values: object) -> WorkerReport:
    return replace(WorkerReport(worker, "host", 1, "0", 4, 0, "fake"), **values)  # type: ignore[arg-type]


async def recovered(database: Database) -> Recovered:
    """Wait until a lease has expired and was recovered."""
    with trio.fail_after(10):
        while not (answer := await database.recover("janitor")).total:
            await trio.sleep(0.01)
    return answer


async def until_due(database: Database) -> None:
    """Wait until what is scheduled has become claimable."""
    with trio.fail_after(10):
        while not (promoted := await database.promote()).count:
            await trio.sleep(max(0.01, promoted.next_in or 0.01))


async def test_tasks_are_claimed_by_priority_then_id_and_only_as_many_as_asked_for(database: Database) -> None:
    ids = await database.submit([replace(HELLO, priority=priority) for priority in (5, 1, 5, -3, 1)])
    first = await database.claim("one", 3, lease=30)
    second = await database.claim("one", 10, lease=30)
    assert [task.id for task in first] == [ids[3], ids[1], ids[4]]
    assert [task.id for task in second] == [ids[0], ids[2]]
    assert await database.claim("one", 10, lease=30) == []


async def test_a_claim_brings_everything_that_is_needed_to_run(database: Database) -> None:
    new = NewTask(
        name="a name",
        description="words",
        code="print('ä')",
        payload='{"b": [1, 2.5, null], "ä": "☃"}',
        priority=7,
        max_attempts=5,
        timeout=12.5,
        tenant="acme",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    (task_id,) = await database.submit([new])
    task = await claim_one(database)
    assert (task.id, task.attempt, task.released, task.max_attempts) == (task_id, 1, 0, 5)
    assert (task.name, task.code, task.priority, task.timeout, task.tenant) == ("a name", "print('ä')", 7, 12.5, "acme")
    assert json.loads(task.payload) == json.loads(new.payload or "")
    assert task.traceparent == new.traceparent
    assert task.created_at.tzinfo is not None


async def test_a_task_without_payload_is_claimed_with_null(database: Database) -> None:
    await database.submit([HELLO])
    assert (await claim_one(database)).payload == "null"


async def test_equal_scripts_share_a_row_where_they_require_the_same(database: Database) -> None:
    await database.submit([
        NewTask(code="import six"),
        NewTask(code="import six", requirements="# nothing yet\n"),
        NewTask(code="import six", requirements="Six==1.16.0"),
        NewTask(code="import six", requirements="six==1.16.0  # the same\n"),
        NewTask(code="import six", requirements="six==1.17.0\nAttrs==25.1.0"),
    ])  # fmt: skip
    tasks = await database.claim("one", 9, lease=30)
    assert [task.requirements for task in tasks] == [
        None, None, "six==1.16.0\n", "six==1.16.0\n", "attrs==25.1.0\nsix==1.17.0\n",
    ]  # fmt: skip
    rows = [task.code_id for task in tasks]
    assert rows[0] == rows[1] != rows[2] == rows[3] != rows[4] != rows[0]
    assert {task.code for task in tasks} == {"import six"}


async def test_priorities_outside_the_bounds_are_left_alone(database: Database) -> None:
    ids = await database.submit([replace(HELLO, priority=priority) for priority in (1, 2, 3, 4)])
    assert [task.id for task in await database.claim("w", 9, lease=30, min_priority=2, max_priority=3)] == ids[1:3]
    assert [task.id for task in await database.claim("w", 9, lease=30, min_priority=4)] == ids[3:]
    assert [task.id for task in await database.claim("w", 9, lease=30, max_priority=1)] == ids[:1]


async def test_concurrent_claimers_never_get_the_same_task(database: Database) -> None:
    await database.submit([HELLO] * 200)
    taken: list[int] = []

    async def claimer(name: str) -> None:
        while tasks := await database.claim(name, 7, lease=30):
            taken.extend(task.id for task in tasks)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(claimer, f"worker {number}")
    assert len(taken) == len(set(taken)) == 200


async def test_an_outcome_is_written_once_and_stands(database: Database) -> None:
    await database.submit([HELLO])
    task = await claim_one(database)
    assert await database.complete("one", [completed(task)]) == {task.lease}
    assert await database.complete("one", [completed(task)]) == {task.lease}, "a repeated call finds its own write"
    assert await database.complete("one", [replace(failed(task))]) == frozenset()
    (record,) = await database.fetch([task.id])
    assert (record.status, record.output, record.exit_code, record.worker_id) == (Status.COMPLETED, "done\n", 0, "one")
    assert record.started is not None
    assert record.finished is not None
    assert record.finished >= record.started
    assert (await database.statistics(latest=True)).completed == 1


async def test_only_the_holder_of_the_current_attempt_may_write(database: Database) -> None:
    await database.submit([HELLO])
    stale = await claim_one(database, "one", lease=0.01)
    await trio.sleep(0.05)
    assert (await database.recover("janitor")).retried == 1
    with trio.fail_after(10):
        while not (tasks := await database.claim("two", 1, lease=30)):
            await trio.sleep(max(0.01, (await database.promote()).next_in or 0.01))
    current = tasks[0]
    assert current.attempt == stale.attempt + 1
    for worker, task in (("one", stale), ("two", stale), ("one", current)):
        assert await database.complete(worker, [completed(task)]) == frozenset()
        assert await database.release(worker, [task.lease]) == 0
        assert (await database.heartbeat(worker, [task.lease], lease=30)).lost == {task.lease}
        await database.progress(worker, [PartialOutput(task.id, task.attempt, "forged", "forged")])
    (record,) = await database.fetch([current.id])
    assert (record.status, record.worker_id, record.attempt, record.output) == ("processing", "two", 2, None)
    assert await database.complete("two", [completed(current)]) == {current.lease}


async def test_a_batch_writes_each_outcome_under_its_own_lease(database: Database) -> None:
    await database.submit([HELLO] * 4)
    tasks = await database.claim("one", 4, lease=30)
    batch = [completed(tasks[0]), failed(tasks[1]), retry(tasks[2]), replace(completed(tasks[3]), attempt=9)]
    written = await database.complete("one", batch)
    assert written == {tasks[0].lease, tasks[1].lease, tasks[2].lease}
    statuses = [record.status for record in await database.fetch([task.id for task in tasks])]
    assert statuses == ["completed", "failed", "pending", "processing"]


async def test_a_refused_task_ends_as_malicious_is_counted_and_is_written_by_its_holder_alone(
    database: Database,
) -> None:
    (task_id,) = await database.submit([HELLO])
    task = await claim_one(database)
    refused = Completion(task.id, task.attempt, Status.MALICIOUS, None, "", "", "Refused by CODE_POLICY: line 1")
    assert await database.complete("another", [refused]) == frozenset()
    assert await database.complete("one", [replace(refused, attempt=2)]) == frozenset()
    assert (await database.fetch([task_id]))[0].status == Status.PROCESSING
    for _ in range(2):
        assert await database.complete("one", [refused]) == {task.lease}
    (record,) = await database.fetch([task_id])
    assert (record.status, record.last_error, record.finished_for_good) == (Status.MALICIOUS, refused.last_error, True)
    assert await database.complete("one", [completed(task)]) == frozenset()
    assert await database.claim("one", 9, lease=30) == []
    seen = await database.statistics(latest=True)
    assert (seen.malicious, seen.failed, seen.total) == (1, 0, 1)
    assert await database.purge(Status.MALICIOUS, -1) == 1


async def test_a_retry_waits_for_its_time_without_being_claimable(database: Database) -> None:
    await database.submit([HELLO])
    task = await claim_one(database)
    await database.complete("one", [retry(task, 0.3)])
    assert await database.claim("one", 1, lease=30) == []
    delay = (await database.promote()).next_in
    assert delay is not None
    assert 0 < delay <= 0.3
    await trio.sleep(delay + 0.02)
    assert (await database.promote()).next_in is None
    again = await claim_one(database)
    assert (again.id, again.attempt) == (task.id, 2)


async def test_a_task_for_later_is_left_until_then_and_one_for_the_past_is_due_now(database: Database) -> None:
    now = (await database.fetch(await database.submit([HELLO])))[0].created_at
    later, past = await database.submit(
        [replace(HELLO, run_at=now + dt.timedelta(hours=1)), replace(HELLO, run_at=now - dt.timedelta(hours=1))]
    )
    claimed = {task.id for task in await database.claim("one", 9, lease=30)}
    assert past in claimed
    assert later not in claimed
    delay = (await database.promote()).next_in
    assert delay is not None
    assert 3500 < delay <= 3600


async def test_an_expired_lease_goes_back_to_pending_until_its_attempts_are_used_up(database: Database) -> None:
    (task_id,) = await database.submit([replace(HELLO, max_attempts=2)])
    await claim_one(database, lease=0.01)
    await trio.sleep(0.05)
    assert await database.recover("janitor") == Recovered(retried=1)
    (record,) = await database.fetch([task_id])
    assert (record.status, record.worker_id) == ("pending", None)
    with trio.fail_after(10):
        while not await database.claim("two", 1, lease=0.01):
            await trio.sleep(max(0.01, (await database.promote()).next_in or 0.01))
    await trio.sleep(0.05)
    assert await database.recover("janitor") == Recovered(failed=1)
    (record,) = await database.fetch([task_id])
    assert record.status == Status.FAILED
    assert (record.last_error or "").startswith("Timeout/Crash: ")
    assert (await database.statistics(latest=True)).failed == 1
    assert await database.recover("janitor") == Recovered()


@pytest.mark.parametrize(("outcome", "max_attempts"), [(failed, 1), (retry, 3)])
async def test_an_outcome_does_not_stand_where_the_janitor_ended_the_attempt_in_the_same_way(
    database: Database, outcome: Callable[[ClaimedTask], Completion], max_attempts: int
) -> None:
    (task_id,) = await database.submit([replace(HELLO, max_attempts=max_attempts)])
    task = await claim_one(database, lease=0.01)
    await trio.sleep(0.05)
    assert (await database.recover("janitor")).total == 1
    (recovered,) = await database.fetch([task_id])
    assert recovered.status == outcome(task).status
    assert await database.complete("one", [outcome(task)]) == frozenset()
    assert await database.fetch([task_id]) == [recovered]


@pytest.mark.parametrize("outcome", [failed, retry])
async def test_a_repeated_outcome_that_did_not_complete_the_task_stands(
    database: Database, outcome: Callable[[ClaimedTask], Completion]
) -> None:
    await database.submit([HELLO])
    task = await claim_one(database)
    for _ in range(2):
        assert await database.complete("one", [outcome(task)]) == {task.lease}


async def test_a_lease_that_is_extended_is_not_recovered(database: Database) -> None:
    await database.submit([HELLO])
    task = await claim_one(database, lease=0.2)
    answer = await database.heartbeat("one", [task.lease, Lease(task.id, 9)], lease=30)
    assert answer.lost == {Lease(task.id, 9)}
    assert not answer.cancelled
    await trio.sleep(0.25)
    assert (await database.recover("janitor")).total == 0


async def test_a_heartbeat_may_still_extend_an_expired_lease_that_nobody_took(database: Database) -> None:
    await database.submit([HELLO])
    task = await claim_one(database, lease=0.01)
    await trio.sleep(0.05)
    assert not (await database.heartbeat("one", [task.lease], lease=30)).lost
    assert (await database.recover("janitor")).total == 0


async def test_a_released_task_is_claimable_at_once_and_its_attempt_does_not_count(database: Database) -> None:
    (task_id,) = await database.submit([replace(HELLO, max_attempts=1)])
    task = await claim_one(database)
    assert await database.release("one", [task.lease]) == 1
    assert await database.release("one", [task.lease]) == 0
    again = await claim_one(database, "two", lease=0.01)
    assert (again.id, again.attempt, again.released, again.counted_attempt) == (task_id, 2, 1, 1)
    await trio.sleep(0.05)
    assert await database.recover("janitor") == Recovered(failed=1), "its first counted attempt was its last"


@pytest.mark.parametrize("whose", ["task", "code"])
async def test_a_lost_worker_is_an_outcome_that_a_retry_policy_may_name(database: Database, whose: str) -> None:
    careful, patient = RetryPolicy(on=("exit", "timeout")), RetryPolicy(max_attempts=9, delays=(0, 3600), jitter=0)
    if whose == "task":
        ids = await database.submit([replace(HELLO, retry=careful), replace(HELLO, max_attempts=1, retry=patient)])
    else:
        codes = [await database.store_code("pass", retry=careful), await database.store_code("pass # 2", retry=patient)]
        assert await database.store_code("pass") == codes[0], "without a policy it keeps the one it had"
        ids = await database.submit([NewTask(code_id=code, max_attempts=1 + (not at)) for at, code in enumerate(codes)])
    claimed = await database.claim("one", 2, lease=0.01)
    assert [parse_policy(task.retry or "") for task in claimed] == [careful, patient]
    await trio.sleep(0.05)
    assert await database.recover("janitor") == Recovered(retried=1, failed=1)
    never, again = await database.fetch(ids)
    assert (never.status, again.status, again.max_attempts) == ("failed", "pending", 9)
    assert again.run_at is None, "a delay of nothing makes it claimable at once"
    await claim_one(database, lease=0.01)
    await trio.sleep(0.05)
    assert await database.recover("janitor") == Recovered(retried=1)
    (again,) = await database.fetch(ids[1:])
    assert again.run_at is not None
    assert [each.max_attempts for each in await database.search(TaskFilter())] == [9, never.max_attempts]
    assert (await database.promote()).next_in == pytest.approx(3600, abs=60)


async def test_claims_that_were_never_heard_of_are_given_back_and_the_others_kept(database: Database) -> None:
    await database.submit([HELLO] * 3)
    known = (await database.claim("one", 1, lease=30))[0]
    await database.claim("one", 2, lease=30)
    assert await database.release_except("one", [known.lease]) == 2
    assert await database.release_except("one", [known.lease]) == 0
    assert len(await database.claim("two", 9, lease=30)) == 2


async def test_cancelling_depends_on_how_far_a_task_is(database: Database) -> None:
    pending, running, done = await database.submit([HELLO] * 3)
    tasks = {task.id: task for task in await database.claim("one", 3, lease=30)}
    await database.release("one", [tasks[pending].lease])
    await database.complete("one", [completed(tasks[done])])
    assert await database.cancel(pending) is Cancellation.CANCELLED
    assert await database.cancel(running) is Cancellation.REQUESTED
    assert await database.cancel(done) is Cancellation.FINISHED
    assert await database.cancel(10**15) is Cancellation.UNKNOWN
    assert (await database.heartbeat("one", [tasks[running].lease], lease=30)).cancelled == {tasks[running].lease}
    records = await database.fetch([pending, running, done])
    assert [record.status for record in records] == ["cancelled", "processing", "completed"]
    assert (await database.statistics(latest=True)).cancelled == 1


@pytest.mark.parametrize("way", ["retry", "release", "expire"])
async def test_a_task_asked_to_stop_is_never_tried_again(database: Database, way: str) -> None:
    (task_id,) = await database.submit([HELLO])
    task = await claim_one(database, lease=0.01 if way == "expire" else 30)
    await database.cancel(task_id)
    if way == "retry":
        await database.complete("one", [retry(task)])
    elif way == "release":
        await database.release("one", [task.lease])
    else:
        await trio.sleep(0.05)
        assert await database.recover("janitor") == Recovered(cancelled=1)
    (record,) = await database.fetch([task_id])
    assert record.status == Status.CANCELLED
    assert record.finished is not None
    assert (await database.statistics(latest=True)).cancelled == 1


async def test_partial_output_can_be_read_while_a_task_runs(database: Database) -> None:
    (task_id,) = await database.submit([HELLO])
    task = await claim_one(database)
    await database.progress("one", [PartialOutput(task.id, task.attempt, "half", "way")])
    (record,) = await database.fetch([task_id])
    assert (record.status, record.output, record.error_output) == ("processing", "half", "way")


async def test_an_idempotency_key_yields_the_first_task_within_its_tenant(database: Database) -> None:
    keyed = replace(HELLO, idempotency_key="order-1")
    first, twin, other = await database.submit([keyed, keyed, replace(keyed, tenant="acme")])
    assert first == twin != other
    again = await database.submit([HELLO, keyed, replace(keyed, tenant="acme"), HELLO])
    assert again[1:3] == [first, other]
    assert len({*again, first, other}) == 4


async def test_a_key_counts_for_as_long_as_its_window(database: Database) -> None:
    keyed = replace(HELLO, idempotency_key="nightly")
    (first,) = await database.submit([keyed])
    assert await database.submit([replace(keyed, idempotency_window=3600)]) == [first]
    await trio.sleep(0.02)
    brief = replace(keyed, idempotency_window=0.01)
    (second,) = await database.submit([brief])
    assert second != first
    assert await database.submit([keyed]) == [second], "the key is the second task's now, whatever window others mind"
    assert [record.idempotency_key for record in await database.fetch([first, second])] == [None, "nightly"]
    (other,) = await database.submit([replace(brief, tenant="acme")])
    assert await database.submit([keyed, replace(keyed, tenant="acme")]) == [second, other]


async def test_of_many_who_use_a_key_again_at_once_one_submits(database: Database) -> None:
    (first,) = await database.submit([replace(HELLO, idempotency_key="k", name="old")])
    await trio.sleep(0.3)
    answers: list[int] = []

    async def submit() -> None:
        answers.extend(await database.submit([replace(HELLO, idempotency_key="k", idempotency_window=0.25)] * 2))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(submit)
    if trio.current_time() - began < 0.25:  # else the window of the second is over, too
        assert len(set(answers)) == 1
    assert first not in answers


async def test_while_an_equal_task_has_not_begun_a_unique_one_is_that_one(database: Database) -> None:
    (plain,) = await database.submit([replace(SAME, unique=False)])
    first, again, swapped = await database.submit([SAME, SAME, replace(SAME, payload='{"b":[2],"a":1}', priority=9)])
    assert plain != first == again == swapped
    assert await database.submit([SAME, replace(SAME, run_at=dt.datetime(2999, 1, 1, tzinfo=dt.UTC))]) == [first] * 2
    different = [
        replace(SAME, tenant="acme"),
        replace(SAME, payload="1"),
        replace(SAME, code="pass"),
        replace(SAME, payload=None),
    ]
    assert len({first, *await database.submit(different)}) == 5
    code_id = (await database.fetch([first]))[0].code_id or ""
    assert await database.submit([replace(SAME, code=None, code_id=code_id.upper())]) == [first]
    assert (await database.statistics(latest=True)).pending == 6


async def test_once_it_has_begun_an_equal_task_is_another_and_both_may_be_tried_again(database: Database) -> None:
    (first,) = await database.submit([SAME])
    begun = await claim_one(database)
    (second,) = await database.submit([SAME])
    assert second != first
    assert await database.complete("one", [retry(begun, 60)]) == {begun.lease}, "nothing stands in the way of a retry"
    assert await database.submit([SAME]) == [second]
    given_back = await claim_one(database)
    (third,) = await database.submit([SAME])
    assert await database.release("one", [given_back.lease]) == 1
    assert await database.submit([SAME]) == [third]
    await database.cancel(third)
    assert (await database.submit([SAME]))[0] not in (first, second, third)


async def test_a_key_and_equality_each_find_the_earlier_task(database: Database) -> None:
    (first,) = await database.submit([replace(SAME, idempotency_key="k")])
    assert await database.submit([replace(SAME, idempotency_key="other"), SAME]) == [first, first]
    assert await database.submit([replace(SAME, idempotency_key="k", payload="2")]) == [first]
    await claim_one(database)
    assert await database.submit([replace(SAME, idempotency_key="k")]) == [first]


async def test_of_many_who_submit_the_same_at_once_while_it_is_claimed_each_gets_a_task(database: Database) -> None:
    answers: list[int] = []
    claimed: list[ClaimedTask] = []

    async def submit() -> None:
        for _ in range(6):
            answers.extend(await database.submit([SAME, HELLO, replace(SAME, payload="7")]))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(submit)
        while len(answers) < 4 * 6 * 3:
            claimed += await database.claim("one", 5, lease=30)
            await trio.sleep(0.001)
    claimed += await database.claim("one", 100, lease=30)
    assert {task.id for task in claimed} == set(answers), "who was told of a task has one that runs"
    assert len(claimed) == len({task.id for task in claimed})


async def test_no_more_tasks_are_pending_than_limits_allow(database: Database) -> None:
    for scope, name, most in (("queue", "", 6), ("tenant", "*", 3), ("tenant", "acme", 2)):
        await database.set_limit(Limit(Scope(scope), name, max_pending=most))
    acme = replace(HELLO, tenant="acme")
    later = replace(acme, run_at=dt.datetime(2999, 1, 1, tzinfo=dt.UTC))
    await database.submit([HELLO, HELLO, acme, later])
    for batch in ([acme], [HELLO] * 2, [HELLO, acme]):
        with pytest.raises(QueueFull):
            await database.submit(batch)
    await database.submit([HELLO, replace(HELLO, tenant="other")])
    with pytest.raises(QueueFull, match="6 tasks are pending and LIMITS allows 6") as caught:
        await database.submit([replace(HELLO, tenant="other")])
    assert caught.value.tenant is None
    assert len(await database.claim("one", 9, lease=30)) == 5
    await trio.sleep(caught.value.retry_after)
    await database.submit([acme, HELLO])
    with pytest.raises(QueueFull, match="of tenant 'acme'"):
        await database.submit([acme])


async def test_ids_come_back_in_the_order_of_submission(database: Database) -> None:
    ids = await database.submit([replace(HELLO, name=str(number)) for number in range(1000)])
    assert [record.name for record in await database.fetch(ids)] == [str(number) for number in range(1000)]


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (replace(HELLO, code="print('\x00')"), "code holds a NUL"),
        (replace(HELLO, payload='{"a": "\\u0000"}'), "payload holds the escape"),
        (replace(HELLO, payload="{"), "payload|json|JSON"),
        (replace(HELLO, name="\ud800"), "surrogate"),
        (replace(HELLO, priority=2**31), "priority 2147483648 does not fit"),
        (replace(HELLO, max_attempts=0), "max_attempts"),
        (replace(HELLO, timeout=-1.0), "timeout"),
        (replace(HELLO, idempotency_window=60.0), "idempotency_window says for how long"),
        (replace(HELLO, idempotency_key="k", idempotency_window=0.0), "idempotency_window 0.0 is out of range"),
        (replace(HELLO, idempotency_key="k", idempotency_window=float("nan")), "idempotency_window nan is out of"),
        (replace(SAME, payload="{"), "payload|json|JSON"),
        (replace(HELLO, retry=RetryPolicy(factor=0.5)), "retry cannot be used: factor"),
        (replace(HELLO, requirements="six==1.16.0\nattrs"), "requirements: line 2: 'attrs' is not pinned"),
        (NewTask(code_id="11111111-1111-1111-1111-111111111111", requirements="six==1.16.0"), "give them with code"),
        (NewTask(), "give code"),
        (NewTask(code_id="no uuid"), "no uuid"),
    ],
)
async def test_what_cannot_be_stored_is_refused_with_its_reason_and_nothing_is_stored(
    database: Database, task: NewTask, complaint: str
) -> None:
    with pytest.raises(InvalidTask, match=complaint):
        await database.submit([HELLO, task])
    assert (await database.statistics(latest=True)).total == 0


async def test_a_payload_of_ten_megabytes_goes_through_unharmed(database: Database) -> None:
    payload = json.dumps({"text": "x" * 10_000_000})
    await database.submit([replace(HELLO, payload=payload)])
    task = await claim_one(database)
    assert json.loads(task.payload) == json.loads(payload)
    await database.complete("one", [completed(task, "y" * 10_000_000)])
    assert len((await database.fetch([task.id]))[0].output or "") == 10_000_000


async def test_workers_are_known_while_they_report_and_after_they_signed_off(database: Database) -> None:
    await database.report(report("one", running=2))
    await database.report(report("two", finished_last_hour=7))
    await database.report(report("two", finished_last_hour=9))
    assert {worker.id: (worker.alive, worker.running) for worker in await database.workers()} == {
        "one": (True, 2),
        "two": (True, 0),
    }
    statistics = await database.statistics(latest=True)
    assert (statistics.workers, statistics.throughput_tasks_per_hour) == (2, 9.0)
    await database.sign_off("one")
    assert {worker.id: worker.alive for worker in await database.workers()} == {"one": False, "two": True}


async def test_what_is_still_open_can_be_asked_cheaply(database: Database) -> None:
    ids = await database.submit([HELLO] * 3)
    tasks = await database.claim("one", 2, lease=30)
    await database.complete("one", [completed(tasks[0])])
    assert await database.still_open([*ids, 10**15]) == {ids[1], ids[2]}


async def test_statistics_count_open_tasks_and_total_the_finished_ones(database: Database) -> None:
    ids = await database.submit([HELLO] * 6)
    tasks = await database.claim("one", 4, lease=30)
    await database.complete("one", [completed(tasks[0]), failed(tasks[1]), retry(tasks[2])])
    await database.cancel(ids[5])
    seen = await database.statistics(latest=True)
    assert (seen.pending, seen.scheduled, seen.running) == (1, 1, 1)
    assert (seen.completed, seen.failed, seen.cancelled, seen.total) == (1, 1, 1, 6)
    assert seen.avg_execution_seconds >= 0


async def test_a_task_waits_from_when_it_could_be_claimed(database: Database) -> None:
    """Neither an earlier attempt nor the time before it was due is waiting."""
    assert await database.oldest_pending(latest=True) is None
    await database.submit([HELLO])
    began = trio.current_time()
    first = await claim_one(database)
    await trio.sleep(0.2)
    await database.complete("one", [retry(first, 0.3)])
    assert await database.oldest_pending(latest=True) is None, "it waits for its time, not for a worker"
    await until_due(database)
    waited = await database.oldest_pending(latest=True)
    second = await claim_one(database)
    assert waited is not None
    assert second.waited is not None
    assert 0 <= waited <= second.waited <= trio.current_time() - began - 0.4
    await trio.sleep(0.2)
    await database.release("one", [second.lease])
    third = await claim_one(database)
    assert third.waited is not None
    assert 0 <= third.waited <= trio.current_time() - began - 0.6


async def test_the_oldest_of_each_priority_counts(database: Database) -> None:
    await database.submit([replace(HELLO, priority=9)])
    await trio.sleep(0.2)
    await database.submit([replace(HELLO, priority=1)])
    waited = await database.oldest_pending(latest=True)
    assert waited is not None
    assert waited >= 0.2, "the urgent task comes first, the other waits longer"


async def test_finished_tasks_are_purged_when_they_are_old_and_open_ones_never(database: Database) -> None:
    await database.submit([HELLO] * 3)
    tasks = await database.claim("one", 2, lease=30)
    for task in tasks:
        await database.complete("one", [completed(task)])
    assert await database.purge(Status.COMPLETED, 3600) == 0
    await trio.sleep(0.05)
    assert await database.purge(Status.FAILED, 0.01) == 0, "each way to end has a retention of its own"
    assert await database.purge(Status.COMPLETED, 0.01, limit=1) == 1
    assert [record.id for record in await database.fetch([task.id for task in tasks])] == [tasks[1].id], "oldest first"
    assert await database.purge(Status.COMPLETED, 0.01) == 1
    assert await database.purge(Status.COMPLETED, 0.01) == 0
    statistics = await database.statistics(latest=True)
    assert (statistics.pending, statistics.completed) == (1, 2), "retention does not lower the totals"


async def test_ended_tasks_are_found_in_pages_and_deleted_only_as_they_were_found(database: Database) -> None:
    await database.submit([replace(HELLO, name="Report", tenant="a")] * 7)
    tasks = await database.claim("one", 6, lease=30)
    await database.complete("one", [replace(completed(task), output="x" * 1000) for task in tasks[:3]])
    await database.complete("one", [completed(task) for task in tasks[3:5]])
    await database.complete("one", [replace(completed(tasks[5]), status=Status.FAILED)])
    every = EndedFilter(Status.COMPLETED)
    assert await database.ended(EndedFilter(Status.COMPLETED, older_than=3600)) == []
    pages: list[list[EndedTask]] = []
    while page := await database.ended(every, 2, [task for page in pages for task in page]):
        pages.append(page)
    found = [task for page in pages for task in page]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert sorted(task.id for task in found) == [task.id for task in tasks[:5]]
    assert {task.id for task in found[:3]} == {task.id for task in tasks[:3]}, "the oldest first"
    assert found[0].size >= 1000
    assert await database.ended(replace(every, tenant="b")) == []
    assert len(await database.ended(replace(every, tenant="a", name="PORT"))) == 5
    assert [task.id for task in await database.ended(EndedFilter(Status.FAILED))] == [tasks[5].id]
    changed = [replace(found[0], attempt=2), replace(found[1], finished=found[1].finished + dt.timedelta(seconds=1))]
    assert await database.delete_ended([]) == 0
    assert await database.delete_ended([*changed, *found[2:]]) == 3
    assert await database.ended(every) == sorted(found[:2], key=lambda task: found.index(task))


async def test_a_duty_is_one_workers_until_it_is_over(database: Database) -> None:
    assert await database.take_duty("retention", "one", 0.2)
    assert await database.take_duty("retention", "one", 0.2), "renewed"
    assert not await database.take_duty("retention", "another", 60)
    assert await database.take_duty("something else", "another", 60)
    await trio.sleep(0.25)
    assert await database.take_duty("retention", "another", 60)
    assert not await database.take_duty("retention", "one", 60)


async def test_a_listener_is_woken_by_work(database: Database) -> None:
    async with listening(database) as listener:
        await database.submit([HELLO])
        await listener.woken(of=Wakeup.PENDING)


async def test_an_applied_schema_fits_and_may_be_applied_again(database: Database) -> None:
    assert await database.migrate() == await database.migrate() == SCHEMA_VERSION
    await database.check_schema()
    await database.ping()


@pytest.mark.parametrize(
    "values",
    [
        "(created_at) VALUES ('infinity')",
        "(created_at) VALUES ('-infinity')",
        "(attempt) VALUES (2147483647)",
        "(timeout_s) VALUES ('NaN')",
    ],
)
async def test_a_task_that_somebody_wrote_outlandish_values_into_can_be_claimed_and_ended(
    database: Database, sql_url: str, values: str
) -> None:
    with psycopg.connect(sql_url, autocommit=True) as connection:
        connection.execute(f"INSERT INTO tasks {values}".encode())
    (task,) = await database.claim("w", 5, lease=30)
    assert await database.complete("w", [completed(task)]) == {task.lease}
    (record,) = await database.fetch([task.id])
    assert record.status == Status.COMPLETED


async def test_attempts_beyond_counting_are_recovered_with_the_longest_wait(database: Database, sql_url: str) -> None:
    with psycopg.connect(sql_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tasks (status, attempt, max_attempts, lease_expires_at) "
            "VALUES ('processing', 2000000000, 2147483647, now() - interval '1 second')"
        )
    assert await database.recover("janitor") == Recovered(retried=1)


async def test_a_task_that_is_parked_for_ever_keeps_nothing_from_coming_due(database: Database, sql_url: str) -> None:
    with psycopg.connect(sql_url, autocommit=True) as connection:
        connection.execute("INSERT INTO tasks (run_at) VALUES ('infinity')")
    assert await database.promote() == Promoted(0, None)


# -- what attempts leave behind ----------------------------------------------------------------------------------------------


async def test_a_task_remembers_how_its_attempts_ended_but_for_one_that_completed(database: Database) -> None:
    (task_id,) = await database.submit([replace(HELLO, max_attempts=5)])
    first = await claim_one(database)
    await database.complete("one", [retry(first, 0)])
    await claim_one(database, "two")
    await database.release("two", [Lease(task_id, 2)])
    lost = await claim_one(database, "three", lease=0.01)
    assert (await recovered(database)).retried == 1
    await until_due(database)
    last = await claim_one(database, "four")
    assert (lost.attempt, last.attempt) == (3, 4)
    await database.complete("four", [completed(last)])
    (record,) = await database.fetch([task_id])
    assert [(each.attempt, each.worker, each.ending, each.exit_code) for each in record.history] == [
        (1, "one", "failed", 1), (2, "two", "released", None), (3, "three", "lost", None),
    ]  # fmt: skip
    causes = [each.message and each.message.split(":")[0] for each in record.history]
    assert causes == ["ValueError", None, "Timeout/Crash"]
    assert all(each.started and each.started <= each.ended and each.ended.tzinfo for each in record.history)


async def test_a_task_that_completes_at_once_has_no_history(database: Database) -> None:
    (task_id,) = await database.submit([HELLO])
    await database.complete("one", [completed(await claim_one(database))])
    (record,) = await database.fetch([task_id])
    assert record.history == ()


async def test_a_task_remembers_its_newest_attempts(database: Database) -> None:
    (task_id,) = await database.submit([HELLO])
    for _ in range(HISTORY_LENGTH + 2):
        task = await claim_one(database)
        await database.release("one", [task.lease])
    (record,) = await database.fetch([task_id])
    assert [each.attempt for each in record.history] == list(range(3, HISTORY_LENGTH + 3))


@pytest.mark.parametrize("status", [Status.FAILED, Status.MALICIOUS, Status.CANCELLED])
async def test_the_attempt_with_which_a_task_ends_is_remembered(database: Database, status: Status) -> None:
    (task_id,) = await database.submit([HELLO])
    task = await claim_one(database)
    await database.complete("one", [replace(failed(task), status=status, last_error="x" * 3000)])
    (record,) = await database.fetch([task_id])
    ((attempt, message),) = [(each.ending, each.message) for each in record.history]
    assert (attempt, message) == (status, "x" * 2000)


# -- trying again ------------------------------------------------------------------------------------------------------------


async def test_a_task_that_has_ended_is_tried_again_as_a_copy(database: Database) -> None:
    new = NewTask(
        name="a name", description="words", code="print(1)", payload='{"a": 1}', priority=3, max_attempts=1, timeout=7.5,
        tenant="acme", idempotency_key="once", webhook="https://example.com/hook",
    )  # fmt: skip
    (task_id,) = await database.submit([new])
    assert await database.retry(task_id) == Retried(Retry.OPEN)
    await database.complete("one", [failed(await claim_one(database))])
    first = await database.retry(task_id)
    assert first.outcome is Retry.SUBMITTED
    assert await database.retry(task_id) == Retried(Retry.ALREADY, first.task_id)
    assert first.task_id is not None
    old, copy = await database.fetch([task_id, first.task_id])
    same = ("name", "description", "code_id", "priority", "max_attempts", "timeout", "tenant", "webhook")
    assert [getattr(copy, name) for name in same] == [getattr(old, name) for name in same]
    assert json.loads(copy.payload or "") == {"a": 1}
    assert (copy.status, copy.attempt, copy.idempotency_key, copy.retry_of) == ("pending", 0, None, task_id)
    assert (old.status, old.retried_as, old.last_error) == ("failed", copy.id, "ValueError: no")
    assert (await claim_one(database)).id == copy.id


async def test_what_does_not_exist_is_not_tried_again(database: Database) -> None:
    assert await database.retry(987654321) == Retried(Retry.UNKNOWN)


async def test_many_who_try_a_task_again_at_once_make_one_copy(database: Database) -> None:
    (task_id,) = await database.submit([HELLO])
    await database.cancel(task_id)
    answers: list[Retried] = []

    async def ask() -> None:
        answers.append(await database.retry(task_id))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
    assert len({answer.task_id for answer in answers}) == 1
    assert sorted(answer.outcome for answer in answers) == [Retry.ALREADY] * 7 + [Retry.SUBMITTED]


# -- looking for tasks -------------------------------------------------------------------------------------------------------


async def test_tasks_are_found_by_what_they_are(database: Database) -> None:
    names = ["nightly report", "Report 2026", "100%_sure", "back\\slash", "other"]
    ids = await database.submit([
        replace(HELLO, name=name, tenant=tenant) for name, tenant in zip(names, ("a", "b", "a", "b", None), strict=True)
    ])  # fmt: skip
    claimed = {task.id: task for task in await database.claim("one", 9, lease=30)}
    await database.complete("one", [failed(claimed[each]) for each in ids[:2]])
    await database.release("one", [claimed[each].lease for each in ids[2:]])

    async def found(**wanted: object) -> list[int]:
        return [each.id for each in await database.search(TaskFilter(**wanted))]  # type: ignore[arg-type]

    assert await found() == ids[::-1]
    assert await found(text="REPORT") == [ids[1], ids[0]]
    assert await found(text="2026") == [ids[1]]
    assert await found(text=f" {ids[3]} ") == [ids[3]]
    assert await found(text="0%_s") == [ids[2]]
    assert await found(text="%") == [ids[2]]
    assert await found(text="k\\s") == [ids[3]]
    assert await found(text="no such name") == []
    assert await found(text="9" * 30) == []
    assert await found(tenant="a") == [ids[2], ids[0]]
    assert await found(statuses=frozenset({"failed"})) == [ids[1], ids[0]]
    assert await found(statuses=frozenset({"failed", "pending"}), tenant="b") == [ids[3], ids[1]]
    assert await found(worker_id="one") == [ids[1], ids[0]]
    assert await found(error="ValueError: no") == [ids[1], ids[0]]
    assert await found(error="ValueError") == []
    assert await found(limit=2) == [ids[4], ids[3]]
    assert await found(limit=2, before=ids[3]) == [ids[2], ids[1]]
    (newest,) = await database.search(TaskFilter(limit=1))
    assert await found(since=newest.created_at - dt.timedelta(days=1)) == ids[::-1]
    assert await found(since=newest.created_at + dt.timedelta(days=1)) == []


async def test_a_list_shows_the_first_line_of_an_error(database: Database) -> None:
    await database.submit([replace(HELLO, name="a", priority=2, tenant="t", max_attempts=4)])
    task = await claim_one(database)
    await database.complete("one", [replace(failed(task), last_error="x" * 400 + "\nmore")])
    (found,) = await database.search(TaskFilter())
    assert (found.name, found.status, found.priority, found.tenant) == ("a", "failed", 2, "t")
    assert (found.attempt, found.max_attempts, found.worker_id, found.exit_code) == (1, 4, "one", 1)
    assert found.error == "x" * 300
    assert found.started is not None
    assert found.finished is not None
    assert found.created_at.tzinfo is not None


async def test_failures_are_grouped_by_what_was_the_matter(database: Database) -> None:
    errors = ["KeyError: 'id 17'", "KeyError: 'id 4'\nmore", "ValueError: at 0x7f3a", "ValueError: at 0x11"] + [
        "Timeout"
    ] * 3
    ids = await database.submit([replace(HELLO, name=f"task {number}") for number in range(len(errors))])
    for error in errors:
        task = await claim_one(database)
        await database.complete("one", [replace(failed(task), last_error=error)])
    begin = (await database.fetch(ids[:1]))[0].created_at - dt.timedelta(minutes=1)
    groups = await database.failures(begin)
    assert [(group.error, group.count, group.newest_id) for group in groups] == [
        ("Timeout", 3, ids[6]), ("ValueError: at #", 2, ids[3]), ("KeyError: 'id #'", 2, ids[1]),
    ]  # fmt: skip
    assert groups[0].names == ("task 4", "task 6")
    assert groups[0].newest_at.tzinfo is not None
    assert [group.count for group in await database.failures(begin, limit=1)] == [3]
    assert await database.failures(begin + dt.timedelta(days=1)) == []
    assert [each.id for each in await database.search(TaskFilter(error="KeyError: 'id #'"))] == [ids[1], ids[0]]


async def test_open_tasks_are_counted_by_priority(database: Database) -> None:
    assert await database.depths() == []
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    ids = await database.submit(
        [replace(HELLO, priority=priority) for priority in (1, 1, 5)] + [replace(HELLO, priority=5, run_at=later)]
    )
    await database.claim("one", 1, lease=30)
    await database.cancel(ids[2])
    assert await database.depths() == [QueueDepth(1, 1, 0, 1), QueueDepth(5, 0, 1, 0)]
    assert await database.depths(limit=1) == [QueueDepth(1, 1, 0, 1)]


async def test_running_tasks_are_listed_with_the_end_of_their_output(database: Database) -> None:
    assert await database.running() == []
    await database.submit([replace(HELLO, name=name, tenant="acme") for name in ("first", "second", "third", "waits")])
    claimed = await database.claim("one", 3, lease=30)
    texts = (("begin" + "x" * 20 + "end", "not this"), ("", "a warning"), ("", ""))
    await database.progress(
        "one", [PartialOutput(task.id, task.attempt, *text) for task, text in zip(claimed, texts, strict=True)]
    )
    first, second, third = await database.running(tail=5)
    assert (first.name, first.tenant, first.attempt, first.worker_id, first.tail) == (
        "first",
        "acme",
        1,
        "one",
        "xxend",
    )
    assert first.started is not None
    assert first.started.tzinfo is not None
    assert (second.name, second.tail, third.tail) == ("second", "rning", "")
    assert [task.name for task in await database.running(limit=2)] == ["first", "second"]


async def test_scripts_are_stored_read_and_listed(database: Database) -> None:
    texts = ["print(1)", "import six\nprint(2)\n", "é" * 200]
    ids = [await database.store_code(text, "six==1.16.0" if "six" in text else None) for text in texts]
    assert await database.store_code("print(1)") == ids[0]
    record = await database.fetch_code(ids[1])
    assert record is not None
    assert (record.id, record.code, record.requirements) == (ids[1], texts[1], "six==1.16.0\n")
    listed = await database.codes()
    assert [each.id for each in listed] == sorted(ids)
    by_id = {each.id: each for each in listed}
    assert [(by_id[each].lines, by_id[each].size, by_id[each].first_line) for each in ids] == [
        (1, 8, "print(1)"), (2, 20, "import six"), (1, 200, "é" * 120),
    ]  # fmt: skip
    assert [each.id for each in await database.codes(limit=1, after=min(ids))] == [sorted(ids)[1]]
    assert await database.fetch_code("11111111-1111-1111-1111-111111111111") is None
    assert await database.fetch_code("no uuid") is None
    with pytest.raises(InvalidTask, match="NUL"):
        await database.store_code("a\0b")
    (task_id,) = await database.submit([NewTask(code="print(1)")])
    assert (await database.fetch([task_id]))[0].code_id == ids[0]


# -- webhooks ----------------------------------------------------------------------------------------------------------------

HOOKED = replace(HELLO, webhook="https://example.com/hook", tenant="acme", name="hooked")


async def test_a_webhook_is_due_once_its_task_has_ended(database: Database) -> None:
    (task_id,) = await database.submit([HOOKED])
    task = await claim_one(database)
    assert task.webhook
    assert await database.claim_webhooks(9, lease=30) == []
    await database.complete("one", [retry(task, 0)])
    assert await database.claim_webhooks(9, lease=30) == []
    await database.complete("one", [replace(failed(await claim_one(database)), last_error="ValueError: no\nmore")])
    (delivery,) = await database.claim_webhooks(9, lease=30)
    assert (delivery.task_id, delivery.url, delivery.tries) == (task_id, "https://example.com/hook", 1)
    assert (delivery.name, delivery.status, delivery.tenant, delivery.attempt) == ("hooked", "failed", "acme", 2)
    assert (delivery.exit_code, delivery.error) == (1, "ValueError: no")
    assert delivery.started is not None
    assert delivery.started.tzinfo is not None
    assert delivery.finished.tzinfo is not None
    assert await database.claim_webhooks(9, lease=30) == []
    assert (await database.fetch([task_id]))[0].webhook == "https://example.com/hook"


async def test_a_worker_knows_which_of_its_tasks_somebody_is_told_of(database: Database) -> None:
    await database.submit([HELLO, HOOKED])
    assert [task.webhook for task in await database.claim("one", 2, lease=30)] == [False, True]


@pytest.mark.parametrize("url", ["ftp://example.com/", "https://me:pw@example.com/", "https://[::1%25lo]/", "x" * 3000])
async def test_what_is_no_url_to_deliver_to_is_refused(database: Database, url: str) -> None:
    with pytest.raises(InvalidTask, match=r"^webhook "):
        await database.submit([replace(HELLO, webhook=url)])


async def test_however_a_task_ends_its_webhook_is_due(database: Database) -> None:
    ids = await database.submit([replace(HOOKED, max_attempts=1)] * 5 + [replace(HELLO, tenant=HOOKED.tenant)])
    await database.cancel(ids[0])
    tasks = {task.id: task for task in await database.claim("one", 3, lease=30)}
    await database.complete("one", [completed(tasks[ids[1]]), replace(failed(tasks[ids[2]]), status=Status.MALICIOUS)])
    await database.cancel(ids[3])
    await database.release("one", [tasks[ids[3]].lease])
    (lost,) = await database.claim("two", 1, lease=0.01)
    assert lost.id == ids[4]
    assert (await recovered(database)).failed == 1
    await database.complete("one", [completed(await claim_one(database))])
    deliveries = await database.claim_webhooks(9, lease=30)
    assert {delivery.task_id: delivery.status for delivery in deliveries} == dict(
        zip(ids[:5], ("cancelled", "completed", "malicious", "cancelled", "failed"), strict=True)
    )


async def test_deliveries_that_were_put_off_are_due_later_and_that_try_does_not_count(database: Database) -> None:
    await database.submit([replace(HOOKED, idempotency_key=str(number)) for number in range(3)])
    await database.complete("one", [completed(task) for task in await database.claim("one", 3, lease=30)])
    soon, late, stale = await database.claim_webhooks(3, lease=0)
    await database.put_off_webhooks({soon: 0.0, late: 3600.0})
    taken = {delivery.task_id: delivery for delivery in await database.claim_webhooks(3, lease=30)}
    assert {number: delivery.tries for number, delivery in taken.items()} == {soon.task_id: 1, stale.task_id: 2}
    await database.put_off_webhooks({stale: 0.0})
    await database.put_off_webhooks({})
    assert await database.claim_webhooks(3, lease=30) == [], "it was taken anew since"
    assert await database.settle_webhook(taken[soon.task_id], None)


async def test_a_delivery_is_made_again_until_it_is_settled(database: Database) -> None:
    (task_id,) = await database.submit([HOOKED])
    await database.complete("one", [completed(await claim_one(database))])
    (first,) = await database.claim_webhooks(1, lease=0)
    (second,) = await database.claim_webhooks(1, lease=30)
    assert (first.tries, second.tries) == (1, 2)
    assert not await database.settle_webhook(first, None)
    assert await database.settle_webhook(second, 0.0)
    (third,) = await database.claim_webhooks(1, lease=30)
    assert await database.settle_webhook(third, 3600.0)
    assert await database.claim_webhooks(1, lease=30) == []
    assert await database.settle_webhook(third, None)
    assert await database.claim_webhooks(1, lease=30) == []
    assert (await database.fetch([task_id]))[0].status == "completed"


async def test_a_worker_is_asked_to_drain_and_says_when_it_has(database: Database) -> None:
    async def state() -> str:
        return next(each.state for each in await database.workers() if each.id == "one")

    assert not await database.drain("one")
    assert not await database.report(report("one"))
    assert await database.drain("one")
    assert await state() == "draining"
    assert await database.report(report("one", running=1))
    assert await database.report(report("one", drained=True))
    assert await database.drain("one"), "again"
    assert await state() == "drained"
    assert await database.drain("one", False)
    assert not await database.report(report("one", drained=True))
    assert await state() == "alive"
    assert await database.drain("one")
    assert await state() == "draining", "what it said the time before counts no more"
    await database.sign_off("one")
    assert await state() == "stopped"
    assert not await database.drain("one", False)
