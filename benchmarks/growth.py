"""What grows with the tables: a claim, the totals. And what grows with time: a worker. What it does when there is nothing.

The claims are the worker's own call, each followed by the completion of what it got, on tables that are filled before by one
statement and vacuumed as the autovacuum daemon would do it; and the same once more with limits, which take two permits for each
task and hold nothing back. All sizes take turns, so that whatever else the machine does meets them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
import trio

from benchmarks import resident
from benchmarks.filling import add_code, fill, tidy
from benchmarks.report import Cell, Plot, Ratio, Result, Table
from benchmarks.setting import Options, database_server, fresh_database
from continuum.config import Settings
from continuum.db import open_database
from continuum.db.protocol import Database
from continuum.demo.run import percentile
from continuum.model import ClaimedTask, Completion, Limit, Scope, Status
from continuum.nursery.state import WorkerState
from continuum.status.server import serve_status
from continuum.status.shared import MAXIMUM_AGE
from continuum.telemetry import Telemetry

ROUNDS = 5
CLAIMS = 60
"""Claims of one size in a round."""
BATCH = 8
"""Tasks in a claim."""
WARM_UP = 10
MOST_CLAIMED = 1.5
LIMIT = Limit(Scope.TENANT, "*", max_running=50, rate=200, rate_period=0.02)


@dataclass(frozen=True, slots=True)
class Size:
    """Rows of a table before it is measured."""

    pending: int
    finished: int = 0

    def __str__(self) -> str:
        return f"{self.pending:,} pending" + (f", {self.finished:,} finished" if self.finished else "")


SIZES = (Size(1_000), Size(10_000), Size(100_000), Size(1_000_000), Size(1_000, 1_000_000))
COCKROACH_SIZES = (Size(1_000), Size(10_000), Size(100_000), Size(1_000, 100_000))
"""Less by ten: a single node in memory takes a minute for a million rows."""


@dataclass(slots=True)
class Queue:
    """One table and what was measured on it, in milliseconds."""

    size: Size
    conninfo: str
    database: Database
    status: httpx.AsyncClient
    code: str
    claims: list[float] = field(default_factory=list)
    limited: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)

    async def claim_for_a_round(self) -> None:
        await self._claim(self.claims)
        await self.database.set_limit(LIMIT)
        await self._claim(self.limited)
        await self.database.clear_limit(LIMIT.scope, LIMIT.name)

    async def _claim(self, took: list[float]) -> None:
        """Claim and complete; put as many new tasks in afterwards as have gone."""
        count = min(CLAIMS, self.size.pending // BATCH - WARM_UP)
        for number in range(-WARM_UP, count):
            began = time.perf_counter()
            tasks = await self.database.claim("growth", BATCH, lease=30)
            if number >= 0:
                took.append((time.perf_counter() - began) * 1000)
            await self.database.complete("growth", [_completed(task) for task in tasks])
        await trio.to_thread.run_sync(fill, self.conninfo, self.code, (WARM_UP + count) * BATCH, Status.PENDING)

    async def ask_for_totals(self) -> None:
        """Once as the status server does it, and once through it; no sooner than it asks the database again."""
        began = time.perf_counter()
        await self.database.statistics()
        self.totals.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        (await self.status.get("/global-status")).raise_for_status()
        self.answers.append((time.perf_counter() - began) * 1000)

    def row(self) -> list[Cell]:
        return [
            str(self.size),
            statistics.median(self.claims),
            percentile(self.claims, 0.99),
            statistics.median(self.limited),
            percentile(self.limited, 0.99),
            statistics.median(self.totals),
            statistics.median(self.answers),
        ]


async def measure(options: Options) -> Result:
    """Growth on PostgreSQL, one worker's memory and idleness there, and claims on CockroachDB where there is one."""
    async with database_server(options) as server:
        queues = await measure_tables(server, options, SIZES)
        worker = await resident.measure(server, options)
    tables = [_table("PostgreSQL", queues)]
    ratios = _claim_ratios("PostgreSQL", queues)
    series = {"PostgreSQL": _by_pending(queues)}
    if options.cockroach is not None:
        queues = await measure_tables(options.cockroach, options, COCKROACH_SIZES)
        tables.append(_table("CockroachDB", queues))
        ratios += _claim_ratios("CockroachDB", queues)
        series["CockroachDB"] = _by_pending(queues)
    return Result(
        part="growth",
        title="Growth",
        tables=[*tables, *worker.tables],
        ratios=[*ratios, *worker.ratios],
        plots=[
            Plot(
                name="claim_by_rows",
                title=f"Claim of {BATCH} tasks, median",
                x_label="pending rows",
                y_label="milliseconds",
                series=series,
                log_x=True,
            )
        ],
    )


