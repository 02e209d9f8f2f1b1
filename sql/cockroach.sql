-- Continuum's schema for CockroachDB 24.1 and newer.
--
-- `continuum migrate` applies this file statement by statement (CockroachDB changes schemas outside of transactions);
-- `cockroach sql -f sql/cockroach.sql` is as good. It may be applied again, by several at once, and while workers run.
-- There is no LISTEN here, hence no trigger: workers learn of work by a changefeed, or by looking.

CREATE TABLE IF NOT EXISTS codes (
    id           UUID PRIMARY KEY DEFAULT gen_random_uuid(),  -- named by tasks
    code         TEXT NOT NULL,                               -- the source text of a Python script
    -- What the code imports beside the standard library: a requirements file of pinned packages. NULL: nothing.
    requirements TEXT,
    -- How its tasks are tried again that say nothing themselves: an object, see the guide to retries. NULL: by the default.
    retry        JSONB
);

-- Which workers hold one of the cluster's few changefeeds.
CREATE TABLE IF NOT EXISTS wakeup_feeds (
    place      INT8 PRIMARY KEY,     -- one of WAKEUP_FEEDS
    worker_id  TEXT NOT NULL,        -- who holds it
    expires_at TIMESTAMPTZ NOT NULL  -- until when, unless it is extended
);

CREATE TABLE IF NOT EXISTS workers (
    id                 TEXT PRIMARY KEY,                    -- made anew at each start
    host               TEXT NOT NULL DEFAULT '',            -- the name of its host
    pid                INT4 NOT NULL DEFAULT 0,             -- its process there
    version            TEXT NOT NULL DEFAULT '',            -- of Continuum
    sandbox            TEXT NOT NULL DEFAULT '',            -- what it runs scripts in
    slots              INT4 NOT NULL DEFAULT 0,             -- how many tasks it runs at once
    running            INT4 NOT NULL DEFAULT 0,             -- how many it ran when it was last seen
    started_at         TIMESTAMPTZ NOT NULL DEFAULT now(),  -- when it started
    seen_at            TIMESTAMPTZ NOT NULL DEFAULT now(),  -- its last heartbeat
    stopped_at         TIMESTAMPTZ,                         -- when it ended in order
    completed          INT8 NOT NULL DEFAULT 0,             -- tasks that this worker brought to that state, ever: written together with the state
    failed             INT8 NOT NULL DEFAULT 0,             -- the same for failed ones
    cancelled          INT8 NOT NULL DEFAULT 0,             -- the same for cancelled ones
    execution_seconds  FLOAT8 NOT NULL DEFAULT 0,           -- what its completed tasks took together
    finished_last_hour INT4 NOT NULL DEFAULT 0,             -- tasks that it ended within an hour
    malicious          INT8 NOT NULL DEFAULT 0,             -- tasks whose code CODE_POLICY=reject refused
    draining           BOOL NOT NULL DEFAULT false,         -- whether it is to claim nothing more; it learns of it at its next heartbeat
    drained            BOOL NOT NULL DEFAULT false          -- whether it has done so, and holds no task any more
);

CREATE TABLE IF NOT EXISTS continuum_schema (
    version    INT4 PRIMARY KEY,                   -- each that was applied
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()  -- when
);

-- Limits: changed at any time by SQL or `continuum limits`, and heeded from the next claim or submission on.
CREATE TABLE IF NOT EXISTS limits (
    scope         TEXT NOT NULL,                       -- tenant; key: tasks of a tenant with the same concurrency_key; tag: worker_tags; code: a script's tasks; queue: everything
    name          TEXT NOT NULL,                       -- of what. '*': of each that has no value of its own. Of the queue: ''. Tasks without a tenant: ''
    weight        FLOAT8,                              -- a tenant's share, compared with 1
    max_running   INT4,                                -- at a time, all workers together
    rate          INT4,                                -- starts in any period of so many seconds, all workers together
    rate_period_s FLOAT8,                              -- how long a period is
    max_pending   INT4,                                -- open tasks that have not begun, beyond which none is submitted
    paused        BOOL,                                -- nothing of it begins
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
    resource TEXT NOT NULL,                       -- running:TENANT or rate:TENANT
    number   INT4 NOT NULL,                       -- one of as many as the limit says
    free_at  TIMESTAMPTZ NOT NULL DEFAULT now(),  -- from when on it may be taken
    task_id  INT8,                                -- whose it is
    PRIMARY KEY (resource, number),
    INDEX permits_free (resource, free_at),
    INDEX permits_taken (task_id) WHERE task_id IS NOT NULL
);

