"""Many idle workers: what one INSERT costs, and how soon its task starts. Then many producers: see `producers`.

A whole worker for each would be more than a small machine's processors and an embedded server's connections can bear, so a
worker is here what the database sees of it: one connection that listens by the adapter's own code, and a claim, and the
completion, by the same, whenever that wakes it or the poll comes. The claims of all go through a few connections. A task has
started when its claim has returned.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg
import trio

from benchmarks import producers
from benchmarks.filling import add_code
from benchmarks.processes import Meter, server_processes
from benchmarks.report import Plot, Result, Table
from benchmarks.setting import Options, database_server, fresh_database
from continuum.config import Settings
from continuum.db import open_database
from continuum.db.connection import TrioConnection, connect
from continuum.db.protocol import Database
from continuum.demo.run import percentile
from continuum.model import Completion, Status, Wakeup
from continuum.nursery.signals import Signal

WORKERS = (1, 10, 50, 200)
COCKROACH_WORKERS = (10, 50)
SLOTS = 4
CLAIM_CONNECTIONS = 8
SPARE_CONNECTIONS = 10
INSERTS = 30
APART = 0.3
"""Seconds from one start to the next INSERT: all who were woken for nothing have looked by then."""
SETTLE = 2.0
FEEDS_SETTLE = 15.0
"""Seconds for changefeeds to open, and for the pauses of those who poll to grow to POLLING_INTERVAL."""
IDLE = 3.0
"""Seconds in which the crowd's own load is measured, to be taken off."""
DEADLINE = 30.0

INSERT = "INSERT INTO tasks (name, code) VALUES ('n', %s) RETURNING id"


@dataclass(slots=True)
class Starts:
    """When each task was claimed, on `perf_counter`'s clock, and what was asked of the database for it."""

    at: dict[int, float] = field(default_factory=dict)
    statements: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)

    def note(self, task_id: int) -> None:
        assert task_id not in self.at, "started twice"
        self.at[task_id] = time.perf_counter()
        self._changed.set()
        self._changed = trio.Event()

    async def of(self, task_id: int) -> float:
        """When the task started; waits for it."""
        with trio.fail_after(DEADLINE):
            while task_id not in self.at:
                await self._changed.wait()
        return self.at[task_id]


@dataclass(slots=True)
class IdleWorker:
    """What the database sees of a worker; also its own listener."""

    worker_id: str
    database: Database
    starts: Starts
    polling_interval: float
    claimed: int = 0
    running: int = 0
    saturated: bool = False
    work: Signal = field(default_factory=Signal)

    def wake(self, wakeup: Wakeup) -> None:
        if wakeup is Wakeup.PENDING:
            self.work.notify()

    async def run(self) -> None:
        """Claim when woken, and at every poll; never return."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.database.listen, self)
            while True:
                woken = await self.work.wait(self.polling_interval)
                tasks = await self.database.claim(self.worker_id, SLOTS, lease=30)
                self.claimed += len(tasks)
                self.starts.statements += woken
                for task in tasks:
                    self.starts.note(task.id)
                if tasks:
                    done = [Completion(task.id, task.attempt, Status.COMPLETED, 0, "", "", None) for task in tasks]
                    await self.database.complete(self.worker_id, done)
                    self.starts.statements += 1


@dataclass(frozen=True, slots=True)
class Row:
    """What one INSERT is to so many idle workers. Milliseconds; `cpu` is the server's, None where it runs elsewhere."""

    workers: int
    wakeup: str
    insert_p50: float
    start_p50: float
    start_p95: float
    statements: float
    cpu: float | None


