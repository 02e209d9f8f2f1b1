"""Every statement of the hot path and of the housekeeping, each with its name and its reason.

They are the same on PostgreSQL and CockroachDB unless a constant says otherwise. `utc` is what the TIMESTAMP columns of the
first version hold. Every write to a claimed task is fenced: it names the task, the attempt and the worker, and changes
nothing when one of them is no longer so. Texts that may be long are sent binary (`%(outputs)b`): psycopg escapes a text array
letter by letter, which for 16 MB of JSON took two seconds of processor time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from continuum.db import outputs
from continuum.model import EXPIRED, HISTORY_LENGTH, Stream
from continuum.retry import QUARANTINED
from continuum.tags import PAUSED

CLAIMABLE = """status = 'pending' AND run_at IS NULL
          AND (concurrency_key IS NULL AND sequence_key IS NULL AND depends_on IS NULL AND depends_batch IS NULL OR admitted)"""
"""Which tasks wait for nothing but a worker: the condition of the index `tasks_ready`, to the letter."""

GATED = """status = 'pending' AND run_at IS NULL
          AND (concurrency_key IS NOT NULL OR sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL)
          AND NOT admitted"""
"""Which tasks must be admitted first: the condition of the index `tasks_waiting`, to the letter."""

UTC = "(now() AT TIME ZONE 'utc')"
ENDED_STATUSES = "('completed', 'failed', 'cancelled', 'malicious')"
_FIRST_LINE = "left(split_part(tasks.last_error, E'\\n', 1), 300)"
WEBHOOK_DUE = "CASE WHEN webhook IS NOT NULL THEN now() END"


def _history(ending: str, message: str, exit_code: str = "NULL::int4") -> str:
    """The attempts that a task remembers, with the one that ends here."""
    return f"""(
                CASE WHEN jsonb_array_length(tasks.history) >= {HISTORY_LENGTH} THEN tasks.history - 0
                     ELSE coalesce(tasks.history, '[]'::jsonb) END
                || jsonb_build_array(jsonb_build_object(
                    'attempt', tasks.attempt, 'worker', tasks.worker_id, 'started', tasks.started, 'ended', {UTC},
                    'ending', {ending},
                    'exit_code', {exit_code}, 'message', left({message}, 2000))))"""


def _policy(tasks: str) -> str:
    """The retry policy of a task, or of its code: a text that anybody may have written.

    JSON's null is what libraries write for none.
    """
    return f"coalesce(nullif({tasks}.retry, 'null'), nullif(codes.retry, 'null'))::text"


# What a claim hands to the worker. The code comes with it: CODES rows may be edited, so that nothing may be remembered.
CLAIMED = f"""claimed.id, claimed.attempt, claimed.max_attempts, claimed.released, claimed.name, codes.code,
           claimed.code::text, coalesce(claimed.payload, 'null'), claimed.priority, claimed.timeout_s,
           claimed.tenant, claimed.traceparent, claimed.created_at, claimed.description, claimed.last_error,
           codes.requirements, claimed.waited, claimed.told, {_policy("claimed")}, claimed.expires_in,
           claimed.crashes, claimed.depends"""

_CLAIM_RESULT = f"""
    SELECT {CLAIMED}
    FROM claimed LEFT JOIN codes ON codes.id = claimed.code
    ORDER BY claimed.priority, claimed.id
"""

ID, _PRIORITY = 0, 8

TAKE = f"""
        UPDATE tasks SET
            status = 'processing', worker_id = %(worker)s, attempt = least(attempt, 2147483646) + 1,
            started = {UTC}, locked_at = {UTC}, finished = NULL,
            lease_expires_at = now() + %(lease)s * interval '1 second',
            output = NULL, error_output = NULL, output_parts = 0, error_output_parts = 0, exit_code = NULL
"""

# From `infinity` nothing can be subtracted.
_NEAR = "greatest(least(expires_at, now() + interval '100 years'), now() - interval '1 day')"

TAKEN = f"""
        RETURNING id, attempt, max_attempts, released, name, code, payload::text AS payload, priority, timeout_s,
                  tenant, traceparent, created_at, description, last_error,
                  extract(epoch FROM now() - queued_at)::float8 AS waited,
                  webhook IS NOT NULL AS told, retry,
                  CASE WHEN expires_at IS NOT NULL THEN extract(epoch FROM {_NEAR} - now())::float8 END AS expires_in,
                  crashes, coalesce(array_length(depends_on, 1), 0) > 0 OR depends_batch IS NOT NULL AS depends
"""


PARK = f"""
        UPDATE tasks SET worker_tags = '{PAUSED}' || code::text || CASE worker_tags WHEN '' THEN '' ELSE ',' || worker_tags END
"""
"""Put tasks of a paused code out of the claims' way: see `continuum.tags.PAUSED`."""

FIND_PARKED = f"""
SELECT worker_tags FROM tasks WHERE {CLAIMABLE} AND worker_tags >= %(after)s AND worker_tags < %(end)s
ORDER BY worker_tags LIMIT 1
"""
"""The next code, in the order of their ids, of which tasks are out of the way."""

PAUSED_CODES = "SELECT name FROM limits WHERE scope = 'code' AND paused"

UNPARK = f"""
UPDATE tasks SET worker_tags = substr(worker_tags, length(%(tag)s::text) + 2), queued_at = now()
WHERE id IN (
    SELECT id FROM tasks WHERE {CLAIMABLE} AND worker_tags >= %(tag)s AND worker_tags < %(end)s
    ORDER BY worker_tags LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
RETURNING 1
"""
"""Have tasks of a code claimed again."""


def claim(which: str) -> str:
    """The statement that claims the tasks for which a condition holds."""
    return f"WITH claimed AS ({TAKE} WHERE {which} {TAKEN}) {_CLAIM_RESULT}"


def claim_order(row: tuple[Any, ...]) -> tuple[int, int]:
    """Priority and id of a row that such a statement returned."""
    return row[_PRIORITY], row[ID]


