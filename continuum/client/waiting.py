"""Waiting for tasks to end, and asking the database no oftener than the wait deserves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from itertools import islice
from typing import TypeVar

import trio

from continuum.client.logs import LONGEST_PAUSE, SHORTEST_PAUSE
from continuum.db.errors import DatabaseUnavailable, OutcomeUnknown
from continuum.db.protocol import Database

T = TypeVar("T")

LATENESS = 0.1
"""How much later an end may be seen, as part of the time that it was waited for, between the shortest and the longest pause."""
PART_OF_THE_TIME = 0.2
"""How much of its time a client that waits for many tasks may have the database busy with its questions; it asks every
`SELDOM` seconds all the same, since an answer may be late for other reasons."""
SELDOM = 1.0
PATIENCE = 30.0
"""Seconds that the database may be unavailable while tasks are waited for, and the queue be full when tasks are submitted."""
WAIT_BATCH = 5000
"""Tasks whose status is asked for in one query."""


class Watch:
    """Sees tasks end. Outages of up to `PATIENCE` are waited out once the database has answered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_end = trio.current_time()
        self._answered: float | None = None
        self._not_before = self._last_end

    async def some_ended(self, waiting: Collection[int]) -> set[int]:
        """Wait until at least one of these tasks has ended, and return which have."""
        batch = list(islice(waiting, WAIT_BATCH))
        while True:
            await trio.sleep_until(self._not_before)
            asked = trio.current_time()
            still_open = await self.patiently(lambda: self._database.still_open(batch))
            answered = trio.current_time()
            ended = set(batch) - still_open
            if ended:
                self._last_end = answered
            pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, LATENESS * (answered - self._last_end)))
            pause = max(pause, min(SELDOM, (answered - asked) / PART_OF_THE_TIME))
            self._not_before = answered + pause if still_open else answered
            if ended:
                return ended

    async def patiently(self, call: Callable[[], Awaitable[T]], *, repeatable: bool = True) -> T:
        """Do what needs the database, again after each failure that it may be done again after.

        repeatable: whether that is so when it may have been done already.
        """
        while True:
            asked = trio.current_time()
            try:
                answer = await call()
            except DatabaseUnavailable as error:
                done_already = isinstance(error, OutcomeUnknown) and not repeatable
                if done_already or self._answered is None or asked - self._answered > PATIENCE:
                    raise
                await trio.sleep(LONGEST_PAUSE)
            else:
                self._answered = trio.current_time()
                return answer
