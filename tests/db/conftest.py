"""Every database at hand, each as an empty, migrated queue. One suite runs on all of them."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from continuum.config import Settings
from continuum.db import open_database
from continuum.db.memory import MemoryDatabase
from continuum.db.protocol import Database
from tests.conftest import require
from tests.support.cockroach import CockroachServer
from tests.support.postgres import PostgresServer, one_server, require_postgres, start_postgres

COCKROACH = os.environ.get("COCKROACH_BIN") or shutil.which("cockroach")

_numbers = itertools.count(1)


@asynccontextmanager
async def open_url(url: str, **settings: object) -> AsyncIterator[Database]:
    """The adapter for one database."""
    async with open_database(Settings.model_validate({"database_url": url} | settings)) as database:
        yield database


async def _migrate(url: str) -> None:
    async with open_url(url) as database:
        await database.migrate()


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """One server for all tests that only need a database of their own."""
    with one_server() as server:
        yield server


@pytest.fixture(scope="session")
def shared_cockroach() -> Iterator[CockroachServer]:
    """One CockroachDB node, where a binary is at hand."""
    require("cockroach", COCKROACH is not None, "set COCKROACH_BIN, or put cockroach on PATH")
    assert COCKROACH is not None
    server = CockroachServer(COCKROACH)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


@pytest.fixture
def empty_postgres(shared_postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    with shared_postgres.database(migrated=False) as url:
        yield url


def create_database(server: CockroachServer) -> str:
    """The URL of a new, empty database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.url_of("defaultdb"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.url_of(name)


@pytest.fixture
async def postgres(empty_postgres: str) -> AsyncIterator[Database]:
    """An empty queue in PostgreSQL."""
    async with open_url(empty_postgres) as database:
        await database.migrate()
        yield database


@pytest.fixture
async def server() -> AsyncIterator[PostgresServer]:
    """A server of the test's own, to break."""
    require_postgres()
    async with start_postgres() as running:
        yield running


@pytest.fixture(params=["memory", "postgres", "cockroach"])
def queue_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the test's queue is, migrated and with nothing in it; empty for the one in memory."""
    match request.param:
        case "memory":
            yield ""
        case "postgres":
            server: PostgresServer = request.getfixturevalue("shared_postgres")
            with server.database(migrated=True) as url:
                yield url
        case _:
            url = create_database(request.getfixturevalue("shared_cockroach"))
            trio.run(_migrate, url)
            yield url


@pytest.fixture
def sql_url(queue_url: str) -> str:
    """Where somebody else writes into the queue."""
    if not queue_url:
        pytest.skip("nobody else writes into the queue in memory")
    return queue_url


@pytest.fixture
async def database(queue_url: str) -> AsyncIterator[Database]:
    """An empty queue in each kind of database."""
    if not queue_url:
        yield MemoryDatabase()
        return
    async with open_url(queue_url) as opened:
        yield opened
