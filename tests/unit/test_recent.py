"""What a worker remembers of its last minutes."""

from __future__ import annotations

import datetime as dt

import pytest
import trio
import trio.testing

from continuum.model import Status
from continuum.nursery.recent import INTERVAL, INTERVALS, Interval, Recent, Times
from continuum.sandbox.pool import open_pool
from tests.support.fake_sandbox import FakeBackend


def test_a_quantile_is_within_three_percent_and_none_of_nothing() -> None:
    times = Times()
    assert times.quantile(0.5) is None
    for milliseconds in range(1, 1001):
        times.add(milliseconds / 1000)
    assert times.quantile(0.5) == pytest.approx(0.5, rel=0.03)
    assert times.quantile(0.95) == pytest.approx(0.95, rel=0.03)


def test_no_time_is_out_of_bounds_and_memory_is_bounded() -> None:
    times = Times()
    for exponent in range(-400, 300):
        for mantissa in range(1, 10):
            times.add(float(f"{mantissa}e{exponent}"))
    times.add(-1.0)
    assert len(times._counts) < 480


async def test_intervals_without_anything_are_empty_and_the_one_under_way_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recent = Recent()
    assert recent.intervals() == []
    recent.finished(Status.COMPLETED)
    recent.finished(Status.MALICIOUS)
    recent.ran(1.0)
    assert recent.intervals() == []
    await trio.sleep(3 * INTERVAL)
    found = recent.intervals()
    assert [(one.completed, one.failed) for one in found[-3:]] == [(1, 1), (0, 0), (0, 0)]
    assert found[1] == Interval()
    assert found[-3].runs.quantile(0.5) == pytest.approx(1.0, rel=0.03)


async def test_the_ring_does_not_grow(autojump_clock: trio.testing.MockClock) -> None:
    recent = Recent()
    for _ in range(3 * INTERVALS):
        recent.finished(Status.COMPLETED)
        await trio.sleep(INTERVAL)
    assert len(recent._ring) == INTERVALS + 1
    assert [one.completed for one in recent.intervals()] == [1] * INTERVALS


async def test_a_pool_tells_of_its_sandboxes(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pool(FakeBackend(cold_start=1.0), 2) as pool:
        assert pool.view() == []
        async with pool.sandbox("acme"):
            await trio.sleep(4.0)
            await pool.warm(2)
            first, second = pool.view()
            assert (first.name, first.busy, first.scripts, first.tenant) == ("fake-1", True, 1, "acme")
            assert first.started_at <= second.started_at <= dt.datetime.now(dt.UTC)
            assert (second.busy, second.scripts, second.tenant, second.layer) == (False, 0, None, None)
        assert [one.busy for one in pool.view()] == [False, False]
