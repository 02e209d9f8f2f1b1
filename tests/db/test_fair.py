"""Fair share between tenants, and the limits of LIMITS, on every kind of database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import psycopg
import pytest
import trio

from continuum.db.errors import InvalidLimit, InvalidTask
from continuum.db.protocol import Database
from continuum.model import Cancellation, ClaimedTask, Completion, HeldBack, HeldBackBy, Limit, NewTask, Scope, Status
from tests.db.conftest import open_url

HELLO = NewTask(code="print('hello')")
TENANT, TAG, CODE, QUEUE = Scope.TENANT, Scope.TAG, Scope.CODE, Scope.QUEUE


async def submit(database: Database, **tenants: int) -> None:
    """So many tasks of each tenant, one tenant after the other."""
    for tenant, count in tenants.items():
        await database.submit([replace(HELLO, tenant=tenant)] * count)


async def finish(database: Database, tasks: Iterable[ClaimedTask], worker: str = "one") -> None:
    done = [Completion(task.id, task.attempt, Status.COMPLETED, 0, "", "", None) for task in tasks]
    assert len(await database.complete(worker, done)) == len(done)


def tenants(tasks: Iterable[ClaimedTask]) -> Counter[str | None]:
    return Counter(task.tenant for task in tasks)


async def claim_all(database: Database, limit: int, worker: str = "one") -> list[ClaimedTask]:
    """Claim and finish until there is nothing left."""
    tasks: list[ClaimedTask] = []
    with trio.fail_after(60):
        while claimed := await database.claim(worker, limit, lease=30):
            tasks += claimed
            await finish(database, claimed, worker)
    return tasks


# -- fair share ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 4, 7])
async def test_a_small_tenant_waits_for_no_more_than_a_few_tasks_of_a_large_one(database: Database, limit: int) -> None:
    await submit(database, large=300, small=5)
    served: list[ClaimedTask] = []
    while tenants(served)["small"] < 5:
        served += await database.claim("one", limit, lease=30)
    assert len(served) <= 10 + 2 * limit


async def test_tenants_with_a_backlog_have_equal_shares(database: Database) -> None:
    await submit(database, a=200, b=100, c=50, d=50)
    served = [task for _ in range(40) for task in await database.claim("one", 4, lease=30)]
    assert all(abs(count - 40) <= 4 for count in tenants(served).values()), tenants(served)


async def test_shares_follow_the_weights(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "heavy", weight=3))
    await database.set_limit(Limit(TENANT, "*", weight=1))
    await database.set_limit(Limit(TENANT, "light", weight=0.5))
    await submit(database, heavy=300, normal=300, light=300)
    served = tenants([task for _ in range(90) for task in await database.claim("one", 2, lease=30)])
    assert 105 <= served["heavy"] <= 135, served
    assert 30 <= served["normal"] <= 50, served
    assert 8 <= served["light"] <= 35, served


@pytest.mark.parametrize("each", [2, 9])
async def test_a_worker_goes_all_the_way_around_before_anybody_has_a_second_turn(database: Database, each: int) -> None:
    places = [(f"tenant-{n}", tags) for n in range(12) for tags in ((), ("gpu",))]
    await database.submit([replace(HELLO, tenant=name, worker_tags=tags) for name, tags in places] * each)
    served = [task for _ in range(8) for task in await database.claim("one", 3, lease=30, tags=("eu", "gpu"))]
    records = await database.fetch([task.id for task in served])
    assert Counter((record.tenant, record.worker_tags) for record in records) == Counter(places)


async def test_workers_begin_at_different_places(sql_url: str) -> None:
    begun = Counter[str | None]()
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(open_url(sql_url)) for _ in range(10)]
        await workers[0].migrate()
        await workers[0].submit([replace(HELLO, tenant=f"tenant-{n:03}") for n in range(200)] * 2)
        for number, worker in enumerate(workers):
            begun.update(tenants(await worker.claim(f"worker-{number}", 1, lease=30)))
    assert len(begun) >= 7, begun


async def test_a_tenant_alone_gets_everything_whatever_its_weight(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "light", weight=0.01))
    await submit(database, light=20)
    assert len(await database.claim("one", 20, lease=30)) == 20


async def test_within_a_tenant_priority_and_then_id_decide(database: Database) -> None:
    ids = await database.submit([replace(HELLO, tenant="a", priority=each) for each in (5, 1, 5, 0)])
    claimed = [(await database.claim("one", 1, lease=30))[0].id for _ in ids]
    assert claimed == [ids[3], ids[1], ids[0], ids[2]]


async def test_lower_priorities_have_their_turn_beyond_others(database: Database) -> None:
    for tenant, priority, count in (("a", 0, 80), ("a", 5, 3), ("b", 1, 80), ("b", 7, 2), ("c", 0, 1)):
        await database.submit([replace(HELLO, tenant=tenant, priority=priority)] * count)

    async def claim(beyond: int | None) -> list[tuple[str | None, int]]:
        tasks = await database.claim("one", 2, lease=30, beyond=beyond)
        return sorted((task.tenant, task.priority) for task in tasks)

    assert set(await claim(None)) < {("a", 0), ("b", 1), ("c", 0)}
    assert await claim(0) == [("a", 5), ("b", 1)]
    assert await claim(1) == [("a", 5), ("b", 7)]
    assert await claim(5) == [("b", 7)]
    assert await claim(7) == []
    assert await claim(2**31 - 1) == []
    assert len(await claim(None)) == 2
    assert len(await claim_all(database, 40)) == 80 + 80 + 1 + 5 - 9


async def test_everything_is_claimed_by_workers_that_claim_at_once(database: Database) -> None:
    await submit(database, **{f"tenant-{n}": 10 for n in range(20)})
    served: list[list[ClaimedTask]] = [[] for _ in range(4)]

    async def work(number: int) -> None:
        served[number] += await claim_all(database, 5, f"worker-{number}")

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, number)
    everything = [task for tasks in served for task in tasks]
    while left := await database.claim("last", 50, lease=30):
        everything += left
    assert len({task.id for task in everything}) == len(everything) == 200


# -- limits --------------------------------------------------------------------------------------------------------------


async def test_no_more_of_a_tenant_run_at_a_time_than_its_limit_says(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "a", max_running=2))
    await submit(database, a=10, b=3)
    first = await database.claim("one", 10, lease=30)
    assert tenants(first) == {"a": 2, "b": 3}
    assert not await database.claim("two", 10, lease=30)
    await finish(database, [task for task in first if task.tenant == "a"][:1])
    assert tenants(await database.claim("two", 10, lease=30)) == {"a": 1}


async def test_a_place_is_free_again_however_its_task_ended(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "*", max_running=1))
    await submit(database, a=4)
    (released,) = await database.claim("one", 5, lease=30)
    await database.release("one", [released.lease])
    await database.claim("one", 5, lease=30)
    await database.release_except("one", [])
    await database.claim("one", 5, lease=0.01)
    with trio.fail_after(10):
        while not (await database.recover("janitor")).total:
            await trio.sleep(0.01)
    (failed,) = await database.claim("one", 5, lease=30)
    await database.complete("one", [Completion(failed.id, failed.attempt, Status.PENDING, 1, "", "", "no", 60.0)])
    (cancelled,) = await database.claim("one", 5, lease=30)
    await database.cancel(cancelled.id)
    assert not await database.claim("one", 5, lease=30), "it runs until its worker says otherwise"
    await database.release("one", [cancelled.lease])
    assert len(await database.claim("one", 5, lease=30)) == 1


async def test_limits_hold_from_the_next_claim_on(database: Database) -> None:
    await submit(database, a=30)
    await database.set_limit(Limit(TENANT, "*", max_running=3))
    assert len(await database.claim("one", 20, lease=30)) == 3
    await database.set_limit(Limit(TENANT, "a", max_running=5))
    assert len(await database.claim("one", 20, lease=30)) == 2
    await database.set_limit(Limit(TENANT, "a", max_running=1))
    assert not await database.claim("one", 20, lease=30)
    assert await database.limits() == [Limit(TENANT, "*", max_running=3), Limit(TENANT, "a", max_running=1)]
    assert await database.clear_limit(TENANT, "a")
    assert not await database.clear_limit(TENANT, "a")
    await database.clear_limit(TENANT, "*")
    assert len(await database.claim("one", 20, lease=30)) == 20


@pytest.mark.parametrize("survivor", [0, 1, 2])
async def test_a_limit_that_was_lowered_is_kept_whoever_goes_first(database: Database, survivor: int) -> None:
    """What has a place beyond it moves into one that counts, as soon as there is one."""
    await database.set_limit(Limit(TENANT, "a", max_running=3))
    await submit(database, a=10)
    running = sorted([task for _ in range(3) for task in await database.claim("one", 1, lease=30)], key=lambda t: t.id)
    assert len(running) == 3
    left = running.pop(survivor)
    await database.set_limit(Limit(TENANT, "a", max_running=2))
    assert await database.claim("one", 9, lease=30) == []
    await finish(database, running)
    await database.recover("janitor")
    more = await database.claim("one", 9, lease=30)
    assert len(more) == 1, "one runs still, and two may"
    await database.set_limit(Limit(TENANT, "a", max_running=1))
    await finish(database, more)
    assert await database.claim("one", 9, lease=30) == []
    await database.recover("janitor")
    assert await database.claim("one", 9, lease=30) == []
    await finish(database, [left])
    await database.recover("janitor")
    assert len(await database.claim("one", 9, lease=30)) == 1


async def test_no_more_of_a_tenant_begin_in_any_period_than_its_rate_says(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "a", rate=3, rate_period=0.5))
    await submit(database, a=8, b=1)
    first = await database.claim("one", 20, lease=30)
    assert tenants(first) == {"a": 3, "b": 1}
    held = await database.claim("one", 20, lease=30)
    assert held == []
    assert held.again_in is not None
    assert 0 < held.again_in <= 0.5
    await finish(database, first)
    began = trio.current_time()
    starts: list[float] = []
    with trio.fail_after(20):
        while len(starts) < 5:
            claimed = await database.claim("one", 20, lease=30)
            starts += [trio.current_time()] * len(claimed)
            await trio.sleep(min(claimed.again_in or 0.05, 0.05))
    assert starts[3] - began > 0.45, "three in the second period, the rest in the third"


async def test_a_rate_that_is_too_large_to_be_kept_one_by_one_is_kept_in_parts(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "a", rate=5_000, rate_period=5_000))
    await submit(database, a=1_100)
    served = 0
    for _ in range(30):
        served += len(await database.claim("one", 50, lease=30))
    assert served in range(1_000, 1_002) or served == 1_100, "a thousand in a thousand seconds; nobody counts more"


async def test_a_worker_with_nothing_to_hold_back_is_told_of_no_time(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "*", rate=100, rate_period=60))
    await submit(database, a=2)
    assert (await database.claim("one", 20, lease=30)).again_in is None


@pytest.mark.parametrize("kind", ["running", "rate"])
async def test_limits_are_exact_for_workers_that_claim_at_once(database: Database, kind: str) -> None:
    values = {"max_running": 3} if kind == "running" else {"rate": 3, "rate_period": 30.0}
    await database.set_limit(replace(Limit(TENANT, "a"), **values))
    await submit(database, a=60, b=60)
    counted = Counter[str | None]()
    most = 0
    held: dict[int, list[ClaimedTask]] = {}

    async def work(number: int) -> None:
        nonlocal most
        for _ in range(8):
            tasks = await database.claim(f"worker-{number}", 4, lease=30)
            counted.update(task.tenant for task in tasks)
            held[number] = tasks
            most = max(most, sum(tenants(each)["a"] for each in held.values()))
            held[number] = []
            await finish(database, tasks, f"worker-{number}")

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(work, number)
    assert most <= 3
    assert counted["b"] == 60, "the one at its limit keeps nobody from the others"
    if kind == "rate":
        assert counted["a"] == 3


async def test_many_tenants_at_their_limits_do_not_hide_one_that_is_not(database: Database) -> None:
    await database.set_limit(Limit(TENANT, "*", max_running=0))
    await database.set_limit(Limit(TENANT, "zz", max_running=5))
    await submit(database, **{f"tenant-{n:03}": 1 for n in range(150)}, zz=1)
    assert tenants(await database.claim("one", 2, lease=30)) == {"zz": 1}


async def test_a_claim_ends_where_very_many_tenants_are_held_back(database: Database) -> None:
    await database.submit([replace(HELLO, tenant=f"tenant-{n}") for n in range(1200)])
    await database.set_limit(Limit(TENANT, "*", paused=True))
    with trio.fail_after(30):
        assert await database.claim("one", 4, lease=30) == []


async def test_those_without_anything_in_the_bounds_hide_nobody(database: Database) -> None:
    await database.submit([replace(HELLO, tenant=f"tenant-{n}", priority=1) for n in range(30)])
    await database.submit([replace(HELLO, tenant="one", priority=9)])
    assert tenants(await database.claim("one", 2, lease=30, min_priority=5)) == {"one": 1}


async def test_what_is_paused_does_not_begin(database: Database) -> None:
    await submit(database, a=2, b=2)
    await database.set_limit(Limit(TENANT, "a", paused=True))
    assert tenants(await database.claim("one", 10, lease=30)) == {"b": 2}
    await database.set_limit(Limit(QUEUE, "", paused=True))
    await database.clear_limit(TENANT, "a")
    assert not await database.claim("one", 10, lease=30)
    await database.clear_limit(QUEUE, "")
    assert tenants(await database.claim("one", 10, lease=30)) == {"a": 2}


async def test_who_looks_sees_what_is_used_and_what_is_held_back(database: Database) -> None:
    paused = await database.store_code("print('paused')")
    for limit in (
        Limit(TENANT, "a", max_running=2, weight=3),
        Limit(TENANT, "b", rate=1, rate_period=600),
        Limit(TENANT, "c", paused=True),
        Limit(TENANT, "*", max_running=50),
        Limit(TAG, "gpu", paused=True),
        Limit(CODE, paused, paused=True),
    ):
        await database.set_limit(limit)
    await submit(database, a=5, b=3, c=4, d=1)
    assert await database.held_back() == [HeldBack(HeldBackBy.TENANT_PAUSED, 1, 4)]
    await database.submit([replace(HELLO, worker_tags=("gpu",)), NewTask(code_id=paused)])
    await database.submit([replace(HELLO, tenant="e", concurrency_key="k")] * 2)
    await claim_behind_paused(database)
    await claim_behind_paused(database)
    assert {each.reason: (each.tenants, each.tasks) for each in await database.held_back()} == {
        HeldBackBy.MAX_RUNNING: (1, 3),
        HeldBackBy.RATE: (1, 2),
        HeldBackBy.TENANT_PAUSED: (1, 4),
        HeldBackBy.TAG_PAUSED: (1, 1),
        HeldBackBy.CODE_PAUSED: (1, 1),
        HeldBackBy.OTHER_TASKS: (1, 2),
    }
    uses = {(use.limit.scope, use.limit.name): (use.running, use.starts) for use in await database.limit_uses()}
    assert uses == {
        (CODE, paused): (None, None),
        (TAG, "gpu"): (None, None),
        (TENANT, "*"): (None, None),
        (TENANT, "a"): (2, None),
        (TENANT, "b"): (None, 1),
        (TENANT, "c"): (None, None),
    }
    await database.set_limit(Limit(QUEUE, "", paused=True))
    assert {each.reason for each in await database.held_back()} == {HeldBackBy.QUEUE_PAUSED, HeldBackBy.OTHER_TASKS}


# -- tags ----------------------------------------------------------------------------------------------------------------


def named(tasks: Sequence[ClaimedTask]) -> list[str]:
    return sorted(task.name for task in tasks)


async def test_tasks_run_where_a_worker_has_what_they_ask_for(database: Database) -> None:
    wanted = {"any": (), "gpu": ("gpu",), "both": ("gpu", "eu"), "us": ("us",)}
    await database.submit([replace(HELLO, name=name, worker_tags=tags) for name, tags in wanted.items()])
    assert named(await database.claim("plain", 9, lease=30)) == ["any"]
    assert named(await database.claim("one", 9, lease=30, tags=("eu",))) == []
    assert named(await database.claim("two", 9, lease=30, tags=("eu", "gpu"))) == ["both", "gpu"]
    (us,) = await database.claim("three", 9, lease=30, tags=("us",))
    (record,) = await database.fetch([us.id])
    assert record.worker_tags == ("us",)


async def test_a_long_queue_for_other_workers_is_passed_by(database: Database) -> None:
    await database.submit([replace(HELLO, worker_tags=("gpu",))] * 200 + [replace(HELLO, name="mine")])
    assert named(await database.claim("one", 5, lease=30)) == ["mine"]


async def test_a_tag_may_be_paused(database: Database) -> None:
    await database.submit([replace(HELLO, worker_tags=tags) for tags in ((), ("gpu",), ("eu", "gpu"), ("eu",))])
    await database.set_limit(Limit(TAG, "gpu", paused=True))
    tasks = await database.claim("one", 9, lease=30, tags=("gpu", "eu"))
    records = await database.fetch([task.id for task in tasks])
    assert sorted(record.worker_tags for record in records) == [(), ("eu",)]


# -- codes ---------------------------------------------------------------------------------------------------------------


async def resume(database: Database, code: str) -> None:
    await database.clear_limit(CODE, code)
    while await database.resume_codes(7):
        pass


async def test_a_paused_code_keeps_nothing_else_from_running(database: Database) -> None:
    code = await database.store_code("print('paused')")
    await database.set_limit(Limit(CODE, code, paused=True))
    paused = NewTask(code_id=code, tenant="a")
    ids = await database.submit(
        [paused] * 150 + [replace(HELLO, tenant="a"), replace(paused, tenant="b", worker_tags=("gpu",))]
    )
    (other,) = await claim_behind_paused(database, tags=("eu", "gpu"))
    assert other.id == ids[150]
    await database.submit([replace(HELLO, tenant="b", worker_tags=("gpu",)), paused])
    (other,) = await claim_behind_paused(database, tags=("gpu",))
    assert other.tenant == "b"
    assert (await database.statistics(latest=True)).pending == 152
    assert await database.resume_codes() == 0, "it is paused still"
    await resume(database, code)
    assert len(await claim_all(database, 50)) == 151
    (gpu,) = await database.claim("one", 50, lease=30, tags=("gpu",))
    (record,) = await database.fetch([gpu.id])
    assert (gpu.id, record.worker_tags) == (ids[151], ("gpu",))


async def test_whatever_becomes_claimable_of_a_paused_code_does_not_begin(database: Database) -> None:
    """However it came to wait: by a retry, given back, at its time, after others."""
    await database.submit([replace(HELLO, tenant="a", sequence_key=key) for key in (None, None, None, "s", "s")])
    while (await database.admit_page()).admitted:
        pass
    first = await database.claim("one", 9, lease=30)
    assert len(first) == 4
    code = first[0].code_id
    assert code is not None
    await database.set_limit(Limit(CODE, code, paused=True))
    await database.complete("one", [Completion(first[0].id, 1, Status.PENDING, 1, "", "", "why", retry_in=0)])
    await database.release("one", [first[1].lease])
    await finish(database, first[2:])
    await database.admit_after([task.id for task in first])
    assert await claim_behind_paused(database) == []
    cancelled = await database.cancel(first[0].id)
    assert cancelled is Cancellation.CANCELLED
    assert (await database.fetch([first[0].id]))[0].worker_tags == ()
    await resume(database, code)
    assert len(await claim_all(database, 9)) == 2


async def claim_behind_paused(database: Database, tags: Sequence[str] = ()) -> list[ClaimedTask]:
    """Claim as a worker does, which asks again at once where it is told so."""
    tasks: list[ClaimedTask] = []
    with trio.fail_after(60):
        while True:
            claim = await database.claim("one", 4, lease=30, tags=tags)
            tasks += claim
            if claim.again_in != 0:
                return tasks


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Limit(TENANT, "a"), "it limits nothing"),
        (Limit(TENANT, "a", weight=0), "weight 0 is out of range"),
        (Limit(TENANT, "a", max_running=-1), "max_running -1 is out of range"),
        (Limit(TENANT, "a", rate=3), "give both"),
        (Limit(TENANT, "a", rate=3, rate_period=float("nan")), "rate_period nan is out of range"),
        (Limit(TAG, "gpu", max_running=3), "max_running is no limit of a tag; it may have paused"),
        (Limit(QUEUE, "a", paused=True), "the queue has no name"),
        (Limit(TAG, "", paused=True), "name the tenant, key, tag or code"),
        (Limit(CODE, "*", paused=True), "'\\*' is no id of a code"),
        (Limit(CODE, "A" * 8 + "-0000-0000-0000-000000000000", paused=True), "is no id of a code"),
        (Limit(TENANT, "\0", paused=True), "NUL"),
    ],
)
async def test_what_is_no_limit_is_refused_and_says_why(database: Database, limit: Limit, said: str) -> None:
    with pytest.raises(InvalidLimit, match=said):
        await database.set_limit(limit)
    assert await database.limits() == []


@pytest.mark.parametrize("tags", [("a b",), ("",), ("é",), tuple("abcdefg"), "gpu", (3,)])
async def test_what_is_no_tag_is_refused(database: Database, tags: tuple[str, ...]) -> None:
    with pytest.raises(InvalidTask, match="worker_tags: "):
        await database.submit([replace(HELLO, worker_tags=tags)])


async def test_a_permit_of_a_task_that_was_deleted_by_hand_is_found(postgres: Database, empty_postgres: str) -> None:
    await postgres.set_limit(Limit(TENANT, "a", max_running=1))
    await submit(postgres, a=2)
    (first,) = await postgres.claim("one", 5, lease=30)
    with psycopg.connect(empty_postgres, autocommit=True) as connection:
        connection.execute("DELETE FROM tasks WHERE id = %s", (first.id,))
    assert not await postgres.claim("one", 5, lease=30)
    await postgres.recover("janitor")
    assert len(await postgres.claim("one", 5, lease=30)) == 1
