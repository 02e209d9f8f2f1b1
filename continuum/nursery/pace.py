"""How far ahead of its free slots a worker claims: only as far as short tasks make worth it, and never far in time.

A slot that ends a short task would else stand idle for a round trip to the database, longer than the task itself took. What is
claimed ahead is work that no other worker can begin meanwhile, so it is measured in time: `AHEAD` seconds of it.
"""

from __future__ import annotations

from collections.abc import Iterable

AHEAD = 0.05
"""Seconds of work to hold beyond what runs: several round trips of the database, and nothing that anybody notices."""
MOST_AHEAD = 8
"""No more than so many tasks for each slot, however short they are."""
PATIENCE = 1.0
"""Seconds after which a task that got no slot is given back: those before it take longer than tasks did."""
WEIGHT = 0.1
"""Of the newest task in the moving average."""


class Pace:
    """For how long tasks have held their slots lately, in seconds."""

    def __init__(self) -> None:
        self._average: float | None = None

    def note(self, seconds: float) -> None:
        """A task held its slot for so long."""
        self._average = seconds if self._average is None else (1 - WEIGHT) * self._average + WEIGHT * seconds

    def ahead(self, slots: int, running: Iterable[float]) -> int:
        """How many tasks to hold beyond the `slots` that run. running: seconds for which those do already."""
        if self._average is None:
            return 0
        expected = max(self._average, min(running, default=0.0))
        return slots * MOST_AHEAD if expected <= AHEAD / MOST_AHEAD else int(slots * AHEAD / expected)
