"""The claim on CockroachDB: a fair share for each tenant, and no more than LIMITS allows, without a convoy.

Many workers that scan the head of one index queue up behind each other's latches (cockroachdb/cockroach#172541), and a scan
under SKIP LOCKED locks whatever it reads. So reading and claiming are apart:

- A *walk* goes around the ring of tenants (`cockroach_ring`). A short queue is seen whole by one read, and what comes first is
  claimed: exact order, two statements. Around a long one the walk goes on step by step, the first time just ahead of the tenants
  that are served; what it saw is remembered, so that tenants which come up are found while others are served.
- Of a tenant with much to do, a *window* of the best priority is read, from one of `SHARDS` parts that tasks are spread over at
  random: each worker begins at another one, and goes on where the last window ended, past no dead rows.
- A claim takes tasks of one tenant after the other, as many as its weight says (deficit round robin, as on PostgreSQL), by their
  keys, together with the permits that limits are kept by. Whatever others hold or took meanwhile is skipped, and nothing else
  is locked.
- Hints: a worker that was told of a task claims it without a look, between two walks that saw the whole of a short queue.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trio

from continuum.db import statements
from continuum.db.cockroach_ring import ENTRIES, IN_ORDER, READ, Entry, Place, Walk, hash_of
from continuum.db.dialect import Read, Rows, Run
from continuum.db.errors import DatabaseUnavailable
from continuum.db.permits import Limits, Permit
from continuum.tags import sets_of

SHARDS = 16
"""As in sql/cockroach.sql."""
WALK_COST = 25.0
"""A walk that goes around in few steps rests for so many times what a step took."""
FEW_STEPS = 4
FEWEST_LOOKED_UP = 8
"""For how many tenants limits are looked up by one statement, at least: some are paused, or at their limits."""
HINTS_SUFFICE = 3.0
"""Seconds after the whole queue was seen for which tasks that were told of are claimed without another look: longer than a worker
with a feed rests between two looks."""
LONGEST_CLAIM = 1.0
"""Seconds after which a claim that has something brings it home: the heartbeat knows of it only then. Never more than a tenth
of the lease."""


_IN_PLACE = f"""{ENTRIES} AND worker_tags = %(tags)s AND ring = %(ring)s
  AND tenant IS NOT DISTINCT FROM %(tenant)s"""

HEAD = f"""{_IN_PLACE} AND priority >= %(min_priority)s AND priority <= %(max_priority)s {IN_ORDER}"""
"""What comes first in a place."""

WINDOW = f"""{_IN_PLACE} AND priority = %(priority)s AND (shard, id) > (%(shard)s, %(id)s) {IN_ORDER}"""
"""What comes next in a place, of one priority."""

_NOT_PAUSED = "(tasks.code::text <> ALL (%(paused)s::text[])) IS NOT FALSE"

CLAIM_KEYS = statements.claim(f"""
        id IN (
            SELECT tasks.id FROM unnest(%(ids)s::int8[]) AS k (id)
            INNER LOOKUP JOIN tasks@tasks_pkey ON tasks.id = k.id
            WHERE {statements.CLAIMABLE} AND {_NOT_PAUSED}
            FOR UPDATE OF tasks SKIP LOCKED
        )""")
"""Claim these tasks, those of them that still wait: locks them and nothing else."""

CLAIM_LIMITED = f"""
WITH wanted AS (
        SELECT * FROM unnest(
            %(ids)s::int8[], %(running)s::text[], %(running_numbers)s::int4[], %(starts)s::text[],
            %(start_numbers)s::int4[], %(periods)s::float8[]
        ) AS w (id, running, running_number, start, start_number, period)
    ),
    waiting AS (
        SELECT wanted.* FROM wanted INNER LOOKUP JOIN tasks@tasks_pkey ON tasks.id = wanted.id
        WHERE {statements.CLAIMABLE} AND {_NOT_PAUSED}
        FOR UPDATE OF tasks SKIP LOCKED
    ),
    free AS (
        SELECT permits.resource, permits.number
        FROM unnest(
            %(running)s::text[] || %(starts)s::text[], %(running_numbers)s::int4[] || %(start_numbers)s::int4[]
        ) AS w (resource, number)
        INNER LOOKUP JOIN permits@permits_pkey ON permits.resource = w.resource AND permits.number = w.number
        WHERE permits.free_at <= now()
        FOR UPDATE OF permits SKIP LOCKED
    ),
    picked AS (
        SELECT * FROM waiting
        WHERE (running IS NULL OR (running, running_number) IN (SELECT resource, number FROM free))
          AND (start IS NULL OR (start, start_number) IN (SELECT resource, number FROM free))
    ),
    claimed AS ({statements.TAKE} WHERE id IN (SELECT id FROM picked) {statements.TAKEN}),
    taken AS (
        UPDATE permits@{{NO_FULL_SCAN}} SET free_at = use.until, task_id = use.task_id
        FROM (
            SELECT running AS resource, running_number AS number, 'infinity'::timestamptz AS until, id AS task_id FROM picked
            UNION ALL
            SELECT start, start_number, now() + period * interval '1 second', NULL FROM picked
        ) AS use
        WHERE permits.resource = use.resource AND permits.number = use.number
        RETURNING 1
    )
