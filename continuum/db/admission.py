"""Admission: which tasks that wait for others may be claimed now.

A task with a `sequence_key`, a `concurrency_key`, `depends_on` or `depends_batch` is not in the claim's index until it is
`admitted`, which it stays through every retry until it ends. An admission is pointed at tasks that have just ended, for what
waited for them, or at a page of all that wait, for what was lost. It looks at open tasks by their keys and at no more of each
than it needs, so that it costs the same however many wait behind them.

- A sequence: nobody of the key is admitted, and none of those not admitted is older. The first holds for tasks whose transaction
  took its id early and commits late, too: they come after those that were admitted before they could be seen.
- A concurrency key: fewer are admitted, and open, than LIMITS says. They are counted anew each time, so that nothing has to be
  counted down, and a limit that changes holds from the next look on.
- Dependencies: `continuum.dependencies` judges. Who has ended stays so, so that no lock is needed to see that nothing came of it.
- A batch: one of its tasks in each state says all that counts. Who waits for it is looked at when that decides something.

Only an admission makes more of a key admitted, so that what it counts is exact, or too much, where admissions do not overlap. A
lock keeps them apart, taken in a statement of its own before: what is read after it was committed before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from continuum.db import statements
from continuum.db.dialect import Rows
from continuum.db.statements import CLAIMABLE, GATED
from continuum.dependencies import Standing, Verdict, judge
from continuum.model import TERMINAL, Admission, Status
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
DEPENDENCIES_AT_ONCE = 5000
"""Dependencies that one look considers, but for a task that has more alone."""
NEWEST = 2**63 - 1

LOOK = f"""
SELECT (SELECT 1 FROM tasks WHERE {GATED} AND id < %(below)s LIMIT 1),
       (SELECT 1 FROM tasks WHERE {CLAIMABLE} AND worker_tags >= '{PAUSED}' AND worker_tags < '{AFTER_PAUSED}' LIMIT 1)
"""
"""Whether anything waits to be admitted, and whether anything is of a paused code: mostly nothing is, and this is cheap."""

_WAITING = """id, coalesce(tenant, ''), sequence_key, concurrency_key, priority,
       coalesce(depends_on, ARRAY[]::int8[]), depends_any, depends_ended, batch, depends_batch"""

WAITING_PAGE = f"SELECT {_WAITING} FROM tasks WHERE {GATED} AND id < %(below)s ORDER BY id DESC LIMIT {PAGE}"
"""The newest of those that wait."""

ENDED = f"SELECT status, {_WAITING} FROM tasks WHERE id = ANY (%(ids)s::int8[])"
"""What has ended."""

DEPENDENTS = f"""
SELECT {_WAITING} FROM tasks
WHERE depends_on && %(ids)s::int8[] AND depends_on IS NOT NULL AND NOT admitted AND status = 'pending'
  AND (run_at IS NULL) IS TRUE
  AND (depends_any OR depends_on && %(bad)s::int8[] OR NOT EXISTS (
      SELECT 1 FROM tasks AS last
      WHERE last.id = tasks.depends_on[array_length(tasks.depends_on, 1)] AND last.status IN ('pending', 'processing')))
"""
"""Who waits for what has ended, found by the index `tasks_depending`: but for those that wait for the last one of theirs anyway,
so that a thousand are not looked at each time that one of them ends. IS TRUE, because `tasks_waiting` does not fit that on
PostgreSQL, which would read all of it while it has no statistics."""

STATUSES = "SELECT id, coalesce(tenant, ''), status FROM tasks WHERE id = ANY (%(ids)s::int8[])"
"""What became of tasks, and whose they are."""

_DEPENDENTS_OF_BATCH = f"""(
    SELECT {_WAITING} FROM tasks
    WHERE coalesce(tenant, '') = %(tenant)s AND depends_batch = %(batch)s AND depends_batch IS NOT NULL
      AND NOT admitted AND status = 'pending' AND run_at IS NULL AND depends_any = {{any_one}}
      AND (depends_ended, id) > ({{ended_enough}}, %(above)s::int8) AND depends_ended <= {{ended_enough}}
    ORDER BY depends_ended, id LIMIT {PAGE})