async def measure_tables(server: str, options: Options, sizes: Sequence[Size]) -> list[Queue]:
    """Fill a database of each size and measure them in turns."""
    async with AsyncExitStack() as stack:
        queues = [
            await stack.enter_async_context(
                open_queue(
                    server, Size(options.scaled(size.pending), options.scaled(size.finished) * bool(size.finished))
                )
            )
            for size in sizes
        ]
        for _ in range(ROUNDS):
            for queue in queues:
                await queue.claim_for_a_round()
                await queue.ask_for_totals()
            await trio.sleep(MAXIMUM_AGE)
        return queues


@asynccontextmanager
async def open_queue(server: str, size: Size) -> AsyncIterator[Queue]:
    """A database that holds so many tasks, with a status server beside it."""
    async with (
        fresh_database(server) as conninfo,
        open_database(settings := Settings.model_validate({"database_url": conninfo, "api_port": 0})) as database,
        trio.open_nursery() as nursery,
    ):
        code = add_code(conninfo)
        await trio.to_thread.run_sync(fill, conninfo, code, size.finished, Status.COMPLETED)
        await trio.to_thread.run_sync(fill, conninfo, code, size.pending, Status.PENDING)
        await trio.to_thread.run_sync(tidy, conninfo)
        address = await nursery.start(serve_status, settings, WorkerState("growth", 1), database, Telemetry())
        async with httpx.AsyncClient(base_url=address, timeout=10) as status:
            yield Queue(size, conninfo, database, status, code)
        nursery.cancel_scope.cancel()


def _completed(task: ClaimedTask) -> Completion:
    return Completion(task.id, task.attempt, Status.COMPLETED, 0, "hello\n", "", None)


def _table(server: str, queues: Sequence[Queue]) -> Table:
    columns = (
        "tasks in the table",
        f"claim of {BATCH} p50, ms",
        "p99, ms",
        "the same with limits p50, ms",
        "p99, ms",
        "statistics p50, ms",
        "GET /global-status p50, ms",
    )
    note = f"{len(queues[0].claims)} claims of each size, in {ROUNDS} turns, each written as completed and replaced."
    if server != "PostgreSQL":
        note += f" Sizes end at {max(queue.size.pending + queue.size.finished for queue in queues):,} rows: filling takes longer."
    return Table(f"Growth of the tables, {server}", columns, [queue.row() for queue in queues], note)


def _claim_ratios(server: str, queues: Sequence[Queue]) -> list[Ratio]:
    first, *_, last = sorted((queue for queue in queues if not queue.size.finished), key=lambda each: each.size.pending)
    return [
        Ratio(
            f"{server}: claim{how} p50, {last.size} vs {first.size.pending:,}",
            statistics.median(most) / statistics.median(fewest),
            target=MOST_CLAIMED,
            direction="at most",
        )
        for how, most, fewest in (("", last.claims, first.claims), (" with limits", last.limited, first.limited))
    ]


def _by_pending(queues: Sequence[Queue]) -> list[tuple[str | float, float]]:
    return [(queue.size.pending, statistics.median(queue.claims)) for queue in queues if not queue.size.finished]