def _outcomes(arrays: str = "", columns: str = "") -> str:
    return f"""
    outcome AS (
        SELECT * FROM unnest(
            %(ids)s::int8[], %(attempts)s::int4[], %(statuses)s::text[], %(exit_codes)s::int4[], %(outputs)b::text[],
            %(error_outputs)b::text[], %(last_errors)b::text[], %(delays)s::float8[],
            %(crashes)s::float8[], %(quarantined)s::bool[]{arrays}
        ) AS o (id, attempt, status, exit_code, output, error_output, last_error, delay, crashes, quarantined{columns})
    )
"""


# What a terminal write adds to the totals of a worker, in the same statement, so that they are exact.
COUNT = """
        INSERT INTO workers AS w (id, completed, failed, cancelled, malicious, execution_seconds)
        SELECT %(worker)s,
               count(*) FILTER (WHERE status = 'completed'),
               count(*) FILTER (WHERE status = 'failed'),
               count(*) FILTER (WHERE status = 'cancelled'),
               count(*) FILTER (WHERE status = 'malicious'),
               coalesce(sum(seconds) FILTER (WHERE status = 'completed'), 0)
        FROM ended
        HAVING count(*) FILTER (WHERE status <> 'pending') > 0
        ON CONFLICT (id) DO UPDATE SET
            completed = w.completed + excluded.completed,
            failed = w.failed + excluded.failed,
            cancelled = w.cancelled + excluded.cancelled,
            malicious = w.malicious + excluded.malicious,
            execution_seconds = w.execution_seconds + excluded.execution_seconds
        RETURNING 1
"""

BY_KEY = "/* by key */"
"""After the name of a table whose rows a statement finds one by one, by keys that it is given: see `Dialect.by_key`."""

_FREE = f"""
        UPDATE permits {BY_KEY} SET free_at = now(), task_id = NULL FROM ended WHERE permits.task_id = ended.id RETURNING 1
"""
"""What runs no more takes no place of those that may run at once."""

_SECONDS = "extract(epoch FROM tasks.finished - tasks.started) AS seconds"

_HELD_BY_US = "tasks.worker_id = %(worker)s AND tasks.status = 'processing'"

_OUTCOME_IN_HISTORY = _history(
    "CASE outcome.status WHEN 'pending' THEN 'failed' ELSE outcome.status END",
    "outcome.last_error",
    "outcome.exit_code",
)


def _complete(outcomes: str, parts: str, further: str = "") -> str:
    return f"""
WITH {outcomes},
    ended AS (
        UPDATE tasks {BY_KEY} SET
            status = CASE WHEN outcome.status = 'pending' AND cancel_requested THEN 'cancelled' ELSE outcome.status END,
            exit_code = outcome.exit_code, output = outcome.output, error_output = outcome.error_output,
            {parts},
            last_error = outcome.last_error, lease_expires_at = NULL,
            finished = CASE WHEN outcome.status = 'pending' AND NOT cancel_requested THEN NULL ELSE {UTC} END,
            worker_id = CASE WHEN outcome.status = 'pending' AND NOT cancel_requested THEN NULL ELSE worker_id END,
            run_at = CASE WHEN outcome.status = 'pending' AND NOT cancel_requested AND outcome.delay > 0
                          THEN now() + outcome.delay * interval '1 second' END,
            webhook_due = CASE WHEN outcome.status = 'pending' AND NOT cancel_requested THEN NULL ELSE {WEBHOOK_DUE} END,
            history = CASE WHEN outcome.status = 'completed' THEN history ELSE {_OUTCOME_IN_HISTORY} END,
            crashes = tasks.crashes + outcome.crashes, quarantined = outcome.quarantined
        FROM outcome
        WHERE tasks.id = outcome.id AND tasks.attempt = outcome.attempt AND ({_HELD_BY_US}) IS TRUE
        RETURNING tasks.id, tasks.attempt, tasks.status, {_SECONDS}
    ),
    counted AS ({COUNT}),
    freed AS ({_FREE}){further}
SELECT id, attempt FROM ended
"""


COMPLETE = _complete(_outcomes(), "output_parts = 0, error_output_parts = 0")
"""Write a batch of outcomes, each only under its own lease. IS TRUE, because no index fits that on PostgreSQL, which would scan
`tasks_held` otherwise, with its dead entry for each task that this worker has finished lately, instead of looking each outcome up
by primary key."""

COMPLETE_LONG = _complete(
    _outcomes(", %(output_parts)s::int4[], %(error_output_parts)s::int4[]", ", output_parts, error_output_parts"),
    "output_parts = outcome.output_parts, error_output_parts = outcome.error_output_parts",
    f", kept AS ({outputs.keep('ended')})",
)
"""The same where there are outputs of several parts."""

FIND_STANDING = f"""
WITH {_outcomes()}
SELECT tasks.id, tasks.attempt FROM tasks JOIN outcome ON tasks.id = outcome.id AND tasks.attempt = outcome.attempt
WHERE tasks.last_error IS NOT DISTINCT FROM outcome.last_error
  AND (tasks.worker_id = %(worker)s AND tasks.status IN (outcome.status, 'cancelled')
       OR outcome.status = 'pending' AND tasks.status = 'pending')
"""
"""Which outcomes stand already, because an earlier identical call wrote them and its answer was lost. The message tells them
from an end in the same state that the janitor wrote."""

_HELD = "unnest(%(ids)s::int8[], %(attempts)s::int4[]) AS held (id, attempt)"

_GIVE_BACK = f"""
        UPDATE tasks SET
            status = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'pending' END,
            finished = CASE WHEN cancel_requested THEN {UTC} END,
            worker_id = CASE WHEN cancel_requested THEN worker_id END,
            released = released + 1, lease_expires_at = NULL, run_at = NULL, queued_at = now(),
            webhook_due = CASE WHEN cancel_requested THEN {WEBHOOK_DUE} END,
            history = {_history("CASE WHEN cancel_requested THEN 'cancelled' ELSE 'released' END", "NULL::text")}
"""

