"""Admission: which tasks that wait for others may be claimed now.

A task with a `sequence_key` or a `concurrency_key` is not in the claim's index until it is `admitted`, which it stays through
every retry until it ends. An admission is pointed at tasks that have just ended, for what waited for them, or at a page of all
that wait, for what was lost. It looks at open tasks by their keys and at no more of each than it needs, so that it costs the same
however many wait behind them.

- A sequence: nobody of the key is admitted, and none of those not admitted is older. The first holds for tasks whose transaction
  took its id early and commits late, too: they come after those that were admitted before they could be seen.
- A concurrency key: fewer are admitted, and open, than LIMITS says. They are counted anew each time, so that nothing has to be
  counted down, and a limit that changes holds from the next look on.

Only an admission makes more of a key admitted, so that what it counts is exact, or too much, where admissions do not overlap. A
lock keeps them apart, taken in a statement of its own before: what is read after it was committed before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from continuum.db.connection import TrioConnection
from continuum.db.statements import CLAIMABLE, GATED
from continuum.model import Admission
from continuum.tags import AFTER_PAUSED, PAUSED

BEGIN_POSTGRES = ("SELECT pg_advisory_xact_lock(7265081935130)",)
"""One admission at a time."""
BEGIN_COCKROACH = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    """
INSERT INTO permits (resource, number) VALUES ('admission', 0) ON CONFLICT (resource, number) DO UPDATE SET free_at = now()
""",
)
"""One admission at a time. Each statement sees what was committed before it, which is enough behind the lock: under SERIALIZABLE
it would have to be done again whenever a task of the same key ended meanwhile. Where READ COMMITTED is switched off, it is."""
PAGE = 200
"""Waiting tasks that one look for lost ones goes through."""
AT_ONCE = 100
"""Tasks of one concurrency key that one look considers."""
KEYS_AT_ONCE = 50
"""Keys that are looked up by one statement."""
NEWEST = 2**63 - 1

LOOK = f"""
SELECT (SELECT 1 FROM tasks WHERE {GATED} AND id < %(below)s LIMIT 1),
       (SELECT 1 FROM tasks WHERE {CLAIMABLE} AND worker_tags >= '{PAUSED}' AND worker_tags < '{AFTER_PAUSED}' LIMIT 1)
