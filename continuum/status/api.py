"""The HTTP API for producers who cannot reach the database. docs/http-api.md describes it for its users.

Read on in `api_tasks`, `api_batches`, `api_codes`, `api_schedules`, `api_workers` and `api_limits`, which do what is asked;
`api_operations` serves them; `api_inputs`, `api_outputs` and `api_schedule_models` are what they take and answer, and
`api_openapi` says so.
"""

from __future__ import annotations

import json
from functools import lru_cache

import trio
from quart import Blueprint, Response

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.nursery.state import version
from continuum.status.api_batches import BatchHandlers
from continuum.status.api_codes import CodeHandlers
from continuum.status.api_inputs import (
    CodePath,
    CodesQuery,
    LogsQuery,
    NewCode,
    NewTaskInput,
    NewTasks,
    RetryQuery,
    SearchQuery,
    TaskList,
    TaskPath,
    WaitQuery,
)
from continuum.status.api_limits import LimitHandlers
from continuum.status.api_logs import EVENTS, NDJSON
from continuum.status.api_openapi import document
from continuum.status.api_operations import JSON, Operation, Operations
from continuum.status.api_outputs import (
    Cancelled,
    CodeOutput,
    CodePage,
    LogEvent,
    RetriedOutput,
    RetriedTasks,
    StoredCode,
    Submitted,
    SubmittedTasks,
    TaskOutput,
    TaskPage,
)
from continuum.status.api_pressure import Pressure
from continuum.status.api_schedules import ScheduleHandlers
from continuum.status.api_tasks import LONGEST_KEY, TaskHandlers
from continuum.status.api_waits import Waits
from continuum.status.api_workers import WorkerHandlers
from continuum.status.overview import Overview

SUBMIT = Operation(
    "submitTasks",
    "POST",
    "/tasks",
    "Submit a task, or several together",
    {201: Submitted | SubmittedTasks},
    body=(NewTaskInput, TaskList, NewTasks),
    changes=True,
    headers={
        "Idempotency-Key": (
            "For one task: the same key again yields the first task.",
            {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": "^[!-~]+$"},
        ),
        "Traceparent": ("W3C Trace Context: the tasks continue this trace.", {"type": "string"}),
    },
    failures={
        403: "The worker has no API_TOKEN, or for a task with a webhook no WEBHOOK_SECRET.",
        409: "A `code_id` names no stored script.",
    },
)
SEARCH = Operation("searchTasks", "GET", "/tasks", "List tasks, the newest first", {200: TaskPage}, query=SearchQuery)
FETCH = Operation("getTask", "GET", "/tasks/{id}", "Read a task", {200: TaskOutput}, path_model=TaskPath)
WAIT = Operation(
    "waitForTask",
    "GET",
    "/tasks/{id}/wait",
    "Wait until a task has ended, and read it",
    {200: TaskOutput, 204: None},
    path_model=TaskPath,
    query=WaitQuery,
    failures={429: "Too many clients wait at this worker."},
)
LOGS = Operation(
    "followLogs",
    "GET",
    "/tasks/{id}/logs",
    "Follow what a task writes",
    {200: {NDJSON: LogEvent, EVENTS: LogEvent}},
    path_model=TaskPath,
    query=LogsQuery,
    failures={429: "Too many logs are followed at this worker."},
)
CANCEL = Operation(
    "cancelTask", "POST", "/tasks/{id}/cancel", "Cancel a task", {200: Cancelled}, path_model=TaskPath, changes=True
)
RETRY = Operation(
    "retryTask",
    "POST",
    "/tasks/{id}/retry",
    "Try a task that has ended again, as a copy",
    {200: RetriedOutput, 201: RetriedOutput},
    path_model=TaskPath,
    changes=True,
    failures={409: "The task has not ended."},
)
RETRY_FAILED = Operation(
    "retryFailedTasks",
    "POST",
    "/retries",
    "Try all failed tasks that fit again, but those in quarantine; safe to repeat",
    {200: RetriedTasks},
    query=RetryQuery,
    changes=True,
)
STORE_CODE = Operation(
    "storeCode", "POST", "/codes", "Store a script", {201: StoredCode}, body=(NewCode,), changes=True
)
LIST_CODES = Operation("listCodes", "GET", "/codes", "List scripts", {200: CodePage}, query=CodesQuery)
FETCH_CODE = Operation("getCode", "GET", "/codes/{id}", "Read a script", {200: CodeOutput}, path_model=CodePath)


def create_api(
    settings: Settings, database: Database, overview: Overview, ending: trio.Event
) -> tuple[Blueprint, Waits]:
    """The API's blueprint, and the service that must run beside it."""
    operations = Operations(settings)
    waits = Waits(database)
    pressure = Pressure(settings, overview)
    tasks = TaskHandlers(settings, database, waits, pressure, ending)
    codes = CodeHandlers(database, pressure)
    operations.add(SUBMIT, tasks.submit)
    operations.add(SEARCH, tasks.search)
    operations.add(FETCH, tasks.fetch)
    operations.add(WAIT, tasks.wait)
    operations.add(LOGS, tasks.logs)
    operations.add(CANCEL, tasks.cancel)
    operations.add(RETRY, tasks.retry)
    operations.add(RETRY_FAILED, tasks.retry_failed)
    operations.add(STORE_CODE, codes.store)
    operations.add(LIST_CODES, codes.list)
    operations.add(FETCH_CODE, codes.fetch)
    ScheduleHandlers(settings, database, pressure).serve(operations)
    WorkerHandlers(database, pressure).serve(operations)
    LimitHandlers(database, pressure).serve(operations)
    BatchHandlers(database, pressure).serve(operations)

    @lru_cache
    def openapi() -> str:
        return json.dumps(document(operations.all, version()))

    @operations.blueprint.get("/openapi.json")
    async def openapi_document() -> Response:
        return Response(openapi(), content_type=JSON)

    return operations.blueprint, waits
