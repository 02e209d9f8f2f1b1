"""From an exception to clear lines that end with what to do next, and an exit code.

| code | meaning                                                                  |
|------|--------------------------------------------------------------------------|
| 0    | done; for a task that was run, waited for or followed: it completed      |
| 1    | the task failed, or was cancelled or refused; or something unexpected ended the worker |
| 2    | wrong usage, configuration or task                                       |
| 3    | the database cannot be used: unreachable, another dialect, no schema, no rights |
| 4    | no sandbox can be started                                                |
| 5    | there is no such task, batch, code, schedule or worker                   |
| 6    | the time to wait was over                                                |
| 7    | the queue is full: as many tasks are pending as LIMITS allows            |
| 130  | Ctrl-C                                                                   |
| 143  | SIGTERM, for what watches at a terminal (a worker ends with 0)           |
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from continuum.cli.common import names_no_database
from continuum.client import TaskNotFound, WaitTimeout
from continuum.config import ConfigurationError, load_settings
from continuum.db.advice import advice_on
from continuum.db.errors import DatabaseError, DatabaseUnavailable, InvalidLimit, InvalidTask, QueueFull, SchemaMismatch
from continuum.sandbox.protocol import BackendUnavailable
from continuum.status.errors import StatusServerError

OK = 0
FAILED = 1
USAGE = 2
DATABASE = 3
SANDBOX = 4
NOT_FOUND = 5
TIMEOUT = 6
FULL = 7
INTERRUPTED = 130
TERMINATED = 143

NO_DATABASE = (
    "check DB_HOST, DB_PORT, DB_USER, DB_PASSWORD and DB_NAME, or DATABASE_URL; DB_DIALECT=embedded needs no server"
)

NOT_CONFIGURED = (
    "no database is configured: name yours in DATABASE_URL, or begin with `continuum run FILE.py`, which brings its own"
)


class CodeNotFound(LookupError):
    """There is no code with this id."""


class ScheduleNotFound(LookupError):
    """There is no schedule of this name."""


class WorkerNotFound(LookupError):
    """No such worker runs."""


class StillRuns(TimeoutError):
    """A worker that was to be drained was not in time."""


class ScheduleExists(ValueError):
    """There is a schedule of this name already."""


_HINTS = (
    (InvalidTask, USAGE, ""),
    (InvalidLimit, USAGE, ""),
    (QueueFull, FULL, ""),
    (ConfigurationError, USAGE, "change it where it is set: in the environment or in .env"),
    (StatusServerError, USAGE, ""),
    (SchemaMismatch, DATABASE, ""),
    (DatabaseUnavailable, DATABASE, NO_DATABASE),
    (DatabaseError, DATABASE, ""),
    (BackendUnavailable, SANDBOX, "`continuum doctor` checks what is there"),
    (TaskNotFound, NOT_FOUND, "`continuum tasks` lists the newest"),
    (ScheduleNotFound, NOT_FOUND, "`continuum schedules list` lists what there is"),
    (WorkerNotFound, NOT_FOUND, "`continuum workers list` lists what runs"),
    (ScheduleExists, USAGE, "--replace puts this one in its place"),
    (CodeNotFound, NOT_FOUND, "`continuum codes list` lists what there is"),
    (StillRuns, TIMEOUT, "`continuum tasks --status processing --worker ID` lists what runs there"),
    (WaitTimeout, TIMEOUT, "`continuum wait ID` waits again, `continuum status` shows whether a worker is alive"),
)
"""Exceptions that a user can mend, most special first, each with what to do where its message does not say it."""


@contextmanager
def explained() -> Iterator[None]:
    """Within the block, errors that a user can mend end the program with lines on stderr and their exit code."""
    try:
        yield
    except BaseException as error:
        cause = only_cause(error)
        for kind, code, hint in _HINTS:
            if isinstance(cause, kind):
                for line in _lines(str(cause), _begin_with() if hint is NO_DATABASE else hint):
                    tell(line)
                raise typer.Exit(code) from None
        if isinstance(cause, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
        raise


def _begin_with() -> str:
    """What to do about a database that cannot be reached."""
    with suppress(ConfigurationError):
        if names_no_database(load_settings()):
            return NOT_CONFIGURED
    return NO_DATABASE


def _lines(message: str, hint: str) -> list[str]:
    """What went wrong, and what to do on a line of its own: as the message says it at its end, unless there is nothing more to
    be said than that no database is configured."""
    if (advice := advice_on(message)) and message.endswith(advice):
        message = message.removesuffix(advice).rstrip("; ")
        hint = hint if hint is NOT_CONFIGURED else advice
    return [*message.splitlines(), *([hint] if hint else [])]


def tell(line: str) -> None:
    """Say something to a person, beside the result."""
    sys.stderr.write(f"continuum: {line}\n")
    sys.stderr.flush()


def only_cause(error: BaseException) -> BaseException:
    """The one exception in a group of one, or in groups of it; else the group itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
