"""The HTTP API on the in-memory database: who may, what is answered, and what when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from quart.typing import TestClientProtocol as Client

from continuum.db.errors import InvalidTask, OutcomeUnknown, SchemaMismatch
from continuum.db.memory import MemoryDatabase
from continuum.model import CodeRecord, Completion, Limit, NewTask, Scope, Statistics, Status
from continuum.nursery.state import WorkerState
from continuum.retry import RetryPolicy
from continuum.status import api_pressure
from continuum.status.app import create_app
from continuum.telemetry import Telemetry
from tests.support.harness import settings

TOKEN = "open sesame"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LOCAL = {"client": ("127.0.0.1", 40000)}
REMOTE = {"client": ("192.0.2.7", 40000)}
CODE_ID = "6f1d2a9c-0a52-5d7e-9a53-0f3d51c0de00"


def client(database: MemoryDatabase | None = None, **values: object) -> Client:
    state = WorkerState(id="worker-1", slots=4)
    chosen = settings(**({"api_token": TOKEN} | values))
    return create_app(chosen, state, database or MemoryDatabase(), Telemetry()).test_client()


async def post(asking: Client, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    given = {"headers": BEARER | {name.replace("_", "-"): value for name, value in headers.items()}}
    answer = await asking.post(path, json=body, **given) if body is not None else await asking.post(path, **given)
    return answer.status_code, await answer.get_json()


async def get(asking: Client, path: str) -> tuple[int, Any]:
    answer = await asking.get(path, headers=BEARER)
    return answer.status_code, await answer.get_json()


async def finished(database: MemoryDatabase, **values: object) -> int:
    (task_id,) = await database.submit([NewTask(code="x", **values)])  # type: ignore[arg-type]
    (task,) = await database.claim("worker-1", 1, lease=30)
    await database.complete(
        "worker-1", [Completion(task_id, task.attempt, Status.FAILED, 1, "out\n", "err\n", "it broke\nbadly")]
    )
    return task_id


# -- who may -----------------------------------------------------------------------------------------------------------

CHANGES = [
    "/tasks",
    "/tasks/1/cancel",
    "/tasks/1/retry",
    "/codes",
    "/schedules",
    "/schedules/a/pause",
    "/schedules/a/resume",
]
READS = [
    "/tasks",
    "/tasks/1",
    "/tasks/1/logs",
    "/tasks/1/wait",
    "/codes",
    f"/codes/{CODE_ID}",
    "/schedules",
    "/schedules/a",
]


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "Basic open sesame", "Bearer "])
async def test_nothing_is_changed_without_the_token_not_even_from_this_machine(
    path: str, authorization: str | None
) -> None:
    database = MemoryDatabase()
    headers = {} if authorization is None else {"Authorization": authorization}
    for whence in (LOCAL, REMOTE):
        answer = await client(database).post(path, json={"code": "x"}, headers=headers, scope_base=whence)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert "API_TOKEN" in (await answer.get_json())["message"]
    assert not database.tasks


@pytest.mark.parametrize("path", CHANGES)
async def test_a_worker_without_a_token_takes_nothing_and_says_what_to_do(path: str) -> None:
    for token in (None, ""):
        answer = await client(api_token=token).post(path, json={"code": "x"}, headers={"Authorization": "Bearer "})
        assert answer.status_code == 403
        assert "set API_TOKEN" in (await answer.get_json())["message"]


async def test_two_tokens_are_none() -> None:
    headers = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {TOKEN}")]
    for given in (headers, headers[::-1]):
        answer = await client().post("/tasks", json={"code": "x"}, headers=given)
        assert answer.status_code == 401


@pytest.mark.parametrize("path", READS)
async def test_contents_are_read_with_the_token_or_on_this_machine(path: str) -> None:
    assert (await client().get(path, scope_base=REMOTE)).status_code == 401
    assert (await client().get(path, scope_base=REMOTE | {"headers": []})).status_code == 401
    local = await client().get(path, scope_base=LOCAL, headers={"X-Forwarded-For": "127.0.0.1"})
    assert local.status_code == 401


# -- submitting --------------------------------------------------------------------------------------------------------


async def test_a_task_is_submitted_and_read_back() -> None:
    database = MemoryDatabase()
    asking = client(database)
    answer = await asking.post("/tasks", json={"code": "print(1)", "name": "n", "payload": {"a": [1]}}, headers=BEARER)
    assert answer.status_code == 201
    assert await answer.get_json() == {"id": 1, "id_str": "1"}
    assert answer.headers["Location"] == "/tasks/1"
    status, task = await get(asking, answer.headers["Location"])
    assert status == 200
    assert (task["id"], task["id_str"], task["name"], task["status"]) == (1, "1", "n", "pending")
    assert task["payload"] == {"a": [1]}
    assert task["created_at"].endswith("Z")


async def test_several_tasks_are_submitted_together() -> None:
    database = MemoryDatabase()
    status, body = await post(client(database), "/tasks", {"tasks": [{"code": "a"}, {"code": "b"}]})
    assert (status, body) == (201, {"tasks": [{"id": 1, "id_str": "1"}, {"id": 2, "id_str": "2"}]})
    status, body = await post(client(database), "/tasks", [{"code": "a"}, {"code": 1}])
    assert (status, body["problems"]) == (
        422,
        [{"field": "[1].code", "given": "1", "allowed": "a valid string"}],
    )
    assert len(database.tasks) == 2


async def test_the_same_key_again_yields_the_same_task() -> None:
    database = MemoryDatabase()
    asking = client(database)
    first = await post(asking, "/tasks", {"code": "x"}, Idempotency_Key="k")
    again = await post(asking, "/tasks", {"code": "x", "idempotency_key": "k"})
    assert first == again == (201, {"id": 1, "id_str": "1"})
    assert len(database.tasks) == 1


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "x" * 256])
async def test_a_key_that_is_none_is_refused(key: str) -> None:
    status, body = await post(client(), "/tasks", {"code": "x"}, Idempotency_Key=key)
    assert (status, body["problems"][0]["field"]) == (422, "Idempotency-Key")


async def test_two_keys_are_none() -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), *BEARER.items()]
    assert (await client().post("/tasks", json={"code": "x"}, headers=headers)).status_code == 422


async def test_the_trace_of_the_request_goes_on_in_its_tasks() -> None:
    database = MemoryDatabase()
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    await post(client(database), "/tasks", {"code": "x"}, Traceparent=traceparent)
    await post(client(database), "/tasks", {"code": "x"}, Traceparent="nonsense")
    assert (database.tasks[1].traceparent or "")[:35] == traceparent[:35]
    assert database.tasks[2].traceparent is None


async def test_a_webhook_needs_a_secret_to_be_signed_with() -> None:
    database = MemoryDatabase()
    task = {"code": "x", "webhook": "https://hooks.example.com/"}
    status, body = await post(client(database), "/tasks", task)
    assert (status, body["error"]) == (403, "no webhooks")
    assert "WEBHOOK_SECRET" in body["message"]
    assert not database.tasks
    secret = "whsec_YSBzZWNyZXQgb2YgdGhlIHRlc3RzIG9mIHRoZSBBUEk="
    assert (await post(client(database, webhook_secret=secret), "/tasks", task))[0] == 201
    assert database.tasks[1].webhook == task["webhook"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": ""},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_another_kind_of_body_is_refused(headers: dict[str, str]) -> None:
    answer = await client().post("/tasks", data=b'{"code":"x"}', headers=BEARER | headers)
    assert answer.status_code == 415


async def test_a_body_that_is_too_large_is_refused_with_the_setting() -> None:
    asking = client(api_max_body_mb=1)
    fits = {"code": "#" * (1024 * 1024 - 100)}
    assert (await post(asking, "/tasks", fits))[0] == 201
    status, body = await post(asking, "/tasks", {"code": "#" * 1024 * 1024})
    assert (status, body["error"]) == (413, "body too large")
    assert "API_MAX_BODY_MB=1" in body["message"]


async def test_a_body_that_does_not_end_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    asking = client()
    async with asking.request(
        "/tasks", method="POST", headers=BEARER | {"Content-Type": "application/json"}
    ) as request:
        await request.send(b'{"code":')
    answer = await request.as_response()
    assert answer.status_code == 408


async def test_a_large_body_is_taken_apart_beside_everything_else() -> None:
    database = MemoryDatabase()
    rows = [{"id": number, "name": f"name {number}", "value": number / 3} for number in range(50_000)]
    status, _ = await post(client(database), "/tasks", {"code": "x", "payload": rows})
    assert status == 201
    assert json.loads(database.tasks[1].payload or "") == rows


# -- the database is away, or says no ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [*(("POST", path) for path in CHANGES), *(("GET", path) for path in READS)]
)
async def test_an_outage_is_a_503_that_says_when_to_try_again(method: str, path: str) -> None:
    if path.endswith("/wait"):
        return  # see test_api_waits
    asking = client(MemoryDatabase(unavailable=True), api_max_pending=0)
    body = {"code": "x"} if path in ("/tasks", "/codes") and method == "POST" else None
    body = {"code": "x", "name": "a", "cron": "@daily"} if (path, method) == ("/schedules", "POST") else body
    answer = await asking.open(path, method=method, headers=BEARER, json=body)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await answer.get_json())["error"] == "database unavailable"


class Unsure(MemoryDatabase):
    async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
        raise OutcomeUnknown("the connection was lost")

    async def store_code(self, code: str, requirements: str | None = None, retry: RetryPolicy | None = None) -> str:
        raise OutcomeUnknown("the connection was lost")


async def test_after_an_unknown_outcome_a_client_knows_whether_it_may_repeat() -> None:
    asking = client(Unsure())
    for body, repeat in (
        ({"code": "x", "idempotency_key": "k"}, True),
        ({"code": "x"}, False),
        ([{"code": "x", "idempotency_key": "k"}, {"code": "x"}], False),
        ([{"code": "x", "idempotency_key": "k"}, {"code": "x", "idempotency_key": "l"}], True),
    ):
        status, answer = await post(asking, "/tasks", body)
        assert (status, answer["error"], answer["repeat"]) == (503, "outcome unknown", repeat)
    assert (await post(asking, "/tasks", {"code": "x"}, Idempotency_Key="k"))[1]["repeat"] is True
    assert (await post(asking, "/codes", {"code": "x"}))[1]["repeat"] is True


async def test_a_code_that_is_not_there_is_named() -> None:
    class WithKeys(MemoryDatabase):
        async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
            raise InvalidTask("the database refused a task: tasks_code_fkey")

    status, body = await post(client(WithKeys()), "/tasks", {"code_id": CODE_ID})
    assert (status, body["error"]) == (409, "no such code")
    assert CODE_ID in body["message"]
    status, body = await post(client(WithKeys()), "/tasks", {"code": "x"})
    assert (status, body["message"]) == (422, "the database refused a task: tasks_code_fkey")


async def test_an_old_schema_says_what_to_run() -> None:
    class Old(MemoryDatabase):
        async def fetch_code(self, code_id: str) -> CodeRecord | None:
            raise SchemaMismatch("run `continuum migrate`")

    status, body = await get(client(Old()), f"/codes/{CODE_ID}")
    assert (status, body["message"]) == (503, "run `continuum migrate`")


async def test_a_failure_of_ours_is_told_to_nobody() -> None:
    class Broken(MemoryDatabase):
        async def fetch_code(self, code_id: str) -> CodeRecord | None:
            raise ZeroDivisionError("a secret detail")

    status, body = await get(client(Broken()), f"/codes/{CODE_ID}")
    assert status == 500
    assert "secret" not in json.dumps(body)


# -- backpressure ------------------------------------------------------------------------------------------------------


class Counting(MemoryDatabase):
    counted = 0

    async def statistics(self, *, latest: bool = False) -> Statistics:
        self.counted += 1
        return await super().statistics()


async def test_a_queue_that_is_full_takes_no_more_until_it_is_shorter(autojump_clock: trio.testing.MockClock) -> None:
    database = Counting()
    asking = client(database, api_max_pending=3)
    statuses = [(await post(asking, "/tasks", {"code": "x"}))[0] for _ in range(5)]
    assert statuses == [201, 201, 201, 429, 429]
    assert database.counted == 1  # a second has not gone by
    answer = await asking.post("/tasks", json={"code": "x"}, headers=BEARER)
    assert int(answer.headers["Retry-After"]) >= 1
    assert "API_MAX_PENDING=3" in (await answer.get_json())["message"]
    await database.claim("worker-1", 2, lease=30)
    await trio.sleep(1)
    assert (await post(asking, "/tasks", {"code": "x"}))[0] == 201
    assert database.counted == 2


async def test_a_tenant_at_its_limit_is_told_so_and_when_to_try_again() -> None:
    database = MemoryDatabase()
    await database.set_limit(Limit(Scope.TENANT, "acme", max_pending=1))
    asking = client(database)
    assert (await post(asking, "/tasks", {"code": "x", "tenant": "acme"}))[0] == 201
    answer = await asking.post("/tasks", json={"code": "x", "tenant": "acme"}, headers=BEARER)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    told = await answer.get_json()
    assert told["error"] == "queue full"
    assert "of tenant 'acme' are pending and LIMITS allows 1" in told["message"]
    assert (await post(asking, "/tasks", {"code": "x"}))[0] == 201


async def test_a_full_queue_still_lets_tasks_be_read_and_cancelled() -> None:
    database = MemoryDatabase()
    asking = client(database, api_max_pending=1)
    await post(asking, "/tasks", {"code": "x"})
    assert (await post(asking, "/tasks", {"code": "x"}))[0] == 429
    assert (await get(asking, "/tasks/1"))[0] == 200
    assert (await post(asking, "/tasks/1/cancel"))[0] == 200


class Slow(MemoryDatabase):
    async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
        await trio.sleep(1)
        return await super().submit(tasks)


async def test_too_many_submissions_at_once_are_turned_away(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_pressure, "MOST_SUBMISSIONS", 3)
    asking = client(Slow(), api_max_pending=0)
    statuses = []

    async def submit() -> None:
        statuses.append((await post(asking, "/tasks", {"code": "x"}))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(submit)
    assert sorted(statuses) == [201, 201, 201, 429, 429]
    assert (await post(asking, "/tasks", {"code": "x"}))[0] == 201


async def test_bodies_that_would_take_too_much_memory_are_not_even_read(autojump_clock: trio.testing.MockClock) -> None:
    asking = client(Slow(), api_max_body_mb=1, api_max_pending=0)
    statuses = []

    async def submit() -> None:
        statuses.append((await post(asking, "/tasks", {"code": "#" * 1_000_000}))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(submit)
    assert sorted(statuses) == [201] * 4 + [429] * 4


async def test_a_database_that_is_slow_holds_nobody_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    class Stuck(MemoryDatabase):
        async def fetch_code(self, code_id: str) -> CodeRecord | None:
            await trio.sleep(60)
            return None

    asking = client(Stuck())
    statuses = []

    async def read() -> None:
        statuses.append((await get(asking, f"/codes/{CODE_ID}"))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(read)
    assert sorted(statuses) == [404, 404, 503, 503]


# -- the other operations ----------------------------------------------------------------------------------------------


async def test_tasks_are_listed_page_by_page() -> None:
    database = MemoryDatabase()
    asking = client(database)
    await database.submit([NewTask(code="x", name=f"report {number}") for number in range(5)])
    status, page = await get(asking, "/tasks?text=REPORT&limit=2")
    assert status == 200
    assert [task["id"] for task in page["tasks"]] == [5, 4]
    assert page["next"] == "4"
    _, page = await get(asking, f"/tasks?limit=3&before={page['next']}&status=pending&status=failed")
    assert [task["id"] for task in page["tasks"]] == [3, 2, 1]
    _, page = await get(asking, "/tasks?before=1")
    assert page == {"tasks": [], "next": None}


async def test_a_task_that_failed_tells_all() -> None:
    database = MemoryDatabase()
    task_id = await finished(database, name="n")
    _, task = await get(client(database), f"/tasks/{task_id}")
    assert (task["status"], task["exit_code"], task["output"], task["error_output"]) == ("failed", 1, "out\n", "err\n")
    assert task["history"][0]["message"] == "it broke\nbadly"
    _, page = await get(client(database), "/tasks?status=failed")
    assert page["tasks"][0]["error"] == "it broke"


async def test_a_task_is_cancelled_once() -> None:
    asking = client()
    await post(asking, "/tasks", {"code": "x"})
    assert await post(asking, "/tasks/1/cancel") == (200, {"id": 1, "id_str": "1", "outcome": "cancelled"})
    assert (await post(asking, "/tasks/1/cancel"))[1]["outcome"] == "finished"
    assert (await post(asking, "/tasks/2/cancel"))[0] == 404


async def test_a_task_is_retried_as_one_copy() -> None:
    database = MemoryDatabase()
    asking = client(database)
    task_id = await finished(database)
    status, body = await post(asking, f"/tasks/{task_id}/retry")
    assert (status, body["id"], body["retry_of"], body["outcome"]) == (201, 2, 1, "submitted")
    status, body = await post(asking, f"/tasks/{task_id}/retry")
    assert (status, body["id"], body["outcome"]) == (200, 2, "already")
    assert (await post(asking, "/tasks/2/retry"))[0] == 409
    assert (await post(asking, "/tasks/3/retry"))[0] == 404
    assert (await get(asking, "/tasks/1"))[1]["retried_as_str"] == "2"


async def test_a_stored_code_is_run_by_its_id() -> None:
    asking = client()
    answer = await asking.post(
        "/codes", json={"code": "print(1)\n", "requirements": "a==1", "retry": {"delays": [5]}}, headers=BEARER
    )
    assert answer.status_code == 201
    code_id = (await answer.get_json())["id"]
    assert answer.headers["Location"] == f"/codes/{code_id}"
    assert (await post(asking, "/tasks", {"code_id": code_id}))[0] == 201
    assert (await get(asking, "/tasks/1"))[1]["retry"] == {"delays": [5]}
    assert (await post(asking, "/tasks", {"code_id": code_id, "retry": {"on": ["exit"]}, "payload": [1]}))[0] == 201
    _, task = await get(asking, "/tasks/2")
    assert (task["retry"], task["payload"]) == ({"on": ["exit"]}, [1])
    _, code = await get(asking, f"/codes/{code_id}")
    assert code == {"id": code_id, "code": "print(1)\n", "requirements": "a==1\n", "retry": {"delays": [5]}}
    _, page = await get(asking, "/codes")
    assert [one["first_line"] for one in page["codes"]] == ["print(1)"]
    assert (await get(asking, f"/codes/{CODE_ID}"))[0] == 404


async def test_a_retry_policy_is_refused_with_its_field() -> None:
    for given, named in (
        ({"jitter": 3}, "jitter: Expected"),
        ([1], "Expected `object`"),
        ("x", "Expected `object`"),
    ):
        status, body = await post(client(), "/tasks", {"code": "pass", "retry": given})
        assert (status, [each["field"] for each in body["problems"]]) == (422, ["retry"])
        assert named in body["problems"][0]["allowed"]


@pytest.mark.parametrize("path", ["/tasks/abc", "/tasks/0", f"/tasks/{2**63}", "/codes/7", "/tasks?limit=x"])
async def test_what_is_no_id_is_named(path: str) -> None:
    status, body = await get(client(), path)
    assert (status, body["error"]) == (422, "invalid")
    assert body["problems"]


async def test_an_id_beyond_what_json_readers_keep_is_a_text_too() -> None:
    database = MemoryDatabase()
    large = 2**62 + 1
    await database.submit([NewTask(code="x")])
    database.tasks[large] = replace(database.tasks.pop(1), id=large)
    _, task = await get(client(database), f"/tasks/{large}")
    assert (task["id"], task["id_str"]) == (large, str(large))


async def test_failed_tasks_are_tried_again_together_and_once() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(code="x", name=f"n {number}", tenant="acme") for number in range(3)])
    for task in await database.claim("w", 3, lease=30):
        await database.complete("w", [Completion(task.id, 1, Status.FAILED, 1, "", "", "ValueError: 7")])
    asking = client(database)
    assert (await get(asking, "/retries"))[0] in (404, 405, 422)
    status, looked = await post(
        asking, "/retries?tenant=acme&error=ValueError:+%23&since=2026-01-01T00:00:00Z&dry_run=true"
    )
    assert (status, looked["found"], looked["retried"], looked["next"]) == (200, 3, 0, None)
    assert {each["name"] for each in looked["newest"]} == {"n 0", "n 1", "n 2"}
    _, rest = await post(asking, f"/retries?before={61_378_214_400_000_000}-2&dry_run=true")
    assert rest["found"] == 3
    _, done = await post(asking, "/retries?name=N+1")
    assert (done["found"], done["retried"], database.tasks[4].retry_of) == (1, 1, 2)
    assert (await post(asking, "/retries?name=N+1"))[1]["found"] == 0
    for wrong in ("colour=red", "before=x", "code_id=7", "since=soon", "before=999999999999999999-1"):
        status, body = await post(asking, f"/retries?{wrong}")
        assert (status, body["problems"][0]["field"]) == (422, wrong.split("=")[0])
    assert (await asking.post("/retries")).status_code == 401


async def test_lists_are_taken_as_they_are_given() -> None:
    database = MemoryDatabase()
    asking = client(database)
    status, first = await post(asking, "/tasks", {"code": "x", "worker_tags": ["gpu", "eu"]})
    assert status == 201
    status, second = await post(
        asking, "/tasks", {"code": "x", "depends_on": [first["id"], str(first["id"])], "depends_ended": True}
    )
    assert status == 201
    assert database.tasks[first["id"]].worker_tags == ("eu", "gpu")
    _, shown = await get(asking, f"/tasks/{second['id']}")
    assert (shown["depends_on"], shown["depends_on_str"]) == ([first["id"]], [str(first["id"])])
    assert (shown["depends_any"], shown["depends_ended"], shown["admitted"]) == (False, True, False)


async def test_batches_are_given_and_shown() -> None:
    database = MemoryDatabase()
    asking = client(database)
    body = [{"code": "x", "batch": "a/b"}, {"code": "x", "depends_batch": "a/b", "depends_any": True}]
    status, answer = await post(asking, "/tasks", body)
    assert status == 201
    first, second = (each["id"] for each in answer["tasks"])
    _, shown = await get(asking, f"/tasks/{first}")
    assert (shown["batch"], shown["depends_batch"]) == ("a/b", None)
    _, shown = await get(asking, f"/tasks/{second}")
    assert (shown["batch"], shown["depends_batch"], shown["depends_any"]) == (None, "a/b", True)
    _, found = await get(asking, "/tasks?batch=a/b")
    assert [each["id"] for each in found["tasks"]] == [first]
    _, progress = await get(asking, "/batches/a%2Fb")
    assert progress == {
        "name": "a/b", "total": 1, "pending": 1, "processing": 0, "completed": 0, "failed": 0, "cancelled": 0, "malicious": 0,
        "ended": False,
    }  # fmt: skip
    status, refused = await get(asking, "/batches/a?tenant=b")
    assert (status, refused["message"]) == (404, "there is no task of the batch 'a' of this tenant")
    for wrong, allowed in (
        ({"batch": ""}, "at least 1 character"),
        ({"batch": "b", "depends_batch": "b"}, "other than its own batch"),
        ({"depends_batch": "b"}, "there is no task of the batch 'b'"),
        ({"batch": 5}, "valid string"),
        ({"batch": "x" * 256}, "at most 255"),
    ):
        status, answer = await post(asking, "/tasks", {"code": "x"} | wrong)
        assert status == 422
        assert allowed in json.dumps(answer)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ([99], "there is no task 99"),
        (["x"], "valid integer"),
        ([[1]], "valid tuple"),
        ([0], "greater than or equal to 1"),
        ([1] * 1001, "at most 1000"),
        (["x" * 100_000], "valid tuple"),
        ({}, "valid tuple"),
        (5, "valid tuple"),
    ],
)
async def test_dependencies_that_cannot_be_are_told_with_what_is_allowed(given: object, allowed: str) -> None:
    status, answer = await post(client(), "/tasks", {"code": "x", "depends_on": given})
    assert status == 422
    assert allowed in json.dumps(answer)
