"""Hello tasks through a database and one worker process, beside sandboxes alone and beside Docker once for each task."""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from statistics import median

import trio

from benchmarks.report import Plot, Ratio, Result, Table
from benchmarks.sandboxes import (
    drive,
    idle_runs,
    prepared_backend,
    sandbox_environment,
    settings_of,
    started_sandboxes,
)
from benchmarks.setting import HELLO, Options, database_server, fresh_database
from benchmarks.ways import docker_ways
from benchmarks.worker_process import DEADLINE, TICK, burst, hello_finished, steady_load, worker_process
from continuum.client import Client
from continuum.demo.run import latency, percentile

SLOTS = (1, 2, 4)
COCKROACH_SLOTS = (2,)
ROUNDS = 3
ALONE_SECONDS = 1.0
EXEC_SECONDS = 1.0
BURST_SECONDS = 1.5
"""How long a burst takes at the rate of sandboxes alone."""
LOAD_SECONDS = 3.0
LOAD = 0.5
"""Of what bursts reached: a steady load that a worker keeps up with."""
IDLE_TASKS = 40
IDLE_PAUSE = 0.05
"""Seconds for which a worker is left alone before a task that is to find it idle."""
TARGETS = {1: 0.75, 2: 0.75, 4: 0.6}
"""End to end over sandboxes alone, by slots."""
CPUS_FOR_FOUR = 4
"""With fewer the worker and four sandboxes share what two sandboxes use up."""
EXEC_TARGET = 25.0
WARM_UP = 50
"""Tasks for each slot before anything is measured."""
WARM_UP_SECONDS = 0.3


@dataclass(slots=True)
class Found:
    """What was measured with one number of slots: tasks/s, and seconds. alone, execs, bursts: one for each round."""

    slots: int
    cold_start: float = 0.0
    alone: list[float] = field(default_factory=list)
    execs: list[float] = field(default_factory=list)
    bursts: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    idle_alone: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    idle_client: list[float] = field(default_factory=list)


async def measure(options: Options) -> Result:
    """For each number of slots: sandboxes alone, execs and end to end in turn, then an idle worker, then a steady load."""
    async with database_server(options) as server:
        found = [await _with_slots(options, server, slots) for slots in SLOTS]
    tables, ratios = [_rates("PostgreSQL", found), _idle("PostgreSQL", found)], _ratios(found)
    if options.cockroach is not None:
        on_cockroach = [await _with_slots(options, options.cockroach, slots) for slots in COCKROACH_SLOTS]
        tables += [_rates("CockroachDB", on_cockroach), _idle("CockroachDB", on_cockroach)]
        ratios += [replace(each, name=f"CockroachDB: {each.name}", target=None) for each in _ratios(on_cockroach)]
    return Result("end_to_end", "End to end: hello through a database, one worker", tables, ratios, [_plot(found)])


async def _with_slots(options: Options, server: str, slots: int) -> Found:
    found = Found(slots)
    async with AsyncExitStack() as stack:
        conninfo = await stack.enter_async_context(fresh_database(server))
        environment = sandbox_environment(options, DATABASE_URL=conninfo, SLOTS=str(slots))
        settings = settings_of(environment)
        client = await stack.enter_async_context(Client(settings))
        backend = await stack.enter_async_context(prepared_backend(settings))
        alone = await stack.enter_async_context(started_sandboxes(backend, slots))
        docker = await stack.enter_async_context(docker_ways(settings, slots)) if backend.name == "docker" else None
        first = await client.submit(HELLO)
        await stack.enter_async_context(worker_process(environment))
        found.cold_start = latency((await hello_finished(client, [first]))[0])
        await burst(client, WARM_UP * slots)
        await drive(alone, WARM_UP_SECONDS)
        for _ in range(options.scaled(ROUNDS)):
            found.alone.append((await drive(alone, ALONE_SECONDS * options.part)).rate)
            if docker is not None:
                found.execs.append((await docker.exec(slots, EXEC_SECONDS * options.part)).rate)
            found.bursts.append(await burst(client, max(slots, round(found.alone[-1] * BURST_SECONDS * options.part))))
        for _ in range(options.scaled(IDLE_TASKS)):
            found.idle_alone += await idle_runs(alone[0], 1)
            await trio.sleep(IDLE_PAUSE)
            began = time.perf_counter()
            record = await client.wait(await client.submit(HELLO), DEADLINE)
            found.idle_client.append(time.perf_counter() - began)
            found.idle.append(latency(record))
        found.loaded += await steady_load(client, LOAD * median(found.bursts), LOAD_SECONDS * options.part)
    return found


