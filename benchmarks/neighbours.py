"""How honest tasks fare beside hostile ones: the same tasks, calm and beside attackers, in turn in one run.

    python benchmarks/neighbours.py [--backend docker|bubblewrap] [--pairs 8] [--cpus 0.25] [--json]

Four sandboxes run 20 honest tasks a round. In every other round four more sandboxes run, over and over, a fork bomb, a memory
hog, a disk filler and a flood of output. Each sandbox has its equal part of the processors, as in a worker whose
SLOTS times CONTAINER_CPU_LIMIT is the machine. Exits with 1 when the 95th percentile grows by half or more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator

import trio

from benchmarks.setting import quiet_logs
from continuum.config import load_settings
from continuum.demo.run import percentile
from continuum.model import Ending, RunRequest
from continuum.sandbox import choose_backend
from continuum.sandbox.protocol import Backend, Sandbox, SandboxLost

HONEST_TASKS = 20
HONEST_SANDBOXES = 4
MOST_GROWTH = 1.5
PAUSE = 0.3
"""Seconds for attackers to get going, and between rounds for what throttles them to be forgotten."""

HONEST = """
import hashlib, json, time
digest = b""
for number in range(3000):
    digest = hashlib.sha256(digest + b"%d" % number).digest()
with open("result.json", "w") as file:
    json.dump({"digest": digest.hex(), "rows": list(range(2000))}, file)
time.sleep(0.02)
print(len(json.load(open("result.json"))["rows"]))
"""
ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory hog": """
import os
while True:
    if os.fork() == 0:
        block = bytearray(1 << 30)
        for i in range(0, 1 << 30, 4096): block[i] = 1
    os.wait()
""",
    "disk filler": """
import itertools, os
for number in itertools.count():
    for place in ("/tmp", "/dev/shm", "."):
        try:
            with open(f"{place}/{number}", "wb") as file: file.write(bytes(1 << 16))
        except OSError:
            if number % 5000 == 0:
                for name in os.listdir(place): os.unlink(f"{place}/{name}")
""",
    "output flood": "import os\nblock = b'x' * 65536\nwhile True: os.write(1, block); os.write(2, block)",
}


async def honest_round(sandboxes: list[Sandbox]) -> list[float]:
    """Run the honest tasks; return how many milliseconds each took."""
    times: list[float] = []
    tasks: Iterator[int] = iter(range(HONEST_TASKS))

    async def drive(sandbox: Sandbox) -> None:
        for number in tasks:
            began = time.perf_counter()
            outcome = await sandbox.run(RunRequest(number, 1, HONEST, "null", 30.0, 65536), lambda *_: None)
            times.append((time.perf_counter() - began) * 1000)
            if outcome.ending is not Ending.COMPLETED or outcome.output != "2000\n":
                raise SystemExit(f"an honest task ended with {outcome}")

    async with trio.open_nursery() as nursery:
        for sandbox in sandboxes:
            nursery.start_soon(drive, sandbox)
    return times


async def attack(backend: Backend, code: str, going: trio.Event) -> None:
    """Run a hostile script over and over, in a new sandbox when one is lost, until cancelled."""
    while True:
        sandbox = await backend.start()
        going.set()
        try:
            while True:
                await sandbox.run(RunRequest(1, 1, code, "null", 2.0, 1 << 20), lambda *_: None)
        except SandboxLost:
            pass
        finally:
            await sandbox.aclose()


async def measure(options: argparse.Namespace) -> tuple[str, list[tuple[list[float], list[float]]]]:
    settings = load_settings(
        sandbox=options.backend, egress="none", container_cpu_limit=options.cpus, container_memory_mb=options.memory
    )
    backend = await choose_backend(settings, "benchmark")
    await backend.prepare()
    honest: list[Sandbox] = []
    pairs: list[tuple[list[float], list[float]]] = []
    try:
        while len(honest) < HONEST_SANDBOXES:
            honest.append(await backend.start())
        await honest_round(honest)
        for _ in range(options.pairs):
            await trio.sleep(PAUSE)
            calm = await honest_round(honest)
            async with trio.open_nursery() as nursery:
                started = [trio.Event() for _ in ATTACKS]
                for code, going in zip(ATTACKS.values(), started, strict=True):
                    nursery.start_soon(attack, backend, code, going)
                for going in started:
                    await going.wait()
                await trio.sleep(PAUSE)
                beside = await honest_round(honest)
                nursery.cancel_scope.cancel()
            pairs.append((calm, beside))
    finally:
        for sandbox in honest:
            await sandbox.aclose()
        await backend.aclose()
    return backend.description, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", choices=("docker", "bubblewrap"), default="docker")
    parser.add_argument("--pairs", type=int, default=8)
    share = (os.cpu_count() or 1) / (HONEST_SANDBOXES + len(ATTACKS))
    parser.add_argument("--cpus", type=float, default=share, help="CPU limit of a container")
    parser.add_argument("--memory", type=int, default=256, help="memory of a container, MB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    quiet_logs()
    description, pairs = trio.run(measure, options)
    calm, beside = ([value for pair in pairs for value in pair[side]] for side in (0, 1))
    by_pair = [percentile(pair[1], 0.95) / percentile(pair[0], 0.95) for pair in pairs]
    figures = {
        "calm p50, ms": percentile(calm, 0.5),
        "calm p95, ms": percentile(calm, 0.95),
        "beside attackers p50, ms": percentile(beside, 0.5),
        "beside attackers p95, ms": percentile(beside, 0.95),
        "p50 ratio": percentile(beside, 0.5) / percentile(calm, 0.5),
        "p95 ratio": percentile(beside, 0.95) / percentile(calm, 0.95),
        "p95 ratio, median of pairs": statistics.median(by_pair),
    }
    if options.json:
        print(json.dumps({"backend": description, "cpus": options.cpus} | figures))
    else:
        print(f"{description}; {options.cpus:g} CPUs a sandbox, {len(pairs)} pairs of {HONEST_TASKS} honest tasks")
        for name, value in figures.items():
            print(f"  {name:<28} {value:8.2f}")
    if figures["p95 ratio"] >= MOST_GROWTH:
        sys.exit(1)


if __name__ == "__main__":
    main()
