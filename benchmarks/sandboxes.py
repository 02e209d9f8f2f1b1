"""Sandboxes driven by Trio without a database: what a worker could reach if it and the database cost nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from benchmarks.setting import HELLO, Options
from continuum.config import Settings, load_settings
from continuum.model import Ending, Outcome, RunRequest
from continuum.sandbox import choose_backend
from continuum.sandbox.protocol import Backend, Sandbox

REQUEST = RunRequest(task_id=1, attempt=1, code=HELLO, payload="null", timeout=30.0, output_limit=65536)
IDLE_PAUSE = 0.01
"""Seconds for which a sandbox is left alone before a run that is to find it idle."""


class WrongOutcome(Exception):
    """A script did not end as it must: figures about it would mean nothing."""


@dataclass(frozen=True, slots=True)
class Driven:
    """Runs of some sandboxes side by side. times: seconds of each; elapsed: seconds of all."""

    times: Sequence[float]
    elapsed: float

    @property
    def rate(self) -> float:
        """Runs per second."""
        return len(self.times) / self.elapsed


def sandbox_environment(options: Options, **more: str) -> dict[str, str]:
    """The variables that a worker and sandboxes alone are given alike. CONTAINER_CPU_LIMIT is a whole processor: with less
    the kernel's throttle would be measured."""
    return {
        "SANDBOX": options.backend,
        "CONTAINER_RUNTIME": options.runtime,
        "EGRESS": "none",
        "CONTAINER_CPU_LIMIT": "1.0",
        "LOG_LEVEL": "error",
        "API_PORT": "0",
        **more,
    }


def settings_of(environment: Mapping[str, str]) -> Settings:
    """The settings that a worker with these variables has."""
    return load_settings(**{name.lower(): value for name, value in environment.items()})


@asynccontextmanager
async def prepared_backend(settings: Settings) -> AsyncIterator[Backend]:
    """The backend that the settings name, ready for cold starts."""
    backend = await choose_backend(settings, "benchmark")
    try:
        await backend.prepare()
        yield backend
    finally:
        await backend.aclose()


@asynccontextmanager
async def started_sandboxes(backend: Backend, count: int, at_once: int | None = None) -> AsyncIterator[list[Sandbox]]:
    """So many sandboxes, started `at_once` (None: all of them), closed when the block ends."""
    sandboxes: list[Sandbox] = []
    limiter = trio.CapacityLimiter(at_once or count)

    async def start() -> None:
        async with limiter:
            sandboxes.append(await backend.start())

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(start)
        yield sandboxes
    finally:
        with trio.CancelScope(shield=True):  # each takes a bounded time
            async with trio.open_nursery() as nursery:
                for sandbox in sandboxes:
                    nursery.start_soon(sandbox.aclose)


async def timed_run(sandbox: Sandbox, request: RunRequest = REQUEST) -> float:
    """Run a script that must complete; return how many seconds it took."""
    began = time.perf_counter()
    outcome: Outcome = await sandbox.run(request, lambda *_: None)
    elapsed = time.perf_counter() - began
    if outcome.ending is not Ending.COMPLETED or (request is REQUEST and outcome.output != "hello\n"):
        raise WrongOutcome(f"in {sandbox.name}: {outcome.ending}, {outcome.message}, {outcome.output[:100]!r}")
    return elapsed


async def drive(sandboxes: Sequence[Sandbox], seconds: float, request: RunRequest = REQUEST) -> Driven:
    """Run a script in each sandbox over and over for so many seconds; what is running then is run to its end."""
    times: list[float] = []
    began = time.perf_counter()

    async def repeat(sandbox: Sandbox) -> None:
        while time.perf_counter() - began < seconds:
            times.append(await timed_run(sandbox, request))

    async with trio.open_nursery() as nursery:
        for sandbox in sandboxes:
            nursery.start_soon(repeat, sandbox)
    return Driven(times, time.perf_counter() - began)


async def idle_runs(sandbox: Sandbox, count: int) -> list[float]:
    """Seconds of each of some runs that found the sandbox idle."""
    times = []
    for _ in range(count):
        await trio.sleep(IDLE_PAUSE)
        times.append(await timed_run(sandbox))
    return times
