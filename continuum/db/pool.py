"""A bounded pool of connections on Trio. psycopg_pool needs an asyncio loop, which the hot path does without.

A connection is used by one task at a time, and goes back only in a state in which the next may use it. One that rested is
looked at before it is used: a server that shuts down has said so on it by then, and one that hangs does not answer. A
connection that was lost, or does not answer, tells that the others may be lost too: the idle ones are dropped with it.
"""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import trio
from psycopg.pq import TransactionStatus

from continuum.db.connection import TrioConnection

RESTED = 10.0
"""Seconds after which an idle connection has to answer before it is used."""
ANSWER = 1.0
"""Seconds that it gets for that: less than a new connection to another node may take."""

Connect = Callable[[], Awaitable[TrioConnection]]


class ConnectionPool:
    """At most `size` connections, opened on demand. `aclose` it."""

    def __init__(self, connect: Connect, size: int) -> None:
        self._connect = connect
        self._places = trio.Semaphore(size)
        self._idle: list[tuple[TrioConnection, float]] = []
        self._closed = False

    @property
    def idle(self) -> int:
        return len(self._idle)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[TrioConnection]:
        """A connection for the length of the block. The caller's deadline covers waiting and connecting.

        Raises what `connect` raises.
        """
        async with self._places:
            connection = await self._take()
            try:
                yield connection
            finally:
                self._put_back(connection)

    async def _take(self) -> TrioConnection:
        while self._idle:
            connection, since = self._idle.pop()
            if await _is_usable(connection, trio.current_time() - since):
                return connection
            discard(connection)
            self.drop_idle()
        return await self._connect()

    def _put_back(self, connection: TrioConnection) -> None:
        if connection.closed:
            self.drop_idle()
        elif self._closed or connection.info.transaction_status != TransactionStatus.IDLE:
            discard(connection)
        else:
            self._idle.append((connection, trio.current_time()))

    def drop_idle(self) -> None:
        """Close every connection that nobody uses now."""
        while self._idle:
            discard(self._idle.pop()[0])

    def close(self) -> None:
        """Close the idle connections now, and the others when they come back."""
        self._closed = True
        self.drop_idle()


async def _is_usable(connection: TrioConnection, rested: float) -> bool:
    if connection.closed or _has_something_to_say(connection):
        return False
    if rested < RESTED:
        return True
    try:
        with trio.fail_after(ANSWER):
            await connection.execute("SELECT 1")
    except (psycopg.Error, trio.TooSlowError):
        return False
    return True


def _has_something_to_say(connection: TrioConnection) -> bool:
    """Whether the server has sent something on an idle connection: that it shuts down, or that it is gone."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


def discard(connection: psycopg.AsyncConnection[object] | TrioConnection) -> None:
    """Close a connection at once, without a word to the server that could block."""
    connection.pgconn.finish()
