"""The first page in a real browser."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import trio

from continuum.db.memory import MemoryDatabase
from continuum.model import ClaimedTask, NewTask, WorkerReport
from continuum.nursery.state import Running, WorkerState
from continuum.status.server import serve_status
from continuum.telemetry import Telemetry
from tests.conftest import require
from tests.support.harness import settings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOOK = Path(__file__).with_name("browser.py")
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def running(task_id: int, name: str) -> Running:
    return Running(
        ClaimedTask(
            id=task_id, attempt=1, max_attempts=3, released=0, name=name, code="pass", code_id=None, payload="null",
            priority=0, timeout=None, tenant=None, traceparent=None, created_at=dt.datetime.now(dt.UTC),
        )
    )  # fmt: skip


async def test_a_browser_shows_the_worker_and_counts_and_an_attack_in_a_task_name_does_nothing() -> None:
    playwright = importlib.util.find_spec("playwright") is not None
    require("browser", playwright, "install the development dependencies")
    require("browser", CHROMIUM is not None, "there is no Chromium on PATH: apt-get install chromium")
    assert CHROMIUM is not None
    state = WorkerState(id="worker-1", slots=4, processed=12, sandbox="fake")
    for one in (running(1, "monthly report"), running(2, ATTACK)):
        state.running[one.task.lease] = one
    database = MemoryDatabase()
    await database.submit([NewTask(code="pass")] * 7)
    await database.report(WorkerReport(ATTACK, "host", 1, "0.1.0", 4, 0, ATTACK))
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_status, settings(api_port=0), state, database, Telemetry())
        with trio.fail_after(60):
            looked = await trio.run_process([sys.executable, str(LOOK), CHROMIUM, address], capture_stdout=True)
        nursery.cancel_scope.cancel()
    seen = json.loads(looked.stdout)
    assert seen["complaints"] == []
    assert seen["title"].startswith("Continuum")
    assert (seen["texts"]["worker"], seen["texts"]["readiness"]) == ("worker-1", "ready")
    assert (seen["texts"]["pending"], seen["texts"]["processed"]) == ("7", "12")
    assert "monthly report" in seen["rows"][0]
    assert ATTACK in seen["rows"][1]
    assert ATTACK in seen["texts"]["workers"]
    assert seen["background"]["light"] != seen["background"]["dark"]
    assert seen["requests"] == [address + "/", address + "/static/style.css"]
