"""Claiming from parts of the queue, against a model of the index that counts what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.db.dialect import Rows
from continuum.db.errors import DatabaseUnavailable
from continuum.db.shards import (
    CLAIM_KEYS,
    HINTS_SUFFICE,
    SHARDS,
    SLACK,
    SURVEY_AT_MOST,
    SURVEY_LIMIT,
    Entry,
    ShardedClaims,
    claim_shard_statement,
    survey_statement,
)

POLLING_INTERVAL = 5.0
NOW = 1 << 60
"""An id of now, as unique_rowid() makes them."""


@dataclass
class Index:
    """Pending tasks; understands the statements by what they are, and passes what lies below the marks by."""

    pending: set[Entry] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    failures: list[DatabaseUnavailable | None] = field(default_factory=list)

    async def run(self, statement: str, parameters: Mapping[str, Any] | None = None, **_: bool) -> Rows:
        await trio.sleep(0.002)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        assert parameters is not None
        marks = sum(name.startswith("mark_id") for name in parameters)
        seen = [entry for entry in sorted(self.pending, key=order) if visible(entry, parameters)]
        if statement == survey_statement(marks):
            self.asked.append("survey")
            return list(sorted(seen)[:SURVEY_LIMIT])
        if statement == claim_shard_statement(marks):
            self.asked.append("claim")
            taken = [entry for entry in seen if entry.shard == parameters["shard"]][: parameters["limit"]]
        else:
            assert statement == CLAIM_KEYS
            self.asked.append("keys")
            wanted = set(zip(parameters["shards"], parameters["priorities"], parameters["ids"], strict=True))
            taken = [entry for entry in sorted(self.pending, key=order) if tuple(entry) in wanted]
        self.pending.difference_update(taken)
        return [(entry.id, *[None] * 7, entry.priority) for entry in taken]


def order(entry: Entry) -> tuple[int, int]:
    return entry.priority, entry.id


def visible(entry: Entry, parameters: Mapping[str, Any]) -> bool:
    marks = {
        parameters[f"mark_priority_{number}"]: parameters[f"mark_id_{number}"]
        for number in range(sum(name.startswith("mark_id") for name in parameters))
    }
    within = parameters["min_priority"] <= entry.priority <= parameters["max_priority"]
    return bool(within and entry.id >= marks.get(entry.priority, 0))


def parameters(limit: int) -> dict[str, Any]:
    return {"worker": "w", "limit": limit, "lease": 30.0, "min_priority": -(2**31), "max_priority": 2**31 - 1}


def ids(rows: Rows) -> list[int]:
    return [row[0] for row in rows]


async def test_a_short_queue_costs_two_statements_and_an_empty_one_a_single_read(autojump_clock: MockClock) -> None:
    index = Index({Entry(number, number % 3, NOW + number) for number in range(16)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    assert len(await claims.claim(parameters(20))) == 16
    assert index.asked == ["survey", "keys"]
    index.asked.clear()
    assert await claims.claim(parameters(20)) == []
    assert index.asked == ["survey"]


async def test_a_task_that_was_told_of_is_claimed_without_a_look(autojump_clock: MockClock) -> None:
    index = Index()
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    assert await claims.claim(parameters(4)) == []
    index.asked.clear()
    index.pending.add(Entry(3, 0, NOW))
    claims.hint(Entry(3, 0, NOW))
    assert ids(await claims.claim(parameters(4))) == [NOW]
    assert index.asked == ["keys"]
    claims.hint(Entry(3, 0, NOW))
    assert await claims.claim(parameters(4)) == [], "somebody else was quicker"
    assert index.asked == ["keys", "keys", "survey"]


async def test_tasks_that_were_told_of_do_not_keep_a_worker_from_one_that_nobody_told_of(
    autojump_clock: MockClock,
) -> None:
    index = Index()
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    await claims.claim(parameters(1))
    urgent = Entry(1, -5, NOW)
    index.pending.add(urgent)
    began = trio.current_time()
    number = 0
    while urgent in index.pending:
        number += 1
        told = Entry(number % SHARDS, 3, NOW + number)
        index.pending.add(told)
        claims.hint(told)
        await claims.claim(parameters(1))
        await trio.sleep(0.01)
    assert trio.current_time() - began < HINTS_SUFFICE + 0.1


async def test_what_a_worker_was_told_of_and_cannot_take_yet_is_taken_next_and_in_order(
    autojump_clock: MockClock,
) -> None:
    index = Index()
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    await claims.claim(parameters(1))
    index.pending = {Entry(number % SHARDS, 0, NOW + number) for number in range(12)}
    for entry in index.pending:
        claims.hint(entry)
    index.asked.clear()
    assert [ids(await claims.claim(parameters(1))) for _ in range(12)] == [[NOW + number] for number in range(12)]
    assert index.asked == ["keys"] * 12


async def test_more_than_a_worker_remembers_being_told_of_is_looked_for(autojump_clock: MockClock) -> None:
    index = Index()
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    await claims.claim(parameters(1))
    index.pending = {Entry(number % SHARDS, 0, NOW + number) for number in range(40)}
    for entry in index.pending:
        claims.hint(entry)
    assert len(await claims.claim(parameters(64))) == 40


async def test_a_backlog_that_others_have_emptied_is_not_the_end_of_the_search(autojump_clock: MockClock) -> None:
    index = Index({Entry(number % SHARDS, 0, NOW + number) for number in range(200)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    await claims.claim(parameters(1))
    index.pending = {Entry(number % SHARDS, 1, NOW + number) for number in range(1600)}
    assert len(await claims.claim(parameters(16))) == 16


async def test_an_urgent_task_hides_none_of_those_that_were_there_before(autojump_clock: MockClock) -> None:
    old = {Entry(number % SHARDS, 5, NOW + number) for number in range(1600)}
    index = Index(set(old))
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    await claims.claim(parameters(1))
    index.pending |= {Entry(number % SHARDS, 1, NOW + 10_000 + number) for number in range(64)}
    taken = [task for _ in range(64 + 400) for task in ids(await claims.claim(parameters(1)))]
    assert len(taken) == 64 + 400


async def test_bounds_of_priority_leave_the_order_as_it_is(autojump_clock: MockClock) -> None:
    index = Index({Entry(number % SHARDS, 1 if number < 96 else 2, NOW + number) for number in range(1696)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    found = await claims.claim(parameters(16) | {"min_priority": 1})
    assert {row[8] for row in found} == {1}


async def test_a_claim_brings_home_what_it_has_long_before_the_lease_of_that_is_over(
    autojump_clock: MockClock,
) -> None:
    index = Index({Entry(number % SHARDS, 0, NOW + number) for number in range(40)})

    async def slow(*arguments: Any, **options: Any) -> Rows:
        await trio.sleep(2)
        return await index.run(*arguments, **options)

    claims = ShardedClaims(slow, index.run, POLLING_INTERVAL)
    began = trio.current_time()
    assert await claims.claim(parameters(64))
    assert trio.current_time() - began < 5


async def test_one_outlandish_id_does_not_hide_what_comes_after_it_for_long(autojump_clock: MockClock) -> None:
    index = Index({Entry(1, 0, (1 << 63) - 1)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    await claims.claim(parameters(4))
    for step in range(4):
        await trio.sleep(SURVEY_AT_MOST)
        index.pending.add(Entry(1, 0, NOW + step))
        assert await claims.claim(parameters(4))
    assert claims._marks.all()[0] < NOW


async def test_hints_outside_the_worker_s_priorities_are_not_claimed(autojump_clock: MockClock) -> None:
    index = Index({Entry(3, 7, NOW)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    claims.hint(Entry(3, 7, NOW))
    assert await claims.claim(parameters(4) | {"max_priority": 5}) == []


async def test_a_long_queue_is_claimed_from_one_part_at_a_time_and_looked_over_rarely(
    autojump_clock: MockClock,
) -> None:
    index = Index({Entry(number % SHARDS, 0, NOW + number) for number in range(4000)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    taken: list[int] = []
    for _ in range(400):
        taken += ids(await claims.claim(parameters(5)))
    assert len(set(taken)) == 2000
    assert index.asked.count("claim") <= 420
    assert index.asked.count("survey") <= 5, "about one in a second"


async def test_what_is_more_urgent_in_another_part_is_seen_within_a_second(autojump_clock: MockClock) -> None:
    index = Index({Entry(number % SHARDS, 5, NOW + number) for number in range(4000)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    await claims.claim(parameters(5))
    index.pending.add(Entry(9, -1, NOW + 10_000))
    began = trio.current_time()
    while NOW + 10_000 not in ids(await claims.claim(parameters(1))):
        pass
    assert trio.current_time() - began < 1.1


async def test_what_was_claimed_before_a_failure_is_returned_and_the_failure_raised_next(
    autojump_clock: MockClock,
) -> None:
    index = Index({Entry(number % SHARDS, 0, NOW + number) for number in range(64)})
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    failure = DatabaseUnavailable("gone")
    index.failures = [None, None, None, failure]  # a survey, another for what is more urgent, a part, the next part
    assert len(await claims.claim(parameters(20))) == 4
    with pytest.raises(DatabaseUnavailable) as raised:
        await claims.claim(parameters(20))
    assert raised.value is failure
    assert len(await claims.claim(parameters(60))) == 60


async def test_dead_rows_are_passed_by_once_they_are_old(autojump_clock: MockClock) -> None:
    index = Index()
    claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
    for step in range(20):
        newest = NOW + step * SLACK
        index.pending |= {Entry(1, 0, newest + number) for number in range(3)}
        assert len(await claims.claim(parameters(9))) == 3
        await trio.sleep(SURVEY_AT_MOST + 1)
    assert newest - 2 * SLACK < claims._marks.all()[0] <= newest, "no further behind than two steps"


additions = st.tuples(
    st.integers(0, SHARDS - 1),
    st.sampled_from([0, 0, 0, -5, 3, 10]),
    st.one_of(st.just(None), st.integers(1, 60), st.integers(1, 3 * SLACK)),
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.lists(additions, max_size=80),
            st.integers(1, 40),
            st.floats(0.01, 7),
        ),
        max_size=30,
    )
)
def test_every_task_is_claimed_once_and_none_stays_below_the_marks(
    steps: list[list[tuple[int, int, int | None]] | int | float],
) -> None:
    async def main() -> None:
        index = Index()
        claims = ShardedClaims(index.run, index.run, POLLING_INTERVAL)
        clock = 0
        added: set[int] = set()
        taken: list[int] = []
        for step in steps:
            clock += SLACK // 10
            if isinstance(step, list):
                for shard, priority, behind in step:
                    clock += 1
                    task_id = NOW + clock if behind is None else NOW + clock - behind
                    if task_id not in added:
                        added.add(task_id)
                        index.pending.add(Entry(shard, priority, task_id))
            elif isinstance(step, int):
                rows = await claims.claim(parameters(step))
                assert [(row[8], row[0]) for row in rows] == sorted((row[8], row[0]) for row in rows)
                taken += ids(rows)
            else:
                await trio.sleep(step)
        began = trio.current_time()
        while index.pending:
            found = ids(await claims.claim(parameters(16)))
            taken += found
            if not found:
                await trio.sleep(0.5)
                assert trio.current_time() - began < SURVEY_AT_MOST + 10
        assert len(taken) == len(set(taken))
        assert set(taken) == added

    trio.run(main, clock=MockClock(autojump_threshold=0))
