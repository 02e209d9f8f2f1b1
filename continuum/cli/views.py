"""How results are shown: tables and live views where a person watches, plain lines or JSON where none does."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import trio
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from continuum.db.protocol import Database
from continuum.model import Cancellation, Retry, Statistics, TaskRecord, WorkerRecord
from continuum.schedules import ScheduleRecord

REFRESH = 1.0
"""Seconds between two looks of a live view."""

CANCELLATIONS = {
    Cancellation.CANCELLED: "cancelled before it ran",
    Cancellation.REQUESTED: "its worker was asked to stop it",
    Cancellation.FINISHED: "had already ended; nothing was changed",
}

RETRIES = {
    Retry.SUBMITTED: "tried again as task {}",
    Retry.ALREADY: "had been tried again before, as task {}",
    Retry.OPEN: "has not ended yet; `continuum cancel` ends it",
}


def say(as_json: bool, values: dict[str, Any], sentence: str) -> None:
    """One result, for a script or for a person."""
    typer.echo(json.dumps(values) if as_json else sentence)


def jsonable(value: Any) -> Any:
    """A value of `continuum.model` as JSON can hold it."""
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [jsonable(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
    return value


def schedule_as_json(record: ScheduleRecord) -> dict[str, Any]:
    """A record as JSON can hold it."""
    values: dict[str, Any] = jsonable(record)
    for name in ("payload", "retry"):
        if values[name] is not None:
            values[name] = json.loads(values[name])
    return values | {"last_task_id_str": None if record.last_task_id is None else str(record.last_task_id)}


def task_as_json(record: TaskRecord) -> dict[str, Any]:
    """A record as JSON can hold it; an id that JavaScript would round is a string as well."""
    values: dict[str, Any] = jsonable(record)
    for name in ("payload", "retry"):
        if values[name] is not None:
            values[name] = json.loads(values[name])
    return values | {"id_str": str(record.id)}


def print_system(statistics: Statistics, workers: list[WorkerRecord], as_json: bool) -> None:
    """The queue and the workers, once."""
    if as_json:
        typer.echo(json.dumps(asdict(statistics) | {"total": statistics.total, "worker_list": jsonable(workers)}))
        return
    console = Console()
    if console.is_terminal:
        console.print(_system(statistics, workers))
        return
    for name, value in _counts(statistics).items():
        typer.echo(f"{name:10} {value}")
    for each in workers:
        typer.echo(f"worker     {each.id}: {each.state}, {each.running} of {each.slots} slots in use, {each.sandbox}")


async def watch_system(database: Database) -> None:
    """The queue and the workers, refreshed until cancelled."""
    with Live(console=Console(), auto_refresh=False, screen=False) as live:
        while True:
            live.update(_system(await database.statistics(), await database.workers()), refresh=True)
            await trio.sleep(REFRESH)


def _system(statistics: Statistics, workers: list[WorkerRecord]) -> Group:
    queue = Table(title="Tasks", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _counts(statistics):
        queue.add_column(name, justify="right")
    queue.add_row(*_counts(statistics).values())
    crew = Table(title="Workers", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("worker", "state", "in use", "completed", "failed", "sandbox"):
        crew.add_column(name, overflow="fold")
    for each in workers:
        used = f"{each.running}/{each.slots}"
        crew.add_row(each.id, each.state, used, str(each.completed), str(each.failed), each.sandbox)
    return Group(queue, crew)


def _counts(statistics: Statistics) -> dict[str, str]:
    names = ("pending", "scheduled", "running", "completed", "failed", "cancelled", "malicious")
    return {name: str(getattr(statistics, name)) for name in names} | {
        "mean time": f"{statistics.avg_execution_seconds:.3f} s",
        "per hour": f"{statistics.throughput_tasks_per_hour:.0f}",
    }
