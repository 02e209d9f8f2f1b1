-- Continuum's schema for PostgreSQL 12 and newer.
--
-- `continuum migrate` applies this file; `psql -f sql/postgres.sql` is as good. It may be applied again, and by several
-- at once. On a database that holds an older schema it upgrades that in place and keeps every row. Workers may run
-- meanwhile, but for those of the first version: stop them before, because they would write the status `running`, which is
-- `processing` here.

BEGIN;

-- One at a time: two concurrent CREATE ... IF NOT EXISTS of the same name may fail otherwise.
SELECT pg_advisory_xact_lock(7265081935127);

CREATE TABLE IF NOT EXISTS codes (
    id   UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    code TEXT NOT NULL
);
-- What the code imports beside the standard library: a requirements file of pinned packages. NULL: nothing.
ALTER TABLE codes ADD COLUMN IF NOT EXISTS requirements TEXT;
-- How its tasks are tried again that say nothing themselves: an object, see docs/how-to/retries.md. NULL: by the default.
ALTER TABLE codes ADD COLUMN IF NOT EXISTS retry JSONB;

CREATE TABLE IF NOT EXISTS tasks (
    id          BIGSERIAL PRIMARY KEY,
    name        TEXT NOT NULL DEFAULT '',
    description TEXT,
    started     TIMESTAMP,      -- when the current or last attempt was claimed; UTC
    finished    TIMESTAMP,      -- when the terminal state was written; UTC
    locked_at   TIMESTAMP,      -- when the current or last claim was made; UTC
    last_error  TEXT,
    priority    INTEGER NOT NULL DEFAULT 0,
    status      VARCHAR(50) NOT NULL DEFAULT 'pending',
    payload     JSONB,
    code        UUID REFERENCES codes (id),
    worker_id   TEXT,
    output      TEXT
);

-- The first version's table, upgraded -------------------------------------------------------------------------------------

DO $$
BEGIN
    IF EXISTS (
        SELECT FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name = 'tasks' AND column_name = 'id' AND data_type = 'integer'
    ) THEN
        ALTER TABLE tasks ALTER COLUMN id TYPE BIGINT;
        IF to_regclass('tasks_id_seq') IS NOT NULL THEN
            ALTER SEQUENCE tasks_id_seq AS BIGINT;
        END IF;
    END IF;
END
$$;

DROP TRIGGER IF EXISTS task_change_trigger ON tasks;
DROP FUNCTION IF EXISTS notify_task_change();
DROP INDEX IF EXISTS idx_tasks_status_priority;

