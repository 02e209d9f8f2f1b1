"""What one task waits for, on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from continuum.db.protocol import Database
from continuum.model import HeldBackBy, Limit, NewTask, Scope, WaitsFor

HELLO = NewTask(code="print('hello')")


@pytest.mark.parametrize(
    ("limit", "task", "reason"),
    [
        (None, HELLO, None),
        (Limit(Scope.QUEUE, "", paused=True), HELLO, HeldBackBy.QUEUE_PAUSED),
        (Limit(Scope.TENANT, "a", paused=True), replace(HELLO, tenant="a"), HeldBackBy.TENANT_PAUSED),
        (Limit(Scope.TENANT, "*", max_running=0), replace(HELLO, tenant="a"), HeldBackBy.MAX_RUNNING),
        (Limit(Scope.TAG, "gpu", paused=True), replace(HELLO, worker_tags=("eu", "gpu")), HeldBackBy.TAG_PAUSED),
        (Limit(Scope.TENANT, "b", paused=True), replace(HELLO, tenant="a"), None),
    ],
    ids=lambda value: value.scope.value if isinstance(value, Limit) else None,
)
async def test_what_holds_it_back_is_told_where_something_does(
    database: Database, limit: Limit | None, task: NewTask, reason: HeldBackBy | None
) -> None:
    if limit is not None:
        await database.set_limit(limit)
    (task_id,) = await database.submit([task])
    assert await database.waits_for(task_id) == WaitsFor(reason)


async def test_a_paused_code_a_rate_and_a_full_tenant_are_told(database: Database) -> None:
    await database.set_limit(Limit(Scope.TENANT, "slow", rate=1, rate_period=600))
    await database.set_limit(Limit(Scope.TENANT, "full", max_running=1))
    await database.submit([replace(HELLO, tenant="slow"), replace(HELLO, tenant="full")])
    assert len(await database.claim("one", 9, lease=30)) == 2
    slow, full, other = await database.submit([replace(HELLO, tenant=name) for name in ("slow", "full", "other")])
    assert await database.waits_for(slow) == WaitsFor(HeldBackBy.RATE)
    assert await database.waits_for(full) == WaitsFor(HeldBackBy.MAX_RUNNING)
    (record,) = await database.fetch([other])
    assert record.code_id is not None
    await database.set_limit(Limit(Scope.CODE, record.code_id, paused=True))
    assert await database.waits_for(other) == WaitsFor(HeldBackBy.CODE_PAUSED)


async def test_whom_it_waits_for_is_told(database: Database) -> None:
    first, second, done = await database.submit(
        [replace(HELLO, sequence_key="s"), replace(HELLO, sequence_key="s"), replace(HELLO, concurrency_key="k")]
    )
    (after,) = await database.submit([replace(HELLO, depends_on=(first, done), sequence_key="s")])
    (keyed,) = await database.submit([replace(HELLO, concurrency_key="k")])
    assert await database.waits_for(second) == WaitsFor(HeldBackBy.OTHER_TASKS, (first,))
    assert await database.waits_for(after) == WaitsFor(HeldBackBy.OTHER_TASKS, (first, done))
    await database.admit_page()
    assert await database.waits_for(first) == WaitsFor(None)
    assert await database.waits_for(keyed) == WaitsFor(HeldBackBy.OTHER_TASKS)
    await database.cancel(first)
    await database.cancel(done)
    assert await database.waits_for(after) == WaitsFor(HeldBackBy.OTHER_TASKS, (second,))


async def test_who_does_not_wait_for_anything_is_told_nothing(database: Database) -> None:
    (running,) = await database.submit([HELLO])
    await database.claim("one", 1, lease=30)
    (cancelled,) = await database.submit([HELLO])
    await database.cancel(cancelled)
    for task_id in (running, cancelled, 2**62):
        assert await database.waits_for(task_id) is None
