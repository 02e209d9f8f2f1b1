"""What a worker has too little of, and what it claims less for.

Under strain a worker claims nothing ahead of its free slots: others may run that sooner. Where memory is about to run out it
claims no more than keeps one slot busy, and gives back what it has not begun: a run that is killed for want of memory, or a
worker, costs more than one that waits. What runs goes on. It is no failure, so that the worker stays ready, and says it among its
`notes`.

- Memory: the kernel's pressure stall information (docs.kernel.org/accounting/psi.html), of the host and of the control groups
  that this worker is in, whatever sandboxes are made of: they take from the same memory. And how much of a group's limit is used.
- Processors: whether the control group has used up its quota, and whether this worker's own loop gets its turn. The share of time
  in which *something* waits for a processor says nothing here: SLOTS is above the number of processors on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import structlog
import trio

from continuum.nursery.pace import AHEAD
from continuum.nursery.signals import Signal
from continuum.nursery.state import Level, WorkerState

log = structlog.get_logger(__name__)

ROOT = Path("/")
INTERVAL = 2.0
"""Seconds between two looks: as often as the kernel works out its averages anew."""
SOME_MEMORY = 7.0
"""Percent of the last ten seconds in which something waited for memory. Android's lmkd begins to make room at 70 ms in each
second (`ro.lmkd.psi_partial_stall_ms`)."""
FULL_MEMORY = 20.0
"""Percent of the last ten seconds in which nothing else went on. systemd-oomd kills at 60 over half a minute
(`DefaultMemoryPressureLimit=`): a third of that, to be gone before."""
MEMORY_USED = 0.9
"""Of a control group's limit, without what could be dropped at once (the page cache that nobody used lately: `inactive_file`, as
the kubelet counts). What is left is the tenth that Go's automemlimit leaves."""
FULL_CPU = 20.0
"""Percent of the last ten seconds in which everything in the control group stood still, which is when its quota is used up."""
LATE = AHEAD
"""Seconds by which the loop gets its turn too late on average: as long as what is claimed ahead takes to run."""
RELIEF = 0.9
"""Part of a threshold below which strain is over, so that it does not come and go."""
WEIGHT = 0.2
"""Of the newest lateness in its moving average: about ten seconds count."""


class Reading(NamedTuple):
    """Something measured. source: where. level: what it means from the threshold on."""

    resource: str
    source: Path | None
    value: float
    threshold: float
    level: Level
    said: str


@dataclass(slots=True)
class StrainWatch:
    """The service that looks. root: where /proc and /sys are."""

    state: WorkerState
    work: Signal
    root: Path = ROOT
    _late: float = 0.0
    _strained: set[tuple[Path | None, str]] = field(default_factory=set)

    async def run(self) -> None:
        """Look every INTERVAL; never return."""
        while True:
            due = trio.current_time() + INTERVAL
            await trio.sleep_until(due)
            self._late += WEIGHT * (trio.current_time() - due - self._late)
            self.look()

    def look(self) -> None:
        """Look once, and have the worker heed it."""
        strain: dict[str, tuple[Level, str]] = {}
        for reading in self._readings():
            key = (reading.source, reading.said)
            threshold = reading.threshold * (RELIEF if key in self._strained else 1.0)
            if reading.value < threshold:
                self._strained.discard(key)
                continue
            self._strained.add(key)
            level = strain.get(reading.resource, (Level.NONE, ""))[0]
            if reading.level > level:
                strain[reading.resource] = reading.level, reading.said.format(reading.value)
        self._heed(strain)

    def _heed(self, strain: dict[str, tuple[Level, str]]) -> None:
        before, self.state.strain = self.state.strain, strain
        levels = {resource: level for resource, (level, _) in strain.items()}
        if levels == {resource: level for resource, (level, _) in before.items()}:
            return
        if strain:
            log.warning("claiming less: this worker is short of something", **self.state.notes())
        else:
            log.info("claiming as usual again")
        if Level.SEVERE in levels.values():
            self.state.give_back_waiting()
        self.work.notify()

    def _readings(self) -> Iterator[Reading]:
        groups = [*_groups(self.root)]
        for file in (self.root / "proc/pressure/memory", *(group / "memory.pressure" for group in groups)):
            some, full = _pressure(file)
            yield Reading(
                "memory", file, full, FULL_MEMORY, Level.SEVERE, "everything waited for memory {:.0f} % of the time"
            )
            yield Reading(
                "memory", file, some, SOME_MEMORY, Level.SOME, "something waited for memory {:.0f} % of the time"
            )
        for group in groups:
            used = 100 * _memory_used(group)
            yield Reading(
                "memory", group, used, 100 * MEMORY_USED, Level.SEVERE, "{:.0f} % of the memory limit is used"
            )
            _, full = _pressure(group / "cpu.pressure")
            yield Reading(
                "cpu", group, full, FULL_CPU, Level.SOME, "everything waited for a processor {:.0f} % of the time"
            )
        late = 1000 * self._late
        yield Reading("cpu", None, late, 1000 * LATE, Level.SOME, "the worker gets a processor {:.0f} ms too late")


def _groups(root: Path) -> Iterator[Path]:
    """The control groups (version 2) that this process is in, from its own up to the outermost that can be seen."""
    for line in _lines(root / "proc/self/cgroup"):
        if line.startswith("0::"):
            # In a container without a namespace for them, only the last of these is there.
            path = PurePosixPath(line[3:].strip("/"))
            yield from (root / "sys/fs/cgroup" / group for group in (path, *path.parents))


def _pressure(file: Path) -> tuple[float, float]:
    """Percent of the last ten seconds in which something waited, and in which everything did; 0 where nobody counts."""
    found = {}
    for line in _lines(file):
        kind, _, rest = line.partition(" avg10=")
        with suppress(ValueError):
            found[kind] = float(rest.partition(" ")[0])
    return found.get("some", 0.0), found.get("full", 0.0)


def _memory_used(group: Path) -> float:
    """Which part of a control group's limit is used for good; 0 without one."""
    limit, current = _number(group / "memory.max"), _number(group / "memory.current")
    if not limit or current is None:
        return 0.0
    if current < RELIEF * MEMORY_USED * limit:
        return current / limit  # the statistics are worked out anew for each who asks
    idle = [int(line.split()[1]) for line in _lines(group / "memory.stat") if re.fullmatch(r"inactive_file \d+", line)]
    return max(0, current - sum(idle)) / limit


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none: `max`, or no file."""
    with suppress(ValueError, IndexError):
        return int(_lines(file)[0])
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