ALTER TABLE tasks
    ADD COLUMN IF NOT EXISTS error_output     TEXT,
    ADD COLUMN IF NOT EXISTS exit_code        INTEGER,
    ADD COLUMN IF NOT EXISTS created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- Not before this time. NULL: now. A worker clears it when the time has come, so that claiming looks at due tasks only.
    ADD COLUMN IF NOT EXISTS run_at           TIMESTAMPTZ,
    -- Not after this time: what has not begun by then is cancelled.
    ADD COLUMN IF NOT EXISTS expires_at       TIMESTAMPTZ,
    -- The fencing token: one more with every claim, never less.
    ADD COLUMN IF NOT EXISTS attempt          INTEGER NOT NULL DEFAULT 0,
    -- Attempts that workers gave back; they do not count against max_attempts.
    ADD COLUMN IF NOT EXISTS released         INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS max_attempts     INTEGER NOT NULL DEFAULT 3,
    -- How it is tried again: an object, see docs/how-to/retries.md. NULL: as its code says, or by the default.
    ADD COLUMN IF NOT EXISTS retry            JSONB,
    -- How many sandboxes and workers it took down, and whether it is not tried again for that.
    ADD COLUMN IF NOT EXISTS crashes          DOUBLE PRECISION NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS quarantined      BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS timeout_s        DOUBLE PRECISION,
    ADD COLUMN IF NOT EXISTS lease_expires_at TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS tenant           TEXT,
    ADD COLUMN IF NOT EXISTS idempotency_key  TEXT,
    ADD COLUMN IF NOT EXISTS cancel_requested BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS traceparent      TEXT,
    -- Who is told when the task has ended, when that is due, and how often it was tried.
    ADD COLUMN IF NOT EXISTS webhook          TEXT,
    ADD COLUMN IF NOT EXISTS webhook_due      TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS webhook_tries    INTEGER NOT NULL DEFAULT 0,
    -- The task of which this one is a copy, made to try it again.
    ADD COLUMN IF NOT EXISTS retry_of         BIGINT,
    -- How attempts ended so far, oldest first, but for one that completed: an array of objects.
    ADD COLUMN IF NOT EXISTS history          JSONB,
    -- Since when it waits: when it was created, came due, or was given back.
    ADD COLUMN IF NOT EXISTS queued_at        TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The tags that its worker must have: sorted, with commas between them. '': any worker. While its code is paused, `!` and the
    -- code's id stand before them, which is no worker's tag.
    ADD COLUMN IF NOT EXISTS worker_tags      TEXT COLLATE "C" NOT NULL DEFAULT '',
    -- At most so many tasks of a tenant with the same key at a time as LIMITS says.
    ADD COLUMN IF NOT EXISTS concurrency_key  TEXT,
    -- Tasks of a tenant with the same key run one after another, in the order of their ids.
    ADD COLUMN IF NOT EXISTS sequence_key     TEXT,
    -- Tasks of the tenant that must have completed before.
    ADD COLUMN IF NOT EXISTS depends_on       BIGINT[],
    -- Whether one of them is enough.
    ADD COLUMN IF NOT EXISTS depends_any      BOOLEAN NOT NULL DEFAULT false,
    -- Whether it is enough that they have ended, however.
    ADD COLUMN IF NOT EXISTS depends_ended    BOOLEAN NOT NULL DEFAULT false,
    -- The batch that it belongs to: a name, of its tenant.
    ADD COLUMN IF NOT EXISTS batch            TEXT,
    -- A batch of the tenant whose tasks must have completed before, beside those of depends_on.
    ADD COLUMN IF NOT EXISTS depends_batch    TEXT,
    -- Whether a copy, made to try it again, counts in its batch in its place.
    ADD COLUMN IF NOT EXISTS superseded       BOOLEAN NOT NULL DEFAULT false,
    -- Whether a task with a key, or one that depends on others, may be claimed.
    ADD COLUMN IF NOT EXISTS admitted         BOOLEAN NOT NULL DEFAULT false,
    -- While a task of a tenant is pending and was never begun, no other one may have the same.
    ADD COLUMN IF NOT EXISTS unique_key       TEXT,
    -- The schedule that made it, and the due time for which it did.
    ADD COLUMN IF NOT EXISTS schedule         TEXT,
    ADD COLUMN IF NOT EXISTS due_at           TIMESTAMPTZ,
    -- How many parts of its outputs are in TASK_OUTPUTS, after what is here: 0 up to 65,536 characters.
    ADD COLUMN IF NOT EXISTS output_parts       INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS error_output_parts INTEGER NOT NULL DEFAULT 0;

-- The first version's workers are stopped: what they ran is recovered an hour after it was locked, its own limit.
UPDATE tasks
SET status = 'processing',
    attempt = greatest(attempt, 1),
    lease_expires_at = coalesce(locked_at, started, now() AT TIME ZONE 'utc') AT TIME ZONE 'utc' + interval '1 hour'
WHERE status = 'running';
UPDATE tasks SET status = 'pending' WHERE status IS NULL;
UPDATE tasks SET priority = 0 WHERE priority IS NULL;
ALTER TABLE tasks
    ALTER COLUMN status SET DEFAULT 'pending',
    ALTER COLUMN status SET NOT NULL,
    ALTER COLUMN priority SET DEFAULT 0,
    ALTER COLUMN priority SET NOT NULL;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'tasks_status_known' AND conrelid = 'tasks'::regclass) THEN
        -- NOT VALID: rows that hold another status already are kept, and nothing claims them.
        ALTER TABLE tasks ADD CONSTRAINT tasks_status_known CHECK (
            status IN ('pending', 'processing', 'completed', 'failed', 'cancelled', 'malicious')
        ) NOT VALID;
    END IF;
END
$$;

-- Indexes -------------------------------------------------------------------------------------------------------------------

