"""What only CockroachDB does: a changefeed, parts of the queue, plans under SKIP LOCKED, privileges, and old reads."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
import trio

from continuum.db import changefeed, cockroach, statements
from continuum.db.cockroach import COCKROACH
from continuum.db.cockroach_claim import CLAIM_KEYS, CLAIM_LIMITED, PARK
from continuum.db.cockroach_ring import READ, WALK, WALK_ON, hash_of
from continuum.db.cockroach_waiting import HEAD, SHARDS, STILL_THERE, WINDOW
from continuum.db.database import SqlDatabase
from continuum.db.dialect import SCHEMA_VERSION
from continuum.db.permits import FIND_LIMITS, FIND_PERMITS
from continuum.db.protocol import Database
from continuum.db.validation import INTEGER
from continuum.model import Completion, HeartbeatAnswer, Lease, Limit, NewTask, Scope, Status, Wakeup
from tests.db.conftest import create_database, open_url
from tests.db.upgrade import check_upgrade_from_version_1
from tests.support.cockroach import CockroachServer
from tests.support.listener import listening
from tests.support.proxy import Fault, fault_proxy

HELLO = NewTask(code="print('hello')")
_users = itertools.count(1)


@pytest.fixture
def url(shared_cockroach: CockroachServer) -> str:
    """The URL of an empty database."""
    return create_database(shared_cockroach)


@pytest.fixture
async def queue(url: str) -> AsyncIterator[Database]:
    async with open_url(url) as database:
        await database.migrate()
        yield database


@pytest.fixture
def without_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing wakes by the clock: what wakes is the feed."""

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(cockroach, "wake_at_intervals", never)


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something in the database holds."""
    with trio.fail_after(seconds):
        while not await trio.to_thread.run_sync(condition):
            await trio.sleep(0.05)


def make_user(url: str, *grants: str) -> str:
    """The URL for a new user with these privileges (and those of PUBLIC)."""
    name = f"user_{next(_users)}"
    execute(url, f"CREATE USER {name}")
    for grant in grants:
        execute(url, f"GRANT {grant} TO {name}")
    return url.replace("root@", f"{name}@")


# -- the feed ----------------------------------------------------------------------------------------------------------------


async def test_a_feed_tells_of_new_released_and_scheduled_tasks_and_of_nothing_else(
    queue: Database, without_clock: None
) -> None:
    async with listening(queue) as listener:
        assert await listener.woken(20) is Wakeup.PENDING, "the feed has begun"
        (first,) = await queue.submit([HELLO])
        assert await listener.woken() is Wakeup.PENDING
        (task,) = await queue.claim("one", 1, lease=30)
        assert task.id == first
        await queue.heartbeat("one", [task.lease], lease=60)
        await queue.release("one", [task.lease])
        assert await listener.woken() is Wakeup.PENDING, "for the release, not for the claim and the heartbeat"
        now = (await queue.fetch([first]))[0].created_at
        await queue.submit([replace(HELLO, run_at=now.replace(year=now.year + 1))])
        assert await listener.woken() is Wakeup.SCHEDULED


async def test_a_feed_that_was_cut_off_continues_where_it_stood(
    shared_cockroach: CockroachServer, url: str, without_clock: None
) -> None:
    async with fault_proxy(shared_cockroach.port) as proxy, AsyncExitStack() as stack:
        behind = url.replace(str(shared_cockroach.port), str(proxy.port))
        database = await stack.enter_async_context(open_url(behind))
        direct = await stack.enter_async_context(open_url(url))
        await direct.migrate()
        async with listening(database) as listener:
            assert await listener.woken(20) is Wakeup.PENDING, "the feed has begun"
            proxy.set(Fault.REFUSE)
            await direct.submit([HELLO])
            with pytest.raises(trio.TooSlowError):
                await listener.woken(1)
            proxy.set(Fault.NONE)
            assert await listener.woken() is Wakeup.PENDING, "for what came meanwhile"


async def test_work_is_found_by_the_clock_within_three_seconds_of_a_feed_falling_silent(
    shared_cockroach: CockroachServer, url: str
) -> None:
    async with fault_proxy(shared_cockroach.port) as proxy, AsyncExitStack() as stack:
        behind = url.replace(str(shared_cockroach.port), str(proxy.port))
        database = await stack.enter_async_context(open_url(behind, polling_interval=300))
        direct = await stack.enter_async_context(open_url(url))
        await direct.migrate()
        async with listening(database) as listener:
            await until(lambda: execute(url, "SELECT 1 FROM wakeup_feeds"))
            await direct.submit([HELLO])
            await listener.woken(of=Wakeup.PENDING)
            proxy.set(Fault.SWALLOW)
            listener.forget()
            await listener.woken(3, of=Wakeup.PENDING)
            listener.forget()
            await listener.woken(3, of=Wakeup.PENDING)


async def test_no_more_than_wakeup_feeds_workers_hold_a_feed_and_a_place_passes_on(
    queue: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changefeed, "LOOK_FOR_PLACE", 0.2)

    def holders() -> set[str]:
        return {row[0] for row in execute(url, "SELECT worker_id FROM wakeup_feeds WHERE expires_at > now()")}

    async with AsyncExitStack() as stack:
        scopes: dict[str, trio.CancelScope] = {}
        nursery = await stack.enter_async_context(trio.open_nursery())
        for name in ("one", "two", "three"):
            database = await stack.enter_async_context(open_url(url, wakeup_feeds=2))

            async def run(name: str = name, database: Database = database) -> None:
                with trio.CancelScope() as scopes[name]:
                    async with listening(database, worker_id=name):
                        await trio.sleep_forever()

            nursery.start_soon(run)
        await until(lambda: len(holders()) == 2)
        before = holders()
        scopes[min(before)].cancel()
        await until(lambda: len(holders()) == 2 and min(before) not in holders())
        nursery.cancel_scope.cancel()


async def test_a_worker_without_a_free_slot_leaves_its_place(
    queue: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changefeed, "RENEWAL", 0.1)
    async with listening(queue) as listener:
        await until(lambda: execute(url, "SELECT 1 FROM wakeup_feeds"))
        listener.saturated = True
        await until(lambda: not execute(url, "SELECT 1 FROM wakeup_feeds"))


async def test_the_place_of_a_worker_that_was_killed_is_taken_once_its_lease_is_over(
    queue: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changefeed, "LOOK_FOR_PLACE", 0.2)
    execute(url, "INSERT INTO wakeup_feeds VALUES (1, 'killed', now() + interval '2 seconds')")
    async with open_url(url, wakeup_feeds=1) as database, listening(database, worker_id="next"):
        await until(lambda: execute(url, "SELECT worker_id FROM wakeup_feeds") == [("next",)])


RANGEFEEDS = "kv.rangefeed.enabled"


async def test_rangefeeds_are_switched_on_where_the_user_may(queue: Database, url: str, without_clock: None) -> None:
    execute(url, f"SET CLUSTER SETTING {RANGEFEEDS} = false")
    async with listening(queue) as listener:
        await until(lambda: execute(url, f"SHOW CLUSTER SETTING {RANGEFEEDS}") == [(True,)])
        listener.forget()
        with trio.fail_after(20):
            while True:
                await queue.submit([HELLO])
                with trio.move_on_after(1):
                    assert await listener.woken() is Wakeup.PENDING
                    break


async def test_without_rangefeeds_and_the_privilege_it_is_said_once_and_work_is_found_by_the_clock(
    queue: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changefeed, "AFTER_REFUSAL", 0.2)
    execute(url, f"SET CLUSTER SETTING {RANGEFEEDS} = false")
    try:
        worker = make_user(url, "SELECT, INSERT, UPDATE, DELETE ON TABLE *")
        with structlog.testing.capture_logs() as logs:
            async with open_url(worker, polling_interval=1) as database, listening(database) as listener:
                for _ in range(5):
                    listener.forget()
                    await listener.woken(2, of=Wakeup.PENDING)
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        assert len(warnings) == 1, warnings
        assert f"SET CLUSTER SETTING {RANGEFEEDS} = true" in warnings[0]["reason"]
    finally:
        execute(url, f"SET CLUSTER SETTING {RANGEFEEDS} = true")


async def test_a_running_task_that_should_stop_is_noticed_within_seconds(queue: Database) -> None:
    (task_id,) = await queue.submit([HELLO])
    await queue.claim("me", 1, lease=30)
    async with listening(queue, worker_id="me", running=1) as listener:
        await queue.cancel(task_id)
        await listener.woken(4, of=Wakeup.CANCEL)


# -- parts of the queue ------------------------------------------------------------------------------------------------------


async def test_priority_is_exact_in_a_short_queue_over_all_parts(queue: Database) -> None:
    ids = await queue.submit([replace(HELLO, priority=number % 5) for number in range(30)])
    expected = sorted(range(30), key=lambda number: (number % 5, number))
    claimed = [task.id for _ in range(3) for task in await queue.claim("one", 10, lease=30)]
    assert claimed == [ids[number] for number in expected]


async def test_a_long_queue_is_emptied_best_priority_first(queue: Database, url: str) -> None:
    await queue.submit([replace(HELLO, priority=number % 2) for number in range(200)])
    priorities = []
    while tasks := await queue.claim("one", 7, lease=30):
        priorities += [task.priority for task in tasks]
    assert priorities == [0] * 100 + [1] * 100
    assert len(execute(url, "SELECT DISTINCT shard FROM tasks")) == SHARDS, "spread at random over all parts"


async def test_a_task_with_an_id_far_below_those_claimed_is_found(queue: Database, url: str) -> None:
    await queue.submit([HELLO] * 50)
    while await queue.claim("one", 20, lease=30):
        pass
    execute(url, "INSERT INTO tasks (id, name) VALUES (7, 'with an id of its own')")
    with trio.fail_after(10):
        while not (found := await queue.claim("one", 20, lease=30)):
            await trio.sleep(0.05)
    assert [task.id for task in found] == [7]


async def test_producers_do_not_see_the_shard(queue: Database, url: str) -> None:
    with psycopg.connect(url) as connection:
        cursor = connection.execute("SELECT * FROM tasks")
        assert "shard" not in [column.name for column in cursor.description or ()]


async def test_an_open_transaction_of_a_producer_holds_nobody_up(queue: Database, url: str) -> None:
    (task_id,) = await queue.submit([HELLO])
    now = (await queue.fetch([task_id]))[0].created_at
    (scheduled,) = await queue.submit([replace(HELLO, run_at=now + dt.timedelta(seconds=1))])
    with psycopg.connect(url) as producer:
        # As before 25.4, or where a transaction has more to say than is buffered: what it wrote is there to be met.
        producer.execute(
            "SELECT set_config(name, 'off', false) FROM pg_settings WHERE name LIKE '%buffered_writes_enabled'"
        )
        producer.commit()
        producer.execute(
            "INSERT INTO tasks (name, run_at) SELECT 'later', now() + n * interval '1 second' "
            "FROM generate_series(0, 20) AS g (n)"
        )
        producer.execute(
            "INSERT INTO tasks (name, shard) SELECT 'not committed', n FROM generate_series(0, 15) AS g (n)"
        )
        with trio.fail_after(4):
            assert [task.id for task in await queue.claim("one", 9, lease=30)] == [task_id]
            assert (await queue.statistics(latest=True)).running == 1
            while not (await queue.promote()).count:
                await trio.sleep(0.05)
            assert [task.id for task in await queue.claim("one", 9, lease=30)] == [scheduled]
        producer.rollback()


async def test_a_row_that_somebody_has_locked_costs_no_other_task_its_lease(queue: Database, url: str) -> None:
    await queue.submit([HELLO] * 3)
    tasks = await queue.claim("one", 3, lease=30)
    leases = [task.lease for task in tasks]
    with psycopg.connect(url) as somebody:
        somebody.execute("UPDATE tasks SET name = 'looked into' WHERE id = %s", [tasks[1].id])
        with trio.fail_after(3):
            answer = await queue.heartbeat("one", [*leases, Lease(tasks[0].id, 7)], lease=600)
        assert answer == HeartbeatAnswer(lost=frozenset({Lease(tasks[0].id, 7)}), cancelled=frozenset())
        somebody.rollback()
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT id FROM tasks WHERE lease_expires_at > now() + interval '5 minutes' ORDER BY id"
        )
        assert [row[0] for row in found.fetchall()] == [tasks[0].id, tasks[2].id]
    assert await queue.heartbeat("one", leases, lease=600) == HeartbeatAnswer(frozenset(), frozenset())


async def test_an_outcome_waits_for_nobody_else_s_task(url: str) -> None:
    """Neither by a plan for any values, nor by statistics that say nothing is processed."""
    async with open_url(url) as queue:
        await queue.migrate()
        await queue.submit([replace(HELLO, tenant="a")] * 20)
        await queue.set_limit(Limit(Scope.TENANT, "a", max_running=50))
        for table in ("tasks", "permits"):
            execute(url, f"ANALYZE {table}")
        (theirs,) = await queue.claim("other", 1, lease=30)
        with psycopg.connect(url) as somebody:
            somebody.execute("UPDATE tasks SET description = 'mine' WHERE id = %s", (theirs.id,))
            somebody.execute("UPDATE permits SET free_at = free_at WHERE task_id = %s", (theirs.id,))
            for _ in range(9):
                (task,) = await queue.claim("one", 1, lease=30)
                with trio.fail_after(3):
                    await queue.heartbeat("one", [task.lease], lease=30)
                    await queue.complete("one", [Completion(task.id, 1, Status.COMPLETED, 0, "", "", None)])
            somebody.rollback()


# -- plans -------------------------------------------------------------------------------------------------------------------

_BOUNDS = {"min_priority": INTEGER.start, "max_priority": INTEGER.stop - 1}
_CLAIM = {"worker": "w", "lease": 30.0, "ids": [1, 2], "paused": ["11111111-1111-1111-1111-111111111111"]}
_PERMITS = {
    "running": ["running:a"] * 2,
    "running_numbers": [1, 2],
    "starts": ["rate:a", None],
    "start_numbers": [1, None],
    "periods": [9.0, None],
}
_PLACE = {"tags": "", "ring": hash_of("tenant-1"), "tenant": "tenant-1", **_BOUNDS}
_LEASES = {"ids": [1, 2], "attempts": [1, 1]}
_CRASHES = {"crashes": [0.0] * 2, "quarantined": [False] * 2}
PLANS: dict[str, tuple[str, dict[str, Any], str]] = {
    "read: walk": (WALK, {"tags": ["", "eu", "eu,gpu", "gpu"], "first": 7, "last": 2**32 - 1}, "tasks_ready"),
    "read: walk on": (
        WALK_ON,
        {"tags": "", "ring": hash_of("tenant-1"), "beyond": "tenant-1\x01", "last": 2**32 - 1},
        "tasks_ready",
    ),
    "read: head": (HEAD, _PLACE, "tasks_ready"),
    "read: head without a tenant": (HEAD, _PLACE | {"ring": hash_of(None), "tenant": None}, "tasks_ready"),
    "read: window": (WINDOW, _PLACE | {"priority": 1, "shard": 3, "id": 7}, "tasks_ready"),
    "claim": (CLAIM_KEYS, _CLAIM, "tasks_pkey"),
    "claim with permits": (CLAIM_LIMITED, _CLAIM | _PERMITS, "permits_pkey"),
    "still there": (STILL_THERE, {"ids": [1, 2]}, "tasks_pkey"),
    "claim: park": (PARK, _CLAIM, "tasks_pkey"),
    "find parked": (statements.FIND_PARKED, {"after": "!", "end": '"'}, "tasks_ready"),
    "unpark": (statements.UNPARK, {"tag": "!a", "end": "!a-", "limit": 1000}, "tasks_ready"),
    "limits": (FIND_LIMITS, {"scopes": ["tenant", "queue"], "names": ["a", ""]}, "limits_pkey"),
    "permits": (FIND_PERMITS, {"resources": ["running:a"], "mosts": [3]}, "permits_pkey"),
    "promote": (statements.PROMOTE, {"limit": 1000}, "tasks_scheduled"),
    "expired leases": (statements.EXPIRED_LEASES, {"limit": 100}, "tasks_leases"),
    "recover": (
        statements.RECOVER,
        {"worker": "w", **_LEASES, "delays": [None] * 2, "notes": [""] * 2, **_CRASHES},
        "tasks",
    ),
    "release_except": (statements.RELEASE_EXCEPT, {"worker": "w", **_LEASES}, "tasks_held"),
    "find cancellation": (cockroach.FIND_CANCELLATION, {"worker": "w"}, "tasks_unwanted"),
    "heartbeat": (statements.HEARTBEAT, {"worker": "w", "lease": 30.0, **_LEASES}, "tasks"),
    "still open": (statements.STILL_OPEN, {"ids": [1, 2]}, "tasks_pkey"),
    "complete": (
        statements.COMPLETE,
        {
            "worker": "w",
            **_LEASES,
            "statuses": ["completed"] * 2,
            "exit_codes": [0] * 2,
            **{name: [""] * 2 for name in ("outputs", "error_outputs", "last_errors")},
            "delays": [None] * 2,
            **_CRASHES,
        },
        "tasks",
    ),
}


@pytest.fixture(scope="module")
def full_queue(shared_cockroach: CockroachServer) -> str:
    """A queue with 20,000 pending, 20,000 finished, a few running and a few scheduled tasks, and statistics about them."""
    url = create_database(shared_cockroach)

    async def migrate() -> None:
        async with open_url(url) as database:
            await database.migrate()

    trio.run(migrate)
    execute(
        url,
        """
        INSERT INTO tasks (name, tenant, status, priority, finished, started, worker_id, attempt, lease_expires_at, run_at)
        SELECT 'n', CASE WHEN n % 3 > 0 THEN 'tenant-' || (n % 3)::text END, kind, n % 10,
               CASE WHEN kind = 'completed' THEN now() at time zone 'utc' END, now() at time zone 'utc',
               'w', 1, CASE WHEN kind = 'processing' THEN now() + interval '1 hour' END,
               CASE WHEN kind = 'pending' AND n % 1000 = 0 THEN now() + interval '1 hour' END
        FROM (SELECT n, CASE WHEN n <= 20000 THEN 'completed' WHEN n <= 40000 THEN 'pending' ELSE 'processing' END AS kind
              FROM generate_series(1, 40100) AS g (n))
        """,
    )
    execute(url, "ANALYZE tasks")
    return url


@pytest.mark.parametrize("name", PLANS)
def test_no_hot_statement_scans_the_table_and_claims_lock_what_they_take(full_queue: str, name: str) -> None:
    statement, parameters, index = PLANS[name]
    with psycopg.connect(full_queue, autocommit=True) as connection:
        for setting in COCKROACH.prepare_session:
            connection.execute(setting.encode())
        plan = "\n".join(
            row[0] for row in connection.execute(f"EXPLAIN {COCKROACH.says(statement)}".encode(), parameters)
        )
    assert "FULL SCAN" not in plan, plan
    assert f"@{index}" in plan, plan
    if name.startswith("read: "):
        assert "top-k" not in plan, plan
        assert f"limit: {READ}" in plan, "limited in the scan itself: " + plan
        assert "index join" not in plan, plan
        assert "filter" not in plan, plan
    if name.startswith("claim"):
        for place in re.finditer("locking wait policy: skip locked", plan):
            locking = plan[: place.start()].rpartition("•")[2]
            assert "lookup join" in locking, plan
            assert "equality cols are key" in locking, plan
        assert "skip locked" in plan, plan


async def test_sessions_claim_safely_whatever_the_cluster_defaults_to(url: str) -> None:
    name = url.rpartition("/")[2]
    execute(url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'read committed'")
    execute(url, f"ALTER DATABASE {name} SET optimizer_use_lock_op_for_serializable = on")
    async with open_url(url) as database:
        await database.migrate()
        assert isinstance(database, SqlDatabase)
        for setting, expected in (
            ("transaction_isolation", "serializable"),
            ("optimizer_use_lock_op_for_serializable", "off"),
        ):
            assert await database._run(f"SHOW {setting}") == [(expected,)]
        assert await database._read("SHOW transaction_isolation") == [("read committed",)]


async def test_only_statements_that_go_by_keys_are_prepared(queue: Database) -> None:
    assert isinstance(queue, SqlDatabase)
    for _ in range(8):
        await queue.submit([HELLO] * 40)
        tasks = await queue.claim("one", 3, lease=30)
        await queue.heartbeat("one", [task.lease for task in tasks], lease=30)
        await queue.complete("one", [Completion(task.id, 1, Status.COMPLETED, 0, "", "", None) for task in tasks])
        await queue.promote()
        await queue.recover("one")
    prepared = set()
    for pool in (queue._pool, queue._heartbeat_pool):
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT statement FROM pg_prepared_statements WHERE name <> ''")
            prepared |= {row[0] for row in await cursor.fetchall()}
    assert prepared
    assert not [statement for statement in prepared if "limit" in statement.lower()]


# -- reading, retention and privileges -----------------------------------------------------------------------------------------


async def test_statistics_wait_for_nobody(queue: Database, url: str) -> None:
    await queue.submit([HELLO] * 3)
    with trio.fail_after(20):
        while (await queue.statistics()).pending != 3:
            await trio.sleep(0.1)
    with psycopg.connect(url) as blocker:
        blocker.execute("UPDATE tasks SET status = 'processing', name = 'not committed'")
        with trio.fail_after(2):
            assert (await queue.statistics()).pending == 3
        blocker.rollback()


async def test_retention_is_row_level_ttl_for_finished_tasks(queue: Database, url: str) -> None:
    week = {Status.COMPLETED: 86_400 * 7.0}
    with structlog.testing.capture_logs() as logs:
        assert await queue.expire(week)
        assert await queue.expire(week), "once more changes nothing"
    assert len(logs) == 1
    ((schema,),) = execute(url, "SELECT create_statement FROM [SHOW CREATE TABLE tasks]")
    assert "604800 seconds" in schema
    assert await queue.expire({Status.COMPLETED: 3600, Status.FAILED: 86_400})
    execute(
        url,
        """
        INSERT INTO tasks (name, status, finished) VALUES
            ('old', 'completed', (now() - interval '2 hours')::timestamp), ('young', 'completed', now()::timestamp),
            ('failed', 'failed', (now() - interval '2 hours')::timestamp),
            ('old and failed', 'failed', (now() - interval '2 days')::timestamp),
            ('kept', 'cancelled', (now() - interval '2 years')::timestamp),
            ('queued again by hand', 'pending', (now() - interval '2 hours')::timestamp)
        """,
    )
    ((schema,),) = execute(url, "SELECT create_statement FROM [SHOW CREATE TABLE tasks]")
    expression = (
        schema.split("ttl_expiration_expression = e'")[1].split("', ttl_")[0].replace("\\'", "'").replace("\\n", " ")
    )
    expired = execute(url, f"SELECT name FROM tasks WHERE ({expression}) < now()")
    assert sorted(expired) == [("old",), ("old and failed",)]
    assert not await queue.expire({}), "what is archived first is not the database's to delete"
    ((schema,),) = execute(url, "SELECT create_statement FROM [SHOW CREATE TABLE tasks]")
    assert "ttl_expiration" not in schema


async def test_a_user_who_may_not_change_the_table_deletes_old_tasks_instead(queue: Database, url: str) -> None:
    worker = make_user(url, "SELECT, INSERT, UPDATE, DELETE ON TABLE *")
    async with open_url(worker) as database:
        assert not await database.expire({Status.COMPLETED: 3600})
        await database.submit([HELLO])
        assert len(await database.claim("one", 9, lease=30)) == 1


async def test_a_schema_is_applied_without_what_the_user_may_not_do(queue: Database, url: str) -> None:
    may_not_configure = make_user(
        url, f"CREATE ON DATABASE {url.rpartition('/')[2]}", "SELECT, INSERT, UPDATE, DELETE ON TABLE *"
    )
    async with open_url(may_not_configure) as database:
        with structlog.testing.capture_logs() as logs:
            assert await database.migrate() == SCHEMA_VERSION
    left_out = [entry["left_out"] for entry in logs if entry["log_level"] == "warning"]
    assert len(left_out) == COCKROACH.schema().count("CONFIGURE ZONE")
    assert all("CONFIGURE ZONE" in statement for statement in left_out)


async def test_a_schema_can_be_applied_by_a_user_who_owns_nothing_but_the_database(url: str) -> None:
    name = url.rpartition("/")[2]
    owner = make_user(url, f"ALL ON DATABASE {name}")
    async with open_url(owner) as database:
        assert await database.migrate() == SCHEMA_VERSION
        await database.check_schema()


async def test_a_database_of_version_1_is_upgraded_and_its_tasks_run_on(url: str) -> None:
    schema = (Path(__file__).parent / "version_1/cockroach.sql").read_text()
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in re.sub(r"--.*", "", schema).split(";"):
            connection.execute(statement.encode())
    await check_upgrade_from_version_1(url)
