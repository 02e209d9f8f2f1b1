"""The command line as a user types it, against a real database and a real worker."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from tests.conftest import require
from tests.support.installation import Installation
from tests.support.postgres import free_port
from tests.support.workers import ROOT, start_worker

PLAIN = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"PYTHONPATH": str(ROOT)}


async def run(
    *arguments: str, folder: Path, environment: Mapping[str, str], code: int = 0, stdin: str = ""
) -> tuple[str, str]:
    """Run `continuum` with these arguments; return what it wrote to stdout and stderr."""
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "continuum", *arguments],
            cwd=folder,
            env={**PLAIN, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    )
    assert done.returncode == code, f"{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout, done.stderr


async def test_a_task_can_be_submitted_waited_for_read_and_cancelled(light: Installation, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint('hello', json.loads(payload)['who'])\nprint('oops', file=sys.stderr)\n")
    (tmp_path / "payload.json").write_text('{"who": "file"}')
    database = {"DATABASE_URL": light.url}
    async with start_worker(light.environment):
        output, errors = await run(
            "submit", "script.py", "--payload", '{"who": "you"}', "--wait", folder=tmp_path, environment=database
        )
        assert output == "hello you\n"
        assert "oops" in errors
        task_id = (
            await run("submit", "script.py", "--payload", "@payload.json", folder=tmp_path, environment=database)
        )[0].strip()
        assert (await run("wait", task_id, folder=tmp_path, environment=database))[0] == "hello file\n"
        assert (await run("logs", task_id, "--follow", folder=tmp_path, environment=database))[0] == "hello file\n"
        shown = json.loads((await run("wait", task_id, "--json", folder=tmp_path, environment=database))[0])
        assert (shown["status"], shown["output"], shown["payload"]) == ("completed", "hello file\n", {"who": "file"})
        assert "already ended" in (await run("cancel", task_id, folder=tmp_path, environment=database))[0]
        await run(
            "submit", "-", "--wait", "--max-attempts", "1", folder=tmp_path, code=1, stdin="1 / 0", environment=database
        )
        seen = json.loads((await run("status", "--json", folder=tmp_path, environment=database))[0])
        assert (seen["completed"], seen["failed"], seen["workers"]) == (2, 1, 1)
        assert "alive" in (await run("status", folder=tmp_path, environment=database))[0]


async def test_waiting_ends_when_its_time_is_over(light: Installation, tmp_path: Path) -> None:
    database = {"DATABASE_URL": light.url}
    (tmp_path / "script.py").write_text("print(1)")
    errors = (
        await run("submit", "script.py", "--wait", "--timeout", "0.3", folder=tmp_path, code=6, environment=database)
    )[1]
    assert "had not ended" in errors
    assert "cancelled before it ran" in (await run("cancel", "1", folder=tmp_path, environment=database))[0]


async def test_what_a_script_requires_is_submitted_with_it(light: Installation, tmp_path: Path) -> None:
    database = {"DATABASE_URL": light.url}
    (tmp_path / "script.py").write_text("# /// script\n# dependencies = ['Six==1.16.0']\n# ///\nimport six\n")
    (tmp_path / "pinned.txt").write_text("six==1.17.0 \\\n    --hash=sha256:" + "a" * 64 + "\n")
    (tmp_path / "loose.txt").write_text("six==1.17.0\nattrs>=25\n")
    await run("submit", "script.py", folder=tmp_path, environment=database)
    await run("submit", "script.py", "-r", "pinned.txt", folder=tmp_path, environment=database)
    tasks = await light.database.claim("one", 9, lease=30)
    assert [task.requirements for task in tasks] == ["six==1.16.0\n", "six==1.17.0 --hash=sha256:" + "a" * 64 + "\n"]
    refused = ("submit", "script.py", "--requirements", "loose.txt")
    _, errors = await run(*refused, folder=tmp_path, environment=database, code=2)
    assert errors == "continuum: --requirements loose.txt, line 2: 'attrs>=25' is not pinned; use attrs==VERSION\n"


async def test_doctor_says_what_is_there(light: Installation, tmp_path: Path) -> None:
    output = (
        await run("doctor", "--json", folder=tmp_path, environment={"DATABASE_URL": light.url, "SANDBOX": "bubblewrap"})
    )[0]
    findings = json.loads(output)
    assert all(finding["well"] for finding in findings)
    assert {finding["what"] for finding in findings} == {
        "configuration",
        "database",
        "schema",
        "queue",
        "sandbox",
        "hello task",
        "status server",
    }


async def test_doctor_tries_the_screening_where_there_is_one(light: Installation, tmp_path: Path) -> None:
    require("bandit", importlib.util.find_spec("bandit") is not None, "the extra `screening` is not installed")
    settings = {"DATABASE_URL": light.url, "SANDBOX": "bubblewrap", "CODE_POLICY": "reject"}
    output = (await run("doctor", folder=tmp_path, environment=settings))[0]
    assert (
        "ok    screening: CODE_POLICY=reject: bandit works, findings of severity high and confidence low or more"
        in output
    )
    nowhere = settings | {"CODE_POLICY_CONFIG": "/nowhere.yaml"}
    output = (await run("doctor", folder=tmp_path, environment=nowhere, code=2))[0]
    assert "FAIL  screening: CODE_POLICY_CONFIG=/nowhere.yaml: bandit cannot use it: " in output


async def test_doctor_goes_on_without_a_database(tmp_path: Path) -> None:
    nowhere = {"DATABASE_URL": f"postgresql://user:secret-password@127.0.0.1:{free_port()}/continuum"}
    output = (await run("doctor", folder=tmp_path, code=3, environment=nowhere | {"SANDBOX": "bubblewrap"}))[0]
    assert "FAIL  database: " in output
    assert "ok    hello task: " in output
    assert "secret-password" not in output


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (["wait", "999"], {}, 5, "there is no task 999"),
        (["logs", "999"], {}, 5, "there is no task 999"),
        (["submit", "missing.py"], {}, 2, "missing.py"),
        (["submit", "-", "--payload", "{"], {}, 2, "--payload is not JSON"),
        (["submit", "-", "--payload", "@missing.json"], {}, 2, "missing.json"),
        (["submit", "-", "--priority", "9999999999"], {}, 2, "priority 9999999999 does not fit"),
        (
            ["worker"],
            {"SANDBOX": "docker", "DOCKER_HOST": "unix:///nowhere/docker.sock", "SHUTDOWN_GRACE": "0"},
            None,
            "",
        ),
    ],
)
async def test_every_error_is_a_clear_line_and_an_exit_code(
    light: Installation, tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int | None, says: str
) -> None:
    if code is None:
        # No Docker is no reason to end: the worker waits for it, and /readyz says so.
        async with start_worker(light.environment | environment, ready=False) as worker:
            await worker.until_said("no sandbox can be started")
        return
    settings = {"DATABASE_URL": light.url} | environment
    written = "".join(await run(*arguments, folder=tmp_path, code=code, stdin="print(1)", environment=settings))
    assert says in written
    assert "Traceback" not in written
