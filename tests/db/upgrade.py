"""What must hold for a database of an older schema, whichever kind it is."""

from __future__ import annotations

import psycopg
import pytest
import trio

from continuum.db.dialect import SCHEMA_VERSION
from continuum.db.errors import SchemaMismatch
from continuum.db.protocol import Database
from continuum.model import ClaimedTask, Completion, NewTask, Status
from tests.db.conftest import open_url

VERSION_1_ROWS = """
INSERT INTO codes (id, code) VALUES ('11111111-1111-1111-1111-111111111111', 'print(1)');
INSERT INTO tasks (name, code) VALUES ('waits', '11111111-1111-1111-1111-111111111111');
INSERT INTO tasks (name, status, finished) VALUES ('done', 'completed', now() AT TIME ZONE 'utc');
INSERT INTO workers (id, slots, completed, failed, cancelled) VALUES ('old', 4, 5, 6, 7)
"""


async def check_upgrade_from_version_1(url: str) -> None:
    """Upgrade a database that holds nothing but the schema of version 1, with workers of both versions."""
    execute(url, VERSION_1_ROWS)
    async with open_url(url) as database:
        with pytest.raises(SchemaMismatch, match=r"version 1.*continuum migrate"):
            await database.check_schema()
        for _ in range(2):
            assert await database.migrate() == SCHEMA_VERSION
        await database.check_schema()
        (old,) = await database.claim("new", 9, lease=30)
        assert (old.name, old.code, old.requirements) == ("waits", "print(1)", None)
        await database.submit([NewTask(code="import six", requirements="six==1.16.0")])
        new = await claimed(database)
        assert new.requirements == "six==1.16.0\n"
        for task in (old, new):
            await database.complete(
                "new", [Completion(task.id, task.attempt, Status.MALICIOUS, None, "", "", "refused")]
            )
        # A worker of version 1 may still run, and knows nothing of the new columns.
        execute(
            url,
            "INSERT INTO workers AS w (id, completed) VALUES ('old', 1) ON CONFLICT (id) DO UPDATE SET completed = 6",
        )
        seen = await database.statistics(latest=True)
        assert (seen.completed, seen.failed, seen.cancelled, seen.malicious) == (6, 6, 7, 2)


async def claimed(database: Database) -> ClaimedTask:
    """The one task that waits. CockroachDB may have split a table that was changed: a row that was just inserted counts as locked
    for a moment then, until the last traces of its transaction are gone."""
    with trio.fail_after(5):
        while not (tasks := await database.claim("new", 9, lease=30)):
            await trio.sleep(0.01)
    (task,) = tasks
    return task


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements.split(";"):
            connection.execute(statement.encode())
