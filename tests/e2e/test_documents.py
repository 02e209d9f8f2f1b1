"""Every page of the documentation, gone through as its reader would: each block runs, and does what the page says it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from docs.generators.tables import ONLY_COCKROACH, tables
from tests.support.documents import ROOT, blocks_of, pages
from tests.support.postgres import PostgresServer, free_port
from tests.support.walkthrough import Walkthrough, wait_until_ready

PAGES = [page for page in pages() if any(block.runs for block in blocks_of(page))]
TOKEN = "a-token-of-the-documentation"
FROM_NOTHING = "<!-- page: from nothing -->"
"""A line of a page whose reader has neither database nor worker."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a reader who has installed Continuum and exported nothing."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        "PATH": path,
        "HOME": str(tmp_path_factory.mktemp("home")),
        "LANG": "C.UTF-8",
        "SANDBOX": "bubblewrap",
        "EGRESS": "none",
        "API_TOKEN": TOKEN,
        "WEBHOOK_SECRET": "whsec_YSBzZWNyZXQgb2YgdGhlIGRvY3VtZW50YXRpb24=",
    }


@pytest.fixture(scope="module")
def queue(shared_server: PostgresServer) -> Iterator[str]:
    """The URL of the database that all pages share."""
    with shared_server.database(migrated=True) as url:
        yield url


@pytest.fixture(scope="module")
def worker(queue: str, home: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the one worker that runs what the pages submit."""
    folder = tmp_path_factory.mktemp("worker")
    port = free_port()
    log = folder / "worker.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "continuum", "worker"],
            cwd=folder,
            env=home | {"PYTHONPATH": str(ROOT), "DATABASE_URL": queue, "API_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(port, process, log)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_reference_has_the_tables_and_columns_that_the_database_has(queue: str) -> None:
    with psycopg.connect(queue) as connection:
        rows = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables "
            "USING (table_schema, table_name) WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"
        ).fetchall()
    documented = {
        (name, column.name)
        for name, columns in tables().items()
        for column in columns
        if ONLY_COCKROACH.get(name) != () and column.name not in ONLY_COCKROACH.get(name, ())
    }
    assert {(name, column) for name, column in rows} == documented
    assert all(column.meaning for columns in tables().values() for column in columns)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, queue: str, worker: int, home: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    own = {} if FROM_NOTHING in page.read_text().splitlines() else {"DATABASE_URL": queue}
    reader = Walkthrough(folder, home | own, queue, worker)
    try:
        for block in blocks_of(page):
            reader.go(block)
    finally:
        reader.end()
