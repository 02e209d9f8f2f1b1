"""Whose a container is, written on it as labels, and whether that worker still lives."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from continuum.config import Settings

WORKER_LABEL = "continuum.worker"
ROLE_LABEL = "continuum.role"
DATABASE_LABEL = "continuum.database"
_HOST_LABEL = "continuum.host"
_BOOT_LABEL = "continuum.boot"
_NAMESPACE_LABEL = "continuum.pid-namespace"
_PROCESS_LABEL = "continuum.pid"
_STARTED_LABEL = "continuum.pid-started"

UNREGISTERED = 60.0
"""Seconds for which a worker of another process namespace may be unknown to the database and still be alive: it has
just started, or the list of the living was read before it did."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process among all that ever ran: `started` (clock ticks since boot) tells two users of one id apart."""

    boot: str
    namespace: str
    pid: str
    started: str

    @classmethod
    def current(cls) -> Process:
        pid = os.getpid()
        return cls(
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            namespace=str(Path("/proc/self/ns/pid").stat().st_ino),
            pid=str(pid),
            started=_start_time(str(pid)) or "",
        )

    def shares_namespace(self, other: Process) -> bool:
        """Whether the process ids of both mean the same."""
        return (self.boot, self.namespace) == (other.boot, other.namespace)

    def is_alive(self) -> bool:
        """Whether it runs, in the process namespace of the caller."""
        return _start_time(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class Owner:
    """The worker that made a container.

    database: what stands for its database; workers of another one know nothing of each other.
    """

    worker: str
    database: str
    host: str
    process: Process

    @classmethod
    def current(cls, settings: Settings, worker_id: str) -> Owner:
        return cls(worker_id, _database_name(settings), socket.gethostname(), Process.current())

    def labels(self, role: str) -> dict[str, str]:
        """The labels of a container that this worker makes for a purpose (`sandbox`, `network-policy`, `image`)."""
        return {
            WORKER_LABEL: self.worker,
            ROLE_LABEL: role,
            DATABASE_LABEL: self.database,
            _HOST_LABEL: self.host,
            _BOOT_LABEL: self.process.boot,
            _NAMESPACE_LABEL: self.process.namespace,
            _PROCESS_LABEL: self.process.pid,
            _STARTED_LABEL: self.process.started,
        }

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Owner:
        process = Process(
            boot=labels.get(_BOOT_LABEL, ""),
            namespace=labels.get(_NAMESPACE_LABEL, ""),
            pid=labels.get(_PROCESS_LABEL, ""),
            started=labels.get(_STARTED_LABEL, ""),
        )
        return cls(labels.get(WORKER_LABEL, ""), labels.get(DATABASE_LABEL, ""), labels.get(_HOST_LABEL, ""), process)

    def is_dead(self, to: Owner, live_workers: Set[str], age: float) -> bool:
        """Whether `to`, a worker that looks at a container made `age` seconds ago, may take its owner for dead.

        live_workers: the ids of the workers that are alive according to the database of `to`.
        """
        if not self.worker or self.worker == to.worker:
            return False
        if self.process.shares_namespace(to.process):
            return not self.process.is_alive()
        return self.database == to.database and self.worker not in live_workers and age > UNREGISTERED


def _start_time(pid: str) -> str | None:
    """When the process with this id started; None when there is none, or only what its parent has yet to collect."""
    try:
        # The name, in parentheses, may hold anything, spaces and parentheses included.
        fields = Path(f"/proc/{int(pid)}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZXx" else started


def _database_name(settings: Settings) -> str:
    """The same text for two workers with the same database settings; holds no secret and says nothing to others."""
    if settings.db_dialect == "embedded":
        parts = [str(settings.embedded_dir.absolute())]
    elif settings.database_url is not None:
        url = urlsplit(settings.database_url.get_secret_value())
        parts = [url.netloc.rpartition("@")[2], url.path]
    else:
        parts = [*settings.db_host, *map(str, settings.db_port), settings.db_name]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
