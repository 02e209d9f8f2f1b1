"""`continuum tasks` and what is done with a task that is there: show, wait, logs, cancel, retry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from continuum.cli.common import AsJson, Seconds, TaskId, TaskIds, run, settings


def wait_for(task_id: TaskId, seconds: Seconds = None, as_json: AsJson = False) -> None:
    """Wait for a task's end and print its output."""
    from continuum.cli.follow import print_end
    from continuum.client import Client

    async def command() -> int:
        async with Client(settings()) as client:
            return print_end(await client.wait(task_id, seconds), as_json)

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
