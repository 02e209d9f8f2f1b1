"""A whole worker behind `continuum socket-proxy`, and the doctor on both sides of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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
    async with proxy(full.environment, tmp_path) as (path, _):
        yield path


@asynccontextmanager
async def proxy(environment: Mapping[str, str], folder: Path) -> AsyncIterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The socket, and the process that serves it."""
    path = folder / "docker.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "continuum", "socket-proxy", "--listen", str(path)],
        env={**PLAIN, **environment},
        cwd=folder,
    )
    try:
        with trio.fail_after(30):
            while not path.exists():
                assert process.poll() is None
                await trio.sleep(0.02)
        yield path, process
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


async def test_proxy_and_worker_reload_their_limits_and_tasks_wait_until_both_have(
    full: Installation, tmp_path: Path
) -> None:
    limits = tmp_path / "limits.env"
    limits.write_text("CONTAINER_DISK_MB=16\n")
    environment = {**full.environment, "CONTINUUM_ENV_FILE": str(limits), "SLOTS": "1"}
    look = NewTask(code="import os; v = os.statvfs('.'); print(v.f_blocks * v.f_frsize // 2**20)")

    async def disk_mb(ids: list[int]) -> str | None:
        (record,) = await wait_for_all(full.database, ids, 60)
        return record.output

    async with (
        proxy(environment, tmp_path) as (socket, process),
        start_worker(environment | {"DOCKER_HOST": f"unix://{socket}"}) as worker,
    ):
        assert await disk_mb(await full.database.submit([look])) == "16\n"
        limits.write_text("CONTAINER_DISK_MB=24\n")
        worker.send(signal.SIGHUP)
        await worker.until_said("settings reloaded", seconds=30)
        ids = await full.database.submit([look])
        await worker.until_said("refused by continuum socket-proxy: HostConfig.Tmpfs", seconds=30)
        process.send_signal(signal.SIGHUP)
        assert await disk_mb(ids) == "24\n"


async def test_a_place_where_no_socket_can_be_is_told(full: Installation, tmp_path: Path) -> None:
    _, errors = await run(
        "socket-proxy", "--listen", str(tmp_path / "missing" / "docker.sock"),
        folder=tmp_path, code=4, environment=full.environment,
    )  # fmt: skip
    assert "no socket can be made at" in errors
