"""How a service waits before it tries again, and how it outlives a database that is away."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from continuum.db.errors import DatabaseUnavailable
from continuum.nursery.state import WorkerState

T = TypeVar("T")

log = structlog.get_logger(__name__)

FIRST_DELAY = 0.1
"""Seconds before the first new try: a failover to another node is often over by then."""
LONGEST_DELAY = 3.0
"""Seconds between tries in a long outage: short, because what waits here is the outcome of finished work."""


class Backoff:
    """Exponential delays with full jitter, so that many workers do not come back at the same moment."""

    def __init__(self, first: float = FIRST_DELAY, longest: float = LONGEST_DELAY) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def next_delay(self) -> float:
        """Seconds to wait after one more failure: between half of the exponential step and all of it."""
        step: float = min(self._longest, self._first * 2 ** min(self._failures, 16))
        self._failures += 1
        return step * random.uniform(0.5, 1.0)  # noqa: S311 - jitter needs no cryptography

    def reset(self) -> None:
        self._failures = 0


def note_database_failure(state: WorkerState, service: str, error: DatabaseUnavailable) -> None:
    """Count a failed call and make `/readyz` say so."""
    state.database_failures += 1
    if "database" not in state.health.problems:
        log.warning("the database is unavailable", service=service, error=str(error))
    state.health.report("database", str(error))


def note_database_success(state: WorkerState) -> None:
    if "database" in state.health.problems:
        log.info("the database is available again")
        state.health.report("database", None)


async def until_available(
    state: WorkerState, service: str, call: Callable[[], Awaitable[T]], *, longest: float = LONGEST_DELAY
) -> T:
    """Make a database call, again and again while the database is unavailable, and return its answer.

    Only for calls that may safely be repeated. Ends otherwise by being cancelled, or by any other exception.
    """
    backoff = Backoff(longest=longest)
    while True:
        try:
            answer = await call()
        except DatabaseUnavailable as error:
            note_database_failure(state, service, error)
            await trio.sleep(backoff.next_delay())
        else:
            note_database_success(state)
            return answer
