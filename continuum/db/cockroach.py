"""CockroachDB: adaptive polling for wake-ups, and a schema that is applied statement by statement."""

from __future__ import annotations

from continuum.db import statements
from continuum.db.connection import TrioConnection
from continuum.db.dialect import Dialect
from continuum.db.polling import poll_for_work


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
    listen=poll_for_work,
    migrate=migrate,
    prepare_session=("SET optimizer_use_lock_op_for_serializable = on",),
)
