"""Databases: one protocol of verbs, PostgreSQL and CockroachDB behind it, and one in memory for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from continuum.config import Settings
from continuum.db.cockroach import COCKROACH
from continuum.db.database import SqlDatabase
from continuum.db.postgres import POSTGRES
from continuum.db.protocol import Database

DIALECTS = {dialect.name: dialect for dialect in (POSTGRES, COCKROACH)}
POOL_SIZE = 4
"""Connections of one worker beside the heartbeat's and the listener's: claim, completion, progress and housekeeping
rarely wait for each other."""
CONNECT_TIMEOUT = 3
"""Seconds for one host to accept a connection before the next is tried; libpq's smallest useful value is 2."""


@asynccontextmanager
async def open_database(
    settings: Settings, *, application: str = "continuum", pool_size: int = POOL_SIZE
) -> AsyncIterator[Database]:
    """The database that the settings name. Connections are opened when they are needed, so that this succeeds while
    the server is down. With DB_DIALECT=embedded it starts the embedded server and applies the schema."""
    async with AsyncExitStack() as stack:
        if settings.db_dialect == "embedded":
            from continuum.db.embedded import open_embedded

            conninfo = await stack.enter_async_context(open_embedded(settings.embedded_dir))
            database = SqlDatabase(conninfo, DIALECTS, "postgres", pool_size)
            stack.callback(database.close)
            await database.migrate()
        else:
            database = SqlDatabase(
                conninfo_of(settings, application),
                DIALECTS,
                settings.db_dialect,
                pool_size,
                wakeup=settings.wakeup,
                polling_interval=settings.polling_interval,
                feeds=settings.wakeup_feeds,
            )
            stack.callback(database.close)
        yield database


def conninfo_of(settings: Settings, application: str) -> str:
    """The settings as a libpq connection string; what DATABASE_URL says wins. It holds the password: never log it."""
    parts: dict[str, Any] = {
        "application_name": application,
        "connect_timeout": CONNECT_TIMEOUT,
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    if settings.database_url:
        parts |= conninfo_to_dict(settings.database_url.get_secret_value())
    else:
        parts |= {
            "host": ",".join(settings.db_host),
            "port": ",".join(map(str, settings.db_port)),
            "user": settings.db_user,
            "password": settings.db_password.get_secret_value(),
            "dbname": settings.db_name,
        }
        if "db_sslmode" in settings.model_fields_set:  # else libpq's own PGSSLMODE, which the first version used
            parts["sslmode"] = settings.db_sslmode
        for name in ("sslrootcert", "sslcert", "sslkey"):
            path = getattr(settings, f"db_{name}")
            if path is not None:
                parts[name] = str(path)
    if "," in str(parts.get("host", "")):
        parts.setdefault("load_balance_hosts", "random")
    return make_conninfo("", **parts)
