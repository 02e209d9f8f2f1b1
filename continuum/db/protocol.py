"""The one interface between Continuum and a database: the verbs of the domain.

Implementations: `database.SqlDatabase` for PostgreSQL and CockroachDB, `memory.MemoryDatabase` for tests. One test suite,
tests/db/test_adapter.py, runs unchanged on each of them.

Every method has a deadline of its own inside the adapter and raises `DatabaseUnavailable` (or `OutcomeUnknown`, where
a write may have happened) when the database does not answer in time. All methods may be called from several tasks at
once; `heartbeat` never waits for a connection that another method uses. Leases and due times are compared on the
database's clock.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Protocol

from continuum.db.protocol_schedules import Schedules
from continuum.model import (
    Admission,
    BatchProgress,
    Cancellation,
    Claim,
    CodeRecord,
    CodeSummary,
    Completion,
    DeadLetterFilter,
    DeadLetterPage,
    DeadLetterPlace,
    EndedFilter,
    EndedTask,
    FailureGroup,
    HeartbeatAnswer,
    HeldBack,
    Lease,
    Limit,
    LimitUse,
    NewTask,
    PartialOutput,
    Promoted,
    QueueDepth,
    Recovered,
    Retried,
    RunningTask,
    Scope,
    Statistics,
    Status,
    TaskFilter,
    TaskRecord,
    TaskSummary,
    Told,
    WaitsFor,
    Wakeup,
    WebhookDelivery,
    WorkerRecord,
    WorkerReport,
)
from continuum.retry import RetryPolicy


class Listener(Protocol):
    """Who wants to be woken, and what a database may know of it to choose how."""

    @property
    def worker_id(self) -> str: ...

    @property
    def claimed(self) -> int:
        """Tasks claimed so far: while it grows, work flows."""
        ...

    @property
    def running(self) -> int:
        """Tasks that run now."""
        ...

    @property
    def saturated(self) -> bool:
        """Whether every slot is taken: a worker that claims again by itself, as soon as it has finished something."""
        ...

    def wake(self, wakeup: Wakeup) -> None:
        """Something changed. Never blocks."""
        ...


class Database(Schedules, Protocol):
    """A queue of tasks in a database. Use it inside the `async with open_database(settings)` that made it."""

    @property
    def dialect(self) -> str:
        """`postgres`, `cockroach` or `memory`."""
        ...

    # -- the schema ------------------------------------------------------------------------------------------------

    async def migrate(self) -> int:
        """Apply the schema (safe to repeat, safe to run concurrently) and return its version."""
        ...

    async def check_schema(self) -> None:
        """Raise `SchemaMismatch`, naming the command to run, when the schema is missing or older than ours."""
        ...

    async def ping(self) -> None:
        """Return when the database answers a trivial query."""
        ...

    # -- a worker's verbs ------------------------------------------------------------------------------------------

    async def claim(
        self,
        worker_id: str,
        limit: int,
        *,
        lease: float,
        min_priority: int = 0,
        max_priority: int = 0,
        tags: Sequence[str] = (),
        beyond: int | None = None,
    ) -> Claim:
        """Claim up to `limit` due pending tasks: of each tenant its share, as LIMITS weighs and limits it, in order of priority,
        then id. Return them in that order.

        lease: seconds until the claim expires unless a heartbeat extends it.
        min_priority, max_priority: inclusive bounds; 0 leaves that end open.
        tags: the worker's; tasks that ask for others are left to others.
        beyond: only tasks whose priority number is greater than this one, so that lower ones have their turn.
        """
        ...

    async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        """Write outcomes, each only if its attempt is still `worker_id`'s, and count them in WORKERS, in one
        statement. Return the leases whose outcome stands in the record because of this call or an earlier
        identical one; the others had passed to somebody else and nothing of theirs was changed.
        Safe to repeat after `OutcomeUnknown`."""
        ...

    async def release(self, worker_id: str, leases: Sequence[Lease]) -> int:
        """Give claimed tasks back to pending, at once claimable, without counting the attempt (a task whose
        cancellation was requested ends as cancelled instead). Return how many were still ours."""
        ...

    async def release_except(self, worker_id: str, held: Sequence[Lease]) -> int:
        """Give back every task that the record says `worker_id` processes but that is not in `held`: claims whose
        answer never arrived. Call it only while no claim is under way. Return how many."""
        ...

    async def heartbeat(self, worker_id: str, held: Sequence[Lease], *, lease: float) -> HeartbeatAnswer:
        """Extend the leases in `held` that are still `worker_id`'s, expired or not, to `lease` seconds from now."""
        ...

    async def progress(self, worker_id: str, written: Sequence[PartialOutput]) -> None:
        """Show what running tasks have written so far, each only if its attempt is still `worker_id`'s. Safe to repeat."""
        ...

    async def report(self, worker: WorkerReport) -> bool:
        """Insert or refresh the worker's row in WORKERS. Returns whether it is to drain: claim nothing more."""
        ...

    async def sign_off(self, worker_id: str) -> None:
        """Say in WORKERS that the worker has stopped."""
        ...

    # -- housekeeping, by whichever worker comes first -----------------------------------------------------------------

    async def promote(self, limit: int = 1000) -> Promoted:
        """Make up to `limit` scheduled tasks that are due claimable."""
        ...

    async def cancel_late(self, worker_id: str, limit: int = 1000) -> int:
        """End up to `limit` pending tasks whose `expires_at` has passed as cancelled; return how many. They are counted in
        WORKERS under `worker_id`."""
        ...

    async def admit_after(self, ended: Sequence[int]) -> Admission:
        """Make claimable what waited for these tasks, which have ended, and need wait no more; cancel what depends on them and
        cannot come any more (see `continuum.dependencies`). The latter are counted in WORKERS under `admission`."""
        ...

    async def admit_page(self, below: int | None = None) -> Admission:
        """Make claimable whatever need wait no more, of the newest tasks that wait for others, with ids below one, and cancel
        what depends on others in vain; where the next page begins is in the answer."""
        ...

    async def dependencies(self, task_id: int) -> Told:
        """What a task is told of those that it depends on."""
        ...

    async def batch(self, tenant: str | None, name: str) -> BatchProgress:
        """How a batch of a tenant stands. It counts the tasks of the batch."""
        ...

    async def resume_codes(self, limit: int = 1000) -> int:
        """Have up to `limit` tasks claimed again that claims met while their code was paused, which it is no more; return how
        many."""
        ...

    async def recover(self, worker_id: str, limit: int = 100, *, quarantine_after: int = 0) -> Recovered:
        """End up to `limit` attempts whose lease expired: back to pending with backoff where the retry policy says so,
        else failed with a message that starts with "Timeout/Crash: "; cancelled where that was requested.
        What has taken down too much is not tried again (QUARANTINE_AFTER; 0: never).
        Failures are counted in WORKERS under `worker_id`."""
        ...

    async def take_duty(self, name: str, worker_id: str, seconds: float) -> bool:
        """Take something that one worker at a time does, or keep it, for so many seconds; False while another has it."""
        ...

    async def expire(self, ages: Mapping[Status, float]) -> bool:
        """Have the database itself delete, from now on, tasks that ended so more than so many seconds ago, and no others: none at
        all where none are named. False where it cannot, or may not: `purge` them then."""
        ...

    async def purge(self, status: Status, older_than: float, limit: int = 1000) -> int:
        """Delete up to `limit` tasks that ended so more than `older_than` seconds ago, the oldest first; return how many."""
        ...

    async def ended(self, wanted: EndedFilter, limit: int = 1000, after: Sequence[EndedTask] = ()) -> list[EndedTask]:
        """Find tasks that have ended, those first that ended first. after: those that were found before, to go on; only the ones
        that ended last count."""
        ...

    async def delete_ended(self, tasks: Sequence[EndedTask]) -> int:
        """Delete these tasks, but for those that were changed since they were found, or that somebody holds locked; return how
        many."""
        ...

    async def claim_webhooks(self, limit: int, *, lease: float) -> list[WebhookDelivery]:
        """Take up to `limit` deliveries that are due, the longest due first; they are due again after `lease` seconds."""
        ...

    async def settle_webhook(self, delivery: WebhookDelivery, again_in: float | None) -> bool:
        """Have a delivery that was taken made again in so many seconds, or never (None). False when it was taken anew since."""
        ...

    async def put_off_webhooks(self, delays: Mapping[WebhookDelivery, float]) -> None:
        """Give back deliveries that were taken and not made, to be taken again in so many seconds; these tries do not count."""
        ...

    # -- a producer's verbs ----------------------------------------------------------------------------------------

    async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
        """Insert tasks in one transaction, and their code (one CODES row for each distinct source text and list of
        requirements), and return their ids in order. A task whose (tenant, idempotency_key) exists already yields the
        id of the first one, within its `idempotency_window`; a `unique` one that of an equal one that has not begun.
        Raises `InvalidTask` when the database refuses one, or one depends on a task that is not there, and `QueueFull` when
        LIMITS allows no more pending ones: none of them is inserted then. What others submitted within about a second may not
        count for that yet."""
        ...

    async def cancel(self, task_id: int) -> Cancellation:
        """Cancel a pending task, or ask the worker of a running one to stop it."""
        ...

    async def retry(self, task_id: int) -> Retried:
        """Submit a copy of a task that has ended: the same code, payload and limits, with an id of its own. It depends on the
        last copies of what that one depends on, as far as there are some, and counts in its batch in its place. A task has one
        copy at most, so that this is safe to repeat."""
        ...

    async def limits(self) -> list[Limit]:
        """All rows of LIMITS, in order."""
        ...

    async def limit_uses(self, limit: int = 200) -> list[LimitUse]:
        """The first rows of LIMITS, each with how much of it is used. Costs as much as `statistics`."""
        ...

    async def held_back(self) -> list[HeldBack]:
        """What due tasks wait for that is no worker; each task counts once. Costs as much as `statistics`."""
        ...

    async def waits_for(self, task_id: int) -> WaitsFor | None:
        """What a task waits for; None where it is not there, not pending, or not due yet."""
        ...

    async def set_limit(self, limit: Limit) -> None:
        """Insert or replace a row of LIMITS: it holds from the next claim or submission on. Raises `InvalidLimit`."""
        ...

    async def clear_limit(self, scope: Scope, name: str) -> bool:
        """Remove a row of LIMITS; False where there is none."""
        ...

    async def drain(self, worker_id: str, draining: bool = True) -> bool:
        """Ask a worker to claim nothing more, give back what it has not begun and finish what runs, or (False) to claim again. It
        learns of it at its next heartbeat, and `WorkerRecord.drained` says when it is done. False where no such worker runs."""
        ...

    async def dead_letters(self, wanted: DeadLetterFilter, before: DeadLetterPlace | None = None) -> DeadLetterPage:
        """Which tasks that failed may be tried again. A page looks at `statements.DEAD_LETTERS_SEEN` failed tasks, of which few
        may fit, or none. What fails meanwhile is on none of the pages to come."""
        ...

    async def retry_many(self, task_ids: Sequence[int]) -> list[int]:
        """Submit copies of those of these tasks that have ended and have none, in one statement; return the copies' ids. Safe to
        repeat."""
        ...

    async def store_code(self, code: str, requirements: str | None = None, retry: RetryPolicy | None = None) -> str:
        """Store a script in CODES and return its id; equal scripts that require the same share a row. retry: how its tasks
        are tried again from now on; None leaves it as it is. Raises `InvalidTask`."""
        ...

    async def fetch(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        """Read tasks; unknown ids are left out. Order follows `task_ids`."""
        ...

    async def still_open(self, task_ids: Sequence[int]) -> frozenset[int]:
        """Which of these tasks are pending or processing; cheap enough to ask often."""
        ...

    async def statistics(self, *, latest: bool = False) -> Statistics:
        """Totals for /global-status, in a time that does not grow with the number of finished tasks. CockroachDB counts
        as of about five seconds ago, which disturbs nobody, unless the `latest` are asked for."""
        ...

    async def oldest_pending(self, *, latest: bool = False) -> float | None:
        """For how many seconds the task has waited that has waited longest, of those that come next in each priority; None
        when none waits. Time before it was due, and of earlier attempts, is no waiting. Costs as much as `statistics`, and is of
        the same moment."""
        ...

    async def workers(self) -> list[WorkerRecord]:
        """The workers seen within the last day, newest first."""
        ...

    async def search(self, wanted: TaskFilter) -> list[TaskSummary]:
        """The newest tasks that fit, among the newest `statements.SEARCHED` below `wanted.before`."""
        ...

    async def running(self, limit: int = 30, tail: int = 500) -> list[RunningTask]:
        """The running tasks, those that began first, with the last `tail` characters of their output as far as it was shown."""
        ...

    async def failures(self, since: dt.datetime, limit: int = 50) -> list[FailureGroup]:
        """Tasks that ended as failed or malicious since then, in groups, the largest first; of very many, the newest count."""
        ...

    async def depths(self, limit: int = 50) -> list[QueueDepth]:
        """How many tasks have not ended, by priority, the most urgent first."""
        ...

    async def fetch_code(self, code_id: str) -> CodeRecord | None:
        """Read a row of CODES; None where there is none with this id."""
        ...

    async def codes(self, limit: int = 50, after: str | None = None) -> list[CodeSummary]:
        """Rows of CODES in order of their ids, those after `after`."""
        ...

    # -- waking up -------------------------------------------------------------------------------------------------

    async def listen(self, listener: Listener) -> None:
        """Wake `listener` whenever there may be something for it, until the connection breaks, which raises
        `DatabaseUnavailable`; never returns. It wakes for everything once nothing committed from then on can be
        missed. Wake-ups may be spurious, repeated and merged."""
        ...
