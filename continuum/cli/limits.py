"""`continuum limits`: what of whom may run, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from continuum.cli.common import AsJson, duration, run, settings

if TYPE_CHECKING:
    from continuum.model import Limit, Scope

app = typer.Typer(
    help="Limit tenants, keys and the queue, and pause those, tags and codes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        help="queue, tenant:NAME, key:NAME, tag:NAME or code:ID; tenant:* and key:* are all without a limit of their own.",
    ),
]


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List all limits. --json prints one line for each."""
    import json

    from continuum.cli import views
    from continuum.db import open_database

    async def command() -> None:
        async with open_database(settings(), application="continuum-limits") as database:
            limits = await database.limits()
        for limit in limits:
            typer.echo(json.dumps(views.jsonable(limit)) if as_json else f"{_target(limit)}  {_said(limit)}")
        if not limits and not as_json:
            typer.echo("nothing is limited; `continuum limits set tenant:acme --max-running 5` limits something")

    run(command)


@app.command("set")
def set_one(
    target: Target,
    weight: Annotated[float | None, typer.Option(help="A tenant's share, compared with 1.")] = None,
    max_running: Annotated[int | None, typer.Option(help="At a time, all workers together.")] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/DURATION", help="Starts in any period: 100/1m, 5000/1h.")
    ] = None,
    max_pending: Annotated[int | None, typer.Option(help="Tasks that wait, beyond which none is submitted.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Forget what was said before.")] = False,
) -> None:
    """Set limits; what is not given stays as it was."""

    def change(limit: Limit) -> Limit:
        from dataclasses import replace

        from continuum.model import Limit

        before = Limit(limit.scope, limit.name) if clear else limit
        starts, period = _rate(rate)
        return replace(
            before,
            weight=before.weight if weight is None else weight,
            max_running=before.max_running if max_running is None else max_running,
            rate=before.rate if starts is None else starts,
            rate_period=before.rate_period if period is None else period,
            max_pending=before.max_pending if max_pending is None else max_pending,
        )

    _change(target, change)


@app.command()
def pause(target: Target) -> None:
    """Let nothing of it begin; what runs goes on."""
    _pause(target, True)


@app.command()
def resume(target: Target) -> None:
    """Let it begin again."""
    _pause(target, False)


@app.command()
def clear(target: Target) -> None:
    """Remove all limits of a tenant, key, tag or code, or of the queue."""
    from continuum.cli.errors import tell
    from continuum.db import open_database

    scope, name = _parse(target)

    async def command() -> None:
        async with open_database(settings(), application="continuum-limits") as database:
            if not await database.clear_limit(scope, name):
                tell(f"{target} had no limit")

    run(command)


def _pause(target: str, paused: bool) -> None:
    from continuum.db import open_database
    from continuum.db.limiting import pause_limit

    scope, name = _parse(target)

    async def command() -> None:
        async with open_database(settings(), application="continuum-limits") as database:
            limit = await pause_limit(database, scope, name, paused)
        typer.echo(f"{_target(limit)}  {_said(limit)}")

    run(command)


def _change(target: str, change: Callable[[Limit], Limit]) -> None:
    from continuum.db import open_database
    from continuum.db.limiting import change_limit

    scope, name = _parse(target)

    async def command() -> None:
        async with open_database(settings(), application="continuum-limits") as database:
            limit = await change_limit(database, scope, name, change)
        typer.echo(f"{_target(limit)}  {_said(limit)}")

    run(command)


def _parse(target: str) -> tuple[Scope, str]:
    from continuum.model import Scope

    scope, colon, name = target.partition(":")
    if scope not in set(Scope) or (scope == Scope.QUEUE) == bool(colon):
        raise typer.BadParameter(f"{target!r} is neither queue nor tenant:NAME, key:NAME, tag:NAME or code:ID")
    return Scope(scope), name


def _rate(text: str | None) -> tuple[int | None, float | None]:
    if text is None:
        return None, None
    starts, slash, period = text.partition("/")
    if not slash or not starts.isdecimal():
        raise typer.BadParameter(f"{text!r} is no rate: write starts and a period, such as 100/1m")
    return int(starts), duration(period)


def _target(limit: Limit) -> str:
    return f"{limit.scope}:{limit.name}" if limit.scope != "queue" else "queue"


def _said(limit: Limit) -> str:
    words = {
        "weight": f"weight {limit.weight:g}" if limit.weight is not None else "",
        "running": f"at most {limit.max_running} running" if limit.max_running is not None else "",
        "rate": f"at most {limit.rate} starts in {limit.rate_period:g} s" if limit.rate is not None else "",
        "pending": f"at most {limit.max_pending} pending" if limit.max_pending is not None else "",
        "paused": {True: "paused", False: "not paused", None: ""}[limit.paused],
    }
    return ", ".join(word for word in words.values() if word)
