"""The statements that claim on CockroachDB: tasks and permits by their keys, and nothing else is locked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from continuum.db import statements
from continuum.db.cockroach_ring import Entry
from continuum.db.dialect import Rows, Run
from continuum.db.permits import Permit

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


async def claim_turns(run: Run, parameters: Mapping[str, Any], turns: Sequence[Turn], paused: Sequence[str]) -> Rows:
    """Claim what still waits of these, as far as its permits are free. paused: codes."""
    keys: dict[str, Any] = {**parameters, "ids": [turn.entry.id for turn in turns], "paused": paused}
    if not any(turn.running or turn.start for turn in turns):
        return await run(CLAIM_KEYS, keys, writes=True, keyed=True)
    keys |= {
        "running": [turn.running and turn.running.resource for turn in turns],
        "running_numbers": [turn.running and turn.running.number for turn in turns],
        "starts": [turn.start and turn.start.resource for turn in turns],
        "start_numbers": [turn.start and turn.start.number for turn in turns],
        "periods": [turn.period for turn in turns],
    }
    return await run(CLAIM_LIMITED, keys, writes=True, keyed=True)


async def park(run: Run, ids: Sequence[int], paused: Sequence[str]) -> set[int]:
    """Put out of the way what still waits of these, as far as its code is paused. Returns what was."""
    found = await run(PARK, {"ids": ids, "paused": paused}, writes=True, keyed=True)
    return {task_id for (task_id,) in found}