SELECT {statements.CLAIMED}
FROM claimed LEFT JOIN codes ON codes.id = claimed.code
ORDER BY claimed.priority, claimed.id
"""
"""The same, each with the permits that it needs: both or neither."""


PARK = f"""
{statements.PARK}
        WHERE id IN (
            SELECT tasks.id FROM unnest(%(ids)s::int8[]) AS k (id)
            INNER LOOKUP JOIN tasks@tasks_pkey ON tasks.id = k.id
            WHERE {statements.CLAIMABLE} AND tasks.code::text = ANY (%(paused)s::text[])
            FOR UPDATE OF tasks SKIP LOCKED
        )
RETURNING id
"""
"""Put those of these tasks out of the way whose code is paused."""


class Turn(NamedTuple):
    """A task that a claim is for, with the permits that it needs."""

    entry: Entry
    running: Permit | None
    start: Permit | None
    period: float | None


class Harvest:
    """What one call is asked for, and what it has claimed so far.

    chosen: tasks that the next statement is to claim. begun, around: whether the walk has begun to go around since the call, and
    has seen everything. disturbed: whether others took permits that it was after. parked: whether it has put tasks of a paused
    code out of the way, behind which there may be others.
    """

    def __init__(self, parameters: Mapping[str, Any], limits: Limits) -> None:
        self.parameters = parameters
        self.limits = limits
        self.tags = sorted(sets_of(parameters["tags"]))
        self.claimed: Rows = []
        self.chosen: set[int] = set()
        self.again_in = math.inf
        self.begun = self.around = self.disturbed = self.parked = False
        self._until = trio.current_time() + min(LONGEST_CLAIM, parameters["lease"] / 10)

    @property
    def wanted(self) -> int:
        """How many more."""
        limit: int = self.parameters["limit"]
        return limit - len(self.claimed)

    @property
    def enough(self) -> bool:
        """Whether nothing more is wanted, or what there is must not wait any longer."""
        return self.wanted == 0 or (bool(self.claimed or self.parked) and trio.current_time() >= self._until)

    def within(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those within the bounds of the priority."""
        lowest, highest = self.parameters["min_priority"], self.parameters["max_priority"]
        return [entry for entry in entries if lowest <= entry.priority <= highest]


@dataclass(slots=True)
class Waiting:
    """What waits in a place, as far as it was read.

    entries: in order, the next one last. whole: nothing else does. window: after which entry the next window begins.
    """

    entries: list[Entry] = field(default_factory=list)
    whole: bool = False
    window: Entry | None = None

    def learn(self, found: list[Entry], *, whole: bool, of_place: Place) -> None:
        """Learn what comes first. Of the last priority not everything may have been read, of those before it has."""
        self.whole = whole
        certain = found if whole else [entry for entry in found if entry.priority < found[-1].priority]
        if certain or whole:
            self.entries, self.window = sorted(certain, key=_order, reverse=True), None
        elif self.window is None or self.window.priority != found[-1].priority:
            self.entries, self.window = [], _anywhere(of_place, found[-1].priority)

    def leave_out(self, chosen: Collection[int]) -> None:
        """Forget tasks that are being claimed, which a look finds still there."""
        self.entries = [entry for entry in self.entries if entry.id not in chosen]