RELEASE = f"""
WITH ended AS (
        {_GIVE_BACK}
        FROM {_HELD}
        WHERE tasks.id = held.id AND tasks.attempt = held.attempt
          AND {_HELD_BY_US}
        RETURNING tasks.id, tasks.status, 0 AS seconds
    ),
    counted AS ({COUNT}),
    freed AS ({_FREE})
SELECT count(*) FROM ended
"""
"""Give tasks back without counting the attempt."""

RELEASE_EXCEPT = f"""
WITH ended AS (
        {_GIVE_BACK}
        WHERE worker_id = %(worker)s AND status = 'processing'
          AND NOT EXISTS (SELECT 1 FROM {_HELD} WHERE held.id = tasks.id AND held.attempt = tasks.attempt)
        RETURNING tasks.id, tasks.status, 0 AS seconds
    ),
    counted AS ({COUNT}),
    freed AS ({_FREE})
SELECT count(*) FROM ended
"""
"""Give back what the record says we process, but for what we know of: claims whose answer never came."""

_OURS = f"tasks.id = held.id AND tasks.attempt = held.attempt AND {_HELD_BY_US}"

HEARTBEAT = f"""
WITH ours AS (SELECT tasks.id FROM {_HELD} JOIN tasks {BY_KEY} ON {_OURS} FOR UPDATE OF tasks SKIP LOCKED)
UPDATE tasks SET lease_expires_at = now() + %(lease)s * interval '1 second' WHERE id IN (SELECT id FROM ours)
RETURNING id, attempt, cancel_requested
"""
"""Extend the leases that are still ours. A row that somebody else holds locked must not cost the others their leases; nobody
recovers it meanwhile."""

FIND_HELD = f"SELECT tasks.id, tasks.attempt, tasks.cancel_requested FROM {_HELD} JOIN tasks {BY_KEY} ON {_OURS}"
"""Which leases are still ours, whoever holds their rows locked; what is not returned is lost."""

PROGRESS = f"""
WITH shown AS (
        UPDATE tasks SET
            output = coalesce(written.output, tasks.output),
            error_output = coalesce(written.error_output, tasks.error_output),
            output_parts = written.output_parts, error_output_parts = written.error_output_parts
        FROM unnest(%(ids)s::int8[], %(attempts)s::int4[], %(outputs)b::text[], %(error_outputs)b::text[],
                    %(output_parts)s::int4[], %(error_output_parts)s::int4[])
             AS written (id, attempt, output, error_output, output_parts, error_output_parts)
        WHERE tasks.id = written.id AND tasks.attempt = written.attempt AND {_HELD_BY_US}
        RETURNING tasks.id, tasks.attempt
    ),
    kept AS ({outputs.keep("shown")})
SELECT count(*) FROM shown
"""
"""Show what running tasks have written so far: only what was not shown before."""

REPORT = """
INSERT INTO workers AS w (id, host, pid, version, sandbox, slots, running, finished_last_hour, drained)
VALUES (%(id)s, %(host)s, %(pid)s, %(version)s, %(sandbox)s, %(slots)s, %(running)s, %(finished_last_hour)s, %(drained)s)
ON CONFLICT (id) DO UPDATE SET
    host = excluded.host, pid = excluded.pid, version = excluded.version, sandbox = excluded.sandbox,
    slots = excluded.slots, running = excluded.running, finished_last_hour = excluded.finished_last_hour,
    drained = excluded.drained, seen_at = now(), stopped_at = NULL
RETURNING draining
"""
"""Say that a worker lives, and learn whether it is to drain."""

DRAIN = """
UPDATE workers SET draining = %(draining)s, drained = drained AND draining
WHERE id = %(worker)s AND slots > 0 AND stopped_at IS NULL
RETURNING 1
"""
"""Ask a worker to claim nothing more, or to claim again. What it said of an earlier time that it was asked counts no more."""

SIGN_OFF = "UPDATE workers SET running = 0, stopped_at = now(), seen_at = now() WHERE id = %(worker)s"
"""Say that a worker has stopped in good order."""

PROMOTE = """
WITH due AS (
        SELECT id FROM tasks WHERE status = 'pending' AND run_at <= now()
        ORDER BY run_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ),
    promoted AS (UPDATE tasks SET run_at = NULL, queued_at = run_at WHERE id IN (SELECT id FROM due) RETURNING 1)
SELECT count(*) FROM promoted
"""
"""Make what has come due claimable."""

NEXT_DUE = """
SELECT (SELECT extract(epoch FROM min(run_at) - now()) FROM tasks
        WHERE status = 'pending' AND run_at > now() AND run_at < now() + interval '100 years'),
       (SELECT extract(epoch FROM greatest(expires_at, now() - interval '1 day') - now()) FROM tasks
        WHERE status = 'pending' AND expires_at IS NOT NULL AND expires_at < now() + interval '100 years'
        ORDER BY expires_at LIMIT 1)
"""
"""In how many seconds the next task comes due, and the next one is too late: not `infinity`, from which nothing can be
subtracted. What is due and still there is locked by somebody else who promotes it."""

CANCEL_LATE = f"""
WITH late AS (
        SELECT id FROM tasks WHERE status = 'pending' AND expires_at <= now()
        ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ),
    ended AS (
        UPDATE tasks SET
            status = 'cancelled', finished = {UTC}, run_at = NULL, webhook_due = {WEBHOOK_DUE},
            last_error = '{EXPIRED}' || coalesce(E'\\n' || last_error, '')
        WHERE id IN (SELECT id FROM late)
        RETURNING tasks.id, tasks.status, 0 AS seconds
    ),
    counted AS ({COUNT})
SELECT count(*) FROM ended
"""
"""End tasks that were not begun in time."""

