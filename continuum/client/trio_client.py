"""The client for programs on Trio."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from continuum.client.logs import LONGEST_PAUSE, SHORTEST_PAUSE, TaskLogs
from continuum.config import Settings, load_settings
from continuum.db import open_database
from continuum.db.errors import DatabaseUnavailable, InvalidTask
from continuum.db.protocol import Database
from continuum.model import Cancellation, NewTask, Statistics, TaskRecord
from continuum.telemetry import submission

LATENESS = 0.1
"""How much later an end may be seen, as part of the time that it was waited for, between the shortest and the longest pause."""
PART_OF_THE_TIME = 0.2
"""How much of its time a client that waits for many tasks may have the database busy with its questions; it asks every
`SELDOM` seconds all the same, since an answer may be late for other reasons."""
SELDOM = 1.0
PATIENCE = 30.0
"""Seconds that the database may be unavailable while tasks are waited for."""
SUBMIT_BATCH = 1000
SUBMIT_SIZE = 16 * 1024 * 1024
"""Tasks in one transaction, and characters of payload and code in them; larger lists are split."""
WAIT_BATCH = 5000
"""Tasks whose status is asked for in one query."""
FETCH_BATCH = 200
"""Tasks read whole, with their outputs, in one query."""


class TaskNotFound(LookupError):
    """There is no task with this id."""


class WaitTimeout(TimeoutError):
    """The tasks that were waited for had not all ended in time."""


class _NotGiven:
    """Tells a payload of None, which is JSON's null, from no payload."""


NOT_GIVEN = _NotGiven()


def new_task(
    code: str | Path, payload: object = NOT_GIVEN, *, requirements: str | Path | None = None, **values: Any
) -> NewTask:
    """A task that runs `code` (source text, or the path of a file that holds it) with `payload` (anything that JSON can
    hold). values: the other fields of `continuum.model.NewTask`.

    requirements: the packages that `code` imports, each pinned: the text of a requirements file, or its path.

    Raises `InvalidTask` for a payload that is no JSON, OSError for a file that cannot be read.
    """
    text = _text_of(code)
    required = None if requirements is None else _text_of(requirements)
    encoded = None
    if not isinstance(payload, _NotGiven):
        try:
            encoded = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidTask(f"payload is not JSON: {error}") from None
    return NewTask(code=text, payload=encoded, requirements=required, **values)


def _text_of(source: str | Path) -> str:
    return source.read_text(encoding="utf-8") if isinstance(source, Path) else source


def connect(**settings: Any) -> Client:
    """A `Client` with these settings over the environment's: `connect(database_url="postgresql://...")`.

    Raises `continuum.config.ConfigurationError`.
    """
    return Client(load_settings(**settings))


