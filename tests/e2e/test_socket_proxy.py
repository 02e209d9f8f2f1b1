"""A whole worker behind `continuum socket-proxy`, and the doctor on both sides of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from continuum.model import NewTask, Status
from tests.e2e.test_cli import PLAIN, run
from tests.e2e.test_failures import wait_for_all
from tests.support.installation import Installation
from tests.support.workers import start_worker


@pytest.fixture
async def socket(full: Installation, tmp_path: Path) -> AsyncIterator[Path]:
    """Served by the command, for workers with the settings of `full`; it ends in order on SIGTERM."""
    path = tmp_path / "docker.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "continuum", "socket-proxy", "--listen", str(path)],
        env={**PLAIN, **full.environment},
        cwd=tmp_path,
    )
    try:
        with trio.fail_after(30):
            while not path.exists():
                assert process.poll() is None
                await trio.sleep(0.02)
        yield path
        process.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(process.wait, 20) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


async def test_tasks_are_done_through_the_proxy_and_the_doctor_sees_it(
    full: Installation, socket: Path, tmp_path: Path
) -> None:
    behind = full.environment | {"DOCKER_HOST": f"unix://{socket}"}

    async def findings(environment: dict[str, str]) -> dict[str, dict[str, object]]:
        told = json.loads((await run("doctor", "--json", folder=tmp_path, environment=environment))[0])
        return {finding["what"]: finding for finding in told}

    async with start_worker(behind | {"SLOTS": "2"}):
        ids = await full.database.submit([NewTask(code="print('done')")] * 50)
        records = await wait_for_all(full.database, ids, 60)
    assert {(record.status, record.output) for record in records} == {(Status.COMPLETED, "done\n")}

    bare, filtered = await findings(full.environment), await findings(behind)
    assert bare["docker socket"]["detail"] == "the daemon's own"
    assert "continuum socket-proxy" in str(bare["docker socket"]["advice"])
    assert "refuses volumes, exec, privileged containers" in str(filtered["docker socket"]["detail"])
    assert filtered["docker socket"]["advice"] == []
    assert filtered["sandbox"] == bare["sandbox"]
    assert str(bare["sandbox"]["detail"]).startswith("docker (runc: shares the host's kernel, seccomp ")
    assert "kernel " in str(bare["isolation"]["detail"])


async def test_a_place_where_no_socket_can_be_is_told(full: Installation, tmp_path: Path) -> None:
    _, errors = await run(
        "socket-proxy", "--listen", str(tmp_path / "missing" / "docker.sock"),
        folder=tmp_path, code=4, environment=full.environment,
    )  # fmt: skip
    assert "no socket can be made at" in errors
