"""The bridge between psycopg and Trio: the only module that knows asyncio.

Connecting is rare and wants much (several hosts, name resolution, TLS), so psycopg's own asyncio code does it, on a
trio-asyncio loop that lives just as long. Afterwards a connection waits for its socket natively on Trio: on one machine
9,600 round trips/s against 3,370 through the loop, and a deadline that is one. psycopg would ask the server politely to
cancel and wait up to 10 s for that; here a cancelled wait drops the socket at once, because a protocol left in the middle
of a query cannot be used again anyhow.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from functools import cache, partial
from typing import Any, TypeVar, cast

import psycopg
import trio
from psycopg import errors, waiting
from psycopg._conninfo_attempts import conninfo_attempts
from psycopg.abc import Buffer, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.types.datetime import TimestampLoader, TimestamptzLoader

RV = TypeVar("RV")


class TrioConnection(psycopg.AsyncConnection[TupleRow]):
    """A psycopg connection whose waits are Trio's. Used by one task at a time. A cancelled call closes it, unless it only waits
    for notifications with a timeout."""

    async def wait(self, gen: PQGen[RV], interval: float = 0.0, timeout: float | None = None) -> RV:  # noqa: ASYNC109
        """Drive a protocol generator of psycopg to its end; overrides `psycopg.AsyncConnection.wait`.

        timeout: seconds, after which psycopg's `_WaitTimeout` is raised, with the connection still usable. psycopg gives one
        only where nothing is under way: when it waits for notifications.
        """
        if timeout is None:
            return await self._drive(gen)
        with trio.move_on_after(timeout):
            return await self._drive(gen, harmless=True)
        raise errors._WaitTimeout("wait timeout expired")

    async def _drive(self, gen: PQGen[RV], *, harmless: bool = False) -> RV:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            wanted = next(gen)
            while True:
                if wanted == waiting.WAIT_R:
                    await trio.lowlevel.wait_readable(self.pgconn.socket)
                    ready = waiting.READY_R
                elif wanted == waiting.WAIT_W:
                    await trio.lowlevel.wait_writable(self.pgconn.socket)
                    ready = waiting.READY_W
                else:
                    ready = await _readable_or_writable(self.pgconn.socket)
                wanted = gen.send(ready)
        except StopIteration as done:
            return cast("RV", done.value)
        except psycopg.Error:
            # The server's answer was read to its end, or the connection is broken in the middle of something.
            if self.pgconn.transaction_status in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN):
                self.pgconn.finish()
            raise
        except BaseException:
            if not harmless:
                self.pgconn.finish()
            raise


class _AnyTimestamp(TimestampLoader):
    """A row may hold `infinity`, or a year that Python does not reach: it is read as the last, or first, that it does."""

    def load(self, data: Buffer) -> dt.datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _extreme(data)


class _AnyTimestamptz(TimestamptzLoader):
    """The same with a time zone."""

    def load(self, data: Buffer) -> dt.datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _extreme(data).replace(tzinfo=dt.UTC)


def _extreme(data: Buffer) -> dt.datetime:
    text = bytes(data)
    first = text.startswith(b"-") or text.endswith(b"BC")
    return dt.datetime.min if first else dt.datetime.max  # noqa: DTZ901 - the caller gives it one, where there is one


async def _readable_or_writable(descriptor: int) -> waiting.Ready:
    ready = waiting.READY_NONE

    async def watch(wait: Any, state: waiting.Ready, scope: trio.CancelScope) -> None:
        nonlocal ready
        await wait(descriptor)
        ready = waiting.Ready(ready | state)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, trio.lowlevel.wait_readable, waiting.READY_R, nursery.cancel_scope)
        nursery.start_soon(watch, trio.lowlevel.wait_writable, waiting.READY_W, nursery.cancel_scope)
    return ready


async def connect(conninfo: str) -> TrioConnection:
    """Open a connection in autocommit mode, trying the hosts of `conninfo` as psycopg does.

    Raises `psycopg.Error`. Cancelling it leaves nothing behind.
    """
    trio_asyncio = bridge()
    failure: psycopg.Error | None = None
    conninfo = await _resolved(conninfo)
    async with trio_asyncio.open_loop():
        opening = partial(TrioConnection.connect, conninfo, autocommit=True)
        try:
            connection = cast("TrioConnection", await trio_asyncio.aio_as_trio(opening)())
            connection.adapters.register_loader("timestamp", _AnyTimestamp)
            connection.adapters.register_loader("timestamptz", _AnyTimestamptz)
            return connection
        except psycopg.Error as error:  # not through the loop's nurseries, which would wrap it in groups
            failure = error
    raise failure


@cache
def bridge() -> Any:
    """trio-asyncio, imported not before it is needed: that changes asyncio for the whole process.

    Whoever is not within Trio keeps the event loop policy that was there. trio-asyncio would have every `asyncio.run` of the
    program start Trio, but for threads that set a policy after it was imported.
    """
    import trio_asyncio
    from trio_asyncio import _loop

    type(_loop._faked_policy).policy = _loop._original_policy
    # It replaces this function in `asyncio`; psycopg keeps the one it found when it was imported.
    vars(waiting)["get_running_loop"] = asyncio.get_running_loop
    return trio_asyncio


async def _resolved(conninfo: str) -> str:
    """The same with the addresses of all hosts, in the order in which to try them, looked up by psycopg's own code in a thread
    that nobody has to wait for: a lookup may take longer than any deadline, and asyncio waits for its threads.

    Raises `psycopg.OperationalError` when no host has an address.
    """
    parameters = conninfo_to_dict(conninfo)
    attempts = await trio.to_thread.run_sync(conninfo_attempts, parameters, abandon_on_cancel=True)
    several: dict[str, Any] = {
        name: ",".join(str(attempt.get(name) or "") for attempt in attempts)
        for name in ("host", "hostaddr", "port")
        if any(attempt.get(name) for attempt in attempts)
    }
    if "load_balance_hosts" in parameters:
        several["load_balance_hosts"] = "disable"  # their order is random already
    return make_conninfo(conninfo, **several)
