"""The README's own examples, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import trio

from tests.e2e.test_failures import wait_for_all
from tests.support.installation import Installation
from tests.support.workers import ROOT, start_worker

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
async def test_a_python_example_runs(light: Installation, tmp_path: Path, number: int) -> None:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    async with start_worker(light.environment):
        with trio.fail_after(60):
            done = await trio.run_process(
                [sys.executable, "-c", blocks("python")[number]],
                cwd=tmp_path,
                env=plain | {"PYTHONPATH": str(ROOT), "DATABASE_URL": light.server.url},
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    assert done.returncode == 0, done.stderr.decode()
    assert b"completed" in done.stdout
    assert not [record for record in await light.database.fetch(range(1, 200)) if record.status != "completed"]


async def test_the_sql_example_is_a_task_that_completes(light: Installation) -> None:
    (example,) = blocks("sql")

    def insert() -> None:
        with psycopg.connect(light.server.url, autocommit=True) as connection:
            connection.execute(example.encode())

    await trio.to_thread.run_sync(insert)
    async with start_worker(light.environment):
        (record,) = await wait_for_all(light.database, [1], 20)
    assert (record.status, record.output) == ("completed", "21\n")


def test_every_command_of_the_shell_examples_exists() -> None:
    known = subprocess.run(
        [sys.executable, "-m", "continuum", "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks("sh"):
        for command in re.findall(r"^continuum (\w+)", block, re.MULTILINE):
            assert re.search(rf"^\W*{command}\b", known, re.MULTILINE), command
        for target in re.findall(r"^make ([\w-]+)", block, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
