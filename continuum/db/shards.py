"""Claiming on CockroachDB without a convoy and without wading through dead rows.

Many workers that scan the head of one index queue up behind each other's latches (cockroachdb/cockroach#172541), and a scan
from the head of a queue passes every task that was ever claimed until its index entry is collected. So:

- Tasks are spread at random over `SHARDS` parts of the index, in each of which they are in order. A claim is an ordered,
  limited scan of one part, which is all that SKIP LOCKED can do without locking what it does not take.
- Which part? A worker *surveys* the queue with one small read. A short queue is seen whole, and what comes first is claimed by
  its keys: exact order, one statement. Of a long one the *heads* of all parts are read now and then; the part with the best
  priority is next, each worker beginning at another one. Order is exact within a part, and near enough across them.
- Marks: below them, in each priority, is nothing but dead rows, so scans begin there. What may have come back below (a
  retry, a transaction that took its id long before it committed) is found by surveys of everything, at least every
  `SURVEY_AT_MOST` seconds.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from functools import cache
from math import inf
from typing import Any, NamedTuple

import trio

from continuum.db import statements
from continuum.db.dialect import Rows, Run
from continuum.db.errors import DatabaseUnavailable

SHARDS = 16
"""As in sql/cockroach.sql."""
SURVEY_LIMIT = 32
"""Tasks that a survey reads; a queue with fewer is seen whole."""
SURVEY_AT_LEAST, SURVEY_AT_MOST = 1.0, 5.0
"""Seconds between two surveys of everything, and between two readings of the heads: SURVEY_COST times what the last one
took, within these bounds."""
SURVEY_COST = 50.0
MARKED_PRIORITIES = 8
"""For how many priorities a mark is kept: those claimed last."""
SLACK = 1_000_000 << 15
"""How far a mark stays behind the newest id known, for transactions that commit late: 10 s. The upper bits of unique_rowid()
count 10 microseconds, the lower 15 are the node's."""


NO_MARKS: tuple[int, dict[str, int]] = (0, {})


class Position(NamedTuple):
    """A place in one part of the index."""

    priority: int
    id: int


class Entry(NamedTuple):
    """A task in the index."""

    shard: int
    priority: int
    id: int


_PENDING = """status = 'pending' AND run_at IS NULL
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
        SELECT shard, priority, id FROM tasks@tasks_claim
        WHERE shard IN ({shards}) AND {_PENDING} {_beyond(marks)} LIMIT {SURVEY_LIMIT}
"""


@cache
def heads_statement(marks: int) -> str:
    """Read the first pending task of every part. One scan for each: a join would read the whole index."""
    return " UNION ALL ".join(
        f"""(
        SELECT shard, priority, id FROM tasks@tasks_claim
        WHERE shard = {shard} AND {_PENDING} {_beyond(marks)} ORDER BY priority, id LIMIT 1)"""
        for shard in range(SHARDS)
    )


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


CLAIM_KEYS = statements.claim("""
        id IN (
            SELECT tasks.id
            FROM unnest(%(shards)s::int2[], %(priorities)s::int4[], %(ids)s::int8[]) AS k (shard, priority, id)
            INNER LOOKUP JOIN tasks@tasks_claim
                ON tasks.shard = k.shard AND tasks.priority = k.priority AND tasks.id = k.id
            WHERE tasks.status = 'pending' AND tasks.run_at IS NULL
            FOR UPDATE OF tasks SKIP LOCKED
        )""")
"""Claim the tasks seen at these places, those of them that are still there: locks them and nothing else."""


class Marks:
    """Below which id there is nothing in a priority, as far as is known."""

    def __init__(self) -> None:
        self._newest: OrderedDict[int, int] = OrderedDict()
        self._marks: dict[int, int] = {}

    def saw_claimed(self, priority: int, task_id: int) -> None:
        """A task of this priority was claimed, which leaves a dead row."""
        self._newest[priority] = max(task_id, self._newest.get(priority, task_id))
        self._newest.move_to_end(priority)
        if len(self._newest) > MARKED_PRIORITIES:
            dropped, _ = self._newest.popitem(last=False)
            self._marks.pop(dropped, None)

    def set(self, pending: Iterable[Position], *, complete: bool) -> None:
        """Learn from a survey of everything.

        pending: what was found; everything (`complete`), or the first tasks of the best priority and maybe others.
        """
        lowest: dict[int, int] = {}
        for priority, task_id in pending:
            lowest[priority] = min(task_id, lowest.get(priority, task_id))
        known = self._newest.keys() if complete else self._newest.keys() & {min(lowest, default=None)}
        for priority in known:
            behind = self._newest[priority] - SLACK
            self._marks[priority] = min(behind, lowest.get(priority, behind))

    def parameters(self) -> tuple[int, dict[str, int]]:
        """How many marks there are, and their values for a statement that was made for so many."""
        values: dict[str, int] = {}
        for number, (priority, task_id) in enumerate(sorted(self._marks.items())):
            values |= {f"mark_priority_{number}": priority, f"mark_id_{number}": task_id}
        return len(self._marks), values


