"""Wake-ups by LISTEN, which ask producers to notify only while a worker waits for work.

NOTIFY takes one lock for the whole server before the commit and holds it until the commit is on disk, so that producers who
would share a flush queue for it. So a worker asks to be told, by an advisory lock that it holds on its listening connection,
and the triggers of sql/postgres.sql notify of work only while somebody holds that lock. Where producers queue to tell it, a
worker lets go of the lock and looks by the clock until a look finds nothing; without a free slot it does not even look.

Who asks has missed what was committed before, and looks once more. It may miss what is still to be committed, too: a
transaction that found nobody asking keeps silent, and holds a lock until it has ended. Until none of those is left,
the worker looks by the clock beside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import trio

from continuum.db.connection import TrioConnection
from continuum.db.polling import QUICKEST, SLOWER, wake_for_everything
from continuum.db.protocol import Listener
from continuum.model import Wakeup

CHANNEL = "tasks_updated"
ASKING = 7265081935128
"""The lock that is held, shared, by every worker that asks to be told of work; the triggers know it."""
SILENT = 7265081935129
"""The lock that is held, shared, by every transaction that brings work and found nobody asking; the triggers know it."""
PROOF_OF_LIFE = 10.0
"""Seconds without a notification after which the connection is asked whether it still works."""
ANSWER = 5.0
"""Seconds for the answer."""
OFTEN = 5
"""After so many notifications of work ..."""
WITHIN = 0.2
"""... in at most so many seconds, it is seen whether those who notify queue for it."""
LONGEST_LOOK = 0.25
"""Seconds between two looks for what silent transactions may commit, when they take long."""

ASK = f"SELECT pg_try_advisory_lock_shared({ASKING})"
"""Ask to be told. False while a trigger looks whether anybody does, which takes it some microseconds."""

ASK_NO_MORE = f"SELECT pg_advisory_unlock_shared({ASKING})"
"""Let producers keep silent."""

ALL_TELL = f"SELECT CASE WHEN pg_try_advisory_lock({SILENT}) THEN pg_advisory_unlock({SILENT}) ELSE false END"
"""Whether no transaction is under way that brings work and will not tell of it."""

QUEUES = """
SELECT count(*) > 1 FROM pg_locks
WHERE locktype = 'object' AND classid = 'pg_database'::regclass AND objid = 0 AND NOT granted
"""
"""Whether transactions wait for each other to notify. What they wait for is the object 0 of no database."""

_WAKEUPS = {wakeup.value: wakeup for wakeup in Wakeup}


class Claimed:
    """What the claims have found so far, all together."""

    def __init__(self) -> None:
        self.tasks = 0
        self.wanting = 0
        """Claims that found less than was wanted: the worker waits for work after each."""
        self._waiting: set[trio.CancelScope] = set()

    def note(self, found: int, wanted: int) -> None:
        self.tasks += found
        if found < wanted:
            self.wanting += 1
            for scope in self._waiting:
                scope.cancel()

    @contextmanager
    def until_wanting(self) -> Iterator[None]:
        """A block that ends, at the latest, when a claim finds less than was wanted."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                yield
            finally:
                self._waiting.remove(scope)


@dataclass(slots=True)
class Notifications:
    """One worker's listening connection."""

    connection: TrioConnection
    listener: Listener
    claimed: Claimed
    _asking: bool = False
    _told_at: deque[float] = field(default_factory=lambda: deque(maxlen=OFTEN))

    async def pass_on(self) -> None:
        """Wake the listener for whatever concerns it; never return. Raises `psycopg.Error` or `trio.TooSlowError`."""
        await self._execute(f"LISTEN {CHANNEL}")
        all_tell = await self._ask()
        wake_for_everything(self.listener)
        while True:
            await self._be_told(all_tell)
            await self._ask_no_more()
            await self._look_by_the_clock()
            all_tell = await self._ask()
            self.listener.wake(Wakeup.PENDING)

    async def _ask(self) -> bool:
        """Ask to be told; return whether everybody tells, from now on."""
        self._asking = self._asking or await self._execute(ASK)
        return self._asking and await self._execute(ALL_TELL)

    async def _ask_no_more(self) -> None:
        if self._asking:
            await self._execute(ASK_NO_MORE)
            self._asking = False

    async def _be_told(self, all_tell: bool) -> None:
        """Pass on what is told, and look by the clock until everybody tells; return when producers queue to tell it."""
        pause = QUICKEST
        while True:
            if await self._hear(PROOF_OF_LIFE if all_tell else pause):
                if await self._execute(QUEUES):
                    return
            elif all_tell:
                await self._prove_life()
            else:
                all_tell = await self._ask()
                self.listener.wake(Wakeup.PENDING)
                pause = min(LONGEST_LOOK, pause * SLOWER)

    async def _look_by_the_clock(self) -> None:
        """Wake for work every `QUICKEST`, but for the time when every slot is taken; return when a look finds nothing."""
        found = -1
        while found != self.claimed.tasks:
            found = self.claimed.tasks
            await self._hear(QUICKEST)
            wanting = self.claimed.wanting
            self.listener.wake(Wakeup.PENDING)
            while wanting == self.claimed.wanting:
                with self.claimed.until_wanting():
                    await self._hear(PROOF_OF_LIFE)
                if wanting == self.claimed.wanting:
                    await self._prove_life()

    async def _hear(self, seconds: float) -> bool:
        """Pass on what is told for so many seconds; return at once, and True, when work is told of often."""
        often = False
        with trio.CancelScope() as scope:
            async with aclosing(self.connection.notifies(timeout=seconds)) as notifications:
                async for notification in notifications:
                    wakeup = _WAKEUPS.get(notification.payload, Wakeup.PENDING)
                    self.listener.wake(wakeup)
                    if wakeup is Wakeup.PENDING:
                        self._told_at.append(trio.current_time())
                        if len(self._told_at) == OFTEN and self._told_at[-1] - self._told_at[0] < WITHIN:
                            self._told_at.clear()
                            often = True
                            scope.cancel()  # not before what came with it has been passed on
        return often

    async def _prove_life(self) -> None:
        await self._execute("SELECT 1")

    async def _execute(self, statement: str) -> bool:
        """Run a statement in time; return whether its first field is true."""
        with trio.fail_after(ANSWER):
            cursor = await self.connection.execute(statement.encode())
            return cursor.description is not None and (await cursor.fetchall())[0][0] is True
