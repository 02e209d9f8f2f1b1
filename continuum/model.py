"""The values that the parts of Continuum hand to each other.

Everything here is plain, frozen data: no I/O, no clock, no dependency on another part. A task's way through the
worker is `ClaimedTask` -> `Outcome` -> `Completion`; `TaskRecord` is what anybody may read back. What a task holds is left out
of the `repr` of what a worker handles: no message and no traceback shows it by accident.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from continuum.retry import RetryPolicy


class Status(enum.StrEnum):
    """The `status` column of TASKS. A row may hold another text (a foreign hand wrote it): nothing claims it."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    MALICIOUS = "malicious"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.MALICIOUS})
"""States that are written once and never left."""


class Lease(NamedTuple):
    """The right to write one task's outcome. `attempt` is the fencing token: it only grows, so an older lease on
    the same task can be told from a newer one for ever."""

    task_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to submit. Give `code` (source text) or `code_id` (a row of CODES), not both.

    requirements: what `code` imports beside the standard library, in the lines of a requirements file, each pinned.
    payload: JSON text, already encoded; None is SQL NULL, which a script sees as `null`.
    run_at: not before this time (aware, UTC); None means now.
    expires_at: not after this time (aware): a task of which no attempt has begun by then is cancelled, and none begins after it.
    timeout: seconds of wall time; None means the worker's TASK_TIMEOUT.
    webhook: a URL that is told when the task has ended.
    idempotency_window: seconds since the first task with this key was submitted, after which the key begins anew with this one;
    None: never, for as long as the first task is kept.
    unique: while a task of the tenant with the same code and payload is pending and was never begun, this one is that one.
    retry: whether and when it is tried again; None leaves it to its code, or to the default.
    worker_tags: tags that its worker must have, such as `gpu` or `eu`.
    sequence_key: tasks of a tenant with the same key run one after another, in the order of their ids, each when the one before
    has ended for good. concurrency_key: at most so many with the same key at a time as LIMITS says, one where it says nothing.
    depends_on: ids of tasks of the tenant that must have completed before; cancelled once one of them ends otherwise. Its script
    finds them in its payload: see `Dependency`. depends_any: one of them is enough. depends_ended: it is enough that they have
    ended, however.
    batch: the batch that it belongs to, a name of its tenant's. depends_batch: a batch whose tasks it depends on, all that are in
    it then, beside those of depends_on; its script finds in its payload how that one ended: see `BatchProgress`.
    """

    name: str = ""
    description: str | None = None
    code: str | None = field(default=None, repr=False)
    code_id: str | None = None
    requirements: str | None = None
    payload: str | None = field(default=None, repr=False)
    priority: int = 0
    max_attempts: int = 3
    timeout: float | None = None
    run_at: dt.datetime | None = None
    tenant: str | None = None
    idempotency_key: str | None = None
    traceparent: str | None = None
    webhook: str | None = None
    idempotency_window: float | None = None
    unique: bool = False
    retry: RetryPolicy | None = None
    expires_at: dt.datetime | None = None
    worker_tags: tuple[str, ...] = ()
    sequence_key: str | None = None
    concurrency_key: str | None = None
    depends_on: Sequence[int] = ()
    depends_any: bool = False
    depends_ended: bool = False
    batch: str | None = None
    depends_batch: str | None = None

    @property
    def gated(self) -> bool:
        """Whether it must be admitted before it can be claimed."""
        return _is_gated(self)


def _is_gated(task: NewTask | TaskRecord) -> bool:
    keyed = task.sequence_key is not None or task.concurrency_key is not None
    return keyed or bool(task.depends_on) or task.depends_batch is not None


@dataclass(frozen=True, slots=True)
class Dependency:
    """What a task is told of one that it depends on: `dependencies` in its payload is a list of these, in the order of
    `depends_on`.

    status: as in TASKS; `missing` where there is no such task of the tenant, or no more. output: None where it has not ended, or
    where there is no room for it, or for one before it, within `continuum.dependencies.OUTPUTS`: `left_out` says so.
    """

    id: int
    name: str
    status: str
    exit_code: int | None = None
    output: str | None = field(default=None, repr=False)
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How a batch stands: how many of its tasks are in each state. One that was tried again by a copy does not count, the copy
    does. A batch without tasks has not ended."""

    name: str
    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    malicious: int = 0

    @property
    def open(self) -> int:
        """How many of its tasks have not ended."""
        return self.pending + self.processing

    @property
    def total(self) -> int:
        """How many tasks it has."""
        return self.open + self.completed + self.failed + self.cancelled + self.malicious

    @property
    def ended(self) -> bool:
        """Whether all of its tasks have ended."""
        return self.total > 0 and not self.open


