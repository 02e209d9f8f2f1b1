"""The differences between the databases, as values and small functions; everything else is shared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from continuum.db.connection import TrioConnection
from continuum.db.protocol import Listener
from continuum.db.statements import BY_KEY
from continuum.model import Status

SCHEMA_VERSION = 6
"""The version that this release needs; the files under sql/ record it."""

Rows = list[tuple[Any, ...]]


class Run(Protocol):
    """Runs one statement on a connection of the pool, with a deadline; raises what `SqlDatabase` raises."""

    async def __call__(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        writes: bool = False,
        keyed: bool = False,
    ) -> Rows: ...


class Read(Protocol):
    """Runs one statement that only reads, with a deadline; raises what `SqlDatabase` raises."""

    async def __call__(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Rows: ...


@dataclass(frozen=True, slots=True)
class Session:
    """What the adapter lends to a queue. `connect` opens a connection of its own, which the caller closes.

    run: for every statement. read: for those that only read, and that wait for nobody's transaction.
    wakeup, polling_interval (seconds) and feeds are the settings WAKEUP, POLLING_INTERVAL and WAKEUP_FEEDS.
    """

    run: Run
    read: Read
    connect: Callable[[], Awaitable[TrioConnection]]
    wakeup: str
    polling_interval: float
    feeds: int


class Queue(Protocol):
    """How one kind of database hands out tasks and tells of them. It may remember what it learned on the way."""

    async def claim(self, parameters: Mapping[str, Any]) -> tuple[Rows, float | None]:
        """Claim due tasks; rows for `rows.claimed_task`, in order of priority, then id, and `Claim.again_in`.

        parameters: worker, limit, lease (seconds), min_priority and max_priority (inclusive), tags; lower: whether it is a turn
        of lower priorities, so that others wait that are more urgent.
        """
        ...

    async def listen(self, listener: Listener) -> None:
        """As `Database.listen`; raises `psycopg.Error` or `trio.TooSlowError` when the connection breaks."""
        ...


@lru_cache(maxsize=200)
def _marked(statement: str, by_key: tuple[tuple[str, str], ...]) -> str:
    for table, hinted in by_key:
        statement = statement.replace(f"{table} {BY_KEY}", hinted)
    return statement


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of database.

    migrate: applies a schema file's text. prepare_session: statements for a new connection. prepare_reading: more of them for
    one that only reads, where reading takes sessions of another kind to wait for nobody. prepares_by_itself: whether the driver
    may prepare any statement that comes often; else only those are prepared that find their rows by keys.
    as_of: the clause by which a statement that counts disturbs nobody. expire: as `Database.expire`, where there is such a thing.
    begin_admission: the statements that keep admissions apart until their transaction ends.
    by_key: what tables are called where a statement marks them with `statements.BY_KEY`, so that rows are found in no other way.
    """

    name: str
    title: str
    schema_file: str
    as_of: str
    open_queue: Callable[[Session], Queue]
    migrate: Callable[[TrioConnection, str], Awaitable[None]]
    begin_admission: tuple[str, ...]
    prepare_session: tuple[str, ...] = ()
    prepare_reading: tuple[str, ...] = ()
    prepares_by_itself: bool = True
    expire: Callable[[Run, Mapping[Status, float]], Awaitable[bool]] | None = None
    by_key: tuple[tuple[str, str], ...] = ()

    def says(self, statement: str) -> str:
        """A statement as this kind of database is to be told it."""
        return _marked(statement, self.by_key)

    def schema(self) -> str:
        """The text of the schema file: from the wheel, or from a checkout."""
        packaged = resources.files("continuum") / "sql" / self.schema_file
        if packaged.is_file():
            return packaged.read_text(encoding="utf-8")
        return (Path(__file__).parents[2] / "sql" / self.schema_file).read_text(encoding="utf-8")
