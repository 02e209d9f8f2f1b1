"""`continuum archive`: finished tasks into files of JSON Lines, by hand."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from continuum.cli.common import AsJson, run, settings, since_when
from continuum.cli.complete import complete_status

if TYPE_CHECKING:
    from continuum.db.protocol import Database
    from continuum.model import EndedFilter, EndedTask
    from continuum.nursery.archiving import Archiving

PAGE = 1000


def archive(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIRECTORY", help="Where to; ARCHIVE_DIR unless it is given.", show_default=False),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", "-s", help="How they ended, by commas; all.", autocompletion=complete_status),
    ] = None,
    before: Annotated[
        dt.datetime | None,
        typer.Option(parser=since_when, metavar="WHEN", help="Ended before: 1h, 7d, 2026-11-29, 2026-11-29T08:00."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose tasks.")] = None,
    name: Annotated[str, typer.Option(help="A part of a name, in any case.")] = "",
    delete: Annotated[bool, typer.Option("--delete", help="Delete them once they are written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write finished tasks to a file of JSON Lines (gzip), the oldest of each status first."""
    from continuum.archive import Archive
    from continuum.cli import views
    from continuum.config import ConfigurationError
    from continuum.db import open_database
    from continuum.model import TERMINAL, EndedFilter, Status
    from continuum.nursery.archiving import Archiving
    from continuum.nursery.state import new_worker_id

    wanted = {one.strip().lower() for each in status or [] for one in each.split(",") if one.strip()} or TERMINAL
    if unknown := set(wanted) - TERMINAL:
        raise typer.BadParameter(
            f"{min(unknown)!r} is no way to end; use {', '.join(sorted(TERMINAL))}", param_hint="--status"
        )
    age = 0.0 if before is None else max(0.0, (dt.datetime.now(dt.UTC) - before).total_seconds())
    filters = [EndedFilter(Status(each), age, tenant, name) for each in sorted(wanted)]

    async def command() -> None:
        chosen = settings()
        place = directory or chosen.archive_dir
        if place is None:
            raise ConfigurationError("ARCHIVE_DIR is not set, and no directory was given")
        async with open_database(chosen, application="continuum-archive") as database:
            archiving = Archiving(database, Archive(place, new_worker_id()))
            try:
                written, deleted, paths = await _archive(database, archiving, filters, delete)
            except OSError as error:
                raise ConfigurationError(f"{place} takes no archive: {error}") from None
        done = f"{written} tasks written" + (f", {deleted} deleted" if delete else "")
        views.say(
            as_json,
            {"written": written, "deleted": deleted, "files": [str(path) for path in paths]},
            "\n".join([done, *map(str, paths)]),
        )

    run(command)


async def _archive(
    database: Database, archiving: Archiving, filters: Iterable[EndedFilter], delete: bool
) -> tuple[int, int, list[Path]]:
    """Archive all that fit; return how many were written and deleted, and the files."""
    from continuum.nursery.archiving import portions

    count = deleted = 0
    paths: dict[Path, None] = {}
    for wanted in filters:
        seen: list[EndedTask] = []
        while page := await database.ended(wanted, PAGE, seen):
            for portion in portions(page):
                written, path = await archiving.archive_tasks(portion)
                count += len(written)
                if path is not None:
                    paths[path] = None
                if delete:
                    deleted += await database.delete_ended(written)
            seen = [task for task in [*seen, *page] if task.finished == page[-1].finished]
    return count, deleted, list(paths)
