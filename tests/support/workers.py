"""Real workers as processes of their own, for end-to-end and failure tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE = 60.0
STOP_DEADLINE = 60.0


@dataclass
class WorkerProcess:
    """A running `python -m continuum worker`. `log` is the file its output goes to, until it has ended."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""
    said: str | None = None

    @property
    def output(self) -> str:
        """All that it has written so far, or had at its end."""
        return self.log.read_text(errors="replace") if self.said is None else self.said

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=5) as client:
            return await client.get(self.address + path)

    async def ready(self, seconds: float = START_DEADLINE) -> None:
        """Wait until the worker's status server answers and says that it is ready."""
        last = "nothing"
        with trio.move_on_after(seconds):
            while True:
                assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.output}"
                found = re.search(r"http://[\d.]+:\d+", self.output)
                if found:
                    self.address = found.group()
                    try:
                        answer = await self.get("/readyz")
                        last = answer.text
                        if answer.status_code == 200:
                            return
                    except httpx.TransportError as error:
                        last = repr(error)
                await trio.sleep(0.05)
        raise AssertionError(f"the worker was not ready within {seconds} s, last answer {last}:\n{self.output}")

    async def until_said(self, text: str, times: int = 1, seconds: float = 20.0) -> None:
        """Wait until it has written a text so many times."""
        with trio.fail_after(seconds):
            while self.output.count(text) < times:
                assert self.process.poll() is None, self.output
                await trio.sleep(0.02)

    async def wait(self, seconds: float = STOP_DEADLINE) -> int:
        """Wait until the process has ended; return its exit code (negative: killed by that signal)."""
        with trio.move_on_after(seconds):
            while self.process.poll() is None:
                await trio.sleep(0.02)
            return self.process.returncode
        raise AssertionError(f"the worker did not end within {seconds} s:\n{self.output}")


@asynccontextmanager
async def start_worker(environment: Mapping[str, str], *, ready: bool = True) -> AsyncIterator[WorkerProcess]:
    """A worker with these variables (and nothing of Continuum's from ours); ended when the block ends."""
    with tempfile.TemporaryDirectory(prefix="continuum-worker-") as folder:
        log = Path(folder) / "worker.log"
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "DOCKER_HOST") if name in os.environ}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "continuum", "worker"],
                cwd=folder,
                env={**inherited, "PYTHONPATH": str(ROOT), "API_PORT": "0", "LOG_FORMAT": "json", **environment},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        worker = WorkerProcess(process, log)
        try:
            if ready:
                await worker.ready()
            yield worker
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    with trio.CancelScope(shield=True):
                        with trio.move_on_after(2):
                            await worker.wait()
                        process.terminate()  # a second signal skips the grace
                        await worker.wait(20)
                except AssertionError:
                    process.kill()
                    process.wait()
                    raise
            worker.said = worker.output
