"""The Docker daemon dies under a whole worker and comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import trio

from continuum.model import NewTask, Status
from tests.e2e.test_failures import not_ready, wait_for_all
from tests.support.dockerd import OwnDaemon, own_daemon
from tests.support.installation import Installation
from tests.support.workers import start_worker


@pytest.fixture
def daemon() -> Iterator[OwnDaemon]:
    with own_daemon() as own:
        yield own


async def test_tasks_are_retried_and_the_pool_heals_after_a_restart_of_the_daemon(
    daemon: OwnDaemon, full: Installation
) -> None:
    environment = full.environment | {"DOCKER_HOST": daemon.url, "SLOTS": "2"}
    code = "import time; time.sleep(0.5); print('done')"
    async with start_worker(environment) as worker:
        ids = await full.database.submit([NewTask(code=code, max_attempts=5)] * 20)
        with trio.fail_after(30):
            while (await full.database.statistics()).completed < 4:
                await trio.sleep(0.05)
        await trio.to_thread.run_sync(daemon.stop, signal.SIGKILL)
        await not_ready(worker, "sandbox")
        await trio.to_thread.run_sync(daemon.start)
        records = await wait_for_all(full.database, ids, 90)
        await worker.ready(30)
    assert {(record.status, record.output) for record in records} == {(Status.COMPLETED, "done\n")}
    assert max(record.attempt - record.released for record in records) == 2, "what ran was tried once more"
