"""Sandboxes alone, driven by Trio without a database: the ceiling of a worker, beside other ways to run a hello script."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median

import trio

from benchmarks.report import Plot, Ratio, Result, Table
from benchmarks.sandboxes import (
    Driven,
    drive,
    idle_runs,
    prepared_backend,
    sandbox_environment,
    settings_of,
    started_sandboxes,
)
from benchmarks.setting import Options
from benchmarks.ways import BARE_INTERPRETER, EXEC, FORK, INTERPRETER, RUN, Way, docker_ways, local_ways
from continuum.demo.run import percentile
from continuum.sandbox.protocol import Backend, Sandbox

SANDBOXES = (1, 2, 4, 8)
ROUNDS = 3
SECONDS = 0.8
"""How long each is driven in each round."""
PARALLEL = (1, 2, 4)
"""How many at a time the other ways are used."""
WAY_ROUNDS = 2
IDLE_RUNS = 30
"""In each round."""
COLD_STARTS = 3
"""Of one sandbox; of several at once there is one for each number."""
OURS = "a sandbox"


@dataclass(slots=True)
class Found:
    """Of some sandboxes, or a number of tasks at a time, in all rounds. Times in seconds."""

    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, driven: Driven) -> None:
        self.rates.append(driven.rate)
        self.times += driven.times


async def measure(options: Options) -> Result:
    """Cold starts; then rounds in which each number of sandboxes has its turn; then rounds with each of the other ways."""
    settings = settings_of(sandbox_environment(options))
    alone = {count: Found() for count in SANDBOXES}
    idle: list[float] = []
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(prepared_backend(settings))
        cold = {count: await _cold_start(backend, count, COLD_STARTS if count == 1 else 1) for count in SANDBOXES}
        sandboxes = await stack.enter_async_context(started_sandboxes(backend, max(SANDBOXES)))
        await drive(sandboxes, SECONDS * options.part)
        for _ in range(options.scaled(ROUNDS)):
            idle += await idle_runs(sandboxes[0], options.scaled(IDLE_RUNS))
            for count, found in alone.items():
                found.add(await drive(sandboxes[:count], SECONDS * options.part))
        ways = _ways_with(sandboxes)
        if backend.name == "docker":
            docker = await stack.enter_async_context(docker_ways(settings, max(PARALLEL)))
            ways |= {EXEC: docker.exec, RUN: docker.run}
        compared = await _compare(ways, options.scaled(WAY_ROUNDS), SECONDS * options.part)
        description = backend.description
    return Result(
        "ceiling",
        "Ceiling: sandboxes alone",
        tables=[_alone_table(description, alone, cold, idle), _ways_table(compared)],
        ratios=_ratios(compared),
        plots=_plots(alone, compared),
    )


async def _cold_start(backend: Backend, count: int, times: int) -> float:
    """Seconds until so many sandboxes, all started at once, were ready: the median of some tries."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        async with started_sandboxes(backend, count):
            taken.append(time.perf_counter() - began)
    return median(taken)


def _ways_with(sandboxes: Sequence[Sandbox]) -> dict[str, Way]:
    async def ours(parallel: int, seconds: float) -> Driven:
        return await drive(sandboxes[:parallel], seconds)

    return {OURS: ours, **local_ways()}


async def _compare(ways: Mapping[str, Way], rounds: int, seconds: float) -> dict[str, dict[int, Found]]:
    compared = {name: {parallel: Found() for parallel in PARALLEL} for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for parallel in PARALLEL:
                compared[name][parallel].add(await way(parallel, seconds))
            await trio.sleep(0.1)
    return compared


def _alone_table(
    description: str, alone: Mapping[int, Found], cold: Mapping[int, float], idle: Sequence[float]
) -> Table:
    return Table(
        f"Sandboxes alone: {description}",
        ["sandboxes", "tasks/s", "p50, ms", "p99, ms", "idle p50, ms", "idle p95, ms", "cold start, ms"],
        [
            [
                count,
                median(found.rates),
                *(1000 * percentile(found.times, part) for part in (0.5, 0.99)),
                *(1000 * percentile(idle, part) if count == 1 else None for part in (0.5, 0.95)),
                1000 * cold[count],
            ]
            for count, found in alone.items()
        ],
        note=f"Medians of {len(alone[1].rates)} rounds of {SECONDS:g} s each. Idle: one sandbox left alone for 10 ms before each "
        "run. Cold start: until that many, started at once, were ready.",
    )


def _ways_table(compared: Mapping[str, Mapping[int, Found]]) -> Table:
    return Table(
        "Other ways to run hello",
        ["way", *(f"{count} at a time, tasks/s" for count in PARALLEL), "1 at a time p50, ms", "p99, ms"],
        [
            [
                name,
                *(median(found[parallel].rates) for parallel in PARALLEL),
                *(1000 * percentile(found[1].times, part) for part in (0.5, 0.99)),
            ]
            for name, found in compared.items()
        ],
        note=f"{FORK}, {BARE_INTERPRETER} and {INTERPRETER} isolate nothing. {EXEC}: as the first version ran a task, the script "
        f"copied into a warm container, one for each at a time, and executed there; its clean-up is left out. {RUN}: a new "
        "container for each. Both through the API, on kept connections; none without Docker.",
    )


def _ratios(compared: Mapping[str, Mapping[int, Found]]) -> list[Ratio]:
    return [
        Ratio(
            f"{OURS} / {name}, {parallel} at a time",
            median(compared[OURS][parallel].rates) / median(compared[name][parallel].rates),
        )
        for name in (EXEC, RUN)
        if name in compared
        for parallel in PARALLEL
    ]


def _plots(alone: Mapping[int, Found], compared: Mapping[str, Mapping[int, Found]]) -> list[Plot]:
    return [
        Plot(
            "ceiling",
            "Hello in sandboxes alone",
            "sandboxes",
            "tasks/s",
            {"sandboxes alone": [(float(count), median(found.rates)) for count, found in alone.items()]},
        ),
        Plot(
            "ways",
            "Ways to run hello, one at a time",
            "",
            "tasks/s",
            {"tasks/s": [(name, median(found[1].rates)) for name, found in compared.items()]},
            log_y=True,
        ),
    ]
