"""Processes and what they use, as Linux tells it in /proc: processor time to the nanosecond, wake-ups, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import trio

STOP_DEADLINE = 30.0
"""Seconds for a worker without sandboxes to end when asked to."""


@asynccontextmanager
async def null_worker(conninfo: str, *, slots: int) -> AsyncIterator[int]:
    """A worker whose sandboxes are none, as a process of its own for the length of the block; its id."""
    environment = {**os.environ, "DATABASE_URL": conninfo, "SLOTS": str(slots), "MIN_PRIORITY": "", "MAX_PRIORITY": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.null_worker"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process.pid
        if process.poll() is not None:
            raise RuntimeError(f"the worker ended by itself with {process.returncode}")
    finally:
        process.terminate()
        with trio.CancelScope(shield=True), trio.move_on_after(STOP_DEADLINE) as late:
            await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        if late.cancelled_caught:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used. cpu: seconds. wakeups: how often a thread of it slept and was woken."""

    cpu: float
    wakeups: int


class Meter:
    """What a process uses from here on, in all threads that it has when it is asked."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = _by_thread(pid)

    def read(self) -> Usage:
        nothing = Usage(0, 0)
        used = [(now, self._before.get(thread, nothing)) for thread, now in _by_thread(self._pid).items()]
        return Usage(
            cpu=sum(now.cpu - before.cpu for now, before in used),
            wakeups=sum(now.wakeups - before.wakeups for now, before in used),
        )


def _by_thread(pid: int) -> dict[str, Usage]:
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = int((thread / "schedstat").read_text().split()[0])
            lines = (thread / "status").read_text().splitlines()
        except OSError:
            continue  # it has ended since
        wakeups = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
        found[thread.name] = Usage(nanoseconds / 1e9, wakeups)
    return found


def memory(pid: int) -> float:
    """Resident MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def server_processes(connection: psycopg.Connection[tuple[object, ...]]) -> list[int]:
    """All processes of a PostgreSQL server; none when it runs elsewhere."""
    backend = Path(f"/proc/{connection.info.backend_pid}")
    try:
        if (backend / "comm").read_text().strip() != "postgres":
            return []
        postmaster = int((backend / "stat").read_text().rpartition(")")[2].split()[1])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
    except OSError:
        return []
    return [postmaster, *map(int, children.split())]
