"""When the API takes no more for now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from continuum.config import Settings
from continuum.status.api_errors import Refusal
from continuum.status.overview import Overview
from continuum.status.shared import Unavailable

MOST_SUBMISSIONS = 32
"""Requests that submit something at once."""
BODIES = 4
"""Bodies of the largest size whose memory all of them may take together."""
CALLS = 2
"""Connections to the database that the API uses at once: half of the worker's."""
PATIENCE = 10.0
"""Seconds that a request waits for its turn with the database."""
SOON = 1
"""Seconds after which what is full for a moment may be tried again."""
LATER = 5
"""Seconds after which a long queue may be shorter."""


class Pressure:
    """Counts what is under way. settings: read anew for each request."""

    def __init__(self, settings: Settings, overview: Overview) -> None:
        self._settings = settings
        self._overview = overview
        self._submissions = 0
        self._bytes = 0
        self._counted: object = None
        self._accepted = 0
        self._turns = trio.CapacityLimiter(CALLS)

    @property
    def largest_body(self) -> int:
        """Bytes."""
        return self._settings.api_max_body_mb * 1024 * 1024

    @contextmanager
    def submission(self, size: int | None) -> Iterator[None]:
        """Around a request with a body of so many bytes (None: nobody knows yet). Raises `Refusal`."""
        largest = self.largest_body
        taken = largest if size is None else min(size, largest)
        if self._submissions >= MOST_SUBMISSIONS or self._bytes + taken > BODIES * largest:
            raise Refusal(
                429, "too many submissions", "too much is being submitted to this worker at once", retry_after=SOON
            )
        self._submissions += 1
        self._bytes += taken
        try:
            yield
        finally:
            self._submissions -= 1
            self._bytes -= taken

    async def check_queue(self) -> None:
        """Raise `Refusal` while too many tasks are pending, as of about a second ago."""
        most = self._settings.api_max_pending
        if not most:
            return
        try:
            totals = await self._overview.read()
        except Unavailable as error:
            raise Refusal(503, "database unavailable", str(error), retry_after=SOON) from None
        if totals is not self._counted:
            self._counted, self._accepted = totals, 0
        pending = totals["pending_tasks"] + self._accepted
        if pending >= most:
            raise Refusal(
                429,
                "too many pending tasks",
                f"{pending} tasks are pending; while there are API_MAX_PENDING={most}, no more are taken",
                retry_after=LATER,
            )

    def accepted(self, count: int) -> None:
        """So many tasks were submitted since the queue was checked."""
        self._accepted += count

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around a call of the database: the worker's own calls still get through. Raises `Refusal`."""
        with trio.move_on_after(PATIENCE) as scope:
            await self._turns.acquire()
        if scope.cancelled_caught:
            raise Refusal(503, "busy", "too many requests wait for the database", retry_after=SOON)
        try:
            yield
        finally:
            self._turns.release()
