"""The first page in a real browser."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from continuum.db.memory import MemoryDatabase
from continuum.model import ClaimedTask, NewTask, WorkerReport
from continuum.nursery.state import Running, WorkerState
from continuum.status import serve_status
from continuum.telemetry import Telemetry
from tests.conftest import require
from tests.support.harness import settings

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@dataclass
class Seen:
    """What a person would see, and what the browser complained of."""

    title: str = ""
    text: dict[str, str] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    background: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)


def look_at(address: str) -> Seen:
    """Open the page, in a thread of its own: playwright's blocking interface runs an event loop there."""
    from playwright.sync_api import ConsoleMessage, sync_playwright

    seen = Seen()

    def complain(message: ConsoleMessage) -> None:
        seen.complaints.append(f"{message.type}: {message.text}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: seen.requests.add(request.url))
        page.goto(address + "/")
        seen.title = page.title()
        for name in ("worker", "readiness", "pending", "processed", "tasks", "workers"):
            seen.text[name] = page.inner_text(f"#{name}")
        seen.rows = [row.inner_text() for row in page.query_selector_all("#tasks tbody tr")]
        for scheme in ("light", "dark"):
            emulated: Any = scheme
            page.emulate_media(color_scheme=emulated)
            seen.background[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    return seen


@pytest.fixture
def chromium() -> None:
    try:
        import playwright  # noqa: F401
    except ImportError:
        require("playwright", False, "install the development dependencies")
    require("chromium", CHROMIUM.exists(), f"{CHROMIUM} is not there: apt-get install chromium")


async def test_a_browser_shows_the_worker_and_counts_and_an_attack_in_a_task_name_does_nothing(
    chromium: None,
) -> None:
    state = WorkerState(id="worker-1", slots=4, processed=12, sandbox="fake")
    for number, name in ((1, "monthly report"), (2, ATTACK)):
        task = ClaimedTask(
            id=number, attempt=1, max_attempts=3, released=0, name=name, code="pass", code_id=None, payload="null",
            priority=0, timeout=None, tenant=None, traceparent=None, created_at=dt.datetime.now(dt.UTC),
        )  # fmt: skip
        state.running[task.lease] = Running(task)
    database = MemoryDatabase()
    await database.submit([NewTask(code="pass")] * 7)
    await database.report(WorkerReport(ATTACK, "host", 1, "0.1.0", 4, 0, ATTACK))
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_status, settings(api_port=0), state, database, Telemetry())
        with trio.fail_after(60):
            seen = await trio.to_thread.run_sync(look_at, address)
        nursery.cancel_scope.cancel()
    assert seen.complaints == []
    assert seen.title.startswith("Continuum")
    assert (seen.text["worker"], seen.text["readiness"]) == ("worker-1", "ready")
    assert (seen.text["pending"], seen.text["processed"]) == ("7", "12")
    assert "monthly report" in seen.rows[0]
    assert ATTACK in seen.rows[1]
    assert ATTACK in seen.text["workers"]
    assert seen.background["light"] != seen.background["dark"]
    assert seen.requests == {address + "/", address + "/static/style.css"}
