"""A real database and the one in memory side by side: everything is asked of both, and both must answer alike.

Time passes at once: the clock of the one in memory jumps, and in the real one everything that happened becomes so much older.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any

import psycopg
import trio
from trio.testing import MockClock

from continuum.db.memory import EPOCH, MemoryDatabase
from continuum.db.protocol import Database
from continuum.model import Claim, TaskRecord
from tests.db.conftest import open_url

TABLES = ("tasks", "codes", "workers", "permits", "limits", "duties")
CLOSE = 5.0
"""Seconds by which times may differ: for so long an example may take."""
_TIMES = {
    "tasks": (
        ["created_at", "queued_at", "run_at", "expires_at", "lease_expires_at", "webhook_due"],
        ["started", "finished", "locked_at"],
    ),
    "permits": (["free_at"], []),
    "workers": (["started_at", "seen_at", "stopped_at"], []),
    "duties": (["until"], []),
}
"""The columns that hold times: of the type TIMESTAMPTZ, and TIMESTAMP."""


class Model(MemoryDatabase):
    """The database in memory, which gives tasks the ids of the real one, and claims what that claimed."""

    def follow(self, new_ids: Iterable[int]) -> None:
        """Give the next tasks these ids."""
        self._ids = iter(new_ids)

    def take(self, claim: Claim, worker_id: str, lease: float) -> None:
        """Claim these; raises AssertionError for one that may not be."""
        for task in claim:
            record = self.tasks[task.id]
            assert record.status == "pending", f"{record} was claimed"
            assert record.run_at is None, f"{record} was claimed before its time"
            assert not record.gated, f"{record} was claimed before it was admitted"
            assert self.may_begin(record), f"{record} was claimed beyond a limit"
            self._limits.note_start(record, trio.current_time())
            self._claim(record, worker_id, lease)

    def may_begin(self, task: TaskRecord) -> bool:
        """Whether the limits let a task begin."""
        running = [each for each in self.tasks.values() if each.status == "processing"]
        return self._limits.may_begin(task, running, trio.current_time())


class LockStep:
    """Both databases, for code that is not asynchronous."""

    def __init__(
        self, url: str, token: trio.lowlevel.TrioToken, clock: MockClock, workers: Mapping[str, Database]
    ) -> None:
        self.workers = workers
        self.real = next(iter(workers.values()))
        self.model = Model()
        self._token = token
        self._clock = clock
        self._sql = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        self._sql.close()

    def clear(self) -> None:
        """Begin anew, with empty tables."""
        for table in TABLES:
            self._sql.execute(f"DELETE FROM {table}".encode())
        self.model = Model()

    def run(self, call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        """Call one of them."""

        async def body() -> Any:
            with trio.fail_after(60):
                return await call(*args, **options)

        return trio.from_thread.run(body, trio_token=self._token)

    def both(self, verb: str, *args: Any, **options: Any) -> Any:
        """Ask both the same. Returns what both answered."""
        real = self.run(getattr(self.real, verb), *args, **options)
        model = self.run(getattr(self.model, verb), *args, **options)
        assert real == model, f"{verb}: the database says {real}, the one in memory {model}"
        return real

    def both_admit(self, verb: str, *args: Any) -> None:
        """Have both admit. What they cancel is cancelled in whatever order."""
        real, model = (self.run(getattr(each, verb), *args) for each in (self.real, self.model))
        real, model = (replace(each, cancelled=tuple(sorted(each.cancelled))) for each in (real, model))
        assert real == model, f"{verb}: the database says {real}, the one in memory {model}"

    def both_insert(self, verb: str, real_says: object, model_says: object) -> Any:
        """Ask both for something that makes new tasks, each in its own words."""
        real = self.run(getattr(self.real, verb), real_says)
        known = self.model.tasks.keys()
        self.model.follow(task_id for task_id in self.ids() if task_id not in known)
        model = self.run(getattr(self.model, verb), model_says)
        assert real == model, f"{verb}: the database says {real}, the one in memory {model}"
        return real

    def in_seconds(self, seconds: float) -> tuple[dt.datetime, dt.datetime]:
        """A time from now on, for each of the two."""
        real_now, model_now = self._now()
        return real_now + dt.timedelta(seconds=seconds), model_now + dt.timedelta(seconds=seconds)

    def _now(self) -> tuple[dt.datetime, dt.datetime]:
        return dt.datetime.now(dt.UTC), EPOCH + dt.timedelta(seconds=self._clock.current_time())

    def claim(self, worker: str, limit: int, lease: float, **options: Any) -> Claim:
        """Claim from the real one, and the same tasks in memory."""
        claim: Claim = self.run(self.workers[worker].claim, worker, limit, lease=lease, **options)
        self._in_model(self.model.take, claim, worker, lease)
        return claim

    def may_begin(self, task: TaskRecord) -> bool:
        """Whether the limits, as the one in memory knows them, let a task begin."""
        return bool(self._in_model(self.model.may_begin, task))

    def _in_model(self, call: Callable[..., Any], *args: Any) -> Any:
        async def body() -> Any:
            await trio.lowlevel.checkpoint()
            return call(*args)

        return self.run(body)

    def ids(self) -> list[int]:
        """The tasks that are there."""
        return [task_id for (task_id,) in self._sql.execute("SELECT id FROM tasks ORDER BY id").fetchall()]

    def pass_time(self, seconds: float) -> None:
        self._clock.jump(seconds)
        for table, (aware, naive) in _TIMES.items():
            changes = [f"{name} = {name} - interval '{seconds} seconds'" for name in naive]
            # What is never is never later.
            changes += [
                f"{name} = CASE WHEN {name} < '3000-01-01' THEN {name} - interval '{seconds} seconds' ELSE {name} END"
                for name in aware
            ]
            self._sql.execute(f"UPDATE {table} SET {', '.join(changes)}".encode())

    def compare(self) -> None:
        """Both hold the same."""
        ids = self.ids()
        assert ids == sorted(self.model.tasks)
        real, model = self.run(self.real.fetch, ids), self.run(self.model.fetch, ids)
        now = self._now()
        by_id = {task.id: task for task in model}
        for task in real:
            different = {
                name: (ours, theirs)
                for name, ours, theirs in _values(task, by_id[task.id], *now)
                if not _alike(ours, theirs)
            }
            assert not different, f"task {task.id}: {different} (real, in memory)"
        counts = ["pending", "scheduled", "running", "completed", "failed", "cancelled", "malicious"]
        totals = [self.run(each.statistics, latest=True) for each in (self.real, self.model)]
        real_counts, model_counts = ([getattr(each, name) for name in counts] for each in totals)
        assert real_counts == model_counts, dict(zip(counts, zip(real_counts, model_counts, strict=True), strict=True))


def _values(
    real: TaskRecord, model: TaskRecord, real_now: dt.datetime, model_now: dt.datetime
) -> Iterator[tuple[str, Any, Any]]:
    """What both say of a task; times as seconds from now."""
    for field in fields(TaskRecord):
        ours, theirs = getattr(real, field.name), getattr(model, field.name)
        if field.name == "history":
            for number, (one, other) in enumerate(itertools.zip_longest(ours, theirs)):
                for name in ("attempt", "worker", "ending", "exit_code", "message"):
                    yield f"history[{number}].{name}", getattr(one, name, "-"), getattr(other, name, "-")
        elif field.name in ("payload", "retry"):  # which are JSON
            yield field.name, ours and json.loads(ours), theirs and json.loads(theirs)
        elif isinstance(ours, dt.datetime) and isinstance(theirs, dt.datetime):
            yield field.name, (ours - real_now).total_seconds(), (theirs - model_now).total_seconds()
        else:
            yield field.name, ours, theirs


def _alike(real: object, model: object) -> bool:
    if isinstance(real, float) and isinstance(model, float):
        return abs(real - model) < CLOSE
    return real == model


@contextmanager
def lock_step(url: str, workers: Collection[str]) -> Iterator[LockStep]:
    """Both databases: the real one migrated and empty, opened by each worker for itself."""
    clock = MockClock(rate=1.0)
    made: list[LockStep] = []
    ready = threading.Event()
    done = trio.Event()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            reals = {worker: await stack.enter_async_context(open_url(url)) for worker in workers}
            await next(iter(reals.values())).migrate()
            made.append(LockStep(url, trio.lowlevel.current_trio_token(), clock, reals))
            ready.set()
            await done.wait()

    def run() -> None:
        try:
            trio.run(main, clock=clock)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    assert made, "the database could not be opened"
    (both,) = made
    try:
        yield both
    finally:
        both.close()
        trio.from_thread.run_sync(done.set, trio_token=both._token)
        thread.join()