CREATE TABLE IF NOT EXISTS duties (
    name      TEXT PRIMARY KEY,     -- `retention`: deleting finished tasks
    worker_id TEXT NOT NULL,        -- who does it
    until     TIMESTAMPTZ NOT NULL  -- when another may take it, unless this one renews it
);

-- What makes tasks at due times.
CREATE TABLE IF NOT EXISTS schedules (
    name          TEXT PRIMARY KEY,                             -- letters, digits, `.`, `_`, `-` and `:`
    cron          TEXT NOT NULL,                                -- five fields, or six that begin with seconds
    time_zone     TEXT NOT NULL DEFAULT 'UTC',                  -- in which they are read, such as Europe/Berlin
    catch_up      TEXT NOT NULL DEFAULT 'one',                  -- of the due times that passed while nobody fired: none, the last one, or all
    overlap       TEXT NOT NULL DEFAULT 'allow',                -- skip: no task while the one before is open
    jitter_s      FLOAT8 NOT NULL DEFAULT 0,                    -- fired up to so many seconds later, the same for a due time everywhere
    paused        BOOL NOT NULL DEFAULT false,                  -- it makes no tasks
    task_name     TEXT NOT NULL DEFAULT '',                     -- the tasks' name. '': the schedule's. These, down to retry, as in TASKS
    description   TEXT,                                         -- for people, too
    code          UUID NOT NULL REFERENCES codes (id),          -- the script
    payload       JSONB,                                        -- an object, or NULL: `schedule` and `due_at` are put into it
    priority      INT4 NOT NULL DEFAULT 0,                      -- lower runs first
    tenant        TEXT,                                         -- whose tasks they are
    max_attempts  INT4 NOT NULL DEFAULT 3,                      -- how often one is tried
    timeout_s     FLOAT8,                                       -- wall time of one attempt in seconds
    worker_tags   TEXT NOT NULL DEFAULT '',                     -- the tags that their workers must have
    webhook       TEXT,                                         -- the URL that is told when one has ended
    retry         JSONB,                                        -- how they are tried again
    next_at       TIMESTAMPTZ,                                  -- when a worker looks at it next. NULL: at once, to work out due_at anew
    due_at        TIMESTAMPTZ,                                  -- the due time that it is then fired for. NULL: to be worked out
    last_due      TIMESTAMPTZ,                                  -- the last due time that was dealt with
    last_fired_at TIMESTAMPTZ,                                  -- when it last made a task
    last_task_id  INT8,                                         -- that task
    fired         INT8 NOT NULL DEFAULT 0,                      -- tasks that it made
    skipped       INT8 NOT NULL DEFAULT 0,                      -- due times without one, because the one before was open
    missed        INT8 NOT NULL DEFAULT 0,                      -- due times that passed while nobody fired, and were left out
    last_error    TEXT,                                         -- why it cannot be fired as it stands; workers look again every minute
    created_at    TIMESTAMPTZ NOT NULL DEFAULT now(),           -- when it was stored
    updated_at    TIMESTAMPTZ NOT NULL DEFAULT now(),           -- when somebody last changed it by command or over HTTP
    CONSTRAINT schedules_name_known CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._:-]*$' AND length(name) <= 100),
    CONSTRAINT schedules_catch_up_known CHECK (catch_up IN ('none', 'one', 'all')),
    CONSTRAINT schedules_overlap_known CHECK (overlap IN ('allow', 'skip')),
    CONSTRAINT schedules_jitter_fits CHECK (jitter_s BETWEEN 0 AND 3600),
    CONSTRAINT schedules_payload_fits CHECK (payload IS NULL OR jsonb_typeof(payload) = 'object'),
    INDEX schedules_next (next_at) WHERE NOT paused
);

