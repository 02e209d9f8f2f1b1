"""The claim on CockroachDB: a fair share for each tenant, and no more than LIMITS allows, without a convoy.

Many workers that scan the head of one index queue up behind each other's latches (cockroachdb/cockroach#172541), and a scan
under SKIP LOCKED locks whatever it reads. So reading and claiming are apart:

- A *walk* goes around the ring of tenants (`cockroach_ring`). A short queue is seen whole by one read, and what comes first is
  claimed: exact order, three statements. Around a long one the walk goes on step by step, the first time just ahead of the
  tenants that are served; what it saw is remembered (`cockroach_waiting`), so that tenants which come up are found while others
  are served.
- A claim takes tasks of one tenant after the other, as many as its weight says (deficit round robin, as on PostgreSQL), by their
  keys, together with the permits that limits are kept by. Whatever others hold or took meanwhile is skipped, and nothing else
  is locked. Where others took some lately, what is remembered is looked up before: a claim that misses costs as much as one
  that does not, and locks what others are about to finish.
- Hints: a worker that was told of a task claims it without a look, between two walks that saw the whole of a short queue.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import trio

from continuum.db import statements
from continuum.db.cockroach_claim import Turn, claim_turns, park
from continuum.db.cockroach_ring import READ, Entry, Place, Walk
from continuum.db.cockroach_waiting import KnownPlaces
from continuum.db.dialect import Read, Rows, Run
from continuum.db.errors import DatabaseUnavailable
from continuum.db.permits import Limits
from continuum.tags import sets_of

WALK_COST = 25.0
"""A walk that goes around in few steps rests for so many times what a step took."""
FEW_STEPS = 4
LONGEST_REST = 5.0
"""Seconds, in any case: a step that took long because a node died says nothing of the next one."""
FEWEST_LOOKED_UP = 4
"""For how many places limits are looked up by one statement, at least."""
HINTS_SUFFICE = 3.0
"""Seconds after the whole queue was seen for which tasks that were told of are claimed without another look: longer than a worker
with a feed rests between two looks."""
LONGEST_CLAIM = 1.0
"""Seconds after which a claim that has something brings it home: the heartbeat knows of it only then. Never more than a tenth
of the lease."""
TRIES = 3
"""How often a claim that comes out empty begins again, because others took what it was after, or hold it locked."""


class Harvest:
    """What one call is asked for, and what it has claimed so far.

    until: how often the walk has been around once it has seen everything since the call. fresh: places of which everything known
    was read since. owed: those at which others were quicker, and which have another turn for that. chosen: tasks that the next
    statement is to claim. missed: whether others took some of these, or hold them. parked: whether tasks of a paused code were
    put out of the way, behind which there may be others.
    """

    def __init__(self, parameters: Mapping[str, Any], limits: Limits, until: int) -> None:
        self.parameters = parameters
        self.limits = limits
        self.tags = sorted(sets_of(parameters["tags"]))
        self.until = until
        self.claimed: Rows = []
        self.fresh: set[Place] = set()
        self.owed: set[Place] = set()
        self.chosen: set[int] = set()
        self.again_in = math.inf
        self.missed = self.parked = False
        self._tries = TRIES
        self._late_at: float = trio.current_time() + min(LONGEST_CLAIM, parameters["lease"] / 10)

    @property
    def wanted(self) -> int:
        """How many more."""
        limit: int = self.parameters["limit"]
        return limit - len(self.claimed)

    @property
    def late(self) -> bool:
        """Whether what there is must not wait any longer."""
        return trio.current_time() >= self._late_at

    @property
    def enough(self) -> bool:
        return self.wanted == 0 or (self.late and bool(self.claimed or self.parked))

    def try_again(self) -> bool:
        """Whether to begin again, now that everything was seen and nothing was claimed."""
        again, self.missed = self.missed and self._tries > 0, False
        self._tries -= again
        return again

    def within(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those within the bounds of the priority."""
        lowest, highest = self.parameters["min_priority"], self.parameters["max_priority"]
        return [entry for entry in entries if lowest <= entry.priority <= highest]


