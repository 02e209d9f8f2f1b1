"""Whether a commit is slower than another: both measured in turn on this machine, in pairs.

    python -m benchmarks.check OLD NEW [--pairs 5] [--measure hello null idle] [--slots 2] [--tolerance 0.9]

    hello   sandboxes alone; whole workers on an embedded PostgreSQL: tasks/s, processor time a task, cold starts
    null    workers whose sandboxes are none: what is left is the worker and the database
    idle    how soon an idle worker ends a task

A commit is unpacked into a temporary folder and runs with this interpreter and this checkout's measuring code; `.` is this
checkout as it is. Of each figure the ratio of NEW to OLD is told for each pair, turned so that more is better. The exit code is
1 when the median of a figure's ratios, and so most of its pairs, is below the tolerance, and 2 when they cannot be compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import psycopg
import trio
from rich.console import Console

from benchmarks.processes import processor_time
from benchmarks.report import Cell, Result, Table, show
from benchmarks.sandboxes import WrongOutcome, sandbox_environment
from benchmarks.setting import HELLO, Options, database_server, fresh_database, quiet_logs
from benchmarks.worker_process import DEADLINE, worker_process
from continuum.demo.run import percentile

HERE = Path(__file__).parent
NULL_WORKER = HERE / "null_worker.py"
WORKING_TREE = "."
MEASURES = ("hello", "null", "idle")
ALONE_SECONDS = 1.5
BURSTS = 2
"""In each pair, of each commit, in turn."""
TASKS = {"hello": 300, "null": 3000}
"""Of one burst."""
WARM_UP = 100
IDLE_TASKS = 30
IDLE_PAUSE = 0.05
WATCH_PAUSE = 0.05
"""Seconds between two looks whether a burst has ended: each is load on the same database."""
IDLE_WATCH_PAUSE = 0.005

# Plain SQL, and only columns that every version has: the adapter of this checkout may not fit the schema of another.
ADD_CODE = "INSERT INTO codes (code) VALUES (%s) RETURNING id"
ADD = "INSERT INTO tasks (name, code) SELECT 'check', %s FROM generate_series(1, %s)"
LEFT = "SELECT count(*) FROM tasks WHERE status IN ('pending', 'processing')"
NEWEST = """
SELECT extract(epoch FROM max(finished AT TIME ZONE 'utc') - min(created_at))::float8,
       count(*) FILTER (WHERE status = 'completed' AND output = E'hello\\n')
FROM (SELECT * FROM tasks ORDER BY id DESC LIMIT %s) newest
"""

Figures = dict[str, float]
"""By name; names of what is better when it is less end in its unit, `ms`."""


@dataclass(frozen=True, slots=True)
class Version:
    """A commit, unpacked, and a database with its schema."""

    name: str
    folder: Path
    environment: dict[str, str]
    database: psycopg.Connection

    def run(self, *command: str) -> str:
        """Run Python with this version's package; return what it printed."""
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, **self.environment},
            cwd=self.folder,  # which comes before PYTHONPATH for `python -m`
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if done.returncode:
            raise WrongOutcome(f"{self.name}: {' '.join(command)} ended with {done.returncode}")
        return done.stdout

    def has_null_worker(self) -> bool:
        """Whether this checkout's null sandboxes fit this version's worker, as far as imports tell."""
        try:
            self.run("-c", f"import runpy; runpy.run_path({str(NULL_WORKER)!r})")
        except WrongOutcome:
            return False
        return True


@dataclass(slots=True)
class Side:
    """One version with a running worker. code: the id of the hello script."""

    version: Version
    worker: trio.Process
    code: UUID
    found: Figures = field(default_factory=dict)

    async def burst(self, count: int, pause: float = WATCH_PAUSE) -> float:
        """Have so many hello tasks done; return how many seconds it took, on the database's clock."""
        database = self.version.database
        database.execute(ADD, [self.code, count])
        with trio.fail_after(DEADLINE):
            while _one(database, LEFT)[0]:
                if self.worker.poll() is not None:
                    raise WrongOutcome(f"{self.version.name}: the worker ended with {self.worker.returncode}")
                await trio.sleep(pause)
        seconds, right = _one(database, NEWEST, count)
        if right != count:
            raise WrongOutcome(f"{self.version.name}: {count - right} of {count} hello tasks went wrong")
        return float(seconds)

    def processor_time(self) -> float:
        """Seconds of processor time that the worker's process has used; its sandboxes are not in it."""
        return processor_time([self.worker.pid], with_children=False)


