"""Tables filled faster than any producer could."""

from __future__ import annotations

import psycopg

from benchmarks.setting import HELLO
from continuum.model import Status

FILL_AT_ONCE = 100_000
"""Rows in one INSERT: CockroachDB keeps a whole transaction in memory."""

FILL = """
INSERT INTO tasks (name, payload, code, status, started, finished, output)
SELECT 'n', '{"n": 1}', %(code)s, %(status)s, CASE WHEN %(done)s THEN now() AT TIME ZONE 'utc' END,
       CASE WHEN %(done)s THEN now() AT TIME ZONE 'utc' END, CASE WHEN %(done)s THEN 'hello' END
FROM generate_series(1, %(count)s)
"""


def add_code(conninfo: str) -> str:
    """Store the hello script; return its id."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        ((code,),) = connection.execute("INSERT INTO codes (code) VALUES (%s) RETURNING id", [HELLO]).fetchall()
    return str(code)


def fill(conninfo: str, code: str, count: int, status: Status) -> None:
    """Add so many tasks."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for begun in range(0, count, FILL_AT_ONCE):
            values = {"code": code, "status": status.value, "done": status is not Status.PENDING}
            connection.execute(FILL, values | {"count": min(FILL_AT_ONCE, count - begun)})


def tidy(conninfo: str) -> None:
    """What a server does by itself soon after so many rows have come."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cockroach = connection.info.parameter_status("crdb_version") is not None
        connection.execute("ANALYZE tasks" if cockroach else "VACUUM (ANALYZE) tasks")
