"""What only PostgreSQL does: connections that break, and the schema in place."""

from __future__ import annotations

import datetime as dt
import json
import socket
import subprocess
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from continuum.db import CONNECT_TIMEOUT, DIALECTS, admission, circles, pool, statements
from continuum.db.database import SqlDatabase
from continuum.db.dialect import SCHEMA_VERSION
from continuum.db.errors import DatabaseUnavailable, DialectMismatch, InvalidTask, OutcomeUnknown, SchemaMismatch
from continuum.db.fair import CLAIM, Ring
from continuum.db.protocol import Database
from continuum.db.validation import INTEGER
from continuum.model import Completion, HeartbeatAnswer, Lease, NewTask, Status
from tests.db.conftest import open_url
from tests.db.upgrade import check_upgrade_from_version_1
from tests.support.postgres import PostgresServer, find_binaries
from tests.support.proxy import Fault, FaultProxy, fault_proxy

ROOT = Path(__file__).parents[2]
HELLO = NewTask(code="print('hello')")

SEED_SCHEMA = """
CREATE TABLE CODES (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), code TEXT NOT NULL);
CREATE TABLE TASKS (
    id SERIAL PRIMARY KEY, name TEXT NOT NULL, description TEXT, started TIMESTAMP, finished TIMESTAMP,
    locked_at TIMESTAMP, last_error TEXT, priority INT DEFAULT 0, status VARCHAR(50) DEFAULT 'pending',
    payload JSONB, code UUID REFERENCES CODES(id), worker_id TEXT, output TEXT
);
CREATE INDEX idx_tasks_status_priority ON TASKS(status, priority);
CREATE FUNCTION notify_task_change() RETURNS TRIGGER AS $$
BEGIN PERFORM pg_notify('tasks_updated', 'New or updated task'); RETURN NEW; END;
$$ LANGUAGE plpgsql;
CREATE TRIGGER task_change_trigger AFTER INSERT OR UPDATE ON TASKS FOR EACH ROW EXECUTE FUNCTION notify_task_change();
INSERT INTO CODES (id, code) VALUES ('11111111-1111-1111-1111-111111111111', 'print("Hello from task 1")');
"""


def completed(task_id: int, attempt: int) -> Completion:
    return Completion(task_id, attempt, Status.COMPLETED, 0, "out", "", None)


async def test_an_error_of_the_server_quotes_neither_rows_nor_parameters(
    postgres: Database, empty_postgres: str
) -> None:
    secret = "-".join(("can", "ary"))  # tracebacks show the lines of this file, too
    execute(empty_postgres, f"ALTER TABLE tasks ADD CONSTRAINT not_that CHECK (output NOT LIKE '%{secret}%')")
    await postgres.submit([HELLO])
    (task,) = await postgres.claim("one", 1, lease=30)
    with pytest.raises(psycopg.errors.CheckViolation, match="not_that") as violated:
        await postgres.complete("one", [replace(completed(task.id, 1), output=secret)])
    with pytest.raises(InvalidTask, match=r"invalid input syntax for type json \(SQLSTATE 22P02\)") as invalid:
        await postgres.submit([NewTask(code="pass", payload=secret)])
    for error in (violated.value, invalid.value):
        assert secret not in "".join(traceback.format_exception(error))
    with pytest.raises(psycopg.errors.CheckViolation, match=f"(?s)Failing row contains.*{secret}"):
        execute(empty_postgres, f"UPDATE tasks SET output = '{secret}'")


# -- connections that break --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_proxy(server: PostgresServer) -> AsyncIterator[tuple[FaultProxy, SqlDatabase]]:
    async with fault_proxy(server.port) as proxy, open_url(proxied(proxy)) as database:
        await database.migrate()
        assert isinstance(database, SqlDatabase)
        yield proxy, database


def proxied(proxy: FaultProxy) -> str:
    return f"postgresql://continuum@127.0.0.1:{proxy.port}/continuum"


