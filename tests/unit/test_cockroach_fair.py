"""Claiming on CockroachDB, against a model of the index and of PERMITS that counts what is asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.db import cockroach_claim, cockroach_ring, cockroach_waiting, permits
from continuum.db import cockroach_fair as fair
from continuum.db.cockroach_fair import HINTS_SUFFICE, FairClaims
from continuum.db.cockroach_ring import READ, Entry, hash_of
from continuum.db.cockroach_waiting import SHARDS
from continuum.db.dialect import Rows
from continuum.db.errors import DatabaseUnavailable

NOW = 1 << 60
"""An id of now, as unique_rowid() makes them."""

STATEMENTS = {
    value: name.lower()
    for module in (cockroach_claim, cockroach_ring, cockroach_waiting, permits)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
}


def entry(shard: int, priority: int, task_id: int, tenant: str | None = None) -> Entry:
    return Entry("", tenant, priority, shard, task_id)


@dataclass
class Index:
    """Pending tasks, and how many tasks of a tenant may run; understands the statements by what they are."""

    pending: set[Entry] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    taken: set[tuple[str, int]] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    failures: list[DatabaseUnavailable | None] = field(default_factory=list)

    async def run(self, statement: str, parameters: Mapping[str, Any] | None = None, **_: bool) -> Rows:
        await trio.sleep(0.002)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        assert parameters is not None
        self.asked.append(STATEMENTS[statement])
        answer: Rows = getattr(self, self.asked[-1])(parameters)
        return answer

    def _in_order(self) -> list[Entry]:
        return sorted(self.pending, key=lambda each: (*in_ring(each), *each[2:]))

    def walk(self, where: Mapping[str, Any]) -> list[Entry]:
        found = [each for each in self._in_order() if each.tags in where["tags"]]
        return [each for each in found if where["first"] <= hash_of(each.tenant) <= where["last"]][:READ]

    def walk_on(self, where: Mapping[str, Any]) -> list[Entry]:
        found = [each for each in self._in_order() if each.tags == where["tags"] and each.tenant is not None]
        beyond = where["ring"], where["beyond"]
        found = [each for each in found if (hash_of(each.tenant), each.tenant or "") >= beyond]
        return [each for each in found if hash_of(each.tenant) <= where["last"]][:READ]

    def _place(self, where: Mapping[str, Any]) -> list[Entry]:
        assert where["ring"] == hash_of(where["tenant"])
        return [each for each in self._in_order() if each.place == (where["tags"], where["tenant"])]

    def head(self, where: Mapping[str, Any]) -> list[Entry]:
        return [each for each in self._place(where) if where["min_priority"] <= each.priority <= where["max_priority"]][
            :READ
        ]

    def window(self, where: Mapping[str, Any]) -> list[Entry]:
        found = [each for each in self._place(where) if each.priority == where["priority"]]
        return [each for each in found if (each.shard, each.id) > (where["shard"], where["id"])][:READ]

    def still_there(self, where: Mapping[str, Any]) -> Rows:
        return [(each.id,) for each in self.pending if each.id in where["ids"]]

    def find_limits(self, where: Mapping[str, Any]) -> Rows:
        known = self.limits.keys() | self.weights.keys()
        return [
            ("tenant", name, self.weights.get(name), self.limits.get(name), None, None, None)
            for name in where["names"]
            if name in known
        ]

    def find_permits(self, where: Mapping[str, Any]) -> Rows:
        return [
            (resource, most, [number for number in range(most) if (resource, number) not in self.taken], None, False)
            for resource, most in zip(where["resources"], where["mosts"], strict=True)
        ]

    def claim_keys(self, where: Mapping[str, Any]) -> Rows:
        found = [each for each in sorted(self.pending, key=order) if each.id in where["ids"]]
        self.pending.difference_update(found)
        return [(each.id, *[None] * 7, each.priority) for each in found]

    def claim_limited(self, where: Mapping[str, Any]) -> Rows:
        ids = []
        for task_id, permit in zip(
            where["ids"], zip(where["running"], where["running_numbers"], strict=True), strict=True
        ):
            if permit not in self.taken and any(each.id == task_id for each in self.pending):
                ids.append(task_id)
                if permit[0] is not None:
                    self.taken.add(permit)
        assert len(set(where["ids"])) == len(where["ids"])
        return self.claim_keys({"ids": ids})


def in_ring(each: Entry) -> tuple[Any, ...]:
    return each.tags, hash_of(each.tenant), each.tenant is not None, each.tenant or ""


def order(each: Entry) -> tuple[int, int]:
    return each.priority, each.id


def parameters(limit: int) -> dict[str, Any]:
    bounds = {"min_priority": -(2**31), "max_priority": 2**31 - 1}
    return {"worker": "w", "limit": limit, "lease": 30.0, "tags": (), **bounds}


async def take(claims: FairClaims, wanted: Mapping[str, Any]) -> Rows:
    rows, _ = await claims.claim(wanted)
    return rows


def ids(rows: Rows) -> list[int]:
    return [row[0] for row in rows]


async def test_a_short_queue_costs_three_statements_and_an_empty_one_a_single_read(autojump_clock: MockClock) -> None:
    index = Index({entry(number, number % 3, NOW + number) for number in range(16)})
    claims = FairClaims(index.run, index.run)
    assert len(await take(claims, parameters(20))) == 16
    assert index.asked == ["walk", "find_limits", "claim_keys"]
    index.asked.clear()
    assert await take(claims, parameters(20)) == []
    assert index.asked == ["walk"]


async def test_a_task_that_was_told_of_is_claimed_without_a_look(autojump_clock: MockClock) -> None:
    index = Index()
    claims = FairClaims(index.run, index.run)
    assert await take(claims, parameters(4)) == []
    index.asked.clear()
    index.pending.add(entry(3, 0, NOW))
    claims.hint(entry(3, 0, NOW))
    assert ids(await take(claims, parameters(4))) == [NOW]
    assert index.asked == ["find_limits", "claim_keys"]
    claims.hint(entry(3, 0, NOW))
    assert await take(claims, parameters(4)) == [], "somebody else was quicker"
    assert index.asked == [*["find_limits", "claim_keys"] * 2, "walk"]


async def test_tasks_that_were_told_of_do_not_keep_a_worker_from_one_that_nobody_told_of(
    autojump_clock: MockClock,
) -> None:
    index = Index()
    claims = FairClaims(index.run, index.run)
    await take(claims, parameters(1))
    urgent = entry(1, -5, NOW)
    index.pending.add(urgent)
    began = trio.current_time()
    number = 0
    while urgent in index.pending:
        number += 1
        told = entry(number % SHARDS, 3, NOW + number)
        index.pending.add(told)
        claims.hint(told)
        await take(claims, parameters(1))
        await trio.sleep(0.01)
    assert trio.current_time() - began < HINTS_SUFFICE + 0.1


async def test_what_a_worker_was_told_of_and_cannot_take_yet_is_taken_next_and_in_order(
    autojump_clock: MockClock,
) -> None:
    index = Index()
    claims = FairClaims(index.run, index.run)
    await take(claims, parameters(1))
    index.pending = {entry(number % SHARDS, 0, NOW + number) for number in range(12)}
    for each in index.pending:
        claims.hint(each)
    index.asked.clear()
    assert [ids(await take(claims, parameters(1))) for _ in range(12)] == [[NOW + number] for number in range(12)]
    assert index.asked == ["find_limits", "claim_keys"] * 12


async def test_more_than_a_worker_remembers_being_told_of_is_looked_for(autojump_clock: MockClock) -> None:
    index = Index()
    claims = FairClaims(index.run, index.run)
    await take(claims, parameters(1))
    index.pending = {entry(number % SHARDS, 0, NOW + number) for number in range(80)}
    for each in index.pending:
        claims.hint(each)
    assert len(await take(claims, parameters(99))) == 80


async def test_a_backlog_that_others_have_emptied_is_not_the_end_of_the_search(autojump_clock: MockClock) -> None:
    index = Index({entry(number % SHARDS, 0, NOW + number) for number in range(200)})
    claims = FairClaims(index.run, index.run)
    await take(claims, parameters(1))
    index.pending = {entry(number % SHARDS, 1, NOW + number) for number in range(1600)}
    assert len(await take(claims, parameters(16))) == 16


async def test_an_urgent_task_hides_none_of_those_that_were_there_before(autojump_clock: MockClock) -> None:
    old = {entry(number % SHARDS, 5, NOW + number) for number in range(1600)}
    index = Index(set(old))
    claims = FairClaims(index.run, index.run)
    await take(claims, parameters(1))
    index.pending |= {entry(number % SHARDS, 1, NOW + 10_000 + number) for number in range(64)}
    taken = [task for _ in range(64 + 400) for task in ids(await take(claims, parameters(1)))]
    assert len(taken) == 64 + 400


async def test_bounds_of_priority_leave_the_order_as_it_is(autojump_clock: MockClock) -> None:
    index = Index({entry(number % SHARDS, 1 if number < 96 else 2, NOW + number) for number in range(1696)})
    claims = FairClaims(index.run, index.run)
    found = await take(claims, parameters(16) | {"min_priority": 1})
    assert {row[8] for row in found} == {1}


async def test_a_claim_brings_home_what_it_has_long_before_the_lease_of_that_is_over(
    autojump_clock: MockClock,
) -> None:
    index = Index({entry(number % SHARDS, 0, NOW + number) for number in range(400)})

    async def slow(*arguments: Any, **options: Any) -> Rows:
        await trio.sleep(2)
        return await index.run(*arguments, **options)

    claims = FairClaims(slow, index.run)
    began = trio.current_time()
    assert await take(claims, parameters(64))
    assert trio.current_time() - began < 5


async def test_hints_outside_the_worker_s_priorities_are_not_claimed(autojump_clock: MockClock) -> None:
    index = Index({entry(3, 7, NOW)})
    claims = FairClaims(index.run, index.run)
    claims.hint(entry(3, 7, NOW))
    assert await take(claims, parameters(4) | {"max_priority": 5}) == []


async def test_what_is_more_urgent_in_another_part_is_seen_within_a_second(autojump_clock: MockClock) -> None:
    index = Index({entry(number % SHARDS, 5, NOW + number) for number in range(4000)})
    claims = FairClaims(index.run, index.run)
    await take(claims, parameters(5))
    index.pending.add(entry(9, -1, NOW + 10_000))
    began = trio.current_time()
    while NOW + 10_000 not in ids(await take(claims, parameters(1))):
        pass
    assert trio.current_time() - began < 1.1


async def test_a_look_that_took_long_once_does_not_keep_a_new_tenant_waiting(autojump_clock: MockClock) -> None:
    index = Index({entry(number % SHARDS, 5, NOW + number) for number in range(2000)})
    claims = FairClaims(index.run, index.run)

    async def slow(*arguments: Any, **options: Any) -> Rows:
        await trio.sleep(3)  # as when a node dies
        return await index.run(*arguments, **options)

    await take(claims, parameters(5))
    claims._walk._read = slow
    with trio.move_on_after(20):
        while claims._walk_at - trio.current_time() < fair.LONGEST_REST / 2:
            await take(claims, parameters(1))
    claims._walk._read = index.run
    index.pending.add(entry(9, 5, NOW + 30_000, "new"))
    with trio.fail_after(fair.LONGEST_REST + 1):
        while NOW + 30_000 not in ids(await take(claims, parameters(5))):
            await trio.sleep(0.2)


async def test_what_was_claimed_before_a_failure_is_returned_and_the_failure_raised_next(
    autojump_clock: MockClock,
) -> None:
    index = Index({entry(number % SHARDS, 0, NOW + number) for number in range(130)})
    claims = FairClaims(index.run, index.run)
    failure = DatabaseUnavailable("gone")

    async def robbed(*arguments: Any, **options: Any) -> Rows:
        index.pending = {each for each in index.pending if each.id % 2}
        index.failures = [None, failure]  # after this claim, the look for more
        return await index.run(*arguments, **options)

    claims._run = robbed
    assert 0 < len(await take(claims, parameters(20))) < 20
    with pytest.raises(DatabaseUnavailable) as raised:
        await take(claims, parameters(20))
    assert raised.value is failure
    claims._run = index.run
    assert await take(claims, parameters(60))


@pytest.mark.parametrize("shard", [0, 7, SHARDS - 1])
async def test_what_is_left_in_one_part_is_found_wherever_a_worker_begins(
    autojump_clock: MockClock, shard: int
) -> None:
    for _ in range(20):
        index = Index({entry(shard, 0, NOW + number) for number in range(100)})
        assert len(await take(FairClaims(index.run, index.run), parameters(100))) == 100


async def test_a_long_queue_costs_a_claim_few_reads(autojump_clock: MockClock) -> None:
    index = Index({entry(number % SHARDS, 0, NOW + number) for number in range(4000)})
    claims = FairClaims(index.run, index.run)
    taken: list[int] = []
    for _ in range(400):
        taken += ids(await take(claims, parameters(5)))
    assert len(set(taken)) == 2000
    asked = Counter(index.asked)
    assert asked["claim_keys"] <= 440, asked
    assert asked["head"] + asked["window"] <= 80, asked
    assert asked["walk"] + asked["walk_on"] <= 2 + 2 * 400 * 0.01 / (fair.WALK_COST * 0.002), asked


async def test_shares_are_by_weight_and_no_tenant_is_left_out(autojump_clock: MockClock) -> None:
    tenants = [f"t{number:03}" for number in range(30)]
    pending = {entry(n % SHARDS, 0, NOW + 100 * n + k, name) for k, name in enumerate(tenants) for n in range(70)}
    index = Index(set(pending), weights={"t007": 3.0})
    claims = FairClaims(index.run, index.run)
    whose = {each.id: each.tenant for each in pending}
    count = Counter[str | None]()
    for _ in range(80):
        count.update(whose[each] for each in ids(await take(claims, parameters(4))))
    assert min(count[name] for name in tenants) >= 6
    assert 24 <= count["t007"] <= 40
    assert max(count[name] for name in tenants if name != "t007") <= 14


async def test_workers_that_know_nothing_of_each_other_have_served_all_alike_after_a_round(
    autojump_clock: MockClock,
) -> None:
    whose = {NOW + 100 * n + k: f"t{k:03}" for k in range(50) for n in range(30)}
    index = Index({entry(each % SHARDS, 0, each, tenant) for each, tenant in whose.items()})
    count = Counter[str]()
    firsts: list[str] = []
    asked = 0

    async def work() -> None:
        nonlocal asked
        claims = FairClaims(index.run, index.run)
        firsts.append(whose[ids(await take(claims, parameters(1)))[0]])
        while count.total() < 6 * 50:
            asked += 1
            count.update(whose[each] for each in ids(await take(claims, parameters(4))))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(work)
    assert len(set(firsts)) >= 3, "they begin at different places"
    assert 3 <= min(count.values()) <= max(count.values()) <= 9, count
    assert len(count) == 50
    assert Counter(index.asked)["walk_on"] <= 8 * asked


async def test_no_task_takes_two_permits(autojump_clock: MockClock) -> None:
    index = Index({entry(n % SHARDS, 0, NOW + n) for n in range(400)}, limits={"": 300})
    claims = FairClaims(index.run, index.run)
    taken: list[int] = []
    for _ in range(8):
        taken += ids(await take(claims, parameters(50)))
    assert len(taken) == len(index.taken) == 300


async def test_of_a_limited_tenant_no_more_is_claimed_than_there_are_permits(autojump_clock: MockClock) -> None:
    index = Index({entry(n % SHARDS, 0, NOW + n, "ab"[n % 2]) for n in range(400)}, limits={"a": 3, "b": 0})
    workers = [FairClaims(index.run, index.run) for _ in range(4)]
    claimed = Counter[int]()

    async def claim(number: int) -> None:
        for _ in range(3):
            claimed[number] += len(await take(workers[number], parameters(4)))

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(claim, number)
    assert claimed.total() == len(index.taken) == 3


async def test_who_finds_all_that_it_knew_taken_by_others_claims_no_more_often_for_that(
    autojump_clock: MockClock,
) -> None:
    """Others were there since a worker read what waits: it looks before it claims."""
    whose = {NOW + 100 * n + k: f"t{k:03}" for k in range(12) for n in range(40)}
    index = Index({entry(each % SHARDS, 0, each, tenant) for each, tenant in whose.items()})
    workers = [FairClaims(index.run, index.run) for _ in range(5)]
    count = Counter[str]()
    for _ in range(12):
        for claims in workers:
            count.update(whose[each] for each in ids(await take(claims, parameters(4))))
    assert count.total() == 240
    assert max(count.values()) - min(count.values()) <= 2, count
    assert Counter(index.asked)["claim_keys"] <= 60 * 1.3, Counter(index.asked)


async def test_others_being_quicker_lets_nothing_that_is_less_urgent_go_first(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index({entry(n % SHARDS, n // 10, NOW + n) for n in range(40)})
    claims = FairClaims(index.run, index.run)

    def robbed(where: Mapping[str, Any]) -> Rows:
        monkeypatch.undo()
        index.pending = {each for each in index.pending if each.id not in where["ids"]}
        return index.claim_keys(where)

    monkeypatch.setattr(index, "claim_keys", robbed)
    assert {row[8] for row in await take(claims, parameters(4))} == {0}


@pytest.mark.parametrize("limited", [False, True])
async def test_a_claim_ends_where_somebody_holds_what_waits_locked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    index = Index({entry(3, 0, NOW, "a")}, limits={"a": 1000} if limited else {})
    for name in ("claim_keys", "claim_limited"):
        monkeypatch.setattr(index, name, lambda where: [])
    claims = FairClaims(index.run, index.run)
    began = trio.current_time()
    assert await take(claims, parameters(4)) == []
    assert trio.current_time() - began < 1
    assert Counter(index.asked)["claim_limited" if limited else "claim_keys"] == fair.TRIES + 1


async def test_a_claim_ends_where_all_are_held_back_and_looking_takes_long(autojump_clock: MockClock) -> None:
    names = [f"t{k:02}" for k in range(12)]
    pending = {entry(n % SHARDS, 0, NOW + 100 * n + k, name) for k, name in enumerate(names) for n in range(70)}
    index = Index(pending, limits=dict.fromkeys(names, 0))

    async def slow(*arguments: Any, **options: Any) -> Rows:
        await trio.sleep(0.4)
        return await index.run(*arguments, **options)

    with trio.fail_after(60):
        assert await take(FairClaims(slow, slow), parameters(4)) == []


async def test_all_who_wake_for_a_few_tasks_find_some(autojump_clock: MockClock) -> None:
    """Each is after the first one, and looks for another where it was not the quickest."""
    index = Index({entry(n % SHARDS, 0, NOW + n) for n in range(12)})
    workers = [FairClaims(index.run, index.run) for _ in range(3)]
    taken: list[int] = []

    async def claim(claims: FairClaims) -> None:
        found = ids(await take(claims, parameters(1)))
        assert len(found) == 1
        taken.extend(found)

    async with trio.open_nursery() as nursery:
        for claims in workers:
            nursery.start_soon(claim, claims)
    assert len(set(taken)) == 3


async def test_what_was_told_of_and_not_claimed_for_a_failure_is_looked_for_next(autojump_clock: MockClock) -> None:
    index = Index()
    claims = FairClaims(index.run, index.run)
    assert await take(claims, parameters(4)) == []
    index.pending = {entry(3, 0, NOW), entry(4, 0, NOW + 1)}
    claims.hint(entry(3, 0, NOW))
    claims.hint(entry(4, 0, NOW + 1))
    index.failures = [None, DatabaseUnavailable("gone")]
    with pytest.raises(DatabaseUnavailable):
        await take(claims, parameters(1))
    claims.hint(entry(5, 0, NOW + 2))
    assert sorted(ids(await take(claims, parameters(4)))) == [NOW, NOW + 1]


async def test_where_tasks_keep_coming_a_tenant_is_not_lost_sight_of(autojump_clock: MockClock) -> None:
    tenants = [f"t{k:02}" for k in range(20)]
    index = Index({entry(n % SHARDS, 0, NOW + 100 * n + k, name) for k, name in enumerate(tenants) for n in range(8)})
    whose = {each.id: each.tenant for each in index.pending}
    claims = FairClaims(index.run, index.run)
    for n in range(40):  # as many come as go
        for each in ids(await take(claims, parameters(4))):
            new = entry(n % SHARDS, 0, NOW + 10_000 + each, whose[each])
            index.pending.add(new)
            whose[new.id] = new.tenant
    served = Counter(name for each, name in whose.items() if all(each != entry.id for entry in index.pending))
    assert max(served.values()) - min(served[name] for name in tenants) <= 2, served


async def test_permits_are_made_as_they_are_needed() -> None:
    made: list[tuple[int, int]] = []
    free: list[int] = []

    async def read(statement: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        if statement == permits.FIND_LIMITS:
            return [("tenant", "a", None, 10_000, None, None, None)]
        return [("running:a", made[-1][1], list(free), None, False)] if made else []

    async def run(
        statement: str, parameters: Mapping[str, Any] | None = None, *, writes: bool = False, keyed: bool = False
    ) -> Rows:
        assert parameters is not None
        made.append((parameters["haves"][0], parameters["mosts"][0]))
        free.extend(range(made[-1][0] + 1, made[-1][1] + 1))
        return []

    limits = permits.Limits(run, read, (), 40)
    await limits.learn(["a"])
    assert limits.of("a").room == 40
    del free[5:]  # others took the rest
    await permits.Limits(run, read, (), 40).learn(["a"])
    assert made == [(0, 40), (40, 120)]


additions = st.tuples(
    st.integers(0, SHARDS - 1),
    st.sampled_from([0, 0, 0, -5, 3, 10]),
    st.sampled_from([None, None, "a", "b"]),
    st.one_of(st.just(None), st.integers(1, 60), st.integers(1, 1 << 40)),
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
def test_every_task_is_claimed_once_and_none_is_left(
    steps: list[list[tuple[int, int, str | None, int | None]] | int | float],
) -> None:
    async def main() -> None:
        index = Index()
        claims = FairClaims(index.run, index.run)
        clock = 0
        added: set[int] = set()
        taken: list[int] = []
        for step in steps:
            clock += 1 << 30
            if isinstance(step, list):
                for shard, priority, tenant, behind in step:
                    clock += 1
                    task_id = NOW + clock if behind is None else NOW + clock - behind
                    if task_id not in added:
                        added.add(task_id)
                        index.pending.add(entry(shard, priority, task_id, tenant))
            elif isinstance(step, int):
                rows = await take(claims, parameters(step))
                assert [(row[8], row[0]) for row in rows] == sorted((row[8], row[0]) for row in rows)
                taken += ids(rows)
            else:
                await trio.sleep(step)
        began = trio.current_time()
        while index.pending:
            found = ids(await take(claims, parameters(16)))
            taken += found
            if not found:
                await trio.sleep(0.5)
                assert trio.current_time() - began < 10
        assert len(taken) == len(set(taken))
        assert set(taken) == added

    trio.run(main, clock=MockClock(autojump_threshold=0))
