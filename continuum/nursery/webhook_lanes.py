"""Who may deliver now, where some receivers are slow: they share a part of the room, so that all others keep the rest.

A receiver that never answers holds a delivery's place for the whole deadline. Those to it, and those of the tenant that named it
(who may have as many host names as it likes), are narrowed, and what finds its lane full is put off for about as long as it would
have queued.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

SLOW = 3.0
"""Seconds that deliveries take where they are slow."""
NARROW = 8
"""Deliveries at once in a slow lane."""
SLOW_PART = 1 / 2
"""Of all room: what slow lanes have together, and what a lane has of which nothing is known yet."""
ASSUMED = 0.5
"""Seconds that a delivery is taken to last, where nothing is known."""
WEIGHT = 0.3
"""Of the newest delivery in the moving average."""
SHORTEST_PUT_OFF, LONGEST_PUT_OFF = 0.5, 900.0
REMEMBERED = 600.0
"""Seconds for which a lane is known after its last delivery."""
MOST_REMEMBERED = 10_000


@dataclass(slots=True, eq=False)
class _Lane:
    """Times are Trio's. under_way: with the moment at which each began, the oldest first. queue: when what was put off will have
    had its turn. used: when somebody wanted to enter last."""

    average: float | None = None
    under_way: dict[Passage, float] = field(default_factory=dict)
    queue: float = 0.0
    used: float = 0.0

    def expected(self, now: float) -> float:
        """Seconds that the next delivery will take."""
        oldest = next(iter(self.under_way.values()), now)
        return max(ASSUMED if self.average is None else self.average, now - oldest)


class Lanes:
    """The lanes of one worker, by receiver and by tenant. room: deliveries at once, all together."""

    def __init__(self, room: int) -> None:
        self._slow_room = int(room * SLOW_PART)
        self._lanes: dict[str, _Lane] = {}
        self._under_way: set[Passage] = set()

    def __len__(self) -> int:
        return len(self._lanes)

    def enter(self, names: Iterable[str]) -> Passage | float:
        """Let a delivery in whose lanes have these names, until its passage is left; or seconds to put it off, where one of them
        is full."""
        now = trio.current_time()
        lanes = [self._lane(name, now) for name in names]
        for lane in lanes:
            if self._is_full(lane, now):
                lane.queue = max(lane.queue, now) + lane.expected(now) / NARROW
                return min(LONGEST_PUT_OFF, SHORTEST_PUT_OFF + lane.queue - now)
        return Passage(self._under_way, lanes)

    def _lane(self, name: str, now: float) -> _Lane:
        if name not in self._lanes and len(self._lanes) >= MOST_REMEMBERED:
            idle = {name: lane for name, lane in self._lanes.items() if not lane.under_way}
            for each in [name for name, lane in idle.items() if now - lane.used > REMEMBERED] or list(idle):
                del self._lanes[each]
        lane = self._lanes.setdefault(name, _Lane())
        lane.used = now
        return lane

    def _is_full(self, lane: _Lane, now: float) -> bool:
        if lane.expected(now) > SLOW:
            slow = sum(any(each.expected(now) > SLOW for each in passage.lanes) for passage in self._under_way)
            return len(lane.under_way) >= NARROW or slow >= self._slow_room
        return lane.average is None and len(lane.under_way) >= self._slow_room


class Passage:
    """A delivery in its lanes; `with` it is made."""

    def __init__(self, all_under_way: set[Passage], lanes: list[_Lane]) -> None:
        self.lanes = lanes
        self._all = all_under_way
        self._all.add(self)
        for lane in lanes:
            lane.under_way[self] = trio.current_time()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._all.remove(self)
        for lane in self.lanes:
            seconds = trio.current_time() - lane.under_way.pop(self)
            lane.average = seconds if lane.average is None else (1 - WEIGHT) * lane.average + WEIGHT * seconds
