"""Readings of the database that many look at: taken at most once in a while however many ask, and only when somebody asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from continuum.db.errors import DatabaseError

T = TypeVar("T")

MAXIMUM_AGE = 1.0
"""Seconds that an answer, or a failure, is served again."""
DEADLINE = 3.0
"""Seconds for the database to answer. Who asks meanwhile waits for the same answer."""


class Unavailable(Exception):
    """The database did not say; the message says why."""


class Shared(Generic[T]):
    """One reading. maximum_age: seconds for which it is good."""

    def __init__(self, read: Callable[[], Awaitable[T]], maximum_age: float = MAXIMUM_AGE) -> None:
        self._read = read
        self._maximum_age = maximum_age
        self._asking = trio.Lock()
        self._read_at = float("-inf")
        self._last: T | Unavailable = Unavailable("not read yet")

    async def get(self) -> T:
        """The reading, as old as `maximum_age` at most. Raises `Unavailable`."""
        async with self._asking:
            if trio.current_time() - self._read_at >= self._maximum_age:
                self._last = await self._ask()
                self._read_at = trio.current_time()
            last = self._last
        if isinstance(last, Unavailable):
            raise Unavailable(str(last))
        return last

    async def _ask(self) -> T | Unavailable:
        try:
            with trio.fail_after(DEADLINE):
                return await self._read()
        except DatabaseError as error:
            return Unavailable(str(error))
        except trio.TooSlowError:
            return Unavailable(f"the database did not answer within {DEADLINE:g} s")
