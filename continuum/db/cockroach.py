"""CockroachDB: adaptive polling for wake-ups, and a schema that is applied statement by statement."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import trio

from continuum.db import statements
from continuum.db.connection import TrioConnection
from continuum.db.dialect import Dialect
from continuum.model import Wakeup

QUICKEST = 0.02
"""Seconds between two looks right after there was work."""
SLOWEST = 1.0
"""Seconds between two looks when there has been none for a while."""
SLOWER = 1.5
"""Each look that finds nothing makes the next pause longer by this."""

_LOOK = "SELECT 1 FROM tasks WHERE status = 'pending' AND run_at IS NULL LIMIT 1"


async def listen(connection: TrioConnection) -> AsyncGenerator[Wakeup, None]:
    """Yield once, and then whenever a look finds something claimable."""
    yield Wakeup.PENDING
    pause = QUICKEST
    while True:
        await trio.sleep(pause)
        cursor = await connection.execute(_LOOK)
        if await cursor.fetchone() is None:
            pause = min(SLOWEST, pause * SLOWER)
        else:
            pause = QUICKEST
            yield Wakeup.PENDING


async def migrate(connection: TrioConnection, schema: str) -> None:
    """Apply the schema file. Each statement may be repeated; concurrent changes are waited for by the server."""
    text = "\n".join(line.split("--", 1)[0] for line in schema.splitlines())
    for statement in text.split(";"):
        if statement.strip():
            await connection.execute(statement.encode())


COCKROACH = Dialect(
    name="cockroach",
    title="CockroachDB",
    schema_file="cockroach.sql",
    claim=statements.CLAIM_COCKROACH,
    listen=listen,
    migrate=migrate,
    prepare_session=("SET optimizer_use_lock_op_for_serializable = on",),
)
