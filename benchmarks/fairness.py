"""A thousand tenants whose backlogs follow Zipf's law, and twenty workers whose sandboxes are none: who gets how much, whether
limits hold at every instant, and what they cost.

A worker here is a loop around its own database adapter: claim, take no time, complete. What is judged is the record that the
database keeps, by its own clock.

- **Shares** are counted over one whole round of all workers, in which each tenant is to have a start from every worker: 20, or
  what is left of its backlog. Jain's index is of those tenants that have a backlog from beginning to end. Workers know nothing of
  each other, so that a part of a round is shared by chance. After r rounds of n workers the index is on average
  1 / (1 + f (1 - f) / (n r r)), where f is what r has behind its point: 0.83 after a fifth of a round, 0.95 after half of one, 1
  after a whole one.
- **Limits**: every tenant may run three tasks at a time and begin forty in any second, which is a permit of either kind for each
  task and holds nobody back; the fifty with the most work may run one at a time and begin two in a second, which does.
- **What limits cost** is told by pairs of short runs, taking turns on the same queue: with a permit of either kind for each task,
  holding nobody back, and without limits. What else the fifty cost, who must be passed by, shows in the throughput of the round.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
import trio

from benchmarks.filling import add_code, tidy
from benchmarks.report import Cell, Ratio, Result, Table
from benchmarks.setting import Options, database_server, fresh_database
from continuum.config import Settings
from continuum.db import open_database
from continuum.db.protocol import Database
from continuum.model import Completion, Limit, Scope, Status

LEAST_JAIN, LEAST_THROUGHPUT = 0.95, 0.7
PAIRS = 3
EVERYBODY = Limit(Scope.TENANT, "*", max_running=3, rate=40, rate_period=1.0)
HELD_BACK = Limit(Scope.TENANT, "", max_running=1, rate=2, rate_period=1.0)
"""Of a few tenants instead."""

FILL = """
INSERT INTO tasks (name, tenant, code, payload)
SELECT 'n', tenant, %(code)s, '{}'
FROM (
    SELECT 'tenant-' || lpad(k::text, 4, '0') AS tenant, n
    FROM generate_series(1, %(tenants)s) AS t (k),
         LATERAL generate_series(1, greatest(1, (%(first)s::float8 / k::float8)::int4)) AS b (n)
) AS backlogs
ORDER BY md5(tenant || n::text)
"""
PERMITS = """
INSERT INTO permits (resource, number)
SELECT kind || ':tenant-' || lpad(k::text, 4, '0'), number
FROM generate_series(1, %(tenants)s) AS t (k), (VALUES ('running', %(max_running)s), ('rate', %(rate)s)) AS limited (kind, most),
     LATERAL generate_series(1, most) AS n (number)
"""
"""What workers make when they first meet a limit. Who makes them is slow, so that others catch up and go on beside it."""
SHARES = """
SELECT tenant, count(*) FILTER (WHERE worker_id LIKE %(run)s), count(*) FILTER (WHERE status = 'pending')
FROM tasks GROUP BY tenant ORDER BY tenant
"""
HISTORY = "SELECT tenant, started, finished FROM tasks WHERE worker_id LIKE %(run)s AND started IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Size:
    """tasks: at the beginning. held_back: tenants that their limits hold back, those with the most work. pair: starts of each run
    of a pair. slots: tasks that a worker claims at once."""

    tenants: int
    workers: int
    tasks: int
    held_back: int
    pair: int
    slots: int = 4

    @property
    def first(self) -> float:
        """Tasks of the first tenant."""
        return self.tasks / sum(1 / k for k in range(1, self.tenants + 1))


POSTGRES = Size(tenants=1_000, workers=20, tasks=40_000, held_back=50, pair=1_200)
COCKROACH = Size(tenants=100, workers=8, tasks=4_000, held_back=5, pair=300)
"""Less by ten: a single node shares its processors with all workers."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A task: whose, and when it began and ended."""

    tenant: str
    started: datetime
    finished: datetime


