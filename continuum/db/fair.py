"""The claim on PostgreSQL: a fair share for each tenant, and no more than LIMITS allows, in one statement.

The tenants that have something to claim stand in a ring, in the order of their names' hashes. A claim goes on around it from
where this worker's last one ended, and takes from each tenant as many tasks as its weight says: deficit round robin (Shreedhar
and Varghese, 1995), with the ring found by index probes instead of kept. So nothing is kept anywhere but a worker's place in the
ring, no row is written by all, and a claim costs the same however many tasks and tenants there are.

Workers know nothing of each other. Each begins at a random hash, and so at a random tenant: they are spread evenly around the
ring, and have served everybody alike once each has been around it. Where limits are met, those who went side by side would take
each other's permits all the way, catching up with others, so that one of them begins elsewhere.

Limits are kept by permits, rows of which a claim locks as many as it takes tasks, skipping those that others hold: `max_running`
by permits that are taken until the task ends, `rate` by permits that are taken for a period. Whether a permit is free stands in
its own row, which PostgreSQL reads again once it is locked: that makes limits exact, whatever else a statement's snapshot misses.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from continuum.db import statements
from continuum.db.validation import INTEGER

_TENANT = "(coalesce(tenant, '') COLLATE \"C\")"
_HASH = f"hashtext({_TENANT})"
_CLAIMABLE = f"{statements.CLAIMABLE} AND worker_tags"

MOST_PERMITS = 1000
"""Permits that stand for a rate. A rate of 5,000 an hour is kept as one of 1,000 in 12 minutes, which is stricter and implies
it."""
FEWEST_STEPS = 4
"""Tenants that a claim goes past beyond those that it takes something from: some are paused, or at their limits."""
PARKED = 1000
"""Tasks that a claim which meets one of a paused code looks through, to put others of it out of the way as well."""
_PAUSED = "(task.code::text = ANY (ARRAY (SELECT name FROM limits WHERE scope = 'code' AND paused))) IS TRUE"
_FIRST, _LAST = -(2**31), 2**31 - 1
"""Hashes."""


_NEXT = f"""(
            SELECT place.arc, found.tenant
            FROM generate_series(0, cardinality(%(tags)s::text[])) AS turn,
                 LATERAL (SELECT (at.arc - 1 + turn) %% cardinality(%(tags)s::text[]) + 1 AS arc) AS place,
                 LATERAL (
                     SELECT {_TENANT} AS tenant FROM tasks
                     WHERE {_CLAIMABLE} = (%(tags)s::text[])[place.arc]
                       AND ({_HASH}, {_TENANT})
                           >= (CASE turn WHEN 0 THEN hashtext(at.tenant) ELSE (%(firsts)s::int4[])[place.arc] END,
                               CASE turn WHEN 0 THEN at.tenant || chr(1) ELSE '' END)
                       AND {_HASH} <= (%(lasts)s::int4[])[place.arc]
                     ORDER BY {_HASH}, {_TENANT} LIMIT 1
                 ) AS found
            LIMIT 1
        )"""
"""The place after `at`: the next tenant on the same arc, or the first one on the next arc that has any. Arcs are taken one after
another until one has, for there is nothing that PostgreSQL could sort them by. No text lies between another one and the same with
the first character behind it."""


def _free(resource: str, most: str) -> str:
    """How many permits are free, of as many as are wanted."""
    return f"""(
                        SELECT count(*) FROM (
                            SELECT FROM permits
                            WHERE resource = {resource} AND free_at <= now() AND number <= {most}
                            ORDER BY free_at LIMIT greatest(%(limit)s, quota)
                        ) AS those)"""


def _lock(resource: str, most: str) -> str:
    """Lock as many free permits for each offer as it has a share, those that others hold left out."""
    return f"""
        SELECT step, permit.resource, permit.number, row_number() OVER (PARTITION BY step ORDER BY permit.number) AS nth
        FROM offers CROSS JOIN LATERAL (
            SELECT resource, number FROM permits
            WHERE resource = {resource} AND free_at <= now() AND number <= offers.{most}
            ORDER BY free_at LIMIT offers.share FOR UPDATE SKIP LOCKED
        ) AS permit
        WHERE {most} IS NOT NULL
    """


_BEYOND = """EXISTS (
                         SELECT FROM permits
                         WHERE resource = 'running:' || tenant AND free_at = 'infinity' AND number > max_running)"""
"""Whether the limit was lowered, and something runs still in a place that does not count any more: nothing begins before
`statements.MOVE_PERMIT` has found one for it that does."""


CLAIM = f"""
WITH RECURSIVE
    ring (step, arc, tenant, first_arc, first_tenant) AS (
        SELECT 1, start.arc, start.tenant, start.arc, start.tenant
        FROM (SELECT %(at_arc)s::int4 AS arc, %(at_tenant)s::text COLLATE "C" AS tenant) AS at CROSS JOIN LATERAL (
            SELECT at.arc, at.tenant WHERE %(credit)s::int4 > 0
            UNION ALL
            SELECT arc, tenant FROM {_NEXT} AS following
            LIMIT 1
        ) AS start
      UNION ALL
        SELECT step + 1, following.arc, following.tenant, first_arc, first_tenant
        FROM ring AS at CROSS JOIN LATERAL {_NEXT} AS following
        WHERE step < %(steps)s AND (following.arc, following.tenant) <> (first_arc, first_tenant)
    ),
    entitled AS (
        SELECT ring.step, ring.arc, ring.tenant,
               CASE WHEN ring.step = 1 AND %(credit)s::int4 > 0 THEN %(credit)s::int4
                    ELSE floor(limited.weight + random())::int4 END AS quota,
               limited.max_running, floor(limited.rate / parts)::int4 AS rate, limited.rate_period_s / parts AS rate_period
        FROM ring
        LEFT JOIN LATERAL (
            SELECT * FROM limits WHERE scope = 'tenant' AND name = ring.tenant LIMIT 1  -- by its key, however many there are
        ) AS own ON true
        LEFT JOIN limits AS every ON every.scope = 'tenant' AND every.name = '*'
        LEFT JOIN limits AS queue ON queue.scope = 'queue' AND queue.name = ''
        CROSS JOIN LATERAL (
            SELECT EXISTS (SELECT FROM limits AS tag WHERE tag.scope = 'tag' AND tag.paused
                           AND tag.name = ANY (string_to_array((%(tags)s::text[])[ring.arc], ','))) AS paused
        ) AS asked
        CROSS JOIN LATERAL (
            SELECT coalesce(own.weight, every.weight, 1) AS weight,
                   coalesce(own.paused, every.paused, false) OR coalesce(queue.paused, false) OR asked.paused AS paused,
                   coalesce(own.max_running, every.max_running) AS max_running,
                   coalesce(own.rate, every.rate)::float8 AS rate,
                   coalesce(own.rate_period_s, every.rate_period_s) AS rate_period_s,
                   ceil(coalesce(own.rate, every.rate)::float8 / {MOST_PERMITS}) AS parts
        ) AS limited
        WHERE NOT limited.paused
          AND (%(min_priority)s::int4 = {INTEGER.start} AND %(max_priority)s::int4 = {INTEGER.stop - 1} OR EXISTS (
              SELECT FROM tasks
              WHERE {_CLAIMABLE} = (%(tags)s::text[])[ring.arc]
                AND {_HASH} = hashtext(ring.tenant) AND {_TENANT} = ring.tenant
                AND priority >= %(min_priority)s AND priority <= %(max_priority)s))
    ),
    measured AS (
        SELECT entitled.*, least(
                CASE WHEN max_running IS NOT NULL
                     THEN CASE WHEN {_BEYOND} THEN 0 ELSE {_free("'running:' || tenant", "max_running")} END END,
                CASE WHEN rate IS NOT NULL THEN {_free("'rate:' || tenant", "rate")} END) AS free
        FROM entitled
    ),
    -- Who is at a limit is passed by.
    able AS (SELECT * FROM measured WHERE (free > 0) IS NOT FALSE),
    -- Once around, or, where all are seen and there are few, as often as there is room for.
    rounds AS (
        SELECT sum(quota) = 0 AS nobody,
               CASE WHEN (SELECT max(step) FROM ring) < %(steps)s
                    THEN ceil(%(limit)s::float8 / greatest(sum(quota), 1)) ELSE 1 END AS number
        FROM able
    ),
    shares AS (
        SELECT step, arc, tenant, max_running, rate, rate_period, due,
               least(due, %(limit)s - sum(due) OVER (ORDER BY step) + due)::int4 AS share
        FROM (
            SELECT able.*, least(free, (CASE WHEN nobody THEN 1 ELSE quota END) * number)::int4 AS due
            FROM able CROSS JOIN rounds
        ) AS dues
    ),
    offers AS (SELECT * FROM shares WHERE share > 0),
    running AS ({_lock("'running:' || offers.tenant", "max_running")}),
    starts AS ({_lock("'rate:' || offers.tenant", "rate")}),
    granted AS (
        SELECT step, arc, tenant, least(
                share,
                CASE WHEN max_running IS NOT NULL
                     THEN (SELECT count(*) FROM running WHERE running.step = offers.step) END,
                CASE WHEN rate IS NOT NULL
                     THEN (SELECT count(*) FROM starts WHERE starts.step = offers.step) END) AS share
        FROM offers
    ),
    found AS (
        SELECT granted.step, granted.arc, granted.tenant, task.id, {_PAUSED} AS paused
        FROM granted CROSS JOIN LATERAL (
            SELECT id, code FROM tasks
            WHERE {_CLAIMABLE} = (%(tags)s::text[])[granted.arc]
              AND {_HASH} = hashtext(granted.tenant) AND {_TENANT} = granted.tenant
              AND priority >= %(min_priority)s AND priority <= %(max_priority)s
            ORDER BY priority, id LIMIT granted.share FOR UPDATE SKIP LOCKED
        ) AS task
    ),
    picked AS (SELECT step, id, row_number() OVER (PARTITION BY step) AS nth FROM found WHERE NOT paused),
    -- What is met of a paused code is put out of the way, with more of it that comes next in its place.
    parked AS (
        {statements.PARK}
        WHERE id = ANY (ARRAY (
            SELECT next.id
            FROM (SELECT DISTINCT arc, tenant FROM found WHERE paused) AS place CROSS JOIN LATERAL (
                SELECT id, {_PAUSED} AS paused FROM tasks AS task
                WHERE {_CLAIMABLE} = (%(tags)s::text[])[place.arc]
                  AND {_HASH} = hashtext(place.tenant) AND {_TENANT} = place.tenant
                  AND priority >= %(min_priority)s AND priority <= %(max_priority)s
                ORDER BY priority, id LIMIT {PARKED} FOR UPDATE SKIP LOCKED
            ) AS next WHERE next.paused
        ))
        RETURNING 1
    ),
    claimed AS ({statements.TAKE} WHERE id = ANY (ARRAY (SELECT id FROM picked)) {statements.TAKEN}),
    taken AS (
        UPDATE permits SET free_at = 'infinity', task_id = picked.id
        FROM running JOIN picked USING (step, nth)
        WHERE permits.resource = running.resource AND permits.number = running.number
    ),
    started AS (
        UPDATE permits SET free_at = now() + offers.rate_period * interval '1 second'
        FROM starts JOIN picked USING (step, nth) JOIN offers USING (step)
        WHERE permits.resource = starts.resource AND permits.number = starts.number
    ),
    made AS (
        INSERT INTO permits (resource, number)
        SELECT resource, number
        FROM measured CROSS JOIN LATERAL (
            SELECT 'running:' || tenant AS resource, max_running AS most WHERE max_running > 0
            UNION ALL SELECT 'rate:' || tenant, rate WHERE rate > 0
        ) AS wanted CROSS JOIN LATERAL generate_series(1, most) AS number
        WHERE free < quota
          AND NOT EXISTS (SELECT FROM permits WHERE permits.resource = wanted.resource AND permits.number = most)
        ORDER BY resource, number  -- as everybody does, or two would wait for each other
        ON CONFLICT DO NOTHING
        RETURNING 1
    ),
    place AS (
        SELECT coalesce((SELECT max(step) FROM ring), 0) < %(steps)s AS whole,
               EXISTS (SELECT FROM made) AS made,
               (SELECT count(*) FILTER (WHERE granted.share < offers.share) * 2 > count(*)
                FROM granted JOIN offers USING (step)) AS met,
               (SELECT count(*) FROM picked) < %(limit)s AND EXISTS (
                   SELECT FROM granted JOIN offers USING (step)
                   WHERE granted.share < offers.share  -- another claim was quicker, and there may be others
                      OR granted.share = (SELECT count(*) FROM found WHERE found.step = granted.step)) AS more,
               (SELECT CASE WHEN EXISTS (SELECT FROM parked) THEN 0 ELSE extract(epoch FROM min(start.at) - now()) END
                FROM measured CROSS JOIN LATERAL (
                    SELECT min(free_at) AS at FROM permits
                    WHERE resource = 'rate:' || measured.tenant AND number <= measured.rate
                ) AS start
                WHERE measured.rate IS NOT NULL AND free = 0 AND start.at > now())::float8 AS again_in,
               last.arc, last.tenant, coalesce(last.credit, 0) AS credit
        FROM (SELECT) AS always LEFT JOIN (
            SELECT ring.arc, ring.tenant,
                   CASE WHEN (SELECT number FROM rounds) = 1 THEN coalesce(offers.due - offers.share, 0) ELSE 0 END AS credit
            FROM ring LEFT JOIN offers USING (step)
            ORDER BY CASE WHEN (SELECT sum(share) FROM offers) >= %(limit)s THEN offers.step END DESC NULLS LAST,
                     ring.step DESC
            LIMIT 1
        ) AS last ON true
    )
