"""A real browser, and a dashboard for it to look at: one of each for a module of tests.

The tests that use them are plain functions: playwright runs an asyncio loop in their thread. The dashboard, with a whole worker
on the fake backend behind it, runs Trio in another.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.util
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from continuum.db import memory
from continuum.db.memory import MemoryDatabase
from continuum.nursery.state import WorkerState
from continuum.status.server import serve_status
from continuum.telemetry import Telemetry
from tests.conftest import require
from tests.support.harness import RunningWorker, worker

T = TypeVar("T")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "correct horse battery staple"
ARTEFACTS = Path(".ci-artifacts/dashboard")
"""Where screenshots go when CI=true or CONTINUUM_SCREENSHOTS says so."""


def require_browser() -> None:
    require("browser", importlib.util.find_spec("playwright") is not None, "install the development dependencies")
    require("browser", CHROMIUM is not None, "there is no Chromium on PATH: apt-get install chromium")


@dataclass
class Site:
    """A dashboard that is being served, with the worker and the database behind it."""

    address: str
    running: RunningWorker
    database: MemoryDatabase
    _token: trio.lowlevel.TrioToken

    @property
    def state(self) -> WorkerState:
        return self.running.state

    def run(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Call an async function where the worker runs."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def do(self, function: Callable[[], T]) -> T:
        """Call a function where the worker runs."""
        return trio.from_thread.run_sync(function, trio_token=self._token)


@contextmanager
def open_site(**values: Any) -> Iterator[Site]:
    """A worker with four slots on the fake backend, and its dashboard; all of it in a thread of its own."""
    made: list[Site] = []
    failed: list[BaseException] = []
    ready, done = threading.Event(), trio.Event()

    async def main() -> None:
        database = MemoryDatabase()
        chosen: dict[str, Any] = {
            "api_port": 0,
            "api_token": TOKEN,
            "slots": 4,
            "polling_interval": 0.2,
            "shutdown_grace": 0.0,
        }
        async with worker(database, **(chosen | values)) as running, trio.open_nursery() as nursery:
            address = await nursery.start(serve_status, running.settings, running.state, database, Telemetry())
            made.append(Site(address, running, database, trio.lowlevel.current_trio_token()))
            ready.set()
            await done.wait()
            nursery.cancel_scope.cancel()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_now", lambda: dt.datetime.now(dt.UTC))
        thread = threading.Thread(target=run, name="dashboard")
        thread.start()
        try:
            assert ready.wait(30)
            if not failed:
                yield made[0]
        finally:
            if made and thread.is_alive():
                trio.from_thread.run_sync(done.set, trio_token=made[0]._token)
            thread.join(30)
    if failed:
        raise failed[0]


@dataclass
class Watch:
    """What happened in pages beside what was asked for."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    """The statuses of answers that were meant to be errors, of which Chromium complains each time."""

    def attach(self, page: Any) -> None:
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium, as playwright's sync API drives it."""
    from playwright.sync_api import sync_playwright

    # trio-asyncio makes its own loops where nothing else is asked for in a thread.
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            try:
                yield browser
            finally:
                browser.close()
    finally:
        asyncio.set_event_loop_policy(policy)


def keep(page: Any, name: str) -> None:
    """Keep a screenshot of the whole page where somebody wants them."""
    if os.environ.get("CI", "").lower() == "true" or os.environ.get("CONTINUUM_SCREENSHOTS"):
        folder = Path(os.environ.get("CONTINUUM_SCREENSHOTS") or ARTEFACTS)
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", full_page=True)
