"""The client for programs without Trio: scripts, notebooks, web applications with threads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from continuum.client.trio_client import NOT_GIVEN, Client
from continuum.config import Settings
from continuum.model import Cancellation, NewTask, Statistics, Stream, TaskRecord

T = TypeVar("T")


class BlockingClient:
    """`Client` for everybody else: `with BlockingClient() as client:`, or `open` and `close` in a notebook.

    Its connections live in a thread of their own, which ends with `close`. It may be used from several threads.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._client = Client(settings)
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()
        self._thread: Thread | None = None

    def open(self) -> Self:
        """Start the client's thread. Raises what opening the database raises."""
        if self._thread is not None:
            raise RuntimeError("this client is open already")
        opened: SimpleQueue[BaseException | trio.lowlevel.TrioToken] = SimpleQueue()
        self._stop = trio.Event()

        async def live() -> None:
            async with self._client:
                opened.put(trio.lowlevel.current_trio_token())
                await self._stop.wait()

        def run() -> None:
            try:
                trio.run(live)
            except BaseException as error:
                opened.put(error)

        thread = Thread(target=run, name="continuum-client", daemon=True)
        thread.start()
        result = opened.get()
        if isinstance(result, BaseException):
            thread.join()
            raise result
        self._token, self._thread = result, thread
        return self

    def close(self) -> None:
        """End the client's thread, and with it whatever other threads still wait for. Safe to repeat."""
        token, thread = self._token, self._thread
        self._token = self._thread = None
        if token is not None and thread is not None:
            token.run_sync_soon(self._stop.set)
            thread.join()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        if self._token is None:
            raise RuntimeError("use `with BlockingClient() as client:`, or `open` it")
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
        """See `Client.wait_many`; `progress` is called in the client's thread."""
        return self._run(lambda: self._client.wait_many(task_ids, seconds, progress))

    def logs(self, task_id: int, *, follow: bool = True) -> Iterator[tuple[Stream, str]]:
        """See `Client.logs`."""
        pieces = self._client.logs(task_id, follow=follow)
        while (piece := self._run(lambda: anext(pieces, None))) is not None:
            yield piece

    def cancel(self, task_id: int) -> Cancellation:
        """See `Client.cancel`."""
        return self._run(lambda: self._client.cancel(task_id))

    def statistics(self) -> Statistics:
        """See `Client.statistics`."""
        return self._run(self._client.statistics)
