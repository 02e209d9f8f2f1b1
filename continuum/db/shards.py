"""Claiming on CockroachDB without a convoy and without wading through dead rows.

Many workers that scan the head of one index queue up behind each other's latches (cockroachdb/cockroach#172541), and a scan
from the head of a queue passes every task that was ever claimed until its index entry is collected. So:

- Tasks are spread at random over `SHARDS` parts of the index, in each of which they are in order. A claim is an ordered,
  limited scan of one part, which is all that SKIP LOCKED can do without locking what it does not take.
- A worker *surveys* the queue with one small read. A short queue is seen whole, and what comes first is claimed by its keys:
  exact order, one statement. Of a long one it learns the best priority, and claims that from one part after the other,
  each worker beginning at another one. Anything more urgent is surveyed for meanwhile, and claimed by its keys.
- Marks: below them, in each priority, is nothing but dead rows, so scans begin there. What may have come back below (a
  retry, a transaction that took its id long before it committed) is found by surveys of everything, at least every
  `SURVEY_AT_MOST` seconds.
- Hints: a worker that was told of a task claims it by its key without a look, between two surveys of everything.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import trio

from continuum.db import statements
from continuum.db.dialect import Read, Rows, Run
from continuum.db.errors import DatabaseUnavailable

SHARDS = 16
"""As in sql/cockroach.sql."""
SURVEY_LIMIT = 32
"""Tasks that a survey reads; a queue with fewer is seen whole."""
SURVEY_AT_LEAST, SURVEY_AT_MOST = 1.0, 5.0
"""Seconds between two surveys of everything, and between two for what is more urgent: SURVEY_COST times what the last one
took, within these bounds."""
SURVEY_COST = 50.0
MARKED_PRIORITIES = 8
"""For how many priorities a mark is kept: those claimed last."""
SLACK = 1_000_000 << 15
"""How far a mark stays behind the newest id known, for transactions that commit late: 10 s. The upper bits of unique_rowid()
count 10 microseconds, the lower 15 are the node's."""
HINTS_SUFFICE = 3.0
"""Seconds after a survey of everything for which tasks that were told of are claimed without another one: longer than a worker
with a feed rests between two looks."""
LONGEST_CLAIM = 1.0
"""Seconds after which a claim that has something brings it home: the heartbeat knows of it only then. Never more than a tenth
of the lease."""


class Entry(NamedTuple):
    """A task in the index."""

    shard: int
    priority: int
    id: int


_PENDING = f"""{statements.CLAIMABLE}
          AND priority >= %(min_priority)s AND priority <= %(max_priority)s"""


def _beyond(marks: int) -> str:
    """What is not below one of so many marks, as ranges that the index answers; `_parameters` gives them their values."""
    if marks == 0:
        return ""
    ranges = ["priority < %(mark_priority_0)s"]
    for number in range(marks):
        ranges.append(f"(priority = %(mark_priority_{number})s AND id >= %(mark_id_{number})s)")
        above = f"priority > %(mark_priority_{number})s"
        ranges.append(f"({above} AND priority < %(mark_priority_{number + 1})s)" if number + 1 < marks else above)
    return f"AND ({' OR '.join(ranges)})"


@cache
def survey_statement(marks: int) -> str:
    """Read a few pending tasks: all of them, when there are only a few."""
    shards = ", ".join(map(str, range(SHARDS)))
    return f"""
        SELECT shard, priority, id FROM tasks@tasks_claimable
        WHERE shard IN ({shards}) AND {_PENDING} {_beyond(marks)} LIMIT {SURVEY_LIMIT}
"""


@cache
def claim_shard_statement(marks: int) -> str:
    """Claim from one part, in order. The plan must be one ordered, limited scan: anything between the scan and its limit
    would have it lock every row that it reads."""
    return statements.claim(f"""
        id IN (
            SELECT id FROM tasks
            WHERE shard = %(shard)s AND {_PENDING} {_beyond(marks)}
            ORDER BY priority, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        )""")


CLAIM_KEYS = statements.claim(f"""
        id IN (
            SELECT tasks.id
            FROM unnest(%(shards)s::int2[], %(priorities)s::int4[], %(ids)s::int8[]) AS k (shard, priority, id)
            INNER LOOKUP JOIN tasks@tasks_claimable
                ON tasks.shard = k.shard AND tasks.priority = k.priority AND tasks.id = k.id
            WHERE {statements.CLAIMABLE}
            FOR UPDATE OF tasks SKIP LOCKED
        )""")
"""Claim the tasks seen at these places, those of them that are still there: locks them and nothing else."""


