"""Statements that tell what holds tasks back: limits and pauses as they stand, and how much waits for them.

They cost about what it costs to count what is pending, so that who shows them asks seldom.
"""

from __future__ import annotations

from continuum.db.statements import CLAIMABLE, GATED
from continuum.model import OTHERS_NAMED, HeldBackBy
from continuum.tags import PAUSED

_TAKEN = "taken AS (SELECT resource, count(*) AS number FROM permits WHERE free_at > now() GROUP BY resource)"

_JUDGED = f"""
    judged AS (
        SELECT waiting.tenant, waiting.tasks,
               CASE WHEN queue.paused THEN '{HeldBackBy.QUEUE_PAUSED}'
                    WHEN left(waiting.worker_tags, 1) = '{PAUSED}' THEN '{HeldBackBy.CODE_PAUSED}'
                    WHEN coalesce(own.paused, every.paused) THEN '{HeldBackBy.TENANT_PAUSED}'
                    WHEN EXISTS (
                        SELECT 1 FROM limits AS tag
                        WHERE tag.scope = 'tag' AND tag.paused AND tag.name = ANY (string_to_array(waiting.worker_tags, ','))
                    ) THEN '{HeldBackBy.TAG_PAUSED}'
                    WHEN coalesce(running.number, 0) >= coalesce(own.max_running, every.max_running)
                         THEN '{HeldBackBy.MAX_RUNNING}'
                    WHEN coalesce(starts.number, 0) >= floor(limited.rate / ceil(limited.rate / 1000)) THEN '{HeldBackBy.RATE}'
               END AS reason
        FROM waiting
        LEFT JOIN limits AS own ON own.scope = 'tenant' AND own.name = waiting.tenant
        LEFT JOIN limits AS every ON every.scope = 'tenant' AND every.name = '*'
        LEFT JOIN limits AS queue ON queue.scope = 'queue' AND queue.name = ''
        LEFT JOIN taken AS running ON running.resource = 'running:' || waiting.tenant
        LEFT JOIN taken AS starts ON starts.resource = 'rate:' || waiting.tenant
        CROSS JOIN LATERAL (SELECT coalesce(own.rate, every.rate)::float8 AS rate) AS limited
    )"""

LIMIT_USES = f"""
WITH {_TAKEN}
SELECT scope, name, weight, max_running, rate, rate_period_s, max_pending, paused,
       CASE WHEN scope = 'tenant' AND name <> '*' AND max_running IS NOT NULL THEN coalesce(running.number, 0) END,
       CASE WHEN scope = 'tenant' AND name <> '*' AND rate IS NOT NULL THEN coalesce(starts.number, 0) END
FROM limits
LEFT JOIN taken AS running ON limits.scope = 'tenant' AND running.resource = 'running:' || limits.name
LEFT JOIN taken AS starts ON limits.scope = 'tenant' AND starts.resource = 'rate:' || limits.name
ORDER BY scope, name LIMIT %(limit)s
"""
"""Limits, with how many permits of each tenant are taken."""

HELD_BACK = f"""
WITH {_TAKEN},
    waiting AS (
        SELECT coalesce(tenant, '') AS tenant, worker_tags, count(*) AS tasks FROM tasks WHERE {CLAIMABLE} GROUP BY 1, 2
    ),{_JUDGED}
SELECT reason, count(DISTINCT tenant), sum(tasks)::int8 FROM judged WHERE reason IS NOT NULL GROUP BY reason
UNION ALL
SELECT '{HeldBackBy.OTHER_TASKS}', count(DISTINCT coalesce(tenant, '')), count(*) FROM tasks WHERE {GATED} HAVING count(*) > 0
"""
"""How many due tasks of how many tenants wait for something other than a worker, each counted for the first reason that holds."""

WAITS_FOR = f"""
WITH waiting AS (
        SELECT coalesce(tenant, '') AS tenant, worker_tags, 1 AS tasks, code FROM tasks WHERE id = %(id)s AND {CLAIMABLE}
    ),
    taken AS (
        SELECT resource, count(*) AS number FROM permits
        WHERE free_at > now() AND resource IN (
            SELECT 'running:' || tenant FROM waiting UNION ALL SELECT 'rate:' || tenant FROM waiting)
        GROUP BY resource
    ),{_JUDGED}
SELECT coalesce(judged.reason, (
    SELECT '{HeldBackBy.CODE_PAUSED}' FROM waiting JOIN limits ON limits.scope = 'code' AND limits.name = waiting.code::text
    WHERE limits.paused)) FROM judged
UNION ALL
SELECT '{HeldBackBy.OTHER_TASKS}' FROM tasks WHERE id = %(id)s AND {GATED}
"""
"""The same of one task; no row where it is not due."""

OTHERS = f"""
(SELECT needed.id FROM tasks AS waiting CROSS JOIN LATERAL unnest(waiting.depends_on) AS needed (id)
    JOIN tasks AS other ON other.id = needed.id
    WHERE waiting.id = %(id)s AND coalesce(other.tenant, '') = coalesce(waiting.tenant, '')
      AND other.status IN ('pending', 'processing')
    ORDER BY needed.id LIMIT {OTHERS_NAMED})
UNION
(SELECT before.id FROM tasks AS waiting JOIN tasks AS before
    ON coalesce(before.tenant, '') = coalesce(waiting.tenant, '') AND before.sequence_key = waiting.sequence_key
       AND before.sequence_key IS NOT NULL AND before.status IN ('pending', 'processing')
    WHERE waiting.id = %(id)s AND before.id <> waiting.id AND (before.admitted OR before.id < waiting.id)
    ORDER BY before.admitted DESC, before.id LIMIT 1)
UNION
(SELECT member.id FROM tasks AS waiting JOIN tasks AS member
    ON coalesce(member.tenant, '') = coalesce(waiting.tenant, '') AND member.batch = waiting.depends_batch
       AND member.batch IS NOT NULL AND NOT member.superseded AND member.status IN ('pending', 'processing')
    WHERE waiting.id = %(id)s
    ORDER BY member.id LIMIT {OTHERS_NAMED})
ORDER BY id
"""
"""Which tasks one waits for: those that it depends on, those of its batch, and whose turn it is in its sequence."""
