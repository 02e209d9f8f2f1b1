"""The floor: our own statements, in batches, on one blocking connection and with nothing around them.

DATABASE_URL=... python -m benchmarks.peers.raw
"""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg

from benchmarks.peers import Connection, Contender
from continuum.db import statements
from continuum.db.cockroach import COCKROACH
from continuum.db.cockroach_claim import CLAIM_KEYS
from continuum.db.cockroach_ring import WALK
from continuum.db.dialect import Dialect
from continuum.db.fair import CLAIM, PLACE, Ring
from continuum.db.postgres import POSTGRES
from continuum.db.validation import INTEGER

BATCH = 50
"""About what one claim of a worker with eight slots brings home."""
PAUSE = 0.01
"""Seconds between two looks at an empty queue."""
WORKER = "raw"


def insert(connection: Connection, count: int) -> None:
    """Plain INSERTs are the public way to submit tasks."""
    connection.execute(
        "WITH hello AS (INSERT INTO codes (code) VALUES ('print(''hello'')') RETURNING id) "
        "INSERT INTO tasks (name, code, payload) SELECT 'hello', id, 'null' FROM hello, generate_series(1, %s)",
        [count],
    )


CONTENDER = Contender(
    name="raw statements",
    module=__name__,
    install=None,
    insert=insert,
    unfinished="SELECT 1 FROM tasks WHERE status IN ('pending', 'processing') LIMIT 1",
    successful="SELECT count(*) FROM tasks WHERE status = 'completed'",
)


def main() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        dialect = COCKROACH if connection.info.parameter_status("crdb_version") else POSTGRES
        if not dialect.prepares_by_itself:
            connection.prepare_threshold = None
        for statement in dialect.prepare_session:
            connection.execute(statement.encode())
        print("ready", flush=True)
        while True:
            while claimed := _claim(connection, dialect):
                _complete(connection, dialect, claimed)
            time.sleep(PAUSE)


def _claim(connection: Connection, dialect: Dialect) -> list[tuple[Any, ...]]:
    bounds = {"min_priority": INTEGER.start, "max_priority": INTEGER.stop - 1}
    values = {"worker": WORKER, "limit": BATCH, "lease": 30.0, **bounds}
    if dialect is COCKROACH:
        seen = connection.execute(WALK.encode(), {"tags": [""], "first": 0, "last": 2**32 - 1}).fetchall()
        return connection.execute(
            CLAIM_KEYS.encode(), values | {"ids": [row[-1] for row in seen[:BATCH]], "paused": []}
        ).fetchall()
    found = connection.execute(CLAIM.encode(), values | Ring([""]).parameters(BATCH)).fetchall()
    return [row[PLACE:] for row in found if row[PLACE] is not None]


def _complete(connection: Connection, dialect: Dialect, claimed: list[tuple[Any, ...]]) -> None:
    count = len(claimed)
    outcomes = {
        "worker": WORKER,
        "ids": [row[0] for row in claimed],
        "attempts": [row[1] for row in claimed],
        "statuses": ["completed"] * count,
        "exit_codes": [0] * count,
        "outputs": ["hello\n"] * count,
        "error_outputs": [""] * count,
        "last_errors": [None] * count,
        "delays": [None] * count,
        "crashes": [0.0] * count,
        "quarantined": [False] * count,
    }
    prepare = True if dialect.prepares_by_itself else None
    written = connection.execute(statements.COMPLETE.encode(), outcomes, prepare=prepare).fetchall()
    assert len(written) == count, "somebody else took a task"


if __name__ == "__main__":
    main()