async def test_an_outcome_whose_confirmation_was_lost_is_found_by_reading(server: PostgresServer) -> None:
    async with behind_proxy(server) as (proxy, database):
        await database.submit([HELLO])
        (task,) = await database.claim("one", 1, lease=30)
        proxy.set(Fault.CUT_ANSWER)
        with pytest.raises(OutcomeUnknown):
            await database.complete("one", [completed(task.id, 1)])
        proxy.set(Fault.NONE)
        (record,) = await database.fetch([task.id])
        assert record.status == Status.COMPLETED, "the write had happened"
        assert await database.complete("one", [completed(task.id, 1)]) == {task.lease}
        assert (await database.statistics(latest=True)).completed == 1


async def test_a_claim_whose_answer_was_lost_is_given_back(server: PostgresServer) -> None:
    async with behind_proxy(server) as (proxy, database):
        await database.submit([HELLO] * 3)
        proxy.set(Fault.CUT_ANSWER)
        with pytest.raises(OutcomeUnknown):
            await database.claim("one", 2, lease=30)
        proxy.set(Fault.NONE)
        assert await database.release_except("one", []) == 2
        assert len(await database.claim("two", 9, lease=30)) == 3


async def test_a_deadline_is_a_deadline_on_a_connection_that_swallows_bytes(server: PostgresServer) -> None:
    async with behind_proxy(server) as (proxy, database):
        database.deadline = database.long_deadline = 1.0
        await database.submit([HELLO])
        (task,) = await database.claim("one", 1, lease=30)
        proxy.set(Fault.SWALLOW)
        began = trio.current_time()
        failures: list[type[BaseException]] = []

        async def call(verb: object) -> None:
            try:
                await verb()  # type: ignore[operator]
            except DatabaseUnavailable as error:
                failures.append(type(error))

        async with trio.open_nursery() as nursery:
            for verb in (
                lambda: database.claim("one", 1, lease=30),
                lambda: database.heartbeat("one", [task.lease], lease=30),
                lambda: database.complete("one", [completed(task.id, 1)]),
                *[database.ping] * 6,
            ):
                nursery.start_soon(call, verb)
        assert len(failures) == 9
        assert trio.current_time() - began < 2.0
        proxy.set(Fault.NONE)
        for _ in range(6):
            with trio.fail_after(2):
                await database.ping()
        assert await database.complete("one", [completed(task.id, 1)]) == {task.lease}


