"""How fast a hello task goes the whole way, beside the sandboxes alone: ratios of one run on one machine.

    python benchmarks/throughput.py [--backend docker|bubblewrap] [--runtime runsc] [--slots 4] [--tasks 2000] [--json]

Sandboxes alone are driven by Trio without a database; end to end is INSERT to terminal row through an embedded
PostgreSQL with fsync on, one worker in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog
import trio

from continuum.client import Client, new_task
from continuum.config import Settings, load_settings
from continuum.demo.run import latency, percentile
from continuum.model import RunRequest
from continuum.sandbox import choose_backend
from continuum.sandbox.protocol import Backend, Sandbox

HELLO = "print('hello')"
REQUEST = RunRequest(1, 1, HELLO, "null", 30.0, 65536)


async def sandboxes_alone(backend: Backend, count: int, seconds: float) -> dict[str, float]:
    """Tasks/s of `count` sandboxes driven in a loop, idle latency of one, and cold starts."""
    await backend.prepare()
    began = time.perf_counter()
    first = await backend.start()
    one_start = time.perf_counter() - began
    others: list[Sandbox] = []

    async def start() -> None:
        others.append(await backend.start())

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(count - 1):
            nursery.start_soon(start)
    more_starts = time.perf_counter() - began

    idle = []
    for _ in range(50):
        await trio.sleep(0.01)
        began = time.perf_counter()
        await first.run(REQUEST, lambda *_: None)
        idle.append(time.perf_counter() - began)

    done = 0

    async def drive(sandbox: Sandbox) -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            await sandbox.run(REQUEST, lambda *_: None)
            done += 1

    began = time.perf_counter()
    deadline = began + seconds
    async with trio.open_nursery() as nursery:
        for sandbox in (first, *others):
            nursery.start_soon(drive, sandbox)
    rate = done / (time.perf_counter() - began)
    for sandbox in (first, *others):
        await sandbox.aclose()
    return {
        "cold start of one, ms": one_start * 1000,
        f"cold start of {count - 1} more at once, ms": more_starts * 1000,
        "sandbox alone, idle p50, ms": statistics.median(idle) * 1000,
        "sandboxes alone, tasks/s": rate,
    }


async def end_to_end(settings: Settings, environment: dict[str, str], tasks: int) -> dict[str, float]:
    """The same through the database: throughput of a batch, and latency on an idle worker. The worker is a process of
    its own, as in life."""
    async with Client(settings) as client:
        worker = subprocess.Popen(
            [sys.executable, "-m", "continuum", "worker"],
            env={**os.environ, **environment, "LOG_LEVEL": "error"},
            stdin=subprocess.DEVNULL,
        )
        try:
            await client.wait_many(await client.submit_many([new_task(HELLO)] * 50 * settings.slots), 120)
            idle = []
            for _ in range(50):
                await trio.sleep(0.05)
                idle.append(latency(await client.wait(await client.submit(HELLO))))
            began = time.perf_counter()
            ids = await client.submit_many([new_task(HELLO)] * tasks)
            submitted = time.perf_counter()
            await client.wait_many(ids, 120)
            rate = tasks / (time.perf_counter() - began)
        finally:
            worker.terminate()
            worker.wait()
    return {
        "submit, tasks/s": tasks / (submitted - began),
        "end to end, tasks/s": rate,
        "idle submit to done p50, ms": statistics.median(idle) * 1000,
        "idle submit to done p95, ms": percentile(idle, 0.95) * 1000,
    }


async def measure(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="continuum-bench-") as folder:
        Path(folder).chmod(0o755)
        environment = {
            "SANDBOX": options.backend,
            "CONTAINER_RUNTIME": options.runtime,
            "SLOTS": str(options.slots),
            "DB_DIALECT": "embedded",
            "EMBEDDED_DIR": folder,
            "API_PORT": "0",
            "EGRESS": "none",
            "CONTAINER_CPU_LIMIT": str(options.cpus),
        }
        settings = load_settings(**{name.lower(): value for name, value in environment.items()})
        backend = await choose_backend(settings, "benchmark")
        figures = await sandboxes_alone(backend, options.slots, options.seconds)
        await backend.aclose()
        figures |= await end_to_end(settings, environment, options.tasks)
    figures["end to end / sandboxes alone"] = figures["end to end, tasks/s"] / figures["sandboxes alone, tasks/s"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", choices=("docker", "bubblewrap", "auto"), default="auto")
    parser.add_argument("--runtime", default="", help="Docker's runtime, such as runsc")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cpus", type=float, default=1.0, help="CPU limit of a container")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    figures = trio.run(measure, options)
    if options.json:
        print(json.dumps({"backend": options.backend, "runtime": options.runtime, "slots": options.slots} | figures))
        return
    print(f"backend {options.backend} {options.runtime}, {options.slots} slots")
    for name, value in figures.items():
        print(f"  {name:<40} {value:10.2f}")


if __name__ == "__main__":
    main()
