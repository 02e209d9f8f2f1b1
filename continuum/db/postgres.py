"""PostgreSQL: LISTEN/NOTIFY for wake-ups, and a schema that is applied in one transaction."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from continuum.db import statements
from continuum.db.connection import TrioConnection
from continuum.db.dialect import Dialect
from continuum.model import Wakeup

CHANNEL = "tasks_updated"
PROOF_OF_LIFE = 10.0
"""Seconds without a notification after which the connection is asked whether it still works."""

# A statement whose client has gone ends soon, where the server (14 and newer) can notice.
_NOTICE_DEAD_CLIENTS = (
    "SELECT set_config(name, '2s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
)

_WAKEUPS = {wakeup.value: wakeup for wakeup in Wakeup}


async def listen(connection: TrioConnection) -> AsyncGenerator[Wakeup, None]:
    """Yield once when listening has begun, and then whenever a notification comes."""
    await connection.execute(f"LISTEN {CHANNEL}")
    yield Wakeup.PENDING
    while True:
        async with aclosing(connection.notifies(timeout=PROOF_OF_LIFE)) as notifications:
            async for notification in notifications:
                yield _WAKEUPS.get(notification.payload, Wakeup.PENDING)
        await connection.execute("SELECT 1")


async def migrate(connection: TrioConnection, schema: str) -> None:
    """Apply the schema file, which is one transaction behind a lock."""
    await connection.execute(schema.encode())


POSTGRES = Dialect(
    name="postgres",
    title="PostgreSQL",
    schema_file="postgres.sql",
    claim=statements.CLAIM_POSTGRES,
    listen=listen,
    migrate=migrate,
    prepare_session=(_NOTICE_DEAD_CLIENTS,),
)
