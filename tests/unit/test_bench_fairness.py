"""The checker of the fairness benchmark: it must be able to fail."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from benchmarks.fairness import EVERYBODY, Judgement, Ran, jain, judge, most_at_once, most_in_a_period
from continuum.model import Limit, Scope

BEGIN = datetime(2026, 1, 1)


def ran(started: float, finished: float, tenant: str = "a") -> Ran:
    return Ran(tenant, BEGIN + timedelta(seconds=started), BEGIN + timedelta(seconds=finished))


def test_the_index_is_one_where_all_have_the_same_and_less_the_fewer_have_it() -> None:
    assert jain([7, 7, 7]) == 1
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)


def test_what_runs_at_a_time_is_counted_at_every_instant() -> None:
    assert most_at_once([ran(0, 2), ran(1, 3), ran(2, 4), ran(9, 9.5)]) == 2
    assert most_at_once([ran(0, 2), ran(1, 3), ran(1.999999, 4)]) == 3


def test_starts_are_counted_in_every_period_wherever_it_begins() -> None:
    tasks = [ran(at, at) for at in (0, 0.9, 1.0, 1.8, 1.95)]
    assert most_in_a_period(tasks, 1) == 3
    assert most_in_a_period(tasks, 0.5) == 2


def test_who_got_more_than_a_limit_allows_is_found() -> None:
    limits = {"b": Limit(Scope.TENANT, "b", max_running=1, rate=2, rate_period=1.0)}
    assert EVERYBODY.max_running == 3
    within = [ran(0, 1), ran(0.5, 1), ran(0.6, 1), ran(0, 0.4, "b"), ran(0.4, 0.5, "b"), ran(0, 9, "c")]
    assert judge(within, limits) == Judgement(violations=0, reached=2)
    assert judge([*within, ran(0.9, 1)], limits).violations == 1, "four at a time"
    assert judge([*within, ran(0.3, 0.35, "b")], limits).violations == 1, "two at a time"
    assert judge([*within, ran(0.999, 1.1, "b")], limits).violations == 1, "three in a second"
    assert judge([*within, ran(1.0, 1.1, "b")], limits).violations == 0
