"""A bounded pool of connections on Trio. psycopg_pool needs an asyncio loop, which the hot path does without.

A connection is used by one task at a time, and goes back only in a state in which the next may use it. A connection that
was lost tells that the others may be lost too: the idle ones are dropped with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import trio
from psycopg.pq import TransactionStatus

from continuum.db.connection import TrioConnection

Connect = Callable[[], Awaitable[TrioConnection]]


class ConnectionPool:
    """At most `size` connections, opened on demand. `aclose` it."""

    def __init__(self, connect: Connect, size: int) -> None:
        self._connect = connect
        self._places = trio.Semaphore(size)
        self._idle: list[TrioConnection] = []
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
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return await self._connect()

    def _put_back(self, connection: TrioConnection) -> None:
        if connection.closed:
            self.drop_idle()
        elif self._closed or connection.info.transaction_status != TransactionStatus.IDLE:
            discard(connection)
        else:
            self._idle.append(connection)

    def drop_idle(self) -> None:
        """Close every connection that nobody uses now."""
        while self._idle:
            discard(self._idle.pop())

    def close(self) -> None:
        """Close the idle connections now, and the others when they come back."""
        self._closed = True
        self.drop_idle()


def discard(connection: psycopg.AsyncConnection[object] | TrioConnection) -> None:
    """Close a connection at once, without a word to the server that could block."""
    connection.pgconn.finish()
