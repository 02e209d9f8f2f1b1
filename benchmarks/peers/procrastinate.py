"""procrastinate, with many asynchronous jobs side by side in a worker, as its documentation says.

    DATABASE_URL=... python -m benchmarks.peers.procrastinate

Its guide "Execute multiple jobs at the same time" has the 30. Finished jobs are kept, as ours are.
"""

from __future__ import annotations

import asyncio
import logging
import os

from procrastinate import App, PsycopgConnector
from procrastinate.schema import SchemaManager

from benchmarks.peers import Connection, Contender

CONCURRENCY = 30
CONNECTIONS = 10
"""Beyond the pool's four, for which 30 jobs would wait; more of either was no faster."""


def install(connection: Connection) -> None:
    """What `procrastinate schema --apply` does."""
    connection.execute(SchemaManager.get_schema().encode())


def insert(connection: Connection, count: int) -> None:
    """What `task.batch_defer` sends."""
    connection.execute(
        "SELECT procrastinate_defer_jobs_v1(ARRAY("
        "SELECT ROW('default', 'hello', 0, NULL, NULL, '{}'::jsonb, NULL)::procrastinate_job_to_defer_v1 "
        "FROM generate_series(1, %s)))",
        [count],
    )


CONTENDER = Contender(
    name="procrastinate",
    module=__name__,
    install=install,
    insert=insert,
    unfinished="SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing') LIMIT 1",
    successful="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
)


async def main() -> None:
    logging.disable(logging.WARNING)
    app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"], max_size=CONNECTIONS))

    @app.task(name="hello")
    async def hello() -> None:
        pass

    async with app.open_async():
        print("ready", flush=True)
        await app.run_worker_async(concurrency=CONCURRENCY)


if __name__ == "__main__":
    asyncio.run(main())
