"""The pool of started sandboxes: one task at a time in each, started on demand, kept warm, removed when idle.

What to do is decided in synchronous methods; the slow work (cold starts, removals) runs in the pool's own nursery.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from continuum.sandbox.protocol import Backend, BackendUnavailable, Sandbox

log = structlog.get_logger(__name__)

PARALLEL_STARTS = 4
"""Cold starts at once: more only queue up inside the container engine and slow each other down."""
START_DEADLINE = 60.0
"""Seconds for one cold start; an engine that takes longer is treated as unavailable."""
REMOVE_DEADLINE = 15.0
"""Seconds for a removal when the worker is shutting down; the sandbox ends by itself when its worker is gone."""


@dataclass(slots=True)
class _Idle:
    sandbox: Sandbox
    since: float


class SandboxPool:
    """Hands out sandboxes. Use it inside the `open_pool` that made it. At most `size` exist at any time."""

    def __init__(self, backend: Backend, size: int, nursery: trio.Nursery) -> None:
        self._backend = backend
        self._size = size
        self._nursery = nursery
        self._idle: list[_Idle] = []
        self._busy = 0
        self._starting = 0
        self._waiting = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._starts = trio.CapacityLimiter(PARALLEL_STARTS)
        self._failure: BackendUnavailable | None = None
        self.cold_starts = 0

    @property
    def idle(self) -> int:
        """Started sandboxes that run nothing."""
        return len(self._idle)

    @property
    def total(self) -> int:
        """All sandboxes, those being started included."""
        return len(self._idle) + self._busy + self._starting

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """A sandbox to run one script in. It goes back to the pool when the block ends well, and is removed when
        the block raises or is cancelled. Raises `BackendUnavailable` when none can be started."""
        sandbox = await self._take()
        try:
            yield sandbox
        except BaseException:
            self._busy -= 1
            self._remove_soon(sandbox)
            raise
        self._busy -= 1
        self._idle.append(_Idle(sandbox, trio.current_time()))
        self._changed.unpark()

    async def warm(self, count: int = 1) -> None:
        """Start sandboxes until `count` are started. Raises `BackendUnavailable` when that fails."""
        while self.total - self._starting < min(count, self._size):
            await self._wait_for_start()

    def remove_idle(self, older_than: float) -> int:
        """Begin to remove the sandboxes that have run nothing for `older_than` seconds; return how many."""
        oldest = trio.current_time() - older_than
        expired = [idle for idle in self._idle if idle.since <= oldest]
        self._idle = [idle for idle in self._idle if idle.since > oldest]
        for idle in expired:
            self._remove_soon(idle.sandbox)
        return len(expired)

    async def _take(self) -> Sandbox:
        while not self._idle:
            await self._wait_for_start()
        # The most recently used first: its memory is warm, and the others may grow old and be removed.
        self._busy += 1
        return self._idle.pop().sandbox

    async def _wait_for_start(self) -> None:
        """Wait until something changes for the better, starting a sandbox if nobody else's start will do."""
        self._waiting += 1
        try:
            if self._starting < self._waiting and self.total < self._size:
                self._failure = None
                self._starting += 1
                self._nursery.start_soon(self._start)
            await self._changed.park()
        finally:
            self._waiting -= 1
        if self._failure is not None and not self._idle:
            raise BackendUnavailable(str(self._failure))

    async def _start(self) -> None:
        try:
            async with self._starts:
                with trio.fail_after(START_DEADLINE):
                    sandbox = await self._backend.start()
        except BackendUnavailable as error:
            self._failure = error
            self._changed.unpark_all()
        except trio.TooSlowError:
            self._failure = BackendUnavailable(f"{self._backend.name} started no sandbox within {START_DEADLINE:g} s")
            self._changed.unpark_all()
        else:
            self.cold_starts += 1
            self._idle.append(_Idle(sandbox, trio.current_time()))
            self._changed.unpark()
        finally:
            self._starting -= 1

    def _remove_soon(self, sandbox: Sandbox) -> None:
        self._nursery.start_soon(_remove, sandbox)
        self._changed.unpark()

    async def _remove_all(self) -> None:
        idle, self._idle = self._idle, []
        async with trio.open_nursery() as nursery:
            for entry in idle:
                nursery.start_soon(_remove, entry.sandbox)


async def _remove(sandbox: Sandbox) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(REMOVE_DEADLINE) as scope:
        await sandbox.aclose()
    if scope.cancelled_caught:
        log.warning("a sandbox was not removed in time; it ends by itself", sandbox=sandbox.name)


@asynccontextmanager
async def open_pool(backend: Backend, size: int) -> AsyncIterator[SandboxPool]:
    """A pool whose sandboxes are all removed when the block ends, however it ends."""
    async with trio.open_nursery() as nursery:
        pool = SandboxPool(backend, size, nursery)
        try:
            yield pool
        finally:
            nursery.cancel_scope.cancel()  # ends cold starts; removals under way are shielded and finish
            with trio.CancelScope(shield=True):
                await pool._remove_all()