async def compare(
    names: Sequence[str], options: Options, pairs: int, measures: Sequence[str], slots: int
) -> list[list[Figures]]:
    """What each pair found of both commits; the one that goes first changes from pair to pair."""
    by_pair: list[list[Figures]] = []
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(database_server(options))
        versions = [await stack.enter_async_context(_version(name, server, options, slots)) for name in names]
        if "null" in measures and (without := [version.name for version in versions if not version.has_null_worker()]):
            print(f"no null workers of {', '.join(without)}: their sandboxes were of another kind", file=sys.stderr)
            measures = [measure for measure in measures if measure != "null"]
        for number in range(pairs):
            order = versions if number % 2 == 0 else versions[::-1]
            found = {id(version): figures for version, figures in zip(order, await _pair(order, measures), strict=True)}
            by_pair.append([found[id(version)] for version in versions])
            print(f"pair {number + 1} of {pairs} done", file=sys.stderr)
    return by_pair


@asynccontextmanager
async def _version(name: str, server: str, options: Options, slots: int) -> AsyncIterator[Version]:
    async with AsyncExitStack() as stack:
        folder = HERE.parent
        if name != WORKING_TREE:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="continuum-check-")))
            packed = subprocess.run(["git", "archive", name], cwd=HERE.parent, capture_output=True, check=False)
            if packed.returncode:
                raise WrongOutcome(packed.stderr.decode().strip())
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(folder, filter="data")
        conninfo = await stack.enter_async_context(fresh_database(server, migrated=False))
        own = {"PYTHONPATH": str(folder), "DATABASE_URL": conninfo, "SLOTS": str(slots)}
        database = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
        version = Version(name, folder, sandbox_environment(options, **own), database)
        imported = version.run("-c", "import continuum; print(continuum.__file__)").strip()
        if not Path(imported).is_relative_to(folder):
            raise WrongOutcome(f"{name} is in {folder}, and {imported} was imported")
        version.run("-m", "continuum", "migrate")
        yield version


async def _pair(versions: Sequence[Version], measures: Sequence[str]) -> list[Figures]:
    found: list[Figures] = [{} for _ in versions]
    if "hello" in measures:
        for figures, version in zip(found, versions, strict=True):
            slots = version.environment["SLOTS"]
            printed = version.run(str(HERE / "check_sandboxes.py"), slots, str(ALONE_SECONDS))
            alone = json.loads(printed.splitlines()[-1])
            figures["sandboxes alone, tasks/s"] = alone["rate"]
            figures["cold start of a sandbox, ms"] = 1000 * alone["cold_start"]
    if "hello" in measures or "idle" in measures:
        async with AsyncExitStack() as stack:
            sides = [await stack.enter_async_context(_side(version)) for version in versions]
            if "hello" in measures:
                await _bursts(sides, "hello")
            if "idle" in measures:
                await _idle(sides)
            for figures, side in zip(found, sides, strict=True):
                figures |= side.found
    if "null" in measures:
        async with AsyncExitStack() as stack:
            sides = [await stack.enter_async_context(_side(version, str(NULL_WORKER))) for version in versions]
            await _bursts(sides, "null")
            for figures, side in zip(found, sides, strict=True):
                figures |= {name: value for name, value in side.found.items() if name.startswith("null")}
    return found


