"""The differences between the databases, as values and small functions; everything else is shared."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from continuum.db.connection import TrioConnection
from continuum.model import Wakeup

SCHEMA_VERSION = 1
"""The version that this release needs; the files under sql/ record it."""

Listen = Callable[[TrioConnection], AsyncGenerator[Wakeup, None]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of database.

    listen: an iterator over wake-ups on a connection of its own; its first item says that it listens.
    migrate: applies a schema file's text. prepare_session: statements for a new connection.
    """

    name: str
    title: str
    schema_file: str
    claim: str
    listen: Listen
    migrate: Callable[[TrioConnection, str], Awaitable[None]]
    prepare_session: tuple[str, ...] = ()

    def schema(self) -> str:
        """The text of the schema file: from the wheel, or from a checkout."""
        packaged = resources.files("continuum") / "sql" / self.schema_file
        if packaged.is_file():
            return packaged.read_text(encoding="utf-8")
        return (Path(__file__).parents[2] / "sql" / self.schema_file).read_text(encoding="utf-8")
