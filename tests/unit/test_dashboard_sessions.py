"""Signing in to the dashboard, and what its forms let whom do."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace

import pytest
import trio
import trio.testing
from pydantic import SecretStr
from quart.typing import TestClientProtocol as Client

from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask, Status
from continuum.nursery.state import WorkerState
from continuum.status.actions import local_path
from continuum.status.app import create_app
from continuum.status.sessions import GUESSES, LIFETIME, PAUSE, REMEMBERED, Guesses, Sessions
from continuum.telemetry import Telemetry
from tests.support.harness import settings

TOKEN = "correct horse"
REMOTE = {"client": ("192.0.2.7", 40000)}


def client(database: MemoryDatabase | None = None, **values: object) -> Client:
    chosen = settings(**({"api_token": TOKEN} | values))
    return create_app(chosen, WorkerState(id="w", slots=4), database or MemoryDatabase(), Telemetry()).test_client()


async def post(asking: Client, path: str, headers: dict[str, str] | None = None, **form: str) -> tuple[int, str]:
    """The status of the answer, and its text or where it leads."""
    answer = await asking.post(path, form=form, headers=headers or {}, scope_base=REMOTE)
    return answer.status_code, answer.headers.get("Location") or await answer.get_data(as_text=True)


async def sign_in(asking: Client) -> str:
    """Sign in; return the token of the session's forms."""
    assert await post(asking, "/ui/sign-in", token=TOKEN, next="/ui/tasks") == (303, "/ui/tasks")
    page = await (await asking.get("/ui/sign-in", scope_base=REMOTE)).get_data(as_text=True)
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page)
    assert found is not None
    return found[1]


def test_a_session_is_read_from_its_cookie_until_it_expires_or_is_ended() -> None:
    now = 1000.0
    sessions = Sessions(SecretStr(TOKEN), lambda: now)
    cookie = sessions.begin()
    session = sessions.read(cookie)
    assert session is not None
    assert sessions.read(cookie) == session
    assert Sessions(SecretStr(TOKEN), lambda: now).read(cookie) == session  # another worker with the same token
    now += LIFETIME
    assert sessions.read(cookie) is None
    now -= LIFETIME
    sessions.end(session)
    assert sessions.read(cookie) is None
    assert sessions.read(sessions.begin()) is not None


@pytest.mark.parametrize("forged", ["", ".", "..", "a.b.c", "a.9999999999.", "a.9999999999." + "0" * 64, "ä.ö.ü", None])
def test_a_cookie_of_somebody_else_s_is_no_session(forged: str | None) -> None:
    assert Sessions(SecretStr(TOKEN)).read(forged) is None


def test_a_cookie_is_bound_to_the_token_and_cannot_be_made_to_last() -> None:
    sessions = Sessions(SecretStr(TOKEN))
    number, expires, signature = sessions.begin().split(".")
    assert sessions.read(f"{number}.{int(expires) + 1}.{signature}") is None
    assert Sessions(SecretStr("another")).read(f"{number}.{expires}.{signature}") is None
    assert Sessions(SecretStr("another")).cookie != sessions.cookie
    form_token = sessions.form_token(sessions.read(f"{number}.{expires}.{signature}"))  # type: ignore[arg-type]
    assert sessions.read(f"{number}.{expires}.{form_token}") is None


@pytest.mark.parametrize("token", [None, SecretStr("")])
def test_without_a_token_there_are_no_sessions(token: SecretStr | None) -> None:
    sessions = Sessions(token)
    assert not sessions.possible
    assert not sessions.is_token("")
    assert sessions.read(sessions.begin()) is None


def test_ended_sessions_are_forgotten_when_there_are_very_many() -> None:
    sessions = Sessions(SecretStr(TOKEN))
    for _ in range(REMEMBERED + 10):
        session = sessions.read(sessions.begin())
        assert session is not None
        sessions.end(session)
    assert len(sessions._ended) == REMEMBERED


async def test_guesses_are_limited_by_client_and_come_back_with_time(autojump_clock: trio.testing.MockClock) -> None:
    guesses = Guesses()
    for _ in range(GUESSES):
        assert guesses.wait("a") == 0
        guesses.wrong("a")
    assert guesses.wait("a") == PAUSE
    assert guesses.wait("b") == 0
    await trio.sleep(PAUSE)
    assert guesses.wait("a") == 0
    guesses.wrong("a")
    assert guesses.wait("a") == PAUSE
    guesses.right("a")
    assert guesses.wait("a") == 0


