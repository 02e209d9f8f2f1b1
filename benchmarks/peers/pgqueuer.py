"""pgqueuer, set up for throughput as its documentation says.

    DATABASE_URL=... python -m benchmarks.peers.pgqueuer

Its guide "Performance Tuning" wants larger batches for short jobs, `pgq autovac` after the installation, and one connection
of its own for a queue manager; its own benchmark tool runs on uvloop, with five queue managers in a process, each on one
connection. Its page "Benchmarks" finds asyncpg 1.7 times as fast as psycopg, so that asyncpg is used where it is installed.
Tables stay durable, as ours are.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import importlib.util
import logging
import os
from typing import Any

import psycopg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder
from pgqueuer.models import Job
from psycopg.conninfo import conninfo_to_dict

from benchmarks.peers import Connection, Contender

DRIVER = "asyncpg" if importlib.util.find_spec("asyncpg") else "psycopg"
BATCH = 100 if DRIVER == "asyncpg" else 50
"""Beyond its default of 10, because these jobs are short. Of 10, 50, 100 and 250 it was the fastest with that driver."""
MANAGERS = 5
"""As its benchmark tool has; one was slower."""


def install(connection: Connection) -> None:
    """What `pgq install` and `pgq autovac` do."""
    queries = QueryBuilderEnvironment()
    connection.execute(queries.build_install_query().encode())
    connection.execute(queries.build_optimize_autovacuum_query().encode())


def insert(connection: Connection, count: int) -> None:
    """What `Queries.enqueue` sends."""
    jobs = [[0] * count, ["hello"] * count, [None] * count, [dt.timedelta()] * count, [None] * count, ["null"] * count]
    psycopg.RawCursor(connection).execute(QueryQueueBuilder().build_enqueue_query().encode(), jobs)


CONTENDER = Contender(
    name=f"pgqueuer ({DRIVER})",
    module=__name__,
    install=install,
    insert=insert,
    unfinished="SELECT 1 FROM pgqueuer LIMIT 1",
    successful="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
)


async def main() -> None:
    logging.disable(logging.WARNING)
    async with asyncio.TaskGroup() as managers:
        for _ in range(MANAGERS):
            managers.create_task((await _manager(os.environ["DATABASE_URL"])).run(batch_size=BATCH))
        print("ready", flush=True)


async def _manager(conninfo: str) -> PgQueuer:
    if DRIVER == "asyncpg":
        where: dict[str, Any] = conninfo_to_dict(conninfo)
        where["database"] = where.pop("dbname")
        pgqueuer = PgQueuer.from_asyncpg_connection(await importlib.import_module("asyncpg").connect(**where))
    else:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        pgqueuer = PgQueuer.from_psycopg_connection(connection)

    @pgqueuer.entrypoint("hello")
    async def hello(job: Job) -> None:
        pass

    return pgqueuer


if __name__ == "__main__":
    uvloop.run(main())