class Marks:
    """Below which id there is nothing in a priority, as far as is known."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}
        self._marks: OrderedDict[int, int] = OrderedDict()

    def saw_claimed(self, priority: int, task_id: int) -> None:
        """A task of this priority was claimed, which leaves a dead row."""
        self._newest[priority] = max(task_id, self._newest.get(priority, task_id))

    def set(self, pending: Iterable[Entry], *, up_to: int) -> None:
        """Learn from a survey of everything: these are all pending tasks of priorities up to one.

        What was claimed since the last such survey says where a priority is now, so that one task with an outlandish id
        misleads for no longer than until the next.
        """
        lowest: dict[int, int] = {}
        for entry in pending:
            lowest[entry.priority] = min(entry.id, lowest.get(entry.priority, entry.id))
        for priority in [each for each in self._newest if each <= up_to]:
            self._marks[priority] = self._newest.pop(priority) - SLACK
            self._marks.move_to_end(priority)
        for priority, task_id in lowest.items():
            if priority in self._marks:
                self._marks[priority] = min(self._marks[priority], task_id)
        while len(self._marks) > MARKED_PRIORITIES:
            self._marks.popitem(last=False)

    def below(self, priority: int) -> dict[int, int]:
        """The marks of all more urgent priorities."""
        return {each: mark for each, mark in self._marks.items() if each < priority}

    def all(self) -> dict[int, int]:
        return dict(self._marks)


def _values(marks: Mapping[int, int]) -> dict[str, int]:
    """Marks as the parameters of a statement that was made for so many."""
    values: dict[str, int] = {}
    for number, (priority, task_id) in enumerate(sorted(marks.items())):
        values |= {f"mark_priority_{number}": priority, f"mark_id_{number}": task_id}
    return values


@dataclass(slots=True)
class Backlog:
    """A long queue, of which this is the best priority.

    floors: by part, the id of the last task claimed there. drained: parts in which nothing of the priority is left.
    survey_at: when to look for what is more urgent, on Trio's clock.
    """

    priority: int
    survey_at: float = 0.0
    floors: dict[int, int] = field(default_factory=dict)
    drained: set[int] = field(default_factory=set)


class Harvest:
    """What one call is asked for, and what it has claimed so far."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = parameters
        self.claimed: Rows = []
        self._until = trio.current_time() + min(LONGEST_CLAIM, parameters["lease"] / 10)

    @property
    def wanted(self) -> int:
        """How many more."""
        limit: int = self.parameters["limit"]
        return limit - len(self.claimed)

    @property
    def enough(self) -> bool:
        """Whether nothing more is wanted, or what there is must not wait any longer."""
        return self.wanted == 0 or (bool(self.claimed) and trio.current_time() >= self._until)

    def may_take(self, entry: Entry) -> bool:
        """Whether a task lies within the bounds of its priority."""
        lowest, highest = self.parameters["min_priority"], self.parameters["max_priority"]
        return bool(lowest <= entry.priority <= highest)


