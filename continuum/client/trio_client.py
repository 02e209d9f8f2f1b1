"""The client for programs on Trio."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, overload

import trio

from continuum.client.calls import map_script, result_of, run_script
from continuum.client.errors import TaskError, TaskNotFound, WaitTimeout
from continuum.client.functions import RemoteFunction, Shippable
from continuum.client.logs import TaskLogs
from continuum.client.mapping import Flight, Results
from continuum.client.results import NOT_GIVEN
from continuum.client.sources import Script, read_script
from continuum.client.tasks import CommonOptions, MapOptions, RunOptions, TaskOptions, batches_of, new_task
from continuum.client.waiting import PATIENCE, Watch
from continuum.config import Settings, load_settings
from continuum.db import open_database
from continuum.db.errors import DatabaseError, QueueFull
from continuum.db.protocol import Database
from continuum.model import BatchProgress, Cancellation, NewTask, Statistics, TaskRecord
from continuum.telemetry import submission, submitted

T = TypeVar("T")
X = TypeVar("X")
P = ParamSpec("P")

FETCH_BATCH = 200
"""Tasks read whole, with their outputs, in one query."""


GIVE_UP_DEADLINE = 5.0
"""Seconds for telling the database that the tasks of somebody who was interrupted are not wanted any more."""
GIVE_UP_AT_ONCE = 8
"""How many of them are cancelled side by side."""


def connect(**settings: Any) -> Client:
    """A `Client` with these settings over the environment's: `connect(database_url="postgresql://...")`.

    Raises `continuum.config.ConfigurationError`.
    """
    return Client(load_settings(**settings))


class Client:
    """A producer's view of the queue. `async with Client() as client:` opens and closes its connections.

    settings: which database; None reads the environment and `.env`, as a worker does. database: one that is open already, such as
    a `continuum.db.memory.MemoryDatabase` in tests. patience: seconds for which submitting waits while LIMITS leaves no room,
    before `QueueFull` is raised. All methods raise `continuum.db.errors.DatabaseUnavailable` when the database cannot be reached,
    and the other errors of that module.
    """

    def __init__(
        self, settings: Settings | None = None, *, database: Database | None = None, patience: float = PATIENCE
    ) -> None:
        self._opening: Callable[[], AbstractAsyncContextManager[Database]]
        if database is not None:
            self._opening = lambda: nullcontext(database)
        else:
            self._opening = partial(open_database, settings or load_settings(), application="continuum-client")
        self._patience = patience
        self._stack = AsyncExitStack()
        self._opened: Database | None = None
        self.flights: set[Flight[Any, Any]] = set()

    @property
    def database(self) -> Database:
        """The adapter below, for what has no method here."""
        if self._opened is None:
            raise RuntimeError("use `async with Client() as client:`")
        return self._opened

    async def __aenter__(self) -> Self:
        self._opened = await self._stack.enter_async_context(self._opening())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.give_up_all()
        self._opened = None
        await self._stack.aclose()

    @overload
    async def run(
        self,
        code: str | Path,
        payload: object = ...,
        *,
        returns: None,
        **options: Unpack[RunOptions],
    ) -> None: ...
    @overload
    async def run(
        self,
        code: str | Path,
        payload: object = ...,
        *,
        returns: type[T],
        **options: Unpack[RunOptions],
    ) -> T: ...
    @overload
    async def run(
        self,
        code: str | Path,
        payload: object = ...,
        *,
        returns: object = ...,
        **options: Unpack[RunOptions],
    ) -> Any: ...
    async def run(
        self,
        code: str | Path,
        payload: object = NOT_GIVEN,
        *,
        returns: object = NOT_GIVEN,
        **options: Unpack[RunOptions],
    ) -> Any:
        """Run a script as a task, wait for its end and return its result: its global `result`, or else the JSON in the last
        line of its output.

        code, payload, options: as `new_task`, and `RunOptions`. returns: the type that the result must have, and is returned as
        (what pydantic takes: `int`, `list[str]`, a dataclass, a TypedDict); without it, any JSON, and None where there is none;
        None ships the script as it is and returns None.

        Raises `TaskFailed`, with the script's own traceback, `BadResult`, `WaitTimeout`, and what `submit` raises.
        """
        return await run_script(self, _script_of(code, options), payload, returns, options)

    @overload
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: type[T],
        return_failures: Literal[True],
        **options: Unpack[MapOptions[X]],
    ) -> Results[X, T | TaskError]: ...
    @overload
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: type[T],
        return_failures: Literal[False] = ...,
        **options: Unpack[MapOptions[X]],
    ) -> Results[X, T]: ...
    @overload
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: object = ...,
        return_failures: bool = ...,
        **options: Unpack[MapOptions[X]],
    ) -> Results[X, Any]: ...
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: object = NOT_GIVEN,
        return_failures: bool = False,
        **options: Unpack[MapOptions[X]],
    ) -> Results[X, Any]:
        """Run a script once for each payload: `await` it for the list of results, or go through it with `async for`, in the
        order of the payloads; `as_completed()` has pairs of payload and result as tasks end. See `Results`.

        code, returns: as `run`. payloads: taken as they are needed, so that they may be endless. return_failures: returns a
        `TaskError` in the place of a result, where the first would be raised otherwise. options: see `MapOptions`.
        """
        return map_script(self, _script_of(code, options), payloads, returns, return_failures, options)

    @overload
    async def result(self, task_id: int, *, returns: type[T], seconds: float | None = ...) -> T: ...
    @overload
    async def result(self, task_id: int, *, returns: object = ..., seconds: float | None = ...) -> Any: ...
    async def result(self, task_id: int, *, returns: object = NOT_GIVEN, seconds: float | None = None) -> Any:
        """Wait until a task has ended, for at most `seconds`, and return its result, as `run` does. (The global `result` is
        printed by scripts that `run`, `map` and functions have shipped.) Raises what `run` raises, and `TaskNotFound`."""
        return await result_of(self, task_id, returns, None, seconds)

    @overload
    def task(self, function: Callable[P, T], /) -> RemoteFunction[P, T]: ...
    @overload
    def task(self, /, **options: Unpack[RunOptions]) -> Callable[[Callable[P, T]], RemoteFunction[P, T]]: ...
    def task(
        self, function: Callable[P, T] | None = None, /, **options: Unpack[RunOptions]
    ) -> RemoteFunction[P, T] | Callable[[Callable[P, T]], RemoteFunction[P, T]]:
        """Make a plain function one that runs in a sandbox when it is awaited: `@client.task`, or `@client.task(timeout=5)`. The
        client may be opened later. See `RemoteFunction`. Raises `NotShippable` for what is no plain function."""
        if function is not None:
            return self.bound(Shippable(function, options))
        return lambda function: self.bound(Shippable(function, options))

    def bound(self, shippable: Shippable[P, T]) -> RemoteFunction[P, T]:
        return RemoteFunction(self, shippable)

    async def give_up_all(self) -> None:
        """Cancel what is in flight for maps that were left."""
        for flight in list(self.flights):
            await flight.abandon()

    async def submit_known(self, tasks: Sequence[NewTask]) -> list[int]:
        """`submit_many` which is not cancelled half-way, so that who gives up knows what there is to cancel. The database has
        deadlines of its own. (Ctrl-C is no cancellation: at this moment, in Trio's main task, it may leave a task behind.)"""
        return await self._submit(tasks, shielded=True)

    async def _submit(self, tasks: Sequence[NewTask], *, shielded: bool = False) -> list[int]:
        ids: list[int] = []
        with submission(len(tasks)) as traceparent:
            traced = [replace(task, traceparent=task.traceparent or traceparent) for task in tasks]
            for batch in batches_of(traced):
                ids += await self._submit_batch(batch, shielded)
            submitted(ids)
        return ids

    async def _submit_batch(self, batch: Sequence[NewTask], shielded: bool) -> list[int]:
        """Submit as soon as there is room, which is waited for without a shield."""
        ids: list[int] = []
        give_up_at = trio.current_time() + self._patience
        while True:
            try:
                with trio.CancelScope(shield=shielded):
                    ids += await self.database.submit(batch)
            except QueueFull as error:
                pause = error.retry_after * random.uniform(1.0, 1.5)  # noqa: S311 - not all at once
                if error.refused > error.limit or trio.current_time() + pause > give_up_at:
                    raise
                await trio.sleep(pause)
            else:
                return ids

    async def give_up(self, task_ids: Iterable[int]) -> None:
        """Cancel tasks, as far as `GIVE_UP_DEADLINE` allows, whatever becomes of the caller. Never raises."""
        waiting = iter(task_ids)

        async def cancel_next() -> None:
            for task_id in waiting:
                with suppress(DatabaseError):
                    await self.database.cancel(task_id)

        with trio.move_on_after(GIVE_UP_DEADLINE, shield=True):
            async with trio.open_nursery() as nursery:
                for _ in range(GIVE_UP_AT_ONCE):
                    nursery.start_soon(cancel_next)

    async def submit(self, code: str | Path, payload: object = NOT_GIVEN, **options: Unpack[TaskOptions]) -> int:
        """Submit one task and return its id; arguments as `new_task`. Raises `InvalidTask`, `QueueFull`.

        `OutcomeUnknown` means that it may have been submitted: with an `idempotency_key` it is safe to try again.
        """
        (task_id,) = await self.submit_many([new_task(code, payload, **options)])
        return task_id

    async def submit_many(self, tasks: Sequence[NewTask]) -> list[int]:
        """Submit tasks and return their ids in order, in transactions of up to `SUBMIT_BATCH` tasks and `SUBMIT_SIZE`
        characters. Raises `InvalidTask`, and `QueueFull` where there was no room in time: then nothing of the batch in question,
        and nothing after it, was submitted.

        The trace that is current goes on in the tasks, unless they have a `traceparent` of their own.
        """
        return await self._submit(tasks)

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
        watch = Watch(self.database)
        with trio.move_on_after(float("inf") if seconds is None else seconds):
            while waiting:
                waiting -= await watch.some_ended(waiting)
                if progress is not None:
                    progress(total - len(waiting))
        if waiting:
            raise WaitTimeout(f"{len(waiting)} of {total} tasks had not ended in {seconds:g} s")
        return await self.fetch_many(task_ids)

    async def batch(self, name: str, tenant: str | None = None) -> BatchProgress:
        """How a batch of a tenant stands. Raises `TaskNotFound` where it has no tasks."""
        progress = await self.database.batch(tenant, name)
        if not progress.total:
            of_tenant = "" if tenant is None else f" of the tenant {tenant!r}"
            raise TaskNotFound(f"there is no task of the batch {name!r}{of_tenant}")
        return progress

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


def _script_of(code: str | Path, options: CommonOptions) -> Script:
    return read_script(code, options.pop("requirements", None))