@dataclass(frozen=True, slots=True)
class Round:
    """What a whole round of all workers came to. shares: starts of each tenant that had a backlog throughout."""

    throughput: float
    shares: Sequence[int]


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 where all are equal, 1/n where one has everything (Jain, Chiu and Hawe, 1984)."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def most_at_once(tasks: Iterable[Ran]) -> int:
    """How many of these ran at a time, at most. One that ended when another began is not counted with it."""
    changes = sorted(change for task in tasks for change in ((task.started, 1), (task.finished, -1)))
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def most_in_a_period(tasks: Iterable[Ran], period: float) -> int:
    """How many of these began within so many seconds, at most, wherever those begin."""
    starts = sorted(task.started for task in tasks)
    most = first = 0
    for number, start in enumerate(starts):
        while start - starts[first] >= timedelta(seconds=period):
            first += 1
        most = max(most, number - first + 1)
    return most


@dataclass(frozen=True, slots=True)
class Judgement:
    """violations: tenants whose limit did not hold at some instant. reached: those who got as far as one allows."""

    violations: int
    reached: int


def judge(history: Iterable[Ran], limits: dict[str, Limit]) -> Judgement:
    """Hold a history against limits by tenants, of which all others have `EVERYBODY`."""
    of_tenants = defaultdict(list)
    for task in history:
        of_tenants[task.tenant].append(task)
    violations = reached = 0
    for tenant, tasks in of_tenants.items():
        limit = limits.get(tenant, EVERYBODY)
        assert limit.max_running is not None
        assert limit.rate is not None
        assert limit.rate_period is not None
        beyond = (
            most_at_once(tasks) - limit.max_running,
            most_in_a_period(tasks, limit.rate_period) - limit.rate,
        )
        violations += max(beyond) > 0
        reached += max(beyond) == 0
    return Judgement(violations, reached)


class Simulation:
    """Workers on one queue. Each run goes on where the workers stood."""

    def __init__(self, conninfo: str, size: Size, workers: Sequence[Database]) -> None:
        self.size = size
        self._conninfo = conninfo
        self._workers = workers
        self._code = add_code(conninfo)
        self._limits = {
            name: Limit(Scope.TENANT, name, None, HELD_BACK.max_running, HELD_BACK.rate, HELD_BACK.rate_period)
            for name in (f"tenant-{k:04}" for k in range(1, size.held_back + 1))
        }

    def fill(self) -> None:
        """Add a backlog."""
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(FILL, {"code": self._code, "tenants": self.size.tenants, "first": self.size.first})
        tidy(self._conninfo)

    def make_permits(self) -> None:
        many = {"tenants": self.size.tenants, "max_running": EVERYBODY.max_running, "rate": EVERYBODY.rate}
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(PERMITS, many)
            connection.execute("ANALYZE permits")

    async def set_limits(self, *, everybody: bool, held_back: bool = False) -> None:
        for limit, on in ((EVERYBODY, everybody), *((each, held_back) for each in self._limits.values())):
            if on:
                await self._workers[0].set_limit(limit)
            else:
                await self._workers[0].clear_limit(limit.scope, limit.name)

    async def run(self, name: str, starts: int) -> float:
        """Have the workers start so many tasks and finish them. Returns starts a second."""
        left = starts

        async def work(worker_id: str, database: Database) -> None:
            nonlocal left
            while left > 0:
                claim = await database.claim(worker_id, self.size.slots, lease=60)
                left -= len(claim)
                if claim:
                    done = [Completion(each.id, each.attempt, Status.COMPLETED, 0, "", "", None) for each in claim]
                    assert len(await database.complete(worker_id, done)) == len(done)
                else:
                    await trio.sleep(min(0.05, claim.again_in or 0.05))

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number, database in enumerate(self._workers):
                nursery.start_soon(work, f"{name}-{number}", database)
        return (starts - left) / (time.perf_counter() - began)

    async def go_around(self, name: str) -> Round:
        """A whole round: each tenant has a start from every worker, or what is left of its backlog."""
        backlogs = [pending for _, _, pending in self._shares(name)]
        throughput = await self.run(name, sum(min(pending, self.size.workers) for pending in backlogs))
        shares = [
            starts
            for tenant, starts, pending in self._shares(name)
            if pending > 0 and (name == "free" or tenant not in self._limits)
        ]
        return Round(throughput, shares)

    def _shares(self, name: str) -> list[tuple[str, int, int]]:
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            return connection.execute(SHARES, {"run": f"{name}-%"}).fetchall()

    def judge(self, name: str, *, held_back: bool) -> Judgement:
        """Hold a run with limits against them."""
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            rows = connection.execute(HISTORY, {"run": f"{name}-%"}).fetchall()
        return judge((Ran(*row) for row in rows), self._limits if held_back else {})


