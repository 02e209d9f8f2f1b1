"""Following what a task writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

import trio

from continuum.model import Stream, TaskRecord

SHORTEST_PAUSE, LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two looks at a task: the shortest while it writes or has just begun, up to the longest while nothing comes."""


class TaskLogs:
    """The pieces of a task's output, as an async iterator that may be left at any time. `Client.logs` makes it."""

    def __init__(self, fetch: Callable[[], Awaitable[TaskRecord]], follow: bool) -> None:
        self._fetch = fetch
        self._follow = follow
        self._pieces: deque[tuple[Stream, str]] = deque()
        self._shown = dict.fromkeys(Stream, "")
        self._attempt = 0
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
        if record.attempt != self._attempt:
            self._attempt, self._shown = record.attempt, dict.fromkeys(Stream, "")
        pieces = []
        for stream, text in ((Stream.OUTPUT, record.output or ""), (Stream.ERROR, record.error_output or "")):
            if new := what_follows(self._shown[stream], text):
                pieces.append((stream, new))
                self._shown[stream] = text
        self.ended = record.finished_for_good or not self._follow
        self._pause = SHORTEST_PAUSE if pieces else min(LONGEST_PAUSE, max(SHORTEST_PAUSE, self._pause * 1.5))
        return record, pieces


def what_follows(shown: str, text: str) -> str:
    """The part of `text` that is new. It may not simply be longer: at the end a mark may stand where it was cut."""
    if text.startswith(shown):
        return text[len(shown) :]
    same = next((at for at, (one, other) in enumerate(zip(shown, text, strict=False)) if one != other), len(text))
    return text[same:]
