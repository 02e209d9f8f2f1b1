"""A worker as a process of its own, as in life, and what a client sees of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from benchmarks.sandboxes import WrongOutcome
from benchmarks.setting import HELLO
from continuum.client import Client, new_task
from continuum.demo.run import latency
from continuum.model import Status, TaskRecord

DEADLINE = 120.0
"""Seconds for a task, or a burst of them, to end."""
STOP_DEADLINE = 60.0
"""Seconds for a worker to end when asked to, its sandboxes removed."""
TICK = 0.02
"""Seconds between two submissions of a steady load."""


@asynccontextmanager
async def worker_process(
    environment: Mapping[str, str],
    command: Sequence[str] = ("-m", "continuum", "worker"),
    *,
    folder: Path | None = None,
    stdout: IO[str] | int | None = None,
) -> AsyncIterator[trio.Process]:
    """A worker with these variables over our own, asked to end when the block does. command: what Python runs; folder: where;
    stdout: None is our stderr."""
    worker = await trio.lowlevel.open_process(
        [sys.executable, *command],
        env={**os.environ, **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if stdout is None else stdout,
    )
    try:
        yield worker
        if (code := worker.poll()) is not None:
            raise WrongOutcome(f"the worker ended by itself with {code}")
    finally:
        worker.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_DEADLINE):
                await worker.wait()
            worker.kill()
            await worker.wait()


def null_worker(conninfo: str, slots: int) -> AbstractAsyncContextManager[trio.Process]:
    """A worker without sandboxes; what it prints, its address, is of no use."""
    command = ("-m", "benchmarks.null_worker")
    return worker_process({"DATABASE_URL": conninfo, "SLOTS": str(slots)}, command, stdout=subprocess.DEVNULL)


async def burst(client: Client, count: int) -> float:
    """Submit hello tasks all at once; return how many a second ended."""
    return count / wall_time(await hello_finished(client, await client.submit_many([new_task(HELLO)] * count)))


async def steady_load(client: Client, rate: float, seconds: float) -> list[float]:
    """Submit so many hello tasks a second, whatever becomes of those before; return seconds from INSERT to terminal row of
    each."""
    ids: list[int] = []
    began = trio.current_time()
    for tick in range(1, round(seconds / TICK) + 1):
        due = int(rate * tick * TICK) - len(ids)
        if due > 0:
            ids += await client.submit_many([new_task(HELLO)] * due)
        await trio.sleep_until(began + tick * TICK)
    return [latency(record) for record in await hello_finished(client, ids)]


async def finished(client: Client, ids: Sequence[int]) -> list[TaskRecord]:
    """Wait until tasks have ended and read them. The last one alone is watched while the others run: to ask for all of them, over
    and over, is load on the same database."""
    await client.wait(ids[-1], DEADLINE)
    return await client.wait_many(ids, DEADLINE)


async def hello_finished(client: Client, ids: Sequence[int]) -> list[TaskRecord]:
    """The same for hello tasks, which must have said it."""
    records = await finished(client, ids)
    for record in records:
        if record.status != Status.COMPLETED or record.output != "hello\n":
            raise WrongOutcome(f"task {record.id}: {record.status}, {record.last_error}, {record.output!r}")
    return records


def wall_time(records: Sequence[TaskRecord]) -> float:
    """Seconds from the first INSERT to the last terminal row, on the database's clock."""
    ended = max(record.finished for record in records if record.finished is not None)
    return (ended - min(record.created_at for record in records)).total_seconds()
