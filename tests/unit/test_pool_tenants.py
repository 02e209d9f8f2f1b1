"""Whose a sandbox is, on the virtual clock: tenants, fairness between them, and sandboxes that have served enough."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Set
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from continuum.sandbox.pool import SandboxPool, open_pool
from continuum.sandbox.protocol import BackendUnavailable, Layer, LayerGone
from tests.support.fake_sandbox import FakeBackend, FakeSandbox

LONG = 500.0
"""Seconds on the virtual clock that nobody may have to wait and work."""
LAYERS = (Layer("layer-1", "1"), Layer("layer-2", "2"))


@dataclass
class WatchedBackend(FakeBackend):
    """A fake whose removals take time, too, and that counts what exists from the first to the last moment."""

    removal: float = 0.3
    failing_starts: set[int] = field(default_factory=set)
    attempts: int = 0
    existing: int = 0
    most: int = 0

    async def start(self, layer: Layer | None = None) -> FakeSandbox:
        self.attempts += 1
        attempt = self.attempts
        self.existing += 1
        self.most = max(self.most, self.existing)
        try:
            await trio.sleep(self.cold_start)
            if attempt in self.failing_starts:
                raise BackendUnavailable(f"start {attempt} failed")
        except BaseException:
            self.existing -= 1
            raise
        self.started += 1
        return WatchedSandbox(self, f"fake-{attempt}", layer)


@dataclass
class WatchedSandbox(FakeSandbox):
    async def aclose(self) -> None:
        assert isinstance(self.backend, WatchedBackend)
        await trio.sleep(self.backend.removal)
        if not self.closed:
            self.backend.existing -= 1
        await super().aclose()


class Users:
    """Those who use a pool; remembers whom each sandbox has served."""

    def __init__(self, pool: SandboxPool) -> None:
        self.pool = pool
        self.served: dict[str, set[tuple[str | None, Layer | None]]] = defaultdict(set)
        self.scripts: dict[str, int] = defaultdict(int)
        self.order: list[str] = []
        self.in_use: set[str] = set()

    async def use(self, tenant: str | None, seconds: float = 1.0, name: str = "", layer: Layer | None = None) -> str:
        """Hold a sandbox for so long; the name of the sandbox."""
        with trio.fail_after(LONG):
            async with self.pool.sandbox(tenant, layer) as sandbox:
                assert isinstance(sandbox, FakeSandbox)
                assert sandbox.layer == layer
                assert sandbox.name not in self.in_use, "one sandbox for two tasks"
                self.in_use.add(sandbox.name)
                self.served[sandbox.name].add((tenant, layer))
                self.scripts[sandbox.name] += 1
                self.order.append(name or str(tenant))
                try:
                    await trio.sleep(seconds)
                finally:
                    self.in_use.remove(sandbox.name)
        return sandbox.name

    def nothing_was_shared(self) -> bool:
        return all(len(served) == 1 for served in self.served.values())


async def test_a_sandbox_that_ran_a_script_serves_its_tenant_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pool(FakeBackend(), 4) as pool:
        users = Users(pool)
        first = await users.use("a")
        assert await users.use("b") != first
        assert await users.use("a") == first
        assert await users.use(None) != first
        assert users.nothing_was_shared()


async def test_tasks_without_a_tenant_are_a_tenant_of_their_own(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pool(FakeBackend(), 2) as pool:
        users = Users(pool)
        first = await users.use(None)
        assert await users.use(None) == first
        assert await users.use("") != first


async def test_an_unused_sandbox_serves_whoever_comes(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 2) as pool:
        await pool.warm(2)
        users = Users(pool)
        await users.use("a")
        await users.use("b")
        assert backend.started == 2


async def test_a_tenant_takes_its_own_sandbox_and_leaves_the_unused_one_to_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 2) as pool:
        users = Users(pool)
        first = await users.use("a")
        await pool.warm(2)
        assert await users.use("a") == first
        await users.use("b")
        assert backend.started == 2


async def test_a_sandbox_with_a_layer_serves_only_tasks_that_ask_for_it(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 3) as pool:
        users = Users(pool)
        first = await users.use("a", layer=LAYERS[0])
        assert await users.use("a", layer=LAYERS[0]) == first
        assert await users.use("a", layer=LAYERS[1]) != first
        assert await users.use("a") != first
        assert users.nothing_was_shared()
        assert backend.started == 3


async def test_a_layer_that_is_gone_is_told_to_those_who_wait_for_it_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend(gone_layers=1)
    async with open_pool(backend, 2) as pool:
        users = Users(pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(users.use, "a")
            with pytest.raises(LayerGone):
                await users.use("a", layer=LAYERS[0])
        await users.use("a", layer=LAYERS[0])


async def test_a_full_pool_gives_up_the_sandbox_that_was_idle_for_longest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = WatchedBackend()
    async with open_pool(backend, 3) as pool:
        users = Users(pool)
        kept = {tenant: await users.use(tenant) for tenant in "abc"}
        await users.use("a")
        await users.use("d")
        assert await users.use("a") == kept["a"]
        assert await users.use("c") == kept["c"]
        assert await users.use("b") != kept["b"]
        assert backend.most == 3


async def test_nobody_starves_while_another_tenant_always_has_work(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pool(WatchedBackend(), 2) as pool:
        users = Users(pool)
        async with trio.open_nursery() as nursery:

            async def work_without_end() -> None:
                while True:
                    await users.use("busy")

            for _ in range(5):
                nursery.start_soon(work_without_end)
            await trio.sleep(10)
            with trio.fail_after(6):
                await users.use("rare")
            nursery.cancel_scope.cancel()


async def test_those_who_want_the_same_get_it_in_the_order_in_which_they_came(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pool(FakeBackend(), 1) as pool:
        users = Users(pool)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(users.use, "a", 1.0, str(number))
                await trio.testing.wait_all_tasks_blocked()
        assert users.order == [str(number) for number in range(8)]


async def test_a_sandbox_is_replaced_after_so_many_scripts_and_no_task_waits_for_that(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend(cold_start=0.5)
    async with open_pool(backend, 2, tasks_per_sandbox=3) as pool:
        users = Users(pool)
        began = trio.current_time()
        for _ in range(12):
            await users.use("a")
        assert trio.current_time() - began == pytest.approx(0.5 + 12)
        assert sorted(users.scripts.values()) == [3, 3, 3, 3]
        await trio.testing.wait_all_tasks_blocked()
        assert backend.closed == 4


async def test_in_a_full_pool_the_replacement_starts_as_soon_as_there_is_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = WatchedBackend(cold_start=0.5, removal=0.25)
    async with open_pool(backend, 1, tasks_per_sandbox=1) as pool:
        users = Users(pool)
        await users.use("a")
        await trio.sleep(1)
        began = trio.current_time()
        await users.use("b")
        assert trio.current_time() - began == pytest.approx(1)
        assert backend.most == 1


async def test_a_sandbox_that_must_not_be_reused_is_replaced_after_its_script(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 2) as pool:
        async with pool.sandbox("a") as sandbox:
            assert isinstance(sandbox, FakeSandbox)
            sandbox.reusable = False
        await trio.sleep(1)
        assert (sandbox.closed, backend.alive, pool.idle) == (True, 1, 1)


async def test_a_sandbox_that_outlived_its_use_while_idle_serves_nobody(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 2) as pool:
        async with pool.sandbox("a") as first:
            pass
        assert isinstance(first, FakeSandbox)
        first.reusable = False
        async with pool.sandbox("a") as second:
            assert second is not first
        assert first.closed


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("tasks_per_sandbox", [0, 1])
def test_a_user_may_be_cancelled_at_every_single_step(size: int, tasks_per_sandbox: int) -> None:
    step = 0
    while _cancelled_at(step, size, tasks_per_sandbox):
        step += 1
    assert step > 2, "there were hardly any steps to be cancelled at"


def _cancelled_at(step: int, size: int, tasks_per_sandbox: int) -> bool:
    """Cancel the second of three users at one of its steps; False when it ends before it comes to that."""
    backend = WatchedBackend()
    canceller = _CancelAtStep(step)

    async def main() -> None:
        async with open_pool(backend, size, tasks_per_sandbox) as pool:
            users = Users(pool)

            async def victim() -> None:
                with trio.CancelScope() as scope:
                    canceller.watch(trio.lowlevel.current_task(), scope.cancel)
                    await users.use("b")

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for work in (lambda: users.use("a"), victim, lambda: users.use("c")):
                        nursery.start_soon(work)
                        await trio.testing.wait_all_tasks_blocked()
                for tenant in "abc":
                    await users.use(tenant)
                await trio.sleep(5)
            assert users.nothing_was_shared()
            assert pool.total <= size
            assert pool.total == pool.idle
        assert backend.most <= size
        assert backend.alive == backend.existing == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[canceller])
    return canceller.struck


class _CancelAtStep(trio.abc.Instrument):
    """Calls a function just before a task takes its n-th step: whatever it awaits then ends in Cancelled."""

    def __init__(self, step: int) -> None:
        self._left = step
        self._task: trio.lowlevel.Task | None = None
        self._strike: Callable[[], None] = lambda: None
        self.struck = False

    def watch(self, task: trio.lowlevel.Task, strike: Callable[[], None]) -> None:
        self._task, self._strike = task, strike
        self._count()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._count()

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._task = None

    def _count(self) -> None:
        if self._left == 0 and not self.struck:
            self.struck = True
            self._strike()
        self._left -= 1


@dataclass(frozen=True)
class Visit:
    """One user of the pool: when it comes, for whom, with what, and for how long. patience: when it is cancelled, if ever."""

    at: float
    tenant: str | None
    layer: Layer | None
    seconds: float
    patience: float | None
    breaks: bool


_TENTHS = st.integers(0, 30).map(lambda tenths: tenths / 10)
VISITS = st.builds(
    Visit,
    at=_TENTHS,
    tenant=st.sampled_from([None, "a", "b", "c", "d"]),
    layer=st.sampled_from([None, None, *LAYERS]),
    seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.5]),
    patience=st.none() | _TENTHS,
    breaks=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(
    visits=st.lists(VISITS, min_size=1, max_size=14),
    size=st.integers(1, 4),
    tasks_per_sandbox=st.integers(0, 3),
    cold_start=st.sampled_from([0.0, 0.1, 1.0]),
    removal=st.sampled_from([0.0, 0.3]),
    failing=st.sets(st.integers(1, 8), max_size=3),
)
def test_whatever_comes_no_two_tenants_share_a_sandbox_the_size_holds_and_everybody_is_served(
    visits: list[Visit], size: int, tasks_per_sandbox: int, cold_start: float, removal: float, failing: Set[int]
) -> None:
    backend = WatchedBackend(cold_start=cold_start, removal=removal, failing_starts=set(failing))
    ended: list[str] = []

    async def main() -> None:
        async with open_pool(backend, size, tasks_per_sandbox) as pool:
            users = Users(pool)

            async def visit(visit: Visit) -> None:
                await trio.sleep(visit.at)
                with trio.move_on_after(float("inf") if visit.patience is None else visit.patience) as scope:
                    try:
                        await users.use(visit.tenant, visit.seconds, layer=visit.layer)
                        if visit.breaks:
                            async with pool.sandbox(visit.tenant, visit.layer):
                                raise ValueError
                    except ValueError:
                        pass
                    except BackendUnavailable:
                        ended.append("no sandbox")
                        return
                ended.append("cancelled" if scope.cancelled_caught else "served")

            with trio.fail_after(1000):
                async with trio.open_nursery() as nursery:
                    for each in visits:
                        nursery.start_soon(visit, each)
                await trio.sleep(20)
            assert users.nothing_was_shared()
            assert pool.total == pool.idle <= size
            if tasks_per_sandbox:
                assert max(users.scripts.values(), default=0) <= tasks_per_sandbox
        assert backend.most <= size
        assert backend.alive == backend.existing == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(ended) == len(visits)
    if not failing:
        assert "no sandbox" not in ended
    assert ended.count("cancelled") <= sum(visit.patience is not None for visit in visits)