class ShardedClaims:
    """One worker's way through the parts of the queue.

    read: runs a statement that only reads, and waits for nobody's transaction.
    polling_interval: seconds; how long a worker rests at most when it has found nothing.
    """

    def __init__(self, run: Run, read: Read, polling_interval: float) -> None:
        self._run = run
        self._read = read
        self._survey_at_most = min(SURVEY_AT_MOST, polling_interval / 2)
        self._marks = Marks()
        self._backlog: Backlog | None = None
        self._next_shard = random.randrange(SHARDS)  # noqa: S311 - to spread the workers
        self._everything_at = 0.0
        self._everything_seen_at = -HINTS_SUFFICE
        self._hints: set[Entry] = set()
        self._told_of_more = False
        self._failure: DatabaseUnavailable | None = None
        self._lock = trio.Lock()

    def hint(self, entry: Entry) -> None:
        """Somebody saw this task become pending."""
        if len(self._hints) < SURVEY_LIMIT:
            self._hints.add(entry)
        else:
            self._told_of_more = True

    async def claim(self, parameters: Mapping[str, Any]) -> Rows:
        """As `Queue.claim`. Where only a later part of it fails, what was claimed before is returned, and the failure is
        raised by the next call."""
        async with self._lock:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            harvest = Harvest(parameters)
            try:
                await self._claim_into(harvest)
            except DatabaseUnavailable as error:
                self._backlog = None
                if not harvest.claimed:
                    raise
                self._failure = error
            return sorted(harvest.claimed, key=statements.claim_order)

    async def _claim_into(self, harvest: Harvest) -> None:
        if self._hints_are_all() and await self._claim_entries(harvest, self._take_hints(harvest)):
            return
        while not harvest.enough:
            surveyed = self._backlog is None or trio.current_time() >= self._backlog.survey_at
            if surveyed:
                await self._survey(harvest)
            if self._backlog is None:
                return
            if not await self._claim_from_backlog(self._backlog, harvest) and surveyed:
                return  # others were quicker everywhere

    def _hints_are_all(self) -> bool:
        """Whether what was told, and what is looked for by the clock, is all that there may be."""
        return (
            bool(self._hints)
            and self._backlog is None
            and not self._told_of_more
            and trio.current_time() - self._everything_seen_at < HINTS_SUFFICE
        )

    def _take_hints(self, harvest: Harvest) -> list[Entry]:
        """The most urgent tasks that were told of, as many as are wanted; the others stay known."""
        within = [entry for entry in self._hints if harvest.may_take(entry)]
        chosen = sorted(within, key=_order)[: harvest.wanted]
        self._hints = set(within).difference(chosen)
        return chosen

    async def _survey(self, harvest: Harvest) -> None:
        """Claim what is few, and find the best priority of what is many."""
        began = trio.current_time()
        everything = began >= self._everything_at
        marks = {} if everything else self._marks.all()
        self._told_of_more = False
        if everything and self._backlog is not None:
            self._backlog.floors.clear()
            self._backlog.drained.clear()
        up_to = harvest.parameters["max_priority"] if self._backlog is None else self._backlog.priority - 1
        found: list[Entry] = []
        while up_to >= harvest.parameters["min_priority"]:
            where = {**harvest.parameters, **_values(marks), "max_priority": up_to}
            found = [Entry(*row) for row in await self._read(survey_statement(len(marks)), where)]
            if len(found) < SURVEY_LIMIT:
                break
            self._backlog = Backlog(min(entry.priority for entry in found))
            up_to = self._backlog.priority - 1
            found = []
        now = trio.current_time()
        next_time = now + min(self._survey_at_most, max(SURVEY_AT_LEAST, SURVEY_COST * (now - began)))
        if everything:
            self._everything_at = next_time
            self._everything_seen_at = began
            self._marks.set(found, up_to=up_to)
        if self._backlog is not None:
            self._backlog.survey_at = next_time
        await self._claim_entries(harvest, found)

    async def _claim_entries(self, harvest: Harvest, entries: list[Entry]) -> int:
        """Claim the first of these tasks; where others were quicker, once more among the rest, in no order. Return how
        many were claimed."""
        left = sorted(entries, key=_order)
        before = len(harvest.claimed)
        for _ in range(2):
            if harvest.enough:
                break
            chosen, left = left[: harvest.wanted], left[harvest.wanted :]
            if not chosen:
                break
            keys = {
                "shards": [entry.shard for entry in chosen],
                "priorities": [entry.priority for entry in chosen],
                "ids": [entry.id for entry in chosen],
            }
            self._add(harvest, await self._run(CLAIM_KEYS, {**harvest.parameters, **keys}, writes=True, keyed=True))
            random.shuffle(left)
        return len(harvest.claimed) - before

    async def _claim_from_backlog(self, backlog: Backlog, harvest: Harvest) -> int:
        """Claim from one part after the other, until there is enough or all are drained. Return how many were claimed."""
        before = len(harvest.claimed)
        while len(backlog.drained) < SHARDS:
            if harvest.enough:
                return len(harvest.claimed) - before
            shard = self._next_shard
            self._next_shard = (shard + 1) % SHARDS
            if shard in backlog.drained:
                continue
            marks = self._marks.below(backlog.priority)
            if shard in backlog.floors:
                marks[backlog.priority] = backlog.floors[shard]
            wanted = harvest.wanted
            where = {**_values(marks), "shard": shard, "limit": wanted, "max_priority": backlog.priority}
            found = await self._run(claim_shard_statement(len(marks)), {**harvest.parameters, **where}, writes=True)
            self._add(harvest, found)
            if len(found) < wanted:
                backlog.drained.add(shard)
                continue
            priority, task_id = statements.claim_order(found[-1])
            if priority == backlog.priority:
                backlog.floors[shard] = task_id
        self._backlog = None
        return len(harvest.claimed) - before

    def _add(self, harvest: Harvest, found: Rows) -> None:
        for row in found:
            self._marks.saw_claimed(*statements.claim_order(row))
        harvest.claimed += found
        claimed = {row[statements.ID] for row in found}
        self._hints = {entry for entry in self._hints if entry.id not in claimed}


def _order(entry: Entry) -> tuple[int, int]:
    return entry.priority, entry.id