@pytest.mark.parametrize(
    "wanted", ["https://evil.example", "//evil.example", "/\\evil.example", "", "ui", "/a\r\nb", "/\\/x"]
)
def test_signing_in_leads_to_no_other_site(wanted: str) -> None:
    assert local_path(wanted) == "/"


async def test_signing_in_sets_a_cookie_that_no_script_and_no_other_site_has() -> None:
    answer = await client().post("/ui/sign-in", form={"token": TOKEN}, scope_base=REMOTE)
    assert answer.status_code == 303
    cookie = answer.headers["Set-Cookie"]
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/", f"Max-Age={LIFETIME}"):
        assert attribute in cookie
    assert "Secure" not in cookie
    answer = await client().post(
        "/ui/sign-in", form={"token": TOKEN}, scope_base=REMOTE, headers={"X-Forwarded-Proto": "https"}
    )
    assert "Secure" in answer.headers["Set-Cookie"]


async def test_a_wrong_token_is_refused_and_then_slowed_down(autojump_clock: trio.testing.MockClock) -> None:
    asking = client()
    for _ in range(GUESSES):
        status, text = await post(asking, "/ui/sign-in", token="guess")
        assert status == 403
        assert "not the API_TOKEN" in text
    answer = await asking.post("/ui/sign-in", form={"token": TOKEN}, scope_base=REMOTE)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "10"
    await trio.sleep(PAUSE)
    assert (await post(asking, "/ui/sign-in", token=TOKEN))[0] == 303


async def test_contents_are_shown_to_a_session_and_not_to_the_network() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(name="report", code="hello secret", payload='"secret"')])
    asking = client(database)
    page = await (await asking.get("/ui/tasks/1", scope_base=REMOTE)).get_data(as_text=True)
    assert "report" in page
    assert "secret" not in page
    await sign_in(asking)
    page = await (await asking.get("/ui/tasks/1", scope_base=REMOTE)).get_data(as_text=True)
    assert page.count("secret") == 2


async def test_what_failed_is_not_told_to_the_network_and_cannot_be_searched_for() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(name="report", code="exit 1")] * 2)
    for task in await database.claim("w", 2, lease=30):
        database.tasks[task.id] = replace(
            database.tasks[task.id],
            status=Status.FAILED,
            last_error="ValueError: secret",
            finished=dt.datetime.now(dt.UTC),
        )
    asking = client(database)
    for path in ("/", "/ui/failures", "/ui/tasks", "/ui/tasks/1"):
        assert "secret" not in await (await asking.get(path, scope_base=REMOTE)).get_data(as_text=True)
    page = await (await asking.get("/ui/tasks?error=nothing+of+this", scope_base=REMOTE)).get_data(as_text=True)
    assert page.count('href="/ui/tasks/') == 2


async def test_a_task_is_tried_again_once_and_a_second_click_leads_to_the_same_copy() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(name="report", code="hello")])
    await database.cancel(1)
    asking = client(database)
    token = await sign_in(asking)
    assert await post(asking, "/ui/tasks/1/retry", form_token=token) == (303, "/ui/tasks/2?said=submitted")
    assert await post(asking, "/ui/tasks/1/retry", form_token=token) == (303, "/ui/tasks/2?said=already")
    assert await post(asking, "/ui/tasks/2/retry", form_token=token) == (303, "/ui/tasks/2?said=open")
    assert (await post(asking, "/ui/tasks/7/retry", form_token=token))[0] == 404
    assert await post(asking, "/ui/tasks/2/cancel", form_token=token) == (303, "/ui/tasks/2?said=cancelled")
    assert await post(asking, "/ui/tasks/2/cancel", form_token=token) == (303, "/ui/tasks/2?said=finished")
    page = await (await asking.get("/ui/tasks/2", scope_base=REMOTE)).get_data(as_text=True)
    assert "Copy of" in page


