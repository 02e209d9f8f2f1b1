"""/openapi.json says what the API does: schemathesis makes requests of it, right ones and wrong ones, and judges the answers.

The application is served for real, on a PostgreSQL, so that nothing passes that a database would refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import httpx
import psycopg
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig

from continuum.db import open_database
from continuum.model import NewTask
from continuum.nursery.state import WorkerState
from continuum.status.server import serve_status
from continuum.telemetry import Telemetry
from tests.support import harness
from tests.support.postgres import PostgresServer

TOKEN = "open sesame"
SECRET = "whsec_YSBzZWNyZXQgb2YgdGhlIHRlc3RzIG9mIHRoZSBBUEk="
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ENDED = 20
"""Tasks that have ended, with the ids from 1 on: a wait for one of these takes no time. All others have ids beyond 2^53."""
BATCH = "of those that have ended"
EXAMPLES = 10
"""Requests for each operation and kind (right, wrong), beside those at the edges of each schema, which are all made."""

LONG = 1_000_000
"""Characters."""
ONE_TASK = {
    "type": "object",
    "required": ["code"],
    "properties": {"code": {"type": "string", "pattern": "^[^\\u0000]*$"}},
    "additionalProperties": False,
}

bounded = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def address(shared_server: PostgresServer) -> Iterator[str]:
    """Where the application is served, by a thread of its own: schemathesis knows no Trio."""
    with shared_server.database(migrated=True) as url, served(url) as found:
        yield found


@contextmanager
def served(url: str) -> Iterator[str]:
    started: SimpleQueue[tuple[str, trio.lowlevel.TrioToken, trio.Event]] = SimpleQueue()

    async def serve() -> None:
        chosen = harness.settings(
            database_url=url, api_port=0, api_token=TOKEN, api_max_pending=0, webhook_secret=SECRET
        )
        async with open_database(chosen) as database, trio.open_nursery() as nursery:
            for task_id in await database.submit([NewTask(code="x", batch=BATCH)] * ENDED):
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


def _bearable(part: Any) -> Any:
    """The document without what schemathesis takes seconds or thousands of requests for: limits of length that it writes into
    patterns, however long, and in lists of tasks the edges that one task alone has."""
    if isinstance(part, list):
        return [_bearable(each) for each in part]
    if not isinstance(part, dict):
        return part
    if str(part.get("items", {}).get("$ref")).endswith("/NewTaskInput"):
        part = part | {"items": ONE_TASK}
    too_long = {"maxLength"} if isinstance(part.get("maxLength"), int) and part["maxLength"] > LONG else set()
    return {key: _bearable(value) for key, value in part.items() if key not in too_long}


def _read(address: str, phases: dict[str, Any]) -> schemathesis.BaseSchema:
    served = httpx.get(f"{address}/openapi.json").raise_for_status().json()
    config = SchemathesisConfig.from_dict({"generation": {"allow-x00": False}, "phases": phases})
    return schemathesis.openapi.from_dict(_bearable(served), config=config)


@pytest.fixture(scope="module")
def document(address: str) -> schemathesis.BaseSchema:
    """The document as it is served."""
    return _read(address, {})


@pytest.fixture(scope="module")
def document_by_chance(address: str) -> schemathesis.BaseSchema:
    """The document as it is served, of which the edges of schemas are not looked for."""
    return _read(address, {"coverage": {"enabled": False}})


@pytest.fixture(autouse=True)
def _node_id(request: pytest.FixtureRequest) -> None:
    """What schemathesis looks for in a test; pytest 9.2 has another name for it."""
    request.node._nodeid = request.node.nodeid


# From fixtures: to make the requests takes long, and would be done by every process that collects tests.
schema = schemathesis.pytest.from_fixture("document")
by_chance = schemathesis.pytest.from_fixture("document_by_chance")


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


@by_chance.include(method="POST").parametrize()
@settings(bounded, max_examples=3)
def test_without_the_token_nothing_is_changed(case: schemathesis.Case[Any], address: str) -> None:
    response = case.call_and_validate(base_url=address)
    assert response.status_code == (401 if case.method == "POST" else 405)


def _after_what_is_there(case: schemathesis.Case[Any]) -> None:
    """Let tasks depend on such as there are, and on their batch: no schema knows these."""
    body: Any = case.body
    tasks = body.get("tasks") if isinstance(body, dict) else body
    for task in [body, *(tasks if isinstance(tasks, list) else [])]:
        batch = task.get("depends_batch") if isinstance(task, dict) else None
        if isinstance(batch, str) and 0 < len(batch) <= 255 and "\0" not in batch:
            task["depends_batch"] = BATCH
            if isinstance(task.get("tenant"), str):
                task["tenant"] = None  # as theirs is
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