async def measure(options: Options) -> Result:
    async with database_server(options) as server:
        tables, ratios = await _simulate("PostgreSQL", server, POSTGRES, options)
    if options.cockroach is not None:
        found = await _simulate("CockroachDB", options.cockroach, COCKROACH, options)
        tables, ratios = tables + found[0], ratios + found[1]
    return Result("fairness", "Tenants with backlogs by Zipf's law, and workers without sandboxes", tables, ratios)


async def _simulate(name: str, server: str, size: Size, options: Options) -> tuple[list[Table], list[Ratio]]:
    pair = options.scaled(size.pair)
    async with _simulation(server, size) as simulation:
        simulation.fill()
        free = await simulation.go_around("free")
        simulation.fill()
        simulation.make_permits()
        await simulation.set_limits(everybody=True, held_back=True)
        limited = await simulation.go_around("limited")
        simulation.fill()
        pairs = []
        for _ in range(PAIRS):
            await simulation.set_limits(everybody=False)
            without = await simulation.run("pair-free", pair)
            await simulation.set_limits(everybody=True)
            pairs.append((without, await simulation.run("pair-limited", pair)))
        judgement = simulation.judge("limited", held_back=True)
        violations = judgement.violations + simulation.judge("pair-limited", held_back=False).violations
    rows: list[list[Cell]] = [
        [
            way,
            len(around.shares),
            min(around.shares),
            max(around.shares),
            jain(around.shares),
            around.throughput,
            median,
        ]
        for way, around, median in (
            ("no limits", free, statistics.median(pair[0] for pair in pairs)),
            ("every tenant limited", limited, statistics.median(pair[1] for pair in pairs)),
        )
    ]
    columns = [
        "limits",
        "tenants with a backlog throughout",
        "fewest starts of one",
        "most",
        "Jain's index",
        "starts/s, a whole round",
        "starts/s in pairs",
    ]
    note = (
        f"{size.tenants:,} tenants, {size.workers} workers, claims of {size.slots}; permits were made before. "
        f"{judgement.reached:,} tenants got as far as a limit allows in it, {violations} beyond one at any time."
    )
    return [Table(name, columns, rows, note)], [
        Ratio(f"{name}: Jain's index, equal weights", jain(free.shares), LEAST_JAIN),
        Ratio(f"{name}: Jain's index, every tenant limited", jain(limited.shares), LEAST_JAIN),
        Ratio(
            f"{name}: throughput with all limits on / without",
            statistics.median(with_limits / without for without, with_limits in pairs),
            LEAST_THROUGHPUT,
        ),
        Ratio(f"{name}: tenants beyond a limit", float(violations), 0.0, "at most"),
    ]


@asynccontextmanager
async def _simulation(server: str, size: Size) -> AsyncIterator[Simulation]:
    """A queue in a database of its own, and workers that have nothing in common but that."""
    async with fresh_database(server) as conninfo, AsyncExitStack() as stack:
        settings = Settings.model_validate({"database_url": conninfo})
        workers = [await stack.enter_async_context(open_database(settings, pool_size=1)) for _ in range(size.workers)]
        yield Simulation(conninfo, size, workers)
