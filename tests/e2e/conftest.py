"""A whole installation for each test: its own PostgreSQL, and workers as processes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import trio

from continuum.config import Settings
from continuum.db import open_database
from tests.support.docker import require_docker
from tests.support.installation import Installation, installation
from tests.support.postgres import PostgresServer, one_server, require_postgres

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def _services() -> None:
    require_postgres()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[PostgresServer]:
    """One server for all tests that only need a database of their own."""
    with one_server() as server:
        yield server


@pytest.fixture
def empty_url(shared_server: PostgresServer) -> str:
    """The URL of an empty database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(shared_server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return shared_server.url_of(name)


@pytest.fixture
def url(empty_url: str) -> str:
    """The URL of a queue: a migrated, empty database."""

    async def migrate() -> None:
        async with open_database(Settings.model_validate({"database_url": empty_url})) as database:
            await database.migrate()

    trio.run(migrate)
    return empty_url


@pytest.fixture
async def light(_services: None) -> AsyncIterator[Installation]:
    """With bubblewrap: quick to start, where the kind of sandbox does not matter."""
    async with installation("bubblewrap") as made:
        yield made


@pytest.fixture
def _docker() -> None:
    require_docker()


@pytest.fixture
async def full(_services: None, _docker: None) -> AsyncIterator[Installation]:
    """With Docker, as in production."""
    async with installation("docker") as made:
        yield made
