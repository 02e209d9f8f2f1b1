"""How claiming on CockroachDB grows: with claimers, with the backlog, and with what has passed through.

    DATABASE_URL=postgresql://root@127.0.0.1:26257/defaultdb python benchmarks/cockroach_claims.py [crowd|backlog|passing]

Every figure stands beside its peer in the same run: one index of (priority, id), as queues usually have. Makes databases of
its own in the cluster and drops them. A claimer is what a worker's adapter does, without executing anything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import trio
from psycopg.conninfo import make_conninfo

from continuum.config import Settings
from continuum.db import open_database
from continuum.db import statements as sql
from continuum.db.cockroach import COCKROACH
from continuum.db.database import SqlDatabase
from continuum.db.dialect import Rows
from continuum.db.validation import INTEGER

BATCH = 5
SECONDS = 8.0
PROCESSES = 4

ONE_INDEX_CLAIM = sql.claim("""
    id IN (
        SELECT id FROM tasks@one_index WHERE status = 'pending' AND run_at IS NULL
        AND priority >= %(min_priority)s AND priority <= %(max_priority)s
        ORDER BY priority, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )""")
INSERT = "INSERT INTO tasks (name, priority, payload) SELECT 'n', 0, '{}' FROM generate_series(1, %s)"
FINISH = """
UPDATE tasks SET status = 'completed', finished = now()::timestamp, lease_expires_at = NULL, output = 'done'
WHERE id = ANY (%s)
"""


class OneIndexClaims:
    """The peer: one ordered scan of one index."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    async def claim(self, limit: int) -> list[int]:
        bounds = {"min_priority": INTEGER.start, "max_priority": INTEGER.stop - 1}
        parameters = {"worker": "w", "limit": limit, "lease": 30.0, **bounds}
        rows: Rows = await self._database._run(ONE_INDEX_CLAIM, parameters, writes=True)
        return [row[0] for row in rows]


