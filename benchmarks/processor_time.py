"""How much processor time processes have used, from /proc: what bounds a throughput when the processors are all busy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psycopg

TICKS = os.sysconf("SC_CLK_TCK")


def of_processes(pids: Iterable[int]) -> float:
    """Seconds that these have used, each with all its threads, and with the children that it has waited for."""
    return sum(sum(map(int, _stat(pid)[11:15])) for pid in pids) / TICKS


def server_processes(connection: psycopg.Connection[tuple[object, ...]]) -> list[int]:
    """The processes of a PostgreSQL server that runs on this host and is seen in /proc; else none. A backend that has ended
    counts as a child of the first."""
    backend = connection.info.backend_pid
    try:
        if _name(backend) != "postgres":
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


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
