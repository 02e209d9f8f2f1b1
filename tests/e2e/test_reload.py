"""SIGHUP to real workers: limits change, tasks go on, and nothing that an operator may do wrong ends the process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from continuum.model import NewTask, Status
from tests.support.installation import Installation
from tests.support.workers import ROOT, start_worker

LIMIT = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0] // 2**20)"
SLEEP = "import time; time.sleep({})"


@asynccontextmanager
async def listening(path: Path, told: list[str]) -> AsyncIterator[None]:
    """As systemd does."""
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as systemd:
        await systemd.bind(str(path))
        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                while True:
                    told.append((await systemd.recv(4096)).decode())

            nursery.start_soon(hear)
            yield
            nursery.cancel_scope.cancel()


async def test_limits_change_under_load_and_mistakes_change_nothing(light: Installation, tmp_path: Path) -> None:
    file = tmp_path / "limits.env"
    file.write_text("SLOTS=1\nCONTAINER_MEMORY_MB=256\n")
    environment = {**light.environment, "CONTINUUM_ENV_FILE": str(file), "SLOTS": "7"}
    environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    told: list[str] = []
    async with listening(tmp_path / "notify", told), start_worker(environment) as worker:
        assert (await worker.get("/status")).json()["slots"] == 1, "the file wins"
        tasks = await light.database.submit([NewTask(code=SLEEP.format(3))] * 4)
        file.write_text("SLOTS=4\nCONTAINER_MEMORY_MB=300\n")
        worker.send(signal.SIGHUP)
        with trio.fail_after(10):
            while len((await worker.get("/status")).json()["running"]) < 4:
                await trio.sleep(0.05)
            while [one.slots for one in await light.database.workers()] != [4]:
                await trio.sleep(0.05)

        for number, mistake in enumerate(["SLOTS=none\n", "SLOTS 9\n", "SLOTS=9\nDB_SSLMODE=perhaps\n", None], 1):
            file.unlink() if mistake is None else file.write_text(mistake)
            worker.send(signal.SIGHUP)
            await worker.until_said("settings are not reloaded, and stay as they are", number)
        assert (await worker.get("/status")).json()["slots"] == 4
        assert {"READY=1", "WATCHDOG=1"} <= set(told)
        assert [line for line in told if line.startswith("STATUS=ready, 1 slots, bubblewrap")]
        assert sum(line.startswith("RELOADING=1") for line in told) == 5

        file.write_text("SLOTS=2\nCONTAINER_MEMORY_MB=300\nAPI_PORT=1\n")
        for _ in range(200):
            worker.send(signal.SIGHUP)
            await trio.sleep(0.002)
        await worker.until_said("take effect at a restart only")
        (limit,) = await light.database.submit([NewTask(code=LIMIT)])
        with trio.fail_after(30):
            while not all(one.finished_for_good for one in await light.database.fetch([*tasks, limit])):
                await trio.sleep(0.05)
        *slept, limited = await light.database.fetch([*tasks, limit])
        assert {(one.status, one.attempt) for one in slept} == {(Status.COMPLETED, 1)}
        assert limited.output == "300\n"
        assert (await worker.get("/readyz")).status_code == 200

        await light.database.submit([NewTask(code=SLEEP.format(1))] * 2)
        await trio.sleep(0.3)
        worker.send(signal.SIGTERM)
        for _ in range(50):
            worker.send(signal.SIGHUP)
            await trio.sleep(0.01)
        assert await worker.wait() == 0
    assert told.index("STOPPING=1") > told.index("READY=1")
    assert "Traceback" not in worker.output
    assert (await light.database.statistics()).running == 0


def expects_hangups(process: subprocess.Popen[bytes]) -> bool:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    (caught,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(caught >> (signal.SIGHUP - 1) & 1)


async def test_a_storm_during_the_start_does_not_end_it(light: Installation) -> None:
    async with start_worker(light.environment, ready=False) as worker:
        with trio.fail_after(20):
            while not expects_hangups(worker.process):
                await trio.sleep(0.001)
        assert "worker started" not in worker.output
        async with trio.open_nursery() as nursery:

            async def storm() -> None:
                while True:
                    worker.send(signal.SIGHUP)
                    await trio.sleep(0.003)

            nursery.start_soon(storm)
            await worker.ready()
            nursery.cancel_scope.cancel()
        worker.send(signal.SIGTERM)
        assert await worker.wait() == 0


async def test_a_worker_whose_terminal_is_closed_ends_in_order(light: Installation, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    become_leader = "import fcntl, termios, os; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    code = become_leader + "from continuum.cli import main; main(['worker'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **light.environment, "PYTHONPATH": str(ROOT), "API_PORT": "0"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        with trio.fail_after(30):
            said = b""
            while b"sandboxes are ready" not in said:
                said += await trio.to_thread.run_sync(os.read, ours, 4096)
        os.close(ours)
        assert await trio.to_thread.run_sync(process.wait, 30) == 0
        assert [one.stopped_at is not None for one in await light.database.workers()] == [True]
    finally:
        process.kill()
        process.wait()
