"""Reads the queue from outside all the time: what everybody may see is part of the evidence."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import psycopg
import trio

from tests.chaos.history import Counted, Kept, Looked, Recorder, Row, Seen

INTERVAL = 0.5
"""Seconds between two looks."""
DEADLINE = 5
"""Seconds for one look, and for a connection."""

ROWS = """
SELECT id, idempotency_key, status, attempt, released, worker_id, output, finished::text, last_error,
       status = 'pending' AND run_at IS NULL AND tenant IS NULL
           AND sequence_key IS NULL AND concurrency_key IS NULL AND depends_on IS NULL AND depends_batch IS NULL,
       tenant, sequence_key, concurrency_key,
       extract(epoch FROM started AT TIME ZONE 'utc')::float8, extract(epoch FROM due_at)::float8,
       coalesce(depends_on, ARRAY[]::int8[]), depends_ended, batch, depends_batch
FROM tasks
"""
PAYLOADS = "SELECT id, payload::text FROM tasks"
COUNTED = "SELECT sum(completed)::int8, sum(failed)::int8, sum(cancelled)::int8 FROM workers"


class Observer:
    """One pair of eyes on the table.

    terminal: how many tasks of the producer had ended when it last looked. open: how many of anybody had not.
    """

    def __init__(self, url: str, record: Recorder) -> None:
        self._url = url
        self._record = record
        self._connection: psycopg.Connection | None = None
        self._looking = trio.Lock()
        self._rows: dict[int, Row] = {}
        self.terminal = self.open = 0

    async def run(self) -> None:
        """Look again and again. What cannot be seen meanwhile, for a fault, is not evidence."""
        while True:
            await self.look()
            await trio.sleep(INTERVAL)

    async def look(self) -> None:
        """Look once."""
        async with self._looking:
            began = time.monotonic()
            try:
                rows = await self._ask(ROWS)
            except psycopg.Error:
                return
            self._compare(began, [_row(row) for row in rows])

    async def look_at_the_end(self) -> None:
        """Write down the whole record. Raises psycopg.Error."""
        payloads = dict(await self._ask(PAYLOADS))
        for values in await self._ask(ROWS):
            row = _row(values)
            self._record(Kept(row=row, payload=json.dumps(json.loads(payloads[row.task_id]))))
        ((completed, failed, cancelled),) = await self._ask(COUNTED)
        self._record(Counted(completed=completed or 0, failed=failed or 0, cancelled=cancelled or 0))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _compare(self, began: float, rows: list[Row]) -> None:
        for row in rows:
            if self._rows.get(row.task_id) != row:
                self._rows[row.task_id] = row
                self._record(Seen(row=row))
        self.terminal = sum(row.terminal for row in rows if row.key is not None)
        self.open = sum(not row.terminal for row in rows)
        self._record(Looked(began=began, terminal=self.terminal))

    async def _ask(self, statement: str) -> list[tuple[Any, ...]]:
        return await trio.to_thread.run_sync(partial(self._ask_in_thread, statement))

    def _ask_in_thread(self, statement: str) -> list[tuple[Any, ...]]:
        """With the connection that there is, or a new one when it broke."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=DEADLINE,
                    options=f"-c statement_timeout={DEADLINE}s",
                    tcp_user_timeout=DEADLINE * 1000,
                )
            return self._connection.execute(statement.encode()).fetchall()
        except psycopg.Error:
            self.close()
            raise


def _row(values: tuple[Any, ...]) -> Row:
    row = Row(*values)
    return row._replace(depends_on=tuple(row.depends_on))
