"""The pool of started sandboxes: one task at a time in each, started on demand, kept warm, removed when idle.

A sandbox belongs to the tenant whose script it ran first, for as long as it lives, and has the layer of requirements that it
was started with. Each change of what there is and of what is wanted ends in `_settle`, which decides everything and waits for
nothing: the slow work (cold starts, removals) runs in the pool's own nursery.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from continuum.cpus import usable_cpus
from continuum.sandbox.protocol import Backend, BackendUnavailable, Layer, Sandbox, SandboxError, SandboxLost

log = structlog.get_logger(__name__)

STARTS_FOR_EACH_CPU = 2
MOST_STARTS = 16
"""Cold starts at once. A start is work for a processor: with more at once all are ready hardly sooner, and the first much later.
On two processors, 24 containers: 16 s whether 2 or 16 at once, the first after 1.4 s with 2, 2.2 s with 4 and 7.3 s with 16."""
START_DEADLINE = 60.0
"""Seconds for one cold start; an engine that takes longer is treated as unavailable."""
REMOVE_DEADLINE = 15.0
"""Seconds for a removal, after which the place counts as free; the sandbox ends by itself when its worker is gone."""


def parallel_starts(cpus: float) -> int:
    """How many sandboxes to start at once on so many processors."""
    return max(2, min(MOST_STARTS, round(STARTS_FOR_EACH_CPU * cpus)))


class _Nobody(enum.Enum):
    """Whose a sandbox is that has run nothing yet. None would not do: tasks without a tenant are one of their own."""

    NOBODY = enum.auto()


@dataclass(frozen=True, slots=True)
class SandboxView:
    """What a pool tells of one sandbox, for those who watch it.

    scripts: how many it was given. layer: what it was started with.
    """

    name: str
    started_at: dt.datetime
    scripts: int
    busy: bool
    tenant: str | None
    layer: str | None


@dataclass(eq=False, slots=True)
class _Pooled:
    """A started sandbox. `idle_since` is on Trio's clock; generation: of the pool, when its start began."""

    sandbox: Sandbox
    layer: Layer | None
    idle_since: float
    generation: int = 0
    tenant: str | _Nobody | None = _Nobody.NOBODY
    scripts: int = 0
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    def view(self, *, busy: bool) -> SandboxView:
        return SandboxView(
            name=self.sandbox.name,
            started_at=self.started_at,
            scripts=self.scripts,
            busy=busy,
            tenant=None if isinstance(self.tenant, _Nobody) else self.tenant,
            layer=self.layer.name if self.layer else None,
        )


@dataclass(eq=False, slots=True)
class _Waiter:
    """Somebody who waits for a sandbox. `answered` is set together with one of the two answers."""

    tenant: str | None
    layer: Layer | None
    answered: trio.Event = field(default_factory=trio.Event)
    granted: _Pooled | None = None
    failure: SandboxError | None = None


