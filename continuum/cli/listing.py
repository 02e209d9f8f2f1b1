"""`continuum tasks`, `continuum codes list` and `continuum schedules list`: what there is, a page at a time."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

import typer
from rich.text import Text

from continuum.cli import views
from continuum.cli.errors import tell
from continuum.cli.formats import at, between, print_table, styled
from continuum.cli.output import one_line
from continuum.db.protocol import Database
from continuum.model import CodeSummary, TaskFilter, TaskSummary
from continuum.schedules import ScheduleRecord


async def list_tasks(database: Database, wanted: TaskFilter, as_json: bool) -> None:
    """Print the tasks that fit, and how to see older ones where there may be some."""
    found = await database.search(wanted)
    if as_json:
        for each in found:
            typer.echo(json.dumps(views.jsonable(each) | {"id_str": str(each.id)}))
        return
    if not found:
        tell("no task fits" if _narrows(wanted) else "there is no task yet: `continuum submit FILE.py` submits one")
        return
    list_summaries(found)
    if len(found) == wanted.limit:
        tell(f"older ones: the same with --before {found[-1].id}")


def list_summaries(tasks: Sequence[TaskSummary]) -> None:
    """Print tasks, for a person."""
    headings = ("id", "status", "tries", "created (UTC)", "took", "name", "error")
    print_table(headings, [_row(each) for each in tasks], right=("id", "tries", "took"))


def _row(task: TaskSummary) -> Sequence[str | Text]:
    took = between(task.started, task.finished or (dt.datetime.now(dt.UTC) if task.status == "processing" else None))
    return (
        str(task.id),
        styled(task.status),
        f"{task.attempt}/{task.max_attempts}",
        at(task.created_at),
        took,
        one_line(task.name, 40),
        one_line(task.error or ""),
    )


def _narrows(wanted: TaskFilter) -> bool:
    return wanted != TaskFilter(limit=wanted.limit)


async def list_codes(database: Database, limit: int, after: str | None, as_json: bool) -> None:
    """Print stored scripts, and how to see more where there may be some."""
    found = await database.codes(limit, after)
    if as_json:
        for each in found:
            typer.echo(json.dumps(views.jsonable(each)))
        return
    if not found:
        tell("there is no code" + (" after that one" if after else " yet: `continuum codes add FILE.py` stores some"))
        return
    headings = ("id", "lines", "requires", "first line")
    print_table(headings, [_code_row(each) for each in found], right=("lines",))
    if len(found) == limit:
        tell(f"more: the same with --after {found[-1].id}")


def _code_row(code: CodeSummary) -> Sequence[str]:
    required = ", ".join((code.requirements or "").split("\n")).strip(", ")
    return code.id, str(code.lines), one_line(required, 40), one_line(code.first_line)


async def list_schedules(database: Database, limit: int, after: str | None, as_json: bool) -> None:
    """Print schedules, and how to see more where there may be some."""
    found = await database.schedules(limit, after)
    if as_json:
        for each in found:
            typer.echo(json.dumps(views.schedule_as_json(each)))
        return
    if not found:
        first = " yet: `continuum schedules add NAME CRON FILE.py` stores one"
        tell("there is no schedule" + (" after that one" if after else first))
        return
    headings = ("name", "cron", "zone", "next (UTC)", "last fired (UTC)", "fired", "state")
    print_table(headings, [_schedule_row(each) for each in found], right=("fired",))
    if len(found) == limit:
        tell(f"more: the same with --after {found[-1].name}")


def _schedule_row(record: ScheduleRecord) -> Sequence[str]:
    state = "paused" if record.paused else one_line(record.last_error or "")
    due = "" if record.paused else at(record.due_at)
    cron, zone = one_line(record.cron, 40), one_line(record.time_zone, 40)
    return record.name, cron, zone, due, at(record.last_fired_at), str(record.fired), state


def show_schedule(record: ScheduleRecord, as_json: bool) -> None:
    """Print all of a schedule that says something."""
    values = views.schedule_as_json(record)
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        if value not in (None, "") and name != "last_task_id_str":
            shown = json.dumps(value) if isinstance(value, dict | bool) else one_line(str(value))
            typer.echo(f"{name:14} {shown}")