class FairClaims:
    """One worker's way around the ring of tenants.

    read: runs a statement that only reads, and waits for nobody's transaction.
    """

    def __init__(self, run: Run, read: Read) -> None:
        self._run = run
        self._read = read
        self._walk = Walk(read)
        self._walk_at = 0.0  # when it goes on, at the latest
        self._known = KnownPlaces(self._walk.order)
        self._at: Place | None = None  # who was served last
        self._owed: dict[Place, int] = {}  # what that one has left of its turn, and what others were quicker to take
        self._doubtful = True  # whether others took some of what was known lately
        self._short = False  # whether one read saw everything: another one does so at the next call
        self._whole_seen_at = -math.inf
        self._hints: set[Entry] = set()
        self._bounds: tuple[int, int] | None = None
        self._failure: DatabaseUnavailable | None = None
        self._lock = trio.Lock()

    def hint(self, entry: Entry) -> None:
        """Somebody saw this task become pending."""
        self._hints.add(entry)
        if len(self._hints) > READ:
            self._look_at_everything()

    async def claim(self, parameters: Mapping[str, Any]) -> tuple[Rows, float | None]:
        """As `Queue.claim`. Where only a later part of it fails, what was claimed before is returned, and the failure is
        raised by the next call."""
        async with self._lock:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            # What waits outside of the bounds is not known.
            if self._short or self._bounds != (parameters["min_priority"], parameters["max_priority"]):
                self._forget()
                self._bounds = parameters["min_priority"], parameters["max_priority"]
            limits = Limits(self._run, self._read, parameters["tags"], parameters["limit"])
            harvest = Harvest(parameters, limits, self._walk.rounds + (1 if self._walk.begins else 2))
            try:
                await self._claim_into(harvest)
            except DatabaseUnavailable as error:
                self._forget()
                self._look_at_everything()
                if not harvest.claimed:
                    raise
                self._failure = error
            again_in = 0.0 if harvest.parked else None if math.isinf(harvest.again_in) else harvest.again_in
            return sorted(harvest.claimed, key=statements.claim_order), again_in

    def _forget(self) -> None:
        self._known.clear()
        self._walk.begin_anew()
        self._short, self._walk_at = False, 0.0

    def _look_at_everything(self) -> None:
        """What was told of is not all that there may be."""
        self._hints.clear()
        self._whole_seen_at = -math.inf

    async def _claim_into(self, harvest: Harvest) -> None:
        if self._hints_are_all() and await self._claim_hints(harvest):
            return
        harvest.missed = False
        while not harvest.enough:
            if not self._discovering() and (not self._known or trio.current_time() >= self._walk_at):
                await self._step(harvest)
            while self._discovering() and len(self._ring()) < (1 if harvest.late else 2 * harvest.wanted):
                await self._step(harvest)
            if await self._serve(harvest):
                continue
            if self._walk.rounds >= harvest.until and not harvest.try_again():
                return
            self._walk_at = 0.0

    # -- hints -------------------------------------------------------------------------------------------------------

    def _hints_are_all(self) -> bool:
        """Whether what was told, and what is looked for by the clock, is all that there may be."""
        return bool(self._hints) and not self._known and trio.current_time() - self._whole_seen_at < HINTS_SUFFICE

    async def _claim_hints(self, harvest: Harvest) -> int:
        """Claim tasks that were told of; those that are not wanted now stay known."""
        self._known.learn(entry for entry in harvest.within(self._hints) if entry.tags in harvest.tags)
        self._hints.clear()
        harvest.fresh = {waiting.place for waiting in self._known}
        try:
            return await self._serve(harvest)
        finally:
            self._hints |= {entry for waiting in self._known for entry in waiting.entries}
            self._known.clear()

    # -- the walk ----------------------------------------------------------------------------------------------------

    async def _step(self, harvest: Harvest) -> None:
        """Go one step on around the ring."""
        began = trio.current_time()
        if self._walk.begins:
            self._hints.clear()
            self._whole_seen_at = began
        first_round = self._walk.rounds == 0
        step = await self._walk.step(harvest.tags, after=self._at if first_round else None)
        if step.first and first_round and not step.everything:
            self._at = None  # all that it comes to is ahead
        for place, entries in step.places.items():
            self._learn(harvest, place, entries, whole=step.whole)
        self._short = step.everything
        if not step.everything:
            self._whole_seen_at = -math.inf
        now = trio.current_time()
        rests = step.last and self._walk.steps <= FEW_STEPS
        self._walk_at = now + min(LONGEST_REST, WALK_COST * (now - began)) if rests else now

    def _learn(self, harvest: Harvest, place: Place, entries: list[Entry], *, whole: bool) -> None:
        within = harvest.within(entries)
        if within or whole:
            self._known[place].learn(within, whole=whole)
            harvest.fresh.add(place)
        else:
            self._known[place].look_at_the_head()

    def _discovering(self) -> bool:
        """Whether the walk is on its first way around: what it has come to is served, and nobody twice before it is through."""
        return self._walk.rounds == 0 and not self._walk.begins

    # -- serving -----------------------------------------------------------------------------------------------------

    def _ring(self) -> list[Place]:
        """Who comes next, one after the other."""
        ahead, behind = self._known.from_here(self._at)
        return ahead if self._discovering() else ahead + behind

    async def _serve(self, harvest: Harvest) -> int:
        """Claim from one place after the other, as its weight says. Returns how many tasks were claimed."""
        turns: list[Turn] = []
        harvest.chosen.clear()
        least = 0
        more = True
        while more and len(turns) < harvest.wanted:
            before, more = len(turns), False
            ring = [*(place for place in self._owed if place in self._known), *self._ring()]
            looked_up = 0
            for number, place in enumerate(ring):
                if len(turns) == harvest.wanted:
                    break
                if number == looked_up:  # twice as many each time: very many may be paused, or at their limits
                    looked_up += max(number, harvest.wanted, FEWEST_LOOKED_UP)
                    await self._look_up(harvest, ring[number:looked_up])
                owed = self._owed.pop(place, 0)
                quota = owed or max(least, harvest.limits.quota(place[1]))
                more = await self._turn(harvest, place, quota, turns) or more
                self._at = self._at if owed else place
            least = 1 if len(turns) == before else 0  # where all weigh less than one and none had luck
        return await self._claim(harvest, turns) if turns else 0

    async def _look_up(self, harvest: Harvest, places: Collection[Place]) -> None:
        """Learn what these places may have now, and whether what is known of them still waits, if there is doubt."""
        await harvest.limits.learn([tenant for _, tenant in places])
        if self._doubtful:
            old = [place for place in places if place in self._known and place not in harvest.fresh]
            old = [place for place in old if harvest.limits.room(place)]
            self._doubtful = await self._known.check(self._read, old) or not old
            harvest.fresh.update(place for place in old if self._known[place].entries)

    async def _turn(self, harvest: Harvest, place: Place, quota: int, turns: list[Turn]) -> bool:
        """Choose what a place gives now. Returns whether it may give something in another round."""
        if place not in self._known or harvest.limits.paused(place):
            return False
        allowance = harvest.limits.of(place[1])
        waiting = self._known[place]
        if waiting.worth_a_look and allowance.room > 0 and not (waiting.whole and place in harvest.fresh):
            await waiting.read_on(self._read, harvest.parameters, harvest.chosen)
            harvest.fresh.add(place)
        if waiting.empty:
            self._known.remove(place)
            return False
        take = int(min(quota, len(waiting.entries), allowance.room, harvest.wanted - len(turns)))
        chosen = [Turn(waiting.entries.pop(), *allowance.take(), allowance.period) for _ in range(take)]
        harvest.chosen.update(turn.entry.id for turn in chosen)
        turns += chosen
        if len(turns) == harvest.wanted and quota > take:
            self._owed[place] = quota - take
        if not waiting.empty and allowance.rate is not None and not allowance.starts:
            harvest.again_in = min(harvest.again_in, allowance.again_in)
        return allowance.room > 0 and (bool(waiting.entries) or (take > 0 and not waiting.whole))

    async def _claim(self, harvest: Harvest, turns: list[Turn]) -> int:
        found = await claim_turns(self._run, harvest.parameters, turns, harvest.limits.paused_codes)
        harvest.claimed += found
        claimed = {row[statements.ID] for row in found}
        self._hints = {entry for entry in self._hints if entry.id not in claimed}
        missed = {turn.entry.id: turn.entry.place for turn in turns if turn.entry.id not in claimed}
        if missed and harvest.limits.paused_codes:
            for task_id in await self._park(harvest, missed):
                missed.pop(task_id, None)
        if missed:
            harvest.missed = self._doubtful = True
            harvest.fresh.difference_update(missed.values())
            for place, count in Counter(missed.values()).items():
                self._known[place].go_elsewhere()
                if place not in harvest.owed:
                    harvest.owed.add(place)  # once in a call: somebody may hold what waits locked
                    self._owed[place] = self._owed.get(place, 0) + count
        return len(found)

    async def _park(self, harvest: Harvest, missed: Mapping[int, Place]) -> Collection[int]:
        """Put out of the way what is known to wait in these places, as far as its code is paused. Returns what was."""
        places = [self._known[place] for place in set(missed.values())]
        ids = [*missed, *(entry.id for waiting in places for entry in waiting.entries)]
        parked = await park(self._run, ids, harvest.limits.paused_codes)
        self._hints = {entry for entry in self._hints if entry.id not in parked}
        for waiting in places:
            waiting.leave_out(parked)
        harvest.parked = harvest.parked or bool(parked)
        return parked


def entry_of(message: Mapping[str, Any]) -> Entry:
    """The task that a feed tells of: its columns by the names of an entry's fields."""
    return Entry(message["tags"], message["tenant"], *(int(message[name]) for name in ("priority", "shard", "id")))