EXPIRED_LEASES = f"""
SELECT tasks.id, tasks.attempt, tasks.attempt - tasks.released, tasks.max_attempts, {_policy("tasks")}, tasks.crashes,
       CASE WHEN workers.stopped_at IS NULL THEN greatest(workers.running, (
           SELECT count(*) FROM tasks AS other WHERE other.status = 'processing' AND other.worker_id = tasks.worker_id)) END
FROM tasks LEFT JOIN codes ON codes.id = tasks.code LEFT JOIN workers ON workers.id = tasks.worker_id
WHERE tasks.status = 'processing' AND tasks.lease_expires_at < now()
ORDER BY tasks.lease_expires_at LIMIT %(limit)s
"""
"""Which attempts were given up, with what decides whether their tasks are tried again: in the end how many tasks their worker
ran, as far as is known; NULL where it ended in order."""

_LOST = f"""(
                CASE WHEN verdict.quarantined THEN '{QUARANTINED}' ELSE '' END
                || 'Timeout/Crash: worker ' || coalesce(expired.lost_worker, '(unknown)')
                || ' stopped extending its lease on attempt ' || tasks.attempt::text
                || CASE verdict.note WHEN '' THEN '' ELSE E'\n' || verdict.note END)"""

RECOVER = f"""
WITH verdict AS (
        SELECT * FROM unnest(%(ids)s::int8[], %(attempts)s::int4[], %(delays)s::float8[],
                             %(notes)s::text[], %(crashes)s::float8[], %(quarantined)s::bool[])
            AS v (id, attempt, delay, note, crashes, quarantined)
    ),
    expired AS (
        SELECT id, worker_id AS lost_worker FROM tasks
        WHERE id = ANY (%(ids)s::int8[]) AND status = 'processing' AND lease_expires_at < now()
        FOR UPDATE SKIP LOCKED
    ),
    ended AS (
        UPDATE tasks {BY_KEY} SET
            status = CASE WHEN cancel_requested THEN 'cancelled' WHEN verdict.delay IS NULL THEN 'failed' ELSE 'pending' END,
            last_error = {_LOST},
            history = {_history("'lost'", _LOST)},
            webhook_due = CASE WHEN cancel_requested OR verdict.delay IS NULL THEN {WEBHOOK_DUE} END,
            finished = CASE WHEN cancel_requested OR verdict.delay IS NULL THEN {UTC} END,
            worker_id = CASE WHEN cancel_requested OR verdict.delay IS NULL THEN worker_id END,
            run_at = CASE WHEN NOT cancel_requested AND verdict.delay > 0
                THEN now() + verdict.delay * interval '1 second' END,
            lease_expires_at = NULL,
            crashes = tasks.crashes + verdict.crashes, quarantined = verdict.quarantined AND NOT cancel_requested
        FROM expired JOIN verdict ON verdict.id = expired.id
        WHERE tasks.id = expired.id AND tasks.attempt = verdict.attempt
        RETURNING tasks.id, tasks.status, 0 AS seconds
    ),
    counted AS ({COUNT}),
    freed AS ({_FREE})
SELECT status, count(*) FROM ended GROUP BY status
"""
"""End attempts whose worker is gone, as was decided for each. `processing`, the attempt and an expired lease are seen under the
lock: nobody else ends them, and none that was extended or ended since it was read."""

FIND_STALE_PERMITS = """
SELECT task_id FROM permits WHERE task_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM tasks WHERE tasks.id = permits.task_id AND tasks.status = 'processing')
"""
"""Permits of tasks that do not run: somebody deleted the task, or wrote its status by hand."""

FREE_STALE_PERMITS = """
UPDATE permits SET free_at = now(), task_id = NULL
WHERE task_id = ANY (%(ids)s::int8[])
  AND NOT EXISTS (SELECT FROM tasks WHERE tasks.id = permits.task_id AND tasks.status = 'processing')
"""
"""Free such permits, unless they were taken since: of those no snapshot may judge, but their ids say so."""

FIND_BEYOND = """
SELECT held.resource, held.number, held.task_id, coalesce(own.max_running, every.max_running)
FROM permits AS held
LEFT JOIN limits AS own ON own.scope = 'tenant' AND 'running:' || own.name = held.resource
LEFT JOIN limits AS every ON every.scope = 'tenant' AND every.name = '*'
WHERE held.task_id IS NOT NULL AND held.number > coalesce(own.max_running, every.max_running)
"""
"""Permits of running tasks that do not count any more, because their limit was lowered, and how many do."""

MOVE_PERMIT = """
WITH free AS (
        SELECT number FROM permits
        WHERE resource = %(resource)s AND number <= %(most)s AND free_at <= now()
        ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED
    ),
    held AS (
        SELECT number FROM permits
        WHERE resource = %(resource)s AND number = %(number)s AND task_id = %(task_id)s
        FOR UPDATE SKIP LOCKED
    )
UPDATE permits SET
    free_at = CASE WHEN permits.number = free.number THEN 'infinity'::timestamptz ELSE now() END,
    task_id = CASE WHEN permits.number = free.number THEN %(task_id)s::int8 END
FROM free CROSS JOIN held
WHERE permits.resource = %(resource)s AND permits.number IN (free.number, held.number)
"""
"""Give a running task a permit that counts, if one is free, for one that does not. Where the task ends at this moment, its permit
is stale, and found as such."""

PURGE = """
DELETE FROM tasks WHERE id IN (
    SELECT id FROM tasks
    WHERE status = %(status)s AND finished < (now() - %(older_than)s * interval '1 second') AT TIME ZONE 'utc'
    ORDER BY finished LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
"""
"""Delete a small batch of tasks that ended in one way and were kept long enough: an ordered, limited scan of `tasks_ended`."""

_LATEST = "finished >= %(finished)s::timestamptz AT TIME ZONE 'utc' AND id <> ALL (%(ids)s::int8[])"


