"""`continuum tasks` and what is done with a task that is there: show, wait, logs, cancel, retry."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from continuum.cli.common import AsJson, Seconds, TaskId, TaskIds, run, settings, since_when
from continuum.cli.complete import STATUSES, complete_status, complete_task

if TYPE_CHECKING:
    from continuum.model import DeadLetterFilter

WHERE = ("tenant", "name", "error", "code", "since")
"""What `retry --all --where` knows."""


def wait_for(task_id: TaskId, seconds: Seconds = None, as_json: AsJson = False) -> None:
    """Wait for a task's end and print its output."""
    from continuum.cli.follow import print_end
    from continuum.client import Client

    async def command() -> int:
        async with Client(settings()) as client:
            return print_end(await client.wait(task_id, seconds), as_json)

    run(command)


def batch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The batch.", show_default=False)],
    tenant: Annotated[str | None, typer.Option(help="Whose batch it is.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all of its tasks have ended.")] = False,
    seconds: Seconds = None,
    as_json: AsJson = False,
) -> None:
    """Say how many tasks of a batch are in each state; --wait waits for their ends."""
    from continuum.cli.follow import follow_batch, print_batch
    from continuum.client import Client

    if seconds is not None and not wait:
        raise typer.BadParameter("--timeout says how long to --wait")

    async def command() -> int:
        async with Client(settings()) as client:
            progress = await (follow_batch(client, name, tenant, seconds) if wait else client.batch(name, tenant))
        return print_batch(progress, as_json, waited=wait)

    run(command)


