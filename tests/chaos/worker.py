"""`python -m tests.chaos.worker ID FOLDER`: a worker as the environment sets it up, which writes its history to FOLDER.

It is the whole supervision tree on the real database; only the sandboxes are none, so that thousands of tasks say
something about the queue and not about the machine.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import cast

import trio

from continuum.config import load_settings
from continuum.db import open_database
from continuum.db.protocol import Database
from continuum.logs import configure_logs
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.telemetry import Telemetry
from tests.chaos.history import Recorder, WorkerStarted
from tests.chaos.recording import RecordedDatabase, RecordingBackend


async def run(worker: str, folder: Path) -> None:
    """Work until SIGTERM."""
    settings = load_settings()
    configure_logs(settings)
    state = WorkerState(id=worker, slots=settings.slots)
    shutdown = Shutdown()
    with Recorder(folder / f"{worker}.jsonl") as record:

        def report_start() -> None:
            record(WorkerStarted(worker=worker, pid=os.getpid(), slots=settings.slots))

        async with open_database(settings) as database, trio.open_nursery() as nursery:
            recorded = cast("Database", RecordedDatabase(database, worker, record))
            backend = RecordingBackend(worker, record)
            nursery.start_soon(_obey_signals, shutdown)
            await supervise(settings, state, recorded, backend, Telemetry(), shutdown, report_start)
            nursery.cancel_scope.cancel()


async def _obey_signals(shutdown: Shutdown) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            shutdown.request()


if __name__ == "__main__":
    trio.run(run, sys.argv[1], Path(sys.argv[2]))