def ended(*, of_tenant: bool, named: bool, after: bool) -> str:
    """Find tasks that have ended in one way: an ordered, limited scan of `tasks_ended`, as long as only their age counts."""
    conditions = [
        "status = %(status)s AND finished < (now() - %(older_than)s * interval '1 second') AT TIME ZONE 'utc'",
        *(["tenant = %(tenant)s"] if of_tenant else []),
        *(["name ILIKE %(name)s"] if named else []),
        *([_LATEST] if after else []),
    ]
    return f"""
SELECT id, attempt, finished AT TIME ZONE 'utc', {outputs.SIZE} + coalesce(pg_column_size(payload), 0)
FROM tasks WHERE {" AND ".join(conditions)}
ORDER BY finished LIMIT %(limit)s
"""


DELETE_ENDED = f"""
WITH old AS (
        SELECT tasks.id
        FROM unnest(%(ids)s::int8[], %(attempts)s::int4[], %(finished)s::timestamptz[]) AS found (id, attempt, finished)
        JOIN tasks ON tasks.id = found.id AND tasks.attempt = found.attempt
             AND tasks.finished = found.finished AT TIME ZONE 'utc'
        WHERE tasks.status IN {ENDED_STATUSES}
        FOR UPDATE OF tasks SKIP LOCKED
    ),
    deleted AS (DELETE FROM tasks WHERE id IN (SELECT id FROM old) RETURNING 1)
SELECT count(*) FROM deleted
"""
"""Delete tasks that are as they were found."""

TAKE_DUTY = """
INSERT INTO duties AS held (name, worker_id, until)
VALUES (%(name)s, %(worker)s, now() + %(seconds)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET worker_id = excluded.worker_id, until = excluded.until
WHERE held.worker_id = excluded.worker_id OR held.until < now()
RETURNING 1
"""
"""Take what one worker at a time does, or keep it, unless another has it."""

INSERT_TASKS = """
WITH stored AS (
    INSERT INTO codes (id, code, requirements)
    SELECT * FROM unnest(%(code_ids)s::uuid[], %(scripts)b::text[], %(requirements)s::text[])
    ON CONFLICT (id) DO NOTHING
    RETURNING 1
)
INSERT INTO tasks (name, description, code, payload, priority, max_attempts, timeout_s, run_at, tenant,
                   idempotency_key, unique_key, traceparent, webhook, retry, expires_at,
                   worker_tags, sequence_key, concurrency_key, depends_on, depends_any, depends_ended, batch, depends_batch)
SELECT t.name, t.description, t.code, t.payload::jsonb, t.priority, t.max_attempts, t.timeout_s,
       CASE WHEN t.run_at > now() THEN t.run_at END, t.tenant, t.idempotency_key, t.unique_key,
       t.traceparent, t.webhook, t.retry::jsonb, t.expires_at, t.worker_tags,
       t.sequence_key, t.concurrency_key, t.depends_on::int8[], t.depends_any, t.depends_ended,
       t.batch, t.depends_batch
FROM unnest(
    %(names)s::text[], %(descriptions)s::text[], %(codes)s::uuid[], %(payloads)b::text[], %(priorities)s::int4[],
    %(max_attempts)s::int4[], %(timeouts)s::float8[], %(run_ats)s::timestamptz[], %(tenants)s::text[],
    %(idempotency_keys)s::text[], %(unique_keys)s::text[], %(traceparents)s::text[], %(webhooks)s::text[],
    %(retries)s::text[], %(expiries)s::timestamptz[], %(worker_tags)s::text[],
    %(sequence_keys)s::text[], %(concurrency_keys)s::text[],
    %(dependencies)s::text[], %(depends_any)s::bool[], %(depends_ended)s::bool[], %(batches)s::text[], %(depends_batch)s::text[]
) WITH ORDINALITY AS t (name, description, code, payload, priority, max_attempts, timeout_s, run_at, tenant,
                        idempotency_key, unique_key, traceparent, webhook, retry, expires_at,
                        worker_tags, sequence_key, concurrency_key, depends_on, depends_any, depends_ended,
                        batch, depends_batch, position)
ORDER BY t.position
ON CONFLICT DO NOTHING
RETURNING id, coalesce(tenant, ''), idempotency_key, unique_key
"""
"""Insert tasks in order. Left out are those whose idempotency key is taken, or whose unique key one has that was never begun.
Each distinct script is stored once: its id is made from what it says and requires."""

FIND_TASKS = "SELECT coalesce(tenant, ''), id FROM tasks WHERE id = ANY (%(ids)s::int8[])"
"""Which of these tasks are there, and whose they are."""

MEMBERS = "coalesce(tenant, '') = {tenant} AND batch = {batch} AND batch IS NOT NULL AND NOT superseded"
"""The tasks of a batch that count: the condition of the index `tasks_batch`."""

FIND_BATCHES = f"""
SELECT wanted.tenant, wanted.name FROM unnest(%(tenants)s::text[], %(names)s::text[]) AS wanted (tenant, name)
WHERE EXISTS (SELECT 1 FROM tasks WHERE {MEMBERS.format(tenant="wanted.tenant", batch="wanted.name")})
"""
"""Which of these batches have tasks."""

_OF_BATCH = MEMBERS.format(tenant="%(tenant)s", batch="%(batch)s")

BATCH = f"SELECT status, count(*) FROM tasks WHERE {_OF_BATCH} GROUP BY status"
"""How many tasks of a batch are in each state, from its index alone."""

BATCH_IDS = f"""
SELECT id FROM tasks WHERE {_OF_BATCH} ORDER BY id LIMIT %(limit)s
"""
"""The tasks of a batch, the first of them."""

FREE_KEYS = """
UPDATE tasks SET idempotency_key = NULL
FROM unnest(%(tenants)s::text[], %(keys)s::text[], %(windows)s::float8[]) AS k (tenant, key, seconds)
WHERE coalesce(tasks.tenant, '') = k.tenant AND tasks.idempotency_key = k.key AND tasks.idempotency_key IS NOT NULL
  AND tasks.created_at <= now() - k.seconds * interval '1 second'
"""
"""Take keys from tasks that have had them for as long as a new one minds. Who else would do so meanwhile waits for the row, and
finds it without its key."""

