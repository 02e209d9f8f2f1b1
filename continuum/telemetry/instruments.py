"""Every measure of a worker. Names follow the semantic conventions 1.44 where those have one, else they are `continuum.*`.

Attributes have few values by nature: endings, states, verbs, kinds of errors; never a task, a tenant or a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import NamedTuple, Protocol

from continuum.model import Ending, HeldBack, HeldBackBy, Statistics, Status
from continuum.telemetry.measures import Counter, Histogram, Measure, Observed, Values
from continuum.telemetry.process import process_measures
from continuum.telemetry.tracing import CALL_BUCKETS, COMMON

TASK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds from what an idle worker needs for the shortest script to TASK_TIMEOUT. The conventions end at 10 s, where many tasks
only begin."""
DATABASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10)
"""Those of the conventions, and two between that tell a fast database from a slow one."""
COLD_START_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200)

COMPONENTS = ("database", "heartbeat", "sandbox", "screening", "worker")
_ENDS = [
    (Status.COMPLETED.value, Ending.COMPLETED.value),
    (Status.FAILED.value, Ending.FAILED.value),
    (Status.PENDING.value, Ending.FAILED.value),
]
_NO_VALUES: Values = ()


class ObservedHealth(Protocol):
    @property
    def ready(self) -> bool: ...
    @property
    def problems(self) -> Mapping[str, str]: ...


class ObservedState(Protocol):
    """What is read of a worker's state, at any time and from any thread."""

    @property
    def slots(self) -> int: ...
    @property
    def running(self) -> Sized: ...
    @property
    def waiting(self) -> Sized: ...
    @property
    def health(self) -> ObservedHealth: ...
    @property
    def draining(self) -> bool: ...
    @property
    def strain_levels(self) -> Mapping[str, int]: ...
    @property
    def database_failures(self) -> int: ...
    @property
    def leases_lost(self) -> int: ...
    @property
    def given_back(self) -> int: ...


class ObservedPool(Protocol):
    """What is read of a pool of sandboxes."""

    @property
    def by_state(self) -> Mapping[str, int]: ...


class QueueSeen(NamedTuple):
    """The whole queue as it was counted, and until when (on the monotonic clock) that is worth telling."""

    statistics: Statistics
    oldest_pending: float
    held_back: Sequence[HeldBack]
    worth_telling_until: float


