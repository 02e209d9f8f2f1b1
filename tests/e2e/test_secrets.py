"""What tasks hold, and the database's password, stay out of everything that a worker tells of itself."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psycopg
import pytest
import trio

from continuum.model import NewTask, TaskRecord
from tests.conftest import require
from tests.e2e.test_failures import wait_for_all, wait_until_running
from tests.support.installation import Installation
from tests.support.proxy import Fault
from tests.support.workers import WorkerProcess, start_worker

CONTENTS = ("canary-payload", "canary-stdout", "canary-stderr", "canary-exception", "canary-syntax")
CODE = ("canary-literal", "canary-comment")
PASSWORD = "canary-password"
EVERYTHING = (*CONTENTS, *CODE, PASSWORD)

FAILS = """
import json, os, pathlib, sys, time  # canary-comment
password = "canary-literal"
print("canary-stdout", dict(os.environ), pathlib.Path("/proc/self/cmdline").read_bytes(), flush=True)
print("canary-stderr", file=sys.stderr, flush=True)
time.sleep(json.loads(payload)["seconds"])
raise ValueError("canary-exception of " + payload)
"""
TASKS = [
    NewTask(name="fails", code=FAILS, payload='{"word": "canary-payload", "seconds": 4}', max_attempts=1),
    NewTask(name="broken", code="canary-syntax = = 1", payload='"canary-payload"', max_attempts=2),
]

AS_A_STRANGER = {"X-Forwarded-For": "203.0.113.9"}
"""As through a proxy, which is what any client but one on this machine looks like."""
PATHS = ("/status", "/global-status", "/readyz", "/healthz", "/metrics", "/", "/nothing")


@pytest.fixture
async def guarded(breakable: Installation) -> Installation:
    """An installation whose workers log in with a password."""
    hba = breakable.server.data / "pg_hba.conf"
    hba.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + hba.read_text())

    def make_user() -> None:
        with psycopg.connect(breakable.url, autocommit=True) as connection:
            connection.execute(f"CREATE USER guarded SUPERUSER PASSWORD '{PASSWORD}'".encode())
            connection.execute("SELECT pg_reload_conf()")

    await trio.to_thread.run_sync(make_user)
    return breakable


def url_of(port: int, password: str) -> str:
    return f"postgresql://guarded:{password}@127.0.0.1:{port}/continuum"


def talkative(payloads: bool) -> dict[str, str]:
    """The variables of a worker that tells everything it may."""
    screening = {"CODE_POLICY": "warn", "CODE_POLICY_SEVERITY": "low"}
    require("bandit", importlib.util.find_spec("bandit") is not None, "the extra `screening` is not installed")
    return screening | {
        "LOG_LEVEL": "debug",
        "LOG_PAYLOADS": str(payloads).lower(),
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "console",
    }


async def told_over_http(worker: WorkerProcess, headers: dict[str, str]) -> str:
    """All answers of the status server."""
    async with httpx.AsyncClient(timeout=10, headers=headers) as client:
        return "\n".join([(await client.get(worker.address + path)).text for path in PATHS])


@asynccontextmanager
async def worker_through_an_outage(
    guarded: Installation, payloads: bool
) -> AsyncIterator[tuple[WorkerProcess, list[str], list[TaskRecord]]]:
    """A worker that has run TASKS, with an outage while the first ran; what strangers saw; and what was recorded."""
    async with guarded.proxied() as (proxy, environment):
        login = {"DATABASE_URL": url_of(proxy.port, PASSWORD)}
        async with start_worker(environment | talkative(payloads) | login) as worker:
            ids = await guarded.database.submit(TASKS)
            await wait_until_running(guarded.database, ids[0])
            seen = [await told_over_http(worker, AS_A_STRANGER)]
            local = await told_over_http(worker, {})
            assert "canary-payload" in local, "there is something to see, and who sits at the machine may see it"
            assert "canary-stdout" in local
            proxy.set(Fault.REFUSE)
            with trio.fail_after(30):
                while (await worker.get("/readyz")).status_code == 200:
                    await trio.sleep(0.05)
            seen.append(await told_over_http(worker, AS_A_STRANGER))
            with trio.fail_after(30):  # the script ends meanwhile, and its outcome waits
                while (await worker.get("/status")).json()["running"]:
                    await trio.sleep(0.05)
            proxy.set(Fault.NONE)
            records = await wait_for_all(guarded.database, ids, 60)
            seen.append(await told_over_http(worker, AS_A_STRANGER))
        yield worker, seen, records


def found_in(text: str, canaries: tuple[str, ...]) -> list[str]:
    return [canary for canary in canaries if canary in text]


async def test_nothing_that_a_task_holds_and_no_password_is_told(guarded: Installation) -> None:
    async with worker_through_an_outage(guarded, payloads=False) as (worker, seen, records):
        pass
    recorded = json.dumps(
        [(record.output, record.error_output, record.last_error, record.payload) for record in records]
    )
    assert found_in(recorded, CONTENTS) == list(CONTENTS), "the canaries went their whole way"
    assert PASSWORD not in recorded, "and the password never came into a sandbox"
    told = worker.output
    assert "the database is unavailable" in told
    assert "an attempt ended" in told
    assert "B105" in told
    assert "execute tasks" in told
    assert "messaging.process.duration" in told
    assert found_in(told, EVERYTHING) == []
    assert found_in("".join(seen), EVERYTHING) == []


async def test_payloads_and_outputs_are_told_where_they_are_asked_for_and_the_password_never(
    guarded: Installation,
) -> None:
    async with worker_through_an_outage(guarded, payloads=True) as (worker, seen, _):
        pass
    told = worker.output
    lines = [json.loads(line) for line in told.splitlines() if '"an attempt ended"' in line]
    assert found_in(json.dumps(lines), CONTENTS) == list(CONTENTS), "in the logs"
    spans = told[told.index('"name": "execute tasks"') :]
    assert found_in(spans, CONTENTS) == list(CONTENTS), "and in the spans"
    assert "canary-literal" in told, "which a finding quotes"
    assert PASSWORD not in told
    assert found_in("".join(seen), EVERYTHING) == [], "strangers see nothing of it"


async def test_a_refused_login_does_not_show_the_password(guarded: Installation) -> None:
    parts = {
        "DATABASE_URL": "",
        "DB_USER": "guarded",
        "DB_PASSWORD": "canary-password is wrong",
        "DB_HOST": "127.0.0.1",
        "DB_PORT": str(guarded.server.port),
    }
    async with start_worker(guarded.environment | talkative(False) | parts, ready=False) as worker:
        await worker.until_said("password authentication failed", seconds=30)
    assert "canary" not in worker.output


async def test_a_worker_that_ends_unexpectedly_shows_nothing_of_what_it_held(guarded: Installation) -> None:
    """The server's own words for what it refuses quote the whole row."""

    def refuse() -> None:
        with psycopg.connect(guarded.url, autocommit=True) as connection:
            connection.execute("ALTER TABLE tasks ADD CONSTRAINT no_canary CHECK (output NOT LIKE '%canary%')")

    await trio.to_thread.run_sync(refuse)
    login = {"DATABASE_URL": url_of(guarded.server.port, PASSWORD)}
    await guarded.database.submit([NewTask(code=FAILS, payload='{"word": "canary-payload", "seconds": 0}')])
    async with start_worker(guarded.environment | talkative(False) | login, ready=False) as worker:
        assert await worker.wait(60) == 1
    assert "violates check constraint" in worker.output
    assert "an unexpected error ended the program" in worker.output
    assert found_in(worker.output.replace("no_canary", ""), EVERYTHING) == []