def _rates(database: str, found: list[Found]) -> Table:
    return Table(
        f"{database}: hello tasks, INSERT to terminal row",
        [
            "slots", "sandboxes alone, tasks/s", "docker exec for each, tasks/s", "end to end, tasks/s",
            *(f"{name} at half of that, ms" for name in ("p50", "p95", "p99")),
            "cold start, s",
        ],
        [
            [
                each.slots,
                median(each.alone),
                median(each.execs) if each.execs else None,
                median(each.bursts),
                *(1000 * percentile(each.loaded, part) for part in (0.5, 0.95, 0.99)),
                each.cold_start,
            ]
            for each in found
        ],
        note=f"Medians of {len(found[0].bursts)} rounds, the three in turn. A burst is submitted at once and takes some "
        f"{BURST_SECONDS:g} s; latencies are of a steady load of half its rate, submitted every "
        f"{1000 * TICK:g} ms. Times are the database's: `created_at` to "
        "`finished`, the start of the transaction that wrote each. Docker exec: as the first version, one container for each "
        "slot; none without Docker. Cold start: from the start of the worker's process to its first task done.",
    )  # fmt: skip


def _idle(database: str, found: list[Found]) -> Table:
    columns = [(part, name) for name in ("alone", "to terminal row", "to the client") for part in ("p50", "p95")]
    return Table(
        f"{database}: an idle worker, and one idle sandbox alone",
        ["slots", *(f"{name} {part}, ms" for part, name in columns)],
        [
            [
                each.slots,
                *(
                    1000 * percentile(times, part)
                    for times in (each.idle_alone, each.idle, each.idle_client)
                    for part in (0.5, 0.95)
                ),
            ]
            for each in found
        ],
        note=f"In turn, each left alone for {1000 * IDLE_PAUSE:g} ms before. To the client: from before the INSERT until its "
        "`wait` returned, which looks every few milliseconds.",
    )


def _ratios(found: list[Found]) -> list[Ratio]:
    enough_cpus = (os.cpu_count() or 1) >= CPUS_FOR_FOUR
    ratios = []
    for each in found:
        plural = "s" if each.slots > 1 else ""
        rate, ceiling = median(each.bursts), median(each.alone)
        target = TARGETS[each.slots] if each.slots < CPUS_FOR_FOUR or enough_cpus else None
        untold = "" if target else f" (no target with fewer than {CPUS_FOR_FOUR} CPUs)"
        ratios.append(Ratio(f"end to end / sandboxes alone, {each.slots} slot{plural}{untold}", rate / ceiling, target))
        if each.execs:
            name = f"end to end / docker exec for each, {each.slots} at a time"
            ratios.append(Ratio(name, rate / median(each.execs), EXEC_TARGET))
            bound = f"sandboxes alone / docker exec for each, {each.slots} at a time (the bound of the one before)"
            ratios.append(Ratio(bound, ceiling / median(each.execs)))
    idle = [value for each in found for value in each.idle]
    alone = [value for each in found for value in each.idle_alone]
    p50, p95 = percentile(idle, 0.5), percentile(idle, 0.95)
    ratios.append(Ratio("idle worker's p50 / idle sandbox's own p50", p50 / percentile(alone, 0.5), 2.5, "at most"))
    ratios.append(Ratio("idle worker's p95 / its p50", p95 / p50, 2.0, "at most"))
    return ratios


def _plot(found: list[Found]) -> Plot:
    series = {
        "sandboxes alone": [(float(each.slots), median(each.alone)) for each in found],
        "end to end": [(float(each.slots), median(each.bursts)) for each in found],
        "docker exec for each": [(float(each.slots), median(each.execs)) for each in found if each.execs],
    }
    title = "Hello tasks by sandboxes"
    return Plot(
        "end_to_end", title, "sandboxes", "tasks/s", {name: points for name, points in series.items() if points}
    )
