from dataclasses import replace
from urllib.parse import quote

import trio
import trio.testing
from quart.typing import TestClientProtocol as Client

from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask, Statistics, WorkerReport
from continuum.nursery.state import Running, WorkerState
from continuum.schedules import NewSchedule
from continuum.status.app import create_app
from continuum.status.shared import DEADLINE, MAXIMUM_AGE
from continuum.telemetry import Telemetry
from tests.support.harness import settings
from tests.unit.test_status_views import claimed

REMOTE = {"client": ("192.0.2.7", 40000)}
LOCAL = {"client": ("127.0.0.1", 40000)}


def client(database: MemoryDatabase | None = None, state: WorkerState | None = None, **values: object) -> Client:
    state = state or WorkerState(id="worker-1", slots=4)
    return create_app(settings(**values), state, database or MemoryDatabase(), Telemetry()).test_client()


def busy() -> WorkerState:
    state = WorkerState(id="worker-1", slots=4)
    state.running[claimed().lease] = Running(claimed())
    return state


class CountingDatabase(MemoryDatabase):
    """Counts how often it is asked for its statistics, and can be told to take its time."""

    asked = 0
    delay = 0.0

    async def statistics(self, *, latest: bool = False) -> Statistics:
        self.asked += 1
        await trio.sleep(self.delay)
        return await super().statistics()


async def test_status_describes_the_worker() -> None:
    answer = await client().get("/status")
    assert answer.status_code == 200
    assert (await answer.get_json())["id"] == "worker-1"


async def test_contents_are_served_on_loopback() -> None:
    answer = await client(state=busy()).get("/status", scope_base=LOCAL)
    assert "secret" in (await answer.get_json())["current_task"]["Payload"]


async def test_contents_are_not_served_to_the_network() -> None:
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"Remote-Addr": "127.0.0.1"}, {"Authorization": "Bearer "}):
        answer = await client(state=busy()).get("/status", scope_base=REMOTE, headers=headers)
        assert (await answer.get_json())["current_task"]["Name"] == "report"
        assert "secret" not in await answer.get_data(as_text=True)


async def test_contents_are_served_to_the_network_with_the_token() -> None:
    asking = client(state=busy(), api_token="open sesame")
    answer = await asking.get("/status", scope_base=REMOTE, headers={"Authorization": "Bearer open sesame"})
    assert "secret" in (await answer.get_json())["current_task"]["Payload"]
    answer = await asking.get("/status", scope_base=REMOTE, headers={"Authorization": "Bearer open"})
    assert (await answer.get_json())["current_task"]["Payload"] is None


async def test_global_status_counts_the_tasks_of_the_database() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(code="hello"), NewTask(code="hello")])
    await database.report(WorkerReport("worker-9", "host", 1, "0.1.0", 4, 0, "none"))
    totals = await (await client(database).get("/global-status")).get_json()
    assert (totals["total_tasks"], totals["pending_tasks"], totals["workers"]) == (2, 2, 1)
    assert [worker["id"] for worker in totals["worker_list"]] == ["worker-9"]


async def test_many_pollers_cost_the_database_one_question_a_second(autojump_clock: trio.testing.MockClock) -> None:
    database = CountingDatabase()
    asking = client(database)
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(asking.get, "/global-status")
        await trio.sleep(MAXIMUM_AGE)
    assert database.asked == 3


async def test_a_poller_that_leaves_does_not_take_the_answer_of_the_others_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    database = CountingDatabase()
    database.delay = 1.0
    asking = client(database)
    answers = []

    async def poll() -> None:
        answers.append((await asking.get("/global-status")).status_code)

    with trio.move_on_after(0.5):
        await asking.get("/global-status")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        nursery.start_soon(poll)
    assert answers == [200, 200]


async def test_global_status_says_why_it_cannot_answer_while_the_database_is_away() -> None:
    answer = await client(MemoryDatabase(unavailable=True)).get("/global-status")
    assert answer.status_code == 503
    assert await answer.get_json() == {
        "error": "database unavailable",
        "message": "the in-memory database was made unavailable",
    }


async def test_a_database_that_does_not_answer_holds_no_poller_beyond_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    database = CountingDatabase()
    database.delay = 3600
    asking = client(database)
    answers = []

    async def poll() -> None:
        answers.append(await asking.get("/global-status"))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(poll)
    assert trio.current_time() - began <= DEADLINE + 0.1
    assert [answer.status_code for answer in answers] == [503] * 10
    assert "did not answer within 3 s" in (await answers[0].get_json())["message"]
    database.delay = 0
    await trio.sleep(MAXIMUM_AGE)
    assert (await asking.get("/global-status")).status_code == 200