async def test_all_that_failed_alike_is_tried_again_after_a_confirmation() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(name="report", code="exit 1")] * 3)
    for task in await database.claim("w", 3, lease=30):
        database.tasks[task.id] = replace(
            database.tasks[task.id],
            status=Status.FAILED,
            last_error=f"ValueError: <{task.id}>",
            finished=dt.datetime.now(dt.UTC),
        )
    asking = client(database)
    ask, error = "/ui/failures/retry?error=ValueError:+%3C%23%3E", "ValueError: <#>"
    answer = await asking.get(ask, scope_base=REMOTE)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/sign-in?next=%2Fui%2Ffailures")
    assert await post(asking, "/ui/failures/retry", error=error) == (303, "/ui/sign-in")
    token = await sign_in(asking)
    page = await (await asking.get("/ui/failures", scope_base=REMOTE)).get_data(as_text=True)
    assert 'href="/ui/failures/retry?error=ValueError%3A%20%3C%23%3E"' in page
    page = await (await asking.get(ask, scope_base=REMOTE)).get_data(as_text=True)
    assert "3 tasks failed so in the last 24 hours" in page
    assert "ValueError: &lt;#&gt;" in page
    assert (await post(asking, "/ui/failures/retry", form_token="wrong", error=error))[0] == 403
    assert len(database.tasks) == 3
    assert await post(asking, "/ui/failures/retry", form_token=token, error=error) == (303, "/ui/failures?retried=3")
    assert [each.retry_of for each in database.tasks.values()][3:] == [1, 2, 3]
    page = await (await asking.get("/ui/failures?retried=3", scope_base=REMOTE)).get_data(as_text=True)
    assert "3 tasks were submitted again." in page
    assert "can be tried again: they were already" in await (await asking.get(ask, scope_base=REMOTE)).get_data(
        as_text=True
    )


@pytest.mark.parametrize("action", ["retry", "cancel"])
async def test_nothing_is_changed_without_a_session_and_its_form_token(action: str) -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(name="report", code="hello")])
    if action == "retry":
        await database.cancel(1)
    before = dict(database.tasks)
    asking = client(database)
    path = f"/ui/tasks/1/{action}"
    assert await post(asking, path) == (303, "/ui/sign-in")
    assert await post(asking, path, {"Authorization": f"Bearer {TOKEN}"}) == (303, "/ui/sign-in")
    token = await sign_in(asking)
    other = await sign_in(client(database))
    for given in ("", "0" * 64, other, token[:-1]):
        assert (await post(asking, path, form_token=given))[0] == 403
    assert (await post(asking, path, {"Origin": "https://evil.example"}, form_token=token))[0] == 403
    assert (await post(asking, path, {"Sec-Fetch-Site": "cross-site"}, form_token=token))[0] == 403
    assert (await asking.get(path, scope_base=REMOTE)).status_code == 405
    assert database.tasks == before
    headers = {"Origin": "http://localhost", "Host": "localhost", "Sec-Fetch-Site": "same-origin"}
    assert (await post(asking, path, headers, form_token=token))[0] == 303
    assert database.tasks != before


async def test_without_a_token_in_the_settings_nothing_can_be_changed_from_anywhere() -> None:
    database = MemoryDatabase()
    await database.submit([NewTask(code="hello")])
    asking = client(database, api_token=None)
    answer = await asking.post("/ui/tasks/1/cancel", form={}, scope_base={"client": ("127.0.0.1", 1)})
    assert answer.status_code == 403
    assert "set API_TOKEN" in await answer.get_data(as_text=True)
    assert (await post(asking, "/ui/sign-in", token=""))[0] == 403
    assert "without <code>API_TOKEN</code>" in await (await asking.get("/ui/sign-in")).get_data(as_text=True)


async def test_signing_out_ends_the_session_for_whoever_has_its_cookie() -> None:
    asking = client()
    token = await sign_in(asking)
    assert asking.cookie_jar is not None
    (cookie,) = asking.cookie_jar
    assert await post(asking, "/ui/sign-out", form_token="0" * 64) != (303, "/")
    assert await post(asking, "/ui/sign-out", form_token=token) == (303, "/")
    headers = {"Cookie": f"{cookie.name}={cookie.value}"}
    answer = await asking.post("/ui/sign-out", form={"form_token": token}, headers=headers, scope_base=REMOTE)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/sign-in")


async def test_while_the_database_is_away_a_form_says_that_it_is_not_known_what_happened() -> None:
    database = MemoryDatabase()
    asking = client(database)
    token = await sign_in(asking)
    database.unavailable = True
    for action in ("retry", "cancel"):
        status, text = await post(asking, f"/ui/tasks/1/{action}", form_token=token)
        assert status == 503
        assert "It is not known" in text


@pytest.mark.parametrize(
    "path", ["/ui/tasks/abc", "/ui/tasks/-1", "/ui/tasks/99999999999999999999", "/ui/tasks/7", "/ui/nothing"]
)
async def test_what_is_not_there_is_a_page_that_says_so(path: str) -> None:
    answer = await client().get(path)
    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "To the overview" in await answer.get_data(as_text=True)
