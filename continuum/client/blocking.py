"""The client for programs without Trio: scripts, notebooks, web applications with threads, asyncio with its threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from continuum.client.errors import TaskError
from continuum.client.functions import BlockingFunction, Shippable
from continuum.client.mapping import Results
from continuum.client.results import NOT_GIVEN
from continuum.client.tasks import MapOptions, RunOptions, TaskOptions
from continuum.client.thread import ClientThread
from continuum.client.trio_client import Client
from continuum.config import Settings, load_settings
from continuum.model import BatchProgress, Cancellation, NewTask, Statistics, Stream, TaskRecord

T = TypeVar("T")
X = TypeVar("X")
Y = TypeVar("Y")
P = ParamSpec("P")


def connect_blocking(**settings: Any) -> BlockingClient:
    """A `BlockingClient` with these settings over the environment's, as `connect`. Raises `ConfigurationError`."""
    return BlockingClient(load_settings(**settings))


class BlockingResults(Generic[X, T]):
    """What becomes of each payload of `BlockingClient.map`: `for result in ...`, in the order of the payloads, or
    `list(...)`. Once only; see `Results`. A loop that is left cancels what is still in flight."""

    def __init__(self, thread: ClientThread, results: Results[X, T]) -> None:
        self._thread = thread
        self._results = results

    def __iter__(self) -> Iterator[T]:
        return self._each(self._results)

    def as_completed(self) -> Iterator[tuple[X, T]]:
        """Pairs of a payload and its result instead, as the tasks end."""
        return self._each(self._results.as_completed())

    def _each(self, source: AsyncIterator[Y]) -> Iterator[Y]:
        try:
            while not isinstance(found := self._thread.call(lambda _: anext(source, END)), _End):
                yield found
        finally:
            with suppress(RuntimeError):  # where its client was closed, that has done so
                self._thread.call(lambda _: self._results.aclose())


class _End:
    """No more results."""


END = _End()