class Instruments:
    """The measures of one worker."""

    def __init__(self) -> None:
        self._state: ObservedState | None = None
        self._pool: ObservedPool | None = None
        self._unwritten: Sized | None = None
        self.queue: QueueSeen | None = None
        self.queue_wanted = True
        """Whether somebody has read what is told of the queue since this was last set to False."""
        # -- what the worker adds to -----------------------------------------------------------------------------------
        self.claimed = Counter(
            "messaging.client.consumed.messages",
            "{message}",
            "Tasks claimed by this worker",
            constant={**COMMON, "messaging.operation.name": "claim"},
            expected=[()],
        )
        self.sent = Counter(
            "messaging.client.sent.messages",
            "{message}",
            "Tasks that were submitted through this worker",
            ["error.type"],
            {**COMMON, "messaging.operation.name": "submit"},
        )
        self.operation = Histogram(
            "messaging.client.operation.duration",
            "s",
            "Time of a call that submits, claims or settles tasks, however many",
            CALL_BUCKETS,
            ["messaging.operation.name", "messaging.operation.type", "error.type"],
            COMMON,
        )
        self.run_time = Histogram(
            "messaging.process.duration",
            "s",
            "Time a script ran, its sandbox's start included, by how it ended",
            TASK_BUCKETS,
            ["continuum.task.ending", "error.type"],
            {**COMMON, "messaging.operation.name": "execute"},
        )
        self.queue_wait = Histogram(
            "continuum.tasks.queue_wait", "s", "Time from when a task was due to its claim", TASK_BUCKETS
        )
        self.end_to_end = Histogram(
            "continuum.tasks.end_to_end",
            "s",
            "Time from a task's creation to its written outcome, retries included",
            TASK_BUCKETS,
        )
        self.finished = Counter(
            "continuum.tasks.finished",
            "{task}",
            "Attempts whose end was written, by the status written (pending: tried again) and by how they ended",
            ["continuum.task.status", "continuum.task.ending"],
            expected=_ENDS,
        )
        self.recovered = Counter(
            "continuum.leases.recovered",
            "{lease}",
            "Expired leases of any worker that this one recovered, by what became of the task",
            ["continuum.recovery.result"],
            expected=[("retried",), ("failed",), ("cancelled",)],
        )
        self.webhooks = Counter(
            "continuum.webhooks",
            "{delivery}",
            "Tries to deliver a webhook, by what came of them",
            ["continuum.webhook.result"],
            expected=[("delivered",), ("failed",), ("given_up",), ("gone",), ("refused",)],
        )
        self.schedules = Counter(
            "continuum.schedules.due",
            "{due}",
            "Due times of schedules that this worker dealt with: it made the task (fired), the one before was open (skipped), "
            "or they had passed while nobody fired and were left out (missed)",
            ["continuum.schedule.result"],
            expected=[("fired",), ("skipped",), ("missed",)],
        )
        self.batch_size = Histogram(
            "continuum.completion.batch_size", "{task}", "Outcomes written together", SIZE_BUCKETS
        )
        self.cold_start = Histogram(
            "continuum.sandbox.cold_start",
            "s",
            "Time to start a sandbox",
            COLD_START_BUCKETS,
            ["continuum.sandbox.backend", "error.type"],
        )
        self.database_call = Histogram(
            "db.client.operation.duration",
            "s",
            "Time of a call to the database, by verb",
            DATABASE_BUCKETS,
            ["db.system.name", "db.operation.name", "error.type"],
        )
        # -- what is read ----------------------------------------------------------------------------------------------
        self._read = [
            self._gauge("continuum.tasks.running", "{task}", "Tasks that hold a slot", lambda s: len(s.running)),
            self._gauge(
                "continuum.tasks.ahead",
                "{task}",
                "Tasks claimed ahead, which wait for a slot",
                lambda s: len(s.waiting),
            ),
            self._gauge("continuum.slots", "{slot}", "Tasks that may run at once", lambda s: s.slots),
            self._gauge(
                "continuum.ready",
                "1",
                "1 when nothing keeps this worker from useful work, else 0",
                lambda s: s.health.ready,
            ),
            self._gauge(
                "continuum.draining",
                "1",
                "1 when this worker was asked to claim nothing more, else 0",
                lambda s: s.draining,
            ),
            Observed(
                "continuum.strain",
                "1",
                "How short this worker is of memory or processor time, or its database slow to grant claims: 0 not, 1 it claims "
                "nothing ahead (of a slow database: less often and more at once), 2 it begins one task at a time",
                self._strain,
                ["continuum.resource"],
            ),
            Observed(
                "continuum.health",
                "1",
                "1 when this part of the worker is well, else 0; /readyz says what is wrong",
                self._health,
                ["continuum.component"],
            ),
            Observed(
                "continuum.sandboxes", "{sandbox}", "Sandboxes by state", self._sandboxes, ["continuum.sandbox.state"]
            ),
            Observed(
                "continuum.outcomes.unwritten",
                "{task}",
                "Outcomes and leases to give back that the database has not confirmed yet",
                lambda: {} if self._unwritten is None else {_NO_VALUES: len(self._unwritten)},
            ),
            self._count(
                "continuum.database.failures",
                "{call}",
                "Calls that failed because the database was unavailable",
                lambda s: s.database_failures,
            ),
            self._count(
                "continuum.leases.lost",
                "{lease}",
                "Attempts whose lease had passed to somebody else before their outcome was written",
                lambda s: s.leases_lost,
            ),
            self._count(
                "continuum.tasks.given_back",
                "{task}",
                "Attempts given back to the queue without counting",
                lambda s: s.given_back,
            ),
        ]
        self._queue = [
            Observed(
                "continuum.queue.tasks",
                "{task}",
                "Tasks that have not ended, of all workers: due and waiting (pending), waiting for their time (scheduled), "
                "running (processing)",
                lambda: self._of_queue(
                    lambda seen: {
                        ("pending",): seen.statistics.pending,
                        ("scheduled",): seen.statistics.scheduled,
                        ("processing",): seen.statistics.running,
                    }
                ),
                ["continuum.task.status"],
            ),
            Observed(
                "continuum.queue.oldest_pending",
                "s",
                "How long the longest waiting task has waited since it was due, of those that come next in each priority",
                lambda: self._of_queue(lambda seen: {_NO_VALUES: seen.oldest_pending}),
            ),
            Observed(
                "continuum.queue.held_back",
                "{task}",
                "Due tasks of all workers that wait for something other than a worker: a pause, a limit, or other tasks",
                lambda: self._of_queue(_held_back),
                ["continuum.held_back.reason"],
            ),
            Observed(
                "continuum.queue.workers",
                "{worker}",
                "Workers of this queue that live",
                lambda: self._of_queue(lambda seen: {_NO_VALUES: seen.statistics.workers}),
            ),
        ]
        self.all: list[Measure] = [
            self.claimed,
            self.sent,
            self.operation,
            self.run_time,
            self.queue_wait,
            self.end_to_end,
            self.finished,
            self.recovered,
            self.webhooks,
            self.schedules,
            self.batch_size,
            self.cold_start,
            self.database_call,
            *self._read,
            *self._queue,
            *process_measures(),
        ]

    def observe(self, state: ObservedState, pool: ObservedPool, unwritten: Sized) -> None:
        """Read from these from now on."""
        self._state, self._pool, self._unwritten = state, pool, unwritten

    def _gauge(self, name: str, unit: str, description: str, read: Callable[[ObservedState], int]) -> Observed:
        return Observed(name, unit, description, lambda: self._of_state(read))

    def _count(self, name: str, unit: str, description: str, read: Callable[[ObservedState], int]) -> Observed:
        return Observed(name, unit, description, lambda: self._of_state(read), kind="counter")

    def _of_state(self, read: Callable[[ObservedState], int]) -> Mapping[Values, float]:
        return {} if self._state is None else {_NO_VALUES: int(read(self._state))}

    def _of_queue(self, tell: Callable[[QueueSeen], Mapping[Values, float]]) -> Mapping[Values, float]:
        self.queue_wanted = True
        seen = self.queue
        return {} if seen is None or time.monotonic() > seen.worth_telling_until else tell(seen)

    def _health(self) -> Mapping[Values, float]:
        if self._state is None:
            return {}
        problems = self._state.health.problems
        return {(component,): int(component not in problems) for component in COMPONENTS}

    def _strain(self) -> Mapping[Values, float]:
        return {} if self._state is None else {(name,): level for name, level in self._state.strain_levels.items()}

    def _sandboxes(self) -> Mapping[Values, float]:
        return {} if self._pool is None else {(state,): count for state, count in self._pool.by_state.items()}


def _held_back(seen: QueueSeen) -> Mapping[Values, float]:
    counts: dict[Values, float] = {(reason.value,): 0 for reason in HeldBackBy}
    return counts | {(each.reason.value,): each.tasks for each in seen.held_back}
