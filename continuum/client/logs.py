"""Following what a task writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

import trio

from continuum.following import LONGEST_PAUSE as LONGEST_PAUSE
from continuum.following import SHORTEST_PAUSE as SHORTEST_PAUSE
from continuum.following import Transcript
from continuum.following import what_follows as what_follows
from continuum.model import Stream, TaskRecord


class TaskLogs:
    """The pieces of a task's output, as an async iterator that may be left at any time. `Client.logs` makes it."""

    def __init__(self, fetch: Callable[[], Awaitable[TaskRecord]], follow: bool) -> None:
        self._fetch = fetch
        self._follow = follow
        self._pieces: deque[tuple[Stream, str]] = deque()
        self._transcript = Transcript()
        self._pause = 0.0
        self.ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Stream, str]:
        while not self._pieces:
            if self.ended:
                raise StopAsyncIteration
            _, pieces = await self.look()
            self._pieces.extend(pieces)
        return self._pieces.popleft()

    async def look(self) -> tuple[TaskRecord, list[tuple[Stream, str]]]:
        """Look at the task again, when it is time to: how it is, and what is new of its output. For those who want to know
        more than its output; `ended` says when there will be no more."""
        await trio.sleep(self._pause)
        record = await self._fetch()
        pieces = self._transcript.news(record)
        self.ended = record.finished_for_good or not self._follow
        self._pause = SHORTEST_PAUSE if pieces else min(LONGEST_PAUSE, max(SHORTEST_PAUSE, self._pause * 1.5))
        return record, pieces
