"""What the pages show: of all workers from the database, of this one from its own record."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import trio

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.model import BatchProgress, CodeRecord, FailureGroup, Status, TaskFilter, TaskRecord, TaskSummary
from continuum.nursery.recent import INTERVAL, INTERVALS
from continuum.nursery.state import WorkerState
from continuum.schedules import ScheduleRecord
from continuum.status import charts
from continuum.status.overview import Overview
from continuum.status.shared import Shared, SharedByKey, Unavailable, ask
from continuum.status.views import worker_status
from continuum.waiting import in_words

T = TypeVar("T")

FAILED_WITHIN = dt.timedelta(hours=24)
"""How old failures may be that a page shows of its own accord."""
RUNNING_SHOWN = 30
WORKERS_SHOWN = 100
SANDBOXES_SHOWN = 60
TAIL = 600
"""Characters of a running task's output in a list."""
SHARE = 0.1
"""The part of its time that the database may be asked for each of what a page shows."""
TASKS_REMEMBERED = 64
"""Tasks, and batches, of which the last reading is kept."""
SEARCHES = 2
"""Searches at once: each may look at many rows."""
LONGEST_GAP = 10.0
"""Seconds between two readings of the totals beyond which nothing is said of the time in between."""

Context = dict[str, Any]


class Board:
    """Everything that is shown, each part of it read when somebody looks and at most once in a while."""

    def __init__(self, settings: Settings, state: WorkerState, database: Database, overview: Overview) -> None:
        self.settings = settings
        self.state = state
        self._database = database
        self._overview = overview
        self._depths = Shared(database.depths, 2.0, SHARE)
        self._failures = Shared(self._ask_failures, 5.0, SHARE)
        self._workers = Shared(database.workers, 1.0, SHARE)
        self.forget_limits()
        self._running = Shared(lambda: database.running(RUNNING_SHOWN, TAIL), 1.0, SHARE)
        self._tasks = SharedByKey(self._ask_task, TASKS_REMEMBERED)
        self._waits = SharedByKey(database.waits_for, TASKS_REMEMBERED)
        self._batches = SharedByKey(self._ask_batch, TASKS_REMEMBERED, SHARE)
        self._totals = _Totals()
        self._searches = trio.CapacityLimiter(SEARCHES)

    async def overview(self, *, contents: bool) -> Context:
        """All that the first page and the page of workers show. contents: whether errors and outputs are among it."""
        gathered = await _gather(
            totals=self._overview.read(),
            depths=self._depths.get(),
            running=self._running.get(),
            failures=self._failures.get(),
        )
        totals = gathered["totals"]
        intervals = self.state.recent.intervals()
        alive = [worker for worker in totals["worker_list"] if worker["alive"]] if totals else []
        if totals:
            self._totals.add(sum(totals[f"{name}_tasks"] for name in ("completed", "failed", "cancelled", "malicious")))
        return {
            **gathered,
            "worker": worker_status(self.state, contents=False),
            "alive": alive,
            "slots": sum(worker["slots"] for worker in alive),
            "workers": totals["worker_list"][:WORKERS_SHOWN] if totals else None,
            "workers_left_out": max(0, len(totals["worker_list"]) - WORKERS_SHOWN) if totals else 0,
            "failed_lately": sum(group.count for group in gathered["failures"] or []),
            "throughput": charts.throughput(intervals, self._totals.rates() if len(alive) > 1 else None),
            "latency": charts.latency(intervals),
            "times": charts.quantiles(intervals),
            "sandboxes": self.state.sandboxes()[:SANDBOXES_SHOWN],
            "sandboxes_left_out": max(0, len(self.state.sandboxes()) - SANDBOXES_SHOWN),
            "tasks_in": {one.sandbox: one.task for one in self.state.running.values() if one.sandbox},
            "contents": contents,
        }

    async def limits(self) -> Context:
        """LIMITS with its use, and what is held back."""
        return await _gather(uses=self._uses.get(), held_back=self._held_back.get())

    def forget_limits(self) -> None:
        """They were changed just now: what was read before is not to be shown."""
        self._uses = Shared(self._database.limit_uses, 1.0, SHARE)
        self._held_back = Shared(self._database.held_back, 5.0, SHARE)

    async def failures(self) -> Context:
        return await _gather(failures=self._failures.get())

    async def search(self, wanted: TaskFilter) -> list[TaskSummary]:
        """Raises `Unavailable`."""
        async with self._searches:
            return await ask(lambda: self._database.search(wanted))

    async def schedules(self, limit: int, after: str | None) -> list[ScheduleRecord]:
        """Raises `Unavailable`."""
        async with self._searches:
            return await ask(lambda: self._database.schedules(limit, after))

    async def task(self, task_id: int) -> TaskRecord | None:
        """A task, as it was a second ago at most. Raises `Unavailable`."""
        return await self._tasks.get(task_id)

    async def batch(self, task: TaskRecord) -> BatchProgress | None:
        """How the batch of a task stands, or that which it waits for. Raises `Unavailable`."""
        name = task.batch if task.batch is not None else task.depends_batch
        return None if name is None else await self._batches.get((task.tenant, name))

    async def waits_for(self, task: TaskRecord) -> str | None:
        """What a task waits for that is pending and due. Raises `Unavailable`."""
        if task.status != Status.PENDING:
            return None
        waits = await self._waits.get(task.id)
        return in_words(task, waits, await self._workers.get()) if waits else None

    def forget(self, task_id: int) -> None:
        """A task was changed just now: what was read before is not to be shown."""
        self._tasks.forget(task_id)
        self._waits.forget(task_id)

    async def code(self, code_id: str | None) -> CodeRecord | None:
        """Raises `Unavailable`."""
        if code_id is None:
            return None
        return await ask(lambda: self._database.fetch_code(code_id))

    async def _ask_task(self, task_id: int) -> TaskRecord | None:
        found = await self._database.fetch([task_id])
        return found[0] if found else None

    async def _ask_batch(self, key: tuple[str | None, str]) -> BatchProgress:
        return await self._database.batch(*key)

    async def _ask_failures(self) -> list[FailureGroup]:
        return await self._database.failures(dt.datetime.now(dt.UTC) - FAILED_WITHIN, 20)


