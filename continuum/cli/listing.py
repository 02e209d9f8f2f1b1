"""`continuum tasks` and `continuum codes list`: what there is, newest first, a page at a time."""

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
    headings = ("id", "status", "tries", "created (UTC)", "took", "name", "error")
    print_table(headings, [_row(each) for each in found], right=("id", "tries", "took"))
    if len(found) == wanted.limit:
        tell(f"older ones: the same with --before {found[-1].id}")


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