-- One column family, which SKIP LOCKED needs. Ids are unique_rowid(): 64 bits, in order of insertion but for clock skew, and
-- beyond what JSON numbers hold exactly: the HTTP interfaces give them as strings, too.
CREATE TABLE IF NOT EXISTS tasks (
    id               INT8 PRIMARY KEY DEFAULT unique_rowid(),  -- given by the database, never used again
    -- Which of 16 parts of the queue a task waits in, so that many workers do not claim at one place. Drawn at random: the low
    -- bits of unique_rowid() are the node's number. Hidden, so that `SELECT *` shows the columns of the first version.
    shard            INT2 NOT VISIBLE NOT NULL DEFAULT floor(random() * 16)::INT2,
    name             TEXT NOT NULL DEFAULT '',                 -- for people
    description      TEXT,                                     -- for people, too
    started          TIMESTAMP,                                -- when the current or last attempt was claimed, in UTC
    finished         TIMESTAMP,                                -- when the terminal state was written, in UTC
    locked_at        TIMESTAMP,                                -- when the current or last claim was made, in UTC
    last_error       TEXT,                                     -- why the last attempt failed, the cause in its first line
    priority         INT4 NOT NULL DEFAULT 0,                  -- lower runs first
    status           VARCHAR(50) NOT NULL DEFAULT 'pending',   -- one of pending, processing, completed, failed, cancelled, malicious
    payload          JSONB,                                    -- what the script is given
    code             UUID REFERENCES codes (id),               -- the script
    worker_id        TEXT,                                     -- who holds the lease, or held the last one
    output           TEXT,                                     -- what it wrote to stdout, up to OUTPUT_LIMIT
    error_output     TEXT,                                     -- what it wrote to stderr, up to OUTPUT_LIMIT
    exit_code        INT4,                                     -- 128 + n where signal n ended the script, NULL where there was none
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),       -- when it was inserted
    -- Not before this time. NULL: now. A worker clears it when the time has come, so that claiming looks at due tasks only.
    run_at           TIMESTAMPTZ,
    -- Not after this time: what has not begun by then is cancelled.
    expires_at       TIMESTAMPTZ,
    -- The fencing token: one more with every claim, never less.
    attempt          INT4 NOT NULL DEFAULT 0,
    -- Attempts that workers gave back: they do not count against max_attempts.
    released         INT4 NOT NULL DEFAULT 0,
    max_attempts     INT4 NOT NULL DEFAULT 3,                  -- how often it is tried
    -- How it is tried again: an object, see the guide to retries. NULL: as its code says, or by the default.
    retry            JSONB,
    -- How many sandboxes and workers it took down; a worker that ran others as well counts half.
    crashes          FLOAT8 NOT NULL DEFAULT 0,
    -- Whether it is not tried again for that.
    quarantined      BOOL NOT NULL DEFAULT false,
    timeout_s        FLOAT8,                                   -- wall time of one attempt in seconds, where it is less than TASK_TIMEOUT
    lease_expires_at TIMESTAMPTZ,                              -- until when the claim lasts without a heartbeat
    tenant           TEXT,                                     -- whose task it is: no sandbox serves two tenants
    -- Where in the ring of tenants it stands: in the order of their hashes, so that a random one finds a random tenant.
    ring             INT8 NOT VISIBLE AS (crc32ieee(coalesce(tenant, ''))) VIRTUAL,
    idempotency_key  TEXT,                                     -- unique within a tenant, so that a task is not submitted twice
    cancel_requested BOOL NOT NULL DEFAULT false,              -- its worker stops it at its next heartbeat
    traceparent      TEXT,                                     -- the trace that it goes on with, as in W3C Trace Context
    -- The URL that is told when the task has ended.
    webhook          TEXT,
    -- When that is to be tried. NULL: not yet, done, or given up.
    webhook_due      TIMESTAMPTZ,
    -- How often it was tried.
    webhook_tries    INT4 NOT NULL DEFAULT 0,
    -- The task of which this one is a copy, made to try it again.
    retry_of         INT8,
    -- How attempts ended so far, oldest first, but for one that completed: an array of objects.
    history          JSONB,
    -- Since when it waits: when it was created, came due, or was given back.
    queued_at        TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The tags that its worker must have: sorted, with commas between them. '': any worker. While its code is paused, `!` and the
    -- code's id stand before them, which is no worker's tag.
    worker_tags      TEXT NOT NULL DEFAULT '',
    -- At most so many tasks of a tenant with the same key at a time as LIMITS says.
    concurrency_key  TEXT,
    -- Tasks of a tenant with the same key run one after another, in the order of their ids.
    sequence_key     TEXT,
    -- Tasks of the tenant that must have completed before.
    depends_on       INT8[],
    -- Whether one of them is enough.
    depends_any      BOOL NOT NULL DEFAULT false,
    -- Whether it is enough that they have ended, however.
    depends_ended    BOOL NOT NULL DEFAULT false,
    -- The batch that it belongs to: a name, of its tenant.
    batch            TEXT,
    -- A batch of the tenant whose tasks must have completed before, beside those of depends_on.
    depends_batch    TEXT,
    -- Whether a copy, made to try it again, counts in its batch in its place.
    superseded       BOOL NOT NULL DEFAULT false,
    -- Whether a task with a key, or one that depends on others, may be claimed.
    admitted         BOOL NOT NULL DEFAULT false,
    -- While a task of a tenant is pending and was never begun, no other one may have the same.
    unique_key       TEXT,
    schedule         TEXT,                                     -- the schedule that made it
    due_at           TIMESTAMPTZ,                              -- the due time for which it did
    -- How many parts of its output are in TASK_OUTPUTS, after what is here: 0 up to 65,536 characters.
    output_parts     INT4 NOT NULL DEFAULT 0,
    error_output_parts INT4 NOT NULL DEFAULT 0,                -- the same of its error output
    CONSTRAINT tasks_status_known CHECK (
        status IN ('pending', 'processing', 'completed', 'failed', 'cancelled', 'malicious')
    ),
    CONSTRAINT tasks_shard_known CHECK (shard BETWEEN 0 AND 15),
    INDEX tasks_scheduled (run_at) WHERE status = 'pending' AND run_at IS NOT NULL,
    INDEX tasks_expiring (expires_at) WHERE status = 'pending' AND expires_at IS NOT NULL,
    INDEX tasks_leases (lease_expires_at) STORING (worker_id) WHERE status = 'processing',
    INDEX tasks_held (worker_id) WHERE status = 'processing',
    INDEX tasks_unwanted (worker_id) WHERE status = 'processing' AND cancel_requested,
    -- Retention, which may differ by how a task ended.
    INDEX tasks_ended (status, finished) WHERE finished IS NOT NULL,
    -- A schedule makes one task for each due time, whatever becomes of the answer.
    UNIQUE INDEX tasks_of_schedules (schedule, due_at) WHERE schedule IS NOT NULL,
    -- Each task is tried again by one copy at most.
    UNIQUE INDEX tasks_retry_of (retry_of) WHERE retry_of IS NOT NULL,
    -- Who is to be told now.
    INDEX tasks_webhooks (webhook_due) WHERE webhook_due IS NOT NULL,
    -- What failed lately.
    INDEX tasks_failed (finished) WHERE status IN ('failed', 'malicious'),
    UNIQUE INDEX tasks_idempotency (coalesce(tenant, ''), idempotency_key) WHERE idempotency_key IS NOT NULL,
    -- Only while it was never begun: a retry must not fail because the same was submitted again meanwhile.
    UNIQUE INDEX tasks_unique (coalesce(tenant, ''), unique_key)
        WHERE status = 'pending' AND attempt = 0 AND unique_key IS NOT NULL,
    -- Claiming: short reads of this index find tenants and their next tasks, which are then claimed by their ids. Who submits
    -- counts what is pending by tenant, and from this index alone.
    INDEX tasks_ready (worker_tags, ring, tenant, priority, shard, id) WHERE status = 'pending' AND run_at IS NULL
        AND (concurrency_key IS NULL AND sequence_key IS NULL AND depends_on IS NULL AND depends_batch IS NULL OR admitted),
    -- What must be admitted before.
    INDEX tasks_waiting (id) WHERE status = 'pending' AND run_at IS NULL
        AND (concurrency_key IS NOT NULL OR sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL)
        AND NOT admitted,
    -- What waits in a sequence, and who holds a concurrency key: admission looks at nothing else.
    INDEX tasks_sequence (coalesce(tenant, ''), sequence_key, admitted DESC, id)
        WHERE sequence_key IS NOT NULL AND status IN ('pending', 'processing'),
    INDEX tasks_concurrency (coalesce(tenant, ''), concurrency_key, admitted, priority, id)
        WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'processing'),
    -- Who waits for a task that has ended.
    INVERTED INDEX tasks_depending (depends_on) WHERE depends_on IS NOT NULL AND NOT admitted AND status = 'pending',
    -- How a batch stands: one task of it in each state is found at once, however many there are.
    INDEX tasks_batch (coalesce(tenant, ''), batch, status, id) WHERE batch IS NOT NULL AND NOT superseded,
    -- Which tasks of it wait for others: mostly none does, and then nothing of it can wait for what waits for it.
    INDEX tasks_batch_waiting (coalesce(tenant, ''), batch, id)
        WHERE batch IS NOT NULL AND status = 'pending' AND run_at IS NULL AND NOT admitted
        AND (sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL),
    -- Who waits for a batch, apart by what is enough for whom.
    INDEX tasks_depending_batch (coalesce(tenant, ''), depends_batch, depends_any, depends_ended, id)
        WHERE depends_batch IS NOT NULL AND NOT admitted AND status = 'pending' AND run_at IS NULL
);

