"""Submitting tasks and reading their outcomes: `Client` on Trio, `BlockingClient` for everybody else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from continuum.config import Settings, load_settings
from continuum.db import open_database
from continuum.db.errors import InvalidTask
from continuum.db.protocol import Database
from continuum.model import Cancellation, NewTask, Statistics, Stream, TaskRecord
from continuum.telemetry import submission

T = TypeVar("T")

FIRST_PAUSE = 0.005
"""Seconds before the first look at a task that is waited for: short ones are done by then."""
LONGEST_PAUSE = 0.25
SUBMIT_BATCH = 1000
"""Tasks in one transaction; larger lists are split."""
WAIT_BATCH = 500
"""Tasks asked for in one query while waiting for many."""


class TaskNotFound(LookupError):
    """There is no task with this id."""


class WaitTimeout(TimeoutError):
    """The tasks that were waited for had not all ended in time."""


class _NotGiven:
    """Tells a payload of None, which is JSON's null, from no payload."""


NOT_GIVEN = _NotGiven()


def new_task(code: str | Path, payload: object = NOT_GIVEN, **values: Any) -> NewTask:
    """A task that runs `code` (source text, or the path of a file that holds it) with `payload` (anything that JSON can
    hold). values: the other fields of `continuum.model.NewTask`.

    Raises `InvalidTask` for a payload that is no JSON, OSError for a file that cannot be read.
    """
    text = code.read_text(encoding="utf-8") if isinstance(code, Path) else code
    encoded = None
    if not isinstance(payload, _NotGiven):
        try:
            encoded = json.dumps(payload, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidTask(f"payload is not JSON: {error}") from None
    return NewTask(code=text, payload=encoded, **values)


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
        """Submit one task and return its id; arguments as `new_task`. Raises `InvalidTask`."""
        (task_id,) = await self.submit_many([new_task(code, payload, **values)])
        return task_id

    async def submit_many(self, tasks: Sequence[NewTask]) -> list[int]:
        """Submit tasks and return their ids in order, in transactions of up to `SUBMIT_BATCH`. Raises `InvalidTask`:
        then nothing of the batch that holds the bad one, and nothing after it, was submitted."""
        ids: list[int] = []
        with submission(len(tasks)) as traceparent:
            stamped = [_stamped(task, traceparent) for task in tasks]
            for first in range(0, len(stamped), SUBMIT_BATCH):
                ids += await self.database.submit(stamped[first : first + SUBMIT_BATCH])
        return ids

    async def fetch(self, task_id: int) -> TaskRecord:
        """Read one task. Raises `TaskNotFound`."""
        return (await self.fetch_many([task_id]))[0]

    async def fetch_many(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        """Read tasks in order. Raises `TaskNotFound` when one of them does not exist."""
        records: list[TaskRecord] = []
        for first in range(0, len(task_ids), WAIT_BATCH):
            batch = task_ids[first : first + WAIT_BATCH]
            found = await self.database.fetch(batch)
            if len(found) < len(set(batch)):
                missing = min(set(batch) - {record.id for record in found})
                raise TaskNotFound(f"there is no task {missing}")
            records += found
        return records

    async def wait(self, task_id: int, seconds: float | None = None) -> TaskRecord:
        """Wait until a task has ended, for at most `seconds`, and return it. Raises `WaitTimeout`, `TaskNotFound`."""
        return (await self.wait_many([task_id], seconds))[0]

    async def wait_many(
        self,
        task_ids: Sequence[int],
        seconds: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[TaskRecord]:
        """Wait until all tasks have ended and return them in order.

        progress: called with the number that have ended, whenever it grows. Raises `WaitTimeout`, `TaskNotFound`.
        """
        waiting = set(task_ids)
        total = len(waiting)
        pause = FIRST_PAUSE
        with trio.move_on_after(float("inf") if seconds is None else seconds):
            while waiting:
                batch = list(waiting)[:WAIT_BATCH]
                ended = set(batch) - await self.database.still_open(batch)
                waiting -= ended
                if ended and progress is not None:
                    progress(total - len(waiting))
                pause = FIRST_PAUSE if ended else min(LONGEST_PAUSE, pause * 1.5)
                if len(ended) < len(batch):
                    await trio.sleep(pause)
            return await self.fetch_many(task_ids)
        raise WaitTimeout(f"{len(waiting)} of {total} tasks had not ended in {seconds:g} s")

    async def cancel(self, task_id: int) -> Cancellation:
        """Cancel a pending task, or have a running one stopped. Raises `TaskNotFound`."""
        result = await self.database.cancel(task_id)
        if result is Cancellation.UNKNOWN:
            raise TaskNotFound(f"there is no task {task_id}")
        return result

    async def statistics(self) -> Statistics:
        """Totals over the whole system."""
        return await self.database.statistics()

    @asynccontextmanager
    async def logs(self, task_id: int, *, follow: bool = True) -> AsyncIterator[AsyncIterator[tuple[Stream, str]]]:
        """The output of a task piece by piece; until its end when `follow`, else what there is now.

        A new attempt begins again from its first line. Raises `TaskNotFound`.
        """
        await self.fetch(task_id)
        pieces = self._pieces(task_id, follow)
        try:
            yield pieces
        finally:
            await pieces.aclose()

    async def _pieces(self, task_id: int, follow: bool) -> Any:
        shown = {Stream.OUTPUT: "", Stream.ERROR: ""}
        attempt = 0
        pause = FIRST_PAUSE
        while True:
            record = await self.fetch(task_id)
            if record.attempt != attempt:
                attempt, shown = record.attempt, {Stream.OUTPUT: "", Stream.ERROR: ""}
            pause = min(LONGEST_PAUSE, pause * 1.5)
            for stream, text in ((Stream.OUTPUT, record.output or ""), (Stream.ERROR, record.error_output or "")):
                new = text.removeprefix(shown[stream])
                if new:
                    yield stream, new
                    shown[stream] = text
                    pause = FIRST_PAUSE
            if record.finished_for_good or not follow:
                return
            await trio.sleep(pause)


def connect(**settings: Any) -> Client:
    """A `Client` with these settings over the environment's: `connect(database_url="postgresql://...")`."""
    return Client(load_settings(**settings))


def _stamped(task: NewTask, traceparent: str | None) -> NewTask:
    if task.traceparent is not None or traceparent is None:
        return task
    from dataclasses import replace

    return replace(task, traceparent=traceparent)


class BlockingClient:
    """The same for programs without Trio, scripts and notebooks: `with BlockingClient() as client:`.

    Its connections live in a thread of their own, which ends with the block. It may be used from several threads.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._client = Client(settings)
        self._stack = ExitStack()
        self._token: trio.lowlevel.TrioToken | None = None

    def __enter__(self) -> Self:
        started: SimpleQueue[BaseException | trio.lowlevel.TrioToken] = SimpleQueue()
        stop = trio.Event()

        async def live() -> None:
            async with self._client:
                started.put(trio.lowlevel.current_trio_token())
                await stop.wait()

        def run() -> None:
            try:
                trio.run(live)
            except BaseException as error:
                started.put(error)

        thread = Thread(target=run, name="continuum-client", daemon=True)
        thread.start()
        result = started.get()
        if isinstance(result, BaseException):
            raise result
        self._token = result
        self._stack.callback(thread.join)
        self._stack.callback(result.run_sync_soon, stop.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._token = None
        self._stack.close()

    def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        if self._token is None:
            raise RuntimeError("use `with BlockingClient() as client:`")
        return trio.from_thread.run(call, trio_token=self._token)

    def submit(self, code: str | Path, payload: object = NOT_GIVEN, **values: Any) -> int:
        """See `Client.submit`."""
        return self._run(lambda: self._client.submit(code, payload, **values))

    def submit_many(self, tasks: Sequence[NewTask]) -> list[int]:
        """See `Client.submit_many`."""
        return self._run(lambda: self._client.submit_many(tasks))

    def fetch(self, task_id: int) -> TaskRecord:
        """See `Client.fetch`."""
        return self._run(lambda: self._client.fetch(task_id))

    def fetch_many(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        """See `Client.fetch_many`."""
        return self._run(lambda: self._client.fetch_many(task_ids))

    def wait(self, task_id: int, seconds: float | None = None) -> TaskRecord:
        """See `Client.wait`."""
        return self._run(lambda: self._client.wait(task_id, seconds))

    def wait_many(
        self, task_ids: Sequence[int], seconds: float | None = None, progress: Callable[[int], None] | None = None
    ) -> list[TaskRecord]:
        """See `Client.wait_many`."""
        return self._run(lambda: self._client.wait_many(task_ids, seconds, progress))

    def cancel(self, task_id: int) -> Cancellation:
        """See `Client.cancel`."""
        return self._run(lambda: self._client.cancel(task_id))

    def statistics(self) -> Statistics:
        """See `Client.statistics`."""
        return self._run(self._client.statistics)

    def logs(self, task_id: int, *, follow: bool = True) -> Iterator[tuple[Stream, str]]:
        """See `Client.logs`."""
        pieces: SimpleQueue[tuple[Stream, str] | BaseException | None] = SimpleQueue()

        async def collect() -> None:
            async with self._client.logs(task_id, follow=follow) as found:
                async for piece in found:
                    pieces.put(piece)

        def run() -> None:
            try:
                self._run(collect)
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        Thread(target=run, name="continuum-logs", daemon=True).start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
