"""Readings of the database that many look at: taken at most once in a while however many ask, and only when somebody asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from continuum.db.errors import DatabaseError

K = TypeVar("K")
T = TypeVar("T")

MAXIMUM_AGE = 1.0
"""Seconds that an answer, or a failure, is served again."""
DEADLINE = 3.0
"""Seconds for the database to answer. Who asks meanwhile waits for the same answer."""


class Unavailable(Exception):
    """The database did not say; the message says why."""


async def ask(read: Callable[[], Awaitable[T]]) -> T:
    """What the database answers. Raises `Unavailable`."""
    try:
        with trio.fail_after(DEADLINE):
            return await read()
    except DatabaseError as error:
        raise Unavailable(str(error)) from error
    except trio.TooSlowError:
        raise Unavailable(f"the database did not answer within {DEADLINE:g} s") from None


class Shared(Generic[T]):
    """One reading.

    maximum_age: seconds for which it is good. share: the part of the time that readings may take; one that took long is good
    for longer.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], maximum_age: float = MAXIMUM_AGE, share: float = 1.0) -> None:
        self._read = read
        self._maximum_age = maximum_age
        self._share = share
        self._good_for = maximum_age
        self._asking = trio.Lock()
        self._read_at = float("-inf")
        self._last: T | Unavailable = Unavailable("not read yet")

    async def get(self) -> T:
        """The reading, as old as `maximum_age` at most. Raises `Unavailable`."""
        async with self._asking:
            if trio.current_time() - self._read_at >= self._good_for:
                await self._read_anew()
            last = self._last
        if isinstance(last, Unavailable):
            raise Unavailable(str(last))
        return last

    async def _read_anew(self) -> None:
        began = trio.current_time()
        self._good_for = self._maximum_age
        try:
            self._last = await ask(self._read)
            self._good_for = max(self._maximum_age, (trio.current_time() - began) / self._share)
        except Unavailable as error:
            self._last = error
        self._read_at = trio.current_time()


class SharedByKey(Generic[K, T]):
    """A reading for each of many keys; the last `most` that somebody looked at are kept."""

    def __init__(self, read: Callable[[K], Awaitable[T]], most: int, share: float = 1.0) -> None:
        self._read = read
        self._most = most
        self._share = share
        self._readings: OrderedDict[K, Shared[T]] = OrderedDict()

    async def get(self, key: K) -> T:
        """As `Shared.get`."""
        known = self._readings.setdefault(key, Shared(lambda: self._read(key), share=self._share))
        self._readings.move_to_end(key)
        if len(self._readings) > self._most:
            self._readings.popitem(last=False)
        return await known.get()

    def forget(self, key: K) -> None:
        """It is to be read anew."""
        self._readings.pop(key, None)
