"""What a whole installation does when its parts die: real PostgreSQL, real workers, real sandboxes."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
import trio

from continuum.db.protocol import Database
from continuum.model import Lease, NewTask, Status, TaskRecord
from tests.support.installation import Installation
from tests.support.proxy import Fault
from tests.support.workers import WorkerProcess, start_worker

HELLO = "print('hello')"
SLEEP = "import time; time.sleep(0.2); print('slept')"
ECHO = "print(payload)"


async def wait_for_all(database: Database, ids: list[int], seconds: float) -> list[TaskRecord]:
    """Wait until every task has ended."""
    records: list[TaskRecord] = []
    with trio.move_on_after(seconds):
        while True:
            records = await database.fetch(ids)
            if all(record.finished_for_good for record in records):
                return records
            await trio.sleep(0.2)
    raise AssertionError(f"not finished within {seconds} s: {Counter(r.status for r in records)}")


async def wait_until_running(database: Database, task_id: int, seconds: float = 30) -> TaskRecord:
    with trio.fail_after(seconds):
        while True:
            (record,) = await database.fetch([task_id])
            if record.status == Status.PROCESSING and record.output:
                return record
            await trio.sleep(0.05)


def mixed(count: int) -> list[NewTask]:
    codes = [HELLO, SLEEP, ECHO]
    return [NewTask(name=f"mixed {n}", code=codes[n % 3], payload=f'{{"n": {n}}}') for n in range(count)]


def check_mixed(records: list[TaskRecord]) -> None:
    for n, record in enumerate(records):
        assert record.status == Status.COMPLETED, record
        expected = ["hello\n", "slept\n", f'{{"n": {n}}}\n'][n % 3]
        assert record.output == expected, record


async def test_2000_tasks_survive_a_killed_and_a_terminated_worker(full: Installation) -> None:
    database = full.database
    environment = full.environment | {"SLOTS": "4", "LEASE_SECONDS": "5"}
    async with (
        start_worker(environment) as first,
        start_worker(environment) as second,
        start_worker(environment),
        start_worker(environment),
    ):
        ids = await database.submit(mixed(2000))
        with trio.fail_after(120):
            while (await database.statistics()).completed < 700:
                await trio.sleep(0.1)
        assert await full.sandboxes()
        first.send(signal.SIGKILL)
        second.send(signal.SIGTERM)
        assert await second.wait() == 0, second.output
        records = await wait_for_all(database, ids, 240)
    check_mixed(records)
    statistics = await database.statistics()
    assert (statistics.completed, statistics.failed, statistics.pending, statistics.running) == (2000, 0, 0, 0)
    async with start_worker(environment):
        await full.sandboxes_only_of_live_workers()
    await full.no_sandbox_left()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_postgresql_loses_no_outcome_and_fails_no_task(breakable: Installation, mode: str) -> None:
    database = breakable.database
    async with start_worker(breakable.environment | {"SLOTS": "4"}) as worker:
        ids = await database.submit(mixed(300))
        with trio.fail_after(60):
            while (await database.statistics()).completed < 50:
                await trio.sleep(0.05)
        await breakable.server.stop(mode)
        await not_ready(worker, "database")
        await breakable.server.start()
        records = await wait_for_all(database, ids, 90)
        await worker.ready(30)
    check_mixed(records)


async def test_an_unreachable_database_for_20_seconds_loses_no_outcome_and_fails_no_task(
    light: Installation,
) -> None:
    database = light.database
    async with light.proxied() as (proxy, environment), start_worker(environment | {"SLOTS": "4"}) as worker:
        ids = await database.submit(mixed(300))
        with trio.fail_after(60):
            while (await database.statistics()).completed < 50:
                await trio.sleep(0.05)
        proxy.set(Fault.SWALLOW)
        await not_ready(worker, "database")
        await trio.sleep(20)  # the outage itself: its length is what is tested
        proxy.set(Fault.NONE)
        records = await wait_for_all(database, ids, 90)
        await worker.ready(30)
    check_mixed(records)
    # A claim whose answer was lost is given back, which does not count.
    assert {record.attempt - record.released for record in records} == {1}, "the outage cost somebody an attempt"


async def test_a_worker_stopped_past_its_lease_changes_nothing_of_the_attempt_that_took_over(
    light: Installation,
) -> None:
    database = light.database
    environment = light.environment | {"LEASE_SECONDS": "3", "SLOTS": "1"}
    # The first attempt outlasts all that follows; of the second it is enough that it runs meanwhile.
    seconds = "15 if os.environ['CONTINUUM_ATTEMPT'] == '1' else 6"
    code = f"import os, time\nprint('began', flush=True)\ntime.sleep({seconds})\nprint('done')"
    async with start_worker(environment) as stopped:
        (task_id,) = await database.submit([NewTask(code=code)])
        first = await wait_until_running(database, task_id)
        stopped.send(signal.SIGSTOP)
        async with start_worker(environment):
            with trio.fail_after(40):
                while (record := (await database.fetch([task_id]))[0]).attempt == 1 or record.status != "processing":
                    await trio.sleep(0.1)
            assert record.worker_id != first.worker_id
            stopped.send(signal.SIGCONT)
            with trio.fail_after(10):
                while (await stopped.get("/status")).json()["running"]:
                    await trio.sleep(0.1)
            assert (await database.fetch([task_id]))[0].attempt == 2, "the run was stopped because the lease was lost"
            (record,) = await wait_for_all(database, [task_id], 60)
    assert (record.status, record.attempt) == (Status.COMPLETED, 2)
    assert record.output == "began\ndone\n"
    assert await database.heartbeat(first.worker_id or "", [Lease(task_id, 1)], lease=30) is not None


async def not_ready(worker: WorkerProcess, component: str) -> None:
    """Wait until /readyz says 503 because of a component."""
    with trio.fail_after(30):
        while True:
            answer = await worker.get("/readyz")
            if answer.status_code == 503 and component in answer.json()["problems"]:
                return
            await trio.sleep(0.1)
