"""The streams that keep pages true, on the virtual clock: what they send, when they end, and what they cost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import trio
import trio.testing
from quart.testing.utils import make_test_scope
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers

from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask, PartialOutput, RunningTask, Statistics
from continuum.nursery.state import WorkerState
from continuum.status import live
from continuum.status.app import create_app
from continuum.status.live import HEARTBEAT, INTERVAL, LIFETIME, OPEN_TO_ALL, STREAMS, Look, Streams
from continuum.status.shared import Unavailable
from continuum.telemetry import Telemetry
from tests.support.harness import settings

LOCAL = {"client": ("127.0.0.1", 40000)}


class Counting(MemoryDatabase):
    """Counts what a dashboard asks for."""

    asked = 0

    async def statistics(self, *, latest: bool = False) -> Statistics:
        self.asked += 1
        return await super().statistics()

    async def running(self, limit: int = 30, tail: int = 500) -> list[RunningTask]:
        self.asked += 1
        return await super().running(limit, tail)


def events(streams: Streams, look: object) -> AsyncIterator[str]:
    return streams._events(look)  # type: ignore[arg-type]


async def collect(streams: Streams, look: object, seconds: float) -> list[str]:
    """What a stream sends within this time."""
    sent = []
    with trio.move_on_after(seconds):
        async with aclosing(events(streams, look)) as stream:  # type: ignore[type-var]
            async for event in stream:
                sent.append(event)  # noqa: PERF401 - what came is kept when the time is over
    return sent


def parts(event: str) -> dict[str, str]:
    name, data = event.splitlines()[:2]
    assert name == "event: parts"
    found: dict[str, str] = json.loads(data.removeprefix("data: "))["parts"]
    return found


async def test_first_everything_is_sent_and_then_what_changed(autojump_clock: trio.testing.MockClock) -> None:
    shown = {"a": "1", "b": "x"}

    async def look() -> Look:
        shown["a"] = str(int(trio.current_time() // 5))
        return Look(dict(shown))

    retry, first, *more = await collect(Streams(trio.Event()), look, 11)
    assert retry.startswith("retry: ")
    assert parts(first) == {"a": "0", "b": "x"}
    assert [parts(event) for event in more] == [{"a": "1"}, {"a": "2"}]


async def test_silence_is_broken_by_a_heartbeat_and_a_stream_ends_after_its_lifetime(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def look() -> Look:
        return Look({"a": "1"})

    began = trio.current_time()
    sent = await collect(Streams(trio.Event()), look, 10 * LIFETIME)
    assert trio.current_time() - began == pytest.approx(LIFETIME, abs=INTERVAL)
    assert sent[2:] == [": still here\n\n"] * (int(LIFETIME / HEARTBEAT) - 1)


async def test_a_stream_ends_at_once_when_the_server_does_and_when_nothing_will_change_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ending = trio.Event()
    streams = Streams(ending)

    async def look() -> Look:
        return Look({"a": "1"}, pause=1000)

    async def last() -> Look:
        return Look({"a": "1"}, last=True)

    assert (await collect(streams, last, 100))[-1] == "event: last\ndata: {}\n\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, streams, look, 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert len(streams) == 1
        ending.set()
    assert trio.current_time() < 1
    assert len(streams) == 0
    assert streams.response(look, privileged=True).status_code == 503


async def test_a_database_that_is_away_is_told_and_looked_for_again(autojump_clock: trio.testing.MockClock) -> None:
    async def look() -> Look:
        if trio.current_time() < 2.5:
            raise Unavailable("connection refused")
        return Look({"a": "1"})

    _, *sent = await collect(Streams(trio.Event()), look, 5)
    assert [event.splitlines()[0] for event in sent] == ["event: problem"] * 3 + ["event: parts"]
    assert "connection refused" in sent[0]


async def test_the_number_of_streams_is_bounded_and_strangers_leave_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    streams = Streams(trio.Event())

    async def look() -> Look:
        return Look({"a": "1"})

    async with trio.open_nursery() as nursery:
        for _ in range(OPEN_TO_ALL):
            nursery.start_soon(collect, streams, look, 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert streams.response(look, privileged=False).status_code == 503
        assert streams.response(look, privileged=True).status_code == 200
        for _ in range(STREAMS - OPEN_TO_ALL):
            nursery.start_soon(collect, streams, look, 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert streams.response(look, privileged=True).status_code == 503
        nursery.cancel_scope.cancel()
    assert len(streams) == 0


async def watch(app: QuartTrio, path: str, seconds: float) -> str:
    """What a browser receives that follows a stream for a while, or to its end."""
    received: list[bytes] = []
    asked = False
    began = trio.current_time()

    async def receive() -> dict[str, object]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await trio.sleep_until(began + seconds)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, bytes]) -> None:
        await trio.lowlevel.checkpoint()
        received.append(message.get("body", b""))

    scope = make_test_scope("http", path, "GET", Headers({"Host": "localhost"}), b"", "http", "", "1.1", LOCAL)
    await app(scope, receive, send)  # type: ignore[arg-type]
    return b"".join(received).decode()


def application(database: MemoryDatabase, ending: trio.Event | None = None) -> QuartTrio:
    state = WorkerState(id="worker-1", slots=4)
    return create_app(settings(), state, database, Telemetry(), ending)


async def test_however_many_look_the_database_is_asked_once_a_second_and_not_at_all_when_nobody_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    database = Counting()
    app = application(database)
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(watch, app, "/ui/events/overview", 9.5)
    assert 2 * 9 <= database.asked <= 2 * 11
    database.asked = 0
    await trio.sleep(60)
    assert database.asked == 0


async def test_a_task_s_stream_follows_its_output_and_ends_with_it(autojump_clock: trio.testing.MockClock) -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(name="report", code="hello")])
    sent: list[str] = []

    async def follow() -> None:
        sent.append(await watch(application(database), "/ui/events/tasks/1", 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.sleep(2.5)
        (task,) = await database.claim("worker-1", 1, lease=1000)
        await database.progress("worker-1", [PartialOutput(task.id, task.attempt, "halfway <there>", "")])
        await trio.sleep(2.5)
        await database.cancel(1)
        await database.release("worker-1", [task.lease])
    assert trio.current_time() < 10
    assert "waits for a slot" in sent[0]
    assert "halfway &lt;there&gt;" in sent[0]
    assert sent[0].endswith("event: last\ndata: {}\n\n")


async def test_a_long_output_is_read_less_often(autojump_clock: trio.testing.MockClock) -> None:
    class Fetching(MemoryDatabase):
        fetched = 0

        async def fetch(self, task_ids):  # type: ignore[no-untyped-def]
            self.fetched += 1
            return await super().fetch(task_ids)

    database = Fetching()
    await database.submit([NewTask(code="hello")])
    (task,) = await database.claim("worker-1", 1, lease=1000)
    await database.progress("worker-1", [PartialOutput(task.id, task.attempt, "x" * 1_000_000, "")])
    sent = await watch(application(database), "/ui/events/tasks/1", 60)
    assert database.fetched <= 5
    assert len(sent) < 2 * live.INTERVAL * 100_000


async def test_a_stream_of_no_task_is_not_begun() -> None:
    asking = application(MemoryDatabase()).test_client()
    assert (await asking.get("/ui/events/nothing", scope_base=LOCAL)).status_code == 404
    assert (await asking.get("/ui/events/tasks/x", scope_base=LOCAL)).status_code == 404
