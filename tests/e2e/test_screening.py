"""CODE_POLICY in a real worker: what is refused never reaches a sandbox, and is never tried again."""

from __future__ import annotations

import importlib.util
import json

import pytest

from continuum.model import NewTask
from tests.conftest import require
from tests.e2e.test_failures import wait_for_all
from tests.support.installation import Installation
from tests.support.workers import start_worker

REFUSED = NewTask(code="import subprocess\nprint('it ran')\n\nsubprocess.call(payload, shell=True)\n")
HONEST = NewTask(code="print('it ran')")
BROKEN = NewTask(code="print('it ran'\n", max_attempts=1)


@pytest.fixture(autouse=True)
def _bandit() -> None:
    require("bandit", importlib.util.find_spec("bandit") is not None, "the extra `screening` is not installed")


async def test_refused_code_ends_as_malicious_without_a_sandbox_and_the_others_run(light: Installation) -> None:
    ids = await light.database.submit([REFUSED, HONEST, BROKEN, REFUSED])
    async with start_worker(light.environment | {"CODE_POLICY": "reject"}) as worker:
        refused, honest, broken, twin = await wait_for_all(light.database, ids, 30)
        totals = (await worker.get("/global-status")).json()
        page = (await worker.get("/")).text
    assert (refused.status, refused.attempt, refused.exit_code, refused.output) == ("malicious", 1, None, "")
    assert (refused.last_error or "").startswith(
        "Refused by CODE_POLICY=reject: line 4: subprocess call with shell=True"
    )
    assert (twin.status, twin.last_error) == ("malicious", refused.last_error)
    assert (honest.status, honest.output) == ("completed", "it ran\n")
    assert (broken.status, "SyntaxError" in (broken.last_error or "")) == ("failed", True)
    assert (totals["malicious_tasks"], totals["failed_tasks"], totals["total_tasks"]) == (2, 1, 4)
    assert "2 refused as malicious" in page
    warnings = [json.loads(line) for line in worker.output.splitlines() if '"code was refused"' in line]
    assert len(warnings) == 1, "once for each script"
    assert not await light.database.claim("nobody", 9, lease=1)


async def test_code_runs_with_a_warning_where_the_policy_is_to_warn(light: Installation) -> None:
    ids = await light.database.submit([REFUSED, REFUSED])
    async with start_worker(light.environment | {"CODE_POLICY": "warn"}) as worker:
        records = await wait_for_all(light.database, ids, 30)
    assert all((record.output or "").startswith("it ran") for record in records)
    warnings = [json.loads(line) for line in worker.output.splitlines() if "in spite of" in line]
    assert [line["findings"] for line in warnings] == [["line 4: B602, high"]]


async def test_a_worker_that_cannot_screen_does_not_start(light: Installation) -> None:
    environment = light.environment | {"CODE_POLICY": "reject", "CODE_POLICY_CONFIG": "/nowhere/bandit.yaml"}
    async with start_worker(environment, ready=False) as worker:
        assert await worker.wait(30) == 2
    line, what_to_do = worker.output.splitlines()
    assert line.startswith("continuum: CODE_POLICY_CONFIG=/nowhere/bandit.yaml: bandit cannot use it: ")
    assert what_to_do == "continuum: change it where it is set: in the environment or in .env"
