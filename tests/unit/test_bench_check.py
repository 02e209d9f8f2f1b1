"""When `benchmarks.check` calls a commit slower, and what `benchmarks.kinds` calls the least wall time."""

from __future__ import annotations

import pytest

from benchmarks.check import is_worse, ratios_of
from benchmarks.kinds import least_wall_time


def test_ratios_are_turned_so_that_more_is_better() -> None:
    pair = [{"hello, tasks/s": 100.0, "idle, ms": 10.0}, {"hello, tasks/s": 50.0, "idle, ms": 20.0}]
    assert ratios_of([pair], "hello, tasks/s") == [0.5]
    assert ratios_of([pair], "idle, ms") == [0.5]


@pytest.mark.parametrize(
    ("ratios", "worse"),
    [
        ([0.8, 0.85, 0.7], True),
        ([0.8, 1.0, 1.1], False),  # one disturbed pair
        ([0.95, 0.95, 0.95], False),
        ([0.6, 0.95, 0.95, 1.2], False),
        ([0.6, 0.7, 1.2, 1.3], False),
    ],
)
def test_a_figure_is_worse_by_its_median_and_in_most_pairs(ratios: list[float], worse: bool) -> None:
    assert is_worse(ratios, 0.9) is worse


def test_sleepers_need_slots_and_the_others_processors() -> None:
    assert least_wall_time([1.0] * 8, [1.0] * 8, slots=4, cpus=1) == 2.0
    assert least_wall_time([1.0] * 8, [0.0] * 8, slots=4, cpus=1) == 8.0
    assert least_wall_time([1.0] * 8, [0.0] * 8, slots=1, cpus=4) == 8.0
    assert least_wall_time([1.0] * 8, [0.5] * 8, slots=2, cpus=1) == 4.0
