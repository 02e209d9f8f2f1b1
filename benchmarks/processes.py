"""Processes and what they use, as Linux tells it in /proc: processor time, wake-ups, memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

TICKS = os.sysconf("SC_CLK_TCK")


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


def processor_time(pids: Iterable[int], *, with_children: bool = True) -> float:
    """Seconds that these have used, each with all its threads, and with the children that it has waited for."""
    last = 15 if with_children else 13
    return sum(sum(map(int, _stat(pid)[11:last])) for pid in pids) / TICKS


def server_processes(connection: psycopg.Connection[Any]) -> list[int]:
    """The processes of a PostgreSQL server that runs on this host and is seen in /proc; else none. A backend that has ended
    counts as a child of the first."""
    backend = connection.info.backend_pid
    try:
        if Path(f"/proc/{backend}/comm").read_text().strip() != "postgres":
            return []
        postmaster = int(_stat(backend)[1])
    except OSError:
        return []
    return [postmaster, *_children(postmaster)]


def _children(parent: int) -> list[int]:
    lists = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, the name, may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