class Client:
    """A producer's view of the queue. `async with Client() as client:` opens and closes its connections.

    settings: which database; None reads the environment and `.env`, as a worker does. All methods raise
    `continuum.db.errors.DatabaseUnavailable` when the database cannot be reached, and the other errors of that module.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or load_settings()
        self._stack = AsyncExitStack()
        self._opened: Database | None = None

    @property
    def database(self) -> Database:
        """The adapter below, for what has no method here."""
        if self._opened is None:
            raise RuntimeError("use `async with Client() as client:`")
        return self._opened

    async def __aenter__(self) -> Self:
        self._opened = await self._stack.enter_async_context(
            open_database(self._settings, application="continuum-client")
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened = None
        await self._stack.aclose()

    async def submit(self, code: str | Path, payload: object = NOT_GIVEN, **values: Any) -> int:
        """Submit one task and return its id; arguments as `new_task`. Raises `InvalidTask`.

        `OutcomeUnknown` means that it may have been submitted: with an `idempotency_key` it is safe to try again.
        """
        (task_id,) = await self.submit_many([new_task(code, payload, **values)])
        return task_id

    async def submit_many(self, tasks: Sequence[NewTask]) -> list[int]:
        """Submit tasks and return their ids in order, in transactions of up to `SUBMIT_BATCH` tasks and `SUBMIT_SIZE`
        characters. Raises `InvalidTask`: then nothing of the batch that holds the bad one, and nothing after it, was
        submitted.

        The trace that is current goes on in the tasks, unless they have a `traceparent` of their own.
        """
        ids: list[int] = []
        with submission(len(tasks)) as traceparent:
            traced = [replace(task, traceparent=task.traceparent or traceparent) for task in tasks]
            for batch in _batches(traced):
                ids += await self.database.submit(batch)
        return ids

    async def fetch(self, task_id: int) -> TaskRecord:
        """Read one task. Raises `TaskNotFound`."""
        return (await self.fetch_many([task_id]))[0]

    async def fetch_many(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        """Read tasks in order. Raises `TaskNotFound` when one of them does not exist."""
        records: dict[int, TaskRecord] = {}
        for first in range(0, len(task_ids), FETCH_BATCH):
            batch = task_ids[first : first + FETCH_BATCH]
            records |= {record.id: record for record in await self.database.fetch(batch)}
            missing = set(batch).difference(records)
            if missing:
                raise TaskNotFound(f"there is no task {min(missing)}")
        return [records[task_id] for task_id in task_ids]

    async def wait(self, task_id: int, seconds: float | None = None) -> TaskRecord:
        """Wait until a task has ended, for at most `seconds`, and return it. Raises `WaitTimeout`, `TaskNotFound`."""
        return (await self.wait_many([task_id], seconds))[0]

    async def wait_many(
        self,
        task_ids: Sequence[int],
        seconds: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[TaskRecord]:
        """Wait until all tasks have ended and return them in order. Outages of up to `PATIENCE` are waited out.

        progress: called with the number that have ended, whenever it grows. Raises `WaitTimeout`, `TaskNotFound`.
        """
        waiting = set(task_ids)
        total = len(waiting)
        last_end = trio.current_time()
        answered: float | None = None
        with trio.move_on_after(float("inf") if seconds is None else seconds):
            while waiting:
                asked = trio.current_time()
                batch = list(waiting)[:WAIT_BATCH]
                try:
                    ended = set(batch) - await self.database.still_open(batch)
                except DatabaseUnavailable:
                    if answered is None or asked - answered > PATIENCE:
                        raise
                    await trio.sleep(LONGEST_PAUSE)
                    continue
                answered = trio.current_time()
                waiting -= ended
                if ended:
                    last_end = answered
                    if progress is not None:
                        progress(total - len(waiting))
                if len(ended) < len(batch):
                    pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, LATENESS * (answered - last_end)))
                    await trio.sleep(max(pause, min(SELDOM, (answered - asked) / PART_OF_THE_TIME)))
        if waiting:
            raise WaitTimeout(f"{len(waiting)} of {total} tasks had not ended in {seconds:g} s")
        return await self.fetch_many(task_ids)

    def logs(self, task_id: int, *, follow: bool = True) -> TaskLogs:
        """The output of a task piece by piece, for `async for stream, text in client.logs(17)`: until its end when
        `follow`, else what there is now. A new attempt begins again with its own first line.

        Its iteration raises `TaskNotFound`.
        """
        return TaskLogs(partial(self.fetch, task_id), follow)

    async def cancel(self, task_id: int) -> Cancellation:
        """Cancel a pending task, or have a running one stopped. Raises `TaskNotFound`."""
        result = await self.database.cancel(task_id)
        if result is Cancellation.UNKNOWN:
            raise TaskNotFound(f"there is no task {task_id}")
        return result

    async def statistics(self) -> Statistics:
        """Totals over the whole system."""
        return await self.database.statistics()


def _batches(tasks: Iterable[NewTask]) -> Iterator[list[NewTask]]:
    batch: list[NewTask] = []
    size = 0
    for task in tasks:
        added = sum(len(text) for text in (task.payload, task.code, task.requirements) if isinstance(text, str))
        if batch and (len(batch) == SUBMIT_BATCH or size + added > SUBMIT_SIZE):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += added
    if batch:
        yield batch
