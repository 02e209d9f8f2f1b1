"""Streams of what a task writes, on the virtual clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from continuum.db.memory import MemoryDatabase
from continuum.model import Completion, Lease, NewTask, PartialOutput, Status
from continuum.nursery.state import WorkerState
from continuum.status import api_logs, api_tasks
from continuum.status.api_logs import HEARTBEAT, LONGEST, LONGEST_STREAM
from continuum.status.app import StatusApp, create_app
from continuum.telemetry import Telemetry
from tests.support.harness import settings

BEARER = {"Authorization": "Bearer t"}


def application(database: MemoryDatabase, ending: trio.Event | None = None) -> StatusApp:
    return create_app(settings(api_token="t"), WorkerState(id="w", slots=1), database, Telemetry(), ending)


async def running(database: MemoryDatabase) -> Lease:
    await database.submit([NewTask(code="x")])
    (task,) = await database.claim("w", 1, lease=1e6)
    return task.lease


async def shown(database: MemoryDatabase, lease: Lease, output: str, error_output: str = "") -> None:
    await database.progress("w", [PartialOutput(*lease, output, error_output)])


async def ended(database: MemoryDatabase, lease: Lease, output: str) -> None:
    await database.complete("w", [Completion(*lease, Status.COMPLETED, 0, output, "", None)])


class Stream:
    """The events that have come, each with the time it came at."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.times: list[float] = []

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


@asynccontextmanager
async def followed(app: StatusApp, path: str = "/tasks/1/logs") -> AsyncIterator[Stream]:
    """A client that follows a log; the block goes on while it does, and it is waited for at the end."""
    stream = Stream()

    async def follow() -> None:
        async with app.test_client().request(path, headers=BEARER) as request:
            await request.send_complete()
            rest = ""
            while not stream.events or stream.events[-1]["type"] != "end":
                rest += (await request.receive()).decode()
                *lines, rest = rest.split("\n")
                for line in filter(None, lines):
                    stream.events.append(json.loads(line))
                    stream.times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        yield stream


async def test_a_log_is_followed_to_the_end_of_its_task(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    lease = await running(database)
    async with followed(application(database)) as stream:
        await trio.sleep(2)
        await shown(database, lease, "one\n", "oh\n")
        await trio.sleep(2)
        await shown(database, lease, "one\ntwo\n", "oh\n")
        await trio.sleep(2)
        await ended(database, lease, "one\ntwo\nthree\n")
    assert stream.events == [
        {"type": "output", "attempt": 1, "text": "one\n"},
        {"type": "error_output", "attempt": 1, "text": "oh\n"},
        {"type": "output", "attempt": 1, "text": "two\n"},
        {"type": "output", "attempt": 1, "text": "three\n"},
        {"type": "end", "status": "completed", "exit_code": 0},
    ]
    assert stream.times[-1] - 6 <= LONGEST + 0.01


async def test_a_log_is_read_as_it_is_now(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    lease = await running(database)
    await shown(database, lease, "one\n")
    async with followed(application(database), "/tasks/1/logs?follow=false") as stream:
        pass
    assert stream.events == [
        {"type": "output", "attempt": 1, "text": "one\n"},
        {"type": "end", "status": "processing"},
    ]


async def test_events_of_a_browser_have_names(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    lease = await running(database)
    await ended(database, lease, "a\n\nb\n")
    answer = (
        await application(database).test_client().get("/tasks/1/logs", headers=BEARER | {"Accept": "text/event-stream"})
    )
    assert answer.content_type.startswith("text/event-stream")
    assert await answer.get_data(as_text=True) == (
        'event: output\ndata: {"type":"output","attempt":1,"text":"a\\n\\nb\\n"}\n\n'
        'event: end\ndata: {"type":"end","status":"completed","exit_code":0}\n\n'
    )


async def test_long_outputs_come_in_pieces(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    lease = await running(database)
    await ended(database, lease, "ü" * (api_logs.PIECE * 2 + 1))
    async with followed(application(database)) as stream:
        pass
    assert [len(event.get("text", "")) for event in stream.events] == [api_logs.PIECE, api_logs.PIECE, 1, 0]


async def test_a_silent_task_is_heard_to_be_alive(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    lease = await running(database)
    async with followed(application(database)) as stream:
        await trio.sleep(3.5 * HEARTBEAT)
        await ended(database, lease, "")
    assert stream.types == ["heartbeat"] * 3 + ["end"]


async def test_a_stream_ends_some_time_and_when_the_server_does(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    await running(database)
    began = trio.current_time()
    async with followed(application(database)) as stream:
        pass
    assert stream.times[-1] - began <= LONGEST_STREAM + LONGEST
    assert stream.events[-1]["status"] == "processing"
    assert "ask again" in stream.events[-1]["reason"]
    ending = trio.Event()
    async with followed(application(database, ending)) as stream:
        await trio.sleep(1)
        ending.set()
        await trio.sleep(0.01)
        assert stream.events[-1]["reason"] == "this server is ending; ask again"


async def test_a_short_outage_is_waited_out_and_a_long_one_told(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    lease = await running(database)
    async with followed(application(database)) as stream:
        await trio.sleep(1)
        database.unavailable = True
        await trio.sleep(20)
        database.unavailable = False
        await ended(database, lease, "done\n")
    assert stream.types == ["heartbeat", "output", "end"]
    await running(database)
    async with followed(application(database), "/tasks/2/logs") as stream:
        await trio.sleep(1)
        database.unavailable = True
        await trio.sleep(60)
        database.unavailable = False
    assert "made unavailable" in stream.events[-1]["reason"]
    assert stream.events[-1]["status"] == "processing"


async def test_another_attempt_begins_with_its_own_first_line(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    lease = await running(database)
    async with followed(application(database)) as stream:
        await shown(database, lease, "one\n")
        await trio.sleep(1)
        await database.release("w", [lease])
        (again,) = await database.claim("w", 1, lease=30)
        await shown(database, again.lease, "one\n")
        await trio.sleep(1)
        await ended(database, again.lease, "one\n")
    assert [(event["attempt"], event["text"]) for event in stream.events[:-1]] == [(1, "one\n"), (2, "one\n")]


async def test_there_is_a_most_of_streams(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_tasks, "MOST_STREAMS", 1)
    database = MemoryDatabase()
    lease = await running(database)
    app = application(database)
    async with followed(app):
        await trio.sleep(1)
        assert (await app.test_client().get("/tasks/1/logs", headers=BEARER)).status_code == 429
        await ended(database, lease, "")
    assert (await app.test_client().get("/tasks/1/logs", headers=BEARER)).status_code == 200
    assert (await app.test_client().get("/tasks/9/logs", headers=BEARER)).status_code == 404