-- What does not fit into TASKS of long outputs, so that claims and heartbeats never read or write it.
CREATE TABLE IF NOT EXISTS task_outputs (
    task_id INT8 NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,  -- whose output it is
    attempt INT4 NOT NULL,                                          -- which attempt wrote it: of earlier ones nothing counts
    stream  TEXT NOT NULL,                                          -- output or error_output
    number  INT4 NOT NULL,                                          -- 1 follows what is in TASKS
    part    TEXT NOT NULL,                                          -- 65,536 characters; the last one has the rest
    PRIMARY KEY (task_id, attempt, stream, number),
    CONSTRAINT task_outputs_stream_known CHECK (stream IN ('output', 'error_output'))
);

-- What version 2 has more than version 1.
ALTER TABLE codes ADD COLUMN IF NOT EXISTS requirements TEXT;
ALTER TABLE workers ADD COLUMN IF NOT EXISTS malicious INT8 NOT NULL DEFAULT 0;

-- What version 4 has more than version 3.
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS webhook TEXT;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS webhook_due TIMESTAMPTZ;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS webhook_tries INT4 NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS retry_of INT8;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS history JSONB;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS queued_at TIMESTAMPTZ NOT NULL DEFAULT now();
CREATE UNIQUE INDEX IF NOT EXISTS tasks_retry_of ON tasks (retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_webhooks ON tasks (webhook_due) WHERE webhook_due IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_failed ON tasks (finished) WHERE status IN ('failed', 'malicious');

-- What version 5 has more than version 4.
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS worker_tags TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS concurrency_key TEXT;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS sequence_key TEXT;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS depends_on INT8[];
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS depends_any BOOL NOT NULL DEFAULT false;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS depends_ended BOOL NOT NULL DEFAULT false;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS admitted BOOL NOT NULL DEFAULT false;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS unique_key TEXT;
CREATE UNIQUE INDEX IF NOT EXISTS tasks_unique ON tasks (coalesce(tenant, ''), unique_key)
    WHERE status = 'pending' AND attempt = 0 AND unique_key IS NOT NULL;
ALTER TABLE workers ADD COLUMN IF NOT EXISTS draining BOOL NOT NULL DEFAULT false;
ALTER TABLE workers ADD COLUMN IF NOT EXISTS drained BOOL NOT NULL DEFAULT false;
ALTER TABLE codes ADD COLUMN IF NOT EXISTS retry JSONB;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS retry JSONB;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS expires_at TIMESTAMPTZ;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS crashes FLOAT8 NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS quarantined BOOL NOT NULL DEFAULT false;
CREATE INDEX IF NOT EXISTS tasks_expiring ON tasks (expires_at) WHERE status = 'pending' AND expires_at IS NOT NULL;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS schedule TEXT;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS due_at TIMESTAMPTZ;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS output_parts INT4 NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS error_output_parts INT4 NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX IF NOT EXISTS tasks_of_schedules ON tasks (schedule, due_at) WHERE schedule IS NOT NULL;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS ring INT8 NOT VISIBLE AS (crc32ieee(coalesce(tenant, ''))) VIRTUAL;
CREATE INDEX IF NOT EXISTS tasks_sequence ON tasks (coalesce(tenant, ''), sequence_key, admitted DESC, id)
    WHERE sequence_key IS NOT NULL AND status IN ('pending', 'processing');
CREATE INDEX IF NOT EXISTS tasks_concurrency ON tasks (coalesce(tenant, ''), concurrency_key, admitted, priority, id)
    WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'processing');