def logs(
    task_id: TaskId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task ends; the exit code says how it ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a task has written; -f goes on until it ends."""
    from continuum.cli.follow import code_of, follow_task
    from continuum.client import Client

    async def command() -> int:
        async with Client(settings()) as client:
            record = await follow_task(client, task_id, as_json, to_the_end=follow)
            return code_of(record) if follow else 0

    run(command)


def list_tasks(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A part of a name, or an id.", show_default=False)] = "",
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status", "-s", help="One or more, by commas: failed,malicious.", autocompletion=complete_status
        ),
    ] = None,
    since: Annotated[
        dt.datetime | None,
        typer.Option(parser=since_when, metavar="WHEN", help="Created since: 1h, 7d, 2026-11-29, 2026-11-29T08:00."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose tasks.")] = None,
    name: Annotated[str, typer.Option(help="A part of a name, in any case.")] = "",
    worker: Annotated[str | None, typer.Option(metavar="ID", help="Those a worker runs, or ran last.")] = None,
    error: Annotated[str | None, typer.Option(help="The group of an error, as `continuum top` names it.")] = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Those in quarantine.")] = False,
    batch: Annotated[str | None, typer.Option(metavar="NAME", help="Those of a batch.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    before: Annotated[int | None, typer.Option(metavar="ID", help="Older than this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first. --json prints one line for each."""
    from continuum.cli.listing import list_tasks
    from continuum.db import open_database
    from continuum.model import TaskFilter

    statuses = {one.strip().lower() for each in status or [] for one in each.split(",") if one.strip()}
    if unknown := statuses - set(STATUSES):
        raise typer.BadParameter(f"{min(unknown)!r} is no status; use {', '.join(STATUSES)}", param_hint="--status")
    if text and name:
        raise typer.BadParameter("give the text or --name, not both")
    wanted = TaskFilter(
        text or name, frozenset(statuses), tenant, worker, error, since, before, limit, quarantined, batch
    )

    async def command() -> None:
        async with open_database(settings(), application="continuum-tasks") as database:
            await list_tasks(database, wanted, as_json)

    run(command)


def show(task_id: TaskId, as_json: AsJson = False) -> None:
    """Show a task: its attempts, its error with the place in its code, the end of its output."""
    from continuum.cli import views
    from continuum.cli.story import tell_story
    from continuum.client import Client

    async def command() -> None:
        async with Client(settings()) as client:
            record = await client.fetch(task_id)
            if as_json:
                typer.echo(json.dumps(views.task_as_json(record)))
            else:
                await tell_story(client.database, record)

    run(command)


def cancel(task_ids: TaskIds, as_json: AsJson = False) -> None:
    """Cancel pending tasks, and stop running ones."""
    from continuum.cli import views
    from continuum.client import Client

    async def command() -> int:
        async with Client(settings()) as client:

            async def cancel_one(task_id: int) -> None:
                result = await client.cancel(task_id)
                views.say(
                    as_json, {"id": task_id, "result": result.value}, f"task {task_id}: {views.CANCELLATIONS[result]}"
                )

            return await for_each(task_ids, cancel_one)

    run(command)


def retry(
    task_ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID...", help="The tasks' ids.", autocompletion=complete_task, show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that failed, but those in quarantine.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE", help="With --all, those with this tenant, name, error, code, or since WHEN."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --all, only say how many and which.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try tasks again that have ended: a copy of each is submitted, once, under an id of its own."""
    from continuum.cli import views
    from continuum.client import Client, TaskNotFound
    from continuum.model import Retry

    if every == bool(task_ids):
        raise typer.BadParameter("give ids, or --all")
    if (where or dry_run) and not every:
        raise typer.BadParameter("--where and --dry-run go with --all")
    if every:
        _retry_all(where or [], dry_run, as_json)
    ids = task_ids or []

    async def command() -> int:
        async with Client(settings()) as client:

            async def retry_one(task_id: int) -> None:
                answer = await client.database.retry(task_id)
                if answer.outcome is Retry.UNKNOWN:
                    raise TaskNotFound(f"there is no task {task_id}")
                views.say(
                    as_json,
                    {"id": task_id, "result": answer.outcome.value, "task_id": answer.task_id},
                    f"task {task_id}: {views.RETRIES[answer.outcome].format(answer.task_id)}",
                )

            return await for_each(ids, retry_one)

    run(command)


def _retry_all(where: list[str], dry_run: bool, as_json: bool) -> NoReturn:
    from continuum.cli import views
    from continuum.cli.listing import list_summaries
    from continuum.db import open_database
    from continuum.db.dead_letters import retry_failed

    wanted = _dead_letters(where)

    async def command() -> None:
        async with open_database(settings(), application="continuum-retry") as database:
            done = await retry_failed(database, wanted, dry_run=dry_run)
        if as_json:
            typer.echo(
                json.dumps({"found": done.found, "retried": done.retried, "newest": views.jsonable(done.newest)})
            )
            return
        if done.newest:
            list_summaries(done.newest)
        more = f", of which the newest {len(done.newest)} are above" if done.found > len(done.newest) else ""
        tasks = "1 task" if done.found == 1 else f"{done.found} tasks"
        typer.echo(
            f"{tasks} would be tried again{more}" if dry_run else f"{done.retried} of {tasks} submitted again{more}"
        )

    run(command)
    raise AssertionError("unreachable")


def _dead_letters(where: list[str]) -> DeadLetterFilter:
    """What `--where FIELD=VALUE` asks for."""
    from uuid import UUID

    from continuum.model import DeadLetterFilter

    values: dict[str, Any] = {}
    for each in where:
        name, equals, value = each.partition("=")
        if not equals or name not in WHERE or name in values:
            raise typer.BadParameter(
                f"{each!r}: use FIELD=VALUE, each of {', '.join(WHERE)} once", param_hint="--where"
            )
        values[name] = since_when(value) if name == "since" else value
    if (code := values.pop("code", None)) is not None:
        try:
            values["code_id"] = str(UUID(code))
        except ValueError:
            raise typer.BadParameter(f"{code!r} is no code's id", param_hint="--where") from None
    return DeadLetterFilter(**values)


async def for_each(task_ids: list[int], act: Callable[[int], Awaitable[None]]) -> int:
    """Do something for each task, whether or not others are there; return the exit code."""
    from continuum.cli.errors import NOT_FOUND, OK, tell
    from continuum.client import TaskNotFound

    missing = 0
    for task_id in dict.fromkeys(task_ids):
        try:
            await act(task_id)
        except TaskNotFound as error:
            missing += 1
            tell(str(error))
    if missing:
        tell("`continuum tasks` lists the newest")
    return NOT_FOUND if missing else OK
