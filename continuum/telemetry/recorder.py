"""`Telemetry`: what a worker tells of its work, as spans and metrics, and line by line at LOG_LEVEL=debug."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Collection, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from inspect import getmembers, iscoroutinefunction
from typing import Protocol, TypeVar, cast

import structlog
import trio
from opentelemetry.trace import Tracer

from continuum.model import ClaimedTask, Completion, Ending, HeldBack, Lease, Outcome, Recovered, Statistics
from continuum.telemetry.attempts import EMPTY, Attempts
from continuum.telemetry.instruments import Instruments, ObservedPool, ObservedState, QueueSeen
from continuum.telemetry.timing import Timed

T = TypeVar("T")

log = structlog.get_logger(__name__)

QUEUE_LATENESS = 10.0
"""Seconds by which counting the queue may be late before what was counted last is told no more."""
CONTENT_LIMIT = 2000
"""Characters of a payload or an output that are told."""
_DATABASE_SYSTEMS = {"postgres": "postgresql", "cockroach": "cockroachdb"}
_OPERATIONS = {"claim": "receive", "complete": "settle", "release": "settle"}
"""The calls that are messaging operations as well, and their types. A submit is told by `submission`."""


class Exposition(Protocol):
    """Where `/metrics` comes from."""

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text, in a form that an `Accept` header asks for, and its content type. Takes milliseconds: call it in
        a thread, one at a time."""
        ...


