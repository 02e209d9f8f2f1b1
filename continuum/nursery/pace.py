"""How far ahead of its free slots a worker claims: only as far as short tasks make worth it, and never far in time; and how long
it lets free slots gather, where claims take long.

A slot that ends a short task would else stand idle for a round trip to the database, longer than the task itself took. What is
claimed ahead is work that no other worker can begin meanwhile, so it is measured in time: `AHEAD` seconds of it.

A database that slows down gets fewer, larger claims. Short tasks are claimed further ahead, in step with the time that a claim
takes. For longer ones a claim waits until more slots are free, for a small part of the time that a task takes.
"""

from __future__ import annotations

from collections.abc import Iterable

AHEAD = 0.05
"""Seconds of work to hold beyond what runs: several round trips of the database, and nothing that anybody notices."""
MOST_AHEAD = 8
"""No more than so many tasks for each slot, however short they are, while the database is quick."""
PATIENCE = 1.0
"""Seconds after which a task that got no slot is given back: those before it take longer than tasks did."""
WEIGHT = 0.1
"""Of the newest task in the moving average, and of the newest claim in its own."""
ROUND_TRIPS = 2
"""Where so many claims take longer than AHEAD, work is held for as long as they take, up to half of PATIENCE."""
SLOW = 0.25
"""Seconds from which on claims are slow: one takes 2 to 10 ms, and those of 64 workers that claimed at one place of a CockroachDB
cluster took 230."""
GATHER = 10
"""Free slots gather for as long as so many claims take,"""
SHARE = 0.1
"""but for no more than this part of the time that a task takes: so much throughput a slow database may cost, at the most."""


class Pace:
    """For how long tasks have held their slots lately, and claims have taken, in seconds."""

    def __init__(self) -> None:
        self._average: float | None = None
        self.claim_time = 0.0

    def note(self, seconds: float) -> None:
        """A task held its slot for so long."""
        self._average = seconds if self._average is None else (1 - WEIGHT) * self._average + WEIGHT * seconds

    def note_claim(self, seconds: float) -> None:
        """A claim took so long."""
        self.claim_time += WEIGHT * (seconds - self.claim_time)

    @property
    def slow(self) -> bool:
        """Whether the database is slow to grant claims."""
        return self.claim_time >= SLOW

    def ahead(self, slots: int, running: Iterable[float]) -> int:
        """How many tasks to hold beyond the `slots` that run. running: seconds for which those do already."""
        if self._average is None:
            return 0
        further = max(1.0, min(ROUND_TRIPS * self.claim_time, PATIENCE / 2) / AHEAD)
        expected = max(self._average, min(running, default=0.0))
        each = MOST_AHEAD if expected <= AHEAD / MOST_AHEAD else AHEAD / expected
        return int(slots * further * each)

    def gathering(self) -> float:
        """For how many seconds free slots may gather before a claim."""
        return min(GATHER * self.claim_time, SHARE * (self._average or 0.0)) if self.slow else 0.0
