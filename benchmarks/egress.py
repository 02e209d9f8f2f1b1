"""What the network policy costs a Docker sandbox: cold starts and hello scripts with each EGRESS, side by side.

    python benchmarks/egress.py [--rounds 10] [--entries 50]

Each round starts one sandbox of each kind, so that whatever else the machine does meets all kinds alike.
"""

from __future__ import annotations

import argparse
import statistics
import time

import trio

from continuum.config import Settings
from continuum.model import Ending, RunRequest
from continuum.sandbox.docker import DockerBackend

REQUEST = RunRequest(1, 1, "print('hello')", "null", 30.0, 65536)
HELLOS = 20


async def measure(backend: DockerBackend) -> tuple[float, float]:
    """Milliseconds of a cold start, and the median of the hello scripts in it."""
    began = time.perf_counter()
    sandbox = await backend.start()
    cold = (time.perf_counter() - began) * 1000
    times = []
    try:
        for _ in range(HELLOS):
            began = time.perf_counter()
            outcome = await sandbox.run(REQUEST, lambda *_: None)
            times.append((time.perf_counter() - began) * 1000)
            if outcome.ending is not Ending.COMPLETED:
                raise SystemExit(f"a hello script ended with {outcome}")
    finally:
        await sandbox.aclose()
    return cold, statistics.median(times)


async def main(rounds: int, entries: int) -> None:
    allow = tuple(f"203.0.113.{number}:443" for number in range(entries))
    kinds = {
        "none": Settings(egress="none", slots=1),
        "public": Settings(egress="public", slots=1),
        f"allowlist of {entries}": Settings.model_validate({"egress": "allowlist", "egress_allow": allow, "slots": 1}),
    }
    backends = {name: DockerBackend(settings, f"bench-{index}") for index, (name, settings) in enumerate(kinds.items())}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for name, backend in backends.items():
        began = time.perf_counter()
        await backend.prepare()
        await measure(backend)  # the first one warms the caches
        print(f"{name:16} {backend.description}, prepared in {(time.perf_counter() - began) * 1000:.0f} ms")
    for _ in range(rounds):
        for name, backend in backends.items():
            seen[name].append(await measure(backend))
    for backend in backends.values():
        await backend.aclose()
    print(f"\n{'EGRESS':16} {'cold start, ms':>24} {'over none':>10} {'hello, ms':>10}")
    for name, values in seen.items():
        colds = sorted(cold for cold, _ in values)
        over = statistics.median(cold - base for (cold, _), (base, _) in zip(values, seen["none"], strict=True))
        hello = statistics.median(hello for _, hello in values)
        shown = f"{statistics.median(colds):.0f} ({colds[0]:.0f} to {colds[-1]:.0f})"
        print(f"{name:16} {shown:>24} {over:>+10.0f} {hello:>10.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--entries", type=int, default=50)
    arguments = parser.parse_args()
    trio.run(main, arguments.rounds, arguments.entries)
