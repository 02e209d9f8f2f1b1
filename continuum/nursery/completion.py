"""Outcomes on their way into the database: decided, gathered, written in batches, never lost.

An outcome stays here until the database has confirmed it, or has confirmed that its lease passed to somebody else.
Through an outage it waits; its lease is kept alive by the heartbeat meanwhile. One that alone cannot be written, because
somebody holds its row locked, must not keep the others: what failed is tried again last, and in smaller batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
import trio

from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.logs import trace_fields
from continuum.model import ClaimedTask, Completion, Ending, Lease, Outcome, Status
from continuum.nursery.backoff import Backoff, note_database_failure, note_database_success, until_available
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState
from continuum.retry import ALONE, QUARANTINED, Cause, is_poison, judge, quarantine_note
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

BATCH_LIMIT = 200
"""Outcomes in one statement: enough to make the round trip cheap, few enough to stay well inside its deadline."""
LINGER = 0.02
"""Seconds in which more outcomes may join a batch, while tasks wait for a slot anyway."""
SMALLER = 4
"""By what the next batch is smaller than one that could not be written. Each one that was written doubles it again."""
LONGEST_MESSAGE = 10_000
"""Characters of `last_error`."""
BATCH_BYTES = 4 * 1024 * 1024
"""Text in one statement: outputs may be large, and nothing else happens in the worker while they are made one message."""


def decide(task: ClaimedTask, outcome: Outcome, quarantine_after: int = 0) -> Completion:
    """What to write for an attempt that ended so: a terminal state, or another try after a backoff. quarantine_after: how many
    sandboxes a task may take down; 0: all that its attempts let it."""
    retry_in, message = None, outcome.message
    crashes = ALONE if outcome.ending is Ending.SANDBOX_LOST else 0.0
    quarantined = bool(crashes) and is_poison(task.crashes + crashes, quarantine_after)
    match outcome.ending:
        case Ending.COMPLETED:
            status = Status.COMPLETED
        case Ending.CANCELLED:
            status = Status.CANCELLED
        case Ending.INVALID:
            status = Status.FAILED
        case Ending.MALICIOUS:
            status = Status.MALICIOUS
        case _ if quarantined:
            status = Status.FAILED
            message = f"{QUARANTINED}{message}\n{quarantine_note(task.id)}"
        case _:
            cause = _cause_of(outcome)
            retry_in, note = judge(task.retry, task.max_attempts, task.counted_attempt, cause, outcome.exit_code)
            status = Status.FAILED if retry_in is None else Status.PENDING
            message = f"{message}\n{note}" if note else message
    return Completion(
        task_id=task.id,
        attempt=task.attempt,
        status=status,
        exit_code=outcome.exit_code,
        output=outcome.output,
        error_output=outcome.error_output,
        last_error=_tellable(message) or None,
        retry_in=retry_in,
        webhook=task.webhook,
        crashes=crashes,
        quarantined=quarantined,
    )


def _cause_of(outcome: Outcome) -> Cause:
    match outcome.ending:
        case Ending.TIMED_OUT:
            return Cause.TIMEOUT
        case Ending.OUT_OF_MEMORY:
            return Cause.MEMORY
        case Ending.FAILED if outcome.exit_code is not None:
            return Cause.EXIT
    return Cause.ENGINE


def _tellable(message: str) -> str:
    """A message as any database can hold it, and short enough to be read: it may quote what comes out of a sandbox."""
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + "\n[cut]"
    return message.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")


class Completions:
    """The outcomes and releases that wait to be written."""

    def __init__(
        self,
        database: Database,
        state: WorkerState,
        telemetry: Telemetry,
        retry_scheduled: Signal,
        work: Signal,
        webhook_due: Signal | None = None,
        on_ended: Callable[[Iterable[int]], None] = lambda task_ids: None,
    ) -> None:
        self._database = database
        self._state = state
        self._telemetry = telemetry
        self._retry_scheduled = retry_scheduled
        self._claim_again = work
        self._webhook_due = webhook_due
        self._on_ended = on_ended
        self._outcomes: dict[Lease, Completion] = {}
        self._releases: set[Lease] = set()
        self._limit = BATCH_LIMIT
        self._backoff = Backoff()
        self._work = trio.Event()
        self._closed = False

    def put(self, completion: Completion) -> None:
        """Accept an outcome: from here on it is kept until the database has it."""
        self._outcomes[completion.lease] = completion
        self._work.set()

    def release(self, lease: Lease) -> None:
        """Accept a task to give back to pending without counting the attempt."""
        self._releases.add(lease)
        self._work.set()

    def close(self) -> None:
        """Nothing more will come: `run` returns once everything is written."""
        self._closed = True
        self._work.set()

    def __len__(self) -> int:
        return len(self._outcomes) + len(self._releases)

    def leases(self) -> Iterable[Lease]:
        """Every lease whose end is not written yet."""
        return [*self._outcomes, *self._releases]

    async def run(self) -> None:
        """Write what comes until `close`, batch after batch; a batch is whatever came while the last was written."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._outcomes or self._releases:
                if self._state.waiting:  # no slot stands idle meanwhile
                    await trio.sleep(LINGER)
                await self._write_outcomes()
                await self._write_releases()
            if self._closed:
                return

    async def _write_outcomes(self) -> None:
        """Write one batch, or learn that it cannot be written now."""
        batch = self._next_batch()
        if not batch:
            return
        began = trio.current_time()
        try:
            written = await self._database.complete(self._state.id, batch)
        except DatabaseUnavailable as error:
            note_database_failure(self._state, "completion", error)
            self._limit = max(1, len(batch) // SMALLER)
            for completion in batch:
                self._outcomes[completion.lease] = self._outcomes.pop(completion.lease)
            await trio.sleep(self._backoff.next_delay())
            return
        note_database_success(self._state)
        self._backoff.reset()
        self._limit = min(BATCH_LIMIT, self._limit * 2)
        self._claim_again.notify()  # it may have been held up by how much was unwritten
        for completion in batch:
            del self._outcomes[completion.lease]
            if completion.lease in written:
                self._count(completion)
            else:
                self._state.leases_lost += 1
                log.warning(
                    "a finished attempt had lost its lease; nothing was written",
                    **completion.lease._asdict(),
                    **trace_fields(self._telemetry.traceparent(completion.lease)),
                )
        self._on_ended(each.task_id for each in batch if each.lease in written and each.status is not Status.PENDING)
        self._telemetry.outcomes_written(batch, written, trio.current_time() - began)

    async def _write_releases(self) -> None:
        batch = list(self._releases)
        if not batch:
            return
        self._state.given_back += await until_available(
            self._state, "completion", lambda: self._database.release(self._state.id, batch)
        )
        self._releases.difference_update(batch)
        self._claim_again.notify()

    def _next_batch(self) -> list[Completion]:
        batch: list[Completion] = []
        size = 0
        for completion in self._outcomes.values():
            size += len(completion.output) + len(completion.error_output) + len(completion.last_error or "")
            if batch and (len(batch) == self._limit or size > BATCH_BYTES):
                break
            batch.append(completion)
        return batch

    def _count(self, completion: Completion) -> None:
        if completion.status is Status.PENDING:
            self._retry_scheduled.notify()
        else:
            self._state.count_finished(completion.status)
            if completion.webhook and self._webhook_due is not None:
                self._webhook_due.notify()