-- Claiming: from one tenant after the other an ordered, limited scan of this index and nothing else, however many rows are
-- finished or parked. Tenants stand in the order of their hashes, so that a random one finds a random tenant.
CREATE INDEX IF NOT EXISTS tasks_ready
    ON tasks (worker_tags, hashtext(coalesce(tenant, '') COLLATE "C"), (coalesce(tenant, '') COLLATE "C"), priority, id)
    WHERE status = 'pending' AND run_at IS NULL
      AND (concurrency_key IS NULL AND sequence_key IS NULL AND depends_on IS NULL AND depends_batch IS NULL OR admitted);
DROP INDEX IF EXISTS tasks_claimable;
DROP INDEX IF EXISTS tasks_claim;
-- What must be admitted before.
CREATE INDEX IF NOT EXISTS tasks_waiting ON tasks (id)
    WHERE status = 'pending' AND run_at IS NULL
      AND (concurrency_key IS NOT NULL OR sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL)
      AND NOT admitted;
DROP INDEX IF EXISTS tasks_gated;
-- What waits in a sequence, and who holds a concurrency key: admission looks at nothing else.
CREATE INDEX IF NOT EXISTS tasks_sequence ON tasks (coalesce(tenant, ''), sequence_key, admitted DESC, id)
    WHERE sequence_key IS NOT NULL AND status IN ('pending', 'processing');
CREATE INDEX IF NOT EXISTS tasks_concurrency ON tasks (coalesce(tenant, ''), concurrency_key, admitted, priority, id)
    WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'processing');
-- Who waits for a task that has ended.
CREATE INDEX IF NOT EXISTS tasks_depending ON tasks USING gin (depends_on) WITH (fastupdate = off)
    WHERE depends_on IS NOT NULL AND NOT admitted AND status = 'pending';
-- How a batch stands: one task of it in each state is found at once, however many there are.
CREATE INDEX IF NOT EXISTS tasks_batch ON tasks (coalesce(tenant, ''), batch, status, id)
    WHERE batch IS NOT NULL AND NOT superseded;
-- Which tasks of it wait for others: mostly none does, and then nothing of it can wait for what waits for it.
CREATE INDEX IF NOT EXISTS tasks_batch_waiting ON tasks (coalesce(tenant, ''), batch, id)
    WHERE batch IS NOT NULL AND status = 'pending' AND run_at IS NULL AND NOT admitted
      AND (sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL);
-- Who waits for a batch, apart by what is enough for whom.
CREATE INDEX IF NOT EXISTS tasks_depending_batch ON tasks (coalesce(tenant, ''), depends_batch, depends_any, depends_ended, id)
    WHERE depends_batch IS NOT NULL AND NOT admitted AND status = 'pending' AND run_at IS NULL;