async def _gather(**readings: Awaitable[Any]) -> Context:
    """All of these, asked at once; None for what is not to be had, and `problem` says why."""
    answers: Context = {"problem": None}

    async def ask(name: str, reading: Awaitable[Any]) -> None:
        try:
            answers[name] = await reading
        except Unavailable as error:
            answers[name] = None
            answers["problem"] = str(error)

    async with trio.open_nursery() as nursery:
        for name, reading in readings.items():
            nursery.start_soon(ask, name, reading)
    return answers


@dataclass(slots=True)
class _Totals:
    """How many tasks of all workers had ended when somebody looked: from it, how many ended in each interval."""

    _readings: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=2 * INTERVALS))

    def add(self, total: int) -> None:
        now = trio.current_time()
        if not self._readings or now - self._readings[-1][0] >= INTERVAL / 2:
            self._readings.append((now, total))

    def rates(self) -> list[float | None]:
        """How many ended in each second of the last INTERVALS intervals; None where nobody looked."""
        end = trio.current_time() // INTERVAL * INTERVAL
        edges = [self._at(end + place * INTERVAL) for place in range(-INTERVALS, 1)]
        return [
            None if before is None or after is None else max(0.0, after - before) / INTERVAL
            for before, after in pairwise(edges)
        ]

    def _at(self, time: float) -> float | None:
        for (earlier, low), (later, high) in pairwise(self._readings):
            if earlier <= time <= later:
                if later - earlier > LONGEST_GAP:
                    return None
                return low + (high - low) * (time - earlier) / (later - earlier)
        return None
