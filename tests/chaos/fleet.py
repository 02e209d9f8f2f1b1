"""The workers of a run: processes that are started, killed and replaced."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import trio

from tests.chaos.history import Recorder, WorkerEnded
from tests.chaos.plan import Plan
from tests.support.workers import ROOT

STOP_DEADLINE = 60.0


class Fleet:
    """As many workers as the plan says, whatever becomes of them."""

    def __init__(self, plan: Plan, url: str, folder: Path, record: Recorder) -> None:
        self._environment = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        } | {
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": url,
            "SLOTS": str(plan.slots),
            "LEASE_SECONDS": str(plan.lease),
            "POLLING_INTERVAL": str(plan.polling_interval),
            "LOG_FORMAT": "json",
        }  # fmt: skip
        self._folder = folder
        self._record = record
        self._numbers = itertools.count(1)
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> str:
        """Start one more worker and return its name."""
        name = f"worker-{next(self._numbers)}"
        with (self._folder / f"{name}.log").open("wb") as log:
            self._workers[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker", name, str(self._folder)],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return name

    async def kill_oldest(self) -> str | None:
        """kill -9 of the worker that has worked longest of those that still do; return its name, if there is one.

        One that had ended by itself before is written down as such.
        """
        while self._workers:
            name = next(iter(self._workers))
            process = self._workers.pop(name)
            if (code := process.poll()) is not None:
                self._record(WorkerEnded(worker=name, killed=False, exit_code=code))
                continue
            self._record(WorkerEnded(worker=name, killed=True))
            process.send_signal(signal.SIGKILL)
            await trio.to_thread.run_sync(process.wait)
            return name
        return None

    async def stop(self) -> None:
        """Have all of them end in peace, and write down how they did."""
        for process in self._workers.values():
            process.terminate()
        with trio.move_on_after(STOP_DEADLINE):
            while any(process.poll() is None for process in self._workers.values()):
                await trio.sleep(0.05)
        for name, process in self._workers.items():
            self._record(WorkerEnded(worker=name, killed=False, exit_code=process.poll()))

    def close(self) -> None:
        """End what still runs."""
        for process in self._workers.values():
            if process.poll() is None:
                process.kill()
            process.wait()