-- Finding what has come due, and when the next one will.
CREATE INDEX IF NOT EXISTS tasks_scheduled ON tasks (run_at) WHERE status = 'pending' AND run_at IS NOT NULL;
-- Finding what has not begun in time.
CREATE INDEX IF NOT EXISTS tasks_expiring ON tasks (expires_at) WHERE status = 'pending' AND expires_at IS NOT NULL;
-- Recovering expired leases.
CREATE INDEX IF NOT EXISTS tasks_leases ON tasks (lease_expires_at) WHERE status = 'processing';
-- Giving back what one worker holds.
CREATE INDEX IF NOT EXISTS tasks_held ON tasks (worker_id) WHERE status = 'processing';
-- Retention, which may differ by how a task ended.
CREATE INDEX IF NOT EXISTS tasks_ended ON tasks (status, finished) WHERE finished IS NOT NULL;
DROP INDEX IF EXISTS tasks_finished;
CREATE UNIQUE INDEX IF NOT EXISTS tasks_idempotency ON tasks (coalesce(tenant, ''), idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- Only while it was never begun: a retry must not fail because the same was submitted again meanwhile.
CREATE UNIQUE INDEX IF NOT EXISTS tasks_unique ON tasks (coalesce(tenant, ''), unique_key)
    WHERE status = 'pending' AND attempt = 0 AND unique_key IS NOT NULL;

-- A schedule makes one task for each due time, whatever becomes of the answer.
CREATE UNIQUE INDEX IF NOT EXISTS tasks_of_schedules ON tasks (schedule, due_at) WHERE schedule IS NOT NULL;
-- Each task is tried again by one copy at most.
CREATE UNIQUE INDEX IF NOT EXISTS tasks_retry_of ON tasks (retry_of) WHERE retry_of IS NOT NULL;
-- Who is to be told now.
CREATE INDEX IF NOT EXISTS tasks_webhooks ON tasks (webhook_due) WHERE webhook_due IS NOT NULL;
-- What failed lately.
CREATE INDEX IF NOT EXISTS tasks_failed ON tasks (finished) WHERE status IN ('failed', 'malicious');

-- Every task's row is updated a few times and then rests: room on its page, and a vacuum that comes before a queue of dead
-- index entries slows the claim.
ALTER TABLE tasks SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- What does not fit into TASKS of long outputs -----------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS task_outputs (
    task_id BIGINT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,  -- which attempt wrote it: of earlier ones nothing counts
    stream  TEXT NOT NULL,     -- output or error_output
    number  INTEGER NOT NULL,  -- 1 follows what is in TASKS
    part    TEXT NOT NULL,     -- 65,536 characters; the last one has the rest
    PRIMARY KEY (task_id, attempt, stream, number),
    CONSTRAINT task_outputs_stream_known CHECK (stream IN ('output', 'error_output'))
);

-- Each task's outputs from their beginnings to their ends.
CREATE OR REPLACE VIEW whole_outputs AS
    SELECT tasks.id,
           CASE WHEN tasks.output_parts = 0 THEN tasks.output ELSE tasks.output || coalesce((
               SELECT string_agg(rest.part, '' ORDER BY rest.number) FROM task_outputs AS rest
               WHERE rest.task_id = tasks.id AND rest.attempt = tasks.attempt AND rest.stream = 'output'
                 AND rest.number <= tasks.output_parts), '') END AS output,
           CASE WHEN tasks.error_output_parts = 0 THEN tasks.error_output ELSE tasks.error_output || coalesce((
               SELECT string_agg(rest.part, '' ORDER BY rest.number) FROM task_outputs AS rest
               WHERE rest.task_id = tasks.id AND rest.attempt = tasks.attempt AND rest.stream = 'error_output'
                 AND rest.number <= tasks.error_output_parts), '') END AS error_output
    FROM tasks;

-- Workers, and the totals that statistics are read from ----------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS workers (
    id                 TEXT PRIMARY KEY,
    host               TEXT NOT NULL DEFAULT '',
    pid                INTEGER NOT NULL DEFAULT 0,
    version            TEXT NOT NULL DEFAULT '',
    sandbox            TEXT NOT NULL DEFAULT '',
    slots              INTEGER NOT NULL DEFAULT 0,
    running            INTEGER NOT NULL DEFAULT 0,
    started_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    seen_at            TIMESTAMPTZ NOT NULL DEFAULT now(),
    stopped_at         TIMESTAMPTZ,
    -- Tasks that this worker brought to a terminal state, ever; written together with that state.
    completed          BIGINT NOT NULL DEFAULT 0,
    failed             BIGINT NOT NULL DEFAULT 0,
    cancelled          BIGINT NOT NULL DEFAULT 0,
    execution_seconds  DOUBLE PRECISION NOT NULL DEFAULT 0,
    finished_last_hour INTEGER NOT NULL DEFAULT 0
);
ALTER TABLE workers
    -- Tasks whose code CODE_POLICY=reject refused.
    ADD COLUMN IF NOT EXISTS malicious BIGINT NOT NULL DEFAULT 0,
    -- Whether it is to claim nothing more; it learns of it at its next heartbeat.
    ADD COLUMN IF NOT EXISTS draining  BOOLEAN NOT NULL DEFAULT false,
    -- Whether it has done so, and holds no task any more.
    ADD COLUMN IF NOT EXISTS drained   BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE workers SET (fillfactor = 50);

-- Limits: changed at any time by SQL or `continuum limits`, and heeded from the next claim or submission on -----------------------

CREATE TABLE IF NOT EXISTS limits (
    scope         TEXT NOT NULL,                       -- tenant; key: tasks of a tenant with the same concurrency_key; tag: worker_tags; code: a script's tasks; queue: everything
    name          TEXT COLLATE "C" NOT NULL,           -- of what. '*': of each that has no value of its own. Of the queue: ''. Tasks without a tenant: ''
    weight        DOUBLE PRECISION,                    -- a tenant's share, compared with 1
    max_running   INTEGER,                             -- at a time, all workers together
    rate          INTEGER,                             -- starts in any period of so many seconds, all workers together
    rate_period_s DOUBLE PRECISION,                    -- how long a period is
    max_pending   INTEGER,                             -- open tasks that have not begun, beyond which none is submitted
    paused        BOOLEAN,                             -- nothing of it begins
    updated_at    TIMESTAMPTZ NOT NULL DEFAULT now(),  -- when it was set
    PRIMARY KEY (scope, name),
    CONSTRAINT limits_scope_known CHECK (scope IN ('tenant', 'key', 'tag', 'code', 'queue')),
    CONSTRAINT limits_weight_fits CHECK (weight > 0 AND weight <= 1000),
    CONSTRAINT limits_max_running_fits CHECK (max_running BETWEEN 0 AND 10000),
    CONSTRAINT limits_rate_fits CHECK (rate > 0 AND rate_period_s > 0 AND rate_period_s <= 604800),
    CONSTRAINT limits_rate_whole CHECK ((rate IS NULL) = (rate_period_s IS NULL)),
    CONSTRAINT limits_max_pending_fits CHECK (max_pending >= 0)
);

-- What limits are kept by: a row for each task that a limit lets run at once, and one for each start that it allows in a period.
-- A claim takes free ones and skips those that others take, so that nobody waits. `infinity`: until its task ends.
CREATE TABLE IF NOT EXISTS permits (
    resource TEXT COLLATE "C" NOT NULL,           -- running:TENANT or rate:TENANT
    number   INTEGER NOT NULL,                    -- one of as many as the limit says
    free_at  TIMESTAMPTZ NOT NULL DEFAULT now(),  -- from when on it may be taken
    task_id  BIGINT,                              -- whose it is
    PRIMARY KEY (resource, number)
);
CREATE INDEX IF NOT EXISTS permits_free ON permits (resource, free_at);
CREATE INDEX IF NOT EXISTS permits_taken ON permits (task_id) WHERE task_id IS NOT NULL;
ALTER TABLE permits SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- What one worker at a time does, whichever comes first.
CREATE TABLE IF NOT EXISTS duties (
    name      TEXT PRIMARY KEY,
    worker_id TEXT NOT NULL,
    until     TIMESTAMPTZ NOT NULL  -- when another may take it, unless this one renews it
);

-- Schedules: what makes tasks at due times ------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS schedules (
    name          TEXT PRIMARY KEY,                             -- letters, digits, `.`, `_`, `-` and `:`
    cron          TEXT NOT NULL,                                -- five fields, or six that begin with seconds
    time_zone     TEXT NOT NULL DEFAULT 'UTC',                  -- in which they are read, such as Europe/Berlin
    catch_up      TEXT NOT NULL DEFAULT 'one',                  -- of the due times that passed while nobody fired: none, the last one, or all
    overlap       TEXT NOT NULL DEFAULT 'allow',                -- skip: no task while the one before is open
    jitter_s      DOUBLE PRECISION NOT NULL DEFAULT 0,          -- fired up to so many seconds later, the same for a due time everywhere
    paused        BOOLEAN NOT NULL DEFAULT false,               -- it makes no tasks
    task_name     TEXT NOT NULL DEFAULT '',                     -- the tasks' name. '': the schedule's. These, down to retry, as in TASKS
    description   TEXT,                                         -- for people, too
    code          UUID NOT NULL REFERENCES codes (id),          -- the script
    payload       JSONB,                                        -- an object, or NULL: `schedule` and `due_at` are put into it
    priority      INTEGER NOT NULL DEFAULT 0,                   -- lower runs first
    tenant        TEXT,                                         -- whose tasks they are
    max_attempts  INTEGER NOT NULL DEFAULT 3,                   -- how often one is tried
    timeout_s     DOUBLE PRECISION,                             -- wall time of one attempt in seconds
    worker_tags   TEXT NOT NULL DEFAULT '',                     -- the tags that their workers must have
    webhook       TEXT,                                         -- the URL that is told when one has ended
    retry         JSONB,                                        -- how they are tried again
    next_at       TIMESTAMPTZ,                                  -- when a worker looks at it next. NULL: at once, to work out due_at anew
    due_at        TIMESTAMPTZ,                                  -- the due time that it is then fired for. NULL: to be worked out
    last_due      TIMESTAMPTZ,                                  -- the last due time that was dealt with
    last_fired_at TIMESTAMPTZ,                                  -- when it last made a task
    last_task_id  BIGINT,                                       -- that task
    fired         BIGINT NOT NULL DEFAULT 0,                    -- tasks that it made
    skipped       BIGINT NOT NULL DEFAULT 0,                    -- due times without one, because the one before was open
    missed        BIGINT NOT NULL DEFAULT 0,                    -- due times that passed while nobody fired, and were left out
    last_error    TEXT,                                         -- why it cannot be fired as it stands; workers look again every minute
    created_at    TIMESTAMPTZ NOT NULL DEFAULT now(),           -- when it was stored
    updated_at    TIMESTAMPTZ NOT NULL DEFAULT now(),           -- when somebody last changed it by command or over HTTP
    CONSTRAINT schedules_name_known CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._:-]*$' AND length(name) <= 100),
    CONSTRAINT schedules_catch_up_known CHECK (catch_up IN ('none', 'one', 'all')),
    CONSTRAINT schedules_overlap_known CHECK (overlap IN ('allow', 'skip')),
    CONSTRAINT schedules_jitter_fits CHECK (jitter_s BETWEEN 0 AND 3600),
    CONSTRAINT schedules_payload_fits CHECK (payload IS NULL OR jsonb_typeof(payload) = 'object')
);
CREATE INDEX IF NOT EXISTS schedules_next ON schedules (next_at) WHERE NOT paused;
ALTER TABLE schedules SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- Waking workers up ----------------------------------------------------------------------------------------------------------

