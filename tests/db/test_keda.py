"""The query by which KEDA counts workers (deploy/kubernetes/keda), on the database."""

from __future__ import annotations

import datetime as dt
import json

import psycopg
import pytest

from continuum.db.protocol import Database
from continuum.model import NewTask, WorkerReport
from tests.support.kubernetes import queue_depth

QUERY, _ = queue_depth()
IN_AN_HOUR = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)


def depth(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(QUERY.encode()).fetchone()
    assert row is not None
    return int(row[0])


async def test_what_waits_and_what_runs_counts_and_nothing_else(postgres: Database, empty_postgres: str) -> None:
    assert depth(empty_postgres) == 0
    await postgres.report(WorkerReport("worker", "host", 1, "0", 4, 0, "", 0))
    ids = await postgres.submit([NewTask(code="1")] * 5)
    (later,) = await postgres.submit([NewTask(code="1", run_at=IN_AN_HOUR)])
    assert depth(empty_postgres) == 5, "not what is for later"
    claimed = await postgres.claim("worker", 3, lease=30)
    assert depth(empty_postgres) == 5
    await postgres.cancel(next(task for task in ids if task not in {one.id for one in claimed}))
    assert depth(empty_postgres) == 4
    with psycopg.connect(empty_postgres) as connection:
        connection.execute("UPDATE tasks SET run_at = now() - interval '1 second' WHERE id = %s", (later,))
    assert depth(empty_postgres) == 5, "but that of which the time has come, which only a worker makes claimable"


async def test_it_takes_few_columns_and_reads_neither_the_table_nor_a_long_queue(
    postgres: Database, empty_postgres: str
) -> None:
    with psycopg.connect(empty_postgres, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO tasks (name, status, payload, finished)
            SELECT 'x', CASE WHEN n % 10 = 0 THEN 'pending' ELSE 'completed' END, '{}', CASE WHEN n % 10 > 0 THEN now() END
            FROM generate_series(1, 50000) AS n
            """
        )
        connection.execute("VACUUM ANALYZE tasks")
        connection.execute("DROP ROLE IF EXISTS keda")
        connection.execute("CREATE ROLE keda")
        connection.execute(
            "GRANT SELECT (status, run_at, concurrency_key, sequence_key, depends_on, depends_batch, admitted) ON tasks TO keda"
        )
        connection.execute("SET ROLE keda")
        row = connection.execute(QUERY.encode()).fetchone()
        assert row == (1000,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT payload FROM tasks")
        plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {QUERY}".encode()).fetchone()
        connection.execute("RESET ROLE")
        connection.execute("DROP OWNED BY keda")
        connection.execute("DROP ROLE keda")
    assert plan is not None
    described = json.dumps(plan[0])
    assert "Seq Scan" not in described, described
    assert plan[0][0]["Execution Time"] < 50