@asynccontextmanager
async def _side(version: Version, *command: str) -> AsyncIterator[Side]:
    """A version's worker that has run its first tasks."""
    code = _one(version.database, ADD_CODE, HELLO)[0]
    command = command or ("-m", "continuum", "worker")
    async with worker_process(version.environment, command, folder=version.folder) as worker:
        side = Side(version, worker, code)
        side.found["cold start of a worker, ms"] = 1000 * await side.burst(1)
        await side.burst(WARM_UP)
        yield side


async def _bursts(sides: Sequence[Side], kind: str) -> None:
    seconds: list[list[float]] = [[] for _ in sides]
    processor: list[list[float]] = [[] for _ in sides]
    for _ in range(BURSTS):
        for number, side in enumerate(sides):
            before = side.processor_time()
            seconds[number].append(await side.burst(TASKS[kind]))
            processor[number].append(side.processor_time() - before)
    for number, side in enumerate(sides):
        side.found[f"{kind}, tasks/s"] = TASKS[kind] / median(seconds[number])
        side.found[f"{kind}, worker's processor time a task, ms"] = 1000 * median(processor[number]) / TASKS[kind]


async def _idle(sides: Sequence[Side]) -> None:
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(IDLE_TASKS):
        for number, side in enumerate(sides):
            await trio.sleep(IDLE_PAUSE)
            times[number].append(await side.burst(1, IDLE_WATCH_PAUSE))
    for number, side in enumerate(sides):
        side.found["idle worker p50, ms"] = 1000 * percentile(times[number], 0.5)


def _one(database: psycopg.Connection, statement: str, *values: object) -> tuple[Any, ...]:
    row = database.execute(statement.encode(), values).fetchone()
    assert row is not None
    return row


def ratios_of(by_pair: Sequence[Sequence[Figures]], name: str) -> list[float]:
    """NEW over OLD in each pair, or OLD over NEW where less is better."""
    ratios = [new[name] / old[name] for old, new in by_pair]
    return [1 / ratio for ratio in ratios] if name.endswith("ms") else ratios


def is_worse(ratios: Sequence[float], tolerance: float) -> bool:
    """Whether a figure is below the tolerance by its median and in most of its pairs: one disturbed pair tells nothing."""
    return median(ratios) < tolerance and sum(ratio < tolerance for ratio in ratios) > len(ratios) / 2


def _result(names: Sequence[str], by_pair: Sequence[Sequence[Figures]]) -> Result:
    rows: list[list[Cell]] = []
    for name in by_pair[0][0]:
        ratios = ratios_of(by_pair, name)
        old, new = (median(pair[side][name] for pair in by_pair) for side in (0, 1))
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append([name, old, new, median(ratios), min(ratios), max(ratios), each])
    table = Table(
        "Ratios, turned so that more is better",
        ["figure", names[0], names[1], "median ratio", "least", "most", "of each pair"],
        rows,
        note="Of times the ratio is the old over the new. Cold start of a worker: from the start of its process to the "
        "end of its first task.",
    )
    return Result("check", f"{names[1]} beside {names[0]}", tables=[table])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", metavar="OLD", help="a commit")
    parser.add_argument("new", metavar="NEW", help="a commit, or . for this checkout as it is")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--backend", choices=("auto", "docker", "bubblewrap"), default="auto")
    parser.add_argument("--database", metavar="URL", help="a PostgreSQL server (an embedded one)")
    parser.add_argument("--tolerance", type=float, default=0.9, metavar="RATIO", help="less than this is worse (0.9)")
    asked = parser.parse_args()
    quiet_logs()
    names = (asked.old, asked.new)
    options = Options(backend=asked.backend, database=asked.database)
    began = time.monotonic()
    try:
        by_pair: list[list[Figures]] = trio.run(compare, names, options, asked.pairs, asked.measure, asked.slots)
    except WrongOutcome as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        sys.exit(2)
    console = Console(width=None if sys.stdout.isatty() else 140)
    show(console, replace(_result(names, by_pair), seconds=time.monotonic() - began))
    worse = [name for name in by_pair[0][0] if is_worse(ratios_of(by_pair, name), asked.tolerance)]
    for name in worse:
        console.print(f"[red]worse[/red]: {name}")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