class OurClaims:
    """What a worker does."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    async def claim(self, limit: int) -> list[int]:
        return [task.id for task in await self._database.claim("w", limit, lease=30)]


WAYS: dict[str, Any] = {"one index": OneIndexClaims, "16 parts": OurClaims}


@contextmanager
def queue(base: str, way: str, *, pending: int = 0, finished: int = 0) -> Iterator[str]:
    """The URL of a database with so many tasks; dropped afterwards."""
    name = f"bench_{os.getpid()}_{time.time_ns()}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = make_conninfo(base, dbname=name)
    try:
        trio.run(migrate, url)
        with psycopg.connect(url, autocommit=True) as connection:
            if way == "one index":
                connection.execute("DROP INDEX tasks@tasks_ready")
                connection.execute(
                    "CREATE INDEX one_index ON tasks (priority, id) WHERE status = 'pending' AND run_at IS NULL"
                )
            for status, count in (("completed", finished), ("pending", pending)):
                for done in range(0, count, 20_000):
                    connection.execute(
                        "INSERT INTO tasks (name, priority, payload, status, finished) SELECT 'n', 0, '{}', %s, "
                        "CASE WHEN %s = 'completed' THEN now()::timestamp END FROM generate_series(1, %s)",
                        (status, status, min(20_000, count - done)),
                    )
            connection.execute("ANALYZE tasks")
        yield url
    finally:
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} CASCADE".encode())


async def migrate(url: str) -> None:
    async with adapter(url) as database:
        await database.migrate()


@asynccontextmanager
async def adapter(url: str) -> AsyncIterator[SqlDatabase]:
    settings = Settings.model_validate({"database_url": url, "db_dialect": COCKROACH.name})
    async with open_database(settings, pool_size=1) as database:
        assert isinstance(database, SqlDatabase)
        database.deadline = 60.0
        yield database


def crowd_process(url: str, way: str, claimers: int, start: float, results: Any) -> None:
    latencies: list[float] = []
    claimed: list[int] = []

    async def claimer() -> None:
        async with adapter(url) as database:
            await database.ping()
            claims = WAYS[way](database)
            await trio.sleep(max(0.0, start - time.time()))
            while time.time() < start + SECONDS:
                began = time.perf_counter()
                claimed.extend(await claims.claim(BATCH))
                latencies.append(time.perf_counter() - began)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(claimers):
                nursery.start_soon(claimer)

    trio.run(main)
    results.put((latencies, claimed))


def crowd(base: str) -> None:
    print(f"\nclaimers at once (batches of {BATCH}, 60,000 pending, {SECONDS:.0f} s)")
    for claimers in (8, 64, 200):
        rates = {}
        for way in WAYS:
            with queue(base, way, pending=60_000) as url:
                results: Any = multiprocessing.Queue()
                start = time.time() + 3 + claimers / 20
                processes = [
                    multiprocessing.Process(
                        target=crowd_process, args=(url, way, claimers // PROCESSES, start, results)
                    )
                    for _ in range(PROCESSES)
                ]
                for process in processes:
                    process.start()
                found = [results.get() for _ in processes]
                for process in processes:
                    process.join()
            latencies = sorted(one for latency, _ in found for one in latency)
            claimed = [one for _, ids in found for one in ids]
            assert len(claimed) == len(set(claimed)), "a task was claimed twice"
            rates[way] = len(claimed) / SECONDS
            print(
                f"{claimers:4} claimers, {way:9}: {rates[way]:6.0f} claims/s, p50 {percentile(latencies, 50):5.0f} ms, "
                f"p99 {percentile(latencies, 99):5.0f} ms",
                flush=True,
            )
        if len(rates) > 1:
            print(f"{claimers:4} claimers: ratio {rates['16 parts'] / rates['one index']:.1f}", flush=True)


def percentile(values: list[float], part: int) -> float:
    """Of seconds, in milliseconds."""
    return sorted(values)[min(len(values) - 1, len(values) * part // 100)] * 1000


def backlog(base: str) -> None:
    print(f"\none claimer on a growing backlog (batches of {BATCH})")
    for pending, finished in ((2_000, 0), (40_000, 0), (400_000, 0), (40_000, 1_000_000)):
        for way in WAYS:
            with queue(base, way, pending=pending, finished=finished) as url:
                latencies = trio.run(timed_claims, url, way, 150)
            print(
                f"{pending:7} pending, {finished:7} finished, {way:9}: p50 {percentile(latencies, 50):5.1f} ms, "
                f"p95 {percentile(latencies, 95):5.1f} ms",
                flush=True,
            )


async def timed_claims(url: str, way: str, count: int) -> list[float]:
    latencies = []
    async with adapter(url) as database:
        claims = WAYS[way](database)
        await claims.claim(1)
        for _ in range(count):
            began = time.perf_counter()
            await claims.claim(BATCH)
            latencies.append(time.perf_counter() - began)
    return latencies


def passing(base: str, total: int) -> None:
    print(f"\n{total} tasks pass through a queue of 2,000: median of 20 claims of {BATCH}")
    for way in WAYS:
        with queue(base, way) as url:
            trio.run(pass_through, url, way, total)


async def pass_through(url: str, way: str, total: int) -> None:
    began = time.monotonic()
    passed = 0
    next_report = 0
    async with adapter(url) as database:
        claims = WAYS[way](database)
        while passed < total:
            await database._run(INSERT.replace("%s", "2000"), writes=True)
            while ids := await claims.claim(200):
                await database._run(FINISH.replace("%s", "%(ids)s"), {"ids": ids}, writes=True)
                passed += len(ids)
            if passed >= next_report:
                await database._run(INSERT.replace("%s", "400"), writes=True)
                latencies = []
                for _ in range(20):
                    start = time.perf_counter()
                    ids = await claims.claim(BATCH)
                    latencies.append((time.perf_counter() - start) * 1000)
                    await database._run(FINISH.replace("%s", "%(ids)s"), {"ids": ids}, writes=True)
                elapsed = time.monotonic() - began
                print(
                    f"{way:9}: {passed:8} passed in {elapsed:5.0f} s, claim p50 {statistics.median(latencies):5.1f} ms, "
                    f"max {max(latencies):5.1f} ms",
                    flush=True,
                )
                next_report += total // 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=["crowd", "backlog", "passing"])
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="which ways to claim are measured"
    )
    parser.add_argument("--total", type=int, default=200_000, help="tasks that pass through")
    arguments = parser.parse_args()
    base = os.environ["DATABASE_URL"]
    for left_out in WAYS.keys() - set(arguments.ways):
        del WAYS[left_out]
    for part in arguments.parts:
        if part == "passing":
            passing(base, arguments.total)
        else:
            {"crowd": crowd, "backlog": backlog}[part](base)


if __name__ == "__main__":
    main()