class Telemetry:
    """Records spans and metrics; `Telemetry()` records nothing, at no cost. Methods never block and never raise.

    no_metrics: why there is no exposition, for the answer to `/metrics`.
    contents: whether payloads and outputs, and the errors that quote them, may be told (LOG_PAYLOADS).
    """

    def __init__(
        self,
        tracer: Tracer | None = None,
        instruments: Instruments | None = None,
        exposition: Exposition | None = None,
        no_metrics: str = "metrics are off",
        contents: bool = False,
    ) -> None:
        self.tracer = tracer
        self._instruments = instruments
        self._exposition = exposition
        self.no_metrics = no_metrics
        self._attempts = Attempts(tracer)
        self._enabled = tracer is not None or instruments is not None
        self._contents = contents
        # Bound once: the module's looks its configuration up for each line, those that are left out included.
        self._log = log.bind()
        self._one_scrape = trio.CapacityLimiter(1)

    @property
    def has_metrics(self) -> bool:
        """Whether anybody could read metrics."""
        return self._instruments is not None

    def tasks_claimed(self, tasks: Sequence[ClaimedTask], seconds: float = 0.0) -> None:
        """Tasks were claimed just now, in one call that took `seconds`."""
        if not self._enabled or not tasks:
            return
        self._attempts.claimed(tasks, seconds)
        if self._instruments is not None:
            self._instruments.claimed.add(len(tasks))
            now = dt.datetime.now(dt.UTC)
            for task in tasks:
                self._instruments.queue_wait.record(
                    _age(task.created_at, now) if task.waited is None else max(0.0, task.waited)
                )

    def execution(self, task: ClaimedTask) -> AbstractContextManager[None]:
        """A span around the run of a task; it is the current one inside."""
        return nullcontext() if self.tracer is None else self._attempts.executing(task)

    def task_ended(self, task: ClaimedTask, outcome: Outcome, seconds: float) -> None:
        """A run that took `seconds` has ended so; its outcome is on its way into the database."""
        contents = _contents(task, outcome) if self._contents else EMPTY
        self._log.debug(
            "an attempt ended",
            task_id=task.id,
            attempt=task.attempt,
            ending=outcome.ending.value,
            exit_code=outcome.exit_code,
            seconds=round(seconds, 3),
            **contents,
        )
        if not self._enabled:
            return
        attempt = self._attempts.ended(task, outcome, contents)
        if self._instruments is not None:
            ending = outcome.ending.value
            failure = "" if outcome.ending is Ending.COMPLETED else ending
            self._instruments.run_time.record(seconds, ending, failure, span=attempt.context if attempt else None)

    def outcomes_written(self, batch: Sequence[Completion], written: Collection[Lease], seconds: float = 0.0) -> None:
        """A batch of outcomes was written just now, in `seconds`; those not in `written` had lost their lease."""
        if not self._enabled:
            return
        attempts = self._attempts.written(batch, seconds)
        instruments = self._instruments
        if instruments is None:
            return
        instruments.batch_size.record(len(batch))
        now = dt.datetime.now(dt.UTC)
        for completion, attempt in zip(batch, attempts, strict=True):
            if completion.lease not in written:
                continue
            ending = attempt.ending if attempt is not None else None
            instruments.finished.add(1, completion.status.value, ending.value if ending is not None else "unknown")
            if attempt is not None and completion.retry_in is None:
                instruments.end_to_end.record(_age(attempt.created_at, now), span=attempt.context)

    def traceparent(self, lease: Lease) -> str | None:
        """The trace that an attempt is part of, until its outcome is told as written."""
        return self._attempts.traceparent(lease)

    def leases_recovered(self, recovered: Recovered) -> None:
        """The janitor recovered expired leases."""
        if self._instruments is None:
            return
        counts = {"retried": recovered.retried, "failed": recovered.failed, "cancelled": recovered.cancelled}
        for result, count in counts.items():
            if count:
                self._instruments.recovered.add(count, result)

    def schedules_fired(self, fired: int, skipped: int, missed: int) -> None:
        """So many due times of schedules were dealt with in these ways."""
        if self._instruments is not None:
            for result, count in {"fired": fired, "skipped": skipped, "missed": missed}.items():
                if count:
                    self._instruments.schedules.add(count, result)

    def webhook_tried(self, result: str) -> None:
        """A delivery was tried with this result."""
        if self._instruments is not None:
            self._instruments.webhooks.add(1, result)

    def observe(self, state: ObservedState, pool: ObservedPool, unwritten: Sized = ()) -> None:
        """Read what is there (tasks, slots, sandboxes, health, outcomes not written yet) from these from now on."""
        if self._instruments is not None:
            self._instruments.observe(state, pool, unwritten)

    def queue_is_wanted(self) -> bool:
        """Whether somebody has read what is told of the whole queue since this was last asked; yes the first time."""
        if self._instruments is None:
            return False
        wanted, self._instruments.queue_wanted = self._instruments.queue_wanted, False
        return wanted

    def queue_seen(
        self, statistics: Statistics, oldest_pending: float | None, held_back: Sequence[HeldBack], pause: float
    ) -> None:
        """The whole queue was counted just now, and will be again in `pause` seconds if somebody wants it."""
        if self._instruments is not None:
            until = time.monotonic() + 2 * pause + QUEUE_LATENESS
            self._instruments.queue = QueueSeen(statistics, oldest_pending or 0.0, held_back, until)

    def queue_unseen(self) -> None:
        """The queue could not be counted: what was seen before is told no more."""
        if self._instruments is not None:
            self._instruments.queue = None

    def tasks_sent(self, tasks: int, seconds: float, failure: str) -> None:
        """Somebody in this process submitted tasks, in `seconds`; failure: the kind of error that it ended with, or ''."""
        if self._instruments is not None:
            self._instruments.sent.add(tasks, failure)
            self._instruments.operation.record(seconds, "submit", "send", failure)

    def timed_database(self, database: T) -> T:
        """The same database with the time of each call recorded, by verb."""
        if self._instruments is None:
            return database
        calls, operations = self._instruments.database_call, self._instruments.operation
        verbs = frozenset(
            verb for verb, _ in getmembers(type(database), iscoroutinefunction) if not verb.startswith("_")
        )

        def record(verb: str, seconds: float, failure: str) -> None:
            dialect = str(getattr(database, "dialect", ""))  # known once there was a connection
            calls.record(seconds, _DATABASE_SYSTEMS.get(dialect, "other_sql"), verb, failure)
            if verb in _OPERATIONS:
                operations.record(seconds, verb, _OPERATIONS[verb], failure)

        return cast("T", Timed(database, verbs - {"listen"}, record))  # which never ends

    def timed_backend(self, backend: T) -> T:
        """The same sandbox backend with the time of each cold start recorded."""
        if self._instruments is None:
            return backend
        histogram = self._instruments.cold_start
        name = str(getattr(backend, "name", "unknown"))

        def record(_: str, seconds: float, failure: str) -> None:
            histogram.record(seconds, name, failure)

        return cast("T", Timed(backend, frozenset({"start"}), record))

    async def metrics_text(self, accept: str = "") -> tuple[bytes, str] | None:
        """The metrics in the text format that an `Accept` header asks for, Prometheus' or OpenMetrics, and its content type;
        None (see `no_metrics`) without them."""
        if self._exposition is None:
            return None
        return await trio.to_thread.run_sync(
            self._exposition.render, accept, limiter=self._one_scrape, abandon_on_cancel=True
        )

    def close(self) -> None:
        """End the spans that are still open."""
        self._attempts.close()


def _contents(task: ClaimedTask, outcome: Outcome) -> dict[str, str]:
    """What an attempt was given and what came of it; of each text its end, where the reason of a failure stands."""
    texts = {
        "payload": task.payload,
        "output": outcome.output,
        "error_output": outcome.error_output,
        "message": outcome.message,
    }
    return {name: text[-CONTENT_LIMIT:] for name, text in texts.items()}


def _age(created_at: dt.datetime, now: dt.datetime) -> float:
    """Seconds since a time on the database's clock, whose difference from ours must not make it negative."""
    return max(0.0, (now - created_at).total_seconds())
