"""CockroachDB: claims from parts of the queue, a changefeed for wake-ups, and a schema applied statement by statement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
import structlog
import trio

from continuum.db.admission import BEGIN_COCKROACH
from continuum.db.changefeed import Changefeed
from continuum.db.classify import describe
from continuum.db.cockroach_fair import FairClaims
from continuum.db.connection import TrioConnection
from continuum.db.dialect import Dialect, Rows, Run, Session
from continuum.db.errors import DatabaseUnavailable, NotPermitted
from continuum.db.polling import wake_at_intervals, wake_for_everything
from continuum.db.protocol import Listener
from continuum.model import Status, Wakeup

log = structlog.get_logger(__name__)

CANCELLATION_INTERVAL = 2.0
"""Seconds between two looks for running tasks of this worker that somebody wants cancelled."""

FIND_CANCELLATION = """
SELECT 1 FROM tasks WHERE worker_id = %(worker)s AND status = 'processing' AND cancel_requested LIMIT 1
"""
"""Whether a task of this worker should be stopped. A partial index answers, which is nearly always empty."""

EXPIRY = """
ALTER TABLE tasks SET (ttl_expiration_expression = $${expression}$$, ttl_job_cron = '@hourly')
"""
"""Row-level TTL for finished tasks. A schema change takes no parameters."""
NO_EXPIRY = "ALTER TABLE tasks RESET (ttl)"

SHOW_SCHEMA = "SELECT create_statement FROM [SHOW CREATE TABLE tasks]"
"""How the table is set up, to change it only where it differs."""

ADDITION = re.compile(r"ALTER TABLE (?P<table>\w+) ADD COLUMN IF NOT EXISTS (?P<column>\w+)")
HAS_COLUMN = """
SELECT 1 FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = %(table)s AND column_name = %(column)s
"""
NEW_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX IF NOT EXISTS (?P<index>\w+) ON (?P<table>\w+)")
OLD_INDEX = re.compile(r"DROP INDEX IF EXISTS (?P<table>\w+)@(?P<index>\w+)")
HAS_INDEX = """
SELECT 1 FROM pg_indexes WHERE schemaname = current_schema() AND tablename = %(table)s AND indexname = %(index)s
"""
"""Whether a column or an index need not be added or dropped: that would take a privilege, even where there is nothing to do."""

OPTIONAL = "CONFIGURE ZONE"
"""A statement of the schema with these words makes things better, and may be left out where the user lacks the privilege."""


class CockroachQueue:
    """Claims from parts of the queue; is told of work by a changefeed, or by the clock."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._claims = FairClaims(session.run, session.read)
        self._lower_claims = FairClaims(session.run, session.read)

    async def claim(self, parameters: Mapping[str, Any]) -> tuple[Rows, float | None]:
        return await (self._lower_claims if parameters["lower"] else self._claims).claim(parameters)

    async def listen(self, listener: Listener) -> None:
        feed = Changefeed(self._session, listener, self._claims)
        wake_for_everything(listener)
        async with trio.open_nursery() as nursery:
            if self._session.wakeup != "poll" and self._session.feeds:
                nursery.start_soon(feed.keep)
            nursery.start_soon(self._look_for_cancellations, listener)
            await wake_at_intervals(listener, self._session.polling_interval, feed.alive)

    async def _look_for_cancellations(self, listener: Listener) -> None:
        while True:
            await trio.sleep(CANCELLATION_INTERVAL)
            if not listener.running:
                continue
            try:
                found = await self._session.read(FIND_CANCELLATION, {"worker": listener.worker_id})
            except DatabaseUnavailable:
                continue  # the heartbeat learns of cancellations, too
            if found:
                listener.wake(Wakeup.CANCEL)


async def migrate(connection: TrioConnection, schema: str) -> None:
    """Apply the schema file. Each statement may be repeated; concurrent changes are waited for by the server."""
    text = "\n".join(line.split("--", 1)[0] for line in schema.splitlines())
    for statement in filter(None, map(str.strip, text.split(";"))):
        column, index, old = (kind.match(statement) for kind in (ADDITION, NEW_INDEX, OLD_INDEX))
        if column and await (await connection.execute(HAS_COLUMN, column.groupdict())).fetchall():
            continue
        if index and await (await connection.execute(HAS_INDEX, index.groupdict())).fetchall():
            continue
        if old and not await (await connection.execute(HAS_INDEX, old.groupdict())).fetchall():
            continue
        try:
            await connection.execute(statement.encode())
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported) as error:
            if OPTIONAL not in statement:
                raise
            log.warning("the schema works without it, but slower", left_out=statement, reason=describe(error))


def expiration(ages: Mapping[Status, float]) -> str:
    """When a task expires that ended in one of these ways; no other ever does."""
    cases = (
        f"WHEN '{status.value}' THEN (finished + INTERVAL '{int(age)} seconds') AT TIME ZONE 'utc'"
        for status, age in ages.items()
    )
    return f"CASE status {' '.join(cases)} END"


async def expire(run: Run, ages: Mapping[Status, float]) -> bool:
    """Set row-level TTL, where it is not set so already; or end it where nothing is to expire. False where the user may not, and
    where there is none."""
    ((schema,),) = await run(SHOW_SCHEMA)
    if not ages:
        if "ttl_expiration_expression" in schema:
            await _end_expiry(run)
        return False
    expression = expiration(ages)
    if expression in schema.replace("\\'", "'"):
        return True
    try:
        await run(EXPIRY.format(expression=expression))
    except NotPermitted as error:
        log.warning("row-level TTL is not this user's to set: workers delete finished tasks", reason=describe(error))
        return False
    log.info(
        "set row-level TTL: the server deletes finished tasks",
        seconds={status.value: age for status, age in ages.items()},
    )
    return True


async def _end_expiry(run: Run) -> None:
    try:
        await run(NO_EXPIRY)
    except NotPermitted as error:
        log.error("row-level TTL goes on deleting tasks: its owner may end it", reason=describe(error), by=NO_EXPIRY)
    else:
        log.info("ended row-level TTL: workers delete finished tasks")


COCKROACH = Dialect(
    name="cockroach",
    title="CockroachDB",
    schema_file="cockroach.sql",
    as_of="AS OF SYSTEM TIME follower_read_timestamp()",
    open_queue=CockroachQueue,
    migrate=migrate,
    begin_admission=BEGIN_COCKROACH,
    # Under READ COMMITTED, and with the lock operator, SKIP LOCKED locks whole parts of the queue.
    prepare_session=(
        "SET default_transaction_isolation = 'serializable'",
        "SET optimizer_use_lock_op_for_serializable = off",
    ),
    # A prepared statement may get a plan for any values, into whose scan LIMIT is not pushed (cockroachdb/cockroach#128704):
    # under SKIP LOCKED it would lock every row that it reads.
    prepares_by_itself=False,
    # Under SERIALIZABLE a read waits for every open transaction that has written what it looks at. Where READ COMMITTED is
    # switched off in the cluster, this is SERIALIZABLE still.
    prepare_reading=("SET default_transaction_isolation = 'read committed'",),
    expire=expire,
    # Else it may read what all workers process, or all permits that are taken, because a plan for any values has nothing better,
    # or because statistics say that there are few. Under SERIALIZABLE that waits for everybody, and is begun again and again.
    by_key=(
        ("tasks", "tasks@{FORCE_INDEX=tasks_pkey,NO_FULL_SCAN}"),
        ("permits", "permits@{FORCE_INDEX=permits_taken,NO_FULL_SCAN}"),
    ),
)
