"""`continuum schedules`, on a database in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from continuum.cli.complete import complete_schedule
from continuum.db.memory import MemoryDatabase
from continuum.nursery.schedules import ScheduleFiring
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState
from continuum.telemetry import Telemetry
from tests.support.harness import settings
from tests.unit.test_cli_tasks import database, run

__all__ = ["database"]


@pytest.fixture
def script(tmp_path: Path) -> str:
    file = tmp_path / "report.py"
    file.write_text("print(payload)\n")
    return str(file)


def place(database: MemoryDatabase) -> None:
    """What a worker does as soon as it hears of it."""

    async def main() -> None:
        firing = ScheduleFiring(database, WorkerState(id="w", slots=1), Telemetry(), settings(), Signal(), Signal())
        await firing.fire_due()

    trio.run(main)


def test_a_schedule_is_stored_listed_shown_paused_and_removed(database: MemoryDatabase, script: str) -> None:
    assert run("schedules", "list")[1].startswith("continuum: there is no schedule yet: ")
    options = [
        "--zone",
        "Europe/Berlin",
        "--payload",
        '{"a": 1}',
        "--overlap",
        "skip",
        "--jitter",
        "5m",
        "--tenant",
        "acme",
    ]
    assert run("schedules", "add", "nightly", "30 2 * * *", script, *options)[0] == "nightly is stored\n"
    place(database)
    headings, line = run("schedules", "list")[0].splitlines()
    assert headings.split()[:3] == ["name", "cron", "zone"]
    assert line.split()[:7] == ["nightly", "30", "2", "*", "*", "*", "Europe/Berlin"]
    shown = json.loads(run("schedules", "show", "nightly", "--json")[0])
    assert (shown["payload"], shown["jitter"], shown["overlap"], shown["tenant"]) == ({"a": 1}, 300, "skip", "acme")
    assert "Europe/Berlin" in run("schedules", "show", "nightly")[0]
    times = run("schedules", "next", "nightly", "-n", "3")[0].splitlines()
    assert len(times) == 3
    assert times[0].endswith("T02:30:00+01:00")
    assert complete_schedule("n") == [("nightly", "30 2 * * *")]

    assert run("schedules", "pause", "nightly")[0] == "nightly is paused\n"
    assert run("schedules", "list")[0].splitlines()[1].endswith("paused")
    assert run("schedules", "next", "nightly")[1] == "continuum: it is paused: `continuum schedules resume nightly`\n"
    assert json.loads(run("schedules", "resume", "nightly", "--json")[0]) == {"name": "nightly", "paused": False}
    assert json.loads(run("schedules", "list", "--json")[0])["name"] == "nightly"
    assert run("schedules", "list", "--limit", "1")[1] == "continuum: more: the same with --after nightly\n"

    again = run("schedules", "add", "nightly", "@daily", script, code=2)[1]
    assert again == "continuum: there is a schedule nightly\ncontinuum: --replace puts this one in its place\n"
    run("schedules", "add", "nightly", "@daily", script, "--replace")
    assert run("schedules", "remove", "nightly")[0] == "nightly is removed\n"
    for command in ("show", "pause", "resume", "remove", "next"):
        assert run("schedules", command, "nightly", code=5)[1] == (
            "continuum: there is no schedule nightly\ncontinuum: `continuum schedules list` lists what there is\n"
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a b", "@daily"], "continuum: name: "),
        (["a", "61 * * * *"], "continuum: cron: "),
        (["a", "@daily", "--zone", "Mars"], "continuum: time_zone: "),
        (["a", "@daily", "--overlap", "maybe"], "continuum: overlap: "),
        (["a", "@daily", "--payload", "[1]"], "continuum: payload: "),
    ],
)
def test_what_is_wrong_is_told_by_its_field(
    database: MemoryDatabase, script: str, arguments: list[str], said: str
) -> None:
    name, cron, *options = arguments
    assert run("schedules", "add", name, cron, script, *options, code=2)[1].startswith(said)
    assert database.schedule_rows == {}
