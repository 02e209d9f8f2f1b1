"""Schedules over HTTP, on the in-memory database."""

from __future__ import annotations

from typing import Any

import pytest

from continuum.db.memory import MemoryDatabase
from tests.unit.test_api import BEARER, CODE_ID, client, get, post

NIGHTLY = {"cron": "30 2 * * *", "time_zone": "Europe/Berlin", "code": "print(1)", "payload": {"a": 1.50}, "jitter": 60}


async def test_a_schedule_is_stored_read_replaced_paused_and_deleted() -> None:
    database = MemoryDatabase()
    asking = client(database)
    answer = await asking.post("/schedules", json={"name": "nightly", **NIGHTLY}, headers=BEARER)
    assert (answer.status_code, answer.headers["Location"]) == (201, "/schedules/nightly")
    assert (await post(asking, "/schedules", {"name": "nightly", **NIGHTLY}))[0] == 409
    assert database.schedule_rows["nightly"].payload == '{"a": 1.5}'

    status, shown = await get(asking, "/schedules/nightly")
    assert status == 200
    assert (shown["cron"], shown["jitter"], shown["catch_up"], shown["next_at"]) == ("30 2 * * *", 60, "one", None)
    replaced = await asking.put("/schedules/nightly", json={**NIGHTLY, "overlap": "skip"}, headers=BEARER)
    assert (replaced.status_code, await replaced.get_json()) == (200, {"name": "nightly"})
    await asking.put("/schedules/another", json=NIGHTLY, headers=BEARER)
    _, page = await get(asking, "/schedules?limit=1")
    assert ([one["name"] for one in page["schedules"]], page["next"]) == (["another"], "another")
    _, page = await get(asking, "/schedules?after=another")
    assert [(one["name"], one["overlap"]) for one in page["schedules"]] == [("nightly", "skip")]

    assert await post(asking, "/schedules/nightly/pause") == (200, {"name": "nightly"})
    assert (await get(asking, "/schedules/nightly"))[1]["paused"] is True
    assert (await post(asking, "/schedules/nightly/resume"))[0] == 200
    assert (await get(asking, "/schedules/nightly"))[1]["paused"] is False
    assert (await asking.delete("/schedules/nightly", headers=BEARER)).status_code == 200
    assert (await asking.delete("/schedules/nightly", headers=BEARER)).status_code == 404
    assert (await get(asking, "/schedules/nightly"))[0] == 404
    for what in ("pause", "resume"):
        assert (await post(asking, f"/schedules/nightly/{what}"))[0] == 404


@pytest.mark.parametrize(
    ("values", "status", "field"),
    [
        ({"cron": "61 * * * *"}, 422, "cron"),
        ({"time_zone": "Mars/Olympus"}, 422, "time_zone"),
        ({"payload": [1]}, 422, "payload"),
        ({"jitter": 3601}, 422, "jitter"),
        ({"overlap": "queue"}, 422, "overlap"),
        ({"run_at": "2026-01-01T00:00:00Z"}, 422, "run_at"),
        ({"name": "a b"}, 422, "name"),
        ({"code": None}, 422, ""),
        ({"code": None, "code_id": CODE_ID}, 409, None),
        ({"webhook": "https://hooks.example.com/done"}, 403, None),
    ],
)
async def test_what_cannot_be_stored_is_told_by_its_field(
    values: dict[str, Any], status: int, field: str | None
) -> None:
    database = MemoryDatabase()
    found, body = await post(client(database), "/schedules", {"name": "nightly", **NIGHTLY, **values})
    assert found == status
    if field is not None:
        assert [problem["field"] for problem in body["problems"]] == [field]
    assert database.schedule_rows == {}


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_nothing_is_changed_without_the_token(method: str) -> None:
    database = MemoryDatabase()
    await post(client(database), "/schedules", {"name": "nightly", **NIGHTLY})
    answer = await client(database).open("/schedules/nightly", method=method, json=NIGHTLY)
    assert answer.status_code == 401
    assert "nightly" in database.schedule_rows