-- NOTIFY takes one lock for the whole server before the commit and holds it until the commit is on disk: many producers would
-- queue for it. So of work nobody is told who did not ask, which a worker does by a shared advisory lock for as long as it waits
-- for work: ...128, here and in continuum/db/notifications.py. Who finds nobody asking keeps silent, and has taken ...129 before
-- until its rows can be seen: a worker that asks meanwhile looks again once that lock is free.
-- The question stands in both functions, which call nothing but PostgreSQL's own: they run with the rights and the search_path of
-- whoever writes.

-- Once per INSERT statement, and only when it brought work.
CREATE OR REPLACE FUNCTION continuum_notify_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
            SELECT FROM new_rows
            WHERE status = 'pending' AND run_at IS NULL
              AND (concurrency_key IS NULL AND sequence_key IS NULL AND depends_on IS NULL AND depends_batch IS NULL OR admitted))
        AND (CASE WHEN NOT pg_try_advisory_xact_lock_shared(7265081935129) THEN true
                  WHEN NOT pg_try_advisory_lock(7265081935128) THEN true
                  ELSE NOT pg_advisory_unlock(7265081935128) END)
    THEN
        PERFORM pg_notify('tasks_updated', 'pending');
    END IF;
    IF EXISTS (SELECT FROM new_rows WHERE status = 'pending' AND run_at IS NOT NULL) THEN
        PERFORM pg_notify('tasks_updated', 'scheduled');
    END IF;
    IF EXISTS (
        SELECT FROM new_rows
        WHERE status = 'pending' AND run_at IS NULL
          AND (concurrency_key IS NOT NULL OR sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL)
          AND NOT admitted)
    THEN
        PERFORM pg_notify('tasks_updated', 'gated');
    END IF;
    RETURN NULL;
