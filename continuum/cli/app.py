"""`continuum` and its commands. Each imports what it needs when it runs, so that `--help` waits for none of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from continuum.config import Settings
    from continuum.model import TaskRecord

app = typer.Typer(
    help="Run Python tasks from a SQL table in hardened sandboxes.\n\n"
    "Exit codes: 0 done, 1 the task failed, 2 wrong usage or configuration, 3 no database, 4 no sandbox, "
    "5 no such task, 6 waited too long, 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
TaskId = Annotated[int, typer.Argument(metavar="ID", help="The task's id.")]


def _duration(text: str | float) -> float:
    from continuum.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Seconds = Annotated[
    float | None, typer.Option("--timeout", parser=_duration, metavar="DURATION", help="Wait at most so long: 90, 5m.")
]


def main(arguments: list[str] | None = None) -> None:
    """The console script."""
    app(arguments)


def _run(command: Callable[[], Awaitable[int | None]]) -> None:
    """Run what a command does and end with the exit code that it returns, 0 where it returns none."""
    import trio

    from continuum.cli.errors import explained

    with explained():
        raise typer.Exit(trio.run(command) or 0)


def _settings() -> Settings:
    """For commands whose output is their result: only warnings are logged beside it, unless LOG_LEVEL is set."""
    from continuum.config import load_settings
    from continuum.logs import configure_logs

    settings = load_settings()
    configure_logs(settings if "log_level" in settings.model_fields_set else load_settings(log_level="warning"))
    return settings


def _logged_settings() -> Settings:
    """For commands whose output is their log."""
    from continuum.config import load_settings
    from continuum.logs import configure_logs

    settings = load_settings()
    configure_logs(settings)
    return settings


def _survive_hangups() -> None:
    """A SIGHUP that comes before anything listens for it asks for nothing: the settings have yet to be read."""
    import signal

    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)


@app.command()
def worker() -> None:
    """Claim tasks and run them until SIGTERM or Ctrl-C (a second one skips the grace). SIGHUP reloads limits."""
    _survive_hangups()
    from continuum.worker import run_worker

    async def run() -> None:
        await run_worker(_logged_settings())

    _run(run)


@app.command()
def migrate(as_json: AsJson = False) -> None:
    """Apply the database schema. Safe to repeat, and while workers run."""
    from continuum.cli import views
    from continuum.db import open_database

    async def run() -> None:
        async with open_database(_settings(), application="continuum-migrate") as database:
            version = await database.migrate()
            views.say(as_json, {"version": version}, f"the schema is at version {version} ({database.dialect})")

    _run(run)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="The script; - reads it from stdin.")],
    payload: Annotated[str | None, typer.Option(help="JSON, or @FILE that holds it.")] = None,
    requirements: Annotated[
        Path | None,
        typer.Option(
            "--requirements", "-r", metavar="FILE", help="Pinned packages; wins over the script's own dependencies."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    priority: Annotated[int, typer.Option(help="Lower runs first.")] = 0,
    task_timeout: Annotated[
        float | None,
        typer.Option("--task-timeout", parser=_duration, metavar="DURATION", help="It may run so long: 90, 5m, 1h30m."),
    ] = None,
    max_attempts: Annotated[int, typer.Option(help="How often it is tried.")] = 3,
    tenant: Annotated[str | None, typer.Option(help="Whose task it is.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key again yields the first task.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end and print its output.")] = False,
    seconds: Seconds = None,
    as_json: AsJson = False,
) -> None:
    """Submit a script. What it requires is in --requirements, else in the dependencies of its `# /// script` block."""
    from continuum.cli import views
    from continuum.cli.errors import OK
    from continuum.cli.script import read_payload, read_requirements, read_script
    from continuum.client import Client, new_task

    async def run() -> int:
        script = read_script(file)
        task = new_task(
            script,
            requirements=read_requirements(requirements, script),
            name=name or (file.name if str(file) != "-" else "stdin"),
            priority=priority,
            max_attempts=max_attempts,
            timeout=task_timeout,
            tenant=tenant,
            idempotency_key=idempotency_key,
            **({} if payload is None else {"payload": read_payload(payload)}),
        )
        async with Client(_settings()) as client:
            (task_id,) = await client.submit_many([task])
            if not wait:
                views.say(as_json, {"id": task_id}, str(task_id))
                return OK
            return _print_end(await client.wait(task_id, seconds), as_json)

    _run(run)


@app.command("wait")
def wait_for(task_id: TaskId, seconds: Seconds = None, as_json: AsJson = False) -> None:
    """Wait for a task's end and print its output."""
    from continuum.client import Client

    async def run() -> int:
        async with Client(_settings()) as client:
            return _print_end(await client.wait(task_id, seconds), as_json)

    _run(run)