async def test_a_connection_that_the_server_ended_while_it_rested_is_not_used_for_a_write(
    postgres: Database, empty_postgres: str
) -> None:
    await postgres.submit([HELLO])
    with psycopg.connect(empty_postgres, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with trio.fail_after(5):
            while connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchall():
                await trio.sleep(0.02)
    assert len(await postgres.claim("one", 1, lease=30)) == 1


async def test_a_node_that_hangs_costs_a_second_where_another_one_answers(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RESTED", 0.0)
    async with fault_proxy(server.port) as hanging, fault_proxy(server.port) as healthy:
        hanging.set(Fault.REFUSE)
        url = f"postgresql://continuum@127.0.0.1:{healthy.port},127.0.0.1:{hanging.port}/continuum"
        async with open_url(url) as database:
            await database.migrate()
            await database.submit([HELLO])
            healthy.set(Fault.SWALLOW)
            hanging, healthy = healthy, hanging
            healthy.set(Fault.NONE)
            began = trio.current_time()
            assert len(await database.claim("one", 1, lease=30)) == 1
            # a second for the connection that rested, and at most CONNECT_TIMEOUT if the one that hangs is tried again
            assert trio.current_time() - began < pool.ANSWER + CONNECT_TIMEOUT + 1


async def test_an_answer_that_is_only_about_the_statement_costs_no_connection(
    postgres: Database, empty_postgres: str
) -> None:
    assert isinstance(postgres, SqlDatabase)
    await postgres.ping()
    before = await postgres._run("SELECT pg_backend_pid()")
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await postgres._run("SELECT 1 / 0")
        with pytest.raises(DatabaseUnavailable):
            await postgres._run("DO $$ BEGIN RAISE serialization_failure; END $$")
    assert await postgres._run("SELECT pg_backend_pid()") == before


async def test_an_answer_that_the_node_cannot_serve_costs_all_idle_connections(postgres: Database) -> None:
    assert isinstance(postgres, SqlDatabase)
    before = await postgres._run("SELECT pg_backend_pid()")
    with pytest.raises(DatabaseUnavailable):
        await postgres._run("DO $$ BEGIN RAISE SQLSTATE '53200'; END $$")
    assert await postgres._run("SELECT pg_backend_pid()") != before


async def test_a_slow_lookup_of_a_name_ends_with_the_deadline_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    answer = threading.Event()

    def slow(*_: object, **__: object) -> object:
        asked.set()
        answer.wait(30)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        async with open_url("postgresql://continuum@one.invalid,two.invalid/continuum") as database:
            assert isinstance(database, SqlDatabase)
            database.deadline = 0.5
            began = trio.current_time()
            with pytest.raises(DatabaseUnavailable):
                await database.ping()
            assert trio.current_time() - began < 2
            assert asked.is_set()
    finally:
        answer.set()


async def test_several_hosts_of_which_one_has_no_address_are_no_obstacle(server: PostgresServer) -> None:
    async with open_url(f"postgresql://continuum@nowhere.invalid:1,localhost:{server.port}/continuum") as database:
        await database.ping()


async def test_a_row_that_somebody_has_locked_costs_no_other_task_its_lease(
    postgres: Database, empty_postgres: str
) -> None:
    await postgres.submit([HELLO] * 3)
    tasks = await postgres.claim("one", 3, lease=30)
    leases = [task.lease for task in tasks]
    with psycopg.connect(empty_postgres) as somebody:
        somebody.execute("UPDATE tasks SET name = 'looked into' WHERE id = %s", [tasks[1].id])
        with trio.fail_after(3):
            answer = await postgres.heartbeat("one", [*leases, Lease(tasks[0].id, 7)], lease=600)
        assert answer == HeartbeatAnswer(lost=frozenset({Lease(tasks[0].id, 7)}), cancelled=frozenset())
        somebody.rollback()
    with psycopg.connect(empty_postgres) as connection:
        found = connection.execute(
            "SELECT id FROM tasks WHERE lease_expires_at > now() + interval '5 minutes' ORDER BY id"
        )
        assert [row[0] for row in found.fetchall()] == [tasks[0].id, tasks[2].id]
    assert await postgres.heartbeat("one", leases, lease=600) == HeartbeatAnswer(frozenset(), frozenset())


async def test_a_cancelled_call_leaves_the_pool_usable_and_no_query_running(
    postgres: Database, empty_postgres: str
) -> None:
    assert isinstance(postgres, SqlDatabase)
    for _ in range(10):
        with trio.move_on_after(0.02):
            await postgres._run("SELECT pg_sleep(30)", deadline=60)
    with trio.fail_after(5):
        await postgres.ping()

    def sleeping() -> int:
        with psycopg.connect(empty_postgres) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active' "
                "AND pid <> pg_backend_pid()"
            ).fetchone()
            assert found is not None
            return int(found[0])

    with trio.fail_after(40):
        while await trio.to_thread.run_sync(sleeping):
            await trio.sleep(0.5)


async def test_what_may_be_repeated_survives_a_restart_of_the_server(server: PostgresServer) -> None:
    async with open_url(server.url) as database:
        await database.migrate()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(database.ping)
        await server.stop("fast")
        with pytest.raises(DatabaseUnavailable):
            await database.ping()
        await server.start()
        for _ in range(5):
            await database.ping()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("/nowhere", 'database "nowhere" does not exist'),
        ("?user=nobody-at-all", 'role "nobody-at-all" does not exist'),
    ],
)
async def test_what_cannot_be_connected_to_is_said_in_one_line(server: PostgresServer, change: str, says: str) -> None:
    url = server.url + change if change.startswith("?") else server.url_of(change[1:])
    async with open_url(url) as database:
        with pytest.raises(DatabaseUnavailable, match=says) as caught:
            await database.ping()
        assert "\n" not in str(caught.value)


async def test_a_server_that_is_down_is_unavailable(server: PostgresServer) -> None:
    await server.stop("fast")
    async with open_url(server.url) as database:
        with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1.*refused"):
            await database.ping()


async def test_a_dialect_that_does_not_fit_is_one_clear_line(empty_postgres: str) -> None:
    async with open_url(empty_postgres, db_dialect="cockroach") as database:
        with pytest.raises(
            DialectMismatch, match=r"DB_DIALECT=cockroach, but .* is PostgreSQL: set DB_DIALECT=postgres"
        ):
            await database.ping()