FIND_EARLIER = """
SELECT tasks.id, coalesce(tasks.tenant, ''), tasks.idempotency_key, NULL::text
FROM unnest(%(kinds)s::text[], %(tenants)s::text[], %(keys)s::text[]) AS k (kind, tenant, key)
JOIN tasks ON coalesce(tasks.tenant, '') = k.tenant AND tasks.idempotency_key = k.key
WHERE k.kind = 'idempotency_key' AND tasks.idempotency_key IS NOT NULL
UNION ALL
SELECT tasks.id, coalesce(tasks.tenant, ''), NULL::text, tasks.unique_key
FROM unnest(%(kinds)s::text[], %(tenants)s::text[], %(keys)s::text[]) AS k (kind, tenant, key)
JOIN tasks ON coalesce(tasks.tenant, '') = k.tenant AND tasks.unique_key = k.key
WHERE k.kind = 'unique_key' AND tasks.unique_key IS NOT NULL AND tasks.status = 'pending' AND tasks.attempt = 0
"""
"""The tasks that were there first."""

PENDING_LIMITS = """
SELECT scope, name, max_pending FROM limits WHERE max_pending IS NOT NULL AND scope IN ('tenant', 'queue')
"""
"""How many tasks may be pending."""

PENDING_BY_TENANT = f"""
SELECT coalesce(tenant, ''), count(*) FROM tasks WHERE {CLAIMABLE} GROUP BY 1
UNION ALL
SELECT coalesce(tenant, ''), count(*) FROM tasks WHERE {GATED} GROUP BY 1
UNION ALL
SELECT coalesce(tenant, ''), count(*) FROM tasks WHERE status = 'pending' AND run_at IS NOT NULL GROUP BY 1
"""
"""How many are, by their partial indexes: what may be claimed, what waits to be admitted, and what is for later."""

CANCEL = f"""
WITH ended AS (
        UPDATE tasks SET
            cancel_requested = true,
            finished = CASE WHEN status = 'pending' THEN {UTC} ELSE finished END,
            last_error = CASE WHEN status = 'pending' THEN 'Cancelled before it ran' ELSE last_error END,
            run_at = NULL,
            webhook_due = CASE WHEN status = 'pending' THEN {WEBHOOK_DUE} END,
            status = CASE WHEN status = 'pending' THEN 'cancelled' ELSE status END
        WHERE id = %(id)s AND status IN ('pending', 'processing')
        RETURNING id, CASE WHEN status = 'processing' THEN 'pending' ELSE status END AS status, 0 AS seconds
    ),
    counted AS ({COUNT})
SELECT status FROM ended
"""
"""Cancel a pending task, or ask for a running one to be stopped."""


_COPIED_DEPENDENCIES = """
       CASE WHEN depends_on IS NOT NULL THEN ARRAY (
           SELECT coalesce(copy.id, needed.id)
           FROM unnest(depends_on) WITH ORDINALITY AS needed (id, place)
           LEFT JOIN unnest(%(originals)s::int8[], %(copies)s::int8[]) AS copy (of_id, id) ON copy.of_id = needed.id
           ORDER BY needed.place) END"""

DEPENDENCIES_OF = (
    "SELECT DISTINCT unnest(depends_on) FROM tasks WHERE id = ANY (%(ids)s::int8[]) AND depends_on IS NOT NULL"
)
"""What tasks depend on that are to be tried again."""

COPIES_OF = "SELECT retry_of, id FROM tasks WHERE retry_of = ANY (%(ids)s::int8[]) AND retry_of IS NOT NULL"


def _copy(which: str) -> str:
    """Submit copies of tasks that have ended, unless there are some."""
    return f"""
INSERT INTO tasks (name, description, code, payload, priority, max_attempts, timeout_s, tenant, webhook, retry, worker_tags,
                   concurrency_key, sequence_key, depends_on, depends_any, depends_ended, batch, depends_batch, retry_of)
SELECT name, description, code, payload, priority, max_attempts, timeout_s, tenant, webhook, retry, worker_tags,
       concurrency_key, sequence_key, {_COPIED_DEPENDENCIES}, depends_any, depends_ended, batch, depends_batch, id
FROM tasks WHERE {which} AND status IN {ENDED_STATUSES} ORDER BY id
ON CONFLICT DO NOTHING
RETURNING id
"""


RETRY = _copy("id = %(id)s")

RETRY_MANY = _copy("id = ANY (%(ids)s::int8[])")

SUPERSEDE = """
UPDATE tasks SET superseded = true
FROM unnest(%(copies)s::int8[]) AS made (id) JOIN tasks AS copy ON copy.id = made.id
WHERE tasks.id = copy.retry_of AND tasks.batch IS NOT NULL
"""
"""Have the copies that were made count in their batches in place of what they are copies of."""

FIND_RETRY = "SELECT (SELECT copy.id FROM tasks AS copy WHERE copy.retry_of = tasks.id) FROM tasks WHERE id = %(id)s"
"""The copy of a task; no row where there is no such task."""

LIMITS = """
SELECT scope, name, weight, max_running, rate, rate_period_s, max_pending, paused FROM limits ORDER BY scope, name
"""
"""All limits."""

SET_LIMIT = """
INSERT INTO limits (scope, name, weight, max_running, rate, rate_period_s, max_pending, paused)
VALUES (%(scope)s, %(name)s, %(weight)s, %(max_running)s, %(rate)s, %(rate_period)s, %(max_pending)s, %(paused)s)
ON CONFLICT (scope, name) DO UPDATE SET
    weight = excluded.weight, max_running = excluded.max_running, rate = excluded.rate,
    rate_period_s = excluded.rate_period_s, max_pending = excluded.max_pending, paused = excluded.paused,
    updated_at = now()
"""
"""Set a limit, all of it."""

