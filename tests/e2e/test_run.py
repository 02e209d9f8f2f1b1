"""`continuum run` in an empty folder: a database and a worker of its own, for as long as the task needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from continuum.db.embedded import open_embedded
from tests.support.installation import Installation
from tests.support.workers import ROOT, start_worker

DEADLINE = 120.0
NEW = (
    "continuum: no database is configured: an embedded PostgreSQL in .continuum/postgres keeps the tasks of this folder "
    "(DATABASE_URL names one of yours)\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an embedded database, made by the first test that runs something in it."""
    return tmp_path_factory.mktemp("run")


@contextmanager
def started(folder: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command as somebody types it there, with nothing set but that no Docker is needed."""
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "continuum", *arguments],
        cwd=folder,
        env=plain | {"PYTHONPATH": str(ROOT), "SANDBOX": "bubblewrap", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    with started(folder, *arguments, **variables) as process:
        output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output, errors


def test_a_script_runs_in_an_empty_folder_and_the_other_commands_find_it_there(folder: Path) -> None:
    (folder / "hello.py").write_text("import sys\nprint('hello', payload)\nprint('careful', file=sys.stderr)\n")
    assert run(folder, "run", "hello.py", "--payload", '{"n": 1}') == (0, 'hello {"n": 1}\n', NEW + "careful\n")
    code, output, errors = run(folder, "run", "hello.py", "--json")
    record = json.loads(output)
    assert (code, record["id"], record["status"], record["output"], errors) == (0, 2, "completed", "hello null\n", "")
    code, output, _ = run(folder, "tasks", "--json")
    assert [json.loads(line)["id"] for line in output.splitlines()] == [2, 1]
    (folder / "fail.py").write_text("raise SystemExit('no luck')\n")
    assert run(folder, "run", "fail.py") == (
        1, "", "no luck\ncontinuum: task 3 failed: no luck; `continuum show 3` tells more\n",
    )  # fmt: skip


async def test_ctrl_c_cancels_the_task_and_sigterm_as_well(folder: Path) -> None:
    async with open_embedded(folder / ".continuum/postgres"):  # kept up meanwhile, which saves its starts
        await trio.to_thread.run_sync(_interrupt_and_look, folder)


def _interrupt_and_look(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with started(folder, "run", "slow.py") as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "begun\n":
                    break
            process.send_signal(number)
            _, errors = process.communicate(timeout=DEADLINE)
        last = json.loads(run(folder, "tasks", "--limit", "1", "--json")[1])
        assert (process.returncode, last["status"]) == (code, "cancelled")
        assert f"continuum: cancelling task {last['id']}; once more to leave at once\n" in errors


def test_a_script_that_cannot_run_here_leaves_no_task(tmp_path: Path) -> None:
    missing = f"unix://{tmp_path}/docker.sock"
    (tmp_path / "hello.py").write_text("print('hello')\n")
    code, output, errors = run(tmp_path, "run", "hello.py", SANDBOX="docker", DOCKER_HOST=missing)
    assert (code, output) == (4, "")
    assert errors == (
        f"{NEW}continuum: no Docker daemon at {missing}: start it, or set DOCKER_HOST to where it listens\n"
        "continuum: `continuum doctor` checks what is there\n"
    )
    assert run(tmp_path, "tasks")[2] == "continuum: there is no task yet: `continuum submit FILE.py` submits one\n"


async def test_a_living_worker_runs_it_instead(light: Installation, tmp_path: Path) -> None:
    (tmp_path / "who.py").write_text("print('hello')\n")
    async with start_worker(light.environment):
        with trio.fail_after(DEADLINE):
            database = {"DATABASE_URL": light.url}
            ended = await trio.to_thread.run_sync(lambda: run(tmp_path, "run", "who.py", **database))
    assert ended == (0, "hello\n", "")
    assert not (tmp_path / ".continuum").exists()