# -- the schema --------------------------------------------------------------------------------------------------------------


async def test_a_missing_schema_names_the_command_to_run(empty_postgres: str) -> None:
    async with open_url(empty_postgres) as database:
        with pytest.raises(SchemaMismatch, match="continuum migrate"):
            await database.check_schema()
        with pytest.raises(SchemaMismatch, match="continuum migrate"):
            await database.claim("one", 1, lease=30)


async def test_an_older_schema_names_the_command_to_run(postgres: Database, empty_postgres: str) -> None:
    execute(empty_postgres, "UPDATE continuum_schema SET version = 0")
    with pytest.raises(SchemaMismatch, match=rf"version 0.*needs {SCHEMA_VERSION}.*continuum migrate"):
        await postgres.check_schema()


async def test_many_may_migrate_at_once(empty_postgres: str) -> None:
    async def migrate() -> None:
        async with open_url(empty_postgres) as database:
            assert await database.migrate() == SCHEMA_VERSION

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(migrate)


async def test_psql_alone_is_as_good_as_migrate(empty_postgres: str) -> None:
    binaries = find_binaries()
    assert binaries is not None
    for _ in range(2):
        subprocess.run(
            [binaries / "psql", "-v", "ON_ERROR_STOP=1", "-q", "-f", ROOT / "sql/postgres.sql", empty_postgres],
            check=True,
            capture_output=True,
        )
    async with open_url(empty_postgres) as database:
        await database.check_schema()
        await database.submit([HELLO])
        assert len(await database.claim("one", 1, lease=30)) == 1


def execute(url: str, text: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text.encode())


