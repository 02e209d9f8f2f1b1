"""A real worker as an operator sees it: its metrics, its log and the environment of its scripts tell one story."""

from __future__ import annotations

import json
import os

import httpx
import trio

from continuum.model import NewTask
from tests.e2e.test_failures import wait_for_all
from tests.support.installation import Installation
from tests.support.telemetry import TRACEPARENT
from tests.support.workers import start_worker
from tests.unit.test_observability import OF_PROMETHEUS, QUERIES, selectors

TRACE_ID = TRACEPARENT.split("-")[1]
TASKS = [
    NewTask(code="import os; print(os.environ['TRACEPARENT'])", traceparent=TRACEPARENT),
    NewTask(code="raise SystemExit(3)", max_attempts=1),
]
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


async def test_metrics_log_and_scripts_tell_one_story(light: Installation) -> None:
    # Spans go nowhere, and are made all the same.
    variables = {"LOG_LEVEL": "debug", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}
    async with start_worker(light.environment | variables) as worker:
        ids = await light.database.submit(TASKS)
        hello, _ = await wait_for_all(light.database, ids, 60)
        async with httpx.AsyncClient(timeout=10, headers=OPENMETRICS) as client:
            with trio.fail_after(30):  # outcomes are told a moment after they are written
                while 'status="failed"} 1.0' not in (shown := (await client.get(worker.address + "/metrics")).text):
                    await trio.sleep(0.05)
        os.kill(worker.process.pid, 15)
        assert await worker.wait() == 0
    traceparent = (hello.output or "").strip()
    assert traceparent.split("-")[1] == TRACE_ID, "the script belongs to the trace of its producer"
    lines = [json.loads(line) for line in worker.output.splitlines()]  # every line is an object
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    (ended,) = [line for line in lines if line["event"] == "an attempt ended" and line["task_id"] == ids[0]]
    assert (ended["trace_id"], ended["span_id"]) == (TRACE_ID, traceparent.split("-")[2])
    assert "signed off" in [line["event"] for line in lines], "to its last line"
    assert f'trace_id="{TRACE_ID}"' in shown, "an exemplar leads to the trace"
    assert 'continuum_queue_tasks{continuum_task_status="pending"}' in shown
    asked = {name for _, query in QUERIES for name, _ in selectors(query)} - OF_PROMETHEUS
    assert {name for name in asked if name not in shown} <= {"messaging_client_sent_messages_total"}, (
        "nobody submits here"
    )