@app.command()
def logs(
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a task has written."""
    from continuum.client import Client
    from continuum.model import Stream

    async def run() -> None:
        async with Client(_settings()) as client:
            async for stream, text in client.logs(task_id, follow=follow):
                if as_json:
                    typer.echo(json.dumps({"stream": stream.value, "text": text}))
                else:
                    typer.echo(text, nl=False, err=stream is Stream.ERROR)

    _run(run)


@app.command()
def cancel(task_id: TaskId, as_json: AsJson = False) -> None:
    """Cancel a pending task, or stop a running one."""
    from continuum.cli import views
    from continuum.client import Client

    async def run() -> None:
        async with Client(_settings()) as client:
            result = await client.cancel(task_id)
            views.say(
                as_json, {"id": task_id, "result": result.value}, f"task {task_id}: {views.CANCELLATIONS[result]}"
            )

    _run(run)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the queue and the workers."""
    import trio

    from continuum.cli import views
    from continuum.db import open_database

    async def run() -> None:
        async with open_database(_settings(), application="continuum-status") as database:
            if watch and not as_json and sys.stdout.isatty():
                await views.watch_system(database)
                return
            while True:
                views.print_system(await database.statistics(), await database.workers(), as_json)
                if not watch:
                    return
                await trio.sleep(views.REFRESH)

    _run(run)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check configuration, database and sandbox, and say what to do about what is wrong."""
    from continuum.cli.doctor import examine

    async def run() -> int:
        return await examine(_settings(), as_json)

    _run(run)


@app.command("socket-proxy")
def socket_proxy(
    listen: Annotated[Path, typer.Option(help="The socket that workers are given as DOCKER_HOST.")] = Path(
        "/run/continuum/docker.sock"
    ),
) -> None:
    """Stand between workers and the Docker daemon (DOCKER_HOST): let through what workers with these settings ask, no more."""
    _survive_hangups()
    from continuum.sandbox.docker_proxy import run_proxy

    async def run() -> None:
        await run_proxy(_logged_settings(), listen)

    _run(run)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo's database lives.")] = Path(".continuum/demo"),
    tasks: Annotated[int, typer.Option(min=8, help="How many tasks of mixed kinds.")] = 300,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the dashboard up until Ctrl-C.")] = False,
) -> None:
    """Run a real workload on an embedded PostgreSQL, from nothing, and check every outcome."""
    from continuum.demo import run_demo

    async def run() -> int:
        return await run_demo(folder, tasks, keep)

    _run(run)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure this machine (in a checkout): arguments, --help included, go to `python -m benchmarks`, which runs there."""
    import subprocess

    checkout = Path(__file__).parents[2]
    if not (checkout / "benchmarks" / "__main__.py").exists():
        typer.echo("continuum: benchmarks are part of a checkout, not of the installed package", err=True)
        raise typer.Exit(2)
    command = [sys.executable, "-m", "benchmarks", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=checkout, check=False).returncode)  # noqa: S603 - our own


def _print_end(record: TaskRecord, as_json: bool) -> int:
    from continuum.cli import views
    from continuum.cli.errors import FAILED, OK
    from continuum.model import Status

    if as_json:
        typer.echo(json.dumps(views.task_as_json(record)))
    else:
        typer.echo(record.output or "", nl=False)
        typer.echo(record.error_output or "", nl=False, err=True)
        if record.status != Status.COMPLETED:
            cause = (record.last_error or "").splitlines()
            typer.echo(
                f"continuum: task {record.id} {record.status}: {cause[0] if cause else 'no reason given'}", err=True
            )
    return OK if record.status == Status.COMPLETED else FAILED
