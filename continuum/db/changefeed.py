"""Wake-ups on CockroachDB by a changefeed, for as many workers as the cluster should serve with one.

A sinkless changefeed streams what becomes pending over a connection of its own. The documentation advises against more
than 80 of them in a cluster, so the workers share WAKEUP_FEEDS places, each held under a lease; who has none is woken by
the clock. A feed proves that it lives by its resolved messages, about one in three seconds. One that ends or falls silent
is opened again on whichever node answers, from where it stood.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import psycopg
import structlog
import trio

from continuum.db.classify import describe
from continuum.db.cockroach_fair import FairClaims, entry_of
from continuum.db.dialect import Session
from continuum.db.errors import DatabaseUnavailable, NotPermitted
from continuum.db.pool import discard
from continuum.db.protocol import Listener
from continuum.model import Wakeup

log = structlog.get_logger(__name__)

SILENCE = 8.0
"""Seconds without any message after which a feed is dead."""
HEARD_LATELY = 5.0
"""Seconds after a message for which a feed counts as alive; resolved messages are up to 4.3 s apart."""
FEED_LEASE = 15.0
RENEWAL = 5.0
"""Seconds between two renewals."""
LOOK_FOR_PLACE = 10.0
"""Seconds between two looks for a free place."""
SATURATED_RENEWALS = 3
"""After so many renewals without a free slot, a worker leaves its place to one that waits for work."""
AFTER_REFUSAL = 300.0
"""Seconds before a server that refused a feed for good is asked again."""
GIVE_UP_DEADLINE = 1.0

FEED = """
CREATE CHANGEFEED WITH no_initial_scan, resolved = '1s', min_checkpoint_frequency = '1s', cursor = %(cursor)s
AS SELECT worker_tags AS tags, tenant, priority, shard, id, run_at IS NOT NULL AS parked,
          (concurrency_key IS NOT NULL OR sequence_key IS NOT NULL OR depends_on IS NOT NULL OR depends_batch IS NOT NULL)
              AND NOT admitted AS gated
   FROM tasks WHERE status = 'pending'
