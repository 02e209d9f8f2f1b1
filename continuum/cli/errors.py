"""From an exception to one clear line and an exit code.

| code | meaning                                                                  |
|------|--------------------------------------------------------------------------|
| 0    | done; for a task that was waited for: it completed                       |
| 1    | the task failed, or was cancelled or refused; or something unexpected ended the worker |
| 2    | wrong usage, configuration or task                                       |
| 3    | the database cannot be used: unreachable, another dialect, no schema     |
| 4    | no sandbox can be started                                                |
| 5    | there is no such task                                                    |
| 6    | the time to wait was over                                                |
| 130  | Ctrl-C                                                                   |
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from continuum.client import TaskNotFound, WaitTimeout
from continuum.config import ConfigurationError
from continuum.db.advice import advice_on
from continuum.db.errors import DatabaseError, DatabaseUnavailable, InvalidTask, SchemaMismatch
from continuum.sandbox.protocol import BackendUnavailable
from continuum.status.errors import StatusServerError

OK = 0
FAILED = 1
USAGE = 2
DATABASE = 3
SANDBOX = 4
NOT_FOUND = 5
TIMEOUT = 6
INTERRUPTED = 130

NO_DATABASE = (
    "check DB_HOST, DB_PORT, DB_USER, DB_PASSWORD and DB_NAME, or DATABASE_URL; DB_DIALECT=embedded needs no server"
)

_HINTS = (
    (InvalidTask, USAGE, ""),
    (ConfigurationError, USAGE, ""),
    (StatusServerError, USAGE, ""),
    (SchemaMismatch, DATABASE, ""),
    (DatabaseUnavailable, DATABASE, NO_DATABASE),
    (DatabaseError, DATABASE, ""),
    (BackendUnavailable, SANDBOX, "`continuum doctor` checks what is there"),
    (TaskNotFound, NOT_FOUND, ""),
    (WaitTimeout, TIMEOUT, ""),
)


@contextmanager
def explained() -> Iterator[None]:
    """Within the block, errors that a user can mend end the program with one line on stderr and their exit code."""
    try:
        yield
    except BaseException as error:
        cause = only_cause(error)
        for kind, code, hint in _HINTS:
            if isinstance(cause, kind):
                says_it_all = hint is NO_DATABASE and advice_on(str(cause))
                for line in [*str(cause).splitlines(), *([hint] if hint and not says_it_all else [])]:
                    sys.stderr.write(f"continuum: {line}\n")
                raise typer.Exit(code) from None
        if isinstance(cause, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
        raise


def only_cause(error: BaseException) -> BaseException:
    """The one exception in a group of one, or in groups of it; else the group itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
