"""What `continuum top` knows, and what the person at the keyboard chose."""

from __future__ import annotations

import datetime as dt
from collections import deque
from dataclasses import dataclass, field

from continuum.model import FailureGroup, QueueDepth, Statistics, TaskRecord, TaskSummary, WorkerRecord

REMEMBERED = 240
"""Seconds of throughput that a wide screen may show."""
FAILURES_SINCE = dt.timedelta(hours=1)
ORDERS = ("longest first", "id", "name", "worker")
"""How running tasks may be sorted."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the database said. at: Trio's clock. now: the wall's."""

    at: float
    now: dt.datetime
    statistics: Statistics
    depths: list[QueueDepth]
    workers: list[WorkerRecord]
    running: list[TaskSummary]
    failures: list[FailureGroup]

    @property
    def ended(self) -> int:
        counts = self.statistics
        return counts.completed + counts.failed + counts.cancelled + counts.malicious


@dataclass
class Board:
    """Everything on the screen. Times are on Trio's clock.

    rates: tasks that ended in a second, one for each look, newest last. away: why the database cannot be asked, else empty.
    selected: a line of `choices`. opened: the task that is looked at, with `task` as it was read.
    """

    dialect: str = ""
    snapshot: Snapshot | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    away: str = ""
    order: str = ORDERS[0]
    paused: bool = False
    selected: int = 0
    opened: int | None = None
    task: TaskRecord | None = None
    done: bool = False

    def take(self, snapshot: Snapshot) -> None:
        """Show this from now on."""
        if self.snapshot is not None:
            seconds = max(0.001, snapshot.at - self.snapshot.at)
            self.rates.append(max(0, snapshot.ended - self.snapshot.ended) / seconds)
        self.snapshot, self.away = snapshot, ""
        self._keep_selection_in_bounds()

    @property
    def running(self) -> list[TaskSummary]:
        """The running tasks as they are sorted."""
        tasks = self.snapshot.running if self.snapshot else []
        match self.order:
            case "id":
                return sorted(tasks, key=lambda task: task.id)
            case "name":
                return sorted(tasks, key=lambda task: (task.name, task.id))
            case "worker":
                return sorted(tasks, key=lambda task: (task.worker_id or "", task.id))
        return sorted(tasks, key=lambda task: (task.started or task.created_at, task.id))

    @property
    def choices(self) -> list[int]:
        """The ids of the tasks that can be looked at: those that run, and the newest of each kind of failure."""
        failures = self.snapshot.failures if self.snapshot else []
        return [task.id for task in self.running] + [group.newest_id for group in failures]

    def press(self, key: str) -> None:
        """Do what a key stands for; others do nothing."""
        match key:
            case "q" | "back" if self.opened is not None:
                self.opened = self.task = None
            case "q":
                self.done = True
            case "p" | " ":
                self.paused = not self.paused
            case "s":
                self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
            case "up" | "down" | "page up" | "page down" | "home" | "end" if self.opened is None:
                steps = {"up": -1, "down": 1, "page up": -10, "page down": 10, "home": -(10**6), "end": 10**6}
                self.selected += steps[key]
                self._keep_selection_in_bounds()
            case "enter" if self.opened is None and self.choices:
                self.opened, self.task = self.choices[self.selected], None

    def _keep_selection_in_bounds(self) -> None:
        self.selected = max(0, min(self.selected, len(self.choices) - 1))