END
$$;

-- Rows that an UPDATE made claimable, scheduled anew, or asked to stop. The WHEN clauses below keep it from being called for
-- anything else; PostgreSQL delivers equal notifications of one transaction once.
CREATE OR REPLACE FUNCTION continuum_notify_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_ARGV[0] <> 'pending'
        OR (CASE WHEN NOT pg_try_advisory_xact_lock_shared(7265081935129) THEN true
                 WHEN NOT pg_try_advisory_lock(7265081935128) THEN true
                 ELSE NOT pg_advisory_unlock(7265081935128) END)
    THEN
        PERFORM pg_notify('tasks_updated', TG_ARGV[0]);
    END IF;
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS continuum_inserted ON tasks;
CREATE TRIGGER continuum_inserted AFTER INSERT ON tasks
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION continuum_notify_inserted();

DROP TRIGGER IF EXISTS continuum_claimable ON tasks;
CREATE TRIGGER continuum_claimable AFTER UPDATE ON tasks
    FOR EACH ROW
    WHEN (NEW.status = 'pending' AND NEW.run_at IS NULL
          AND (OLD.status <> 'pending' OR OLD.run_at IS NOT NULL OR NEW.admitted AND NOT OLD.admitted)
          AND (NEW.concurrency_key IS NULL AND NEW.sequence_key IS NULL AND NEW.depends_on IS NULL AND NEW.depends_batch IS NULL
               OR NEW.admitted))
    EXECUTE FUNCTION continuum_notify_updated('pending');

