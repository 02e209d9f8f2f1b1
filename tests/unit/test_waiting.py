"""What a pending task waits for, in words: on the command line and on its page."""

from __future__ import annotations

import datetime as dt

import pytest
import trio
from trio.testing import MockClock

from continuum.cli.follow import UNTAKEN, follow_task
from continuum.cli.story import tell_story
from continuum.db.memory import MemoryDatabase
from continuum.model import HeldBackBy, Limit, NewTask, Scope, TaskRecord, WaitsFor, WorkerRecord, WorkerReport
from continuum.waiting import in_words
from tests.unit.test_cli_output import Memory
from tests.unit.test_status_app import client

NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)


def worker(*, running: int = 0, alive: bool = True, draining: bool = False) -> WorkerRecord:
    return WorkerRecord("one", "host", 7, "0", 4, running, "docker", NOW, NOW, None, alive, 0, 0, 0, 0, 0, draining)


async def record(database: MemoryDatabase, task: NewTask) -> TaskRecord:
    (task_id,) = await database.submit([task])
    return (await database.fetch([task_id]))[0]


@pytest.mark.parametrize(
    ("workers", "tags", "words"),
    [
        ([], (), "a worker: none is alive"),
        ([worker(alive=False)], (), "a worker: none is alive"),
        ([worker(draining=True), worker(alive=False)], (), "a worker: all that are alive were asked to drain"),
        ([worker(running=4), worker(draining=True)], (), "a free slot: all 4 are in use"),
        ([worker(running=4), worker()], (), "a worker to claim it"),
        ([worker()], ("eu", "gpu"), "a worker with the tags eu, gpu"),
    ],
)
async def test_who_could_run_it_is_told_where_nothing_holds_it_back(
    workers: list[WorkerRecord], tags: tuple[str, ...], words: str
) -> None:
    task = await record(MemoryDatabase(), NewTask(code="hello", worker_tags=tags))
    assert in_words(task, WaitsFor(None), workers) == words


async def test_others_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    database = MemoryDatabase()
    one, two = await database.submit([NewTask(code="hello")] * 2)
    both = await record(database, NewTask(code="hello", depends_on=(one, two)))
    either = await record(database, NewTask(code="hello", depends_on=(one, two), depends_any=True))
    key = await record(database, NewTask(code="hello", concurrency_key="shop"))
    waits = await database.waits_for(both.id)
    assert in_words(both, waits, []) == f"others to end: {one}, {two}"
    assert in_words(either, waits, []) == f"one of these to complete: {one}, {two}"
    assert in_words(key, await database.waits_for(key.id), []) == "a place among those with the key shop"
    await database.cancel(one)
    await database.cancel(two)
    assert in_words(both, await database.waits_for(both.id), []) == (
        "a worker to see that it need wait for no other any more"
    )
    await tell_story(database, both)
    assert "waits for a worker to see" in " ".join(capsys.readouterr().out.split())


async def test_what_it_waits_by_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    database = MemoryDatabase()
    task = await record(
        database, NewTask(code="hello", sequence_key="of <b>", concurrency_key="shop", worker_tags=("eu", "gpu"))
    )
    await tell_story(database, task)
    shown = capsys.readouterr().out
    for line in ("sequence key of <b>", "concurrency key shop", "worker tags eu, gpu"):
        assert line in " ".join(shown.split())
    shown = await (await client(database).get(f"/ui/tasks/{task.id}")).get_data(as_text=True)
    for line in (
        "In order with</dt><dd>of &lt;b&gt;",
        "Shares places with</dt><dd>shop",
        "Worker tags</dt><dd>eu, gpu",
    ):
        assert line in shown


async def test_who_follows_a_task_is_told_as_well(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    database = MemoryDatabase()
    await database.report(WorkerReport("one", "host", 1, "0", 4, 0, "fake"))
    await database.set_limit(Limit(Scope.QUEUE, "", paused=True))
    task = await record(database, NewTask(code="hello"))
    free = await record(database, NewTask(code="hello", concurrency_key="shop"))
    await database.admit_page()
    with trio.move_on_after(2 * UNTAKEN):
        await follow_task(Memory(database), task.id)
    await database.set_limit(Limit(Scope.QUEUE, "", paused=False))
    with trio.move_on_after(2 * UNTAKEN):
        await follow_task(Memory(database), free.id)
    paused, unclaimed = capsys.readouterr().err.splitlines()
    assert paused == f"continuum: task {task.id} waits for the queue, which is paused"
    assert unclaimed.startswith(f"continuum: task {free.id} waits for a worker to claim it; does MIN_PRIORITY")


async def test_the_page_of_a_task_says_so_until_it_has_begun() -> None:
    database = MemoryDatabase()
    await database.set_limit(Limit(Scope.TENANT, "a", paused=True))
    task = await record(database, NewTask(code="hello", tenant="a"))
    assert await database.waits_for(task.id) == WaitsFor(HeldBackBy.TENANT_PAUSED)
    asking = client(database)
    shown = await (await asking.get(f"/ui/tasks/{task.id}")).get_data(as_text=True)
    assert "<dt>Waits for</dt><dd>its tenant, which is paused</dd>" in shown
    await database.clear_limit(Scope.TENANT, "a")
    await database.claim("one", 1, lease=30)
    shown = await (await client(database).get(f"/ui/tasks/{task.id}")).get_data(as_text=True)
    assert "Waits for" not in shown
