"""`continuum submit` and `continuum run`: from a script to a task."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continuum.cli.common import AsJson, RetryJson, Seconds, duration, settings, until_when
from continuum.cli.common import run as run_command
from continuum.cli.complete import complete_code

if TYPE_CHECKING:
    from continuum.model import NewTask

Script = Annotated[Path, typer.Argument(metavar="FILE.py", help="The script; - reads it from stdin.")]
Payload = Annotated[str | None, typer.Option(help="JSON, or @FILE that holds it.")]
RequirementsFile = Annotated[
    Path | None,
    typer.Option(
        "--requirements", "-r", metavar="FILE", help="Pinned packages; wins over the script's own dependencies."
    ),
]
Name = Annotated[str, typer.Option(help="A name for people.")]
TaskTimeout = Annotated[
    float | None,
    typer.Option("--task-timeout", parser=duration, metavar="DURATION", help="It may run so long: 90, 5m, 1h30m."),
]
Tenant = Annotated[str | None, typer.Option(help="Whose task it is.")]


def submit(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.py", help="The script; - reads it from stdin.", show_default=False)
    ] = None,
    payload: Payload = None,
    requirements: RequirementsFile = None,
    code: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Stored code instead of a script (codes add).", autocompletion=complete_code),
    ] = None,
    name: Name = "",
    priority: Annotated[int, typer.Option(help="Lower runs first.")] = 0,
    task_timeout: TaskTimeout = None,
    max_attempts: Annotated[int, typer.Option(help="How often it is tried.")] = 3,
    retry: RetryJson = None,
    expires: Annotated[
        dt.datetime | None,
        typer.Option(
            parser=until_when, metavar="WHEN", help="Cancelled unless it began by then: 5m, 2d, 2026-11-29T08:00."
        ),
    ] = None,
    tenant: Tenant = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key again yields the first task.")] = None,
    idempotency_window: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="DURATION", help="Only within this time after the first: 90, 5m, 24h."),
    ] = None,
    unique: Annotated[
        bool, typer.Option("--unique", help="Unless an equal one is pending: same code and payload.")
    ] = False,
    sequence_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="After the tasks with the same key that are there.")
    ] = None,
    concurrency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="At most so many with the same key at a time as LIMITS says, or one."),
    ] = None,
    depends_on: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", help="Only once this task has completed; may be given again.", min=1),
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="NAME", help="The batch that it belongs to: any name.")] = None,
    depends_batch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only once all tasks of this batch have completed.")
    ] = None,
    depends_any: Annotated[bool, typer.Option("--depends-any", help="One of these is enough.")] = False,
    depends_ended: Annotated[bool, typer.Option("--depends-ended", help="Also when they did not complete.")] = False,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Told when the task has ended.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="What its worker must have (WORKER_TAGS); may be given again.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end and print its output.")] = False,
    seconds: Seconds = None,
    as_json: AsJson = False,
) -> None:
    """Submit a script. What it requires is in --requirements, else in the dependencies of its `# /// script` block."""
    from continuum.cli import views
    from continuum.cli.errors import OK
    from continuum.cli.follow import print_end
    from continuum.client import Client

    if (file is None) == (code is None):
        raise typer.BadParameter("give a script, FILE.py, or --code ID")
    if (depends_any or depends_ended) and not depends_on and depends_batch is None:
        raise typer.BadParameter(
            "--depends-any and --depends-ended say how --depends-on and --depends-batch count: give one of these, too"
        )

    async def command() -> int:
        task = described_task(
            file,
            payload,
            requirements,
            name,
            code_id=code,
            priority=priority,
            max_attempts=max_attempts,
            retry=retry,
            expires_at=expires,
            timeout=task_timeout,
            tenant=tenant,
            idempotency_key=idempotency_key,
            idempotency_window=idempotency_window,
            unique=unique,
            sequence_key=sequence_key,
            concurrency_key=concurrency_key,
            depends_on=tuple(depends_on or ()),
            depends_any=depends_any,
            depends_ended=depends_ended,
            batch=batch,
            depends_batch=depends_batch,
            webhook=webhook,
            worker_tags=tuple(tag or ()),
        )
        async with Client(settings(), patience=0) as client:
            (task_id,) = await client.submit_many([task])
            if not wait:
                views.say(as_json, {"id": task_id}, str(task_id))
                return OK
            return print_end(await client.wait(task_id, seconds), as_json)

    run_command(command)


def run(
    file: Script,
    payload: Payload = None,
    requirements: RequirementsFile = None,
    name: Name = "",
    task_timeout: TaskTimeout = None,
    max_attempts: Annotated[int, typer.Option(help="How often it is tried.")] = 1,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Run a script in a sandbox now and show what it writes; Ctrl-C cancels it.

    It is a task like any other. Where no database is configured, an embedded PostgreSQL in the folder .continuum keeps it, and
    where no worker of that one is alive, this command is its worker for as long as the task needs.
    """
    from continuum.cli.running import run_task

    async def command() -> int:
        task = described_task(
            file, payload, requirements, name, timeout=task_timeout, max_attempts=max_attempts, tenant=tenant
        )
        return await run_task(task, as_json)

    run_command(command)


def described_task(
    file: Path | None, payload: str | None, requirements: Path | None, name: str, **values: Any
) -> NewTask:
    """What the options describe. Raises `InvalidTask`."""
    from continuum.cli.script import read_payload, read_requirements, read_script
    from continuum.client import new_task
    from continuum.client.results import NOT_GIVEN

    script = "" if file is None else read_script(file)
    task = new_task(
        script,
        NOT_GIVEN if payload is None else read_payload(payload),
        requirements=read_requirements(requirements, script),
        name=name or ("" if file is None else "stdin" if str(file) == "-" else file.name),
        **values,
    )
    return task if file is not None else replace(task, code=None)
