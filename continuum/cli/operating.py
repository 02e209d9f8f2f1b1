"""The operator's commands: worker, status, top, migrate, doctor, demo, bench, socket-proxy, webhook-secret."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from continuum.cli.common import AsJson, load, logged_settings, run, settings


def _survive_hangups() -> None:
    """A SIGHUP that comes before anything listens for it asks for nothing: the settings have yet to be read."""
    import signal

    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)


def worker() -> None:
    """Claim tasks and run them until SIGTERM or Ctrl-C (a second one skips the grace). SIGHUP reloads limits."""
    _survive_hangups()
    from continuum.worker import run_worker

    async def command() -> None:
        await run_worker(logged_settings(), load=load)

    run(command)


def migrate(as_json: AsJson = False) -> None:
    """Apply the database schema. Safe to repeat, and while workers run."""
    from continuum.cli import views
    from continuum.db import open_database

    async def command() -> None:
        async with open_database(settings(), application="continuum-migrate") as database:
            version = await database.migrate()
            views.say(as_json, {"version": version}, f"the schema is at version {version} ({database.dialect})")

    run(command)


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the queue and the workers; `continuum top` shows more, live."""
    import trio

    from continuum.cli import views
    from continuum.db import open_database

    async def command() -> None:
        async with open_database(settings(), application="continuum-status") as database:
            if watch and not as_json and sys.stdout.isatty():
                await views.watch_system(database)
                return
            while True:
                views.print_system(await database.statistics(), await database.workers(), as_json)
                if not watch:
                    return
                await trio.sleep(views.REFRESH)

    run(command)


def top() -> None:
    """Watch the queue on the whole screen: throughput, workers, running tasks and their output, failures."""
    from continuum.cli.top.screen import run_top
    from continuum.db import open_database

    async def command() -> int:
        async with open_database(settings(), application="continuum-top") as database:
            return await run_top(database)

    run(command)


def doctor(as_json: AsJson = False) -> None:
    """Check configuration, database and sandbox, and say what to do about what is wrong."""
    from continuum.cli.doctor import examine

    async def command() -> int:
        return await examine(settings(), as_json)

    run(command)


def socket_proxy(
    listen: Annotated[Path, typer.Option(help="The socket that workers are given as DOCKER_HOST.")] = Path(
        "/run/continuum/docker.sock"
    ),
) -> None:
    """Stand between workers and the Docker daemon (DOCKER_HOST): let through what workers with these settings ask, no more."""
    _survive_hangups()
    from continuum.sandbox.docker_proxy import run_proxy

    async def command() -> None:
        await run_proxy(logged_settings(), listen)

    run(command)


def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo's database lives.")] = Path(".continuum/demo"),
    tasks: Annotated[int, typer.Option(min=8, help="How many tasks of mixed kinds.")] = 300,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the dashboard up until Ctrl-C.")] = False,
) -> None:
    """Run a real workload on an embedded PostgreSQL, from nothing, and check every outcome."""
    from continuum.demo import run_demo

    async def command() -> int:
        return await run_demo(folder, tasks, keep)

    run(command)


def bench(context: typer.Context) -> None:
    """Measure this machine (in a checkout): arguments, --help included, go to `python -m benchmarks`, which runs there."""
    import subprocess

    checkout = Path(__file__).parents[2]
    if not (checkout / "benchmarks" / "__main__.py").exists():
        typer.echo("continuum: benchmarks are part of a checkout, not of the installed package", err=True)
        raise typer.Exit(2)
    command = [sys.executable, "-m", "benchmarks", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=checkout, check=False).returncode)  # noqa: S603 - our own


def webhook_secret(
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print this tenant's, made of WEBHOOK_SECRET.")
    ] = None,
) -> None:
    """Make a secret for WEBHOOK_SECRET, or print the one that a tenant verifies its webhooks with."""
    import secrets

    from continuum.config import ConfigurationError
    from continuum.webhook import format_secret, tenant_secret

    async def command() -> None:
        if tenant is None:
            typer.echo(format_secret(secrets.token_bytes(32)))
            return
        known = settings().webhook_secrets
        if not known:
            raise ConfigurationError("WEBHOOK_SECRET is not set; `continuum webhook-secret` makes one")
        for secret in known:
            typer.echo(format_secret(tenant_secret(secret, tenant)))

    run(command)