CREATE INDEX IF NOT EXISTS tasks_depending ON tasks USING GIN (depends_on)
    WHERE depends_on IS NOT NULL AND NOT admitted AND status = 'pending';
CREATE INDEX IF NOT EXISTS tasks_ended ON tasks (status, finished) WHERE finished IS NOT NULL;
DROP INDEX IF EXISTS tasks@tasks_finished;

-- What version 6 has more than version 5.
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS batch TEXT;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS depends_batch TEXT;
ALTER TABLE tasks ADD COLUMN IF NOT EXISTS superseded BOOL NOT NULL DEFAULT false;
CREATE INDEX IF NOT EXISTS tasks_ready ON tasks (worker_tags, ring, tenant, priority, shard, id)
    WHERE status = 'pending' AND run_at IS NULL
    AND (concurrency_key IS NULL AND sequence_key IS NULL AND depends_on IS NULL AND depends_batch IS NULL OR admitted);
CREATE INDEX IF NOT EXISTS tasks_waiting ON tasks (id) WHERE status = 'pending' AND run_at IS NULL
    AND (concurrency_key IS NOT NULL OR sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL)
    AND NOT admitted;
DROP INDEX IF EXISTS tasks@tasks_claim;
DROP INDEX IF EXISTS tasks@tasks_claimable;
DROP INDEX IF EXISTS tasks@tasks_gated;
CREATE INDEX IF NOT EXISTS tasks_batch ON tasks (coalesce(tenant, ''), batch, status, id)
    WHERE batch IS NOT NULL AND NOT superseded;
