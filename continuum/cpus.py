"""How many processors this process may use: a container of 2 on a host of 64 has 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_cpus(root: Path = ROOT) -> float:
    """Processors that this process may run on, and of those no more than a quota of its control group or of one above allows:
    1.5 for 150 ms of every 100. root: where /proc and /sys are.
    """
    return min([_allowed(), *_quotas(root)])


def _allowed() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # there is none but on Linux
        return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The quota of each control group that this process is in, from its own up to the outermost that can be seen."""
    for hierarchy in _lines(root / "proc/self/cgroup"):
        _, _, named = hierarchy.partition(":")
        controllers, _, own = named.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("cpu" if controllers else "")  # a link, where it is mounted with others
        # In a container without a namespace for them, only the last of these is there.
        path = PurePosixPath(own.strip("/"))
        for group in (path, *path.parents):
            quota, period = _quota(mounted / group)
            if quota > 0 and period > 0:
                yield quota / period


def _quota(group: Path) -> tuple[int, int]:
    """Microseconds of processor time in each period of so many; (0, 0) for no limit. Version 2 has them in one file."""
    words = [word for line in _lines(group / "cpu.max") for word in line.split()] or [
        word for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for word in _lines(group / name)
    ]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max", or nothing
        return 0, 0
    return quota, period


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
