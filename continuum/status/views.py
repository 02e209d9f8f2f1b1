"""What the endpoints answer, as plain dictionaries. The first version's fields keep their names and types."""

from __future__ import annotations

import datetime as dt
from typing import Any

import trio

from continuum.model import Statistics, Status, Stream, WorkerRecord
from continuum.nursery.state import Running, WorkerState

Json = dict[str, Any]

SAFE_INTEGER = 2**53
"""Beyond this, numbers lose digits in JavaScript and other readers of JSON, so that ids are given as text as well."""
CONTENT_LIMIT = 64 * 1024
"""Characters of a payload or an output in an answer: enough to look at, and never a burden to the worker."""


def worker_status(state: WorkerState, *, contents: bool) -> Json:
    """`/status`. contents: whether payload, code and output (and the error that quotes it) may be shown."""
    now = dt.datetime.now(dt.UTC)
    running = sorted(state.running.values(), key=lambda one: one.since)
    status: Json = {
        "id": state.id,
        "start_time": rfc3339(state.started_at),
        "uptime": go_duration((now - state.started_at).total_seconds()),
        "tasks_processed": state.processed,
        "tasks_successful": state.successful,
        "tasks_failed": state.failed,
        "database_failures": state.database_failures,
        "version": state.version,
        "host": state.host,
        "pid": state.pid,
        "slots": state.slots,
        "sandbox": state.sandbox,
        "ready": state.health.ready,
        "problems": state.health.problems,
        "notes": state.notes(),
        "draining": state.draining,
        "drained": state.drained,
        "running": [_running(one) for one in running],
    }
    if running:
        status["current_task"] = _current_task(running[0], contents)
    return status


def global_status(statistics: Statistics, workers: list[WorkerRecord]) -> Json:
    """`/global-status`. A task that waits for its time counts as pending, as it did in the first version."""
    return {
        "total_tasks": statistics.total,
        "pending_tasks": statistics.pending + statistics.scheduled,
        "running_tasks": statistics.running,
        "completed_tasks": statistics.completed,
        "failed_tasks": statistics.failed,
        "avg_execution_seconds": float(statistics.avg_execution_seconds),
        "throughput_tasks_per_hour": float(statistics.throughput_tasks_per_hour),
        "scheduled_tasks": statistics.scheduled,
        "cancelled_tasks": statistics.cancelled,
        "malicious_tasks": statistics.malicious,
        "workers": statistics.workers,
        "worker_list": [_worker(worker) for worker in workers],
    }


def rfc3339(time: dt.datetime) -> str:
    """A time as `2026-01-31T12:00:00.123456Z`."""
    return time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def go_duration(seconds: float) -> str:
    """Whole seconds the way Go writes a duration: `1h2m3s`, `2m0s`, `0s`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _current_task(running: Running, contents: bool) -> Json:
    task = running.task
    started = rfc3339(running.started_at)
    return {
        "ID": task.id,
        **({"ID_str": str(task.id)} if abs(task.id) > SAFE_INTEGER else {}),
        "Name": task.name,
        "Description": task.description,
        "Started": started,
        "Finished": None,
        "LockedAt": started,
        "LastError": task.last_error if contents else None,
        "Priority": task.priority,
        "Status": Status.PROCESSING.value,
        "Payload": _cut(task.payload) if contents else None,
        "Code": task.code_id if contents else None,
        "Output": _cut(running.transcript.text(Stream.OUTPUT)) if contents else None,
    }


def _running(running: Running) -> Json:
    task = running.task
    return {
        "id": task.id,
        **({"id_str": str(task.id)} if abs(task.id) > SAFE_INTEGER else {}),
        "attempt": task.attempt,
        "elapsed_seconds": round(trio.current_time() - running.since, 3),
        "name": task.name,
        "sandbox": running.sandbox,
    }


def _worker(worker: WorkerRecord) -> Json:
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "version": worker.version,
        "slots": worker.slots,
        "running": worker.running,
        "sandbox": worker.sandbox,
        "started_at": rfc3339(worker.started_at),
        "seen_at": rfc3339(worker.seen_at),
        "stopped_at": rfc3339(worker.stopped_at) if worker.stopped_at else None,
        "alive": worker.alive,
        "completed": worker.completed,
        "failed": worker.failed,
        "cancelled": worker.cancelled,
        "malicious": worker.malicious,
        "finished_last_hour": worker.finished_last_hour,
        "draining": worker.draining,
        "drained": worker.drained,
        "state": worker.state,
    }


def _cut(text: str) -> str:
    if len(text) <= CONTENT_LIMIT:
        return text
    return f"{text[:CONTENT_LIMIT]}… [cut: {len(text):,} characters in all]"
