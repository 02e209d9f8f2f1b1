"""The sandbox pool, on the virtual clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from continuum.cpus import usable_cpus
from continuum.sandbox.pool import SandboxPool, open_pool, parallel_starts
from continuum.sandbox.protocol import BackendUnavailable, Layer
from tests.support.fake_sandbox import FakeBackend, FakeSandbox


async def test_a_sandbox_is_started_on_demand_and_used_again(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 4) as pool:
        for _ in range(10):
            async with pool.sandbox():
                pass
        assert backend.started == 1
        assert pool.idle == 1
    assert backend.alive == 0


async def test_a_sandbox_that_is_ready_in_the_turn_in_which_the_pool_closes_is_removed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Determined(FakeBackend):
        async def start(self, layer: Layer | None = None) -> FakeSandbox:
            with trio.CancelScope() as scope:
                scope.shield = True  # as if it had just come to its end
                sandbox = await super().start(layer)
            assert not scope.cancelled_caught
            return sandbox

    backend = Determined(cold_start=1)
    async with open_pool(backend, 1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(pool.warm)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (backend.started, backend.alive) == (1, 0)


async def test_no_sandbox_is_shared_and_no_more_than_the_size_are_made(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend()
    in_use: set[str] = set()
    async with open_pool(backend, 3) as pool:

        async def use() -> None:
            async with pool.sandbox() as sandbox:
                assert sandbox.name not in in_use
                in_use.add(sandbox.name)
                await trio.sleep(1)
                in_use.remove(sandbox.name)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(use)
        assert backend.started == 3


async def test_a_task_takes_a_sandbox_that_became_idle_rather_than_wait_for_its_own_cold_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend(cold_start=50)
    async with open_pool(backend, 2) as pool:
        await pool.warm()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def use(seconds: float) -> None:
                async with pool.sandbox():
                    await trio.sleep(seconds)

            nursery.start_soon(use, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(use, 1)
        assert trio.current_time() - began == pytest.approx(2)


async def test_a_sandbox_whose_task_raised_or_was_cancelled_is_removed(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 2) as pool:
        with pytest.raises(ValueError, match="boom"):
            async with pool.sandbox():
                raise ValueError("boom")
        with trio.move_on_after(1):
            async with pool.sandbox():
                await trio.sleep_forever()
        await trio.testing.wait_all_tasks_blocked()
        assert (backend.started, backend.closed) == (2, 2)
        assert pool.total == 0


async def test_waiting_tasks_all_learn_that_no_sandbox_can_be_started(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend(unavailable="no daemon")
    async with open_pool(backend, 4) as pool:
        failures = []

        async def use() -> None:
            try:
                async with pool.sandbox():
                    pass
            except BackendUnavailable as error:
                failures.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(use)
        assert failures == ["no daemon"] * 6
        backend.unavailable = None
        async with pool.sandbox():
            pass


async def test_cold_starts_run_side_by_side_up_to_a_limit(autojump_clock: trio.testing.MockClock) -> None:
    backend, at_once = FakeBackend(cold_start=1), parallel_starts(usable_cpus())
    async with open_pool(backend, 2 * at_once) as pool:
        began = trio.current_time()

        async def use() -> None:
            async with pool.sandbox():
                await trio.sleep(10)

        async with trio.open_nursery() as nursery:
            for _ in range(2 * at_once):
                nursery.start_soon(use)
        assert trio.current_time() - began == pytest.approx(12)


async def test_idle_sandboxes_are_removed_after_the_timeout_and_busy_ones_are_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 3) as pool:
        await pool.warm(2)
        await trio.sleep(100)
        async with pool.sandbox():
            assert pool.remove_idle(60) == 1
            await trio.testing.wait_all_tasks_blocked()
            assert pool.total == 1
        assert pool.remove_idle(60) == 0


@pytest.mark.parametrize("moment", [0.0, 0.25, 0.5, 0.75, 1.5])
async def test_cancelling_at_any_moment_leaves_the_pool_usable_and_no_sandbox_behind(
    autojump_clock: trio.testing.MockClock, moment: float
) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 2) as pool:

        async def use() -> None:
            async with pool.sandbox():
                await trio.sleep(1)

        with trio.move_on_after(moment):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(use)
        with trio.fail_after(10):
            async with pool.sandbox():
                pass
        assert pool.total <= 2
    assert backend.alive == 0


def test_more_processors_start_more_sandboxes_at_once() -> None:
    assert [parallel_starts(cpus) for cpus in (0.5, 1, 1.5, 2, 4, 64)] == [2, 2, 3, 4, 8, 16]


async def test_a_start_whose_turn_comes_when_nobody_waits_any_more_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend, at_once = FakeBackend(cold_start=1), parallel_starts(usable_cpus())
    async with open_pool(backend, 10 * at_once) as pool:

        async def use() -> None:
            async with pool.sandbox():
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(10 * at_once):
                nursery.start_soon(use)
        assert trio.current_time() < 1.5  # the first few serve them all
        await trio.sleep(100)
        assert backend.started <= 2 * at_once
        assert pool.total == backend.started
        async with trio.open_nursery() as nursery:  # and the place of those left out is free
            for _ in range(10 * at_once):
                nursery.start_soon(hold, pool)
        assert pool.total == 10 * at_once


async def hold(pool: SandboxPool) -> None:
    """Keep a sandbox for a long time."""
    async with pool.sandbox():
        await trio.sleep(1000)
