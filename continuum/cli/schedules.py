"""`continuum schedules`: what makes tasks at due times."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continuum.cli.common import AsJson, RetryJson, duration, run, settings
from continuum.cli.complete import complete_code, complete_schedule
from continuum.cli.submitting import Payload, RequirementsFile, TaskTimeout, Tenant, described_task

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from continuum.db.protocol import Database
    from continuum.schedules import ScheduleRecord

app = typer.Typer(help="Make tasks at due times, by cron expressions.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.", autocompletion=complete_schedule)]


def _open() -> AbstractAsyncContextManager[Database]:
    from continuum.db import open_database

    return open_database(settings(), application="continuum-schedules")


async def _record(database: Database, name: str) -> ScheduleRecord:
    """Raises `ScheduleNotFound`."""
    record = await database.fetch_schedule(name)
    if record is None:
        _require(False, name)
    assert record is not None
    return record


def _require(found: bool, name: str) -> None:
    from continuum.cli.errors import ScheduleNotFound

    if not found:
        raise ScheduleNotFound(f"there is no schedule {name}")


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, `.`, `_`, `-`, `:`.")],
    cron: Annotated[str, typer.Argument(metavar="CRON", help="'30 2 * * *', or six fields with seconds first.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.py", help="The script; - reads it from stdin.", show_default=False)
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Stored code instead of a script (codes add).", autocompletion=complete_code),
    ] = None,
    time_zone: Annotated[str, typer.Option("--zone", metavar="ZONE", help="Such as Europe/Berlin.")] = "UTC",
    catch_up: Annotated[str, typer.Option(help="Of due times that nobody fired: none, one (the last) or all.")] = "one",
    overlap: Annotated[str, typer.Option(help="While the task before is open: allow or skip.")] = "allow",
    jitter: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="Fired up to so much later: 30, 5m.")
    ] = 0.0,
    paused: Annotated[bool, typer.Option("--paused", help="Makes nothing until it is resumed.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of one of this name.")] = False,
    task_name: Annotated[str, typer.Option(help="The tasks' name; else the schedule's.")] = "",
    payload: Payload = None,
    requirements: RequirementsFile = None,
    priority: Annotated[int, typer.Option(help="Lower runs first.")] = 0,
    task_timeout: TaskTimeout = None,
    max_attempts: Annotated[int, typer.Option(help="How often a task is tried.")] = 3,
    retry: RetryJson = None,
    tenant: Tenant = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Told when a task has ended.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store a schedule. Each task gets `schedule` and `due_at` in its payload, which is a JSON object."""
    import dataclasses

    from continuum.cli import views
    from continuum.cli.errors import ScheduleExists
    from continuum.schedules import NewSchedule

    if (file is None) == (code is None):
        raise typer.BadParameter("give a script, FILE.py, or --code ID")

    async def command() -> None:
        values: dict[str, Any] = {
            "code_id": code,
            "priority": priority,
            "timeout": task_timeout,
            "max_attempts": max_attempts,
            "retry": retry,
            "tenant": tenant,
            "webhook": webhook,
        }
        task = dataclasses.replace(described_task(file, payload, requirements, name, **values), name=task_name)
        new = NewSchedule(name, cron, task, time_zone, catch_up, overlap, jitter, paused)
        async with _open() as database:
            if not await database.put_schedule(new, replace=replace):
                raise ScheduleExists(f"there is a schedule {name}")
        views.say(as_json, {"name": name}, f"{name} is stored")

    run(command)


@app.command("list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    after: Annotated[str | None, typer.Option(metavar="NAME", help="Those after this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List schedules in the order of their names. --json prints one line for each."""
    from continuum.cli.listing import list_schedules

    async def command() -> None:
        async with _open() as database:
            await list_schedules(database, limit, after, as_json)

    run(command)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a schedule, and what came of it so far."""
    from continuum.cli.listing import show_schedule

    async def command() -> None:
        async with _open() as database:
            show_schedule(await _record(database, name), as_json)

    run(command)


@app.command("next")
def next_times(
    name: Name, count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="How many.")] = 5
) -> None:
    """Print the next due times in the schedule's zone, without jitter."""
    from zoneinfo import ZoneInfo

    from continuum.cli.errors import tell
    from continuum.db.errors import InvalidSchedule
    from continuum.schedules import ScheduleError, next_due

    async def command() -> None:
        async with _open() as database:
            record, looked = await _record(database, name), await database.look_at_schedules(1)
        try:
            for due in next_due(record, looked.now, count):
                typer.echo(due.astimezone(ZoneInfo(record.time_zone)).isoformat())
        except ScheduleError as error:
            raise InvalidSchedule(str(error)) from None
        if record.paused:
            tell(f"it is paused: `continuum schedules resume {name}`")

    run(command)


@app.command()
def pause(name: Name, as_json: AsJson = False) -> None:
    """Let a schedule make no tasks until it is resumed."""
    _pause(name, True, as_json)


@app.command()
def resume(name: Name, as_json: AsJson = False) -> None:
    """Let a schedule go on; what was due meanwhile is left out."""
    _pause(name, False, as_json)


def _pause(name: str, paused: bool, as_json: bool) -> None:
    from continuum.cli import views

    async def command() -> None:
        async with _open() as database:
            _require(await database.pause_schedule(name, paused), name)
        views.say(as_json, {"name": name, "paused": paused}, f"{name} is {'paused' if paused else 'resumed'}")

    run(command)


@app.command()
def remove(name: Name, as_json: AsJson = False) -> None:
    """Forget a schedule; its tasks stay."""
    from continuum.cli import views

    async def command() -> None:
        async with _open() as database:
            _require(await database.remove_schedule(name), name)
        views.say(as_json, {"name": name}, f"{name} is removed")

    run(command)
