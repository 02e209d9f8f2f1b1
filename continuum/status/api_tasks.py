"""What the HTTP API does with tasks."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial

import trio
from opentelemetry.context import attach, detach
from quart import Response, request

from continuum.config import Settings
from continuum.db.dead_letters import retry_failed
from continuum.db.errors import InvalidTask, OutcomeUnknown
from continuum.db.protocol import Database
from continuum.model import Cancellation, DeadLetterFilter, DeadLetterPlace, Retry, TaskFilter, TaskRecord
from continuum.status.api_answers import answer, location, task_answer
from continuum.status.api_bodies import read_body
from continuum.status.api_errors import Refusal, bad_fields, no_code, no_task, no_webhooks
from continuum.status.api_inputs import LARGEST_ID, LogsQuery, NewTaskInput, RetryQuery, SearchQuery, WaitQuery
from continuum.status.api_logs import EVENTS, NDJSON, encoded, log_events
from continuum.status.api_outputs import (
    Cancelled,
    Problem,
    RetriedOutput,
    RetriedTasks,
    Submitted,
    SubmittedTasks,
    TaskPage,
    TaskSummaryOutput,
    values_of,
)
from continuum.status.api_parsing import parse_tasks
from continuum.status.api_pressure import SOON, Pressure
from continuum.status.api_waits import Waits
from continuum.status.limits import HELD
from continuum.telemetry.tracing import context_of, submission, submitted

LONGEST_KEY = 255
LONGEST_RETRYING = 5.0
"""Seconds after which a request that tries many tasks again answers with where to go on."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MOST_STREAMS = min(64, HELD // 2)
"""Logs that are followed at once: each asks the database by itself."""


class TaskHandlers:
    """Each method answers one operation. ending: set when the server is about to end."""

    def __init__(
        self, settings: Settings, database: Database, waits: Waits, pressure: Pressure, ending: trio.Event
    ) -> None:
        self._settings = settings
        self._database = database
        self._waits = waits
        self._pressure = pressure
        self._ending = ending
        self._streams = 0

    async def submit(self) -> Response:
        key = _header_key()
        with self._pressure.submission(request.content_length):
            await self._pressure.check_queue()
            given, several = await read_body(self._pressure.largest_body, partial(parse_tasks, idempotency_key=key))
            self._check_webhooks(given)
            ids = await self._submit(given)
            self._pressure.accepted(len(ids))
        submitted = [Submitted(id=task_id, id_str=str(task_id)) for task_id in ids]
        if several:
            return answer(SubmittedTasks(tasks=submitted), 201)
        return answer(submitted[0], 201, location(f"/tasks/{ids[0]}"))

    def _check_webhooks(self, given: Sequence[NewTaskInput]) -> None:
        if self._settings.webhook_secret is None and any(one.webhook is not None for one in given):
            raise no_webhooks()

    async def _submit(self, given: Sequence[NewTaskInput]) -> list[int]:
        token = attach(context_of(request.headers.get("Traceparent")))
        try:
            with submission(len(given)) as traceparent:
                tasks = [one.task(traceparent) for one in given]
                async with self._pressure.turn():
                    ids = await self._database.submit(tasks)
                submitted(ids)
                return ids
        except OutcomeUnknown as error:
            raise _perhaps_submitted(error, given) from None
        except InvalidTask:
            await self._check_codes(given)
            raise
        finally:
            detach(token)

    async def _check_codes(self, given: Sequence[NewTaskInput]) -> None:
        """Say which code is not there: the database's own words name a constraint."""
        for code_id in sorted({one.code_id for one in given if one.code_id is not None}):
            async with self._pressure.turn():
                code = await self._database.fetch_code(code_id)
            if code is None:
                raise no_code(code_id, status=409)

    async def fetch(self, task_id: int) -> Response:
        return task_answer(await self._record(task_id))

    async def _record(self, task_id: int) -> TaskRecord:
        record = await self._look(task_id)
        if record is None:
            raise no_task(task_id)
        return record

    async def _look(self, task_id: int) -> TaskRecord | None:
        async with self._pressure.turn():
            found = await self._database.fetch([task_id])
        return found[0] if found else None

    async def search(self, query: SearchQuery) -> Response:
        wanted = TaskFilter(
            text=query.text,
            statuses=frozenset(query.status),
            tenant=query.tenant,
            worker_id=query.worker,
            error=query.error,
            since=query.since,
            before=query.before,
            limit=query.limit,
            quarantined=query.quarantined,
            batch=query.batch,
        )
        async with self._pressure.turn():
            found = await self._database.search(wanted)
        tasks = [TaskSummaryOutput(**values_of(summary, TaskSummaryOutput)) for summary in found]
        return answer(TaskPage(tasks=tasks, next=tasks[-1].id_str if len(tasks) == query.limit else None))

    async def wait(self, task_id: int, query: WaitQuery) -> Response:
        if len(self._waits) >= HELD:
            raise Refusal(429, "too many waits", "too many clients wait at this worker", retry_after=SOON)
        with self._waits.waiter(task_id) as waiter:
            await _either(waiter.seen, self._ending)
            with trio.move_on_after(query.seconds):
                await _either(waiter.done, self._ending)
        if waiter.failure is not None:
            raise waiter.failure
        record = await self._record(task_id) if waiter.done.is_set() else None
        return task_answer(record) if record and record.finished_for_good else Response(b"", 204)

    async def logs(self, task_id: int, query: LogsQuery) -> Response:
        if self._streams >= MOST_STREAMS:
            raise Refusal(429, "too many streams", "too many logs are followed at this worker", retry_after=SOON)
        record = await self._record(task_id)
        wanted = EVENTS if request.accept_mimetypes.best_match([NDJSON, EVENTS]) == EVENTS else NDJSON
        response = Response(self._stream(record, query.follow, wanted), content_type=wanted)
        response.timeout = None
        return response

    async def _stream(self, record: TaskRecord, follow: bool, media_type: str) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            events = log_events(record, partial(self._look, record.id), follow, self._ending)
            async for data in encoded(events, media_type):
                yield data
        finally:
            self._streams -= 1

    async def cancel(self, task_id: int) -> Response:
        async with self._pressure.turn():
            outcome = await self._database.cancel(task_id)
        if outcome is Cancellation.UNKNOWN:
            raise no_task(task_id)
        return answer(Cancelled.model_validate({"id": task_id, "id_str": str(task_id), "outcome": outcome.value}))

    async def retry(self, task_id: int) -> Response:
        async with self._pressure.turn():
            retried = await self._database.retry(task_id)
        if retried.outcome is Retry.UNKNOWN:
            raise no_task(task_id)
        if retried.outcome is Retry.OPEN or retried.task_id is None:
            raise Refusal(409, "not ended", f"task {task_id} has not ended: cancel it first, or wait for it")
        made = RetriedOutput.model_validate(
            {
                "id": retried.task_id,
                "id_str": str(retried.task_id),
                "retry_of": task_id,
                "retry_of_str": str(task_id),
                "outcome": retried.outcome.value,
            }
        )
        return answer(made, 201 if retried.outcome is Retry.SUBMITTED else 200, location(f"/tasks/{made.id}"))

    async def retry_failed(self, query: RetryQuery) -> Response:
        wanted = DeadLetterFilter(query.tenant, query.name, query.error, query.code_id, query.since)
        place = _place(query.before)
        async with self._pressure.turn():
            done = await retry_failed(
                self._database, wanted, before=place, dry_run=query.dry_run, seconds=LONGEST_RETRYING
            )
        newest = [TaskSummaryOutput(**values_of(each, TaskSummaryOutput)) for each in done.newest]
        return answer(RetriedTasks(found=done.found, retried=done.retried, newest=newest, next=_place_text(done.next)))