"""


def dependents_of_batch(kinds: Iterable[tuple[bool, bool]]) -> str:
    """Find the oldest of these kinds, `depends_any` and `depends_ended`, that wait for a batch and are above an id: for each a
    scan of the index `tasks_depending_batch`, which stops where it says. It bounds and orders what it could equate, so that no
    index is taken that has the order of ids alone."""
    return " UNION ALL ".join(
        _DEPENDENTS_OF_BATCH.format(any_one=any_one, ended_enough=ended_enough) for any_one, ended_enough in kinds
    )


# The conditions repeat those of the indexes to the letter.
_IN_SEQUENCE = """
    FROM tasks WHERE coalesce(tenant, '') = %(tenant_{n})s AND sequence_key = %(key_{n})s AND sequence_key IS NOT NULL
      AND status IN ('pending', 'processing')"""
_WITH_KEY = """
    FROM tasks WHERE coalesce(tenant, '') = %(tenant_{n})s AND concurrency_key = %(key_{n})s AND concurrency_key IS NOT NULL
      AND status IN ('pending', 'processing')"""

_ONE = f"""(SELECT id FROM tasks
        WHERE {statements.MEMBERS.format(tenant="%(tenant_{{n}})s", batch="%(key_{{n}})s")}
          AND status >= '{{status}}' AND status <= '{{status}}'
        ORDER BY status {{order}}, id {{order}} LIMIT 1)"""
STANDING_OF = tuple(Status)
STANDING = f"""(SELECT %(tenant_{{n}})s::text, %(key_{{n}})s::text,
    {", ".join(_ONE.format(n="{n}", status=each, order="" if each in TERMINAL else "DESC") for each in STANDING_OF)})"""
"""How a batch stands: one task of it in each state, by the index `tasks_batch`, as above. Of those that have not ended the
newest: workers take the oldest, and leave a trail that a scan from that end would have to pass."""

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

CANCEL = f"""
WITH ended AS (
        UPDATE tasks SET
            status = 'cancelled', finished = {statements.UTC}, webhook_due = {statements.WEBHOOK_DUE}, last_error = verdict.reason
        FROM unnest(%(ids)s::int8[], %(reasons)s::text[]) AS verdict (id, reason)
        WHERE tasks.id = verdict.id AND tasks.status = 'pending' AND NOT tasks.admitted
        RETURNING tasks.id, tasks.status, 0 AS seconds
    ),
    counted AS ({statements.COUNT})