CLEAR_LIMIT = "DELETE FROM limits WHERE scope = %(scope)s AND name = %(name)s RETURNING 1"
"""Remove a limit."""

STORE_CODE = """
INSERT INTO codes AS c (id, code, requirements, retry)
VALUES (%(id)s::uuid, %(code)s, %(requirements)s, %(retry)s::text::jsonb)
ON CONFLICT (id) DO UPDATE SET retry = excluded.retry WHERE excluded.retry IS DISTINCT FROM c.retry AND excluded.retry IS NOT NULL
"""
"""Store a script, unless it is there; a policy that is given becomes its policy."""

FETCH_CODE = "SELECT id::text, code, requirements, retry::text FROM codes WHERE id = %(id)s::uuid"
"""Read a script."""

CODES = """
SELECT id::text, length(code) - length(replace(code, E'\\n', '')) + CASE WHEN code LIKE E'%%\\n' THEN 0 ELSE 1 END, length(code),
       left(split_part(code, E'\\n', 1), 120), requirements
FROM codes WHERE id > %(after)s::uuid ORDER BY id LIMIT %(limit)s
"""
"""A page of scripts, without their texts."""

CLAIM_WEBHOOKS = f"""
WITH due AS (
        SELECT id FROM tasks WHERE webhook_due <= now() ORDER BY webhook_due LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )
UPDATE tasks SET webhook_due = now() + %(lease)s * interval '1 second', webhook_tries = webhook_tries + 1
WHERE id IN (SELECT id FROM due)
RETURNING id, webhook, webhook_tries, left(name, 300), status, tenant, attempt, exit_code, {_FIRST_LINE}, created_at,
          started AT TIME ZONE 'utc', finished AT TIME ZONE 'utc'
"""
"""Take deliveries that are due, for as long as a lease."""

SETTLE_WEBHOOK = """
UPDATE tasks SET webhook_due = now() + %(again_in)s::float8 * interval '1 second'
WHERE id = %(id)s AND webhook_tries = %(tries)s
RETURNING 1
"""

PUT_OFF_WEBHOOKS = """
UPDATE tasks SET webhook_due = now() + late.delay * interval '1 second', webhook_tries = webhook_tries - 1
FROM unnest(%(ids)s::int8[], %(tries)s::int4[], %(delays)s::float8[]) AS late (id, tries, delay)
WHERE tasks.id = late.id AND webhook_tries = late.tries
RETURNING 1
"""
"""Have a delivery made again later, or never when the time is NULL, unless somebody took it since."""

_POLICY = f"(SELECT {_policy('tasks')} FROM (SELECT 1) AS one LEFT JOIN codes ON codes.id = tasks.code)"

FETCH = f"""
SELECT id, name, description, status, payload::text, code::text, priority, attempt, released, max_attempts, worker_id,
       created_at, run_at, started AT TIME ZONE 'utc', finished AT TIME ZONE 'utc', lease_expires_at, timeout_s, exit_code,
       {outputs.whole(Stream.OUTPUT)},
       {outputs.whole(Stream.ERROR)},
       last_error, tenant, idempotency_key, cancel_requested, traceparent, webhook, retry_of,
       (SELECT copy.id FROM tasks AS copy WHERE copy.retry_of = tasks.id), schedule, due_at, history, {_POLICY}, expires_at,
       crashes, quarantined, worker_tags, sequence_key, concurrency_key, admitted, depends_on, depends_any, depends_ended,
       batch, depends_batch
FROM tasks WHERE id = ANY (%(ids)s::int8[])
"""
"""Read whole tasks."""

DEPENDS_ON = (
    "SELECT coalesce(tenant, ''), coalesce(depends_on, ARRAY[]::int8[]), depends_batch FROM tasks WHERE id = %(id)s"
)
"""What a task depends on."""

DEPENDENCIES = f"""
SELECT coalesce(tenant, ''), id, left(name, 300), status, exit_code, {outputs.LENGTH}
FROM tasks WHERE id = ANY (%(ids)s::int8[])
"""
"""What it is told of those, but for their outputs."""

OUTPUTS = f"SELECT id, {outputs.whole(Stream.OUTPUT)} FROM tasks WHERE id = ANY (%(ids)s::int8[])"
"""What tasks wrote."""

STILL_OPEN = """
SELECT id FROM tasks WHERE id = ANY (%(ids)s::int8[]) AND status IN ('pending', 'processing')
"""
"""Which tasks have not ended."""


def statistics(of: str = "") -> str:
    """Totals without a look at any finished task: open ones by their partial indexes, the rest from the workers' counters.

    of: a clause that says of which moment.
    """
    return f"""
SELECT (SELECT count(*) FROM tasks WHERE {CLAIMABLE}) + (SELECT count(*) FROM tasks WHERE {GATED}),
       (SELECT count(*) FROM tasks WHERE status = 'pending' AND run_at IS NOT NULL),
       (SELECT count(*) FROM tasks WHERE status = 'processing'),
       coalesce(sum(completed), 0)::int8, coalesce(sum(failed), 0)::int8, coalesce(sum(cancelled), 0)::int8,
       coalesce(sum(malicious), 0)::int8,
       coalesce(sum(execution_seconds) / nullif(sum(completed)::float8, 0), 0),
       coalesce(sum(finished_last_hour) FILTER (WHERE seen_at > now() - interval '2 minutes'), 0)::float8,
       count(*) FILTER (WHERE stopped_at IS NULL AND seen_at > now() - interval '90 seconds' AND slots > 0)
FROM workers {of}
"""


def oldest_pending(of: str = "") -> str:
    """How long the longest waiting task has waited, of those that come next in each priority: found by the claim's index.

    of: a clause that says of which moment.
    """
    return f"""
WITH next AS (SELECT min(id) AS id FROM tasks WHERE {CLAIMABLE} GROUP BY priority)
SELECT extract(epoch FROM now() - min(tasks.queued_at))::float8 FROM next JOIN tasks ON tasks.id = next.id {of}
"""


