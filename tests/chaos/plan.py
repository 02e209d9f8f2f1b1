"""What a run consists of, and where it takes place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from tests.chaos.checker import Rules
from tests.chaos.history import FaultBegan, FaultEnded, Recorder


@dataclass(frozen=True, slots=True)
class Plan:
    """How much work there is, who does it, and for how long things break. Times in seconds.

    tasks: how many are submitted, spread over `submitting`.
    script: what a script takes at least and at most.
    slots: of each worker; more than the producer submits at once, or law 7 holds nobody to anything.
    kill_worker_every: seconds from the death of one worker (kill -9, and another takes its place) to that of the next.
    worker_kills: how many die.
    faults: until when things are broken, if the work is not done before; then everything is healed.
    finish: how long the work may take after that.
    """

    tasks: int = 5_000
    submitting: float = 50.0
    script: tuple[float, float] = (0.05, 0.2)
    workers: int = 3
    slots: int = 32
    lease: float = 6.0
    polling_interval: float = 1.0
    kill_worker_every: float = 20.0
    worker_kills: int = 1
    faults: float = 180.0
    finish: float = 120.0


class Reporter:
    """Writes down what is broken, and tells those who watch."""

    def __init__(self, record: Recorder, say: Callable[[str], None]) -> None:
        self._record = record
        self._say = say

    @asynccontextmanager
    async def fault(self, name: str, *, outage: bool = False) -> AsyncIterator[None]:
        """Something is broken for the length of the block.

        outage: the workers may be unable to use the database meanwhile.
        """
        self._record(FaultBegan(name=name, outage=outage))
        self._say(name)
        try:
            yield
        finally:
            self._record(FaultEnded(name=name))
            self._say(f"{name}: over")


Break = Callable[[Reporter], Awaitable[None]]
"""Breaks things again and again until it is cancelled. Who cancels it heals what is broken then."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break things, and what workers are held to meanwhile.

    longest_pause: seconds that may pass between two outcomes, where it is this that says that work goes on: things break
        too often for law 7 to hold anybody to anything.
    """

    name: str
    run: Break
    rules: Rules
    longest_pause: float | None = None


class Target(Protocol):
    """A database with something to break between or behind it."""

    url: str
    """What the workers and the producer are given."""
    watching: str
    """What the observer is given: the same database, on a way that stays whole where there is one."""
    faults: dict[str, Fault]

    async def heal(self) -> None:
        """Return when everything runs again."""
        ...


async def every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again, each beginning `seconds` after the last began, or when that has ended."""
    while True:
        began = trio.current_time()
        await act()
        await trio.sleep_until(began + seconds)
