"""What every command is made of: options that several have, its settings, and how it runs and ends."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continuum.cli.complete import complete_code, complete_task

if TYPE_CHECKING:
    from continuum.config import Settings
    from continuum.retry import RetryPolicy

DATABASE_SETTINGS = {"db_dialect", "database_url", "db_user", "db_password", "db_name", "db_host", "db_port"}
"""Whoever sets none of these names no database."""


def duration(text: str | float) -> float:
    """A parser for options: seconds. What cannot be read is wrong usage."""
    from continuum.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def since_when(text: str | dt.datetime) -> dt.datetime:
    """A parser for options: so long ago, or a date or time, which is UTC unless it says otherwise."""
    return _moment(text, -1)


def until_when(text: str | dt.datetime) -> dt.datetime:
    """A parser for options: in so long, or a date or time, which is UTC unless it says otherwise."""
    return _moment(text, 1)


def _moment(text: str | dt.datetime, direction: int) -> dt.datetime:
    if isinstance(text, dt.datetime):
        return text
    try:
        when = dt.datetime.fromisoformat(text)
        return when if when.tzinfo else when.replace(tzinfo=dt.UTC)
    except ValueError:
        days = re.fullmatch(r"(\d+)d", text)
    try:
        seconds = int(days[1]) * 86400 if days else duration(text)
        return dt.datetime.now(dt.UTC) + direction * dt.timedelta(seconds=seconds)
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(f"{text!r}: use 90s, 5m, 1h30m or 7d, or a date such as 2026-11-29") from None


def retry_policy(text: str | RetryPolicy) -> RetryPolicy:
    """A parser for options. What cannot be read is wrong usage."""
    from continuum.retry import BadPolicy, RetryPolicy, parse_policy

    if isinstance(text, RetryPolicy):
        return text
    try:
        return parse_policy(text)
    except BadPolicy as error:
        raise typer.BadParameter(str(error)) from None


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
TaskId = Annotated[int, typer.Argument(metavar="ID", help="The task's id.", autocompletion=complete_task)]
TaskIds = Annotated[list[int], typer.Argument(metavar="ID...", help="The tasks' ids.", autocompletion=complete_task)]
CodeId = Annotated[str, typer.Argument(metavar="ID", help="The code's id.", autocompletion=complete_code)]
RetryJson = Annotated[
    Any, typer.Option("--retry", parser=retry_policy, metavar="JSON", help='When to try again: {"delays": [10, 60]}.')
]
Seconds = Annotated[
    float | None, typer.Option("--timeout", parser=duration, metavar="DURATION", help="Wait at most so long: 90, 5m.")
]


def run(command: Callable[[], Awaitable[int | None]]) -> None:
    """Run what a command does and end with the exit code that it returns, 0 where it returns none."""
    import trio

    from continuum.cli.errors import explained

    with explained():
        raise typer.Exit(trio.run(command) or 0)


def settings() -> Settings:
    """For commands whose output is their result: only warnings are logged beside it, unless LOG_LEVEL is set."""
    chosen = load()
    log_warnings(chosen)
    return chosen


def log_warnings(settings: Settings) -> None:
    """Log what LOG_LEVEL says, where it is set, and else warnings."""
    from continuum.logs import configure_logs

    chosen = "log_level" in settings.model_fields_set
    configure_logs(settings if chosen else settings.model_copy(update={"log_level": "warning"}))


def logged_settings() -> Settings:
    """For commands whose output is their log."""
    from continuum.logs import configure_logs, log_what_nobody_caught

    chosen = load()
    configure_logs(chosen)
    log_what_nobody_caught()
    return chosen


def load() -> Settings:
    """The settings. Where they name no database, and there is an embedded one in EMBEDDED_DIR (`continuum run` makes it), it is
    that. Raises `ConfigurationError`."""
    from continuum.config import load_settings

    chosen = load_settings()
    if names_no_database(chosen) and (chosen.embedded_dir / "data").exists():
        return chosen.model_copy(update={"db_dialect": "embedded"})
    return chosen


def names_no_database(settings: Settings) -> bool:
    """Whether neither the environment nor `.env` says which database to use."""
    return not DATABASE_SETTINGS & settings.model_fields_set