class BlockingClient:
    """`Client` for everybody else: `with BlockingClient() as client:`, or `open` and `close` in a notebook.

    Its connections live in a thread of their own, which ends with `close`; it does not matter whether the caller's thread has an
    event loop of its own. It may be used from several threads. Ctrl-C ends a call as a cancellation ends the same call of
    `Client`, and is raised.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        opening: Callable[[], AbstractAsyncContextManager[Client]] | None = None,
    ) -> None:
        """opening: makes the client, in the thread; settings are not read then."""
        if opening is None:
            opening = partial(Client, settings or load_settings())
        self._thread = ClientThread(opening)

    def open(self) -> Self:
        """Start the client's thread. Raises what opening the database raises."""
        self._thread.open()
        return self

    def close(self) -> None:
        """End the client's thread, and with it whatever other threads still wait for. Safe to repeat."""
        self._thread.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def run(
        self,
        code: str | Path,
        payload: object = ...,
        *,
        returns: None,
        **options: Unpack[RunOptions],
    ) -> None: ...
    @overload
    def run(
        self,
        code: str | Path,
        payload: object = ...,
        *,
        returns: type[T],
        **options: Unpack[RunOptions],
    ) -> T: ...
    @overload
    def run(
        self,
        code: str | Path,
        payload: object = ...,
        *,
        returns: object = ...,
        **options: Unpack[RunOptions],
    ) -> Any: ...
    def run(
        self,
        code: str | Path,
        payload: object = NOT_GIVEN,
        *,
        returns: object = NOT_GIVEN,
        **options: Unpack[RunOptions],
    ) -> Any:
        """See `Client.run`."""
        return self._thread.call(lambda client: client.run(code, payload, returns=returns, **options))

    @overload
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: type[T],
        return_failures: Literal[True],
        **options: Unpack[MapOptions[X]],
    ) -> BlockingResults[X, T | TaskError]: ...
    @overload
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: type[T],
        return_failures: Literal[False] = ...,
        **options: Unpack[MapOptions[X]],
    ) -> BlockingResults[X, T]: ...
    @overload
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: object = ...,
        return_failures: bool = ...,
        **options: Unpack[MapOptions[X]],
    ) -> BlockingResults[X, Any]: ...
    def map(
        self,
        code: str | Path,
        payloads: Iterable[X],
        *,
        returns: object = NOT_GIVEN,
        return_failures: bool = False,
        **options: Unpack[MapOptions[X]],
    ) -> BlockingResults[X, Any]:
        """See `Client.map`. `payloads`, and `idempotency_key`, are called in the client's thread."""
        results: Results[X, Any] = self._thread.client.map(
            code, payloads, returns=returns, return_failures=return_failures, **options
        )
        return BlockingResults(self._thread, results)

    @overload
    def task(self, function: Callable[P, T], /) -> BlockingFunction[P, T]: ...
    @overload
    def task(self, /, **options: Unpack[RunOptions]) -> Callable[[Callable[P, T]], BlockingFunction[P, T]]: ...
    def task(
        self, function: Callable[P, T] | None = None, /, **options: Unpack[RunOptions]
    ) -> BlockingFunction[P, T] | Callable[[Callable[P, T]], BlockingFunction[P, T]]:
        """Make a plain function one that runs in a sandbox when it is called. See `Client.task`."""
        if function is not None:
            return self.bound(Shippable(function, options))
        return lambda function: self.bound(Shippable(function, options))

    def bound(self, shippable: Shippable[P, T]) -> BlockingFunction[P, T]:
        return BlockingFunction(self._thread, shippable)

    @overload
    def result(self, task_id: int, *, returns: type[T], seconds: float | None = ...) -> T: ...
    @overload
    def result(self, task_id: int, *, returns: object = ..., seconds: float | None = ...) -> Any: ...
    def result(self, task_id: int, *, returns: object = NOT_GIVEN, seconds: float | None = None) -> Any:
        """See `Client.result`."""
        return self._thread.call(lambda client: client.result(task_id, returns=returns, seconds=seconds))

    def submit(self, code: str | Path, payload: object = NOT_GIVEN, **options: Unpack[TaskOptions]) -> int:
        """See `Client.submit`."""
        return self._thread.call(lambda client: client.submit(code, payload, **options))

    def submit_many(self, tasks: Sequence[NewTask]) -> list[int]:
        """See `Client.submit_many`."""
        return self._thread.call(lambda client: client.submit_many(tasks))

    def fetch(self, task_id: int) -> TaskRecord:
        """See `Client.fetch`."""
        return self._thread.call(lambda client: client.fetch(task_id))

    def fetch_many(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        """See `Client.fetch_many`."""
        return self._thread.call(lambda client: client.fetch_many(task_ids))

    def wait(self, task_id: int, seconds: float | None = None) -> TaskRecord:
        """See `Client.wait`."""
        return self._thread.call(lambda client: client.wait(task_id, seconds))

    def wait_many(
        self, task_ids: Sequence[int], seconds: float | None = None, progress: Callable[[int], None] | None = None
    ) -> list[TaskRecord]:
        """See `Client.wait_many`; `progress` is called in the client's thread."""
        return self._thread.call(lambda client: client.wait_many(task_ids, seconds, progress))

    def batch(self, name: str, tenant: str | None = None) -> BatchProgress:
        """See `Client.batch`."""
        return self._thread.call(lambda client: client.batch(name, tenant))

    def logs(self, task_id: int, *, follow: bool = True) -> Iterator[tuple[Stream, str]]:
        """See `Client.logs`."""
        pieces = self._thread.client.logs(task_id, follow=follow)
        while (piece := self._thread.call(lambda _: anext(pieces, None))) is not None:
            yield piece

    def cancel(self, task_id: int) -> Cancellation:
        """See `Client.cancel`."""
        return self._thread.call(lambda client: client.cancel(task_id))

    def statistics(self) -> Statistics:
        """See `Client.statistics`."""
        return self._thread.call(lambda client: client.statistics())
