"""What operators say at run time to workers that they reach through the database alone: drain, undrain, pause, resume."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import trio

from continuum.db.protocol import Database
from continuum.model import NewTask, Status, TaskRecord
from tests.e2e.test_cli import run
from tests.support.installation import Installation
from tests.support.workers import WorkerProcess, start_worker

LONG = "import time; time.sleep(4)"
SHORT = "print('done')"
QUICK_HEARTBEATS = {"LEASE_SECONDS": "3"}
DEADLINE = 30.0


async def ended(database: Database, tasks: list[int]) -> list[TaskRecord]:
    """Wait until tasks have ended, and read them."""
    with trio.fail_after(DEADLINE):
        while not all(one.finished_for_good for one in await database.fetch(tasks)):
            await trio.sleep(0.05)
    return await database.fetch(tasks)


async def begun(database: Database, task: int) -> str:
    """Wait until a task runs; return whose it is."""
    with trio.fail_after(DEADLINE):
        while (record := (await database.fetch([task]))[0]).status != Status.PROCESSING:
            await trio.sleep(0.05)
    assert record.worker_id is not None
    return record.worker_id


async def id_of(worker: WorkerProcess) -> str:
    return str((await worker.get("/status")).json()["id"])


async def notes_of(worker: WorkerProcess) -> Mapping[str, str]:
    """What a worker says of itself, which is ready all the time."""
    answer = await worker.get("/readyz")
    assert answer.status_code == 200, answer.text
    notes: Mapping[str, str] = answer.json()["notes"]
    return notes


async def test_a_drained_worker_finishes_what_runs_while_another_does_the_rest(
    light: Installation, tmp_path: Path
) -> None:
    database = light.database
    command = partial(run, folder=tmp_path, environment={"DATABASE_URL": light.url})
    environment = light.environment | QUICK_HEARTBEATS | {"SLOTS": "1"}
    async with start_worker(environment) as leaving:
        long, *ahead = await database.submit([NewTask(code=LONG), *[NewTask(code=SHORT)] * 5])
        leaves = await begun(database, long)
        assert leaves == await id_of(leaving)
        async with start_worker(environment) as staying:
            stays = await id_of(staying)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(command, "workers", "drain", leaves, "--wait")
                with trio.fail_after(DEADLINE):
                    while "drain" not in await notes_of(leaving):
                        await trio.sleep(0.05)
                new = await database.submit([NewTask(code=SHORT)] * 10)
                assert {task.worker_id for task in await ended(database, [*ahead, *new])} == {stays}
            (finished,) = await database.fetch([long])
            assert (finished.status, finished.attempt, finished.worker_id) == (Status.COMPLETED, 1, leaves)
            assert await notes_of(leaving) == {"drain": "drained"}
            listed = (await command("workers", "list"))[0]
            assert f"{leaves}  drained, 0 of 1" in listed
            assert f"{stays}  alive" in listed

            await command("workers", "undrain", leaves)
            await command("workers", "drain", stays, "--wait")
            with trio.fail_after(DEADLINE):
                while await notes_of(leaving):
                    await trio.sleep(0.05)
            again = await database.submit([NewTask(code=SHORT)] * 5)
            assert {task.worker_id for task in await ended(database, again)} == {leaves}


async def test_no_task_of_a_paused_code_begins_on_any_worker_and_all_do_when_it_is_resumed(
    light: Installation, tmp_path: Path
) -> None:
    database = light.database
    command = partial(run, folder=tmp_path, environment={"DATABASE_URL": light.url})
    environment = light.environment | {"SLOTS": "2", "POLLING_INTERVAL": "1"}
    paused_code, other_code = "import time; time.sleep(0.05)", SHORT
    async with start_worker(environment), start_worker(environment):
        tasks = await database.submit([NewTask(code=paused_code)] * 300)
        await begun(database, tasks[0])
        code = (await database.fetch(tasks[:1]))[0].code_id
        assert f"code:{code}  paused" in (await command("limits", "pause", f"code:{code}"))[0]
        with trio.fail_after(DEADLINE):
            while (await database.statistics()).running:  # what ran goes on to its end
                await trio.sleep(0.05)
        before = {task.id for task in await database.fetch(tasks) if task.attempt}
        assert 0 < len(before) < len(tasks)
        others = await database.submit([NewTask(code=other_code)] * 20)
        assert {task.status for task in await ended(database, others)} == {Status.COMPLETED}
        assert {task.id for task in await database.fetch(tasks) if task.attempt} == before

        assert "not paused" in (await command("limits", "resume", f"code:{code}"))[0]
        assert {(task.status, task.attempt) for task in await ended(database, tasks)} == {(Status.COMPLETED, 1)}


async def test_a_worker_that_gets_no_processor_stays_ready_and_says_that_it_claims_less(light: Installation) -> None:
    async with start_worker(light.environment) as worker:
        with trio.fail_after(DEADLINE):
            while "cpu" not in await notes_of(worker):
                worker.send(signal.SIGSTOP)
                await trio.sleep(1)  # half of the time between two looks
                worker.send(signal.SIGCONT)
        assert "ms too late" in (await notes_of(worker))["cpu"]
        assert 'continuum_strain{continuum_resource="cpu"} 1.0' in (await worker.get("/metrics")).text
        (task,) = await light.database.submit([NewTask(code=SHORT)])
        assert [one.status for one in await ended(light.database, [task])] == [Status.COMPLETED]