SELECT place.*, {statements.CLAIMED}
FROM place LEFT JOIN (claimed LEFT JOIN codes ON codes.id = claimed.code) ON true
ORDER BY claimed.priority, claimed.id
"""
"""Claim due tasks, for one tenant after the other. Each row begins with the place in the ring, which is told even where nothing
was claimed. Permits are made where a limit is met and there are fewer, and serve from the next claim on."""


PLACE = 8
"""How many columns of a row that is."""


def _anywhere() -> int:
    return random.randint(_FIRST + 1, _LAST)  # noqa: S311 - so that workers keep apart


@dataclass(slots=True)
class Ring:
    """A worker's place in the ring of tenants.

    The ring is made of two arcs for each of `tags`: the hashes from `origin` on, where this worker begins, and those before.

    tags: what tasks may ask of the worker, as they write it in `worker_tags`: each set of its tags.
    again_in: seconds until a rate that held something back allows the next start; None where none did.
    """

    tags: list[str]
    origin: int = field(default_factory=_anywhere)
    again_in: float | None = None
    _at_arc: int = 0
    _at_tenant: str = ""
    _credit: int = 0
    _steps: int = FEWEST_STEPS

    def parameters(self, limit: int) -> dict[str, Any]:
        """What the claim of so many tasks must be told."""
        return {
            "tags": [tags for tags in self.tags for _ in range(2)],
            "firsts": [self.origin, _FIRST] * len(self.tags),
            "lasts": [_LAST, self.origin - 1] * len(self.tags),
            "at_arc": self._at_arc,
            "at_tenant": self._at_tenant,
            "credit": self._credit,
            "steps": limit + self._steps,
        }

    def follow(
        self,
        whole: bool,
        made: bool,
        met: bool,
        more: bool,
        again_in: float | None,
        arc: int | None,
        tenant: str | None,
        credit: int,
        *,
        found: int,
    ) -> bool:
        """Go to where a claim ended. Returns whether another one may find more now.

        whole: it has seen every tenant. made: it made permits, and would find them now. met: of most tenants another claim took
        the permits that it was after. more: who gave all that was asked for may have more. found: how many tasks it claimed.
        again_in: seconds until a rate allows a start; 0 where tasks of a paused code were put out of the way.
        """
        self.again_in = again_in
        if made and not found:
            return True
        if arc is not None and tenant is not None:
            self._at_arc, self._at_tenant, self._credit = arc, tenant, credit
        if met:  # side by side, they would take each other's permits all the way: this one goes around from elsewhere
            self.origin, self._at_arc, self._at_tenant, self._credit = _anywhere(), 0, "", 0
        if again_in == 0:
            return False  # not in the same call: whose tasks are found must not wait for what is put out of the way
        if found:
            self._steps = FEWEST_STEPS
        elif not whole:
            self._steps *= 2  # until all are seen, or who is held back would be gone past without an end
        return more or made or not whole