def _place(text: str | None) -> DeadLetterPlace | None:
    """Where to go on. Raises `Refusal`."""
    if text is None:
        return None
    microseconds, _, task_id = text.partition("-")
    try:
        return DeadLetterPlace(_EPOCH + dt.timedelta(microseconds=int(microseconds)), min(int(task_id), LARGEST_ID))
    except OverflowError:
        problem = Problem(field="before", given=json.dumps(text), allowed="`next` of an answer")
        raise bad_fields([problem]) from None


def _place_text(place: DeadLetterPlace | None) -> str | None:
    return place and f"{(place.finished - _EPOCH) // dt.timedelta(microseconds=1)}-{place.task_id}"


async def _either(one: trio.Event, other: trio.Event) -> None:
    """Wait for the first of two events."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, one)
        nursery.start_soon(wait, other)


def _header_key() -> str | None:
    """The header `Idempotency-Key`. Raises `Refusal`."""
    given = request.headers.getlist("Idempotency-Key")
    if not given:
        return None
    if len(given) > 1 or not 1 <= len(given[0]) <= LONGEST_KEY or not all("!" <= each <= "~" for each in given[0]):
        allowed = f"one key of 1 to {LONGEST_KEY} visible ASCII characters"
        raise bad_fields([Problem(field="Idempotency-Key", given=json.dumps(", ".join(given))[:60], allowed=allowed)])
    return given[0]


def _perhaps_submitted(error: OutcomeUnknown, given: Sequence[NewTaskInput]) -> Refusal:
    keyed = all(one.idempotency_key is not None for one in given)
    advice = (
        "repeat the request: its idempotency keys see to it that nothing is submitted twice"
        if keyed
        else "without an idempotency key for each task, repeating the request may submit them twice"
    )
    message = f"the tasks may have been submitted, or not ({error}); {advice}"
    return Refusal(503, "outcome unknown", message, retry_after=SOON, repeat=keyed)
