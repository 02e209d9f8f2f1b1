"""The database path: how fast jobs that do nothing are claimed and completed, beside the raw statements and other queues."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.draining import Drained, drain
from benchmarks.peers import Contender, pgqueuer, procrastinate, raw
from benchmarks.report import Cell, Plot, Ratio, Result, Table
from benchmarks.setting import Options, database_server

SLOTS = 8
"""Of each of our workers. It holds up to nine times as many short tasks, and so claims about 50 at a time."""
OURS = replace(raw.CONTENDER, name="continuum", module="benchmarks.null_worker", environment={"SLOTS": str(SLOTS)})

JOBS = 6_000
FEWER_JOBS = 1_500
"""Where somebody is slow: procrastinate, which takes longer for each job the more there are, and CockroachDB."""
ROUNDS = 3
WORKERS = (1, 2, 4, 8)

COLUMNS = (
    "contender",
    "processes",
    "jobs/s",
    "lowest",
    "highest",
    "transactions/job",
    "worker CPU us/job",
    "server CPU us/job",
)


async def measure(options: Options) -> Result:
    async with database_server(options) as server:
        runs = [*await _one_of_each(server, options), *await _more_of_them(server, options)]
        fewer = await _beside_procrastinate(server, options)
    tables = [_table("PostgreSQL", runs), _table("PostgreSQL", fewer)]
    ratios = [
        Ratio("one worker / pgqueuer", _rate(runs, OURS) / _rate(runs, pgqueuer.CONTENDER), 2.0),
        Ratio("one worker / procrastinate", _rate(fewer, OURS) / _rate(fewer, procrastinate.CONTENDER), 10.0),
        *_own_ratios(runs),
    ]
    plots = [_bars([*runs, *fewer]), _line("database_path_workers", "PostgreSQL", runs)]
    if options.cockroach is not None:
        runs = await _on_cockroach(options.cockroach, options)
        tables.append(_table("CockroachDB", runs))
        ratios += [replace(ratio, name=f"CockroachDB: {ratio.name}") for ratio in _own_ratios(runs)]
        plots.append(_line("database_path_cockroach", "CockroachDB", runs))
    return Result("database_path", "Claim and complete, without a sandbox", tables, ratios, plots)


async def _one_of_each(server: str, options: Options) -> list[Drained]:
    """In turns, so that what else the machine does meets all of them."""
    contenders = (raw.CONTENDER, OURS, pgqueuer.CONTENDER)
    return [
        await drain(server, each, 1, options.scaled(JOBS)) for _ in range(options.scaled(ROUNDS)) for each in contenders
    ]


async def _more_of_them(server: str, options: Options) -> list[Drained]:
    crews = [*((OURS, count) for count in WORKERS[1:]), (raw.CONTENDER, 4), (pgqueuer.CONTENDER, 4)]
    return [await drain(server, contender, count, options.scaled(JOBS)) for contender, count in crews]


async def _beside_procrastinate(server: str, options: Options) -> list[Drained]:
    crews = [(OURS, 1), (procrastinate.CONTENDER, 1), (OURS, 1), (procrastinate.CONTENDER, 4)]
    return [await drain(server, contender, count, options.scaled(FEWER_JOBS)) for contender, count in crews]


async def _on_cockroach(server: str, options: Options) -> list[Drained]:
    """Without the peers: they live on LISTEN, which CockroachDB does not have."""
    crews = [(raw.CONTENDER, 1), *((OURS, count) for count in WORKERS)]
    return [await drain(server, contender, count, options.scaled(FEWER_JOBS)) for contender, count in crews]


def _own_ratios(runs: Sequence[Drained]) -> list[Ratio]:
    one = _rate(runs, OURS)
    ratios = [
        Ratio("one worker / raw statements", one / _rate(runs, raw.CONTENDER), 0.35),
        Ratio("4 workers / one", _rate(runs, OURS, 4) / one, 2.5),
    ]
    alone = _of(runs, OURS, 1)
    server = _median(each.server_seconds for each in alone)
    if server is not None:
        worker = statistics.median(each.worker_seconds for each in alone)
        bound = (os.cpu_count() or 1) / (worker + server)
        ratios.append(Ratio("4 workers / one that the CPUs allow at most", min(4.0, bound / one)))
    transactions = _median(each.transactions for each in alone)
    if transactions is not None:
        ratios.append(Ratio("statements per task, batch of 50", transactions, 0.1, "at most"))
    return ratios


def _table(database: str, runs: Sequence[Drained]) -> Table:
    rows: list[Sequence[Cell]] = []
    for contender, workers in dict.fromkeys((each.contender, each.workers) for each in runs):
        found = [each for each in runs if (each.contender, each.workers) == (contender, workers)]
        rates = [each.rate for each in found]
        rows.append(
            (
                contender,
                workers,
                statistics.median(rates),
                min(rates),
                max(rates),
                _median(each.transactions for each in found),
                _microseconds(each.worker_seconds for each in found),
                _microseconds(each.server_seconds for each in found),
            )
        )
    note = (
        f"Our workers have {SLOTS} slots; raw is our statements in batches of {raw.BATCH} on a blocking connection. Medians "
        "where a row was measured more than once. Transactions are all while the workers lived, start and end included. "
        f"{os.cpu_count()} CPUs serve workers and database together."
    )
    if pgqueuer.DRIVER != "asyncpg":
        note += " pgqueuer would be faster with asyncpg, which is not installed."
    return Table(f"{database}, {runs[0].jobs:,} jobs", COLUMNS, rows, note)


def _bars(runs: Sequence[Drained]) -> Plot:
    """One process of each."""
    names = dict.fromkeys(each.contender for each in runs if each.workers == 1)
    most = {name: max(each.jobs for each in runs if each.contender == name) for name in names}
    rates = {
        name: statistics.median(
            each.rate for each in runs if (each.contender, each.workers, each.jobs) == (name, 1, most[name])
        )
        for name in names
    }
    label = ", ".join(f"{name}: {count:,} jobs" for name, count in most.items() if count < max(most.values()))
    return Plot("database_path", "Claim and complete: one process", label, "jobs/s", {"jobs/s": list(rates.items())})


def _line(name: str, database: str, runs: Sequence[Drained]) -> Plot:
    points = [(float(count), _rate(runs, OURS, count)) for count in WORKERS]
    return Plot(name, f"Claim and complete on {database}", "workers", "jobs/s", {OURS.name: points})


def _of(runs: Sequence[Drained], contender: Contender, workers: int) -> list[Drained]:
    return [each for each in runs if (each.contender, each.workers) == (contender.name, workers)]


def _rate(runs: Sequence[Drained], contender: Contender, workers: int = 1) -> float:
    return statistics.median(each.rate for each in _of(runs, contender, workers))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _microseconds(seconds: Iterable[float | None]) -> float | None:
    median = _median(seconds)
    return None if median is None else median * 1e6
