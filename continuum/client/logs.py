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
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Stream, str]:
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            await trio.sleep(self._pause)
            self._look_at(await self._fetch())
        return self._pieces.popleft()

    def _look_at(self, record: TaskRecord) -> None:
        if record.attempt != self._attempt:
            self._attempt, self._shown = record.attempt, dict.fromkeys(Stream, "")
        for stream, text in ((Stream.OUTPUT, record.output or ""), (Stream.ERROR, record.error_output or "")):
            if new := what_follows(self._shown[stream], text):
                self._pieces.append((stream, new))
                self._shown[stream] = text
        self._ended = record.finished_for_good or not self._follow
        self._pause = SHORTEST_PAUSE if self._pieces else min(LONGEST_PAUSE, max(SHORTEST_PAUSE, self._pause * 1.5))


def what_follows(shown: str, text: str) -> str:
    """The part of `text` that is new. It may not simply be longer: at the end a mark may stand where it was cut."""
    if text.startswith(shown):
        return text[len(shown) :]
    same = next((at for at, (one, other) in enumerate(zip(shown, text, strict=False)) if one != other), len(text))
    return text[same:]
