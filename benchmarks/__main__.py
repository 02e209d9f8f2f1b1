"""`make bench`: each part beside its ceiling and its peers, in one run on one machine.

    python -m benchmarks [PART ...] [--quick] [--backend docker|bubblewrap] [--database URL] [--cockroach URL] [--out FOLDER]

Figures of two runs are not comparable, let alone of two machines: read the ratios.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import trio
from rich.console import Console

from benchmarks.report import Result, machine, show, write
from benchmarks.setting import Options, quiet_logs

PARTS = {
    "ceiling": "sandboxes alone, beside what they could be",
    "end_to_end": "hello tasks through PostgreSQL",
    "database_path": "claim and complete with no sandbox, beside raw SQL, pgqueuer and procrastinate",
    "growth": "claims, statistics and a worker's memory as the tables grow; an idle worker",
    "retention": "claims while a million finished tasks are deleted",
    "fairness": "a thousand tenants and twenty workers: shares, limits and what they cost",
    "crowd": "many idle workers, many producers",
    "lag": "how late the worker's event loop is while tasks write much",
    "kinds": "the first version's own kinds of work, beside the ideal",
}
"""Each is a module of this package with `async def measure(options: Options) -> Result`."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="parts: " + "; ".join(f"{name} ({what})" for name, what in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="which parts (all)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: does everything run?")
    parser.add_argument("--backend", choices=("auto", "docker", "bubblewrap"), default="auto")
    parser.add_argument("--runtime", default="", help="Docker's runtime, such as runsc")
    parser.add_argument("--database", metavar="URL", help="a PostgreSQL server (an embedded one)")
    parser.add_argument("--cockroach", metavar="URL", help="a CockroachDB, for its figures beside PostgreSQL's")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    quiet_logs()
    asked = Options(options.quick, options.backend, options.runtime, options.database, options.cockroach)
    console = Console(width=None if sys.stdout.isatty() else 140)
    about = machine() | {"quick": asked.quick, "backend": asked.backend}
    console.print(about)
    results: list[Result] = []
    for name in [name for name in PARTS if name in (options.parts or PARTS)]:
        began = time.monotonic()
        result: Result = trio.run(importlib.import_module(f"benchmarks.{name}").measure, asked)
        results.append(replace(result, seconds=time.monotonic() - began))
        show(console, results[-1])
    _keep(console, options.out, about, results)


def _keep(console: Console, folder: Path, about: dict[str, str | int | float], results: list[Result]) -> None:
    from benchmarks.plots import draw  # takes a second to import

    written = [write(folder, about, results), *draw(folder, results)]
    missed = [ratio for result in results for ratio in result.ratios if ratio.reached is False]
    console.print(f"{len(written)} files in {folder}; {len(missed)} targets not reached")


if __name__ == "__main__":
    main()