"""
"""Whether anything waits to be admitted, and whether anything is of a paused code: mostly nothing is, and this is cheap."""

_WAITING = "id, coalesce(tenant, ''), sequence_key, concurrency_key, priority"

WAITING_PAGE = f"SELECT {_WAITING} FROM tasks WHERE {GATED} AND id < %(below)s ORDER BY id DESC LIMIT {PAGE}"
"""The newest of those that wait."""

ENDED = f"SELECT {_WAITING} FROM tasks WHERE id = ANY (%(ids)s::int8[])"
"""What has ended, for its keys."""

# The conditions repeat those of the indexes to the letter.
_IN_SEQUENCE = """
    FROM tasks WHERE coalesce(tenant, '') = %(tenant_{n})s AND sequence_key = %(key_{n})s AND sequence_key IS NOT NULL
      AND status IN ('pending', 'processing')"""
_WITH_KEY = """
    FROM tasks WHERE coalesce(tenant, '') = %(tenant_{n})s AND concurrency_key = %(key_{n})s AND concurrency_key IS NOT NULL
      AND status IN ('pending', 'processing')"""

HEAD = f"""(SELECT {_WAITING}, admitted OR status <> 'pending' OR run_at IS NOT NULL {_IN_SEQUENCE}
    ORDER BY admitted DESC, id LIMIT 1)"""
"""Whose turn it is in a sequence, and whether that one is under way already, or waits for its time."""

FIRST = f"""(SELECT {_WAITING} {_WITH_KEY}
      AND NOT admitted AND status = 'pending' AND run_at IS NULL ORDER BY priority, id LIMIT {AT_ONCE})"""
"""Who waits for a concurrency key, the most urgent first."""

TAKEN = f"(SELECT %(tenant_{{n}})s::text, %(key_{{n}})s::text, count(*) {_WITH_KEY} AND admitted)"
"""How many have a concurrency key."""

LIMITS = "SELECT name, max_running, paused FROM limits WHERE scope = 'key' AND name = ANY (%(names)s::text[])"

ADMIT = """
UPDATE tasks SET admitted = true, queued_at = now()
WHERE id = ANY (%(ids)s::int8[]) AND status = 'pending' AND NOT admitted
RETURNING id
"""
"""Those that were cancelled meanwhile are left alone."""

Key = tuple[str, str]
"""A tenant, and a key of its own."""


class Waiting(NamedTuple):
    """What counts of a task that waits."""

    id: int
    tenant: str
    sequence_key: str | None
    concurrency_key: str | None
    priority: int

    @property
    def sequence(self) -> Key | None:
        return None if self.sequence_key is None else (self.tenant, self.sequence_key)

    @property
    def concurrency(self) -> Key | None:
        return None if self.concurrency_key is None else (self.tenant, self.concurrency_key)


def choose(candidates: Iterable[Waiting], heads: Mapping[Key, int | None], room: Mapping[Key, int]) -> list[int]:
    """Which of these may begin.

    heads: whose turn it is in each sequence, None where somebody is under way. room: how many more of each concurrency key may
    be.
    """
    taken: Counter[Key] = Counter()
    chosen = []
    for each in sorted({one.id: one for one in candidates}.values(), key=lambda one: (one.priority, one.id)):
        if each.sequence is not None and heads.get(each.sequence) != each.id:
            continue
        if each.concurrency is not None:
            if taken[each.concurrency] >= room[each.concurrency]:
                continue
            taken[each.concurrency] += 1
        chosen.append(each.id)
    return chosen


async def admit_after(connection: TrioConnection, ended: Sequence[int]) -> Admission:
    """Within a transaction that has the lock: as `Database.admit_after`."""
    gone = await _waiting(connection, ENDED, {"ids": list(ended)})
    return Admission(await _admit(connection, gone, []))


async def admit_page(connection: TrioConnection, below: int | None) -> Admission:
    """Within a transaction that has the lock: as `Database.admit_page`."""
    page = await _waiting(connection, WAITING_PAGE, {"below": NEWEST if below is None else below})
    admitted = await _admit(connection, page, page)
    return Admission(admitted, len(page), page[-1].id if len(page) == PAGE else None)


async def _admit(connection: TrioConnection, seeds: Sequence[Waiting], candidates: Sequence[Waiting]) -> int:
    """Admit whom it may of the candidates, of those who wait for a key of the seeds, and of those whose turn it is in their
    sequences."""
    firsts = [Waiting(*row) for row in await _by_key(connection, FIRST, (each.concurrency for each in seeds))]
    sequences = (each.sequence for each in [*seeds, *firsts])
    turns = [(Waiting(*row), busy) for *row, busy in await _by_key(connection, HEAD, sequences)]
    heads = {each.sequence: None if busy else each.id for each, busy in turns if each.sequence}
    wanted = [*candidates, *firsts, *(each for each, busy in turns if not busy)]
    room = await _room(connection, {each.concurrency for each in wanted if each.concurrency})
    chosen = choose(wanted, heads, room)
    if not chosen:
        return 0
    return len(await (await connection.execute(ADMIT.encode(), {"ids": chosen})).fetchall())


async def _room(connection: TrioConnection, keys: set[Key]) -> dict[Key, int]:
    if not keys:
        return {}
    names = [*{name for _, name in keys}, "*"]
    cursor = await connection.execute(LIMITS.encode(), {"names": names})
    limits = {name: (most, paused) for name, most, paused in await cursor.fetchall()}
    taken = {(tenant, key): count for tenant, key, count in await _by_key(connection, TAKEN, keys)}
    return {key: limit_of(key[1], limits) - taken[key] for key in keys}


def limit_of(name: str, limits: Mapping[str, tuple[int | None, bool | None]]) -> int:
    """How many of a concurrency key may be at a time. limits: `max_running` and `paused` by name, under `*` for all others."""
    said = [limits[each] for each in (name, "*") if each in limits]
    if next((paused for _, paused in said if paused is not None), False):
        return 0
    return next((most for most, _ in said if most is not None), 1)


async def _waiting(connection: TrioConnection, statement: str, parameters: Mapping[str, Any]) -> list[Waiting]:
    cursor = await connection.execute(statement.encode(), parameters)
    return [Waiting(*row) for row in await cursor.fetchall()]


async def _by_key(connection: TrioConnection, part: str, keys: Iterable[Key | None]) -> list[tuple[Any, ...]]:
    """Run a statement that is made of a part for each key: each is a scan of its own, which stops where it says."""
    rows: list[tuple[Any, ...]] = []
    left = iter(sorted({key for key in keys if key is not None}))
    while some := list(islice(left, KEYS_AT_ONCE)):
        parts = [part.replace("{n}", str(number)) for number in range(len(some))]
        parameters: dict[str, str] = {}
        for number, (tenant, key) in enumerate(some):
            parameters |= {f"tenant_{number}": tenant, f"key_{number}": key}
        cursor = await connection.execute(" UNION ALL ".join(parts).encode(), parameters)
        rows += await cursor.fetchall()
    return rows
