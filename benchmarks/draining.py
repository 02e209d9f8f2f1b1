"""One measurement of the database path: a queue's workers are shown jobs that do nothing, and end them all.

It has a database of its own, and the workers are processes of their own: up, warm and idle when one transaction shows them all
jobs at once. The time runs from its COMMIT until the end of the last job is written. Whether it is, is asked every 50 ms by a
statement that takes a small part of one.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psycopg
import trio

from benchmarks.peers import Connection, Contender
from benchmarks.processes import processor_time, server_processes
from benchmarks.setting import fresh_database
from benchmarks.worker_process import worker_process

LOOK = 0.05
"""Seconds between two looks whether all jobs are over."""
WARM_UP = 100
"""Jobs for each worker before the measured ones: connections are open then, and statements prepared."""
SETTLE = 0.5
"""Seconds between those and the measured ones."""
UP_DEADLINE, DRAIN_DEADLINE, END_DEADLINE = 30.0, 90.0, 15.0
"""Seconds for workers to be up, for jobs to be over, and for workers to end."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What so many worker processes of one contender made of so many jobs.

    rate: jobs a second. transactions: committed for each job, by the workers, from their start to their end; None where the
    server does not count them. worker_seconds, server_seconds: processor time for each job; None where it cannot be seen.
    """

    contender: str
    workers: int
    jobs: int
    rate: float
    transactions: float | None
    worker_seconds: float
    server_seconds: float | None


async def drain(server: str, contender: Contender, workers: int, jobs: int) -> Drained:
    """Show so many workers so many jobs and wait until all are over. Raises `RuntimeError` where one did not end well."""
    warm_up = WARM_UP * workers
    async with fresh_database(server, migrated=contender.install is None) as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            if connection.info.parameter_status("crdb_version"):
                connection.execute("SET default_transaction_isolation = 'read committed'")  # to hold nobody up
            if contender.install is not None:
                contender.install(connection)
            committed = _committed(connection)
            async with _workers(contender, conninfo, workers) as pids:
                _, warm_up_looks = await _run(contender, connection, warm_up)
                await trio.sleep(SETTLE)
                serving = server_processes(connection)
                used, served = processor_time(pids), processor_time(serving)
                seconds, looks = await _run(contender, connection, jobs)
                used, served = processor_time(pids) - used, processor_time(serving) - served
            ((successful,),) = connection.execute(contender.successful.encode()).fetchall()
            if successful != warm_up + jobs:
                raise RuntimeError(f"{contender.name} ended {successful} of {warm_up + jobs} jobs well")
            committed = await _committed_since(connection, committed)
    return Drained(
        contender=contender.name,
        workers=workers,
        jobs=jobs,
        rate=jobs / seconds,
        transactions=None if committed is None else (committed - warm_up_looks - looks) / (warm_up + jobs),
        worker_seconds=used / jobs,
        server_seconds=served / jobs if serving else None,
    )


async def _run(contender: Contender, connection: Connection, jobs: int) -> tuple[float, int]:
    """Let the workers see so many jobs and wait until all are over. Returns the seconds, and how many looks it took."""
    with connection.transaction():
        contender.insert(connection, jobs)
        began = time.perf_counter()
    looks = 1
    with trio.fail_after(DRAIN_DEADLINE):
        while connection.execute(contender.unfinished.encode()).fetchall():
            looks += 1
            await trio.sleep(LOOK)
    return time.perf_counter() - began, looks


@asynccontextmanager
async def _workers(contender: Contender, conninfo: str, count: int) -> AsyncIterator[list[int]]:
    """The process ids of so many workers that are up; they end with the block."""
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(_worker(contender, conninfo)) for _ in range(count)]
        with trio.fail_after(UP_DEADLINE):
            for process in processes:
                assert process.stdout is not None
                if not await process.stdout.receive_some():
                    raise RuntimeError(f"a worker of {contender.name} ended before it was up")
        yield [process.pid for process in processes]


def _worker(contender: Contender, conninfo: str) -> AbstractAsyncContextManager[trio.Process]:
    environment = {**contender.environment, "DATABASE_URL": conninfo}
    return worker_process(environment, ("-m", contender.module), stdout=subprocess.PIPE)


def _committed(connection: Connection) -> int | None:
    """Transactions committed in this database, but for those of sessions that go on; None on CockroachDB."""
    if connection.info.parameter_status("crdb_version"):
        return None
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((count,),) = connection.execute(
        "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    ).fetchall()
    return int(count)


async def _committed_since(connection: Connection, before: int | None) -> int | None:
    """Transactions committed since then, once the sessions of those who ended are gone."""
    if before is None:
        return None
    with trio.fail_after(END_DEADLINE):
        while connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        ).fetchall():
            await trio.sleep(LOOK)
    return (_committed(connection) or 0) - before
