"""What a script may use, in the words of the settings; the same for every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass

from continuum.config import Settings

OPEN_FILES = 1024
"""Of one process: what systems have long given, and what select() can bear."""


def sandbox_bounds(settings: Settings) -> tuple[float, ...]:
    """All that bounds a sandbox from its start to its end: one that was started with others is not what settings ask for."""
    return (
        settings.container_memory_mb,
        settings.container_cpu_limit,
        settings.container_pids_limit,
        settings.container_disk_mb,
        settings.task_cpu_seconds,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """memory_mb, disk_mb: in MiB; the disk's is of each writable place. files: of each writable place.
    processes: at a time, threads included. cpu_seconds: of all processes together; 0 for none but the time.
    None: nothing limits it."""

    memory_mb: int
    disk_mb: int
    files: int | None
    processes: int | None
    open_files: int
    cpu_seconds: int

    @classmethod
    def of(cls, settings: Settings, *, files: int | None = None) -> Limits:
        return cls(
            memory_mb=settings.container_memory_mb,
            disk_mb=settings.container_disk_mb,
            files=files,
            processes=settings.container_pids_limit,
            open_files=OPEN_FILES,
            cpu_seconds=math.ceil(settings.task_cpu_seconds),
        )

    @property
    def disk(self) -> str:
        """The disk's limit in words."""
        return f"at most {self.disk_mb} MB" + (f" and {self.files} files" if self.files else "")
