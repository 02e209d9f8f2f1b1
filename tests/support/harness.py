"""A whole supervision tree on the in-memory database and the fake backend, for tests on the virtual clock."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from continuum.config import Settings
from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask, TaskRecord
from continuum.nursery.screening import Screening
from continuum.nursery.signals import Shutdown, Signal
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.nursery.webhooks import Sender
from continuum.reload import Reloads
from continuum.telemetry import Telemetry
from tests.support.fake_sandbox import FakeBackend

_numbers = itertools.count(1)
NOWHERE = Path("/nowhere")
"""Where nothing says that the host is short of anything: what the test's own host is short of is none of its business."""


def settings(**values: object) -> Settings:
    """Settings that no environment and no `.env` can change."""
    defaults: dict[str, object] = {"slots": 4, "shutdown_grace": 25.0, "lease_seconds": 30.0}
    return Settings.model_validate(defaults | values)


class PromptReloads(Reloads):
    """Without a thread, in which the test's clock would not stand still."""

    async def _read(self) -> tuple[Settings, dict[str, str] | None]:
        await trio.lowlevel.checkpoint()
        return self._read_file()


@dataclass
class RunningWorker:
    """One worker of the test, with everything that a test may want to look at or break."""

    settings: Settings
    state: WorkerState
    database: MemoryDatabase
    backend: FakeBackend
    shutdown: Shutdown
    stopped: trio.Event
    reloads: Reloads
    values: dict[str, object]

    async def reload(self, **values: object) -> None:
        """As on SIGHUP, with these settings beside those that it was started with."""
        self.reloads.load = lambda: settings(**{**self.values, **values})
        await self.reloads.reload()

    async def submit(self, *codes: str, **values: object) -> list[int]:
        return await self.database.submit([NewTask(code=code, **values) for code in codes])  # type: ignore[arg-type]

    async def record(self, task_id: int) -> TaskRecord:
        (record,) = await self.database.fetch([task_id])
        return record

    async def wait_for(self, *task_ids: int, status: str | None = None, seconds: float = 7200) -> list[TaskRecord]:
        """Wait (on the test's clock) until all tasks have ended, or have this status."""
        with trio.fail_after(seconds):
            while True:
                records = await self.database.fetch(task_ids)
                if all(r.status == status if status else r.finished_for_good for r in records):
                    return records
                await trio.sleep(0.01)


@asynccontextmanager
async def worker(
    database: MemoryDatabase,
    backend: FakeBackend | None = None,
    *,
    screening: Screening | None = None,
    sender: Sender | None = None,
    root: Path = NOWHERE,
    **values: object,
) -> AsyncIterator[RunningWorker]:
    """A running worker on `database`; it is shut down, with its grace, when the block ends."""
    chosen = settings(**values)
    shutdown, reloaded = Shutdown(), Signal()
    running = RunningWorker(
        settings=chosen,
        state=WorkerState(id=f"worker-{next(_numbers)}", slots=chosen.slots),
        database=database,
        backend=backend or FakeBackend(),
        shutdown=shutdown,
        stopped=trio.Event(),
        reloads=PromptReloads(
            chosen, lambda: chosen, shutdown.request, lambda _: reloaded.notify(), shutdown.requested.is_set
        ),
        values=values,
    )

    async def run() -> None:
        try:
            await supervise(
                chosen,
                running.state,
                database,
                running.backend,
                Telemetry(),
                running.shutdown,
                screening=screening,
                sender=sender,
                reloaded=reloaded,
                root=root,
            )
        finally:
            running.stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield running
        finally:
            running.shutdown.request()
            with trio.CancelScope(shield=True), trio.move_on_after(600):
                await running.stopped.wait()
            nursery.cancel_scope.cancel()