class ShardedClaims:
    """One worker's way through the parts of the queue."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._marks = Marks()
        self._first_shard = random.randrange(SHARDS)  # noqa: S311 - to spread the workers
        self._heads: dict[int, Position] = {}
        self._heads_until = 0.0
        self._unseen = inf
        self._survey_all_at = 0.0
        self._hints: deque[Entry] = deque(maxlen=SURVEY_LIMIT)
        self._failure: DatabaseUnavailable | None = None
        self._lock = trio.Lock()

    def hint(self, entry: Entry) -> None:
        """Somebody saw this task become pending."""
        self._hints.append(entry)

    async def claim(self, parameters: Mapping[str, Any]) -> Rows:
        """As `Queue.claim`. Where only a later part of it fails, what was claimed before is returned, and the failure is
        raised by the next call."""
        async with self._lock:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            claimed: Rows = []
            try:
                await self._claim_into(claimed, parameters)
            except DatabaseUnavailable as error:
                self._heads.clear()
                if not claimed:
                    raise
                self._failure = error
            return sorted(claimed, key=statements.claim_order)

    async def _claim_into(self, claimed: Rows, parameters: Mapping[str, Any]) -> None:
        limit = parameters["limit"]
        if self._hints and not self._heads:
            await self._claim_entries(claimed, parameters, self._take_hints(parameters))
            if claimed:
                return
        idle = False
        while len(claimed) < limit and not idle:
            before = len(claimed)
            if not self._heads or trio.current_time() >= self._heads_until:
                found = await self._survey(parameters)
                if len(found) < SURVEY_LIMIT:
                    await self._claim_entries(claimed, parameters, found)
                    return
            while self._heads and len(claimed) < limit:
                await self._claim_from_best_shard(claimed, parameters)
            idle = len(claimed) == before

    async def _survey(self, parameters: Mapping[str, Any]) -> list[Entry]:
        """Read a short queue whole, or the heads of a long one."""
        began = trio.current_time()
        everything = began >= self._survey_all_at
        count, marks = NO_MARKS if everything else self._marks.parameters()
        self._heads.clear()
        found = [Entry(*row) for row in await self._run(survey_statement(count), {**parameters, **marks})]
        complete = len(found) < SURVEY_LIMIT
        if not complete:
            heads = [Entry(*row) for row in await self._run(heads_statement(count), {**parameters, **marks})]
            self._heads = {head.shard: Position(head.priority, head.id) for head in heads}
            self._unseen = inf
        now = trio.current_time()
        until = now + min(SURVEY_AT_MOST, max(SURVEY_AT_LEAST, SURVEY_COST * (now - began)))
        self._heads_until = until
        if everything:
            self._survey_all_at = until
            positions = [Position(e.priority, e.id) for e in found] if complete else self._heads.values()
            self._marks.set(positions, complete=complete)
        return found

    async def _claim_entries(self, claimed: Rows, parameters: Mapping[str, Any], entries: list[Entry]) -> None:
        """Claim the first of these tasks; where others were quicker, once more among the rest, in no order."""
        left = sorted(entries, key=lambda entry: (entry.priority, entry.id))
        for _ in range(2):
            wanted = parameters["limit"] - len(claimed)
            chosen, left = left[:wanted], left[wanted:]
            if not chosen:
                return
            keys = {
                "shards": [entry.shard for entry in chosen],
                "priorities": [entry.priority for entry in chosen],
                "ids": [entry.id for entry in chosen],
            }
            self._add(claimed, await self._run(CLAIM_KEYS, {**parameters, **keys}, writes=True))
            random.shuffle(left)

    async def _claim_from_best_shard(self, claimed: Rows, parameters: Mapping[str, Any]) -> None:
        """Claim from the part whose head comes first, as far as nothing that another part holds comes before."""
        shard = self._best_shard()
        others = [head.priority for each, head in self._heads.items() if each != shard]
        up_to = min([parameters["max_priority"], *others])
        wanted = parameters["limit"] - len(claimed)
        count, marks = self._marks.parameters()
        where = {"shard": shard, "limit": wanted, "max_priority": up_to}
        found = await self._run(claim_shard_statement(count), {**parameters, **marks, **where}, writes=True)
        self._add(claimed, found)
        if len(found) == wanted:
            self._heads[shard] = Position(*statements.claim_order(found[-1]))
            self._first_shard = shard
            return
        del self._heads[shard]
        if up_to < parameters["max_priority"]:
            self._unseen = min(self._unseen, up_to + 1)
        if self._heads and self._heads[self._best_shard()].priority > self._unseen:
            self._heads.clear()

    def _best_shard(self) -> int:
        return min(self._heads, key=lambda each: (self._heads[each].priority, (each - self._first_shard) % SHARDS))

    def _add(self, claimed: Rows, found: Rows) -> None:
        for row in found:
            self._marks.saw_claimed(*statements.claim_order(row))
        claimed += found

    def _take_hints(self, parameters: Mapping[str, Any]) -> list[Entry]:
        hints = set(self._hints)
        self._hints.clear()
        allowed = range(parameters["min_priority"], parameters["max_priority"] + 1)
        return [entry for entry in hints if entry.priority in allowed]
