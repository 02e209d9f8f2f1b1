"""A worker that is asked through the database to drain, on the virtual clock."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from continuum.cli.complete import complete_worker
from continuum.db.memory import MemoryDatabase
from continuum.model import Status, WorkerReport
from continuum.nursery.state import WorkerState
from tests.support.harness import RunningWorker, worker
from tests.unit.test_ahead import Counting, after_many_short_tasks
from tests.unit.test_cli_tasks import database, run
from tests.unit.test_status_app import client

__all__ = ["database"]

HEARTBEAT = 10.0
REPORT = WorkerReport("one", "host", 1, "0", 4, 1, "fake")


async def state(w: RunningWorker) -> str:
    return next(each.state for each in await w.database.workers() if each.id == w.state.id)


async def test_a_drained_worker_finishes_what_runs_and_claims_again_when_it_may(autojump_clock: MockClock) -> None:
    memory = MemoryDatabase()
    async with worker(memory, slots=2, polling_interval=600) as w:
        first, second, third = await w.submit("sleep 30", "sleep 30", "hello")
        await w.wait_for(first, second, status=Status.PROCESSING)
        assert await memory.drain(w.state.id)
        await trio.sleep(HEARTBEAT + 1)
        assert w.state.notes() == {"drain": "draining: 2 tasks run on"}
        assert w.state.health.ready
        assert await state(w) == "draining"
        assert [(await w.record(each)).status for each in (first, second, third)] == [
            "processing",
            "processing",
            "pending",
        ]
        await w.wait_for(first, second)
        await trio.sleep(HEARTBEAT)
        assert w.state.notes() == {"drain": "drained"}
        assert await state(w) == "drained"
        assert (await w.record(third)).status == Status.PENDING
        assert await memory.drain(w.state.id, False)
        await trio.sleep(HEARTBEAT)
        assert (await w.record(third)).status == Status.COMPLETED
        assert await state(w) == "alive"


async def test_a_worker_that_drains_gives_back_what_it_has_not_begun(autojump_clock: MockClock) -> None:
    memory = Counting()
    async with worker(memory, slots=2, lease_seconds=1.2, polling_interval=600) as w:
        await after_many_short_tasks(w)
        await memory.drain(w.state.id)
        ids = await w.submit(*["sleep 10"] * 12)
        await trio.sleep(0.9)
        assert not w.state.waiting
        statuses = [(await w.record(task_id)).status for task_id in ids]
        assert statuses.count(Status.PENDING) >= 10
        await trio.sleep(11)
        assert await state(w) == "drained"


async def test_a_claim_under_way_when_the_worker_drains_is_given_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryDatabase()
    claim = memory.claim

    async def slow(*args: object, **values: object) -> object:
        found = await claim(*args, **values)  # type: ignore[arg-type]
        await trio.sleep(3)
        return found

    async with worker(memory, slots=1, polling_interval=600) as w:
        await trio.sleep(HEARTBEAT - 1)
        monkeypatch.setattr(memory, "claim", slow)
        (task_id,) = await w.submit("hello")
        await memory.drain(w.state.id)
        await trio.sleep(2)
        assert w.state.draining
        assert not w.state.drained
        await trio.sleep(2)
        record = await w.record(task_id)
        assert (record.status, record.attempt, record.released) == (Status.PENDING, 1, 1)
        assert w.state.drained


def test_workers_are_listed_and_drained_by_command(database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continuum.db.memory.ALIVE_FOR", 1e9)  # each command has a clock of its own
    assert run("workers", "list")[0].startswith("no worker was seen")
    assert "no worker nobody runs" in run("workers", "drain", "nobody", code=5)[1]

    trio.run(database.report, REPORT)
    assert run("workers", "list")[0] == "one  alive, 1 of 4 slots in use, fake\n"
    assert "claims nothing more from its next heartbeat on" in run("workers", "drain", "one")[0]
    assert (
        "one is not drained yet: it ran 1 tasks"
        in run("workers", "drain", "one", "--wait", "--timeout", "0", code=6)[1]
    )
    trio.run(database.report, replace(REPORT, running=0, drained=True))
    assert run("workers", "drain", "one", "--wait")[0] == "one is drained\n"
    assert json.loads(run("workers", "list", "--json")[0])["state"] == "drained"
    assert "claims again" in run("workers", "undrain", "one")[0]
    assert complete_worker("on") == [("one", "alive")]


async def test_a_worker_is_drained_over_http(autojump_clock: MockClock) -> None:
    memory = MemoryDatabase()
    await memory.report(REPORT)
    app = client(memory, api_token="open sesame")
    token = {"Authorization": "Bearer open sesame"}
    assert (await app.post("/workers/one/drain")).status_code == 401
    answer = await app.post("/workers/one/drain", headers=token)
    assert (answer.status_code, await answer.get_json()) == (200, {"id": "one", "draining": True})
    assert [each.state for each in await memory.workers()] == ["draining"]
    assert (await app.post("/workers/one/undrain", headers=token)).status_code == 200
    assert [each.state for each in await memory.workers()] == ["alive"]
    assert (await app.post("/workers/two/drain", headers=token)).status_code == 404


async def test_an_orchestrator_finds_a_drained_worker_ready(autojump_clock: MockClock) -> None:
    drained = WorkerState(id="one", slots=4, draining=True, drained=True)
    answer = await client(state=drained).get("/readyz")
    assert answer.status_code == 200
    assert await answer.get_json() == {"ready": True, "problems": {}, "notes": {"drain": "drained"}}


async def test_a_worker_is_drained_from_the_dashboard_by_who_signed_in(autojump_clock: MockClock) -> None:
    memory = MemoryDatabase()
    await memory.report(REPORT)
    app = client(memory, api_token="open sesame")
    assert "/ui/workers/drain?id=one" in await (await app.get("/ui/workers")).get_data(as_text=True)
    assert (await app.get("/ui/workers/drain?id=one")).status_code == 303
    own = {"Sec-Fetch-Site": "same-origin"}
    await app.post("/ui/sign-in", form={"token": "open sesame", "next": "/"}, headers=own)
    page = await (await app.get("/ui/workers/drain?id=one")).get_data(as_text=True)
    (token,) = set(re.findall('name="form_token" value="([^"]+)"', page))
    form = {"id": "one", "form_token": token}
    assert (await app.post("/ui/workers/drain", form=form | {"form_token": "x"}, headers=own)).status_code == 403
    assert [each.state for each in await memory.workers()] == ["alive"]
    answer = await app.post("/ui/workers/drain", form=form, headers=own)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/workers?said=drain")
    assert [each.state for each in await memory.workers()] == ["draining"]
    await app.post("/ui/workers/drain", form=form | {"undrain": "1"}, headers=own)
    assert [each.state for each in await memory.workers()] == ["alive"]
