"""What a worker did in its last minutes, in a ring of short intervals, for charts. It takes little memory and never more."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

import trio

from continuum.model import Status

INTERVAL = 2.0
"""Seconds that are counted together."""
INTERVALS = 150
STEP = math.log(1.05)
"""Times that differ by no more than a twentieth are counted as one."""
SHORTEST, LONGEST = 1e-4, 1e6
"""Seconds between which times are told apart, so that there are some 470 of them at most."""


@dataclass(slots=True)
class Times:
    """How often something took how long."""

    _counts: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float) -> None:
        bounded = min(max(seconds, SHORTEST), LONGEST)
        self._counts[round(math.log(bounded) / STEP)] += 1

    def merge(self, other: Times) -> None:
        self._counts.update(other._counts)

    def quantile(self, part: float) -> float | None:
        """The seconds within which `part` of them took place, within 3 %; None when there was nothing."""
        missing = math.ceil(self._counts.total() * part)
        for step, count in sorted(self._counts.items()):
            missing -= count
            if missing <= 0:
                return math.exp(step * STEP)
        return None


@dataclass(slots=True)
class Interval:
    """One interval. waits: from a task's submission to its first run. runs: each attempt, a sandbox's start included."""

    completed: int = 0
    failed: int = 0
    """Tasks that ended in any other way."""
    waits: Times = field(default_factory=Times)
    runs: Times = field(default_factory=Times)


class Recent:
    """The last INTERVALS intervals in which something happened, on Trio's clock."""

    def __init__(self) -> None:
        self._ring: deque[tuple[int, Interval]] = deque(maxlen=INTERVALS + 1)
        self._began = _number()

    def finished(self, status: Status) -> None:
        """A task reached a terminal state."""
        if status is Status.COMPLETED:
            self._now().completed += 1
        else:
            self._now().failed += 1

    def ran(self, seconds: float) -> None:
        """An attempt held a slot for so long."""
        self._now().runs.add(seconds)

    def waited(self, seconds: float) -> None:
        """A task began to run so long after it was submitted."""
        self._now().waits.add(seconds)

    def intervals(self) -> list[Interval]:
        """The last whole intervals since the beginning, INTERVALS at most, the oldest first; not the one under way."""
        end = _number()
        known = dict(self._ring)
        return [known.get(number) or Interval() for number in range(max(self._began, end - INTERVALS), end)]

    def _now(self) -> Interval:
        number = _number()
        if not self._ring or self._ring[-1][0] != number:
            self._ring.append((number, Interval()))
        return self._ring[-1][1]


def _number() -> int:
    return int(trio.current_time() // INTERVAL)