"""
"""Stream what becomes pending. Claims, heartbeats and outcomes are left out by the server."""

NOW = "SELECT cluster_logical_timestamp()::text"
"""Where a feed begins that has not stood anywhere."""

ALLOW_FEEDS = "SET CLUSTER SETTING kv.rangefeed.enabled = true"
"""Feeds need rangefeeds, which are off by default."""

TAKE_PLACE = """
WITH free AS (
    SELECT p.place FROM generate_series(1, %(feeds)s) AS p (place) LEFT JOIN wakeup_feeds AS f ON f.place = p.place
    WHERE f.place IS NULL OR f.expires_at < now()
    ORDER BY random() LIMIT 1
)
INSERT INTO wakeup_feeds AS held (place, worker_id, expires_at)
SELECT place, %(worker)s, now() + %(lease)s * interval '1 second' FROM free
ON CONFLICT (place) DO UPDATE SET worker_id = excluded.worker_id, expires_at = excluded.expires_at
WHERE held.expires_at < now()
RETURNING place
"""
"""Take one of the places for a feed, if one is free."""

KEEP_PLACE = """
UPDATE wakeup_feeds SET expires_at = now() + %(lease)s * interval '1 second'
WHERE place = %(place)s AND worker_id = %(worker)s RETURNING place
"""
"""Extend the lease on a place that is still ours."""

LEAVE_PLACE = "DELETE FROM wakeup_feeds WHERE place = %(place)s AND worker_id = %(worker)s"
"""Let another worker have the place."""


class Changefeed:
    """One worker's feed. `keep` is its whole life; `alive` says whether it can be relied on at this time."""

    def __init__(self, session: Session, listener: Listener, claims: FairClaims) -> None:
        self._session = session
        self._listener = listener
        self._claims = claims
        self._heard_at = -SILENCE
        self._cursor: str | None = None
        self._refused = ""

    def alive(self) -> bool:
        """Whether the feed has proved lately that it would tell of work."""
        return trio.current_time() - self._heard_at < HEARD_LATELY

    async def keep(self) -> None:
        """Hold a feed whenever there is a place for it and use for it; never return."""
        while True:
            place = None if self._listener.saturated else await self._take_place()
            if place is None:
                await trio.sleep(LOOK_FOR_PLACE * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                continue
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._feed)
                    await self._hold(place)
                    nursery.cancel_scope.cancel()
            finally:
                self._heard_at = -SILENCE
                with trio.move_on_after(GIVE_UP_DEADLINE, shield=True):
                    await self._try(LEAVE_PLACE, place=place)

    # -- the place ---------------------------------------------------------------------------------------------------

    async def _take_place(self) -> int | None:
        found = await self._try(TAKE_PLACE, feeds=self._session.feeds, lease=FEED_LEASE)
        return found[0][0] if found else None

    async def _hold(self, place: int) -> None:
        """Renew the lease; return when it passed to another worker, or should."""
        saturated = 0
        renewed_at = trio.current_time()
        while trio.current_time() - renewed_at < FEED_LEASE:
            await trio.sleep(RENEWAL)
            saturated = saturated + 1 if self._listener.saturated else 0
            if saturated > SATURATED_RENEWALS:
                return
            found = await self._try(KEEP_PLACE, place=place, lease=FEED_LEASE)
            if found == []:
                return
            if found:
                renewed_at = trio.current_time()

    async def _try(self, statement: str, **parameters: object) -> list[tuple[int, ...]] | None:
        """Run a statement for a place; None when the database does not answer."""
        try:
            return await self._session.run(statement, {"worker": self._listener.worker_id, **parameters})
        except DatabaseUnavailable:
            return None

    # -- the feed ----------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Follow the feed from one node or another; never return."""
        while True:
            pause = random.uniform(0.05, 0.5)  # noqa: S311 - so that many do not come back at once
            try:
                await self._follow()
            except (psycopg.Error, trio.TooSlowError, DatabaseUnavailable) as error:
                if isinstance(error, psycopg.Error) and error.sqlstate is not None:
                    self._cursor = None  # it may be what the server objects to, once it is old
                    if _for_good(error) and not await self._allowed(error):
                        pause = AFTER_REFUSAL
                log.debug("the changefeed ended", error=describe(error))
            self._heard_at = -SILENCE
            await trio.sleep(pause)

    async def _follow(self) -> None:
        with trio.fail_after(SILENCE):
            connection = await self._session.connect()
        heard_before = self._heard_at
        try:
            if self._cursor is None:
                with trio.fail_after(SILENCE):
                    ((self._cursor,),) = await (await connection.execute(NOW)).fetchall()
                self._listener.wake(Wakeup.PENDING)
            rows = connection.cursor().stream(FEED.encode(), {"cursor": self._cursor})
            stream = cast("AsyncGenerator[tuple[Any, ...]]", rows)
            async with aclosing(stream):
                while True:
                    with trio.fail_after(SILENCE):
                        table, _, value = await anext(stream)
                    self._heard_at = trio.current_time()
                    self._refused = ""
                    self._understand(json.loads(value), resolved=table is None)
        except StopAsyncIteration:
            return
        except trio.TooSlowError:
            if self._heard_at == heard_before:
                self._cursor = None  # to catch up from there takes longer than a feed may be silent
            raise
        finally:
            discard(connection)

    def _understand(self, message: dict[str, object], *, resolved: bool) -> None:
        if resolved:
            envelope = message.get("__crdb__", message)
            assert isinstance(envelope, dict)
            self._cursor = str(envelope["resolved"])
        elif message["parked"]:
            self._listener.wake(Wakeup.SCHEDULED)
        elif message["gated"]:
            self._listener.wake(Wakeup.GATED)
        else:
            self._claims.hint(entry_of(message))
            self._listener.wake(Wakeup.PENDING)

    async def _allowed(self, error: psycopg.Error) -> bool:
        """Whether a feed that was refused may be tried again at once, because rangefeeds have been switched on."""
        reason = describe(error)
        if "kv.rangefeed.enabled" in reason:
            try:
                await self._session.run(ALLOW_FEEDS)
            except (psycopg.Error, DatabaseUnavailable, NotPermitted) as denied:
                reason = (
                    f"rangefeeds are off, and this user may not switch them on ({describe(denied)}): "
                    f"have an administrator run `{ALLOW_FEEDS}`"
                )
            else:
                log.info("switched rangefeeds on", statement=ALLOW_FEEDS)
                return True
        if reason != self._refused:
            self._refused = reason
            log.warning("no changefeed: looking for work by the clock", reason=reason)
        return False


def _for_good(error: psycopg.Error) -> bool:
    """Whether the server will say the same again: it lacks a setting or a privilege, or does not know changefeeds."""
    return (
        "kv.rangefeed.enabled" in str(error)
        or error.sqlstate == "42501"
        or (error.sqlstate or "").startswith(("0A", "42"))
    )
