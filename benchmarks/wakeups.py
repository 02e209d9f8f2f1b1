"""How soon idle workers learn of a task, and what one INSERT costs when there are many of them.

    DATABASE_URL=postgresql://... python benchmarks/wakeups.py [--workers 1 10 50] [--inserts 40]

The whole supervision tree of each worker runs in this process, on an empty migrated database of the benchmark's own; its
sandboxes are none: a script "starts" when the sandbox is asked to run it. From before the INSERT to there is the latency.
Statements are counted where they leave, those of the idle seconds before subtracted. WAKEUP=poll stands beside WAKEUP=auto.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import structlog
import trio
from psycopg.conninfo import make_conninfo

from benchmarks.null_worker import NullBackend, NullSandbox
from continuum.config import Settings
from continuum.db import open_database
from continuum.db.connection import TrioConnection, connect
from continuum.demo.run import percentile
from continuum.model import Outcome, RunRequest
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.sandbox.protocol import Layer, OutputSink
from continuum.telemetry import Telemetry

SETTLE = 15.0
"""Seconds for feeds to open and for the pauses of those who poll to grow to POLLING_INTERVAL."""
APART = 0.5
"""Seconds from one INSERT to the next."""
ROUNDS = 3
INSERT = "INSERT INTO tasks (name, code) VALUES ('n', %s) RETURNING id"

_names = itertools.count(1)


class Starts(NullBackend):
    """When each task's script was asked to start; stands in for all sandboxes."""

    def __init__(self) -> None:
        self._started: dict[int, trio.Event] = {}
        self.at: dict[int, float] = {}

    async def started(self, task_id: int) -> float:
        """When the task's script started, on `perf_counter`'s clock."""
        with trio.fail_after(30):
            await self._started.setdefault(task_id, trio.Event()).wait()
        return self.at[task_id]

    def note(self, task_id: int) -> None:
        """A script starts."""
        assert task_id not in self.at, "started twice"
        self.at[task_id] = time.perf_counter()
        self._started.setdefault(task_id, trio.Event()).set()

    async def start(self, layer: Layer | None = None) -> _Started:
        await trio.lowlevel.checkpoint()
        return _Started(self)


class _Started(NullSandbox):
    def __init__(self, starts: Starts) -> None:
        self._starts = starts

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        self._starts.note(request.task_id)
        return await super().run(request, sink)


class Counter:
    """Counts the statements that leave this process."""

    def __init__(self) -> None:
        self.statements = 0
        execute = TrioConnection.execute

        async def counted(connection: TrioConnection, *arguments: Any, **options: Any) -> Any:
            self.statements += 1
            return await execute(connection, *arguments, **options)

        TrioConnection.execute = counted  # type: ignore[assignment, method-assign]


@asynccontextmanager
async def idle_workers(url: str, count: int, wakeup: str, starts: Starts) -> AsyncIterator[None]:
    """So many workers for the length of the block."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for number in range(count):
            settings = Settings.model_validate({"database_url": url, "slots": 4, "wakeup": wakeup})
            database = await stack.enter_async_context(open_database(settings))
            state = WorkerState(id=f"worker-{number}", slots=settings.slots)
            nursery.start_soon(supervise, settings, state, database, starts, Telemetry(), Shutdown(), lambda: None)
        yield
        nursery.cancel_scope.cancel()


async def measure(url: str, wakeup: str, count: int, inserts: int, counter: Counter) -> dict[str, float]:
    starts = Starts()
    latencies: list[float] = []
    extra: list[float] = []
    async with idle_workers(url, count, wakeup, starts):
        producer = await connect(url)
        ((code,),) = await (await producer.execute("INSERT INTO codes (code) VALUES ('pass') RETURNING id")).fetchall()
        await trio.sleep(SETTLE)
        for _ in range(ROUNDS):
            before = counter.statements
            began = time.perf_counter()
            await trio.sleep(5)
            idle_rate = (counter.statements - before) / (time.perf_counter() - began)
            before = counter.statements
            began = time.perf_counter()
            for _ in range(inserts // ROUNDS):
                latencies.append(await one_insert(producer, code, starts))
                await trio.sleep(APART)
            spent = counter.statements - before - idle_rate * (time.perf_counter() - began)
            extra.append(spent / (inserts // ROUNDS) - 1)  # the INSERT itself
    return {
        "p50": statistics.median(latencies) * 1000,
        "p95": percentile(latencies, 0.95) * 1000,
        "max": max(latencies) * 1000,
        "statements per INSERT": statistics.median(extra),
        "statements per idle worker and second": idle_rate / count,
    }


async def one_insert(producer: TrioConnection, code: UUID, starts: Starts) -> float:
    """Seconds from before the INSERT of one task to the start of its script."""
    began = time.perf_counter()
    ((task_id,),) = await (await producer.execute(INSERT, [code])).fetchall()
    return await starts.started(task_id) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--inserts", type=int, default=60)
    parser.add_argument("--wakeup", nargs="+", default=["auto", "poll"])
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    base = os.environ["DATABASE_URL"]
    counter = Counter()
    for count in options.workers:
        for wakeup in options.wakeup:
            name = f"bench_{os.getpid()}_{next(_names)}"
            with psycopg.connect(base, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            url = make_conninfo(base, dbname=name)
            try:
                trio.run(migrate, url)
                figures = trio.run(measure, url, wakeup, count, options.inserts, counter)
            finally:
                with psycopg.connect(base, autocommit=True) as connection:
                    connection.execute(f"DROP DATABASE {name}".encode())
            print(
                f"{count:3} workers, {wakeup:4}: " + ", ".join(f"{k} {v:.1f}" for k, v in figures.items()), flush=True
            )


async def migrate(url: str) -> None:
    async with open_database(Settings.model_validate({"database_url": url}), pool_size=1) as database:
        await database.migrate()


if __name__ == "__main__":
    main()
