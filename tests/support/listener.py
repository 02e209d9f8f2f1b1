"""A listener that keeps what it is woken for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import Wakeup


@dataclass
class RecordingListener:
    """Stands in for the wake-up service of a worker. `failure` is what ended the listening."""

    worker_id: str = "listener"
    claimed: int = 0
    running: int = 0
    saturated: bool = False
    failure: DatabaseUnavailable | None = None
    _woken: list[Wakeup] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    def wake(self, wakeup: Wakeup) -> None:
        self._woken.append(wakeup)
        self._touch()

    def _touch(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def woken(self, seconds: float = 5.0, *, of: Wakeup | None = None) -> Wakeup:
        """The next wake-up, or the next of one kind; fails after so many seconds, or when the listening ended."""
        with trio.fail_after(seconds):
            while True:
                while self._woken:
                    wakeup = self._woken.pop(0)
                    if of in (None, wakeup):
                        return wakeup
                if self.failure is not None:
                    raise self.failure
                await self._changed.wait()

    def forget(self) -> None:
        """What came until now does not count."""
        self._woken.clear()

    async def run(self, database: Database) -> None:
        try:
            await database.listen(self)
        except DatabaseUnavailable as error:
            self.failure = error
            self._touch()


@asynccontextmanager
async def listening(database: Database, **values: object) -> AsyncIterator[RecordingListener]:
    """A listener that has been woken for everything, and listens until the block ends."""
    listener = RecordingListener(**values)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, database)
        for _ in Wakeup:
            await listener.woken(30)
        yield listener
        nursery.cancel_scope.cancel()
