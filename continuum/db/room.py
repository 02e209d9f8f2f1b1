"""Whether the queue has room for more tasks: the limits on pending ones, as a process that submits knows them.

Nothing is counted for each submission: a count reads the index entry of every pending task, and a counter in a row would be one
that all who submit and all who claim write. So each process counts now and then, all tenants at once, and adds what it submitted
itself since. It never goes beyond a limit alone; several together may, by what the others submitted since its last count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from continuum.db.errors import OutcomeUnknown, QueueFull
from continuum.model import NewTask

QUEUE = ("queue", "")
EVERY_TENANT = ("tenant", "*")
KNOWN_FOR = 1.0
"""Seconds until limits are read again, and until tasks are counted again while there is room."""
FULL_FOR = 0.1
"""Seconds until tasks are counted again where there seems to be no room: some may have begun."""
PART_OF_THE_TIME = 0.05
"""For how much of the time a process may have the database count: a long queue is counted more seldom."""

Scope = tuple[str, str]
"""Of LIMITS: its scope and name."""
Limits = Mapping[Scope, int]


class Room:
    """What one process knows.

    read_limits, count: ask the database for the limits, and for the number of pending tasks of each tenant.
    """

    def __init__(
        self, read_limits: Callable[[], Awaitable[Limits]], count: Callable[[], Awaitable[Mapping[str, int]]]
    ) -> None:
        self._read_limits = read_limits
        self._count = count
        self._limits: Limits = {}
        self._limits_at = -math.inf
        self._counted: Mapping[Scope, int] = {}
        self._counted_at = -math.inf
        self._took = 0.0
        self._under_way: Counter[Scope] = Counter()
        self._since: Counter[Scope] = Counter()
        """Submitted since the last count began."""
        self._lock = trio.Lock()

    @asynccontextmanager
    async def taken_by(self, tasks: Sequence[NewTask]) -> AsyncIterator[None]:
        """Around the submission of tasks: their places are taken meanwhile. Raises `QueueFull`."""
        if not await self._known_limits():
            yield
            return
        wanted = _by_scope(Counter(task.tenant or "" for task in tasks))
        if self._refusal(wanted) is not None or self._age() > self._good_for(KNOWN_FOR):
            await self._count_again(wanted)
        if (refusal := self._refusal(wanted)) is not None:
            raise refusal
        self._under_way.update(wanted)
        try:
            yield
        except OutcomeUnknown:
            self._since.update(wanted)
            raise
        else:
            self._since.update(wanted)
        finally:
            self._under_way.subtract(wanted)

    async def _known_limits(self) -> Limits:
        if trio.current_time() - self._limits_at >= KNOWN_FOR:
            async with self._lock:  # who comes first reads, and nobody goes on before he knows
                if trio.current_time() - self._limits_at >= KNOWN_FOR:
                    self._limits = await self._read_limits()
                    self._limits_at = trio.current_time()
        return self._limits

    def _age(self) -> float:
        return trio.current_time() - self._counted_at

    def _good_for(self, seconds: float) -> float:
        """For how long a count holds that should for so many seconds."""
        return max(seconds, self._took / PART_OF_THE_TIME)

    async def _count_again(self, wanted: Mapping[Scope, int]) -> None:
        """Count, unless somebody has just done so."""
        async with self._lock:
            if self._age() <= self._good_for(FULL_FOR if self._refusal(wanted) is not None else KNOWN_FOR):
                return
            began = trio.current_time()
            since, self._since = self._since, Counter()
            try:
                self._counted = _by_scope(await self._count())
            except BaseException:
                self._since.update(since)
                raise
            self._counted_at = trio.current_time()
            self._took = self._counted_at - began

    def _refusal(self, wanted: Mapping[Scope, int]) -> QueueFull | None:
        """Why there is no room."""
        for scope, count in wanted.items():
            default = self._limits.get(EVERY_TENANT) if scope != QUEUE else None
            most = self._limits.get(scope, default)
            pending = self._counted.get(scope, 0) + self._since[scope] + self._under_way[scope]
            if most is not None and pending + count > most:
                again_in = math.ceil(max(1.0, self._good_for(FULL_FOR) - self._age()))
                return QueueFull(None if scope == QUEUE else scope[1], most, pending, count, again_in)
        return None


def _by_scope(tenants: Mapping[str, int]) -> dict[Scope, int]:
    """Numbers of tasks by tenant, and of all together."""
    return {QUEUE: sum(tenants.values())} | {("tenant", tenant): count for tenant, count in tenants.items()}
