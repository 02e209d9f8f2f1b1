"""The first version's own kinds of work through a whole worker: wall time beside the least that it could be."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import trio

from benchmarks.report import Plot, Ratio, Result, Table
from benchmarks.sandboxes import (
    WrongOutcome,
    drive,
    prepared_backend,
    sandbox_environment,
    settings_of,
    started_sandboxes,
)
from benchmarks.setting import Options, database_server, fresh_database
from benchmarks.worker_process import DEADLINE, finished, wall_time, worker_process
from continuum.client import Client
from continuum.demo.run import latency
from continuum.demo.workload import WORKING, Kind
from continuum.model import NewTask, RunRequest, TaskRecord

KINDS = {kind.name: kind for kind in WORKING}
MIXED = ("hello", "sleep 1 s", "payload echo")
SINGLE = ("100x100 matrix", "order ETL", "metrics report", "primes < 5000", "write and count")
ASLEEP = {"sleep 1 s": 1.0}
"""Seconds of a task for which it needs a slot and no processor."""
MIXED_TASKS = 2000
MIXED_SLOTS = 64
"""Many more than processors: a third of the tasks do nothing but wait."""
SINGLE_SECONDS = 2.0
"""The least that each single kind takes."""
ALONE_SECONDS = 0.5
TOGETHER = 1.5
"""Seconds within which sleepers of one second end when all of them have a sandbox from the start."""


@dataclass(frozen=True, slots=True)
class Row:
    """How some tasks went. Times in seconds; alone: of all of them one after another in one sandbox without a database;
    least: what `least_wall_time` makes of it; sandboxes_alone: of all in as many sandboxes as slots, without a database."""

    name: str
    tasks: int
    slots: int
    alone: float
    least: float
    wall: float
    sandboxes_alone: float | None = None


async def measure(options: Options) -> Result:
    """Each kind in one sandbox alone; then the mixture on a worker with many slots, and each single kind on one with as many as
    it chooses."""
    slots = 2 * _cpus()
    alone, together = await _alone(options, slots)
    async with database_server(options) as server:
        async with _worker(options, server, MIXED_SLOTS) as client:
            warm = await _start_all_sandboxes(client, MIXED_SLOTS)
            count = options.scaled(MIXED_TASKS)
            mixture = [KINDS[MIXED[number % len(MIXED)]] for number in range(count)]
            rows = [await _row("hello, sleep 1 s, payload echo", client, mixture, MIXED_SLOTS, alone)]
        async with _worker(options, server, slots) as client:
            await _start_all_sandboxes(client, slots)
            for name in SINGLE:
                count = options.scaled(round(SINGLE_SECONDS * min(slots, _cpus()) / alone[name]))
                row = await _row(name, client, [KINDS[name]] * count, slots, alone)
                rows.append(replace(row, sandboxes_alone=count * together[name]))
    return Result(
        "kinds",
        "The first version's kinds of work",
        tables=[_table(rows, warm)],
        ratios=_ratios(rows),
        plots=[
            Plot(
                "kinds",
                "Kinds of work: wall time over the least that it could be",
                "",
                "wall / least",
                {"wall / least": [(row.name, row.wall / row.least) for row in rows]},
            )
        ],
    )


def least_wall_time(alone: Sequence[float], asleep: Sequence[float], slots: int, cpus: int) -> float:
    """Seconds that tasks take at the least, when the worker, the database and the sharing of processors cost nothing: their
    times must fit into the slots, and what they do not sleep of them into the processors."""
    awake = sum(alone) - sum(asleep)
    return max(sum(alone) / slots, awake / min(slots, cpus))


async def _alone(options: Options, slots: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds for one task of each kind: in one sandbox that runs it over and over, and in so many sandboxes that do."""
    settings = settings_of(sandbox_environment(options))
    one, many = {}, {}
    async with prepared_backend(settings) as backend, started_sandboxes(backend, slots) as sandboxes:
        for name in (*MIXED, *SINGLE):
            task = KINDS[name].task(1)
            request = RunRequest(1, 1, task.code or "", task.payload or "null", DEADLINE, settings.output_limit)
            one[name] = 1 / (await drive(sandboxes[:1], ALONE_SECONDS, request)).rate
            many[name] = 1 / (await drive(sandboxes, ALONE_SECONDS, request)).rate
    return one, many


