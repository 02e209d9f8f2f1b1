"""The ring of tenants on CockroachDB, and the walk around it: short reads of the claim's index, which wait for nobody.

Places stand in the order of their tenants' hashes. A worker's walk begins at a random one, so that workers, who know nothing of
each other, are spread evenly around the ring.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from continuum.db import statements
from continuum.db.dialect import Read, Rows

READ = 64
"""Tasks that a read of the index returns at most; a queue with fewer is seen whole."""
_LAST = 2**32 - 1
"""The last hash; the first is 0."""


class Entry(NamedTuple):
    """A task in the index."""

    tags: str
    tenant: str | None
    priority: int
    shard: int
    id: int

    @property
    def place(self) -> Place:
        return self.tags, self.tenant


Place = tuple[str, str | None]
"""Where tasks wait: what they ask of a worker, and whose they are."""

ENTRIES = f"""
SELECT worker_tags, tenant, priority, shard, id
FROM tasks@tasks_ready WHERE {statements.CLAIMABLE}"""
IN_ORDER = f"ORDER BY worker_tags, ring, tenant, priority, shard, id LIMIT {READ}"

WALK = f"""{ENTRIES} AND worker_tags = ANY (%(tags)s::text[]) AND ring BETWEEN %(first)s AND %(last)s {IN_ORDER}"""
"""Begin to go around the ring, or a part of it."""

WALK_ON = f"""{ENTRIES} AND worker_tags = %(tags)s
  AND (ring, tenant) >= (%(ring)s, %(beyond)s) AND ring <= %(last)s {IN_ORDER}"""
"""Go on around the ring, among those with the same tags."""


def hash_of(tenant: str | None) -> int:
    """As `tasks.ring` has it."""
    return zlib.crc32((tenant or "").encode())


class Step(NamedTuple):
    """What a step came to: in each place the first entries.

    whole: nothing else is in these places. first, last: the walk began with it, and came back to there. everything: it saw all
    that there is.
    """

    places: dict[Place, list[Entry]]
    whole: bool
    first: bool
    last: bool
    everything: bool = False


class Walk:
    """Goes around the ring, one step after another: first the hashes from `origin` on, then those before.

    steps: of this round. rounds: how often it has been around since it began anew.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._origin = random.randint(1, _LAST)  # noqa: S311 - so that workers begin apart
        self._at: Place | None = None
        self._found = 0
        self._long = False
        self.steps = self.rounds = 0

    @property
    def begins(self) -> bool:
        """Whether the next step is the first one."""
        return self._at is None

    def begin_anew(self) -> None:
        """Be where the walk begins, as if it had not been around."""
        self._at, self.rounds = None, 0

    def order(self, place: Place) -> tuple[Any, ...]:
        """In which order it comes to places."""
        return self._half(place), place[0], hash_of(place[1]), place[1] is not None, place[1] or ""

    async def step(self, tags: list[str], *, after: Place | None) -> Step:
        """Go on. A short queue is seen whole by the first step.

        tags: what tasks may ask for, in order. after: where a walk around a long queue begins, if not where it did before.
        """
        first = self.begins
        if first:
            self.steps = self._found = 0
        self.steps += 1
        if first and not self._long:
            entries = await self._entries(WALK, {"tags": tags, "first": 0, "last": _LAST})
            if len(entries) < READ:
                self.rounds += 1
                return Step(_by_place(entries), whole=True, first=True, last=True, everything=True)
            self._long = True
        if first and after is not None:
            self._origin = hash_of(after[1]) % _LAST + 1
        entries = []
        for statement, where in self._ways_on(tags):
            found = await self._entries(statement, where)
            entries += found
            if len(found) == READ:
                break
        last = len(found) < READ
        self._found += len(entries)
        places = _by_place(entries)
        whole = last or len(places) > 1
        if not last and len(places) > 1:
            places.popitem()  # it is the first one of the next step
        self._at = None if last else next(reversed(places))
        self.rounds += last
        self._long = not last or self._found >= READ
        return Step(places, whole, first, last)

    def _ways_on(self, tags: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Reads that lead around the rest of the ring, one after another."""
        halves = [{"first": self._origin, "last": _LAST}, {"first": 0, "last": self._origin - 1}]
        if self._at is not None:
            at_tags, tenant = self._at
            half = halves[self._half(self._at)]
            beyond = "" if tenant is None else tenant + "\x01"
            yield WALK_ON, {"tags": at_tags, "ring": hash_of(tenant), "beyond": beyond, "last": half["last"]}
            if later := [each for each in tags if each > at_tags]:
                yield WALK, {"tags": later, **half}
            del halves[: self._half(self._at) + 1]
        for half in halves:
            yield WALK, {"tags": tags, **half}

    def _half(self, place: Place) -> int:
        return int(hash_of(place[1]) < self._origin)

    async def _entries(self, statement: str, where: dict[str, Any]) -> list[Entry]:
        rows: Rows = await self._read(statement, where)
        return [Entry(*row) for row in rows]


def _by_place(entries: list[Entry]) -> dict[Place, list[Entry]]:
    return {place: list(each) for place, each in itertools.groupby(entries, key=lambda entry: entry.place)}
