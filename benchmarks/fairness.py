"""A thousand tenants whose backlogs follow Zipf's law, and twenty workers whose sandboxes are none: who gets how much, whether
limits hold at every instant, and what they cost.

A worker here is a loop around its own database adapter: claim, take no time, complete. All of them note what the database
answered, and a checker reads the notes afterwards. What is held counts from the answer to the claim until the completion is sent:
less than the record holds, never more. Starts are compared on the database's clock.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg
import trio

from benchmarks.report import Cell, Ratio, Result, Table
from benchmarks.setting import HELLO, Options, database_server, fresh_database
from continuum.config import Settings
from continuum.db import open_database
from continuum.db.protocol import Database
from continuum.model import Completion, Lease, Limit, Scope, Status

TENANTS, WORKERS, SLOTS = 1_000, 20, 4
TASKS = 40_000
STARTS = 4_000
"""Starts after which shares are compared: four for each tenant, and all still have a backlog."""
MAX_RUNNING, RATE, PERIOD = 3, 40, 1.0
PAIRS = 3
LEAST_JAIN, LEAST_THROUGHPUT = 0.95, 0.7

FILL = """
INSERT INTO tasks (name, tenant, code, payload)
SELECT 'n', tenant, %(code)s, '{}'
FROM generate_series(1, %(tenants)s) AS k,
     LATERAL (SELECT 'tenant-' || lpad(k::text, 4, '0') AS tenant) AS named,
     LATERAL generate_series(1, greatest(1, (%(first)s / k)::int4)) AS n
ORDER BY random()
"""


@dataclass(slots=True)
class Notes:
    """What the workers were answered, in order. held: tasks of each tenant at this moment; most: the most there ever were."""

    starts: list[str] = field(default_factory=list)
    held: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def took(self, tenants: Iterable[str]) -> None:
        for tenant in tenants:
            self.starts.append(tenant)
            self.held[tenant] += 1
            self.most[tenant] = max(self.most[tenant], self.held[tenant])

    def gave_back(self, tenants: Iterable[str]) -> None:
        self.held.subtract(tenants)

    @property
    def throughput(self) -> float:
        """Starts a second."""
        return len(self.starts) / self.seconds


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 where all are equal, 1/n where one has everything (Jain, Chiu and Hawe, 1984)."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


async def measure(options: Options) -> Result:
    free: list[Notes] = []
    limited: list[Notes] = []
    violations = 0
    tasks, starts = options.scaled(TASKS), options.scaled(STARTS)
    async with database_server(options) as server:
        for _ in range(PAIRS):
            for notes, limits in ((free, False), (limited, True)):
                async with _queue(server, tasks, limits=limits) as conninfo:
                    notes.append(await _run(conninfo, starts))
                    if limits:
                        violations += _violations(notes[-1], conninfo)
    index = [jain(list(_shares(run))) for run in free]
    ratio = statistics.median(b.throughput / a.throughput for a, b in zip(free, limited, strict=True))
    rows: list[list[Cell]] = [
        [
            name,
            statistics.median(run.throughput for run in runs),
            statistics.median(jain(list(_shares(run))) for run in runs),
        ]
        for name, runs in (("no limits", free), ("every tenant limited", limited))
    ]
    return Result(
        "fairness",
        f"{TENANTS:,} tenants with backlogs by Zipf's law, {WORKERS} workers without sandboxes",
        [
            Table(
                "",
                ["limits", "starts/s", "Jain's index of all tenants"],
                rows,
                note=f"{violations} violations of limits",
            )
        ],
        [
            Ratio("Jain's index, equal weights", statistics.median(index), LEAST_JAIN),
            Ratio("throughput with all limits on / without", ratio, LEAST_THROUGHPUT),
            Ratio("violations of a limit", float(violations), 0.0, "at most"),
        ],
    )


@asynccontextmanager
async def _queue(server: str, tasks: int, *, limits: bool) -> AsyncIterator[str]:
    """A filled queue in a database of its own."""
    async with fresh_database(server) as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            ((code,),) = connection.execute("INSERT INTO codes (code) VALUES (%s) RETURNING id", [HELLO]).fetchall()
            harmonic = sum(1 / k for k in range(1, TENANTS + 1))
            connection.execute(FILL, {"code": code, "tenants": TENANTS, "first": tasks / harmonic})
            connection.execute("VACUUM (ANALYZE) tasks")
        if limits:
            async with open_database(_settings(conninfo)) as database:
                limit = Limit(Scope.TENANT, "*", max_running=MAX_RUNNING, rate=RATE, rate_period=PERIOD)
                await database.set_limit(limit)
        yield conninfo


def _settings(conninfo: str) -> Settings:
    return Settings.model_validate({"database_url": conninfo})


async def _run(conninfo: str, starts: int) -> Notes:
    """Have the workers start so many tasks."""
    notes = Notes()
    async with trio.open_nursery() as nursery:
        began = time.perf_counter()
        for number in range(WORKERS):
            nursery.start_soon(_work, conninfo, f"worker-{number}", notes, starts)
    notes.seconds = time.perf_counter() - began
    del notes.starts[starts:]
    return notes


async def _work(conninfo: str, worker: str, notes: Notes, starts: int) -> None:
    async with open_database(_settings(conninfo), pool_size=1) as database:
        while len(notes.starts) < starts:
            claim = await database.claim(worker, SLOTS, lease=60)
            tenants = [task.tenant or "" for task in claim]
            notes.took(tenants)
            if not claim:
                await trio.sleep(min(0.05, claim.again_in or 0.05))
                continue
            await trio.lowlevel.checkpoint()
            notes.gave_back(tenants)
            await _complete(database, worker, [task.lease for task in claim])


async def _complete(database: Database, worker: str, leases: Sequence[Lease]) -> None:
    done = [Completion(lease.task_id, lease.attempt, Status.COMPLETED, 0, "", "", None) for lease in leases]
    assert len(await database.complete(worker, done)) == len(done)


def _shares(notes: Notes) -> Iterable[float]:
    """How many starts each tenant had."""
    counted = Counter(notes.starts)
    return [counted[f"tenant-{k:04}"] for k in range(1, TENANTS + 1)]


def _violations(notes: Notes, conninfo: str) -> int:
    """How often a limit did not hold: too many held at an instant, or too many starts in a period, wherever it begins."""
    found = sum(most > MAX_RUNNING for most in notes.most.values())
    started = defaultdict(list)
    with psycopg.connect(conninfo) as connection:
        rows = connection.execute("SELECT tenant, started FROM tasks WHERE started IS NOT NULL ORDER BY started")
        for tenant, at in rows:
            started[tenant].append(at)
    for times in started.values():
        for first, last in zip(times, times[RATE:], strict=False):
            found += (last - first).total_seconds() < PERIOD
    return found