CREATE INDEX IF NOT EXISTS tasks_batch_waiting ON tasks (coalesce(tenant, ''), batch, id)
    WHERE batch IS NOT NULL AND status = 'pending' AND run_at IS NULL AND NOT admitted
    AND (sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL);
CREATE INDEX IF NOT EXISTS tasks_depending_batch ON tasks (coalesce(tenant, ''), depends_batch, depends_any, depends_ended, id)
    WHERE depends_batch IS NOT NULL AND NOT admitted AND status = 'pending' AND run_at IS NULL;

-- Each task's outputs from their beginnings to their ends.
CREATE VIEW IF NOT EXISTS whole_outputs AS
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

-- Old versions of rows slow scans until they are collected, and a queue makes little else: collected after a minute. A changefeed
-- that was away for longer begins anew, which loses nothing. Scheduled backups protect what they need by themselves.
--
-- Neighbours with the same zone share a range while they are small, so that all of this begins as one: inserting, claiming and
-- finishing a task each happen in one place, without a second phase whose traces SKIP LOCKED would take for locks, and a node
-- that dies takes one lease with it. CockroachDB splits it by size and load when there is more.
ALTER TABLE codes CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE wakeup_feeds CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE workers CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE continuum_schema CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE limits CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE duties CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE permits CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE schedules CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE tasks CONFIGURE ZONE USING gc.ttlseconds = 60;
ALTER TABLE task_outputs CONFIGURE ZONE USING gc.ttlseconds = 60;

INSERT INTO continuum_schema (version) VALUES (6) ON CONFLICT (version) DO NOTHING;
