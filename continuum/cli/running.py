"""`continuum run`: a script as a task, now, with a worker in this process where there is no other.

Only an embedded database is served by such a worker: another one has an operator, who decides what its workers are.
"""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import trio

from continuum.cli.common import load, log_warnings, names_no_database
from continuum.cli.errors import tell
from continuum.cli.follow import code_of, follow_task, print_end
from continuum.client import Client
from continuum.config import Settings
from continuum.db.errors import DatabaseError
from continuum.model import NewTask, TaskRecord, WorkerRecord
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState, new_worker_id
from continuum.nursery.supervisor import supervise
from continuum.sandbox import prepared_backend
from continuum.telemetry import Telemetry

PATIENT = 3.0
"""Seconds of preparing a sandbox before it is told what takes so long."""
CANCEL_DEADLINE = 10.0
"""Seconds to have a task cancelled that nobody will follow any more."""


@dataclass(slots=True)
class _Course:
    """How far it has come. signal: the one that asked to stop."""

    task_id: int | None = None
    record: TaskRecord | None = None
    signal: int | None = None


async def run_task(task: NewTask, as_json: bool) -> int:
    """Submit a task, follow it to its end, and return the exit code that fits. SIGINT and SIGTERM cancel the task; a second one
    does not wait until it has stopped.

    Raises what opening the database and preparing a sandbox raise; no task is left pending then.
    """
    settings = _settings()
    course, shutdown = _Course(), Shutdown()
    async with Client(settings) as client, trio.open_nursery() as watching:
        watching.start_soon(_cancel_on_signals, client, course, watching.cancel_scope)
        async with trio.open_nursery() as working:
            if settings.db_dialect == "embedded" and not any(map(_works, await client.database.workers())):
                await working.start(_work, settings, client, shutdown)
            try:
                (course.task_id,) = await client.submit_many([task])
                wait = client.wait(course.task_id) if as_json else follow_task(client, course.task_id)
                course.record = await wait
            finally:
                await _leave(client, course)
            shutdown.request()
            shutdown.request()  # a second time: what else this worker has claimed goes back to the queue at once
        watching.cancel_scope.cancel()
    if course.signal is not None:
        return 128 + course.signal
    assert course.record is not None
    return print_end(course.record, as_json) if as_json else code_of(course.record)


def _settings() -> Settings:
    """Those of every command; where they name no database, an embedded one, and the user is told where it is made."""
    settings = load()
    log_warnings(settings)
    if names_no_database(settings) and settings.db_dialect != "embedded":
        tell(
            f"no database is configured: an embedded PostgreSQL in {settings.embedded_dir} keeps the tasks of this folder "
            "(DATABASE_URL names one of yours)"
        )
        return settings.model_copy(update={"db_dialect": "embedded"})
    return settings


def _works(worker: WorkerRecord) -> bool:
    """Whether a worker is alive and takes tasks: one of this host that was killed is known to be gone before its time is up."""
    return (
        worker.alive
        and not worker.draining
        and (worker.host != socket.gethostname() or Path(f"/proc/{worker.pid}").exists())
    )


async def _work(
    settings: Settings,
    client: Client,
    shutdown: Shutdown,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A worker without a status page, until `shutdown` is requested. Raises `BackendUnavailable`, before it has started."""
    state = WorkerState(id=new_worker_id(), slots=settings.slots)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_of_slow_sandbox, settings)
        backend, no_docker = await prepared_backend(settings, state.id)
        nursery.cancel_scope.cancel()
    if no_docker:
        tell(f"the sandbox is bubblewrap, which is weaker than Docker: {no_docker}")
    await supervise(settings, state, client.database, backend, Telemetry(), shutdown, task_status.started)


async def _tell_of_slow_sandbox(settings: Settings) -> None:
    await trio.sleep(PATIENT)
    tell(f"preparing a sandbox; the image {settings.container_image} may have to be pulled first, which is done once")


async def _cancel_on_signals(client: Client, course: _Course, everything: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            if course.signal is not None or course.task_id is None:
                course.signal = number
                everything.cancel()
                return
            course.signal = number
            tell(f"cancelling task {course.task_id}; once more to leave at once")
            try:
                await client.cancel(course.task_id)
            except DatabaseError as error:
                tell(f"task {course.task_id} could not be cancelled: {error}")
                everything.cancel()


async def _leave(client: Client, course: _Course) -> None:
    """Cancel a task that has not ended when this command does."""
    if course.task_id is None or course.record is not None:
        return
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CANCEL_DEADLINE):
        try:
            await client.cancel(course.task_id)
        except DatabaseError as error:
            tell(f"task {course.task_id} goes on: it could not be cancelled: {error}")