@asynccontextmanager
async def _worker(options: Options, server: str, slots: int) -> AsyncIterator[Client]:
    """A client of a database and of a worker with so many slots."""
    async with AsyncExitStack() as stack:
        conninfo = await stack.enter_async_context(fresh_database(server))
        environment = sandbox_environment(options, DATABASE_URL=conninfo, SLOTS=str(slots))
        client = await stack.enter_async_context(Client(settings_of(environment)))
        await stack.enter_async_context(worker_process(environment))
        yield client


async def _start_all_sandboxes(client: Client, slots: int) -> float:
    """Have every slot used until all have a sandbox; return how many seconds that took, from when the worker was started."""
    sleeper = KINDS["sleep 1 s"]
    began = trio.current_time()
    with trio.fail_after(DEADLINE):
        while True:
            records = await _run(client, [sleeper] * slots)
            if max(map(latency, records)) < TOGETHER:
                return trio.current_time() - began - wall_time(records)


async def _row(name: str, client: Client, kinds: Sequence[Kind], slots: int, alone: Mapping[str, float]) -> Row:
    """Run one task of each of these kinds, all submitted at once."""
    times = [alone[kind.name] for kind in kinds]
    least = least_wall_time(times, [ASLEEP.get(kind.name, 0.0) for kind in kinds], slots, _cpus())
    return Row(name, len(kinds), slots, sum(times), least, wall_time(await _run(client, kinds)))


async def _run(client: Client, kinds: Sequence[Kind]) -> list[TaskRecord]:
    """Submit tasks, wait for their ends, and see that each did what its kind does."""
    tasks: list[NewTask] = [kind.task(number) for number, kind in enumerate(kinds)]
    records = await finished(client, await client.submit_many(tasks))
    for kind, record in zip(kinds, records, strict=True):
        if record.status != kind.expected or not kind.check(record):
            raise WrongOutcome(
                f"{kind.name}, task {record.id}: {record.status}, {record.last_error}, {record.output!r}"
            )
    return records


def _ratios(rows: Sequence[Row]) -> list[Ratio]:
    ratios = [Ratio(f"wall / least, {row.name}", row.wall / row.least) for row in rows]
    return ratios + [
        Ratio(f"wall / sandboxes alone, {row.name}", row.wall / row.sandboxes_alone)
        for row in rows
        if row.sandboxes_alone
    ]


def _cpus() -> int:
    return os.cpu_count() or 1


def _table(rows: Sequence[Row], warm: float) -> Table:
    return Table(
        "Kinds of work through one worker",
        [
            "work",
            "tasks",
            "slots",
            "alone, ms a task",
            "tasks/s",
            "least, s",
            "sandboxes alone, s",
            "wall, s",
            "wall / least",
        ],
        [
            [
                row.name,
                row.tasks,
                row.slots,
                1000 * row.alone / row.tasks,
                row.tasks / row.wall,
                row.least,
                row.sandboxes_alone,
                row.wall,
                row.wall / row.least,
            ]
            for row in rows
        ],
        note="Every outcome was checked. All tasks are submitted at once; wall: from the first INSERT to the last terminal row. "
        "Alone: in one sandbox, one after another. Least: the larger of all those times over the slots, and of what is not "
        f"sleep of them over the processors or slots, whichever are fewer ({_cpus()} processors). Sandboxes "
        "alone: in as many as slots, without a database, as the part `ceiling` does; not taken of the mixture. A worker with "
        f"{MIXED_SLOTS} slots had all its sandboxes {warm:.1f} s after it was started; that is not in the wall time.",
    )
