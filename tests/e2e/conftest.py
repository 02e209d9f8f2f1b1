"""A whole installation for each test: its own database, and workers as processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.docker import require_docker
from tests.support.installation import Installation, installation
from tests.support.postgres import SCHEMA, PostgresServer, one_server, require_postgres, start_postgres


@pytest.fixture(scope="session")
def shared_server() -> Iterator[PostgresServer]:
    """One server for all tests that only need a database of their own."""
    with one_server() as server:
        yield server


@pytest.fixture
def empty_url(shared_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    with shared_server.database(migrated=False) as url:
        yield url


@pytest.fixture
def url(shared_server: PostgresServer) -> Iterator[str]:
    """The URL of a queue: a migrated, empty database."""
    with shared_server.database(migrated=True) as url:
        yield url


@pytest.fixture
async def light(shared_server: PostgresServer, url: str) -> AsyncIterator[Installation]:
    """With bubblewrap: quick to start, where the kind of sandbox does not matter."""
    async with installation("bubblewrap", shared_server, url) as made:
        yield made


@pytest.fixture
async def breakable() -> AsyncIterator[Installation]:
    """With bubblewrap, on a server of its own, to break or to set up in another way."""
    require_postgres()
    async with start_postgres() as server:
        server.execute(SCHEMA.read_text(), "continuum")
        async with installation("bubblewrap", server, server.url) as made:
            yield made


@pytest.fixture
def _docker() -> None:
    require_docker()


@pytest.fixture
async def full(_docker: None, shared_server: PostgresServer, url: str) -> AsyncIterator[Installation]:
    """With Docker, as in production."""
    async with installation("docker", shared_server, url) as made:
        yield made