class Told(NamedTuple):
    """What a task is told of those that it depends on: of those of `depends_on` in their order, then of those of its batch by
    their ids, and how that stands."""

    dependencies: list[Dependency]
    batch: BatchProgress | None = None


@dataclass(frozen=True, slots=True)
class ClaimedTask:
    """One claimed attempt, with all that is needed to run it.

    code: the source text; None when the row names no code, or one that CODES does not hold.
    requirements: the pinned packages that CODES lists for it, in the lines of a requirements file.
    payload: JSON text (`null` for SQL NULL).
    released: attempts that ended without counting (the worker gave them back); see `counted_attempt`.
    timeout: seconds, None where the task leaves it to the worker.
    created_at: on the database's clock, UTC.
    description, last_error: shown to those who watch; last_error is the attempt's before this one.
    waited: seconds for which it could have been claimed, on the database's clock; None where it is not known.
    webhook: whether somebody is to be told when the task has ended.
    retry: its retry policy or its code's, JSON text that may be anything; None where neither has one.
    crashes: what it took down before, sandboxes and workers: see `continuum.retry.is_poison`.
    expires_in: seconds after the claim, on the database's clock, from which on it must not begin; None where it always may.
    depends: whether it is to be told of tasks that it depends on.
    """

    id: int
    attempt: int
    max_attempts: int
    released: int
    name: str
    code: str | None = field(repr=False)
    code_id: str | None
    payload: str = field(repr=False)
    priority: int
    timeout: float | None
    tenant: str | None
    traceparent: str | None
    created_at: dt.datetime
    description: str | None = None
    last_error: str | None = field(default=None, repr=False)
    requirements: str | None = None
    waited: float | None = None
    webhook: bool = False
    retry: str | None = None
    expires_in: float | None = None
    crashes: float = 0.0
    depends: bool = False

    @property
    def lease(self) -> Lease:
        return Lease(self.id, self.attempt)

    @property
    def counted_attempt(self) -> int:
        """Which try this is, not counting those that workers gave back: 1 is the first."""
        return self.attempt - self.released


class Claim(list[ClaimedTask]):
    """What a claim took. again_in: seconds until a rate limit that held something back allows the next start, 0 where there may
    be more behind tasks that are paused; None otherwise."""

    def __init__(self, tasks: Iterable[ClaimedTask] = (), again_in: float | None = None) -> None:
        super().__init__(tasks)
        self.again_in = again_in


class Ending(enum.StrEnum):
    """Why an attempt ended. Each has its own plain message in `Outcome.message`."""

    COMPLETED = "completed"
    FAILED = "failed"
    """The script ended with a non-zero exit code or by a signal of its own."""
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    SANDBOX_LOST = "sandbox_lost"
    """The sandbox died, or answered wrongly, while the script ran."""
    INVALID = "invalid"
    """The task can never run as it is written (its code does not exist): failed without another try."""
    MALICIOUS = "malicious"
    """CODE_POLICY=reject refused its code before it ran: no other try."""
    CANCELLED = "cancelled"


class Stream(enum.Enum):
    """Which of a script's two outputs a piece of text belongs to."""

    OUTPUT = "output"
    ERROR = "error_output"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended: a plain value, whatever happened.

    exit_code: the script's exit code; 128 + n when signal n ended it; None when there was none.
    output, error_output: text as the database can hold it (no NUL), capped at OUTPUT_LIMIT bytes each.
    message: one or more lines for `last_error`, the cause first; empty when completed.
    """

    ending: Ending
    exit_code: int | None = None
    output: str = field(default="", repr=False)
    error_output: str = field(default="", repr=False)
    message: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """What to write for one attempt. `status` is terminal, or PENDING to have the task tried again
    `retry_in` seconds from now, on the database's clock. webhook: whether somebody is to be told of the end. crashes: by how much
    the task's grow. quarantined: whether that is why it ends."""

    task_id: int
    attempt: int
    status: Status
    exit_code: int | None
    output: str = field(repr=False)
    error_output: str = field(repr=False)
    last_error: str | None = field(repr=False)
    retry_in: float | None = None
    webhook: bool = False
    crashes: float = 0.0
    quarantined: bool = False

    @property
    def lease(self) -> Lease:
        return Lease(self.task_id, self.attempt)