WORKERS = """
SELECT id, host, pid, version, slots, running, sandbox, started_at, seen_at, stopped_at,
       stopped_at IS NULL AND seen_at > now() - interval '90 seconds',
       completed, failed, cancelled, malicious, finished_last_hour, draining, drained
FROM workers WHERE slots > 0 AND seen_at > now() - interval '1 day'
ORDER BY started_at DESC, id
"""
"""The workers of the last day. Rows without slots only carry totals."""

_GROUP = f"regexp_replace({_FIRST_LINE}, '0x[0-9a-f]+|[0-9]+', '#', 'g')"

GROUPED = 10_000
"""Failures that are looked at, the newest."""

FAILURES = f"""
SELECT error, count(*), max(id), max(finished), min(name), max(name)
FROM (
    SELECT coalesce({_GROUP}, '') AS error, id, finished AT TIME ZONE 'utc' AS finished, left(name, 100) AS name
    FROM tasks
    WHERE status IN ('failed', 'malicious') AND finished >= %(since)s::timestamptz AT TIME ZONE 'utc'
    ORDER BY tasks.finished DESC LIMIT {GROUPED}
) AS newest
GROUP BY error ORDER BY 2 DESC, 3 DESC LIMIT %(limit)s
"""
"""What failed, grouped by what was the matter."""

RUNNING = f"""
SELECT id, name, tenant, attempt, worker_id, started AT TIME ZONE 'utc',
       CASE WHEN output <> '' THEN {outputs.end(Stream.OUTPUT)}
            ELSE coalesce({outputs.end(Stream.ERROR)}, '') END
FROM tasks
WHERE id IN (SELECT id FROM tasks WHERE status = 'processing' ORDER BY started, id LIMIT %(limit)s)
ORDER BY started, id
"""
"""The tasks that have run for longest; of no others is the output looked at."""

DEPTHS = f"""
SELECT priority, sum(pending)::int8, sum(scheduled)::int8, sum(running)::int8
FROM (
    SELECT priority, count(*) AS pending, 0 AS scheduled, 0 AS running
    FROM tasks WHERE {CLAIMABLE} GROUP BY priority
    UNION ALL
    SELECT priority, count(*), 0, 0 FROM tasks WHERE {GATED} GROUP BY priority
    UNION ALL
    SELECT priority, 0, count(*), 0 FROM tasks WHERE status = 'pending' AND run_at IS NOT NULL GROUP BY priority
    UNION ALL
    SELECT priority, 0, 0, count(*) FROM tasks WHERE status = 'processing' GROUP BY priority
) AS part
GROUP BY priority ORDER BY priority LIMIT %(limit)s
"""
"""The open tasks by priority: four conditions, each of which has an index."""

SEARCHED = 100_000
"""Tasks that a search looks at, the newest."""

_SEARCHES = {
    "id": "id = %(id)s",
    "name": "name ILIKE %(name)s",
    "statuses": "status = ANY (%(statuses)s::text[])",
    "tenant": "tenant = %(tenant)s",
    "worker_id": "worker_id = %(worker_id)s",
    "error": f"coalesce({_GROUP}, '') = %(error)s",
    "since": "created_at >= %(since)s::timestamptz",
    "quarantined": "quarantined = %(quarantined)s",
    "batch": "batch = %(batch)s",
}


_SUMMARY = f"""id, name, status, priority, tenant, attempt, max_attempts, worker_id, created_at, run_at,
       started AT TIME ZONE 'utc', finished AT TIME ZONE 'utc', exit_code, {_FIRST_LINE}, {_POLICY}"""


def search(conditions: Iterable[str]) -> str:
    """The newest tasks that meet all of these conditions, among those below an id. With `id`, that one alone."""
    wanted = list(conditions)
    if "id" not in wanted:
        places = f"SELECT id FROM tasks WHERE id < %(before)s ORDER BY id DESC LIMIT {SEARCHED}"
        bounds = ["id < %(before)s", f"id >= (SELECT min(id) FROM ({places}) AS place)"]
    else:
        bounds = []
    return f"""
SELECT {_SUMMARY}
FROM tasks WHERE {" AND ".join([*bounds, *(_SEARCHES[each] for each in wanted)])}
ORDER BY id DESC LIMIT %(limit)s
"""


DEAD_LETTERS_SEEN = 1000
"""Failed tasks that one page of `dead_letters` looks at."""

_DEAD_LETTERS = _SEARCHES | {"code_id": "code = %(code_id)s::uuid", "since": "true"}


def dead_letters(conditions: Iterable[str]) -> str:
    """The failed tasks before a place, the newest first, each with whether it fits these conditions and may be tried again."""
    wanted = list(conditions)
    since = "AND finished >= %(since)s::timestamptz AT TIME ZONE 'utc'" if "since" in wanted else ""
    fits = ["status = 'failed'", "NOT quarantined", *(_DEAD_LETTERS[each] for each in wanted)]
    return f"""
SELECT {_SUMMARY},
       {" AND ".join(fits)} AND NOT EXISTS (SELECT 1 FROM tasks AS copy WHERE copy.retry_of = tasks.id)
FROM (
    SELECT id AS seen FROM tasks
    WHERE status IN ('failed', 'malicious') AND finished <= %(finished)s::timestamptz AT TIME ZONE 'utc'
      AND (finished < %(finished)s::timestamptz AT TIME ZONE 'utc' OR id < %(task_id)s) {since}
    ORDER BY finished DESC, id DESC LIMIT {DEAD_LETTERS_SEEN}
) AS page JOIN tasks ON tasks.id = page.seen
ORDER BY finished DESC, id DESC
"""


SCHEMA_VERSION = "SELECT max(version) FROM continuum_schema"
"""Which schema this database has."""
