"""How fast sandboxes alone run a hello script, with no database: the ceiling of what a worker can do.

    python benchmarks/runner_ceiling.py [--backend bubblewrap|docker] [--sandboxes 1 2 4] [--seconds 3] [--json]

Each row drives its sandboxes in loops from one Trio thread. Idle is the first sandbox, left alone for 10 ms before each run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass

import structlog
import trio

from continuum.config import Settings
from continuum.model import Ending, RunRequest
from continuum.sandbox import choose_backend
from continuum.sandbox.protocol import Backend, Sandbox

REQUEST = RunRequest(1, 1, "print('hello')", "null", 30.0, 65536)
IDLE_RUNS = 50
IDLE_PAUSE = 0.01


@dataclass(frozen=True, slots=True)
class Row:
    """What so many sandboxes side by side made of it. Times in milliseconds; `cold_start` is until all were ready."""

    sandboxes: int
    tasks_per_second: float
    p50: float
    p99: float
    idle_p50: float
    cold_start: float


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def timed_run(sandbox: Sandbox) -> float:
    """Run hello; return how many milliseconds it took."""
    began = time.perf_counter()
    outcome = await sandbox.run(REQUEST, lambda *_: None)
    if outcome.ending is not Ending.COMPLETED or outcome.output != "hello\n":
        raise SystemExit(f"a hello script ended with {outcome}")
    return (time.perf_counter() - began) * 1000


async def measure_row(backend: Backend, count: int, seconds: float) -> Row:
    """Start `count` sandboxes, measure them idle and then driven for `seconds`, and close them."""
    sandboxes: list[Sandbox] = []
    times: list[float] = []

    async def start() -> None:
        sandboxes.append(await backend.start())

    async def drive(sandbox: Sandbox) -> None:
        while time.perf_counter() < deadline:
            times.append(await timed_run(sandbox))

    try:
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(start)
        cold_start = (time.perf_counter() - began) * 1000
        idle = []
        for _ in range(IDLE_RUNS):
            await trio.sleep(IDLE_PAUSE)
            idle.append(await timed_run(sandboxes[0]))
        began = time.perf_counter()
        deadline = began + seconds
        async with trio.open_nursery() as nursery:
            for sandbox in sandboxes:
                nursery.start_soon(drive, sandbox)
        elapsed = time.perf_counter() - began
    finally:
        for sandbox in sandboxes:
            await sandbox.aclose()
    return Row(
        sandboxes=count,
        tasks_per_second=len(times) / elapsed,
        p50=percentile(times, 0.5),
        p99=percentile(times, 0.99),
        idle_p50=percentile(idle, 0.5),
        cold_start=cold_start,
    )


async def measure(options: argparse.Namespace) -> tuple[str, list[Row]]:
    settings = Settings.model_validate(
        {
            "sandbox": options.backend,
            "db_dialect": "embedded",
            "egress": "none",
            "container_cpu_limit": options.cpus,
        }
    )
    backend = await choose_backend(settings, "benchmark")
    try:
        await backend.prepare()
        rows = [await measure_row(backend, count, options.seconds) for count in options.sandboxes]
        return backend.description, rows
    finally:
        await backend.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", choices=("docker", "bubblewrap"), default="bubblewrap")
    parser.add_argument("--sandboxes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each row is driven")
    parser.add_argument("--cpus", type=float, default=1.0, help="CPU limit of a container")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    description, rows = trio.run(measure, options)
    if options.json:
        print(json.dumps({"backend": description, "rows": [asdict(row) for row in rows]}))
        return
    print(description)
    print(f"{'sandboxes':>9} {'tasks/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'idle p50 ms':>12} {'cold start ms':>14}")
    for row in rows:
        print(
            f"{row.sandboxes:>9} {row.tasks_per_second:>9.0f} {row.p50:>8.2f} {row.p99:>8.2f} "
            f"{row.idle_p50:>12.2f} {row.cold_start:>14.0f}"
        )


if __name__ == "__main__":
    main()
