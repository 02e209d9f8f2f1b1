"""What a worker on CockroachDB knows of the tasks that wait: by places of the ring, as far as they were read.

A place with few tasks is read whole. Of one with many a *window* of the best priority is read, from one of `SHARDS` parts that
tasks are spread over at random: each worker begins at another one, and goes on where the last window ended, past no dead rows.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from continuum.db import statements
from continuum.db.cockroach_ring import ENTRIES, IN_ORDER, READ, Entry, Place, hash_of
from continuum.db.dialect import Read

SHARDS = 16
"""As in sql/cockroach.sql."""
LOOKED_UP = 128
"""About how many tasks are looked up at once to see whether they still wait."""
SEVERAL = 4
"""Where there were so many, there are soon more: once they are gone, it is worth another look before the walk comes by."""

_IN_PLACE = f"""{ENTRIES} AND worker_tags = %(tags)s AND ring = %(ring)s
  AND tenant IS NOT DISTINCT FROM %(tenant)s"""

HEAD = f"""{_IN_PLACE} AND priority >= %(min_priority)s AND priority <= %(max_priority)s {IN_ORDER}"""
"""What comes first in a place."""

WINDOW = f"""{_IN_PLACE} AND priority = %(priority)s AND (shard, id) > (%(shard)s, %(id)s) {IN_ORDER}"""
"""What comes next in a place, of one priority."""

STILL_THERE = f"""
SELECT tasks.id FROM unnest(%(ids)s::int8[]) AS k (id)
INNER LOOKUP JOIN tasks@tasks_pkey ON tasks.id = k.id WHERE {statements.CLAIMABLE}
"""
"""Which of these tasks still wait."""


class Waiting:
    """What waits in a place, as far as it was read.

    entries: in order, the next one last. whole: nothing else does.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.entries: list[Entry] = []
        self.whole = False
        self._window: Entry | None = None  # after which entry the next window begins
        self._several = False

    @property
    def empty(self) -> bool:
        return self.whole and not self.entries

    @property
    def worth_a_look(self) -> bool:
        """Whether there may be something, though nothing is known of."""
        return not self.entries and (not self.whole or self._several)

    def learn(self, found: list[Entry], *, whole: bool) -> None:
        """Learn what comes first. Of the last priority not everything may have been read, of those before it has."""
        self.whole, self._several = whole, len(found) >= SEVERAL
        certain = found if whole else [entry for entry in found if entry.priority < found[-1].priority]
        if certain or whole:
            self.entries, self._window = _next_last(certain), None
        elif self._window is None or self._window.priority != found[-1].priority:
            self.entries, self._window = [], self._anywhere(found[-1].priority)

    def look_at_the_head(self) -> None:
        """There is something else than what is known of."""
        self.whole = False

    def leave_out(self, ids: Collection[int]) -> None:
        """Forget tasks that are being claimed, or do not wait any more."""
        self.entries = [entry for entry in self.entries if entry.id not in ids]

    def go_elsewhere(self) -> None:
        """Others take the same ones: go on in another part, or within a priority in no order."""
        if self.whole:
            random.shuffle(self.entries)
            self.entries.sort(key=lambda entry: entry.priority, reverse=True)
            self.whole = bool(self.entries)  # what it was after may wait still
        elif self.entries:
            self._window = self._anywhere(self.entries[-1].priority)
            self.entries = []

    async def read_on(self, read: Read, bounds: Mapping[str, Any], chosen: Collection[int]) -> None:
        """Read until something is known or nothing is there. chosen: what is being claimed, which a read finds still there."""
        tags, tenant = self.place
        where = {**bounds, "tags": tags, "ring": hash_of(tenant), "tenant": tenant}
        for _ in range(3):
            if self._window is None:
                found = [Entry(*row) for row in await read(HEAD, where)]
                self.learn(found, whole=len(found) < READ)
                self.leave_out(chosen)
            if self._window is not None:
                # Behind the last part comes the first one: what is left may be in any.
                for after in (self._window, self._window._replace(shard=-1)):
                    where |= {"priority": after.priority, "shard": after.shard, "id": after.id}
                    found = [Entry(*row) for row in await read(WINDOW, where)]
                    self.entries = _next_last(found)
                    self._window = found[-1] if len(found) == READ else None
                    self.leave_out(chosen)
                    if self.entries:
                        break
            if self.entries or self.whole:
                return

    def _anywhere(self, priority: int) -> Entry:
        return Entry(*self.place, priority, random.randrange(SHARDS), -(2**63))  # noqa: S311 - to spread the workers


class KnownPlaces:
    """The places of the ring that a worker knows, in order.

    order: of a place in the ring.
    """

    def __init__(self, order: Callable[[Place], Any]) -> None:
        self._order = order
        self._waiting: dict[Place, Waiting] = {}
        self._ring: list[Place] = []

    def __bool__(self) -> bool:
        return bool(self._ring)

    def __contains__(self, place: Place) -> bool:
        return place in self._waiting

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    def __getitem__(self, place: Place) -> Waiting:
        """What is known of a place, which is known from now on."""
        if place not in self._waiting:
            self._waiting[place] = Waiting(place)
            bisect.insort(self._ring, place, key=self._order)
        return self._waiting[place]

    def learn(self, entries: Iterable[Entry]) -> None:
        """Learn what was told of, as if there were nothing else."""
        for place, found in itertools.groupby(sorted(entries, key=_by_place), key=lambda entry: entry.place):
            self[place].learn(list(found), whole=True)

    def remove(self, place: Place) -> None:
        del self._waiting[place]
        self._ring.remove(place)

    def clear(self) -> None:
        self._waiting.clear()
        self._ring.clear()

    def from_here(self, at: Place | None) -> tuple[list[Place], list[Place]]:
        """The places ahead of where a worker is, and those behind, which end with that one."""
        here = 0 if at is None else bisect.bisect_right(self._ring, self._order(at), key=self._order)
        return self._ring[here:], self._ring[:here]

    async def check(self, read: Read, places: Collection[Place]) -> bool:
        """Forget what does not wait any more of what comes next in these places. Returns whether there was such."""
        doubtful = [self[place] for place in places]
        anything_gone = False
        while doubtful := [waiting for waiting in doubtful if waiting.entries]:
            most = max(8, LOOKED_UP // len(doubtful))
            next_ones = [(waiting, [entry.id for entry in waiting.entries[-most:]]) for waiting in doubtful]
            ids = [task_id for _, some in next_ones for task_id in some]
            gone = set(ids) - {task_id for (task_id,) in await read(STILL_THERE, {"ids": ids})}
            for waiting in doubtful:
                waiting.leave_out(gone)
            anything_gone = anything_gone or bool(gone)
            doubtful = [waiting for waiting, some in next_ones if gone.issuperset(some)]
        return anything_gone


def _next_last(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.priority, entry.id), reverse=True)


def _by_place(entry: Entry) -> tuple[str, bool, str]:
    return entry.tags, entry.tenant is not None, entry.tenant or ""
