"""Tasks that depend on others: in a whole worker, under whatever order of events, and the rules alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.db.errors import InvalidTask
from continuum.db.memory import MemoryDatabase
from continuum.dependencies import MOST_DEPENDENCIES, Standing, judge, payload_with
from continuum.model import BatchProgress, ClaimedTask, Completion, Dependency, NewTask, Status, Told
from tests.support.harness import worker


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


async def test_a_task_runs_after_those_that_it_depends_on_and_is_told_of_them(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database) as w:
        first, second = await w.submit("sleep 3", "hello", payload="1")
        (last,) = await w.submit("hello", depends_on=(second, first), payload='{"n": 1}')
        began = trio.current_time()
        records = await w.wait_for(first, second, last)
        assert trio.current_time() - began < 3 + 0.7, "directly after"
    assert [record.status for record in records] == ["completed"] * 3
    told = json.loads(w.backend.ran[-1].payload)
    assert told["n"] == 1
    assert [(each["id"], each["status"], each["output"]) for each in told["dependencies"]] == [
        (second, "completed", "hello 1"),
        (first, "completed", "sleep 1"),
    ]


async def test_a_failure_goes_through_all_that_depend_on_it_at_once(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, polling_interval=1000) as w:
        (first,) = await w.submit("exit 3", max_attempts=1)
        (second,) = await w.submit("hello", depends_on=(first,))
        (third,) = await w.submit("hello", depends_on=(second,))
        (anyway,) = await w.submit("hello", depends_on=(third,), depends_ended=True)
        _, second_record, third_record, last = await w.wait_for(first, second, third, anyway, seconds=20)
    assert (second_record.status, second_record.last_error) == (
        "cancelled",
        f"Not run: task {first}, which it depends on, failed",
    )
    assert third_record.last_error == f"Not run: task {second}, which it depends on, was cancelled"
    assert last.status == "completed"
    assert json.loads(w.backend.ran[-1].payload)["dependencies"][0]["status"] == "cancelled"


async def test_a_task_waits_out_an_outage_for_what_it_is_to_be_told(
    autojump_clock: MockClock, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    dependencies = MemoryDatabase.dependencies

    async def breaks(self: MemoryDatabase, task_id: int) -> Told:
        if not broken:
            broken.append(True)
            self.unavailable = True
        return await dependencies(self, task_id)

    broken: list[bool] = []
    monkeypatch.setattr(MemoryDatabase, "dependencies", breaks)
    async with worker(database) as w:
        (first,) = await w.submit("hello")
        (second,) = await w.submit("hello", depends_on=(first,))
        with trio.fail_after(60):
            while not broken:
                await trio.sleep(0.01)
        await trio.sleep(10)
        database.unavailable = False
        (record,) = await w.wait_for(second, seconds=60)
    assert record.status == "completed"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"depends_on": (99,)}, "there is no task 99 of the same tenant"),
        ({"depends_on": (1,), "tenant": "other"}, "there is no task 1 of the same tenant"),
        ({"depends_on": (0,)}, "names 0, which is no id"),
        ({"depends_on": ("1",)}, "use a tuple of ids"),
        ({"depends_on": 1}, "use a tuple of ids"),
        ({"depends_on": tuple(range(1, MOST_DEPENDENCIES + 2))}, f"at most {MOST_DEPENDENCIES}"),
        ({"depends_on": (1,), "depends_any": 1}, "use True or False"),
    ],
)
async def test_dependencies_that_cannot_be_are_refused(
    database: MemoryDatabase, values: dict[str, Any], problem: str
) -> None:
    await database.submit([NewTask(code="pass")])
    with pytest.raises(InvalidTask, match=problem):
        await database.submit([NewTask(code="pass", **values)])


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ("null", {}),
        ("{}", {}),
        (' {"a": {"b": 1}} ', {"a": {"b": 1}}),
        ('{"dependencies": 5}', {}),
        ("[1, 2]", {"payload": [1, 2]}),
        ('"text"', {"payload": "text"}),
    ],
)
def test_dependencies_stand_in_the_payload_beside_what_it_is(payload: str, told: dict[str, Any]) -> None:
    dependency = Dependency(1, 'a "name"', "completed", 0, "out\nput")
    assert json.loads(payload_with(payload, Told([dependency]))) == told | {
        "dependencies": [
            {
                "id": 1,
                "name": 'a "name"',
                "status": "completed",
                "exit_code": 0,
                "output": "out\nput",
                "left_out": False,
            }
        ]
    }


STATES = st.lists(st.sampled_from(["open", "completed", "failed", None]), max_size=6)


def test_a_batch_stands_in_the_payload_beside_its_tasks() -> None:
    batch = BatchProgress("a", completed=2, failed=1)
    told = {"name": "a", "total": 3, "pending": 0, "processing": 0, "completed": 2, "failed": 1}
    assert json.loads(payload_with('{"n": 1}', Told([], batch))) == {
        "n": 1,
        "dependencies": [],
        "batch": told | {"cancelled": 0, "malicious": 0},
    }


@given(states=STATES, any_one=st.booleans(), ended_enough=st.booleans())
def test_a_verdict_is_final_and_there_is_one_once_all_have_ended(
    states: list[str | None], any_one: bool, ended_enough: bool
) -> None:
    def verdict(states: list[str | None]) -> object:
        others: dict[int | None, str | None] = {
            number: "pending" if each == "open" else each for number, each in enumerate(states)
        }
        found = judge(others, any_one=any_one, ended_enough=ended_enough)
        standing = Standing("b", {status or "": number or 0 for number, status in others.items()})
        if None not in states and states:
            assert isinstance(found, str) == isinstance(of_batch(standing), str)
            assert (found is None) == (of_batch(standing) is None)
        return found

    def of_batch(standing: Standing) -> object:
        return judge({}, standing, any_one=any_one, ended_enough=ended_enough)

    now = verdict(states)
    assert now is not None or "open" in states
    for ending in ("completed", "failed"):
        later = verdict([ending if each == "open" else each for each in states])
        assert later is not None
        assert now is None or isinstance(later, str) == isinstance(now, str)
    good = [each for each in states if each == "completed" or (ended_enough and each != "open")]
    assert (now is True) == (not states or (bool(good) if any_one else len(good) == len(states)))


EVENTS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sets(st.integers(1, 8), max_size=4),
        st.booleans(),
        st.booleans(),
        st.sampled_from([None, None, "a"]),
        st.sampled_from([None, None, "a"]),
        st.sampled_from([None, None, "a", "b"]),
        st.sampled_from([None, None, None, "a", "b"]),
    ),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from([Status.COMPLETED, Status.FAILED, Status.PENDING])),
    st.tuples(st.just("cancel"), st.integers(1, 8)),
    st.tuples(st.just("delete"), st.integers(1, 8)),
    st.tuples(st.just("rewrite"), st.integers(1, 8), st.sets(st.integers(1, 8), max_size=3)),
    st.tuples(st.just("retry"), st.integers(1, 8)),
    st.tuples(st.just("sweep")),
)


@settings(max_examples=60, deadline=None)
@given(events=st.lists(EVENTS, max_size=50))
def test_nothing_begins_before_its_time_and_everything_ends_in_any_graph(events: list[tuple[Any, ...]]) -> None:
    trio.run(_play, events)


async def _play(events: list[tuple[Any, ...]]) -> None:
    database = MemoryDatabase()
    held: list[ClaimedTask] = []
    end = [("sweep",), ("claim", 9), ("end", 0, Status.COMPLETED)] * (4 * len(events) + 4)
    for name, *values in [*events, *end]:
        match name:
            case "submit":
                wanted, any_one, ended_enough, sequence, key, batch, after = values
                there = tuple(each for each in sorted(wanted) if each in database.tasks)
                how = {"depends_any": any_one, "depends_ended": ended_enough}
                of = {"sequence_key": sequence, "concurrency_key": key, "batch": batch}
                if after is not None and after != batch and (await database.batch(None, after)).total:
                    of["depends_batch"] = after
                await database.submit([NewTask(code="pass", depends_on=there, **of, **how)])
            case "claim":
                claimed = await database.claim("w", values[0], lease=1000)
                for each in claimed:
                    _check_turn(database, each)
                held += claimed
            case "end" if held:
                task = held.pop(values[0] % len(held))
                await database.complete("w", [Completion(task.id, task.attempt, values[1], 0, "", "", None)])
                to_follow = [task.id]
                while to_follow:
                    to_follow = list((await database.admit_after(to_follow)).cancelled)
            case "cancel":
                await database.cancel(values[0])
            case "delete" if values[0] in database.tasks and database.tasks[values[0]].finished_for_good:
                del database.tasks[values[0]]
            case "rewrite" if values[0] in database.tasks and database.tasks[values[0]].gated:
                database.tasks[values[0]] = _rewritten(database, *values)
            case "retry":
                await database.retry(values[0])
            case "sweep":
                await database.admit_page()
    assert all(task.finished_for_good for task in database.tasks.values()), "nothing is stuck"


def _rewritten(database: MemoryDatabase, task_id: int, wanted: set[int]) -> Any:
    """As somebody may with SQL, who makes circles."""
    return replace(database.tasks[task_id], depends_on=tuple(sorted(wanted)))


def _check_turn(database: MemoryDatabase, claimed: ClaimedTask) -> None:
    task = database.tasks[claimed.id]
    if not task.depends_on or claimed.attempt > 1 or (task.depends_any and task.depends_batch):
        return
    others = [database.tasks.get(each) for each in task.depends_on]
    good = [
        (other is None or other.finished_for_good)
        if task.depends_ended
        else other is not None and other.status == Status.COMPLETED
        for other in others
    ]
    gone = None in others and not task.depends_ended  # one that was deleted after it was admitted
    assert gone or (any(good) if task.depends_any else all(good))