class FairClaims:
    """One worker's way around the ring of tenants.

    read: runs a statement that only reads, and waits for nobody's transaction.
    """

    def __init__(self, run: Run, read: Read) -> None:
        self._run = run
        self._read = read
        self._walk = Walk(read)
        self._places: dict[Place, Waiting] = {}
        self._ring: list[Place] = []  # the same in order
        self._at: Place | None = None
        self._owed: tuple[Place, int] | None = None
        self._seen: set[Place] = set()
        self._been_around = False
        self._short = False
        self._walk_at = 0.0
        self._whole_seen_at = -math.inf
        self._hints: set[Entry] = set()
        self._told_of_more = False
        self._failure: DatabaseUnavailable | None = None
        self._bounds: tuple[int, int] | None = None
        self._lock = trio.Lock()

    def hint(self, entry: Entry) -> None:
        """Somebody saw this task become pending."""
        if len(self._hints) < READ:
            self._hints.add(entry)
        else:
            self._told_of_more = True

    async def claim(self, parameters: Mapping[str, Any]) -> tuple[Rows, float | None]:
        """As `Queue.claim`. Where only a later part of it fails, what was claimed before is returned, and the failure is
        raised by the next call."""
        async with self._lock:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._bounds != (bounds := (parameters["min_priority"], parameters["max_priority"])):
                self._forget()  # what waits outside of the bounds is not known
                self._bounds = bounds
            harvest = Harvest(parameters, Limits(self._run, self._read, parameters["tags"]))
            try:
                await self._claim_into(harvest)
            except DatabaseUnavailable as error:
                self._forget()
                if not harvest.claimed:
                    raise
                self._failure = error
            again_in = 0.0 if harvest.parked else None if math.isinf(harvest.again_in) else harvest.again_in
            return sorted(harvest.claimed, key=statements.claim_order), again_in

    def _forget(self) -> None:
        self._places.clear()
        self._ring.clear()
        self._been_around, self._short, self._walk_at = False, False, 0.0
        self._walk.begin_anew()

    async def _claim_into(self, harvest: Harvest) -> None:
        if self._short:
            self._forget()
        if self._hints_are_all() and await self._claim_hints(harvest):
            return
        while not harvest.enough:
            if not self._places or trio.current_time() >= self._walk_at:
                await self._step(harvest)
            while not (harvest.around or self._been_around or len(self._ahead()) >= 2 * harvest.wanted):
                await self._step(harvest)
            if not await self._serve(harvest):
                if harvest.around and not harvest.disturbed:
                    return
                harvest.disturbed, self._walk_at = False, 0.0

    # -- hints -------------------------------------------------------------------------------------------------------

    def _hints_are_all(self) -> bool:
        """Whether what was told, and what is looked for by the clock, is all that there may be."""
        fresh = trio.current_time() - self._whole_seen_at < HINTS_SUFFICE
        return bool(self._hints) and not self._places and not self._told_of_more and fresh

    async def _claim_hints(self, harvest: Harvest) -> int:
        """Claim tasks that were told of; those that are not wanted now stay known."""
        told = [entry for entry in harvest.within(self._hints) if entry.tags in harvest.tags]
        self._hints = set()
        self._group(told)
        try:
            return await self._serve(harvest)
        finally:
            self._hints = {entry for waiting in self._places.values() for entry in waiting.entries}
            self._places.clear()
            self._ring.clear()

    def _group(self, entries: Iterable[Entry]) -> None:
        for place, found in itertools.groupby(sorted(entries, key=_place_order), key=lambda entry: entry.place):
            self._waiting(place).learn(_sorted(found), whole=True, of_place=place)

    # -- the walk ----------------------------------------------------------------------------------------------------

    async def _step(self, harvest: Harvest) -> None:
        """Go one step on around the ring."""
        began = trio.current_time()
        if self._walk.begins:
            self._told_of_more = False
            self._hints.clear()
            self._seen.clear()
            harvest.begun = True
        step = await self._walk.step(harvest.tags, after=None if self._been_around else self._at)
        if step.first and not (step.everything or self._been_around):
            self._at = None  # all that it comes to is ahead
        for place, entries in step.places.items():
            self._learn(harvest, place, entries, whole=step.whole)
        now = trio.current_time()
        few = step.last and self._walk.steps <= FEW_STEPS
        self._walk_at = now + WALK_COST * (now - began) if few else now
        if step.last:
            harvest.around = harvest.begun
            for place in self._places.keys() - self._seen:
                del self._places[place]
            self._ring = sorted(self._places, key=self._walk.order)
            self._been_around = True
            self._short = step.everything
            if self._short:
                self._whole_seen_at = began

    def _learn(self, harvest: Harvest, place: Place, entries: list[Entry], *, whole: bool) -> None:
        self._seen.add(place)
        waiting = self._waiting(place)
        within = harvest.within(entries)
        if within or whole:
            waiting.learn(within, whole=whole, of_place=place)
        elif waiting.whole:
            waiting.whole = False  # the head says what is within the bounds

    def _waiting(self, place: Place) -> Waiting:
        if place not in self._places:
            self._places[place] = Waiting()
            bisect.insort(self._ring, place, key=self._walk.order)
        return self._places[place]

    # -- the ring ----------------------------------------------------------------------------------------------------

    async def _serve(self, harvest: Harvest) -> int:
        """Claim from one place after the other, as its weight says. Returns how many tasks were claimed."""
        turns: list[Turn] = []
        harvest.chosen.clear()
        least = 0
        more = True
        while more and len(turns) < harvest.wanted:
            before, more = len(turns), False
            owed, self._owed = self._owed, None
            if owed is not None and owed[0] in self._places:
                await harvest.limits.learn([owed[0][1]])
                more = await self._turn(harvest, *owed, turns)
            ring = self._ahead() if self._discovering() else self._ahead() + self._behind()
            at_once = max(harvest.wanted, FEWEST_LOOKED_UP)
            for number, place in enumerate(ring):
                if len(turns) == harvest.wanted:
                    break
                if number % at_once == 0:
                    await harvest.limits.learn([tenant for _, tenant in ring[number : number + at_once]])
                quota = max(least, harvest.limits.quota(place[1]))
                more = await self._turn(harvest, place, quota, turns) or more
                self._at = place
            least = 1 if len(turns) == before else 0  # where all weigh less than one and none had luck
        return await self._claim(harvest, turns) if turns else 0

    def _discovering(self) -> bool:
        """Whether the walk is on its first way around: what it has come to is served, and nobody twice before it is through."""
        return not self._been_around and not self._walk.begins

    def _ahead(self) -> list[Place]:
        return self._ring[self._next() :]

    def _behind(self) -> list[Place]:
        return self._ring[: self._next()]

    def _next(self) -> int:
        """Where in the ring the next place is."""
        if self._at is None:
            return 0
        return bisect.bisect_right(self._ring, self._walk.order(self._at), key=self._walk.order)

    async def _turn(self, harvest: Harvest, place: Place, quota: int, turns: list[Turn]) -> bool:
        """Choose what a place gives now. Returns whether it may give something in another round."""
        allowance = harvest.limits.of(place[1])
        if allowance.paused or harvest.limits.paused(place[0]):
            return False
        waiting = self._places[place]
        if not waiting.entries and not waiting.whole:
            await self._refill(harvest, place, waiting)
        if not waiting.entries:
            return False
        take = int(min(quota, len(waiting.entries), allowance.room, harvest.wanted - len(turns)))
        chosen = [Turn(waiting.entries.pop(), *allowance.take(), allowance.period) for _ in range(take)]
        harvest.chosen.update(turn.entry.id for turn in chosen)
        turns += chosen
        if len(turns) == harvest.wanted and quota > take:
            self._owed = place, quota - take
        if waiting.entries and allowance.rate is not None and not allowance.starts:
            harvest.again_in = min(harvest.again_in, allowance.again_in)
        return bool(waiting.entries or not waiting.whole) and allowance.room > 0

    async def _refill(self, harvest: Harvest, place: Place, waiting: Waiting) -> None:
        """Read what a place has, until something is known or nothing is there."""
        where = {**harvest.parameters, "tags": place[0], "ring": hash_of(place[1]), "tenant": place[1]}
        for _ in range(3):
            if waiting.window is None:
                found = [Entry(*row) for row in await self._read(HEAD, where)]
                waiting.learn(found, whole=len(found) < READ, of_place=place)
                waiting.leave_out(harvest.chosen)
            if waiting.window is not None:
                # Behind the last part comes the first one: what is left may be in any.
                for after in (waiting.window, waiting.window._replace(shard=-1)):
                    where |= {"priority": after.priority, "shard": after.shard, "id": after.id}
                    found = [Entry(*row) for row in await self._read(WINDOW, where)]
                    waiting.entries = sorted(found, key=_order, reverse=True)
                    waiting.window = found[-1] if len(found) == READ else None
                    waiting.leave_out(harvest.chosen)
                    if waiting.entries:
                        break
            if waiting.entries or waiting.whole:
                return

    async def _claim(self, harvest: Harvest, turns: list[Turn]) -> int:
        keys: dict[str, Any] = {
            **harvest.parameters,
            "ids": [turn.entry.id for turn in turns],
            "paused": harvest.limits.paused_codes,
        }
        if any(turn.running or turn.start for turn in turns):
            keys |= {
                "running": [turn.running and turn.running.resource for turn in turns],
                "running_numbers": [turn.running and turn.running.number for turn in turns],
                "starts": [turn.start and turn.start.resource for turn in turns],
                "start_numbers": [turn.start and turn.start.number for turn in turns],
                "periods": [turn.period for turn in turns],
            }
            found = await self._run(CLAIM_LIMITED, keys, writes=True, keyed=True)
        else:
            found = await self._run(CLAIM_KEYS, keys, writes=True, keyed=True)
        harvest.claimed += found
        claimed = {row[statements.ID] for row in found}
        self._hints = {entry for entry in self._hints if entry.id not in claimed}
        missed = [turn for turn in turns if turn.entry.id not in claimed]
        harvest.disturbed = any(turn.running or turn.start for turn in missed)
        if missed and harvest.limits.paused_codes:
            parked = await self._park(
                harvest, {turn.entry.place for turn in missed}, [turn.entry.id for turn in missed]
            )
            missed = [turn for turn in missed if turn.entry.id not in parked]
        for place in {turn.entry.place for turn in missed}:
            self._others_were_quicker(place)
        return len(found)

    async def _park(self, harvest: Harvest, places: Collection[Place], missed: Collection[int]) -> set[int]:
        """Put out of the way what is known to wait in these places, as far as its code is paused. Returns what was."""
        ids = [*missed, *(entry.id for place in places for entry in self._places[place].entries)]
        found = await self._run(PARK, {"ids": ids, "paused": harvest.limits.paused_codes}, writes=True, keyed=True)
        parked = {task_id for (task_id,) in found}
        self._hints = {entry for entry in self._hints if entry.id not in parked}
        for place in places:
            self._places[place].leave_out(parked)
        if parked:
            harvest.parked = harvest.disturbed = True
        return parked

    def _others_were_quicker(self, place: Place) -> None:
        """Go elsewhere in a place: another part of it, or its tasks in no order."""
        waiting = self._places[place]
        if waiting.whole:
            random.shuffle(waiting.entries)
        elif waiting.entries:
            waiting.window = _anywhere(place, waiting.entries[-1].priority)
            waiting.entries = []


def entry_of(message: Mapping[str, Any]) -> Entry:
    """The task that a feed tells of: its columns by the names of an entry's fields."""
    return Entry(message["tags"], message["tenant"], *(int(message[name]) for name in ("priority", "shard", "id")))


def _anywhere(place: Place, priority: int) -> Entry:
    return Entry(*place, priority, random.randrange(SHARDS), -(2**63))  # noqa: S311 - to spread the workers


def _sorted(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=_order)


def _order(entry: Entry) -> tuple[int, int]:
    return entry.priority, entry.id


def _place_order(entry: Entry) -> tuple[str, str]:
    return entry.tags, entry.tenant or ""