SELECT id FROM ended
"""
"""End those that wait for what cannot come any more."""

Run = Callable[[str, Mapping[str, Any]], Awaitable[Rows]]
"""Runs a statement."""
Key = tuple[str, str]
"""A tenant, and a key of its own."""


class Waiting(NamedTuple):
    """What counts of a task that waits."""

    id: int
    tenant: str
    sequence_key: str | None
    concurrency_key: str | None
    priority: int
    depends_on: Sequence[int | None] = ()
    depends_any: bool = False
    depends_ended: bool = False
    batch: str | None = None
    depends_batch: str | None = None

    @property
    def depends(self) -> bool:
        return bool(self.depends_on) or self.depends_batch is not None

    @property
    def sequence(self) -> Key | None:
        return None if self.sequence_key is None else (self.tenant, self.sequence_key)

    @property
    def concurrency(self) -> Key | None:
        return None if self.concurrency_key is None else (self.tenant, self.concurrency_key)

    @property
    def belongs_to(self) -> Key | None:
        return None if self.batch is None else (self.tenant, self.batch)

    @property
    def waits_for(self) -> Key | None:
        return None if self.depends_batch is None else (self.tenant, self.depends_batch)

    def judged(self, statuses: Mapping[tuple[str, int], str], standings: Mapping[Key, Standing]) -> Verdict:
        """Whether it may begin, as far as its dependencies go."""
        others = {each: None if each is None else statuses.get((self.tenant, each)) for each in self.depends_on}
        batch = standings[self.waits_for] if self.waits_for else None
        return judge(others, batch, any_one=self.depends_any, ended_enough=self.depends_ended)


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


class Followers(NamedTuple):
    """What may go on after some tasks have ended. keyed: those of these that had a key. dependents: who waited for them by
    `depends_on`. batches: those that they belonged to, and which kinds of tasks that wait for each can be told whether to begin:
    `depends_any` and `depends_ended` of these."""

    keyed: list[Waiting]
    dependents: list[Waiting]
    batches: dict[Key, list[tuple[bool, bool]]]


async def followers(run: Run, ended: Sequence[int]) -> Followers:
    """Who is to be looked at after these have ended."""
    gone = [(status, Waiting(*values)) for status, *values in await run(ENDED, {"ids": list(ended)})]
    bad = [each.id for status, each in gone if status != "completed"]
    dependents = await run(DEPENDENTS, {"ids": list(ended), "bad": bad})
    keyed = [each for _, each in gone if each.sequence_key is not None or each.concurrency_key is not None]
    standings = await standings_of(run, (each.belongs_to for _, each in gone))
    batches = {key: kinds for key, batch in standings.items() if (kinds := decidable(batch))}
    return Followers(keyed, sorted((Waiting(*row) for row in dependents), key=lambda one: one.id), batches)


def decidable(batch: Standing) -> list[tuple[bool, bool]]:
    """Of which kinds those are that wait for a batch and may be told whether to begin: `depends_any` and `depends_ended`."""
    kinds = [(any_one, ended_enough) for any_one in (False, True) for ended_enough in (False, True)]
    return [
        (any_one, ended_enough)
        for any_one, ended_enough in kinds
        if judge({}, batch, any_one=any_one, ended_enough=ended_enough) is not None
    ]


async def pages_of_dependents(
    run: Run, batch: Key, kinds: Iterable[tuple[bool, bool]]
) -> AsyncGenerator[list[Waiting]]:
    """Those of these kinds that wait for a batch, a page at a time."""
    parameters: dict[str, Any] = {"tenant": batch[0], "batch": batch[1], "above": 0}
    while found := [Waiting(*row) for row in await run(dependents_of_batch(kinds), parameters)]:
        page = sorted(found, key=lambda one: one.id)[:PAGE]
        yield page
        parameters["above"] = page[-1].id


async def decided(run: Run, tasks: Sequence[Waiting]) -> dict[int, Verdict]:
    """Which of these tasks need wait for their dependencies no longer."""
    ids = {task_id for each in tasks for task_id in each.depends_on}
    found = await run(STATUSES, {"ids": list(ids)}) if ids else []
    statuses = {(tenant, task_id): status for task_id, tenant, status in found}
    standings = await standings_of(run, (each.waits_for for each in tasks))
    verdicts = {each.id: each.judged(statuses, standings) for each in tasks}
    return {task_id: verdict for task_id, verdict in verdicts.items() if verdict is not None}


async def standings_of(run: Run, batches: Iterable[Key | None]) -> dict[Key, Standing]:
    """How batches stand."""
    rows = await by_key(run, STANDING, batches)
    return {
        (tenant, name): Standing(name, {status: one for status, one in zip(STANDING_OF, ones, strict=True) if one})
        for tenant, name, *ones in rows
    }


def portions(tasks: Sequence[Waiting]) -> Iterator[list[Waiting]]:
    """As many at a time as one look may consider."""
    part: list[Waiting] = []
    total = 0
    for each in tasks:
        total += len(each.depends_on)
        if part and (len(part) == PAGE or total > DEPENDENCIES_AT_ONCE):
            yield part
            part, total = [], len(each.depends_on)
        part.append(each)
    if part:
        yield part


async def admit_page(run: Run, below: int | None) -> tuple[Admission, list[Waiting]]:
    """Within a transaction that has the lock: as `Database.admit_page`. Returns the page, too."""
    found = [Waiting(*row) for row in await run(WAITING_PAGE, {"below": NEWEST if below is None else below})]
    page = next(portions(found), [])
    there_is_more = len(found) == PAGE or len(page) < len(found)
    admission = await admit(run, page, page)
    return replace(admission, seen=len(page), below=page[-1].id if there_is_more else None), page


async def admit(run: Run, seeds: Sequence[Waiting], candidates: Sequence[Waiting]) -> Admission:
    """Within a transaction that has the lock: admit whom it may of the candidates, of those who wait for a key of the seeds, and
    of those whose turn it is in their sequences; cancel those of them that wait in vain."""
    firsts = [Waiting(*row) for row in await by_key(run, FIRST, (each.concurrency for each in seeds))]
    firsts = next(portions(firsts), [])
    sequences = (each.sequence for each in [*seeds, *candidates, *firsts])
    turns = [(Waiting(*row), busy) for *row, busy in await by_key(run, HEAD, sequences)]
    heads = {each.sequence: None if busy else each.id for each, busy in turns if each.sequence}
    wanted = [*candidates, *firsts, *(each for each, busy in turns if not busy)]
    verdicts = await decided(run, wanted)
    ready = [each for each in wanted if verdicts.get(each.id) is True]
    chosen = choose(ready, heads, await _room(run, {each.concurrency for each in ready if each.concurrency}))
    refused = {task_id: verdict for task_id, verdict in verdicts.items() if isinstance(verdict, str)}
    admitted = await run(ADMIT, {"ids": chosen}) if chosen else []
    return replace(await refuse(run, refused), admitted=len(admitted))


async def refuse(run: Run, refused: Mapping[int, str]) -> Admission:
    """Cancel those of these that wait still, and say why."""
    if not refused:
        return Admission(0)
    parameters = {"ids": list(refused), "reasons": list(refused.values()), "worker": "admission"}
    return Admission(0, cancelled=tuple(task_id for (task_id,) in await run(CANCEL, parameters)))


async def _room(run: Run, keys: set[Key]) -> dict[Key, int]:
    if not keys:
        return {}
    names = [*{name for _, name in keys}, "*"]
    limits = {name: (most, paused) for name, most, paused in await run(LIMITS, {"names": names})}
    taken = {(tenant, key): count for tenant, key, count in await by_key(run, TAKEN, keys)}
    return {key: limit_of(key[1], limits) - taken[key] for key in keys}


def limit_of(name: str, limits: Mapping[str, tuple[int | None, bool | None]]) -> int:
    """How many of a concurrency key may be at a time. limits: `max_running` and `paused` by name, under `*` for all others."""
    said = [limits[each] for each in (name, "*") if each in limits]
    if next((paused for _, paused in said if paused is not None), False):
        return 0
    return next((most for most, _ in said if most is not None), 1)


async def by_key(run: Run, part: str, keys: Iterable[Key | None]) -> list[tuple[Any, ...]]:
    """Run a statement that is made of a part for each key: each is a scan of its own, which stops where it says."""
    rows: list[tuple[Any, ...]] = []
    left = iter(sorted({key for key in keys if key is not None}))
    while some := list(islice(left, KEYS_AT_ONCE)):
        parts = [part.replace("{n}", str(number)) for number in range(len(some))]
        parameters: dict[str, str] = {}
        for number, (tenant, key) in enumerate(some):
            parameters |= {f"tenant_{number}": tenant, f"key_{number}": key}
        rows += await run(" UNION ALL ".join(parts), parameters)
    return rows
