"""How late a worker's event loop is while many tasks write much: what a heartbeat, or whoever asks for its status, waits for."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import trio

from benchmarks.report import Ratio, Result, Table
from benchmarks.sandboxes import WrongOutcome, sandbox_environment, settings_of
from benchmarks.setting import HELLO, Options, database_server, fresh_database
from benchmarks.worker_process import finished, hello_finished, wall_time, worker_process
from continuum.client import Client, new_task
from continuum.demo.run import percentile
from continuum.model import Status

SLOTS = 16
TASKS = 500
WRITTEN = 200_000
"""Bytes that each task writes."""
LOGGING = f"""
for number in range({WRITTEN} // 64):
    print(f'{{{{"number": {{number:6}}, "level": "info", "message": "a line of a log"}}}}')
"""
"""JSON, as many logs are: its quotes cost more on some ways into a database than other letters."""
LONGEST_TURN = 0.05
"""Seconds for which one task may hold the loop. The lag itself is also for want of a processor, which sandboxes take."""
ASK_PAUSE = 0.05
"""Seconds between two questions for the worker's status."""


@dataclass(frozen=True, slots=True)
class Row:
    """How some tasks went. wall: seconds. late: seconds by which the loop was late. answers: seconds that the status took.
    held: seconds of processor time of the longest turn; holder: the Trio task whose it was."""

    name: str
    tasks: int
    wall: float
    late: Sequence[float]
    answers: Sequence[float]
    held: float
    holder: str


async def measure(options: Options) -> Result:
    """Many tasks that write much on a worker with many slots, beside as many that write one line."""
    async with database_server(options) as server:
        rows = [await _row(options, server, *kind) for kind in (("hello", HELLO), ("200 KB of lines", LOGGING))]
    return Result(
        "lag",
        "The event loop under load",
        tables=[_table(rows)],
        ratios=[
            Ratio(f"loop lag under {TASKS} log-heavy tasks: p99, s", percentile(rows[-1].late, 0.99)),
            Ratio("longest turn of a Trio task meanwhile, s of a processor", rows[-1].held, LONGEST_TURN, "at most"),
        ],
    )


async def _row(options: Options, server: str, name: str, code: str) -> Row:
    count = options.scaled(TASKS)
    answers: list[float] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="continuum-bench-")))
        conninfo = await stack.enter_async_context(fresh_database(server))
        environment = sandbox_environment(options, DATABASE_URL=conninfo, SLOTS=str(SLOTS))
        client = await stack.enter_async_context(Client(settings_of(environment)))
        command = ("-m", "benchmarks.watched_worker", str(folder / "watched"))
        async with worker_process(environment, command, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            address = (await worker.stdout.receive_some()).decode().strip()
            await hello_finished(client, await client.submit_many([new_task(HELLO)] * 10 * SLOTS))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ask, address, answers)
                began = time.monotonic()
                records = await finished(client, await client.submit_many([new_task(code)] * count))
                ended = time.monotonic()
                nursery.cancel_scope.cancel()
        for record in records:
            if record.status != Status.COMPLETED:
                raise WrongOutcome(f"task {record.id}: {record.status}, {record.last_error}")
        watched = json.loads((folder / "watched").read_text())
    late = [late for at, late in watched["late"] if began <= at <= ended]
    held = max(((held, task) for at, held, task in watched["held"] if began <= at <= ended), default=(0.0, ""))
    return Row(name, count, wall_time(records), late, answers, *held)


async def _ask(address: str, answers: list[float]) -> None:
    """Ask a worker for its status over and over; note how many seconds each answer takes."""
    async with httpx.AsyncClient(base_url=address) as client:
        while True:
            began = time.monotonic()
            (await client.get("/status")).raise_for_status()
            answers.append(time.monotonic() - began)
            await trio.sleep(ASK_PAUSE)


def _table(rows: Sequence[Row]) -> Table:
    return Table(
        f"How late the loop of one worker is, {SLOTS} slots; all times in ms",
        ["each task writes", "tasks", "tasks/s", "p50", "p99", "most", "/status p99", "longest turn", "whose"],
        [
            [
                row.name,
                row.tasks,
                row.tasks / row.wall,
                1000 * percentile(row.late, 0.5),
                1000 * percentile(row.late, 0.99),
                1000 * max(row.late),
                1000 * percentile(row.answers, 0.99),
                1000 * row.held,
                row.holder,
            ]
            for row in rows
        ],
        note="A sleep of 10 ms, over and over: how much longer it takes, which is also for want of a processor. /status: how "
        "long an answer takes meanwhile, the way included. Longest turn: processor time for which one of Trio's tasks held up "
        "all others.",
    )
