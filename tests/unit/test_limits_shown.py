"""Limits, and what they hold back, as the dashboard and the HTTP API show them."""

from __future__ import annotations

import re

from quart.typing import TestClientProtocol as Client

from continuum.db.memory import MemoryDatabase
from continuum.model import Limit, NewTask, Scope
from tests.unit.test_status_app import LOCAL, client

TOKEN = "open sesame"
OWN = {"Sec-Fetch-Site": "same-origin"}


async def limited() -> MemoryDatabase:
    database = MemoryDatabase()
    await database.set_limit(
        Limit(Scope.TENANT, "a<b", max_running=1, rate=7, rate_period=60, weight=2.5, max_pending=1000)
    )
    await database.set_limit(Limit(Scope.TENANT, "*", max_running=5))
    await database.set_limit(Limit(Scope.TAG, "gpu", paused=True))
    await database.submit([NewTask(code="hello", tenant="a<b")] * 3)
    await database.submit([NewTask(code="hello", worker_tags=("gpu",))])
    await database.claim("one", 9, lease=30)
    return database


async def page(asking: Client) -> str:
    answer = await asking.get("/ui/limits")
    assert answer.status_code == 200
    return " ".join((await answer.get_data(as_text=True)).split())


async def test_the_page_shows_what_is_in_force_and_what_is_held_back() -> None:
    shown = await page(client(await limited()))
    assert (
        'as many of their tenant run as may</p> <p class="figure">2 <span class="unit">tasks of 1 tenant</span>'
        in shown
    )
    assert "a tag that they ask for is paused" in shown
    assert (
        "weight 2.5 at most 1 running, 1 now at most 7 starts in 1 min 0 s, 1 count now at most 1,000 pending" in shown
    )
    assert "a&lt;b" in shown
    assert "at most 5 running <" in shown or "at most 5 running</p>" in shown
    assert "/ui/limits/pause" not in shown, "nobody has signed in"


async def test_who_has_signed_in_pauses_and_resumes() -> None:
    database = await limited()
    asking = client(database, api_token=TOKEN)
    assert (await asking.post("/ui/limits/pause", form={"scope": "queue", "name": ""})).status_code == 303
    await asking.post("/ui/sign-in", form={"token": TOKEN, "next": "/"}, headers=OWN)
    (token,) = set(re.findall('name="form_token" value="([^"]+)"', await page(asking)))

    async def ask(scope: str, name: str, **more: str) -> int:
        form = {"form_token": token, "scope": scope, "name": name, **more}
        return (await asking.post("/ui/limits/pause", form=form, headers=OWN)).status_code

    assert await ask("queue", "") == 303
    assert await ask("tenant", "a<b") == 303
    assert await ask("tag", "gpu", resume="1") == 303
    rows = {(row.scope, row.name): row for row in await database.limits()}
    assert rows[Scope.QUEUE, ""].paused
    assert (rows[Scope.TENANT, "a<b"].paused, rows[Scope.TENANT, "a<b"].weight) == (True, 2.5)
    assert rows[Scope.TAG, "gpu"].paused is False
    assert "the queue is paused" in await page(asking)
    assert await ask("planet", "earth") == 404
    assert await ask("code", "report.py") == 404


async def test_the_api_tells_the_same() -> None:
    answer = await client(await limited()).get("/limits", scope_base=LOCAL)
    told = await answer.get_json()
    assert [row["name"] for row in told["limits"]] == ["gpu", "*", "a<b"]
    assert told["limits"][2]["running"] == 1
    assert {each["reason"]: each["tasks"] for each in told["held_back"]} == {"max_running": 2, "tag_paused": 1}
    assert (await client(await limited()).get("/limits")).status_code == 401
