-- Continuum's schema for CockroachDB 24.1 and newer.
--
-- `continuum migrate` applies this file statement by statement (CockroachDB changes schemas outside of transactions);
-- `cockroach sql -f sql/cockroach.sql` is as good. It may be applied again, and by several at once.
-- There is no LISTEN here, hence no trigger: workers learn of work by polling, or by a changefeed.

CREATE TABLE IF NOT EXISTS codes (
    id   UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    code TEXT NOT NULL
);

-- One column family, which SKIP LOCKED needs. Ids are unique_rowid(): 64 bits, roughly in order of insertion.
CREATE TABLE IF NOT EXISTS tasks (
    id               INT8 PRIMARY KEY DEFAULT unique_rowid(),
    name             TEXT NOT NULL DEFAULT '',
    description      TEXT,
    started          TIMESTAMP,
    finished         TIMESTAMP,
    locked_at        TIMESTAMP,
    last_error       TEXT,
    priority         INT4 NOT NULL DEFAULT 0,
    status           VARCHAR(50) NOT NULL DEFAULT 'pending',
    payload          JSONB,
    code             UUID REFERENCES codes (id),
    worker_id        TEXT,
    output           TEXT,
    error_output     TEXT,
    exit_code        INT4,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    run_at           TIMESTAMPTZ,
    attempt          INT4 NOT NULL DEFAULT 0,
    released         INT4 NOT NULL DEFAULT 0,
    max_attempts     INT4 NOT NULL DEFAULT 3,
    timeout_s        FLOAT8,
    lease_expires_at TIMESTAMPTZ,
    tenant           TEXT,
    idempotency_key  TEXT,
    cancel_requested BOOL NOT NULL DEFAULT false,
    traceparent      TEXT,
    CONSTRAINT tasks_status_known CHECK (
        status IN ('pending', 'processing', 'completed', 'failed', 'cancelled', 'malicious')
    ),
    -- Claiming: an ordered, limited scan of this index and nothing else. A filter that the index does not answer would make
    -- SKIP LOCKED lock every row it reads.
    INDEX tasks_claim (priority, id) WHERE status = 'pending' AND run_at IS NULL,
    INDEX tasks_scheduled (run_at) WHERE status = 'pending' AND run_at IS NOT NULL,
    INDEX tasks_leases (lease_expires_at) WHERE status = 'processing',
    INDEX tasks_held (worker_id) WHERE status = 'processing',
    INDEX tasks_finished (finished) WHERE finished IS NOT NULL,
    UNIQUE INDEX tasks_idempotency (coalesce(tenant, ''), idempotency_key) WHERE idempotency_key IS NOT NULL
);

-- Index entries of tasks that were claimed long ago slow the claim's scan until they are collected.
ALTER TABLE tasks CONFIGURE ZONE USING gc.ttlseconds = 600;

CREATE TABLE IF NOT EXISTS workers (
    id                 TEXT PRIMARY KEY,
    host               TEXT NOT NULL DEFAULT '',
    pid                INT4 NOT NULL DEFAULT 0,
    version            TEXT NOT NULL DEFAULT '',
    sandbox            TEXT NOT NULL DEFAULT '',
    slots              INT4 NOT NULL DEFAULT 0,
    running            INT4 NOT NULL DEFAULT 0,
    started_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    seen_at            TIMESTAMPTZ NOT NULL DEFAULT now(),
    stopped_at         TIMESTAMPTZ,
    completed          INT8 NOT NULL DEFAULT 0,
    failed             INT8 NOT NULL DEFAULT 0,
    cancelled          INT8 NOT NULL DEFAULT 0,
    execution_seconds  FLOAT8 NOT NULL DEFAULT 0,
    finished_last_hour INT4 NOT NULL DEFAULT 0
);

CREATE TABLE IF NOT EXISTS continuum_schema (
    version    INT4 PRIMARY KEY,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

INSERT INTO continuum_schema (version) VALUES (1) ON CONFLICT (version) DO NOTHING;
