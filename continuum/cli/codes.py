"""`continuum codes`: scripts that are stored once and run by many tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from continuum.cli.common import AsJson, CodeId, RetryJson, run, settings

app = typer.Typer(help="Store scripts, list them and show one.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="The script; - reads it from stdin.")],
    requirements: Annotated[
        Path | None,
        typer.Option(
            "--requirements", "-r", metavar="FILE", help="Pinned packages; wins over the script's own dependencies."
        ),
    ] = None,
    retry: RetryJson = None,
    as_json: AsJson = False,
) -> None:
    """Store a script and print its id, for `submit --code ID`; the same script again yields the same id."""
    from continuum.cli import views
    from continuum.cli.script import read_requirements, read_script
    from continuum.db import open_database

    async def command() -> None:
        script = read_script(file)
        required = read_requirements(requirements, script)
        async with open_database(settings(), application="continuum-codes") as database:
            code_id = await database.store_code(script, required, retry)
            views.say(as_json, {"id": code_id}, code_id)

    run(command)


@app.command("list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Those after this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List stored scripts in the order of their ids. --json prints one line for each."""
    from continuum.cli.listing import list_codes
    from continuum.db import open_database

    async def command() -> None:
        async with open_database(settings(), application="continuum-codes") as database:
            await list_codes(database, limit, after, as_json)

    run(command)


@app.command()
def show(code_id: CodeId, as_json: AsJson = False) -> None:
    """Print a stored script; what it requires goes to stderr."""
    import json

    from continuum.cli import views
    from continuum.cli.errors import CodeNotFound, tell
    from continuum.cli.output import Printer
    from continuum.db import open_database
    from continuum.model import Stream

    async def command() -> None:
        async with open_database(settings(), application="continuum-codes") as database:
            record = await database.fetch_code(code_id)
        if record is None:
            raise CodeNotFound(f"there is no code {code_id}")
        if as_json:
            typer.echo(json.dumps(views.jsonable(record)))
            return
        Printer(as_json=False).piece(Stream.OUTPUT, record.code)
        if record.requirements:
            tell("it requires " + ", ".join(record.requirements.split("\n")).strip(", "))
        if record.retry:
            tell(f"its tasks are tried again as {record.retry} says")

    run(command)
