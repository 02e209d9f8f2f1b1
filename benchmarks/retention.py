"""What claims notice of retention: the worker's own claims, in turns with and without a million finished rows being deleted."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import trio

from benchmarks.filling import add_code, fill, tidy
from benchmarks.report import Cell, Ratio, Result, Table
from benchmarks.setting import Options, database_server, fresh_database
from continuum.config import Settings
from continuum.db import open_database
from continuum.db.protocol import Database
from continuum.demo.run import percentile
from continuum.model import Completion, Status
from continuum.nursery.retention import Retention
from continuum.nursery.state import WorkerState

FINISHED = 1_000_000
PENDING = 200_000
TURN = 2.0
"""Seconds of claims without retention and of claims beside it, again and again until all is deleted."""
BATCH = 8
"""Tasks in a claim."""
MOST_SLOWED = 2.0


@dataclass(slots=True)
class Side:
    """Claims of one kind of turn. times: milliseconds. seconds: how long these turns were."""

    name: str
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> list[Cell]:
        return [
            self.name,
            len(self.times),
            len(self.times) / self.seconds,
            statistics.median(self.times),
            percentile(self.times, 0.95),
            percentile(self.times, 0.99),
            max(self.times),
        ]


async def measure(options: Options) -> Result:
    """Claims in pairs of turns on PostgreSQL."""
    async with database_server(options) as server, fresh_database(server) as conninfo:
        code = add_code(conninfo)
        await trio.to_thread.run_sync(fill, conninfo, code, options.scaled(FINISHED), Status.COMPLETED)
        await trio.to_thread.run_sync(fill, conninfo, code, options.scaled(PENDING), Status.PENDING)
        await trio.to_thread.run_sync(tidy, conninfo)
        settings: dict[str, Any] = {"database_url": conninfo, "retention_days": "completed=1e-6"}
        async with open_database(Settings.model_validate(settings)) as database:
            without, beside = Side("without"), Side("beside retention")
            retention = Retention(database, WorkerState("retention", 1), Settings.model_validate(settings))
            deleted = -1
            while retention.deleted > deleted:
                deleted = retention.deleted
                await _claim_for_a_turn(database, without)
                await _claim_beside_retention(database, beside, retention)
    return Result(
        part="retention",
        title="Retention",
        tables=[
            Table(
                f"Claims of {BATCH} tasks while {deleted:,} finished tasks are deleted, PostgreSQL; all times in ms",
                ("", "claims", "claims/s", "p50", "p95", "p99", "most"),
                [without.row(), beside.row()],
                note=f"Each claim is followed by the completion of what it got. Turns of {TURN:g} s. "
                f"{deleted / beside.seconds:,.0f} tasks were deleted in a second.",
            )
        ],
        ratios=[
            Ratio(
                "PostgreSQL: claim p95, beside retention vs without",
                percentile(beside.times, 0.95) / percentile(without.times, 0.95),
                target=MOST_SLOWED,
                direction="at most",
            )
        ],
    )


async def _claim_beside_retention(database: Database, side: Side, retention: Retention) -> None:
    """A turn during which retention deletes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retention.retain)
        await _claim_for_a_turn(database, side)
        nursery.cancel_scope.cancel()


async def _claim_for_a_turn(database: Database, side: Side) -> None:
    began = time.perf_counter()
    while time.perf_counter() - began < TURN:
        asked = time.perf_counter()
        tasks = await database.claim("claims", BATCH, lease=30)
        side.times.append((time.perf_counter() - asked) * 1000)
        await database.complete(
            "claims", [Completion(task.id, task.attempt, Status.FAILED, 1, "", "", "no") for task in tasks]
        )
    side.seconds += time.perf_counter() - began
