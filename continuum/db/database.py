"""The adapter for real databases: each verb of the domain is one method here and one statement in `statements`.

What differs between PostgreSQL and CockroachDB is a `Dialect`, found at the first connection. Every call has a deadline;
conflicts are tried again here, everything else that is transient is told to the caller as `DatabaseUnavailable`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import psycopg
import trio

from continuum.db import admission, circles, outputs, rows, searching, statements, statements_limits
from continuum.db.classify import Kind, classify, describe, without_data
from continuum.db.codes import code_of
from continuum.db.connection import TrioConnection, connect
from continuum.db.database_schedules import SqlSchedules
from continuum.db.dialect import SCHEMA_VERSION, Dialect, Queue, Rows, Session
from continuum.db.errors import (
    DatabaseUnavailable,
    DialectMismatch,
    InvalidTask,
    NotPermitted,
    OutcomeUnknown,
    SchemaMismatch,
)
from continuum.db.insertion import Insertion, check_dependencies, insert_tasks, unique_key_of
from continuum.db.pool import ConnectionPool, discard
from continuum.db.protocol import Listener
from continuum.db.room import Limits, Room
from continuum.db.validation import INTEGER, check_limit, check_new_tasks, is_uuid
from continuum.dependencies import MOST_DEPENDENCIES, fitting, told
from continuum.model import (
    TERMINAL,
    Admission,
    BatchProgress,
    Cancellation,
    Claim,
    CodeRecord,
    CodeSummary,
    Completion,
    DeadLetterFilter,
    DeadLetterPage,
    DeadLetterPlace,
    EndedFilter,
    EndedTask,
    FailureGroup,
    HeartbeatAnswer,
    HeldBack,
    HeldBackBy,
    Lease,
    Limit,
    LimitUse,
    NewTask,
    PartialOutput,
    Promoted,
    QueueDepth,
    Recovered,
    Retried,
    Retry,
    RunningTask,
    Scope,
    Statistics,
    Status,
    TaskFilter,
    TaskRecord,
    TaskSummary,
    Told,
    WaitsFor,
    WebhookDelivery,
    WorkerRecord,
    WorkerReport,
)
from continuum.retry import RetryPolicy, judge_loss, policy_text
from continuum.tags import AFTER_PAUSED, PAUSED, behind, paused_code, paused_tag

DEADLINE = 5.0
"""Seconds for an ordinary call, waiting for a connection and opening it included: well inside the shortest useful lease."""
LONG_DEADLINE = 30.0
"""Seconds for calls that carry much text, or that count."""
SLOWEST_TEXT = 1_000_000.0
"""Characters a second that a call with much text may count on, beyond its DEADLINE."""
NEVER = 2**31
"""More executions of a statement than there will be before it is prepared without being asked."""
READING_CONNECTIONS = 2
"""Connections of one worker that only read, where these are others: a survey never waits for a look at the statistics."""
MIGRATION_DEADLINE = 600.0
STATEMENT_TIMEOUT = "35s"
"""When the server gives up a statement whose client has long gone."""
CONFLICT_TRIES = 6
"""How often a statement that lost a conflict with another is run before the database is called unavailable."""

T = TypeVar("T")

_NOT_YET_THERE = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidCatalogName)
"""What a statement about a moment ago says of a schema that was applied since."""


class SqlDatabase(SqlSchedules):
    """One queue in a PostgreSQL or CockroachDB database; `continuum.db.open_database` makes it.

    deadline, long_deadline: seconds; see the constants of the same names.
    """

    deadline = DEADLINE
    long_deadline = LONG_DEADLINE

    def __init__(
        self,
        conninfo: str,
        dialects: Mapping[str, Dialect],
        wanted: str,
        pool_size: int,
        *,
        wakeup: str = "auto",
        polling_interval: float = 5.0,
        feeds: int = 0,
    ) -> None:
        self._conninfo = conninfo
        self._dialects = dialects
        self._wanted = wanted
        self._dialect: Dialect | None = None
        self._queue: Queue | None = None
        self._session = Session(self._run, self._read, self._connect_in_time, wakeup, polling_interval, feeds)
        connect_to_read = partial(self._connect, to_read=True)
        self._pool = ConnectionPool(self._connect, pool_size)
        # The heartbeat's connections are its own: whatever the others do, it never waits for them.
        self._heartbeat_pool = ConnectionPool(self._connect, 1)
        self._heartbeat_reading_pool = ConnectionPool(connect_to_read, 1)
        self._reading_pool = ConnectionPool(connect_to_read, READING_CONNECTIONS)
        self._room = Room(self._pending_limits, self._pending_by_tenant)

    @property
    def dialect(self) -> str:
        return self._dialect.name if self._dialect else self._wanted

    def close(self) -> None:
        """Drop all connections."""
        for pool in (self._pool, self._reading_pool, self._heartbeat_pool, self._heartbeat_reading_pool):
            pool.close()

    # -- connections -------------------------------------------------------------------------------------------------

    async def _connect(self, *, to_read: bool = False) -> TrioConnection:
        connection = await connect(self._conninfo)
        try:
            self._dialect = self._detect(connection)
            if not self._dialect.prepares_by_itself:
                connection.prepare_threshold = NEVER
            settings = [f"SET statement_timeout = '{STATEMENT_TIMEOUT}'", *self._dialect.prepare_session]
            for statement in settings + (list(self._dialect.prepare_reading) if to_read else []):
                await connection.execute(statement.encode())
        except BaseException:
            discard(connection)
            raise
        return connection

    def _detect(self, connection: TrioConnection) -> Dialect:
        found = "cockroach" if connection.info.parameter_status("crdb_version") else "postgres"
        if self._wanted not in ("auto", found):
            raise DialectMismatch(
                f"DB_DIALECT={self._wanted}, but {connection.info.host or 'the server'} is "
                f"{self._dialects[found].title}: set DB_DIALECT={found} or auto"
            )
        return self._dialects[found]

    async def _run(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        writes: bool = False,
        keyed: bool = False,
        pool: ConnectionPool | None = None,
    ) -> Rows:
        """Run one statement and return its rows, trying again while it loses conflicts.

        keyed: it finds its rows by nothing but their keys, so that one plan serves all values.
        """

        async def body(connection: TrioConnection) -> Rows:
            assert self._dialect is not None
            prepare = True if keyed and not self._dialect.prepares_by_itself else None
            cursor = await connection.execute(self._dialect.says(statement).encode(), parameters, prepare=prepare)
            return await cursor.fetchall() if cursor.description else []

        return await self._with_connection(body, deadline=deadline, writes=writes, pool=pool)

    async def _read(
        self, statement: str, parameters: Mapping[str, Any] | None = None, *, deadline: float | None = None
    ) -> Rows:
        """Run a statement that only reads, and waits for nobody's transaction."""
        apart = (await self._known_dialect()).prepare_reading
        return await self._run(
            statement, parameters, deadline=deadline, pool=self._reading_pool if apart else self._pool
        )

    async def _with_connection(
        self,
        body: Callable[[TrioConnection], Awaitable[T]],
        *,
        deadline: float | None = None,
        writes: bool = False,
        pool: ConnectionPool | None = None,
    ) -> T:
        sent = False
        with _translated(lambda: sent and writes), trio.fail_after(self.deadline if deadline is None else deadline):
            for attempt in range(CONFLICT_TRIES):
                try:
                    async with (pool or self._pool).connection() as connection:
                        sent = True
                        with _dropped_where_its_node_failed(connection):
                            return await body(connection)
                except psycopg.Error as error:
                    kind = classify(error)
                    # A connection that rested in the pool may be dead: what may be repeated gets a second one at once.
                    stale = kind is Kind.UNKNOWN and sent and not writes and attempt == 0
                    if not stale and (kind is not Kind.CONFLICT or attempt == CONFLICT_TRIES - 1):
                        raise
                await trio.sleep(0.01 * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    async def _known_dialect(self) -> Dialect:
        if self._dialect is None:
            await self.ping()
            assert self._dialect is not None
        return self._dialect

    async def _known_queue(self) -> Queue:
        if self._queue is None:
            self._queue = (await self._known_dialect()).open_queue(self._session)
        return self._queue

    # -- the schema --------------------------------------------------------------------------------------------------

    async def migrate(self) -> int:
        async def body(connection: TrioConnection) -> None:
            assert self._dialect is not None
            await connection.execute(b"SET statement_timeout = 0")
            await self._dialect.migrate(connection, self._dialect.schema())
            discard(connection)

        await self._with_connection(body, deadline=MIGRATION_DEADLINE)
        return await self._schema_version()

    async def _schema_version(self) -> int:
        ((version,),) = await self._run(statements.SCHEMA_VERSION)
        return version or 0

    async def check_schema(self) -> None:
        version = await self._schema_version()
        if version < SCHEMA_VERSION:
            raise SchemaMismatch(
                f"the database has schema version {version}, this worker needs {SCHEMA_VERSION}: run `continuum migrate`"
            )

    async def ping(self) -> None:
        await self._run("SELECT 1")

    # -- a worker's verbs --------------------------------------------------------------------------------------------

    async def claim(
        self,
        worker_id: str,
        limit: int,
        *,
        lease: float,
        min_priority: int = 0,
        max_priority: int = 0,
        tags: Sequence[str] = (),
        beyond: int | None = None,
    ) -> Claim:
        lowest = min_priority or INTEGER.start
        if beyond is not None:
            lowest = max(lowest, beyond + 1)
        if lowest not in INTEGER:
            return Claim()
        parameters = {
            "worker": worker_id,
            "limit": limit,
            "lease": lease,
            "min_priority": lowest,
            "max_priority": max_priority or INTEGER.stop - 1,
            "tags": tags,
            "lower": beyond is not None,
        }
        found, again_in = await (await self._known_queue()).claim(parameters)
        return Claim(map(rows.claimed_task, found), again_in)

    async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        parameters = {
            "worker": worker_id,
            **_leases([completion.lease for completion in completions]),
            "statuses": [completion.status.value for completion in completions],
            "exit_codes": [completion.exit_code for completion in completions],
            "outputs": [completion.output for completion in completions],
            "error_outputs": [completion.error_output for completion in completions],
            "last_errors": [completion.last_error for completion in completions],
            "delays": [completion.retry_in for completion in completions],
            "crashes": [completion.crashes for completion in completions],
            "quarantined": [completion.quarantined for completion in completions],
        }
        statement = statements.COMPLETE
        if any(map(outputs.is_long, completions)):
            statement = statements.COMPLETE_LONG
            parameters |= outputs.beginnings(completions) | outputs.rests(completions)
        if retried := [completion.lease for completion in completions if completion.attempt > 1]:
            await self._run(outputs.FORGET, _leases(retried), keyed=True)
        deadline = self._time_for(parameters)
        found = await self._run(statement, parameters, deadline=deadline, writes=True, keyed=True)
        if len(found) < len(completions):
            # Not by `_read`: what an earlier try has under way must be waited for.
            found += await self._run(statements.FIND_STANDING, parameters, deadline=deadline)
        return frozenset(Lease(*row) for row in found)

    def _time_for(self, parameters: Mapping[str, Any]) -> float:
        """Seconds for a call that carries outputs: a node that hangs is noticed soon, a slow network may be slow."""
        texts = (parameters.get(name, ()) for name in ("outputs", "error_outputs", "rest_parts"))
        size = sum(len(text) for text in chain.from_iterable(texts) if text)
        return min(self.long_deadline, self.deadline + size / SLOWEST_TEXT)

    async def release(self, worker_id: str, leases: Sequence[Lease]) -> int:
        ((count,),) = await self._run(statements.RELEASE, {"worker": worker_id, **_leases(leases)}, writes=True)
        return int(count)

    async def release_except(self, worker_id: str, held: Sequence[Lease]) -> int:
        parameters = {"worker": worker_id, **_leases(held)}
        ((count,),) = await self._run(statements.RELEASE_EXCEPT, parameters, writes=True)
        return int(count)

    async def heartbeat(self, worker_id: str, held: Sequence[Lease], *, lease: float) -> HeartbeatAnswer:
        parameters = {"worker": worker_id, "lease": lease, **_leases(held)}
        found = await self._run(statements.HEARTBEAT, parameters, keyed=True, pool=self._heartbeat_pool)
        if len(found) < len(held):
            found += await self._run(statements.FIND_HELD, parameters, pool=self._heartbeat_reading_pool)
        kept = {Lease(task_id, attempt): cancel for task_id, attempt, cancel in found}
        return HeartbeatAnswer(
            lost=frozenset(each for each in held if each not in kept),
            cancelled=frozenset(each for each, cancel in kept.items() if cancel),
        )

    async def progress(self, worker_id: str, written: Sequence[PartialOutput]) -> None:
        parameters = {
            "worker": worker_id,
            **_leases([Lease(each.task_id, each.attempt) for each in written]),
            **outputs.beginnings(written),
            **outputs.rests(written),
        }
        await self._run(statements.PROGRESS, parameters, deadline=self._time_for(parameters))

    async def report(self, worker: WorkerReport) -> bool:
        parameters = {name: getattr(worker, name) for name in WorkerReport.__slots__}
        ((draining,),) = await self._run(statements.REPORT, parameters, pool=self._heartbeat_pool)
        return bool(draining)

    async def sign_off(self, worker_id: str) -> None:
        await self._run(statements.SIGN_OFF, {"worker": worker_id})

    # -- housekeeping ------------------------------------------------------------------------------------------------

    async def promote(self, limit: int = 1000) -> Promoted:
        ((count,),) = await self._run(statements.PROMOTE, {"limit": limit}, writes=True)
        if count == limit:
            return Promoted(count, 0.0)
        ((next_in, expires_in),) = await self._read(statements.NEXT_DUE)
        return Promoted(
            count,
            None if next_in is None else max(0.0, float(next_in)),
            None if expires_in is None else float(expires_in),
        )

    async def cancel_late(self, worker_id: str, limit: int = 1000) -> int:
        ((count,),) = await self._run(statements.CANCEL_LATE, {"worker": worker_id, "limit": limit}, writes=True)
        return int(count)

    async def admit_after(self, ended: Sequence[int]) -> Admission:
        keyed, dependents, batches = await admission.followers(self._read, ended)
        done = await self._admit_decided(dependents)
        for batch, kinds in batches.items():
            async with aclosing(admission.pages_of_dependents(self._read, batch, kinds)) as pages:
                async for page in pages:
                    more = await self._admit_decided(page)
                    done += more
                    if not more.admitted and not more.cancelled:
                        break  # they wait for other things as well; a look finds whoever of those behind them does not
        for first in range(0, len(keyed), admission.PAGE):
            seeds = keyed[first : first + admission.PAGE]
            done += await self._admit(partial(admission.admit, seeds=seeds, candidates=[]))
        return done

    async def _admit_decided(self, tasks: Sequence[admission.Waiting]) -> Admission:
        """Admit or cancel those of these tasks whose dependencies say so."""
        done = Admission(0)
        for part in admission.portions(tasks):
            verdicts = await admission.decided(self._read, part)
            if decided := [each for each in part if each.id in verdicts]:
                done += await self._admit(partial(admission.admit, seeds=[], candidates=decided))
        return done

    async def admit_page(self, below: int | None = None) -> Admission:
        found = await self._read(admission.LOOK, {"below": admission.NEWEST if below is None else below})
        ((gated, parked),) = found
        if not gated:
            return Admission(0, parked=bool(parked))
        admitted, page = await self._admit(partial(admission.admit_page, below=below))
        refused = await circles.in_circles(self._read, page)
        more = await self._admit(partial(admission.refuse, refused=refused)) if refused else Admission(0)
        cancelled = admitted.cancelled + more.cancelled
        return dataclasses.replace(admitted, cancelled=cancelled, parked=bool(parked))

    async def resume_codes(self, limit: int = 1000) -> int:
        end, tag = {"end": AFTER_PAUSED}, PAUSED
        paused: set[str] | None = None
        while found := await self._read(statements.FIND_PARKED, {"after": tag, **end}):
            code_id = paused_code(found[0][0])
            tag = paused_tag(code_id)
            if paused is None:
                paused = {name for (name,) in await self._read(statements.PAUSED_CODES)}
            if code_id not in paused:
                where = {"tag": tag, "end": behind(tag), "limit": limit}
                return len(await self._run(statements.UNPARK, where, deadline=self.long_deadline))
            tag = behind(tag)
        return 0

    async def _admit(self, admit: Callable[[admission.Run], Awaitable[T]]) -> T:
        async def body(connection: TrioConnection) -> T:
            async def run(statement: str, parameters: Mapping[str, Any]) -> Rows:
                return await (await connection.execute(statement.encode(), parameters)).fetchall()

            assert self._dialect is not None
            async with connection.transaction():
                for statement in self._dialect.begin_admission:
                    await connection.execute(statement.encode())
                return await admit(run)

        return await self._with_connection(body)

    async def recover(self, worker_id: str, limit: int = 100, *, quarantine_after: int = 0) -> Recovered:
        if stale := [task_id for (task_id,) in await self._run(statements.FIND_STALE_PERMITS)]:
            await self._run(statements.FREE_STALE_PERMITS, {"ids": stale})
        for resource, number, task_id, most in await self._run(statements.FIND_BEYOND):
            beyond = {"resource": resource, "number": number, "task_id": task_id, "most": most}
            await self._run(statements.MOVE_PERMIT, beyond)
        found = await self._run(statements.EXPIRED_LEASES, {"limit": limit})
        if not found:
            return Recovered()
        losses = [
            judge_loss(task_id, policy, most, tried, crashes, held, quarantine_after)
            for task_id, _, tried, most, policy, crashes, held in found
        ]
        parameters = {
            "worker": worker_id,
            "ids": [row[0] for row in found],
            "attempts": [row[1] for row in found],
            "delays": [loss.verdict.retry_in for loss in losses],
            "notes": [loss.verdict.note for loss in losses],
            "crashes": [loss.crashes for loss in losses],
            "quarantined": [loss.quarantined for loss in losses],
        }
        counts: dict[str, int] = dict(await self._run(statements.RECOVER, parameters, writes=True))
        return Recovered(
            retried=counts.get(Status.PENDING, 0),
            failed=counts.get(Status.FAILED, 0),
            cancelled=counts.get(Status.CANCELLED, 0),
        )

    async def take_duty(self, name: str, worker_id: str, seconds: float) -> bool:
        parameters = {"name": name, "worker": worker_id, "seconds": seconds}
        return bool(await self._run(statements.TAKE_DUTY, parameters))

    async def expire(self, ages: Mapping[Status, float]) -> bool:
        expire = (await self._known_dialect()).expire
        return expire is not None and await expire(self._run, ages)

    async def purge(self, status: Status, older_than: float, limit: int = 1000) -> int:
        parameters = {"status": status.value, "older_than": older_than, "limit": limit}

        async def body(connection: TrioConnection) -> int:
            cursor = await connection.execute(statements.PURGE.encode(), parameters)
            return cursor.rowcount

        return await self._with_connection(body, deadline=self.long_deadline)

    async def ended(self, wanted: EndedFilter, limit: int = 1000, after: Sequence[EndedTask] = ()) -> list[EndedTask]:
        last = max((task.finished for task in after), default=None)
        parameters = {
            "status": wanted.status.value,
            "older_than": wanted.older_than,
            "tenant": wanted.tenant,
            "name": searching.part_of(wanted.name),
            "finished": last,
            "ids": [task.id for task in after if task.finished == last],
            "limit": limit,
        }
        statement = statements.ended(
            of_tenant=wanted.tenant is not None, named=bool(wanted.name), after=last is not None
        )
        return [rows.ended_task(row) for row in await self._read(statement, parameters, deadline=self.long_deadline)]

    async def delete_ended(self, tasks: Sequence[EndedTask]) -> int:
        parameters = {
            "ids": [task.id for task in tasks],
            "attempts": [task.attempt for task in tasks],
            "finished": [task.finished for task in tasks],
        }
        ((count,),) = await self._run(statements.DELETE_ENDED, parameters, deadline=self.long_deadline)
        return int(count)

    async def claim_webhooks(self, limit: int, *, lease: float) -> list[WebhookDelivery]:
        found = await self._run(statements.CLAIM_WEBHOOKS, {"limit": limit, "lease": lease}, writes=True)
        return [rows.webhook_delivery(row) for row in found]

    async def settle_webhook(self, delivery: WebhookDelivery, again_in: float | None) -> bool:
        parameters = {"id": delivery.task_id, "tries": delivery.tries, "again_in": again_in}
        return bool(await self._run(statements.SETTLE_WEBHOOK, parameters))

    async def put_off_webhooks(self, delays: Mapping[WebhookDelivery, float]) -> None:
        parameters = {
            "ids": [delivery.task_id for delivery in delays],
            "tries": [delivery.tries for delivery in delays],
            "delays": list(delays.values()),
        }
        await self._run(statements.PUT_OFF_WEBHOOKS, parameters)

    # -- a producer's verbs ------------------------------------------------------------------------------------------

    async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
        check_new_tasks(tasks)
        if not tasks:
            return []
        codes = [code_of(task) for task in tasks]
        insertions = [Insertion(task, code, unique_key_of(task, code)) for task, code in zip(tasks, codes, strict=True)]
        one_statement = not any(any(each.labels()) for each in insertions)

        async def body(connection: TrioConnection) -> list[int]:
            async with nullcontext() if one_statement else connection.transaction():
                await check_dependencies(connection, tasks)
                return await insert_tasks(connection, insertions)

        try:
            async with self._room.taken_by(tasks):
                return await self._with_connection(body, deadline=self.long_deadline, writes=True)
        except psycopg.Error as error:
            if error.sqlstate is not None and error.sqlstate.startswith(("22", "23", "54")):
                raise InvalidTask(f"the database refused a task: {describe(error)}") from error
            raise

    async def _pending_limits(self) -> Limits:
        return {(scope, name): most for scope, name, most in await self._read(statements.PENDING_LIMITS)}

    async def _pending_by_tenant(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for tenant, count in await self._read(statements.PENDING_BY_TENANT, deadline=self.long_deadline):
            counts[tenant] += count
        return counts

    async def cancel(self, task_id: int) -> Cancellation:
        found = await self._run(statements.CANCEL, {"id": task_id, "worker": "client"}, writes=True)
        if found:
            return Cancellation.CANCELLED if found[0][0] == Status.CANCELLED else Cancellation.REQUESTED
        return Cancellation.FINISHED if await self.fetch([task_id]) else Cancellation.UNKNOWN

    async def retry(self, task_id: int) -> Retried:
        parameters = {"id": task_id, **await self._copies_ahead([task_id])}
        if submitted := await self._copy(statements.RETRY, parameters):
            return Retried(Retry.SUBMITTED, submitted[0])
        found = await self._run(statements.FIND_RETRY, {"id": task_id})
        if not found:
            return Retried(Retry.UNKNOWN)
        ((copy,),) = found
        return Retried(Retry.OPEN if copy is None else Retry.ALREADY, copy)

    async def _copy(self, statement: str, parameters: Mapping[str, Any]) -> list[int]:
        """Submit copies of tasks, which count in their batches from then on; return the copies' ids."""

        async def body(connection: TrioConnection) -> list[int]:
            async with connection.transaction():
                made = await (await connection.execute(statement.encode(), parameters)).fetchall()
                copies = [task_id for (task_id,) in made]
                if copies:
                    await connection.execute(statements.SUPERSEDE.encode(), {"copies": copies})
                return copies

        return await self._with_connection(body, deadline=self.long_deadline, writes=True)

    async def _copies_ahead(self, task_ids: Sequence[int]) -> dict[str, list[int]]:
        """The last copies of what tasks depend on that are to be tried again: these wait for those."""
        ids = [task_id for (task_id,) in await self._run(statements.DEPENDENCIES_OF, {"ids": list(task_ids)})]
        last: dict[int, int] = {}
        originals = {task_id: task_id for task_id in ids}
        while ids and (found := await self._run(statements.COPIES_OF, {"ids": ids})):
            originals = {copy: originals[original] for original, copy in found}
            last |= {original: copy for copy, original in originals.items()}
            ids = list(originals)
        return {"originals": list(last), "copies": list(last.values())}

    async def batch(self, tenant: str | None, name: str) -> BatchProgress:
        parameters = {"tenant": tenant or "", "batch": name}
        found = await self._read(statements.BATCH, parameters, deadline=self.long_deadline)
        return BatchProgress(name, **dict(found))

    async def dependencies(self, task_id: int) -> Told:
        found = await self._read(statements.DEPENDS_ON, {"id": task_id})
        tenant, asked, batch = found[0] if found else ("", [], None)
        ids = [each for each in asked if each is not None]
        if batch is not None:
            of_batch = {"tenant": tenant, "batch": batch, "limit": MOST_DEPENDENCIES}
            ids += [each for (each,) in await self._read(statements.BATCH_IDS, of_batch) if each not in ids]
        rows = [row for row in await self._read(statements.DEPENDENCIES, {"ids": ids}) if row[0] == tenant]
        sizes = {each: size for _, each, _, status, _, size in rows if status in TERMINAL}
        fit = fitting(ids, sizes)
        outputs = await self._read(statements.OUTPUTS, {"ids": fit}, deadline=self.long_deadline)
        dependencies = told(ids, {each: (name, status, code) for _, each, name, status, code, _ in rows}, dict(outputs))
        return Told(dependencies, None if batch is None else await self.batch(tenant, batch))

    async def limits(self) -> list[Limit]:
        return [Limit(Scope(scope), *values) for scope, *values in await self._run(statements.LIMITS)]

    async def limit_uses(self, limit: int = 200) -> list[LimitUse]:
        found = await self._read(statements_limits.LIMIT_USES, {"limit": limit}, deadline=self.long_deadline)
        return [LimitUse(Limit(Scope(row[0]), *row[1:8]), row[8], row[9]) for row in found]

    async def held_back(self) -> list[HeldBack]:
        found = await self._read(statements_limits.HELD_BACK, deadline=self.long_deadline)
        return [HeldBack(HeldBackBy(reason), tenants, tasks) for reason, tenants, tasks in found]

    async def waits_for(self, task_id: int) -> WaitsFor | None:
        found = await self._read(statements_limits.WAITS_FOR, {"id": task_id})
        if not found:
            return None
        reason = HeldBackBy(found[0][0]) if found[0][0] else None
        if reason is not HeldBackBy.OTHER_TASKS:
            return WaitsFor(reason)
        others = await self._read(statements_limits.OTHERS, {"id": task_id})
        return WaitsFor(reason, tuple(other for (other,) in others))

    async def set_limit(self, limit: Limit) -> None:
        check_limit(limit)
        await self._run(statements.SET_LIMIT, dataclasses.asdict(limit))

    async def clear_limit(self, scope: Scope, name: str) -> bool:
        return bool(await self._run(statements.CLEAR_LIMIT, {"scope": scope, "name": name}))

    async def drain(self, worker_id: str, draining: bool = True) -> bool:
        return bool(await self._run(statements.DRAIN, {"worker": worker_id, "draining": draining}))

    async def dead_letters(self, wanted: DeadLetterFilter, before: DeadLetterPlace | None = None) -> DeadLetterPage:
        if wanted.code_id is not None and not is_uuid(wanted.code_id):
            return DeadLetterPage((), None)
        conditions = searching.dead_letter_conditions(wanted)
        parameters = conditions | (before or searching.NEWEST)._asdict()
        found = await self._read(statements.dead_letters(conditions), parameters, deadline=self.long_deadline)
        return rows.dead_letter_page(found, statements.DEAD_LETTERS_SEEN)

    async def retry_many(self, task_ids: Sequence[int]) -> list[int]:
        parameters = {"ids": list(task_ids), **await self._copies_ahead(task_ids)}
        return await self._copy(statements.RETRY_MANY, parameters)

    async def store_code(self, code: str, requirements: str | None = None, retry: RetryPolicy | None = None) -> str:
        task = NewTask(code=code, requirements=requirements, retry=retry)
        check_new_tasks([task])
        row = code_of(task)
        assert row is not None
        parameters = {
            "id": row.id,
            "code": row.text,
            "requirements": row.requirements,
            "retry": retry and policy_text(retry),
        }
        await self._run(statements.STORE_CODE, parameters, deadline=self.long_deadline)
        return row.id

    async def fetch(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        found = await self._read(statements.FETCH, {"ids": list(task_ids)}, deadline=self.long_deadline)
        records = {record.id: record for record in map(rows.task_record, found)}
        return [records[task_id] for task_id in task_ids if task_id in records]

    async def still_open(self, task_ids: Sequence[int]) -> frozenset[int]:
        return frozenset(row[0] for row in await self._read(statements.STILL_OPEN, {"ids": list(task_ids)}))

    async def statistics(self, *, latest: bool = False) -> Statistics:
        as_of = "" if latest else (await self._known_dialect()).as_of
        return Statistics(*await self._count(statements.statistics, as_of))

    async def oldest_pending(self, *, latest: bool = False) -> float | None:
        as_of = "" if latest else (await self._known_dialect()).as_of
        (seconds,) = await self._count(statements.oldest_pending, as_of)
        return None if seconds is None else max(0.0, seconds)

    async def _count(self, statement: Callable[[str], str], as_of: str) -> tuple[Any, ...]:
        """The one row of a statement about a moment; about now where the schema was not there at that moment."""
        try:
            (row,) = await self._read(statement(as_of), deadline=self.long_deadline)
        except (SchemaMismatch, DatabaseUnavailable) as error:
            if not as_of or not isinstance(error.__cause__, _NOT_YET_THERE):
                raise
            (row,) = await self._read(statement(""), deadline=self.long_deadline)
        return row

    async def workers(self) -> list[WorkerRecord]:
        return [WorkerRecord(*row) for row in await self._read(statements.WORKERS)]

    async def search(self, wanted: TaskFilter) -> list[TaskSummary]:
        for conditions in searching.conditions(wanted):
            parameters = conditions | searching.bounds(wanted)
            found = await self._read(statements.search(conditions), parameters, deadline=self.long_deadline)
            if found:
                return [rows.task_summary(row) for row in found]
        return []

    async def running(self, limit: int = 30, tail: int = 500) -> list[RunningTask]:
        found = await self._read(statements.RUNNING, {"limit": limit, "tail": tail}, deadline=self.long_deadline)
        return [rows.running_task(row) for row in found]

    async def failures(self, since: dt.datetime, limit: int = 50) -> list[FailureGroup]:
        parameters = {"since": since, "limit": limit}
        found = await self._read(statements.FAILURES, parameters, deadline=self.long_deadline)
        return [rows.failure_group(row) for row in found]

    async def depths(self, limit: int = 50) -> list[QueueDepth]:
        found = await self._read(statements.DEPTHS, {"limit": limit}, deadline=self.long_deadline)
        return [QueueDepth(*row) for row in found]

    async def fetch_code(self, code_id: str) -> CodeRecord | None:
        if not is_uuid(code_id):
            return None
        found = await self._read(statements.FETCH_CODE, {"id": code_id}, deadline=self.long_deadline)
        return CodeRecord(*found[0]) if found else None

    async def codes(self, limit: int = 50, after: str | None = None) -> list[CodeSummary]:
        parameters = {"limit": limit, "after": after if after and is_uuid(after) else str(uuid.UUID(int=0))}
        found = await self._read(statements.CODES, parameters, deadline=self.long_deadline)
        return [CodeSummary(*row) for row in found]

    # -- waking up ---------------------------------------------------------------------------------------------------

    async def listen(self, listener: Listener) -> None:
        queue = await self._known_queue()
        with _translated(lambda: False):
            await queue.listen(listener)

    async def _connect_in_time(self) -> TrioConnection:
        with trio.fail_after(self.deadline):
            return await self._connect()


def _leases(leases: Sequence[Lease]) -> dict[str, list[int]]:
    return {"ids": [lease.task_id for lease in leases], "attempts": [lease.attempt for lease in leases]}


@contextmanager
def _dropped_where_its_node_failed(connection: TrioConnection) -> Iterator[None]:
    """Close a connection whose server cannot serve it any more, so that the next call goes to another one. An answer that is
    only about the statement leaves it as it is."""
    try:
        yield
    except psycopg.Error as error:
        if classify(error) in (Kind.UNKNOWN, Kind.UNAVAILABLE):
            discard(connection)
        raise


@contextmanager
def _translated(write_sent: Callable[[], bool]) -> Iterator[None]:
    """Turn the driver's errors, and a deadline that passed, into ours."""
    try:
        yield
    except trio.TooSlowError:
        if write_sent():
            raise OutcomeUnknown("the database did not answer in time; the write may have happened") from None
        raise DatabaseUnavailable("the database did not answer in time") from None
    except psycopg.Error as error:
        kind = classify(error)
        without_data(error)  # also where it is raised again, or shown as the cause
        match kind:
            case Kind.UNKNOWN if write_sent():
                raise OutcomeUnknown(describe(error)) from error
            case Kind.UNAVAILABLE | Kind.UNKNOWN | Kind.CONFLICT:
                raise DatabaseUnavailable(describe(error)) from error
            case Kind.SCHEMA:
                raise SchemaMismatch(
                    f"the database has no schema, or an older one ({describe(error)}): run `continuum migrate`"
                ) from error
            case Kind.FORBIDDEN:
                raise NotPermitted(describe(error)) from error
            case Kind.BUG:
                raise
