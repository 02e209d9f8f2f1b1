"""The statements of schedules: the same on PostgreSQL and CockroachDB, like those of `statements`."""

from __future__ import annotations


def _sane(column: str) -> str:
    """A time, or NULL for one beyond what a client can hold: a foreign hand may have written `infinity`."""
    return f"CASE WHEN {column} > '1970-01-01 00:00:00+00' AND {column} < '9000-01-01 00:00:00+00' THEN {column} END"


_WAITING = f"name, cron, time_zone, catch_up, jitter_s, next_at, {_sane('due_at')}, {_sane('last_due')}, last_error"

LOOK = f"""
(SELECT now(), {_WAITING} FROM schedules WHERE next_at IS NULL AND NOT paused LIMIT %(limit)s)
UNION ALL
(SELECT now(), {_WAITING} FROM schedules
 WHERE next_at > '1970-01-01 00:00:00+00' AND next_at <= now() AND NOT paused ORDER BY next_at LIMIT %(limit)s)
"""
"""The schedules that are to be worked out, and those to be fired. The index `schedules_next` answers both."""

NEXT = """
SELECT now(), extract(epoch FROM min(next_at) - now())::float8 FROM schedules
WHERE next_at > now() AND next_at < now() + interval '100 years' AND NOT paused
"""
"""The database's time, and in how many seconds there will be one."""

_BUSY = """overlap = 'skip' AND EXISTS (
            SELECT 1 FROM tasks WHERE tasks.id = mine.last_task_id AND tasks.status IN ('pending', 'processing'))"""

MOVE = f"""
WITH wanted AS (
        SELECT * FROM unnest(
            %(names)s::text[], %(crons)s::text[], %(time_zones)s::text[], %(catch_ups)s::text[], %(jitters)s::float8[],
            %(nexts)s::timestamptz[], %(dues)s::timestamptz[], %(fires)s::timestamptz[], %(fires_as_text)s::text[],
            %(new_dues)s::timestamptz[], %(new_nexts)s::timestamptz[], %(missed)s::int8[], %(errors)s::text[]
        ) AS w (name, cron, time_zone, catch_up, jitter_s, next_at, due_at, fire, fire_as_text, new_due, new_next,
                missed_now, error)
    ),
    mine AS (
        SELECT schedules.name, schedules.task_name, schedules.description, schedules.code, schedules.payload, schedules.priority,
               schedules.tenant, schedules.max_attempts, schedules.timeout_s, schedules.worker_tags, schedules.webhook,
               schedules.retry, schedules.overlap, schedules.last_task_id,
               wanted.fire, wanted.fire_as_text, wanted.new_due, wanted.new_next, wanted.missed_now, wanted.error
        FROM wanted JOIN schedules ON schedules.name = wanted.name
        WHERE schedules.cron = wanted.cron AND schedules.time_zone = wanted.time_zone AND schedules.catch_up = wanted.catch_up
          AND schedules.jitter_s = wanted.jitter_s AND schedules.next_at IS NOT DISTINCT FROM wanted.next_at
          AND ({_sane("schedules.due_at")}) IS NOT DISTINCT FROM wanted.due_at
          AND NOT schedules.paused AND (wanted.fire IS NULL OR schedules.next_at <= now())
        FOR UPDATE OF schedules SKIP LOCKED
    ),
    judged AS (SELECT mine.*, fire IS NOT NULL AND {_BUSY} AS busy FROM mine),
    made AS (
        INSERT INTO tasks (name, description, code, payload, priority, max_attempts, timeout_s, tenant, worker_tags, webhook,
                           retry, schedule, due_at)
        SELECT CASE WHEN task_name = '' THEN name ELSE task_name END, description, code,
               coalesce(payload, '{{}}'::jsonb) || jsonb_build_object('schedule', name, 'due_at', fire_as_text),
               priority, max_attempts, timeout_s, tenant, worker_tags, webhook, retry, name, fire
        FROM judged WHERE fire IS NOT NULL AND NOT busy
        ON CONFLICT DO NOTHING
        RETURNING id, schedule
    ),
    moved AS (
        UPDATE schedules SET
            due_at = judged.new_due, next_at = judged.new_next,
            last_due = coalesce(judged.fire, schedules.last_due),
            last_fired_at = CASE WHEN made.id IS NULL THEN schedules.last_fired_at ELSE now() END,
            last_task_id = coalesce(made.id, schedules.last_task_id),
            fired = fired + CASE WHEN made.id IS NULL THEN 0 ELSE 1 END,
            skipped = skipped + CASE WHEN judged.busy THEN 1 ELSE 0 END,
            missed = missed + judged.missed_now,
            last_error = judged.error
        FROM judged LEFT JOIN made ON made.schedule = judged.name
        WHERE schedules.name = judged.name
        RETURNING 1
    )
SELECT judged.name, judged.fire, made.id, judged.busy FROM judged LEFT JOIN made ON made.schedule = judged.name
"""
"""Move schedules on, each only from where it was seen, and make the task of its due time, in one statement: whoever repeats it
or comes second changes nothing. What somebody else is moving is left to him. The unique index over TASKS holds each due time to
one task even where somebody set a schedule back by hand."""

