"""Long polls: however many clients wait for tasks, the database is asked for all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from continuum.db.errors import DatabaseError, DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.following import LONGEST_PAUSE, waiting_pause


@dataclass(eq=False, slots=True)
class Waiter:
    """Somebody who waits for a task.

    seen: once the task was looked at. done: once it has ended, or is not there, or cannot be looked at; that is `failure` then.
    """

    task_id: int
    failure: DatabaseError | None = None
    seen: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)


class Waits:
    """The service that looks at tasks that are waited for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: set[Waiter] = set()
        self._came = trio.Event()

    def __len__(self) -> int:
        return len(self._waiters)

    @contextmanager
    def waiter(self, task_id: int) -> Iterator[Waiter]:
        """Have a task looked at, at once and for as long as the block runs. An outage is waited out, but at the first look."""
        waiter = Waiter(task_id)
        self._waiters.add(waiter)
        self._came.set()
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)

    async def run(self) -> None:
        """Look whenever somebody waits; never return. Who comes is looked at at once, and the others then, too."""
        last_change = trio.current_time()
        while True:
            if not self._waiters:
                await self._came.wait()
            if self._came.is_set():
                self._came, last_change = trio.Event(), trio.current_time()
            asked = trio.current_time()
            failed = False
            try:
                if await self._look():
                    last_change = trio.current_time()
            except DatabaseError as error:
                failed = True
                self._fail(error, all_of_them=not isinstance(error, DatabaseUnavailable))
            now = trio.current_time()
            least = waiting_pause(0.0, now - asked)
            await trio.sleep(least)
            with trio.move_on_after(
                (LONGEST_PAUSE if failed else waiting_pause(now - last_change, now - asked)) - least
            ):
                await self._came.wait()

    async def _look(self) -> bool:
        """Whether any of the tasks has ended."""
        waiters = [waiter for waiter in self._waiters if not waiter.done.is_set()]
        still_open = await self._database.still_open(list({waiter.task_id for waiter in waiters}))
        ended = [waiter for waiter in waiters if waiter.task_id not in still_open]
        for waiter in ended:
            waiter.done.set()
        for waiter in waiters:
            waiter.seen.set()
        return bool(ended)

    def _fail(self, error: DatabaseError, *, all_of_them: bool) -> None:
        for waiter in self._waiters:
            if all_of_them or not waiter.seen.is_set():
                waiter.failure = error
                waiter.done.set()
                waiter.seen.set()
