"""One script for many payloads: so many tasks in flight at a time, and what became of each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import trio

from continuum.client.errors import TaskError
from continuum.client.tasks import batches_of
from continuum.client.waiting import Watch
from continuum.model import NewTask, TaskRecord

if TYPE_CHECKING:
    from continuum.client.trio_client import Client

X = TypeVar("X")
T = TypeVar("T")

IN_FLIGHT = 500
"""Tasks that are submitted and have not ended, unless a caller says otherwise: as much as ten workers do in a quarter of a
second, and little to cancel."""
LANDED = 4
"""How many times as many may have landed and wait for their turn, behind one that takes longer, before no more are submitted."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a map goes about it: as `MapOptions`, and as `Client.map`."""

    return_failures: bool = False
    cancel_on_exit: bool | None = None
    in_flight: int = IN_FLIGHT


@dataclass(frozen=True, slots=True)
class Work(Generic[X, T]):
    """What is to be done with each of some payloads.

    task: makes one of a payload. keyed: whether tasks have idempotency keys. decode: what a record is taken for. shown_as: what
    the progress bar calls it; None shows none.
    """

    payloads: Iterable[X]
    task: Callable[[X], NewTask]
    keyed: bool
    decode: Callable[[TaskRecord], T]
    manner: Manner
    shown_as: str | None


class Results(Generic[X, T]):
    """What becomes of each payload of `Client.map`: an async iterator of results in the order of the payloads, or, awaited, a
    list of them. Once only. Nothing is submitted before the first is asked for.

    The first failure is raised where its result would be, unless failures are returned. Then, and when it is left in any other
    way, the tasks still in flight are cancelled; a loop that is left by `break` ends them with `aclose`, or at the latest when
    its client closes.
    """

    def __init__(self, client: Client, work: Work[X, T]) -> None:
        self._flight = Flight(client, work)
        self._position = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        landed = await self._flight.next(self._position)
        if landed is None:
            raise StopAsyncIteration
        self._position += 1
        return landed[1]

    def __await__(self) -> Generator[object, None, list[T]]:
        return self._all().__await__()

    async def _all(self) -> list[T]:
        return [result async for result in self]

    def as_completed(self) -> AsyncIterator[tuple[X, T]]:
        """Pairs of a payload and its result instead, as the tasks end."""
        return _Completed(self._flight)

    async def aclose(self) -> None:
        """Cancel what is still in flight. Safe to repeat."""
        await self._flight.abandon()


class _Completed(Generic[X, T]):
    def __init__(self, flight: Flight[X, T]) -> None:
        self._flight = flight

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[X, T]:
        landed = await self._flight.next(None)
        if landed is None:
            raise StopAsyncIteration
        return landed


class Flight(Generic[X, T]):
    """Tasks in flight. Only who asks for the next result keeps it going: between two questions nothing runs in this process."""

    def __init__(self, client: Client, work: Work[X, T]) -> None:
        if work.manner.in_flight < 1:
            raise ValueError(f"in_flight is {work.manner.in_flight}; at least one task must be")
        self._client = client
        self._work = work
        self._source = iter(work.payloads)
        self._exhausted = False
        self._submitted = 0
        self._open: dict[int, list[tuple[int, X]]] = {}
        self._landed: dict[int, tuple[X, T | TaskError]] = {}
        self._done = self._failed = 0
        self._around = ExitStack()
        self._watch: Watch | None = None
        self._show: Callable[[int, int], None] = lambda done, failed: None

    async def next(self, position: int | None) -> tuple[X, T] | None:
        """The payload at a position, or whichever has ended, with its result; None when there are no more."""
        await trio.lowlevel.checkpoint()
        try:
            if self._watch is None:
                self._take_off()
            while True:
                await self._refill()
                at = next(iter(self._landed), None) if position is None else position
                if at is not None and at in self._landed:
                    return self._take(at)
                if not self._open:
                    self._end()
                    return None
                await self._land_some()
        except BaseException:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """Cancel what is in flight, as far as that is wanted, and take no more payloads."""
        self._exhausted = True
        open_tasks, self._open = list(self._open), {}
        self._landed.clear()
        self._end()
        wanted = self._work.manner.cancel_on_exit
        if open_tasks and (not self._work.keyed if wanted is None else wanted):
            await self._client.give_up(open_tasks)

    def _take_off(self) -> None:
        self._watch = Watch(self._client.database)
        self._client.flights.add(self)
        if self._work.shown_as is not None:
            from continuum.client.progress import progress_bar

            total = len(self._work.payloads) if isinstance(self._work.payloads, Sized) else None
            self._show = self._around.enter_context(progress_bar(self._work.shown_as, total))

    def _end(self) -> None:
        self._client.flights.discard(self)
        self._around.close()

    def _take(self, at: int) -> tuple[X, T]:
        payload, outcome = self._landed.pop(at)
        if isinstance(outcome, TaskError) and not self._work.manner.return_failures:
            raise outcome
        return payload, outcome  # type: ignore[return-value]  # T holds TaskError where failures are returned

    async def _refill(self) -> None:
        """Submit more once half of what may be in flight has landed, unless too many wait for their turn."""
        limit = self._work.manner.in_flight
        if self._exhausted or len(self._open) > limit // 2 or len(self._landed) >= LANDED * limit:
            return
        payloads: list[X] = []
        while len(self._open) + len(payloads) < limit:
            try:
                payloads.append(next(self._source))
            except StopIteration:
                self._exhausted = True
                break
        tasks = [self._work.task(payload) for payload in payloads]
        assert self._watch is not None
        for batch in batches_of(tasks):
            submit = partial(self._client.submit_known, batch)
            for task_id in await self._watch.patiently(submit, repeatable=self._work.keyed):
                self._open.setdefault(task_id, []).append((self._submitted, payloads[0]))
                del payloads[0]
                self._submitted += 1

    async def _land_some(self) -> None:
        assert self._watch is not None
        ended = await self._watch.some_ended(self._open)
        records = await self._watch.patiently(lambda: self._client.fetch_many(list(ended)))
        for record in records:
            outcome: T | TaskError
            try:
                outcome = self._work.decode(record)
            except TaskError as error:
                outcome = error
            landed = self._open.pop(record.id)
            self._done += len(landed)
            self._failed += len(landed) * isinstance(outcome, TaskError)
            for position, payload in landed:
                self._landed[position] = payload, outcome
        self._show(self._done, self._failed)