async def measure(options: Options) -> Result:
    """The crowd and the producers on PostgreSQL; the crowd on CockroachDB where there is one, with WAKEUP=poll beside it."""
    async with database_server(options) as server:
        most = connections(server) - CLAIM_CONNECTIONS - SPARE_CONNECTIONS
        rows = [await measure_crowd(server, options, min(count, most), SETTLE) for count in WORKERS]
        produced = await producers.measure(server, options)
    tables = [_table("PostgreSQL", rows)]
    series = {"PostgreSQL": [(row.workers, row.start_p50) for row in rows]}
    if options.cockroach is not None:
        rows = [
            await measure_crowd(options.cockroach, options, count, FEEDS_SETTLE, wakeup)
            for count in COCKROACH_WORKERS
            for wakeup in ("auto", "poll")
        ]
        tables.append(_table("CockroachDB", rows))
        series["CockroachDB"] = [(row.workers, row.start_p50) for row in rows if row.wakeup == "auto"]
    return Result(
        part="crowd",
        title="Crowd",
        tables=[*tables, *produced.tables],
        ratios=produced.ratios,
        plots=[
            Plot(
                name="start_by_idle_workers",
                title="INSERT to start, median",
                x_label="idle workers",
                y_label="milliseconds",
                series=series,
            ),
            *produced.plots,
        ],
    )


def connections(server: str) -> int:
    """How many connections a PostgreSQL server takes."""
    with psycopg.connect(server, autocommit=True) as connection:
        ((most,),) = connection.execute("SHOW max_connections").fetchall()
    return int(most)


async def measure_crowd(server: str, options: Options, count: int, settle: float, wakeup: str = "auto") -> Row:
    """INSERT task after task, each after the last has started, beside so many idle workers."""
    starts = Starts()
    inserts: list[float] = []
    latencies: list[float] = []
    async with fresh_database(server) as conninfo, idle_workers(conninfo, count, wakeup, starts):
        code = add_code(conninfo)
        producer = await connect(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as asking:
            await trio.sleep(settle)
            meters = [Meter(pid) for pid in server_processes(asking)]
            await trio.sleep(IDLE)
            idle_rate = sum(meter.read().cpu for meter in meters) / IDLE
            meters = [Meter(pid) for pid in server_processes(asking)]
            starts.statements = 0
            began = time.perf_counter()
            for _ in range(options.scaled(INSERTS)):
                inserted, started = await one_insert(producer, code, starts)
                inserts.append(inserted * 1000)
                latencies.append(started * 1000)
                await trio.sleep(APART)
            used = sum(meter.read().cpu for meter in meters) - idle_rate * (time.perf_counter() - began)
        await producer.close()
    return Row(
        workers=count,
        wakeup=wakeup,
        insert_p50=statistics.median(inserts),
        start_p50=statistics.median(latencies),
        start_p95=percentile(latencies, 0.95),
        statements=starts.statements / len(inserts),
        cpu=used / len(inserts) * 1000 if meters else None,
    )


async def one_insert(producer: TrioConnection, code: str, starts: Starts) -> tuple[float, float]:
    """Seconds of the INSERT of one task, and until it had started."""
    began = time.perf_counter()
    ((task_id,),) = await (await producer.execute(INSERT, [code])).fetchall()
    inserted = time.perf_counter()
    return inserted - began, await starts.of(task_id) - began


@asynccontextmanager
async def idle_workers(conninfo: str, count: int, wakeup: str, starts: Starts) -> AsyncIterator[None]:
    """So many workers for the length of the block."""
    settings = Settings.model_validate({"database_url": conninfo, "wakeup": wakeup})
    async with open_database(settings, pool_size=CLAIM_CONNECTIONS) as database, trio.open_nursery() as nursery:
        for number in range(count):
            worker = IdleWorker(f"worker-{number}", database, starts, settings.polling_interval)
            nursery.start_soon(worker.run)
        yield
        nursery.cancel_scope.cancel()


def _table(server: str, rows: Sequence[Row]) -> Table:
    return Table(
        f"One INSERT and many idle workers, {server}",
        (
            "idle workers",
            "WAKEUP",
            "INSERT p50, ms",
            "INSERT to start p50, ms",
            "p95, ms",
            "statements it causes",
            "server's processor time for it, ms",
        ),
        [
            (f"{row.workers}", row.wakeup, row.insert_p50, row.start_p50, row.start_p95, row.statements, row.cpu)
            for row in rows
        ],
        f"Workers are simulated by a listening connection each and {CLAIM_CONNECTIONS} that claim for all of them, from one "
        "process on the same processors. As many as the server takes connections, at most "
        f"{max(WORKERS)}. The statements are claims, but for one completion; polls are not counted.",
    )
