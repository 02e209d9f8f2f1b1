"""PostgreSQL: LISTEN/NOTIFY for wake-ups, and a schema that is applied in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from continuum.db import admission, statements
from continuum.db.connection import TrioConnection
from continuum.db.dialect import Dialect, Rows, Session
from continuum.db.fair import CLAIM, PLACE, Ring
from continuum.db.notifications import Claimed, Notifications
from continuum.db.polling import wake_at_intervals, wake_for_everything
from continuum.db.pool import discard
from continuum.db.protocol import Listener
from continuum.tags import sets_of

# A statement whose client has gone ends soon, where the server (14 and newer) can notice.
_NOTICE_DEAD_CLIENTS = (
    "SELECT set_config(name, '2s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
)

_FIND_BY_INDEX = "SET enable_seqscan = off"
"""A plan that was made while the table was small is kept, and would read all of it once it is large."""
_COMPILE_NOTHING = "SET jit = off"
"""What has no index then counts as so expensive that it is compiled: a quarter of a second for the totals of a few workers."""


class PostgresQueue:
    """Claims in one statement; is told of work by LISTEN, unless WAKEUP=poll."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._claimed = Claimed()
        self._ring, self._lower_ring = Ring([""]), Ring([""])

    async def claim(self, parameters: Mapping[str, Any]) -> tuple[Rows, float | None]:
        rows: Rows = []
        limit, more = parameters["limit"], True
        ring = self._lower_ring if parameters["lower"] else self._ring
        ring.tags = sets_of(parameters["tags"])
        while more and len(rows) < limit:
            wanted = limit - len(rows)
            told = {**parameters, "limit": wanted, **ring.parameters(wanted)}
            answer = await self._session.run(CLAIM, told, writes=True, keyed=True)
            found = [row[PLACE:] for row in answer if row[PLACE] is not None]
            more = ring.follow(*answer[0][:PLACE], found=len(found))
            rows += found
        if not parameters["lower"]:  # an ordinary claim follows that one
            self._claimed.note(len(rows), limit)
        return sorted(rows, key=statements.claim_order), ring.again_in

    async def listen(self, listener: Listener) -> None:
        if self._session.wakeup == "poll":
            wake_for_everything(listener)
            await wake_at_intervals(listener, self._session.polling_interval)
        connection = await self._session.connect()
        try:
            await Notifications(connection, listener, self._claimed).pass_on()
        finally:
            discard(connection)


async def migrate(connection: TrioConnection, schema: str) -> None:
    """Apply the schema file, which is one transaction behind a lock."""
    await connection.execute(schema.encode())


POSTGRES = Dialect(
    name="postgres",
    title="PostgreSQL",
    schema_file="postgres.sql",
    as_of="",
    open_queue=PostgresQueue,
    migrate=migrate,
    prepare_session=(_NOTICE_DEAD_CLIENTS, _FIND_BY_INDEX, _COMPILE_NOTHING),
    begin_admission=admission.BEGIN_POSTGRES,
)
