"""`continuum workers`: who runs tasks, and who is to stop."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

from continuum.cli.common import AsJson, Seconds, run, settings
from continuum.cli.complete import complete_worker

if TYPE_CHECKING:
    from continuum.db.protocol import Database

app = typer.Typer(
    help="List workers, drain them, and let them claim again.", no_args_is_help=True, rich_markup_mode=None
)

WorkerId = Annotated[str, typer.Argument(metavar="ID", help="The worker's id.", autocompletion=complete_worker)]


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the workers of the last day, those that started last first. --json prints one line for each."""
    from continuum.cli import views
    from continuum.db import open_database

    async def command() -> None:
        async with open_database(settings(), application="continuum-workers") as database:
            workers = await database.workers()
        for each in workers:
            line = f"{each.id}  {each.state}, {each.running} of {each.slots} slots in use, {each.sandbox}"
            typer.echo(json.dumps(views.jsonable(each) | {"state": each.state}) if as_json else line)
        if not workers and not as_json:
            typer.echo("no worker was seen in the last day; `continuum worker` starts one")

    run(command)


@app.command()
def drain(
    worker_id: WorkerId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it holds no task any more.")] = False,
    seconds: Seconds = None,
) -> None:
    """Have a worker claim nothing more and finish what runs. It stays so until undrained, or started anew."""
    from continuum.db import open_database

    async def command() -> None:
        async with open_database(settings(), application="continuum-workers") as database:
            await _ask(database, worker_id, draining=True)
            if not wait:
                typer.echo(f"{worker_id} claims nothing more from its next heartbeat on")
                return
            state = await _drained(database, worker_id, math.inf if seconds is None else seconds)
            typer.echo(f"{worker_id} is {state}")

    run(command)


@app.command()
def undrain(worker_id: WorkerId) -> None:
    """Have a worker claim again that was drained."""
    from continuum.db import open_database

    async def command() -> None:
        async with open_database(settings(), application="continuum-workers") as database:
            await _ask(database, worker_id, draining=False)
        typer.echo(f"{worker_id} claims again from its next heartbeat on")

    run(command)


async def _ask(database: Database, worker_id: str, *, draining: bool) -> None:
    from continuum.cli.errors import WorkerNotFound

    if not await database.drain(worker_id, draining):
        raise WorkerNotFound(f"no worker {worker_id} runs")


async def _drained(database: Database, worker_id: str, seconds: float) -> str:
    """What a worker is once it is drained, or has ended. Raises `StillRuns`."""
    import trio

    from continuum.cli.errors import StillRuns
    from continuum.cli.views import REFRESH

    deadline = trio.current_time() + seconds
    while True:
        found = [each for each in await database.workers() if each.id == worker_id]
        if not found or found[0].state not in ("alive", "draining"):
            return found[0].state if found else "lost"
        if trio.current_time() >= deadline:
            raise StillRuns(f"{worker_id} is not drained yet: it ran {found[0].running} tasks when it was last seen")
        await trio.sleep(min(REFRESH, deadline - trio.current_time()))