@dataclass(frozen=True, slots=True)
class PartialOutput:
    """The outputs of a running attempt so far, for those who watch it. shown: how many characters of each were written before and
    need not be again."""

    task_id: int
    attempt: int
    output: str = field(repr=False)
    error_output: str = field(repr=False)
    shown: Mapping[Stream, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """What a heartbeat learned. `lost` leases belong to somebody else by now (or the task is gone): what runs
    under them must stop and write nothing. `cancelled` ones are still held and should end as cancelled."""

    lost: frozenset[Lease]
    cancelled: frozenset[Lease]


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many expired leases the janitor sent back to pending, failed for good, or ended as cancelled."""

    retried: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.retried + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class Promoted:
    """How many scheduled tasks became claimable, and in how many seconds there will be more: 0 when there are more now, None
    when nothing is scheduled.

    expires_in: in how many seconds the next pending task will be too late; not above 0 when there is one now, None when none ever
    will.
    """

    count: int
    next_in: float | None
    expires_in: float | None = None


EXPIRED = "Expired: it had not begun by the time in its expires_at"
"""The first line of `last_error` of a task that was too late."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What came of a look at tasks that are not to be claimed yet.

    admitted: how many became claimable. seen: how many of them a page had. below: where the next page begins, None when there
    is none. parked: whether there are others whose code is, or was, paused. cancelled: those that waited for what cannot come any
    more; others may depend on them.
    """

    admitted: int
    seen: int = 0
    below: int | None = None
    parked: bool = False
    cancelled: tuple[int, ...] = ()

    def __add__(self, more: Admission) -> Admission:
        """Both together, for what is no page."""
        return Admission(self.admitted + more.admitted, cancelled=self.cancelled + more.cancelled)


class Cancellation(enum.StrEnum):
    """What became of a request to cancel a task."""

    CANCELLED = "cancelled"
    """It was pending and is cancelled now."""
    REQUESTED = "requested"
    """It is running; its worker stops it as soon as it learns of the request."""
    FINISHED = "finished"
    """It had already reached a terminal state, which stays."""
    UNKNOWN = "unknown"
    """There is no task with this id."""


class Retry(enum.StrEnum):
    """What became of a request to try a task again. A terminal state is never left: a copy is tried, under an id of its own."""

    SUBMITTED = "submitted"
    """A copy was submitted."""
    ALREADY = "already"
    """It had been tried again before; there is that copy, and no second one."""
    OPEN = "open"
    """It has not ended yet."""
    UNKNOWN = "unknown"
    """There is no task with this id."""


@dataclass(frozen=True, slots=True)
class Retried:
    """The answer to a request to try a task again. task_id: the copy, where there is one."""

    outcome: Retry
    task_id: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An attempt that ended in anything but completion.

    ending: `failed`, `lost` (its lease expired), `released` (its worker gave it back, uncounted), `cancelled`, `malicious`.
    started, ended: aware and UTC. message: what stood in `last_error`, cut to 2,000 characters.
    """

    attempt: int
    worker: str | None
    started: dt.datetime | None
    ended: dt.datetime
    ending: str
    exit_code: int | None
    message: str | None


HISTORY_LENGTH = 50
"""Attempts that a task remembers, the newest."""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One row of TASKS, read back. Times are aware and UTC. `status` is a `Status` where it is a known one.

    retry_of: the task of which this one is a copy. retried_as: the copy of this one. schedule: what made it, for the time due_at.
    history: how attempts ended so far, oldest first, but for one that completed. retry: as in `ClaimedTask`; where it says
    `max_attempts`, so does the record. quarantined: it failed because it took down what ran it. crashes: how often it did.
    admitted: whether one with a key, or that depends on others, may be claimed.
    """

    id: int
    name: str
    description: str | None
    status: str
    payload: str | None
    code_id: str | None
    priority: int
    attempt: int
    released: int
    max_attempts: int
    worker_id: str | None
    created_at: dt.datetime
    run_at: dt.datetime | None
    started: dt.datetime | None
    finished: dt.datetime | None
    lease_expires_at: dt.datetime | None
    timeout: float | None
    exit_code: int | None
    output: str | None
    error_output: str | None
    last_error: str | None
    tenant: str | None
    idempotency_key: str | None
    cancel_requested: bool
    traceparent: str | None
    webhook: str | None = None
    retry_of: int | None = None
    retried_as: int | None = None
    schedule: str | None = None
    due_at: dt.datetime | None = None
    history: tuple[AttemptRecord, ...] = ()
    retry: str | None = None
    expires_at: dt.datetime | None = None
    crashes: float = 0.0
    quarantined: bool = False
    worker_tags: tuple[str, ...] = ()
    sequence_key: str | None = None
    concurrency_key: str | None = None
    admitted: bool = False
    depends_on: tuple[int, ...] = ()
    depends_any: bool = False
    depends_ended: bool = False
    batch: str | None = None
    depends_batch: str | None = None

    @property
    def gated(self) -> bool:
        """Whether it waits for others, and is to be admitted."""
        return not self.admitted and _is_gated(self)

    @property
    def finished_for_good(self) -> bool:
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list; what is left out does not count.

    text: an id, or a part of a name in any case. statuses: any of them. error: the group of `FailureGroup.error`.
    since: created then (aware) or later. before: ids below this one, to go on where a page ended. limit: how many. quarantined:
    only such.
    """

    text: str = ""
    statuses: frozenset[str] = frozenset()
    tenant: str | None = None
    worker_id: str | None = None
    error: str | None = None
    since: dt.datetime | None = None
    before: int | None = None
    limit: int = 50
    quarantined: bool = False
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class EndedFilter:
    """Which tasks that have ended to archive.

    status: how they ended. older_than: seconds since then, at least. tenant, name: as in `TaskFilter.tenant` and `.text`.
    """

    status: Status
    older_than: float = 0.0
    tenant: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task as it was found to have ended; nothing is done with it that was changed since. size: bytes of its texts, about."""

    id: int
    attempt: int
    finished: dt.datetime
    size: int


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """What a list of tasks shows of each. error: the first line of `last_error`, at most 300 characters."""

    id: int
    name: str
    status: str
    priority: int
    tenant: str | None
    attempt: int
    max_attempts: int
    worker_id: str | None
    created_at: dt.datetime
    run_at: dt.datetime | None
    started: dt.datetime | None
    finished: dt.datetime | None
    exit_code: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which failed tasks to try again; what is left out does not count. Never one in quarantine, nor one that was tried again.

    name: a part of it in any case. error: the group of `FailureGroup.error`. since: failed then (aware) or later.
    """

    tenant: str | None = None
    name: str | None = None
    error: str | None = None
    code_id: str | None = None
    since: dt.datetime | None = None


class DeadLetterPlace(NamedTuple):
    """How far a look at failed tasks has come, which goes from the newest to the oldest."""

    finished: dt.datetime
    task_id: int


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """Failed tasks, those that failed last first. next: where the next page begins; None after the last one."""

    tasks: tuple[TaskSummary, ...]
    next: DeadLetterPlace | None


@dataclass(frozen=True, slots=True)
class RunningTask:
    """What a list of running tasks shows of each. tail: the end of its output, or of its error output where there is no other."""

    id: int
    name: str
    tenant: str | None
    attempt: int
    worker_id: str | None
    started: dt.datetime | None
    tail: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Tasks that failed alike.

    error: the first line of their `last_error` with `#` for numbers. names: the first and the last of theirs in alphabetical
    order, one where all have the same.
    """

    error: str
    count: int
    newest_id: int
    newest_at: dt.datetime
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many tasks of one priority have not ended."""

    priority: int
    pending: int
    scheduled: int
    running: int


@dataclass(frozen=True, slots=True)
class CodeRecord:
    """One row of CODES. requirements: the lines of a requirements file, in their normal form; None when there are none.

    retry: how its tasks are tried again, JSON text.
    """

    id: str
    code: str
    requirements: str | None
    retry: str | None = None


@dataclass(frozen=True, slots=True)
class CodeSummary:
    """What a list of codes shows of each. size: characters. first_line: at most 120 characters of it."""

    id: str
    lines: int
    size: int
    first_line: str
    requirements: str | None


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One delivery that is due. `tries` counts this one and is its fencing token. error: as in `TaskSummary`."""

    task_id: int
    url: str
    tries: int
    name: str
    status: str
    tenant: str | None
    attempt: int
    exit_code: int | None
    error: str | None
    created_at: dt.datetime
    started: dt.datetime | None
    finished: dt.datetime


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says of itself in WORKERS with every heartbeat.

    finished_last_hour: attempts that reached a terminal state here within the last hour. drained: it was asked to drain, and
    holds no task any more.
    """

    id: str
    host: str
    pid: int
    version: str
    slots: int
    running: int
    sandbox: str
    finished_last_hour: int = 0
    drained: bool = False


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One row of WORKERS, read back. `alive` is the database's view: seen within three leases and not stopped.

    draining: it was asked to claim nothing more. drained: it said that it does not, and holds no task any more.
    """

    id: str
    host: str
    pid: int
    version: str
    slots: int
    running: int
    sandbox: str
    started_at: dt.datetime
    seen_at: dt.datetime
    stopped_at: dt.datetime | None
    alive: bool
    completed: int
    failed: int
    cancelled: int
    malicious: int
    finished_last_hour: int
    draining: bool = False
    drained: bool = False

    @property
    def state(self) -> str:
        """`alive`, `draining`, `drained`, `stopped` (it ended in order) or `lost`."""
        if not self.alive:
            return "stopped" if self.stopped_at else "lost"
        if not self.draining:
            return "alive"
        return "drained" if self.drained else "draining"


class Scope(enum.StrEnum):
    """What a row of LIMITS is about."""

    TENANT = "tenant"
    KEY = "key"
    TAG = "tag"
    CODE = "code"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Limit:
    """A row of LIMITS: what is None is not limited by it, but by the row named `*`, of all in its scope, where there is one.

    weight: a tenant's share, compared with 1. max_running: at a time. rate: starts in any period of rate_period seconds.
    max_pending: open tasks that have not begun. All of them of all workers together.
    """

    scope: Scope
    name: str
    weight: float | None = None
    max_running: int | None = None
    rate: int | None = None
    rate_period: float | None = None
    max_pending: int | None = None
    paused: bool | None = None


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A row of LIMITS, and how much of it is used.

    running: permits of `max_running` that are taken. starts: those of `rate`, in the period that ends now. None where it has no
    such limit, or is not a tenant's own: those named `*` are kept for each tenant apart.
    """

    limit: Limit
    running: int | None
    starts: int | None


class HeldBackBy(enum.StrEnum):
    """What due tasks wait for that is no worker."""

    QUEUE_PAUSED = "queue_paused"
    CODE_PAUSED = "code_paused"
    """Only what a claim has met since the code was paused."""
    TENANT_PAUSED = "tenant_paused"
    TAG_PAUSED = "tag_paused"
    MAX_RUNNING = "max_running"
    RATE = "rate"
    OTHER_TASKS = "other_tasks"
    """Their turn: they have a sequence or concurrency key, or depend on others."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """How many due tasks, of how many tenants, wait for something that is no worker."""

    reason: HeldBackBy
    tenants: int
    tasks: int


@dataclass(frozen=True, slots=True)
class WaitsFor:
    """What one task waits for that is pending and due.

    reason: None where it is no more than a worker. others: tasks that must end before, the first `OTHERS_NAMED` of them.
    """

    reason: HeldBackBy | None
    others: tuple[int, ...] = ()


OTHERS_NAMED = 20


@dataclass(frozen=True, slots=True)
class Statistics:
    """Totals over the whole system, cheap to read however large TASKS is.

    Finished tasks are totals since the schema was created (retention does not lower them); pending and running
    are counted now. `other` are rows with a status that Continuum does not know.
    """

    pending: int
    scheduled: int
    running: int
    completed: int
    failed: int
    cancelled: int
    malicious: int
    avg_execution_seconds: float
    throughput_tasks_per_hour: float
    workers: int

    @property
    def total(self) -> int:
        ended = self.completed + self.failed + self.cancelled + self.malicious
        return self.pending + self.scheduled + self.running + ended


class Wakeup(enum.Enum):
    """Why the database woke us. Spurious ones are harmless; lost ones are caught by the fallback poll."""

    PENDING = "pending"
    """Some task became claimable."""
    CANCEL = "cancel"
    """Somebody asked to cancel a running task."""
    SCHEDULED = "scheduled"
    """A task was given a time to run at, which may be sooner than the next one known."""
    SCHEDULES = "schedules"
    """A schedule was changed: its due time is to be worked out."""
    GATED = "gated"
    """There is a task that must be admitted before it can be claimed."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One script to run in a sandbox.

    payload: JSON text. timeout: seconds of wall time. output_limit: bytes kept of each output.
    environment: variables for the script beside the usual ones.
    requirements: as in `ClaimedTask`.
    """

    task_id: int
    attempt: int
    code: str = field(repr=False)
    payload: str = field(repr=False)
    timeout: float
    output_limit: int
    environment: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    requirements: str | None = None