PUT = """
WITH stored AS (
    INSERT INTO codes (id, code, requirements)
    SELECT * FROM unnest(%(code_ids)s::uuid[], %(scripts)b::text[], %(requirements)s::text[])
    ON CONFLICT (id) DO NOTHING
    RETURNING 1
)
INSERT INTO schedules (name, cron, time_zone, catch_up, overlap, jitter_s, paused, task_name, description, code, payload,
                       priority, tenant, max_attempts, timeout_s, worker_tags, webhook, retry)
VALUES (%(name)s, %(cron)s, %(time_zone)s, %(catch_up)s, %(overlap)s, %(jitter)s::float8, %(paused)s, %(task_name)s,
        %(description)s, %(code)s::uuid, %(payload)s::jsonb, %(priority)s, %(tenant)s, %(max_attempts)s, %(timeout)s::float8,
        %(worker_tags)s, %(webhook)s, %(retry)s::jsonb)
"""

INSERT = f"{PUT} ON CONFLICT (name) DO NOTHING RETURNING 1"
"""Store a schedule, unless there is one of this name."""

_SAME = """schedules.cron = excluded.cron AND schedules.time_zone = excluded.time_zone
                         AND schedules.jitter_s = excluded.jitter_s AND NOT schedules.paused"""

REPLACE = f"""{PUT}
ON CONFLICT (name) DO UPDATE SET
    cron = excluded.cron, time_zone = excluded.time_zone, catch_up = excluded.catch_up, overlap = excluded.overlap,
    jitter_s = excluded.jitter_s, paused = excluded.paused, task_name = excluded.task_name, description = excluded.description,
    code = excluded.code, payload = excluded.payload, priority = excluded.priority, tenant = excluded.tenant,
    max_attempts = excluded.max_attempts, timeout_s = excluded.timeout_s, worker_tags = excluded.worker_tags,
    webhook = excluded.webhook, retry = excluded.retry, updated_at = now(),
    next_at = CASE WHEN {_SAME} THEN schedules.next_at END
RETURNING 1
"""
"""Store a schedule in place of what there is of this name. What it was due for stays so where its times are the same."""

_COLUMNS = f"""name, cron, time_zone, catch_up, overlap, jitter_s, paused, task_name, description, code::text, payload::text,
       priority, tenant, max_attempts, timeout_s, worker_tags, webhook, retry::text, {_sane("next_at")}, {_sane("due_at")},
       {_sane("last_due")}, {_sane("last_fired_at")}, last_task_id, fired, skipped, missed, last_error, created_at, updated_at"""

FETCH = f"SELECT {_COLUMNS} FROM schedules WHERE name = ANY (%(names)s::text[])"
"""Read schedules."""

LIST = f"SELECT {_COLUMNS} FROM schedules WHERE name > %(after)s ORDER BY name LIMIT %(limit)s"
"""A page of schedules."""

PAUSE = """
UPDATE schedules SET paused = %(paused)s, next_at = CASE WHEN %(paused)s OR NOT paused THEN next_at END, updated_at = now()
WHERE name = %(name)s
RETURNING 1
"""
"""Let a schedule rest, or go on: what was due meanwhile is left out."""

REMOVE = "DELETE FROM schedules WHERE name = %(name)s RETURNING 1"
"""Forget a schedule. Its tasks stay."""
