"""One worker process over time: what it does when there is nothing to do, and whether it grows with what it has done."""

from __future__ import annotations

import sys

import psycopg
import trio
from rich.console import Console

from benchmarks.filling import add_code, fill
from benchmarks.processes import Meter, memory
from benchmarks.report import Cell, Ratio, Result, Table, show
from benchmarks.setting import Options, database_server, fresh_database
from benchmarks.worker_process import null_worker
from continuum.config import Settings
from continuum.model import Status

SLOTS = 4
SETTLE = 4.0
"""Seconds for a worker to start and to get over that."""
IDLE = 20
"""Seconds that it is watched while there is nothing to do."""
FEW, MANY = 1_000, 20_000
"""Tasks after which its memory is looked at. `python -m benchmarks.resident` takes another number than MANY."""
DEADLINE = 150.0

MOST_CPU = 0.5
MOST_WAKEUPS = 1.0
MOST_GROWTH = 1.2

WAKEUPS_OF_A_CALL = 2
"""A clock that rings, and an answer that comes."""

DONE = "SELECT coalesce(sum(completed), 0)::int8 FROM workers"


async def measure(server: str, options: Options, many: int = MANY) -> Result:
    """Watch one worker idle, then after few tasks, then after many."""
    few, many, seconds = options.scaled(FEW), options.scaled(many), options.scaled(IDLE)
    async with fresh_database(server) as conninfo, null_worker(conninfo, SLOTS) as worker:
        await trio.sleep(SETTLE)
        meter = Meter(worker.pid)
        began = trio.current_time()
        await trio.sleep(seconds)
        used = meter.read()
        elapsed = trio.current_time() - began
        code = add_code(conninfo)
        await work_off(conninfo, code, few, done=few)
        small = memory(worker.pid)
        began = trio.current_time()
        await work_off(conninfo, code, many - few, done=many)
        rate = (many - few) / (trio.current_time() - began)
        large = memory(worker.pid)
    cpu = used.cpu / elapsed * 100
    wakeups = used.wakeups / elapsed
    needed = needed_wakeups()
    rows: list[list[Cell]] = [
        [f"processor while idle for {seconds} s, % of one", cpu],
        ["wake-ups a second while idle", wakeups],
        ["of these poll and heartbeat need", needed],
        [f"memory after {few:,} tasks, MB", small],
        [f"memory after {many:,} tasks, MB", large],
        ["tasks/s meanwhile", rate],
    ]
    note = f"`python -m benchmarks.resident 100000` looks at its memory after so many: {many:,} here, for the time that it takes."
    return Result(
        "resident",
        "One worker",
        [Table(f"One worker of {SLOTS} slots without sandboxes", ("", "value"), rows, note)],
        [
            Ratio(f"worker memory after {many:,} tasks vs {few:,}", large / small, MOST_GROWTH, "at most"),
            Ratio("idle worker, % of one processor", cpu, MOST_CPU, "at most"),
            Ratio("idle worker, wake-ups/s beyond poll and heartbeat", wakeups - needed, MOST_WAKEUPS, "at most"),
        ],
    )


def needed_wakeups() -> float:
    """Wake-ups a second of a worker that does nothing but one claim every poll and one report every heartbeat."""
    settings = Settings.model_validate({})
    return WAKEUPS_OF_A_CALL / settings.polling_interval + WAKEUPS_OF_A_CALL / settings.heartbeat_interval


async def work_off(conninfo: str, code: str, count: int, *, done: int) -> None:
    """Put tasks into the queue and wait until so many in all are done."""
    await trio.to_thread.run_sync(fill, conninfo, code, count, Status.PENDING)
    with psycopg.connect(conninfo, autocommit=True) as connection, trio.fail_after(DEADLINE):
        while connection.execute(DONE).fetchall() < [(done,)]:
            await trio.sleep(0.25)


async def _main(many: int) -> None:
    async with database_server(Options()) as server:
        found = await measure(server, Options(), many)
    show(Console(), found)


if __name__ == "__main__":
    trio.run(_main, int(sys.argv[1]))