def rows(url: str, text: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(text.encode()).fetchall()


async def test_the_first_versions_tables_are_upgraded_in_place_and_keep_every_row(empty_postgres: str) -> None:
    execute(empty_postgres, SEED_SCHEMA)
    execute(
        empty_postgres,
        """
        INSERT INTO tasks (name, status, priority, code, payload, started, finished, locked_at, worker_id, output) VALUES
            ('waits', 'pending', 0, '11111111-1111-1111-1111-111111111111', '{"a": 1}', null, null, null, null, null),
            ('no priority', 'pending', null, '11111111-1111-1111-1111-111111111111', null, null, null, null, null, null),
            ('long dead', 'running', 0, '11111111-1111-1111-1111-111111111111', null,
                now() at time zone 'utc' - interval '2 hours', null, now() at time zone 'utc' - interval '2 hours', 'w', null),
            ('just begun', 'running', 0, '11111111-1111-1111-1111-111111111111', null,
                now() at time zone 'utc', null, now() at time zone 'utc', 'w', null),
            ('done', 'completed', 0, '11111111-1111-1111-1111-111111111111', null,
                now() at time zone 'utc' - interval '3 seconds', now() at time zone 'utc', null, 'w', 'Hello'),
            ('bad', 'failed', 0, '11111111-1111-1111-1111-111111111111', null, null, null, null, 'w', null),
            ('worse', 'malicious', 0, '11111111-1111-1111-1111-111111111111', null, null, null, null, 'w', null),
            ('strange', 'not_started', 0, null, null, null, null, null, null, null)
        """,
    )
    async with open_url(empty_postgres) as database:
        with pytest.raises(SchemaMismatch):
            await database.check_schema()
        await database.migrate()
        await database.migrate()
        await database.check_schema()
        assert rows(empty_postgres, "SELECT name, status, output FROM tasks ORDER BY id") == [
            ("waits", "pending", None),
            ("no priority", "pending", None),
            ("long dead", "processing", None),
            ("just begun", "processing", None),
            ("done", "completed", "Hello"),
            ("bad", "failed", None),
            ("worse", "malicious", None),
            ("strange", "not_started", None),
        ]
        statistics = await database.statistics(latest=True)
        assert (statistics.completed, statistics.failed, statistics.malicious) == (1, 1, 1)
        assert (statistics.pending, statistics.running) == (2, 2)
        assert [task.name for task in await database.claim("one", 9, lease=30)] == ["waits", "no priority"]
        assert (await database.recover("one")).retried == 1, "what was locked two hours ago, and not what just began"
        execute(
            empty_postgres,
            "INSERT INTO tasks (name, description, status, payload, code) "
            "VALUES ('plain', 'as ever', 'pending', '{}', '11111111-1111-1111-1111-111111111111')",
        )
        assert [task.code for task in await database.claim("one", 9, lease=30)] == ['print("Hello from task 1")']
        (record,) = await database.fetch([8])
        assert record.status == "not_started"


async def test_a_database_of_version_1_is_upgraded_and_its_tasks_run_on(empty_postgres: str) -> None:
    execute(empty_postgres, (ROOT / "tests/db/version_1/postgres.sql").read_text())
    await check_upgrade_from_version_1(empty_postgres)


async def test_a_status_that_nobody_knows_is_refused_where_it_is_written(
    postgres: Database, empty_postgres: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="tasks_status_known"):
        execute(empty_postgres, "INSERT INTO tasks (name, status) VALUES ('typo', 'Pending')")


# -- plans -------------------------------------------------------------------------------------------------------------------

_LEASES = {"ids": list(range(1, 51)), "attempts": [1] * 50}
_CRASHES = {"crashes": [0.0] * 50, "quarantined": [False] * 50}
_BOUNDS = {"min_priority": INTEGER.start, "max_priority": INTEGER.stop - 1}
_CLAIM = {"worker": "w", "limit": 20, "lease": 30.0, **_BOUNDS, **Ring(["", "gpu"]).parameters(20)}
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "claim": (CLAIM, _CLAIM),
    "claim with limits": (CLAIM, _CLAIM),
    "complete": (
        statements.COMPLETE,
        {
            "worker": "w",
            **_LEASES,
            "statuses": ["completed"] * 50,
            "exit_codes": [0] * 50,
            **{name: [""] * 50 for name in ("outputs", "error_outputs", "last_errors")},
            "delays": [None] * 50,
            **_CRASHES,
        },
    ),
    "heartbeat": (statements.HEARTBEAT, {"worker": "w", "lease": 30.0, **_LEASES}),
    "expired_leases": (statements.EXPIRED_LEASES, {"limit": 100}),
    "recover": (
        statements.RECOVER,
        {"worker": "w", **_LEASES, "delays": [None] * 50, "notes": [""] * 50, **_CRASHES},
    ),
    "promote": (statements.PROMOTE, {"limit": 1000}),
    "find parked": (statements.FIND_PARKED, {"after": "!", "end": '"'}),
    "unpark": (statements.UNPARK, {"tag": "!a", "end": "!a-", "limit": 1000}),
    "release_except": (statements.RELEASE_EXCEPT, {"worker": "w", **_LEASES}),
    "purge": (statements.PURGE, {"status": "completed", "older_than": 1e9, "limit": 1000}),
    "ended": (
        statements.ended(of_tenant=False, named=False, after=False),
        {"status": "completed", "older_than": -1e9, "limit": 100},
    ),
    "delete_ended": (
        statements.DELETE_ENDED,
        {"ids": [7], "attempts": [1], "finished": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]},
    ),
    "statistics": (statements.statistics(), {}),
    "oldest_pending": (statements.oldest_pending(), {}),
    "claim_webhooks": (statements.CLAIM_WEBHOOKS, {"limit": 10, "lease": 30.0}),
    "settle_webhook": (statements.SETTLE_WEBHOOK, {"id": 7, "tries": 1, "again_in": None}),
    "put_off_webhooks": (statements.PUT_OFF_WEBHOOKS, {"ids": [7], "tries": [1], "delays": [5.0]}),
    "retry": (statements.RETRY, {"id": 7, "originals": [], "copies": []}),
    "dependencies of": (statements.DEPENDENCIES_OF, {"ids": [7]}),
    "copies of": (statements.COPIES_OF, {"ids": [7]}),
    "dependents": (admission.DEPENDENTS, {"ids": [7, 8], "bad": [8]}),
    "statuses": (admission.STATUSES, {"ids": [7, 8]}),
    "standing": (admission.STANDING.replace("{n}", "0"), {"tenant_0": "tenant-1", "key_0": "a"}),
    "dependents of a batch": (
        admission.dependents_of_batch([(False, False), (True, True)]),
        {"tenant": "tenant-1", "batch": "a", "above": 9},
    ),
    "ahead": (circles.AHEAD, {"ids": [7, 8]}),
    "blocked member": (circles.BLOCKED_MEMBER.replace("{n}", "0"), {"tenant_0": "tenant-1", "key_0": "a"}),
    "blocked members": (circles.BLOCKED_MEMBERS.replace("{n}", "0"), {"tenant_0": "tenant-1", "key_0": "a"}),
    "free member": (circles.FREE_MEMBER.replace("{n}", "0"), {"tenant_0": "tenant-1", "key_0": "a"}),
    "supersede": (statements.SUPERSEDE, {"copies": [7]}),
    "find batches": (statements.FIND_BATCHES, {"tenants": ["tenant-1"], "names": ["a"]}),
    "batch": (statements.BATCH, {"tenant": "tenant-1", "batch": "a"}),
    "ids of a batch": (statements.BATCH_IDS, {"tenant": "tenant-1", "batch": "a", "limit": 1000}),
    "cancel in vain": (admission.CANCEL, {"ids": [7], "reasons": ["no"], "worker": "w"}),
    "depends on": (statements.DEPENDS_ON, {"id": 7}),
    "dependencies": (statements.DEPENDENCIES, {"ids": [7, 8]}),
    "find_retry": (statements.FIND_RETRY, {"id": 7}),
    "fetch": (statements.FETCH, {"ids": [7, 8]}),
    "search": (
        statements.search(["name", "statuses"]),
        {"name": "%x%", "statuses": ["failed"], "before": 2**63 - 1, "limit": 50},
    ),
    "failures": (statements.FAILURES, {"since": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "limit": 50}),
    "running": (statements.RUNNING, {"limit": 30, "tail": 500}),
    "depths": (statements.DEPTHS, {"limit": 50}),
}


