"""A database in memory, for tests of the worker and of programs that submit tasks: no server, no file, and time is
Trio's, so that leases and schedules run on a virtual clock. It passes the same suite as the real adapters."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from continuum.db import searching
from continuum.db.admission import PAGE
from continuum.db.codes import Code, code_of
from continuum.db.dialect import SCHEMA_VERSION
from continuum.db.errors import DatabaseUnavailable, InvalidTask, SchemaMismatch
from continuum.db.insertion import absent, batches_elsewhere, empty, unique_key_of
from continuum.db.memory_admission import MemoryAdmission, other_of
from continuum.db.memory_fair import MemoryLimits
from continuum.db.memory_schedules import MemorySchedules
from continuum.db.protocol import Listener
from continuum.db.room import Limits, Room
from continuum.db.statements import DEAD_LETTERS_SEEN
from continuum.db.validation import check_limit, check_new_tasks
from continuum.dependencies import MOST_DEPENDENCIES, fitting, told
from continuum.model import (
    EXPIRED,
    HISTORY_LENGTH,
    TERMINAL,
    Admission,
    AttemptRecord,
    BatchProgress,
    Cancellation,
    Claim,
    ClaimedTask,
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
    Retry,
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
from continuum.retry import QUARANTINED, RetryPolicy, attempts_of, judge_loss, policy_text
from continuum.schedules import ScheduleRecord

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ALIVE_FOR = 90.0
"""Seconds since its last report for which a worker counts as alive."""


def _now() -> dt.datetime:
    return EPOCH + dt.timedelta(seconds=trio.current_time())


def _in(seconds: float) -> dt.datetime:
    return _now() + dt.timedelta(seconds=seconds)


@dataclass
class MemoryDatabase(MemorySchedules):
    """One queue in memory; several workers may share it.

    unavailable: every method raises `DatabaseUnavailable` while it is True. schema_problem: what `check_schema`
    complains of.
    """

    unavailable: bool = False
    schema_problem: str | None = None
    dialect: str = "memory"
    tasks: dict[int, TaskRecord] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _scripts: dict[str, Code] = field(default_factory=dict)
    _policies: dict[str, str] = field(default_factory=dict)
    """The retry policies of scripts."""
    _workers: dict[str, WorkerRecord] = field(default_factory=dict)
    _execution_seconds: float = 0.0
    _totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TERMINAL, 0))
    _listeners: list[Listener] = field(default_factory=list)
    _webhooks: dict[int, tuple[dt.datetime | None, int]] = field(default_factory=dict)
    """When each task's webhook is due, and how often it was tried."""
    _unique_keys: dict[int, str] = field(default_factory=dict)
    _superseded: set[int] = field(default_factory=set)
    """Tasks in whose place copies count in their batches."""
    _limits: MemoryLimits = field(default_factory=MemoryLimits)
    _queued_at: dict[int, dt.datetime] = field(default_factory=dict)
    """Since when tasks wait that did not begin to when they were created."""
    _duties: dict[str, tuple[str, dt.datetime]] = field(default_factory=dict)
    """Who does what one worker at a time does, and until when."""
    schedule_rows: dict[str, ScheduleRecord] = field(default_factory=dict)
    _fired_for: dict[tuple[str, dt.datetime], int] = field(default_factory=dict)
    """The task of each schedule and due time."""

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.unavailable:
            raise DatabaseUnavailable("the in-memory database was made unavailable")

    def _time(self) -> dt.datetime:
        return _now()

    # -- the schema ------------------------------------------------------------------------------------------------

    async def migrate(self) -> int:
        await self._answer()
        self.schema_problem = None
        return SCHEMA_VERSION

    async def check_schema(self) -> None:
        await self._answer()
        if self.schema_problem is not None:
            raise SchemaMismatch(self.schema_problem)

    async def ping(self) -> None:
        await self._answer()

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
        await self._answer()
        due = [
            task
            for task in self.tasks.values()
            if task.status == Status.PENDING
            and task.run_at is None
            and not task.gated
            and (not min_priority or task.priority >= min_priority)
            and (beyond is None or task.priority > beyond)
            and (not max_priority or task.priority <= max_priority)
        ]
        due.sort(key=lambda task: (task.priority, task.id))
        chosen, again_in = self._limits.choose(worker_id, tags, due, self._running(), limit, trio.current_time())
        chosen.sort(key=lambda task: (task.priority, task.id))
        return Claim((self._claim(task, worker_id, lease) for task in chosen), again_in)

    def _claim(self, task: TaskRecord, worker_id: str, lease: float) -> ClaimedTask:
        task = self.tasks[task.id] = replace(
            task,
            status=Status.PROCESSING,
            worker_id=worker_id,
            attempt=task.attempt + 1,
            started=_now(),
            finished=None,
            lease_expires_at=_in(lease),
            exit_code=None,
            output=None,
            error_output=None,
        )
        code = self._scripts.get(task.code_id or "")
        return ClaimedTask(
            id=task.id,
            attempt=task.attempt,
            max_attempts=task.max_attempts,
            released=task.released,
            name=task.name,
            code=code.text if code else None,
            code_id=task.code_id,
            payload="null" if task.payload is None else task.payload,
            priority=task.priority,
            timeout=task.timeout,
            tenant=task.tenant,
            traceparent=task.traceparent,
            created_at=task.created_at,
            waited=(_now() - self._queued_at.get(task.id, task.created_at)).total_seconds(),
            description=task.description,
            last_error=task.last_error,
            requirements=code.requirements if code else None,
            webhook=task.webhook is not None,
            retry=self._policy(task),
            crashes=task.crashes,
            expires_in=(task.expires_at - _now()).total_seconds() if task.expires_at else None,
            depends=bool(task.depends_on) or task.depends_batch is not None,
        )

    def _policy(self, task: TaskRecord) -> str | None:
        """Its own retry policy, or its script's."""
        return task.retry or self._policies.get(task.code_id or "")

    def _holds(self, worker_id: str, lease: Lease) -> TaskRecord | None:
        task = self.tasks.get(lease.task_id)
        if task is None or task.status != Status.PROCESSING:
            return None
        return task if (task.worker_id, task.attempt) == (worker_id, lease.attempt) else None

    async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        await self._answer()
        written = set()
        for completion in completions:
            task = self._holds(worker_id, completion.lease)
            if task is not None:
                self._end(
                    task,
                    completion.status,
                    completion.last_error,
                    completion.retry_in,
                    {Status.PENDING: "failed", Status.COMPLETED: ""}.get(completion.status, completion.status),
                    exit_code=completion.exit_code,
                    crashes=task.crashes + completion.crashes,
                    quarantined=completion.quarantined,
                    output=completion.output,
                    error_output=completion.error_output,
                )
                written.add(completion.lease)
            elif self._stands(worker_id, completion):
                written.add(completion.lease)
        return frozenset(written)

    def _stands(self, worker_id: str, completion: Completion) -> bool:
        """Whether an earlier identical call wrote this outcome."""
        task = self.tasks.get(completion.task_id)
        if task is None or (task.attempt, task.last_error) != (completion.attempt, completion.last_error):
            return False
        if completion.status is Status.PENDING and task.status is Status.PENDING:
            return True
        return task.worker_id == worker_id and task.status in (completion.status, Status.CANCELLED)

    def _end(
        self,
        task: TaskRecord,
        status: Status,
        error: str | None,
        retry_in: float | None,
        ending: str = "",
        **values: object,
    ) -> None:
        said = None if ending == "released" else error
        if status is Status.PENDING and task.cancel_requested:
            status = Status.CANCELLED
            ending = "cancelled" if ending == "released" else ending
        again = status is Status.PENDING
        if task.webhook is not None and not again:
            self._webhooks[task.id] = (_now(), 0)
        self.tasks[task.id] = replace(
            task,
            history=(*task.history, _attempt(task, ending, said, values))[-HISTORY_LENGTH:] if ending else task.history,
            status=status,
            last_error=error,
            finished=None if again else _now(),
            worker_id=None if again else task.worker_id,
            run_at=_in(retry_in) if again and retry_in else None,
            lease_expires_at=None,
            **values,  # type: ignore[arg-type]
        )
        if again:
            self._notify(Wakeup.SCHEDULED if retry_in else Wakeup.PENDING)
            return
        self._totals[status] += 1
        if status is Status.COMPLETED and task.started is not None:
            self._execution_seconds += (_now() - task.started).total_seconds()

    async def release(self, worker_id: str, leases: Sequence[Lease]) -> int:
        await self._answer()
        held = [task for task in (self._holds(worker_id, lease) for lease in leases) if task is not None]
        for task in held:
            self._queued_at[task.id] = _now()
            self._end(replace(task, released=task.released + 1), Status.PENDING, task.last_error, None, "released")
        return len(held)

    async def release_except(self, worker_id: str, held: Sequence[Lease]) -> int:
        leases = [
            Lease(task.id, task.attempt)
            for task in self.tasks.values()
            if task.status == Status.PROCESSING and task.worker_id == worker_id
        ]
        return await self.release(worker_id, [lease for lease in leases if lease not in held])

    async def heartbeat(self, worker_id: str, held: Sequence[Lease], *, lease: float) -> HeartbeatAnswer:
        await self._answer()
        lost, cancelled = set(), set()
        for each in held:
            task = self._holds(worker_id, each)
            if task is None:
                lost.add(each)
                continue
            self.tasks[task.id] = replace(task, lease_expires_at=_in(lease))
            if task.cancel_requested:
                cancelled.add(each)
        return HeartbeatAnswer(frozenset(lost), frozenset(cancelled))

    async def progress(self, worker_id: str, written: Sequence[PartialOutput]) -> None:
        await self._answer()
        for output in written:
            task = self._holds(worker_id, Lease(output.task_id, output.attempt))
            if task is not None:
                self.tasks[task.id] = replace(task, output=output.output, error_output=output.error_output)

    async def report(self, worker: WorkerReport) -> bool:
        await self._answer()
        known = self._workers.get(worker.id)
        self._workers[worker.id] = WorkerRecord(
            id=worker.id,
            host=worker.host,
            pid=worker.pid,
            version=worker.version,
            slots=worker.slots,
            running=worker.running,
            sandbox=worker.sandbox,
            started_at=known.started_at if known else _now(),
            seen_at=_now(),
            stopped_at=None,
            alive=True,
            completed=0,
            failed=0,
            cancelled=0,
            malicious=0,
            finished_last_hour=worker.finished_last_hour,
            draining=known.draining if known else False,
            drained=worker.drained,
        )
        return self._workers[worker.id].draining

    async def sign_off(self, worker_id: str) -> None:
        await self._answer()
        if worker_id in self._workers:
            self._workers[worker_id] = replace(self._workers[worker_id], running=0, stopped_at=_now())

    # -- housekeeping ------------------------------------------------------------------------------------------------

    async def promote(self, limit: int = 1000) -> Promoted:
        await self._answer()
        parked = sorted(
            (task.run_at, task.id) for task in self.tasks.values() if task.status == Status.PENDING and task.run_at
        )
        due = [task_id for run_at, task_id in parked if run_at <= _now()]
        promoted = due[:limit]
        for task_id in promoted:
            self._queued_at[task_id] = self.tasks[task_id].run_at or _now()
            task = self.tasks[task_id] = replace(self.tasks[task_id], run_at=None)
            self._notify(Wakeup.GATED if task.gated else Wakeup.PENDING)
        later = parked[len(promoted) :]
        expiries = [
            task.expires_at for task in self.tasks.values() if task.status == Status.PENDING and task.expires_at
        ]
        return Promoted(
            len(promoted),
            max(0.0, (later[0][0] - _now()).total_seconds()) if later else None,
            (min(expiries) - _now()).total_seconds() if expiries else None,
        )

    async def cancel_late(self, worker_id: str, limit: int = 1000) -> int:
        await self._answer()
        pending = [task for task in self.tasks.values() if task.status == Status.PENDING]
        late = [task for task in pending if task.expires_at and task.expires_at <= _now()][:limit]
        for task in late:
            error = EXPIRED if task.last_error is None else f"{EXPIRED}\n{task.last_error}"
            self._end(task, Status.CANCELLED, error, None)
        return len(late)

    async def admit_after(self, ended: Sequence[int]) -> Admission:
        await self._answer()
        done = self._admitted([], self._admission().dependents(ended))
        for key, kinds in self._admission().batches_of(ended):
            done += self._admitted([], self._admission().dependents_of_batch(key, kinds))
        return done + self._admitted(ended, [])

    async def admit_page(self, below: int | None = None) -> Admission:
        await self._answer()
        page = self._admission().page(below)
        admission = self._admitted(page, page)
        in_circles = self._admission().in_circles(page)
        self._refuse(in_circles)
        cancelled = (*admission.cancelled, *in_circles)
        return replace(admission, seen=len(page), below=min(page) if len(page) == PAGE else None, cancelled=cancelled)

    async def resume_codes(self, limit: int = 1000) -> int:
        await self._answer()
        return 0  # claims leave out what is paused, wherever it is

    def _admission(self) -> MemoryAdmission:
        return MemoryAdmission(self.tasks, self._limits.rows, self._superseded)

    def _admitted(self, seeds: Iterable[int], candidates: Iterable[int]) -> Admission:
        ready, refused = self._admission().look(seeds, candidates)
        for task_id in ready:
            self._queued_at[task_id] = _now()
            self.tasks[task_id] = replace(self.tasks[task_id], admitted=True)
        self._refuse(refused)
        if ready:
            self._notify(Wakeup.PENDING)
        return Admission(len(ready), cancelled=tuple(refused))

    def _refuse(self, refused: Mapping[int, str]) -> None:
        for task_id, reason in refused.items():
            self._end(self.tasks[task_id], Status.CANCELLED, reason, None)

    async def batch(self, tenant: str | None, name: str) -> BatchProgress:
        await self._answer()
        members = self._admission().members((tenant or "", name))
        return BatchProgress(name, **Counter(str(task.status) for task in members))

    async def dependencies(self, task_id: int) -> Told:
        await self._answer()
        task = self.tasks[task_id]
        ids = [*task.depends_on]
        if task.depends_batch is not None:
            members = self._admission().members((task.tenant or "", task.depends_batch))
            ids += [each.id for each in members[:MOST_DEPENDENCIES] if each.id not in ids]
        others = {each: other_of(self.tasks, task.tenant, each) for each in ids}
        there = {each: other for each, other in others.items() if other is not None}
        sizes = {each: len(other.output or "") for each, other in there.items() if other.finished_for_good}
        dependencies = told(
            ids,
            {each: (other.name[:300], other.status, other.exit_code) for each, other in there.items()},
            {each: there[each].output for each in fitting(ids, sizes)},
        )
        batch = None if task.depends_batch is None else await self.batch(task.tenant, task.depends_batch)
        return Told(dependencies, batch)

    async def recover(self, worker_id: str, limit: int = 100, *, quarantine_after: int = 0) -> Recovered:
        await self._answer()
        expired = [
            task
            for task in self.tasks.values()
            if task.status == Status.PROCESSING and task.lease_expires_at is not None and task.lease_expires_at < _now()
        ]
        held = {task.id: self._held_by(task.worker_id) for task in expired}
        counts = dict.fromkeys(("retried", "failed", "cancelled"), 0)
        for task in expired[:limit]:
            verdict, crashes, quarantined = judge_loss(
                task.id,
                self._policy(task),
                task.max_attempts,
                task.attempt - task.released,
                task.crashes,
                held[task.id],
                quarantine_after,
            )
            message = QUARANTINED if quarantined else ""
            message += f"Timeout/Crash: worker {task.worker_id} stopped extending its lease on attempt {task.attempt}"
            message += f"\n{verdict.note}" if verdict.note else ""
            task = replace(task, crashes=task.crashes + crashes, quarantined=quarantined and not task.cancel_requested)
            if task.cancel_requested:
                self._end(task, Status.CANCELLED, message, None, "lost")
                counts["cancelled"] += 1
            elif verdict.retry_in is None:
                self._end(task, Status.FAILED, message, None, "lost")
                counts["failed"] += 1
            else:
                self._end(task, Status.PENDING, message, verdict.retry_in, "lost")
                counts["retried"] += 1
        return Recovered(**counts)

    async def take_duty(self, name: str, worker_id: str, seconds: float) -> bool:
        await self._answer()
        holder, until = self._duties.get(name, ("", _now()))
        if holder not in ("", worker_id) and until >= _now():
            return False
        self._duties[name] = (worker_id, _in(seconds))
        return True

    def _held_by(self, worker_id: str | None) -> int | None:
        """How many tasks a worker runs, as far as is known; None where it ended in order."""
        worker = self._workers.get(worker_id or "")
        if worker is not None and worker.stopped_at is not None:
            return None
        held = sum(task.status == Status.PROCESSING and task.worker_id == worker_id for task in self.tasks.values())
        return max(held, worker.running if worker else 0)

    async def expire(self, ages: Mapping[Status, float]) -> bool:
        await self._answer()
        return False

    async def purge(self, status: Status, older_than: float, limit: int = 1000) -> int:
        await self._answer()
        old = sorted(
            (task.finished, task.id)
            for task in self.tasks.values()
            if task.status == status and task.finished and task.finished < _in(-older_than)
        )
        for _, task_id in old[:limit]:
            del self.tasks[task_id]
        return len(old[:limit])

    async def ended(self, wanted: EndedFilter, limit: int = 1000, after: Sequence[EndedTask] = ()) -> list[EndedTask]:
        await self._answer()
        last = max((task.finished for task in after), default=EPOCH)
        seen = {task.id for task in after if task.finished == last}
        found = sorted(
            (task.finished, task.id)
            for task in self.tasks.values()
            if task.status == wanted.status
            and task.finished
            and last <= task.finished < _in(-wanted.older_than)
            and task.id not in seen
            and wanted.tenant in (None, task.tenant)
            and wanted.name.lower() in task.name.lower()
        )
        texts = {number: (self.tasks[number].output or "", self.tasks[number].payload or "") for _, number in found}
        return [
            EndedTask(number, self.tasks[number].attempt, finished, sum(map(len, texts[number])))
            for finished, number in found[:limit]
        ]

    async def delete_ended(self, tasks: Sequence[EndedTask]) -> int:
        await self._answer()
        there = [
            task.id
            for task in tasks
            if (known := self.tasks.get(task.id)) is not None
            and known.finished_for_good
            and (known.attempt, known.finished) == (task.attempt, task.finished)
        ]
        for number in there:
            del self.tasks[number]
        return len(there)

    async def claim_webhooks(self, limit: int, *, lease: float) -> list[WebhookDelivery]:
        await self._answer()
        due = sorted((at, number) for number, (at, _) in self._webhooks.items() if at is not None and at <= _now())
        return [self._take_webhook(self.tasks[number], lease) for _, number in due[:limit]]

    def _take_webhook(self, task: TaskRecord, lease: float) -> WebhookDelivery:
        tries = self._webhooks[task.id][1] + 1
        self._webhooks[task.id] = (_in(lease), tries)
        assert task.webhook is not None
        assert task.finished is not None
        return WebhookDelivery(
            task_id=task.id,
            url=task.webhook,
            tries=tries,
            name=task.name,
            status=task.status,
            tenant=task.tenant,
            attempt=task.attempt,
            exit_code=task.exit_code,
            error=_first_line(task),
            created_at=task.created_at,
            started=task.started,
            finished=task.finished,
        )

    async def settle_webhook(self, delivery: WebhookDelivery, again_in: float | None) -> bool:
        await self._answer()
        if self._webhooks.get(delivery.task_id, (None, 0))[1] != delivery.tries:
            return False
        self._webhooks[delivery.task_id] = (None if again_in is None else _in(again_in), delivery.tries)
        return True

    async def put_off_webhooks(self, delays: Mapping[WebhookDelivery, float]) -> None:
        await self._answer()
        for delivery, seconds in delays.items():
            if self._webhooks.get(delivery.task_id, (None, 0))[1] == delivery.tries:
                self._webhooks[delivery.task_id] = (_in(seconds), delivery.tries - 1)

    # -- a producer's verbs ------------------------------------------------------------------------------------------

    async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
        await self._answer()
        check_new_tasks(tasks)
        for task in tasks:
            if task.code_id is not None:
                try:
                    uuid.UUID(task.code_id)
                except ValueError:
                    raise InvalidTask(f"code_id is not a UUID: {task.code_id!r}") from None
            try:
                json.loads("null" if task.payload is None else task.payload)
            except ValueError as error:
                raise InvalidTask(f"payload is not JSON: {error}") from None
            if absentees := [each for each in task.depends_on if other_of(self.tasks, task.tenant, each) is None]:
                raise InvalidTask(absent(min(absentees)))
        unknown = [name for tenant, name in batches_elsewhere(tasks) if not self._admission().members((tenant, name))]
        if unknown:
            raise InvalidTask(empty(min(unknown)))
        async with Room(self._pending_limits, self._pending_by_tenant).taken_by(tasks):
            return [self._insert(task) for task in tasks]

    async def _pending_limits(self) -> Limits:
        return {scope: limit.max_pending for scope, limit in self._limits.rows.items() if limit.max_pending is not None}

    async def _pending_by_tenant(self) -> Counter[str]:
        return Counter(task.tenant or "" for task in self.tasks.values() if task.status == Status.PENDING)

    def _insert(self, task: NewTask) -> int:
        code = code_of(task)
        unique_key = unique_key_of(task, code)
        earlier = self._earlier(task, unique_key)
        if earlier is not None:
            return earlier
        if code is not None:
            self._scripts[code.id] = code
        number = next(self._ids)
        parked = task.run_at is not None and task.run_at > _now()
        self.tasks[number] = TaskRecord(
            id=number,
            name=task.name,
            description=task.description,
            status=Status.PENDING,
            payload=task.payload,
            code_id=code.id if code else task.code_id,
            priority=task.priority,
            attempt=0,
            released=0,
            max_attempts=task.max_attempts,
            worker_id=None,
            created_at=_now(),
            run_at=task.run_at if parked else None,
            started=None,
            finished=None,
            lease_expires_at=None,
            timeout=task.timeout,
            exit_code=None,
            output=None,
            error_output=None,
            last_error=None,
            tenant=task.tenant,
            idempotency_key=task.idempotency_key,
            cancel_requested=False,
            traceparent=task.traceparent,
            webhook=task.webhook,
            retry=policy_text(task.retry) if task.retry else None,
            expires_at=task.expires_at,
            worker_tags=tuple(sorted(set(task.worker_tags))),
            sequence_key=task.sequence_key,
            concurrency_key=task.concurrency_key,
            depends_on=tuple(dict.fromkeys(task.depends_on)),
            depends_any=task.depends_any,
            depends_ended=task.depends_ended,
            batch=task.batch,
            depends_batch=task.depends_batch,
        )
        if unique_key is not None:
            self._unique_keys[number] = unique_key
        self._notify(Wakeup.SCHEDULED if parked else Wakeup.GATED if task.gated else Wakeup.PENDING)
        return number

    def _earlier(self, task: NewTask, unique_key: str | None) -> int | None:
        """The task that stands for this one. A key whose window is over is taken from its task."""
        theirs = [known for known in self.tasks.values() if (known.tenant or "") == (task.tenant or "")]
        for known in theirs:
            if task.idempotency_key is None or known.idempotency_key != task.idempotency_key:
                continue
            if task.idempotency_window is None or known.created_at > _in(-task.idempotency_window):
                return known.id
            self.tasks[known.id] = replace(known, idempotency_key=None)
        same = (known.id for known in theirs if unique_key and self._unique_keys.get(known.id) == unique_key)
        return next(
            (each for each in same if (self.tasks[each].status, self.tasks[each].attempt) == ("pending", 0)), None
        )

    async def cancel(self, task_id: int) -> Cancellation:
        await self._answer()
        task = self.tasks.get(task_id)
        if task is None:
            return Cancellation.UNKNOWN
        if task.status == Status.PENDING:
            self._end(replace(task, cancel_requested=True), Status.CANCELLED, "Cancelled before it ran", None)
            return Cancellation.CANCELLED
        if task.status == Status.PROCESSING:
            self.tasks[task_id] = replace(task, cancel_requested=True)
            self._notify(Wakeup.CANCEL)
            return Cancellation.REQUESTED
        return Cancellation.FINISHED

    async def retry(self, task_id: int) -> Retried:
        await self._answer()
        task = self.tasks.get(task_id)
        if task is None:
            return Retried(Retry.UNKNOWN)
        if not task.finished_for_good:
            return Retried(Retry.OPEN)
        if task.retried_as is not None:
            return Retried(Retry.ALREADY, task.retried_as)
        number = self._insert(
            NewTask(
                name=task.name,
                description=task.description,
                code_id=task.code_id,
                payload=task.payload,
                priority=task.priority,
                max_attempts=task.max_attempts,
                timeout=task.timeout,
                tenant=task.tenant,
                webhook=task.webhook,
                worker_tags=task.worker_tags,
                sequence_key=task.sequence_key,
                concurrency_key=task.concurrency_key,
                depends_on=tuple(map(self._last_copy, task.depends_on)),
                depends_any=task.depends_any,
                depends_ended=task.depends_ended,
                batch=task.batch,
                depends_batch=task.depends_batch,
            )
        )
        if task.batch is not None:
            self._superseded.add(task_id)
        self.tasks[number] = replace(self.tasks[number], retry_of=task_id, retry=task.retry)
        self.tasks[task_id] = replace(task, retried_as=number)
        return Retried(Retry.SUBMITTED, number)

    def _last_copy(self, task_id: int) -> int:
        while (known := self.tasks.get(task_id)) is not None and known.retried_as is not None:
            task_id = known.retried_as
        return task_id

    async def limits(self) -> list[Limit]:
        await self._answer()
        return [self._limits.rows[key] for key in sorted(self._limits.rows)]

    async def limit_uses(self, limit: int = 200) -> list[LimitUse]:
        await self._answer()
        return self._limits.uses(self._running(), trio.current_time())[:limit]

    async def held_back(self) -> list[HeldBack]:
        await self._answer()
        waiting = [task for task in self.tasks.values() if task.status == Status.PENDING and task.run_at is None]
        return self._limits.held_back(waiting, self._running(), trio.current_time())

    async def waits_for(self, task_id: int) -> WaitsFor | None:
        await self._answer()
        task = self.tasks.get(task_id)
        if task is None or task.status != Status.PENDING or task.run_at is not None:
            return None
        others = self._admission().others(task) if task.gated else ()
        return WaitsFor(self._limits.reason(task, self._running(), trio.current_time()), others)

    def _running(self) -> list[TaskRecord]:
        return [task for task in self.tasks.values() if task.status == Status.PROCESSING]

    async def set_limit(self, limit: Limit) -> None:
        check_limit(limit)
        await self._answer()
        self._limits.rows[limit.scope, limit.name] = limit
        self._notify(Wakeup.PENDING)

    async def clear_limit(self, scope: Scope, name: str) -> bool:
        await self._answer()
        found = self._limits.rows.pop((scope, name), None)
        self._notify(Wakeup.PENDING)
        return found is not None

    async def drain(self, worker_id: str, draining: bool = True) -> bool:
        await self._answer()
        worker = self._workers.get(worker_id)
        if worker is None or worker.stopped_at is not None:
            return False
        self._workers[worker_id] = replace(worker, draining=draining, drained=worker.drained and worker.draining)
        return True

    async def dead_letters(self, wanted: DeadLetterFilter, before: DeadLetterPlace | None = None) -> DeadLetterPage:
        await self._answer()
        place = before or searching.NEWEST
        failed = [
            (DeadLetterPlace(task.finished, task.id), task)
            for task in self.tasks.values()
            if task.status in (Status.FAILED, Status.MALICIOUS) and task.finished
        ]
        failed = sorted((each for each in failed if each[0] < place), key=lambda each: each[0], reverse=True)
        if wanted.since is not None:
            failed = [each for each in failed if each[0].finished >= wanted.since]
        page = failed[:DEAD_LETTERS_SEEN]
        fitting = tuple(_summary(self._shown(task)) for _, task in page if _is_dead_letter(task, wanted))
        return DeadLetterPage(fitting, page[-1][0] if len(page) == DEAD_LETTERS_SEEN else None)

    async def retry_many(self, task_ids: Sequence[int]) -> list[int]:
        answers = [await self.retry(task_id) for task_id in sorted(set(task_ids))]
        return [each.task_id for each in answers if each.outcome is Retry.SUBMITTED and each.task_id is not None]

    async def store_code(self, code: str, requirements: str | None = None, retry: RetryPolicy | None = None) -> str:
        await self._answer()
        task = NewTask(code=code, requirements=requirements, retry=retry)
        check_new_tasks([task])
        row = code_of(task)
        assert row is not None
        self._scripts[row.id] = row
        if retry is not None:
            self._policies[row.id] = policy_text(retry)
        return row.id

    async def fetch(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        await self._answer()
        return [self._shown(self.tasks[task_id]) for task_id in task_ids if task_id in self.tasks]

    def _shown(self, task: TaskRecord) -> TaskRecord:
        policy = self._policy(task)
        return replace(task, retry=policy, max_attempts=attempts_of(policy, task.max_attempts))

    async def still_open(self, task_ids: Sequence[int]) -> frozenset[int]:
        await self._answer()
        return frozenset(
            task_id
            for task_id in task_ids
            if task_id in self.tasks and self.tasks[task_id].status in (Status.PENDING, Status.PROCESSING)
        )

    async def statistics(self, *, latest: bool = False) -> Statistics:
        await self._answer()
        pending = [task for task in self.tasks.values() if task.status == Status.PENDING]
        scheduled = sum(task.run_at is not None for task in pending)
        completed = self._totals["completed"]
        alive = [worker for worker in await self.workers() if worker.alive]
        return Statistics(
            pending=len(pending) - scheduled,
            scheduled=scheduled,
            running=sum(task.status == Status.PROCESSING for task in self.tasks.values()),
            completed=completed,
            failed=self._totals["failed"],
            cancelled=self._totals["cancelled"],
            malicious=self._totals["malicious"],
            avg_execution_seconds=self._execution_seconds / completed if completed else 0.0,
            throughput_tasks_per_hour=float(sum(worker.finished_last_hour for worker in alive)),
            workers=len(alive),
        )

    async def oldest_pending(self, *, latest: bool = False) -> float | None:
        await self._answer()
        next_in_line: dict[int, TaskRecord] = {}
        for task in sorted(self.tasks.values(), key=lambda task: task.id):
            if task.status == Status.PENDING and task.run_at is None:
                next_in_line.setdefault(task.priority, task)
        return max(
            (
                (_now() - self._queued_at.get(task.id, task.created_at)).total_seconds()
                for task in next_in_line.values()
            ),
            default=None,
        )

    async def workers(self) -> list[WorkerRecord]:
        await self._answer()
        known = [
            replace(worker, alive=worker.stopped_at is None and worker.seen_at > _in(-ALIVE_FOR))
            for worker in self._workers.values()
        ]
        return sorted(known, key=lambda worker: worker.started_at, reverse=True)

    async def search(self, wanted: TaskFilter) -> list[TaskSummary]:
        await self._answer()
        limit, before = searching.bounds(wanted)["limit"], searching.bounds(wanted)["before"]
        for conditions in searching.conditions(wanted):
            found = [
                _summary(self._shown(task))
                for number, task in sorted(self.tasks.items(), reverse=True)
                if number < before and all(_fits(task, name, value, wanted) for name, value in conditions.items())
            ]
            if found:
                return found[:limit]
        return []

    async def running(self, limit: int = 30, tail: int = 500) -> list[RunningTask]:
        await self._answer()
        tasks = [task for task in self.tasks.values() if task.status == Status.PROCESSING]
        tasks.sort(key=lambda task: (task.started or EPOCH, task.id))
        return [
            RunningTask(
                task.id,
                task.name,
                task.tenant,
                task.attempt,
                task.worker_id,
                task.started,
                (task.output or task.error_output or "")[-tail:],
            )
            for task in tasks[:limit]
        ]

    async def failures(self, since: dt.datetime, limit: int = 50) -> list[FailureGroup]:
        await self._answer()
        groups: dict[str, list[TaskRecord]] = {}
        for task in self.tasks.values():
            if task.status in (Status.FAILED, Status.MALICIOUS) and task.finished and task.finished >= since:
                groups.setdefault(_group(task), []).append(task)
        found = [
            FailureGroup(
                error,
                len(tasks),
                max(task.id for task in tasks),
                max(task.finished for task in tasks if task.finished),
                tuple(sorted({min(task.name for task in tasks), max(task.name for task in tasks)})),
            )
            for error, tasks in groups.items()
        ]
        return sorted(found, key=lambda group: (-group.count, -group.newest_id))[:limit]

    async def depths(self, limit: int = 50) -> list[QueueDepth]:
        await self._answer()
        counts: Counter[tuple[int, str]] = Counter()
        for task in self.tasks.values():
            if not task.finished_for_good:
                state = "scheduled" if task.status == Status.PENDING and task.run_at else task.status
                counts[task.priority, state] += 1
        return [
            QueueDepth(each, counts[each, "pending"], counts[each, "scheduled"], counts[each, "processing"])
            for each in sorted({priority for priority, _ in counts})
        ][:limit]

    async def fetch_code(self, code_id: str) -> CodeRecord | None:
        await self._answer()
        row = self._scripts.get(code_id.lower())
        return CodeRecord(row.id, row.text, row.requirements, self._policies.get(row.id)) if row else None

    async def codes(self, limit: int = 50, after: str | None = None) -> list[CodeSummary]:
        await self._answer()
        found = [row for number, row in sorted(self._scripts.items()) if number > (after or "")]
        return [
            CodeSummary(
                row.id,
                row.text.count("\n") + (not row.text.endswith("\n")),
                len(row.text),
                row.text.split("\n", 1)[0][:120],
                row.requirements,
            )
            for row in found[:limit]
        ]

    # -- waking up -------------------------------------------------------------------------------------------------

    async def listen(self, listener: Listener) -> None:
        await self._answer()
        self._listeners.append(listener)
        try:
            for wakeup in Wakeup:
                listener.wake(wakeup)
            await trio.sleep_forever()
        finally:
            self._listeners.remove(listener)

    def _notify(self, wakeup: Wakeup) -> None:
        for listener in self._listeners:
            listener.wake(wakeup)


def _attempt(task: TaskRecord, ending: str, message: str | None, values: dict[str, Any]) -> AttemptRecord:
    cut = None if message is None else message[:2000]
    return AttemptRecord(task.attempt, task.worker_id, task.started, _now(), ending, values.get("exit_code"), cut)


def _first_line(task: TaskRecord) -> str | None:
    return None if task.last_error is None else task.last_error.split("\n", 1)[0][:300]


def _group(task: TaskRecord) -> str:
    return re.sub("0x[0-9a-f]+|[0-9]+", "#", _first_line(task) or "")


def _fits(task: TaskRecord, name: str, value: object, wanted: TaskFilter) -> bool:
    match name:
        case "name":
            return wanted.text.strip().lower() in task.name.lower()
        case "statuses":
            return task.status in wanted.statuses
        case "error":
            return _group(task) == value
        case "since":
            return wanted.since is not None and task.created_at >= wanted.since
    return bool(getattr(task, name) == value)


def _is_dead_letter(task: TaskRecord, wanted: DeadLetterFilter) -> bool:
    return (
        task.status == Status.FAILED
        and not task.quarantined
        and task.retried_as is None
        and (wanted.tenant is None or task.tenant == wanted.tenant)
        and (wanted.name is None or wanted.name.lower() in task.name.lower())
        and (wanted.error is None or _group(task) == wanted.error)
        and (wanted.code_id is None or (task.code_id or "").lower() == wanted.code_id.lower())
    )


def _summary(task: TaskRecord) -> TaskSummary:
    return TaskSummary(
        id=task.id,
        name=task.name,
        status=task.status,
        priority=task.priority,
        tenant=task.tenant,
        attempt=task.attempt,
        max_attempts=task.max_attempts,
        worker_id=task.worker_id,
        created_at=task.created_at,
        run_at=task.run_at,
        started=task.started,
        finished=task.finished,
        exit_code=task.exit_code,
        error=_first_line(task),
    )
