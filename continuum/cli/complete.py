"""What a shell offers when TAB is pressed: statuses at once, ids from the database where it answers quickly."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from continuum.db.protocol import Database

STATUSES = ("pending", "processing", "completed", "failed", "cancelled", "malicious")
FITTING = {"cancel": ("pending", "processing"), "retry": ("failed", "cancelled", "malicious")}
"""Which tasks a command can do something about; the others take any."""
DEADLINE = 1.5
"""Seconds that somebody who pressed TAB may be kept waiting."""
OFFERED = 30


def complete_status(incomplete: str) -> list[str]:
    """The statuses, also after a comma."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + status for status in STATUSES if status.startswith(last)]


def complete_task(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest tasks that the command can do something about."""
    from continuum.model import TaskFilter

    wanted = TaskFilter(statuses=frozenset(FITTING.get(context.command.name or "", ())), limit=OFFERED)

    async def ask(database: Database) -> list[tuple[str, str]]:
        return [(str(each.id), f"{each.status} {each.name}") for each in await database.search(wanted)]

    return _offered(ask, incomplete)


def complete_code(incomplete: str) -> list[tuple[str, str]]:
    """The first stored codes."""

    async def ask(database: Database) -> list[tuple[str, str]]:
        return [(each.id, each.first_line) for each in await database.codes(limit=OFFERED)]

    return _offered(ask, incomplete)


def complete_schedule(incomplete: str) -> list[tuple[str, str]]:
    """The first schedules."""

    async def ask(database: Database) -> list[tuple[str, str]]:
        return [(each.name, each.cron) for each in await database.schedules(limit=OFFERED)]

    return _offered(ask, incomplete)


def complete_worker(incomplete: str) -> list[tuple[str, str]]:
    """The workers that are alive."""

    async def ask(database: Database) -> list[tuple[str, str]]:
        return [(each.id, each.state) for each in await database.workers() if each.alive]

    return _offered(ask, incomplete)


def _offered(ask: Callable[[Database], Awaitable[list[tuple[str, str]]]], incomplete: str) -> list[tuple[str, str]]:
    """What begins as the user typed. Nothing where the database is away or slow: a TAB has nowhere to complain, and an
    embedded server is not started for it."""
    import trio

    from continuum.cli.common import load
    from continuum.db import open_database

    async def offer() -> list[tuple[str, str]]:
        settings = load()
        if settings.db_dialect == "embedded" and not (settings.embedded_dir / "data" / "postmaster.pid").exists():
            return []
        with trio.move_on_after(DEADLINE):
            async with open_database(settings, application="continuum-completion") as database:
                return await ask(database)
        return []

    try:
        return [each for each in trio.run(offer) if each[0].startswith(incomplete)]
    except Exception:
        return []