class SandboxPool:
    """Hands out sandboxes. Use it inside the `open_pool` that made it. At most `size` exist at any time, those being
    started and removed included; after `resize` to less, until scripts have ended.

    tasks_per_sandbox: after how many scripts a sandbox is replaced; 0 never.
    """

    def __init__(self, backend: Backend, size: int, tasks_per_sandbox: int, nursery: trio.Nursery) -> None:
        self._backend = backend
        self._size = size
        self._tasks_per_sandbox = tasks_per_sandbox
        self._generation = 0
        self._nursery = nursery
        self._idle: list[_Pooled] = []  # the most recently used last
        self._lent: set[_Pooled] = set()
        self._starting: Counter[Layer | None] = Counter()
        self._under_way: Counter[Layer | None] = Counter()  # of those being started, the ones that have their turn
        self._removing = 0
        # For sandboxes that are or will be retired, to be started when there is room.
        self._replacements: Counter[Layer | None] = Counter()
        self._waiters: list[_Waiter] = []  # the longest waiting first
        self._changed = trio.lowlevel.ParkingLot()
        self._starts = trio.CapacityLimiter(parallel_starts(usable_cpus()))
        self._failure: BackendUnavailable | None = None
        self._closing = False
        self.cold_starts = 0

    @property
    def idle(self) -> int:
        """Started sandboxes that run nothing."""
        return len(self._idle)

    @property
    def total(self) -> int:
        """All sandboxes, those being started or removed included."""
        return len(self._idle) + len(self._lent) + self._starting.total() + self._removing

    def view(self) -> list[SandboxView]:
        """The started sandboxes, the oldest first."""
        views = [pooled.view(busy=False) for pooled in self._idle] + [pooled.view(busy=True) for pooled in self._lent]
        return sorted(views, key=lambda view: view.started_at)

    @property
    def by_state(self) -> dict[str, int]:
        """How many sandboxes are in each state; safe to read from any thread."""
        return {
            "idle": len(self._idle),
            "busy": len(self._lent),
            "starting": self._starting.total(),
            "removing": self._removing,
        }

    @asynccontextmanager
    async def sandbox(self, tenant: str | None = None, layer: Layer | None = None) -> AsyncIterator[Sandbox]:
        """A sandbox with a layer, or with none, to run one script of a tenant in: an unused one, or one that has run
        nothing but scripts of this tenant (None is a tenant, too). It goes back to the pool when the block ends well, and
        is removed when the block raises or is cancelled. Raises `BackendUnavailable` and `LayerGone` when none can be
        started."""
        pooled = await self._take(tenant, layer)
        try:
            yield pooled.sandbox
        except BaseException as failure:
            if isinstance(failure, SandboxLost):
                failure.used = pooled.scripts > 1
            self._lent.remove(pooled)
            self._remove_soon(pooled)
            self._settle()
            raise
        self._lent.remove(pooled)
        self._put_back(pooled)
        self._settle()

    async def warm(self, count: int = 1) -> None:
        """Start sandboxes until `count` are started. Raises `BackendUnavailable` when that fails."""
        self._failure = None
        while len(self._idle) + len(self._lent) < min(count, self._size):
            if not self._starting.total() and self.total < self._size:
                self._start_soon(None)
            await self._changed.park()
            if self._failure is not None:
                raise BackendUnavailable(str(self._failure))

    def remove_idle(self, older_than: float) -> int:
        """Begin to remove the sandboxes that have run nothing for `older_than` seconds; return how many."""
        oldest = trio.current_time() - older_than
        expired = [pooled for pooled in self._idle if pooled.idle_since <= oldest]
        for pooled in expired:
            self._idle.remove(pooled)
            self._remove_soon(pooled)
        return len(expired)

    def resize(self, size: int, tasks_per_sandbox: int) -> None:
        """Have at most so many from now on. What runs, runs on; what is too much afterwards is removed."""
        self._size = size
        self._tasks_per_sandbox = tasks_per_sandbox
        self._replacements.clear()
        self._settle()

    def renew(self) -> None:
        """Let every sandbox that was started so far, or whose start has begun, run nothing but what it runs now; as many as
        are idle are started anew."""
        self._generation += 1
        self._settle()

    async def _take(self, tenant: str | None, layer: Layer | None) -> _Pooled:
        waiter = _Waiter(tenant, layer)
        self._waiters.append(waiter)
        self._settle()
        pooled = waiter.granted or await self._answer(waiter)
        pooled.tenant = tenant
        pooled.scripts += 1
        if self._is_worn(pooled):  # this is its last script, and the one after it should find another sandbox ready
            if self.total <= self._size:
                self._replacements[layer] += 1
            self._settle()
        return pooled

    async def _answer(self, waiter: _Waiter) -> _Pooled:
        try:
            await waiter.answered.wait()
        except BaseException:
            if waiter.granted is not None:
                self._lent.remove(waiter.granted)
                self._put_back(waiter.granted)
            elif waiter.failure is None:
                self._waiters.remove(waiter)
            self._settle()
            raise
        if waiter.granted is None:
            assert waiter.failure is not None
            raise type(waiter.failure)(str(waiter.failure))
        return waiter.granted

    def _settle(self) -> None:
        """See what a change allows, and begin it."""
        if self._closing:
            return
        self._discard_what_must_not_be_reused()
        if self._waiters:
            self._serve()
        while self._idle and self.total - self._removing > self._size:
            self._evict()
        while self._replacements and self.total < self._size:
            self._start_soon(next(iter(self._replacements)))
        if self._changed:
            self._changed.unpark_all()

    def _serve(self) -> None:
        """Answer who can be answered, and begin what will let the others be.

        The longest waiting is seen to first, at the cost of those who came later if need be: nobody waits for ever,
        whatever the others want. With no more tasks than `size` nobody pays that cost, for whoever waits then has a
        place that no task occupies.
        """
        starting, leaving = dict(self._starting), self._removing
        for waiter in list(self._waiters):
            if (pooled := self._find_idle(waiter)) is not None:
                self._grant(waiter, pooled)
            elif starting.get(waiter.layer):
                starting[waiter.layer] -= 1
            elif self.total < self._size:
                self._start_soon(waiter.layer, for_a_waiter=True)
            elif leaving:
                leaving -= 1
            elif not self._evict():  # which serves none of those who wait, or it would not be idle
                break

    def _discard_what_must_not_be_reused(self) -> None:
        """Idle sandboxes may outlive their use; those are not replaced, for nobody asked for them since. Those that have to give
        way to others are."""
        for pooled in [pooled for pooled in self._idle if not self._is_reusable(pooled)]:
            self._idle.remove(pooled)
            if pooled.generation != self._generation:
                self._replace(pooled)
            self._remove_soon(pooled)

    def _find_idle(self, waiter: _Waiter) -> _Pooled | None:
        """The tenant's own, which serves nobody else, before an unused one. The most recently used first: its memory is
        warm, and the others may grow old and be removed."""
        unused = None
        for pooled in reversed(self._idle):
            if pooled.layer != waiter.layer:
                continue
            if pooled.tenant == waiter.tenant:
                return pooled
            if pooled.tenant is _Nobody.NOBODY and unused is None:
                unused = pooled
        return unused

    def _grant(self, waiter: _Waiter, pooled: _Pooled) -> None:
        self._waiters.remove(waiter)
        self._idle.remove(pooled)
        self._lent.add(pooled)
        waiter.granted = pooled
        waiter.answered.set()

    def _evict(self) -> bool:
        """Begin to remove the least recently used of the idle sandboxes; False when there is none."""
        if not self._idle:
            return False
        self._remove_soon(self._idle.pop(0))
        return True

    def _is_worn(self, pooled: _Pooled) -> bool:
        return 0 < self._tasks_per_sandbox <= pooled.scripts

    def _is_reusable(self, pooled: _Pooled) -> bool:
        return pooled.generation == self._generation and pooled.sandbox.reusable

    def _replace(self, pooled: _Pooled) -> None:
        """One that is counted no more gets a successor, where there is to be one."""
        if self.total + self._replacements.total() < self._size:
            self._replacements[pooled.layer] += 1

    def _put_back(self, pooled: _Pooled) -> None:
        """Let a sandbox wait for its next script, unless it is to have none."""
        if self._is_worn(pooled):
            self._remove_soon(pooled)
        elif not self._is_reusable(pooled):
            self._replace(pooled)
            self._remove_soon(pooled)
        else:
            pooled.idle_since = trio.current_time()
            self._idle.append(pooled)

    def _start_soon(self, layer: Layer | None, *, for_a_waiter: bool = False) -> None:
        """Begin a cold start, for whomever it comes in time; it stands for a replacement that is due, too."""
        self._failure = None
        self._starting[layer] += 1
        replaces = self._replacements[layer] > 0
        self._replacements -= Counter([layer])
        self._nursery.start_soon(self._start, layer, for_a_waiter and not replaces)

    async def _start(self, layer: Layer | None, for_a_waiter: bool) -> None:
        try:
            async with self._starts:
                if for_a_waiter and not self._is_awaited(layer):
                    return
                self._under_way[layer] += 1
                generation = self._generation
                try:
                    with trio.fail_after(START_DEADLINE):
                        sandbox = await self._backend.start(layer)
                finally:
                    self._under_way -= Counter([layer])
        except SandboxError as error:
            self._fail_waiters(layer, error)
        except trio.TooSlowError:
            late = f"{self._backend.name} started no sandbox within {START_DEADLINE:g} s"
            self._fail_waiters(layer, BackendUnavailable(late))
        else:
            self.cold_starts += 1
            if self._closing:  # in the very turn in which it was ready
                await _close(sandbox)
            else:
                self._idle.append(_Pooled(sandbox, layer, trio.current_time(), generation))
        finally:
            self._starting -= Counter([layer])
            self._settle()

    def _is_awaited(self, layer: Layer | None) -> bool:
        """Whether one more start is of use: where tasks are short, the sandboxes that there are have served those who waited
        long before its turn comes."""
        return sum(waiter.layer == layer for waiter in self._waiters) > self._under_way[layer]

    def _fail_waiters(self, layer: Layer | None, failure: SandboxError) -> None:
        """Nobody waits through an outage: what cannot start now is for those who ask again later."""
        if isinstance(failure, BackendUnavailable):
            self._failure = failure
        self._replacements.clear()
        for waiter in [waiter for waiter in self._waiters if waiter.layer == layer]:
            self._waiters.remove(waiter)
            waiter.failure = failure
            waiter.answered.set()

    def _remove_soon(self, pooled: _Pooled) -> None:
        self._removing += 1
        self._nursery.start_soon(self._remove, pooled.sandbox)

    async def _remove(self, sandbox: Sandbox) -> None:
        try:
            await _close(sandbox)
        finally:
            self._removing -= 1
            self._settle()

    async def _close_all(self) -> None:
        idle, self._idle = self._idle, []
        async with trio.open_nursery() as nursery:
            for pooled in idle:
                nursery.start_soon(_close, pooled.sandbox)


async def _close(sandbox: Sandbox) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(REMOVE_DEADLINE) as scope:
        await sandbox.aclose()
    if scope.cancelled_caught:
        log.warning("a sandbox was not removed in time; it ends by itself", sandbox=sandbox.name)


@asynccontextmanager
async def open_pool(backend: Backend, size: int, tasks_per_sandbox: int = 0) -> AsyncIterator[SandboxPool]:
    """A pool whose sandboxes are all removed when the block ends, however it ends."""
    async with trio.open_nursery() as nursery:
        pool = SandboxPool(backend, size, tasks_per_sandbox, nursery)
        try:
            yield pool
        finally:
            pool._closing = True
            nursery.cancel_scope.cancel()  # ends cold starts; removals under way are shielded and finish
            with trio.CancelScope(shield=True):
                await pool._close_all()