DROP TRIGGER IF EXISTS continuum_gated ON tasks;
CREATE TRIGGER continuum_gated AFTER UPDATE ON tasks
    FOR EACH ROW
    WHEN (NEW.status = 'pending' AND NEW.run_at IS NULL AND (OLD.status <> 'pending' OR OLD.run_at IS NOT NULL)
          AND (NEW.concurrency_key IS NOT NULL OR NEW.sequence_key IS NOT NULL OR NEW.depends_on IS NOT NULL
               OR NEW.depends_batch IS NOT NULL)
          AND NOT NEW.admitted)
    EXECUTE FUNCTION continuum_notify_updated('gated');

DROP TRIGGER IF EXISTS continuum_scheduled ON tasks;
CREATE TRIGGER continuum_scheduled AFTER UPDATE ON tasks
    FOR EACH ROW
    WHEN (NEW.status = 'pending' AND NEW.run_at IS NOT NULL AND OLD.run_at IS DISTINCT FROM NEW.run_at)
    EXECUTE FUNCTION continuum_notify_updated('scheduled');

DROP TRIGGER IF EXISTS continuum_cancelled ON tasks;
CREATE TRIGGER continuum_cancelled AFTER UPDATE ON tasks
    FOR EACH ROW
    WHEN (NEW.cancel_requested AND NOT OLD.cancel_requested AND NEW.status = 'processing')
    EXECUTE FUNCTION continuum_notify_updated('cancel');

-- A schedule whose due time is to be worked out.
DROP TRIGGER IF EXISTS continuum_schedule_changed ON schedules;
CREATE TRIGGER continuum_schedule_changed AFTER INSERT OR UPDATE ON schedules
    FOR EACH ROW
    WHEN (NEW.next_at IS NULL AND NOT NEW.paused)
    EXECUTE FUNCTION continuum_notify_updated('schedules');

-- Limits that changed may let something begin.
CREATE OR REPLACE FUNCTION continuum_notify_limits() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('tasks_updated', 'pending');
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS continuum_limits ON limits;
CREATE TRIGGER continuum_limits AFTER INSERT OR UPDATE OR DELETE ON limits
    FOR EACH STATEMENT EXECUTE FUNCTION continuum_notify_limits();

-- The version, last: whoever finds it finds all of the above --------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS continuum_schema (
    version    INTEGER PRIMARY KEY,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- What was finished before the first migration belongs to no worker of ours, but to the totals.
INSERT INTO workers (id, completed, failed, cancelled, malicious, execution_seconds, stopped_at)
SELECT 'before-upgrade',
       count(*) FILTER (WHERE status = 'completed'),
       count(*) FILTER (WHERE status = 'failed'),
       count(*) FILTER (WHERE status = 'cancelled'),
       count(*) FILTER (WHERE status = 'malicious'),
       coalesce(sum(extract(epoch FROM finished - started)) FILTER (WHERE status = 'completed'), 0),
       now()
FROM tasks
WHERE NOT EXISTS (SELECT FROM continuum_schema)
HAVING count(*) FILTER (WHERE status IN ('completed', 'failed', 'cancelled', 'malicious')) > 0
ON CONFLICT (id) DO NOTHING;

INSERT INTO continuum_schema (version) VALUES (6) ON CONFLICT (version) DO NOTHING;

COMMIT;