async def test_readiness_follows_the_worker_s_health_and_life_does_not() -> None:
    state = WorkerState(id="worker-1", slots=4)
    asking = client(state=state)
    answer = await asking.get("/readyz")
    assert (answer.status_code, await answer.get_json()) == (200, {"ready": True, "problems": {}, "notes": {}})
    state.health.report("database", "connection refused")
    answer = await asking.get("/readyz")
    assert answer.status_code == 503
    assert await answer.get_json() == {"ready": False, "problems": {"database": "connection refused"}, "notes": {}}
    assert (await asking.get("/healthz")).status_code == 200
    state.health.report("database", None)
    assert (await asking.get("/readyz")).status_code == 200


async def test_the_page_shows_the_worker_its_tasks_and_the_totals() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(code="hello")] * 3)
    await database.report(WorkerReport("worker-9", "host", 1, "0.1.0", 4, 0, "none"))
    page = await (await client(database, busy()).get("/")).get_data(as_text=True)
    for text in ('id="waiting-count">3<', "host", "No task has failed", "Nothing runs right now"):
        assert text in page
    page = await (await client(database, busy()).get("/ui/workers")).get_data(as_text=True)
    for text in ("worker-1", "worker-9", "1 of 4"):
        assert text in page


async def test_the_page_is_there_and_says_what_is_wrong_while_the_database_is_away() -> None:
    state = WorkerState(id="worker-1", slots=4)
    state.health.report("database", "connection refused")
    answer = await client(MemoryDatabase(unavailable=True), state).get("/")
    page = await answer.get_data(as_text=True)
    assert answer.status_code == 200
    for text in (state.host, "not ready", "connection refused", "made unavailable"):
        assert text in page


async def test_the_page_escapes_whatever_came_from_outside() -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    state = WorkerState(id=attack, slots=4, sandbox=attack, host=attack)
    state.running[claimed().lease] = Running(claimed(name=attack), sandbox=attack)
    state.health.report(attack, attack)
    database = MemoryDatabase()
    await database.report(WorkerReport(attack, attack, 1, attack, 4, 0, attack))
    await database.submit([NewTask(name=attack, tenant=attack, code=attack)])
    await database.claim(attack, 1, lease=30)
    await database.put_schedule(NewSchedule("nightly", "@daily", NewTask(code="x", tenant=attack)))
    row = database.schedule_rows["nightly"]
    database.schedule_rows["nightly"] = replace(row, cron=attack, time_zone=attack, last_error=attack)
    for path in ("/", "/ui/schedules", "/ui/workers", "/ui/tasks", "/ui/tasks/1", "/ui/tasks?worker=" + quote(attack)):
        page = await (await client(database, state).get(path, scope_base=LOCAL)).get_data(as_text=True)
        assert page.count("<script") == 1
        assert "<img" not in page
        assert page.count("&lt;script&gt;") >= 2


async def test_every_answer_carries_the_security_headers() -> None:
    for path in ("/", "/status", "/global-status", "/readyz", "/metrics", "/static/style.css", "/absent"):
        headers = (await client().get(path)).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


async def test_errors_are_json() -> None:
    answer = await client().get("/absent")
    assert (answer.status_code, answer.content_type) == (404, "application/json")
    assert (await answer.get_json())["error"] == "Not Found"
    answer = await client().post("/status")
    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]
    assert (await answer.get_json())["error"] == "Method Not Allowed"


async def test_a_failure_of_ours_is_json_without_a_traceback() -> None:
    class BrokenDatabase(MemoryDatabase):
        async def statistics(self, *, latest: bool = False) -> Statistics:
            raise ZeroDivisionError("a secret detail")

    answer = await client(BrokenDatabase()).get("/global-status")
    text = await answer.get_data(as_text=True)
    assert (answer.status_code, answer.content_type) == (500, "application/json")
    assert "secret" not in text
    assert "Traceback" not in text


async def test_metrics_that_are_off_say_what_to_do() -> None:
    app = create_app(
        settings(), WorkerState(id="worker-1", slots=4), MemoryDatabase(), Telemetry(no_metrics="install something")
    )
    answer = await app.test_client().get("/metrics")
    assert (answer.status_code, (await answer.get_json())["message"]) == (501, "install something")