@pytest.fixture(scope="module")
def full_queue(shared_postgres: PostgresServer) -> str:
    """A queue with 50,000 pending, 50,000 finished, a few running and a few scheduled tasks, of 500 tenants."""
    with psycopg.connect(shared_postgres.url_of("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE full_queue")
    url = shared_postgres.url_of("full_queue")
    execute(url, (ROOT / "sql/postgres.sql").read_text())
    execute(
        url,
        """
        INSERT INTO tasks (name, tenant, status, priority, finished, started, worker_id, attempt, lease_expires_at, run_at)
        SELECT 'n', 'tenant-' || n % 500, kind, n % 10,
               CASE WHEN kind = 'completed' THEN now() at time zone 'utc' END, now() at time zone 'utc',
               'w', 1, CASE WHEN kind = 'processing' THEN now() + interval '1 hour' END,
               CASE WHEN kind = 'pending' AND n % 1000 = 0 THEN now() + interval '1 hour' END
        FROM generate_series(1, 100200) AS n,
             LATERAL (
                 SELECT CASE WHEN n <= 50000 THEN 'completed' WHEN n <= 100000 THEN 'pending' ELSE 'processing' END
             ) AS k (kind)
        """,
    )
    execute(url, "VACUUM ANALYZE tasks")
    return url


LIMIT_ALL = """
WITH limited AS (
    INSERT INTO limits (scope, name, max_running, rate, rate_period_s) SELECT 'tenant', '*', 3, 40, 1
    UNION ALL SELECT 'tenant', 'tenant-' || n, 2, 30, 1 FROM generate_series(0, 99) AS n
)
INSERT INTO permits (resource, number)
SELECT kind || ':tenant-' || n, number
FROM generate_series(0, 499) AS n, (VALUES ('running', 3), ('rate', 40)) AS k (kind, most), generate_series(1, most) AS number
"""
"""Limits of all tenants, and own ones of a hundred, with the permits that they are kept by."""


@pytest.mark.parametrize("plan_cache_mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", PLANS)
def test_no_hot_statement_scans_the_table(full_queue: str, name: str, plan_cache_mode: str) -> None:
    statement, parameters = PLANS[name]
    with psycopg.connect(full_queue) as connection:
        connection.execute(f"SET plan_cache_mode = {plan_cache_mode}".encode())
        if statement is CLAIM:
            for setting in DIALECTS["postgres"].prepare_session:
                connection.execute(setting.encode())
        if name == "claim with limits":
            connection.execute(LIMIT_ALL.encode())
            connection.execute(b"ANALYZE limits, permits")
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}".encode()
        found = connection.execute(explain, parameters, prepare=True).fetchone()
        connection.rollback()
    assert found is not None
    nodes = list(walk(found[0][0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") == "tasks" and "Scan" in node["Node Type"]]
    assert scans, "the statement does not look at tasks at all?"
    described = json.dumps([(node["Node Type"], node.get("Index Name"), node["Actual Rows"]) for node in nodes])
    assert not [node for node in scans if node["Node Type"] == "Seq Scan"], described
    if name == "complete":
        assert {node.get("Index Name") for node in nodes if "Index Name" in node} >= {"tasks_pkey"}, described
        assert "tasks_held" not in described, described
    if statement is CLAIM:
        looked_at = sum(rows_of(node) for node in nodes if node.get("Relation Name") in ("tasks", "permits", "limits"))
        assert looked_at < 1_000, described
        picking = [node for node in scans if node.get("Index Name") == "tasks_ready"]
        assert picking, described
        assert all(node["Actual Rows"] <= 20 for node in scans), described
        assert not [node for node in nodes if node["Node Type"] == "Sort" and node["Actual Rows"] > 30], described


@pytest.mark.parametrize("statistics", ["", "ANALYZE tasks"], ids=["never analyzed", "analyzed"])
def test_a_large_batch_for_which_many_wait_is_looked_at_in_a_few_rows(empty_postgres: str, statistics: str) -> None:
    execute(empty_postgres, (ROOT / "sql/postgres.sql").read_text())
    execute(empty_postgres, "INSERT INTO tasks (batch) SELECT 'a' FROM generate_series(1, 5000)")
    execute(empty_postgres, "INSERT INTO tasks (depends_batch) SELECT 'a' FROM generate_series(1, 5000)")
    execute(empty_postgres, statistics)
    execute(empty_postgres, "UPDATE tasks SET status = 'completed' WHERE id < 2000")
    for name in ("standing", "dependents of a batch", "dependents", "blocked member"):
        statement, given = PLANS[name]
        parameters = given | {"tenant": "", "tenant_0": "", "above": 0}
        with psycopg.connect(empty_postgres) as connection:
            for setting in DIALECTS["postgres"].prepare_session:
                connection.execute(setting.encode())
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}".encode()
            found = connection.execute(explain, parameters).fetchone()
        assert found is not None
        nodes = [node for node in walk(found[0][0]["Plan"]) if node.get("Relation Name") == "tasks"]
        described = json.dumps([(node["Node Type"], node.get("Index Name"), rows_of(node)) for node in nodes])
        assert nodes, name
        assert sum(map(rows_of, nodes)) <= admission.PAGE, f"{name}: {described}"


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_was_made_on_a_small_table_is_good_for_a_large_one(empty_postgres: str, name: str) -> None:
    """A worker's connection keeps its plans; nobody has analyzed the table when they are made."""
    execute(empty_postgres, (ROOT / "sql/postgres.sql").read_text())
    execute(empty_postgres, "INSERT INTO tasks (name) SELECT 'n' FROM generate_series(1, 40)")
    statement, parameters = PLANS[name]
    with psycopg.connect(empty_postgres) as connection:
        for setting in (*DIALECTS["postgres"].prepare_session, "SET plan_cache_mode = force_generic_plan"):
            connection.execute(setting.encode())
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}".encode()
        found = connection.execute(explain, parameters, prepare=True).fetchone()
        connection.rollback()
    assert found is not None
    assert "JIT" not in found[0][0], "to compile it takes a hundred times as long as to run it"
    nodes = walk(found[0][0]["Plan"])
    assert ("Seq Scan", "tasks") not in [(node["Node Type"], node.get("Relation Name")) for node in nodes]
    if name == "complete":
        assert "tasks_held" not in [node.get("Index Name") for node in nodes]


def rows_of(node: dict[str, Any]) -> int:
    """How many rows a node read, those included that it did not want."""
    removed = (node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck", "Join Filter"))
    return int((node["Actual Rows"] + sum(removed)) * node["Actual Loops"])


def walk(plan: dict[str, Any]) -> list[dict[str, Any]]:
    found = [plan]
    for child in plan.get("Plans", []):
        found += walk(child)
    return found
