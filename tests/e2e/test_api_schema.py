"""/openapi.json says what the API does: schemathesis makes requests of it, right ones and wrong ones, and judges the answers.

The application is served for real, on a PostgreSQL, so that nothing passes that a database would refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import psycopg
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig

from continuum.db import open_database
from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask
from continuum.nursery.state import WorkerState
from continuum.status.app import create_app
from continuum.status.server import serve_status
from continuum.telemetry import Telemetry
from tests.support import harness
from tests.support.postgres import PostgresServer

TOKEN = "open sesame"
SECRET = "whsec_YSBzZWNyZXQgb2YgdGhlIHRlc3RzIG9mIHRoZSBBUEk="
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ENDED = 20
"""Tasks that have ended, with the ids from 1 on: a wait for one of these takes no time. All others have ids beyond 2^53."""
EXAMPLES = 10
"""Requests for each operation and kind (right, wrong), beside those at the edges of each schema, which are always made."""

bounded = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def address(shared_server: PostgresServer) -> Iterator[str]:
    """Where the application is served, by a thread of its own: schemathesis knows no Trio."""
    with psycopg.connect(shared_server.url_of("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE api")
    url = shared_server.url_of("api")
    started: SimpleQueue[tuple[str, trio.lowlevel.TrioToken, trio.Event]] = SimpleQueue()

    async def serve() -> None:
        chosen = harness.settings(
            database_url=url, api_port=0, api_token=TOKEN, api_max_pending=0, webhook_secret=SECRET
        )
        async with open_database(chosen) as database, trio.open_nursery() as nursery:
            await database.migrate()
            for task_id in await database.submit([NewTask(code="x")] * ENDED):
                await database.cancel(task_id)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("SELECT setval(pg_get_serial_sequence('tasks', 'id'), 9007199254740993)")
            stop = trio.Event()
            state = WorkerState(id="w", slots=1)
            found = await nursery.start(serve_status, chosen, state, database, Telemetry())
            started.put((found, trio.lowlevel.current_trio_token(), stop))
            await stop.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    found, token, stop = started.get(timeout=60)
    yield found
    token.run_sync_soon(stop.set)
    thread.join()


def _document() -> dict[str, Any]:
    """The document as it is served, while the tests are collected."""

    async def read() -> dict[str, Any]:
        app = create_app(harness.settings(), WorkerState(id="w", slots=1), MemoryDatabase(), Telemetry())
        found: dict[str, Any] = await (await app.test_client().get("/openapi.json")).get_json()
        return found

    return trio.run(read)


schema = schemathesis.openapi.from_dict(
    _document(), config=SchemathesisConfig.from_dict({"generation": {"allow-x00": False}})
)


REQUIREMENTS = st.sampled_from(["", "numpy==2.1.0", "# nothing\n", "a[b]==1 ; python_version < '3'\nc==2"])
schemathesis.openapi.format("requirements", REQUIREMENTS)
schemathesis.openapi.format("cron", st.sampled_from(["30 2 * * *", "*/5 * * * * *", "@daily", "0 9 * * MON-FRI"]))
schemathesis.openapi.format("time-zone", st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]))
schemathesis.openapi.format("webhook", st.sampled_from(["https://hooks.example.com/done?a=b", "http://192.0.2.7:8000"]))


@schema.exclude(operation_id="replaceSchedule").parametrize()  # which takes what createSchedule takes
@bounded
def test_every_answer_is_one_that_the_document_describes(case: schemathesis.Case[Any], address: str) -> None:
    _without_a_second_key(case)
    _after_what_is_there(case)
    case.call_and_validate(base_url=address, headers=BEARER)


@schema.include(method="POST").parametrize()
@settings(bounded, max_examples=3)
def test_without_the_token_nothing_is_changed(case: schemathesis.Case[Any], address: str) -> None:
    response = case.call_and_validate(base_url=address)
    assert response.status_code == (401 if case.method == "POST" else 405)


def _after_what_is_there(case: schemathesis.Case[Any]) -> None:
    """Let tasks depend on such as there are: no schema knows their ids."""
    body: Any = case.body
    tasks = body.get("tasks") if isinstance(body, dict) else body
    for task in [body, *(tasks if isinstance(tasks, list) else [])]:
        ids = task.get("depends_on") if isinstance(task, dict) else None
        if (
            ids
            and isinstance(ids, list)
            and all(type(each) in (int, float) and each >= 1 and each % 1 == 0 for each in ids)
        ):
            task["depends_on"] = [each % ENDED + 1 for each in ids]
            if isinstance(task.get("tenant"), str):
                task["tenant"] = None  # as theirs is


def _without_a_second_key(case: schemathesis.Case[Any]) -> None:
    """Leave out the header that the body contradicts, has no one task for, or lacks: no schema can say this."""
    body = case.body if isinstance(case.body, dict) else {"tasks": []}
    if case.headers and ("tasks" in body or not {"idempotency_key", "idempotency_window"}.isdisjoint(body)):
        case.headers.pop("Idempotency-Key", None)
