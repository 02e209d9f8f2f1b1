"""Where the benchmark runs: the options of the command line, a database server, and how much to do."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from continuum.config import Settings
from continuum.db import open_database
from continuum.db.embedded import open_embedded

HELLO = "print('hello')"

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for.

    quick: a tenth of the work, to see that everything runs; its figures mean nothing.
    backend, runtime: of the sandboxes. database: conninfo of the server; None starts an embedded one.
    cockroach: conninfo of a CockroachDB for the parts that have figures there; None leaves them out.
    """

    quick: bool = False
    backend: str = "auto"
    runtime: str = ""
    database: str | None = None
    cockroach: str | None = None

    @property
    def part(self) -> float:
        """Of all the work, how much is done."""
        return 0.1 if self.quick else 1.0

    def scaled(self, count: int) -> int:
        """A number of tasks, rows or seconds; less of it in a quick run."""
        return max(1, int(count * self.part))


def quiet_logs() -> None:
    """Let only errors be logged, on stderr: stdout is for figures."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@asynccontextmanager
async def database_server(options: Options) -> AsyncIterator[str]:
    """Conninfo of a PostgreSQL server: the one named, or an embedded one (fsync on, its usual settings) that ends with the
    block."""
    if options.database is not None:
        yield options.database
        return
    with tempfile.TemporaryDirectory(prefix="continuum-bench-") as folder:
        Path(folder).chmod(0o755)
        async with open_embedded(Path(folder)) as conninfo:
            yield conninfo


@asynccontextmanager
async def fresh_database(server: str, *, migrated: bool = True) -> AsyncIterator[str]:
    """Conninfo of a database of the benchmark's own on a server, with Continuum's schema; dropped when the block ends."""
    name = f"bench_{os.getpid()}_{next(_numbers)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server, autocommit=True) as connection:
        cockroach = connection.info.parameter_status("crdb_version") is not None
        connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    conninfo = make_conninfo(server, dbname=name)
    try:
        if migrated:
            async with open_database(Settings.model_validate({"database_url": conninfo}), pool_size=1) as database:
                await database.migrate()
        yield conninfo
    finally:
        drop = "DROP DATABASE {} CASCADE" if cockroach else "DROP DATABASE {} WITH (FORCE)"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL(drop).format(identifier))
