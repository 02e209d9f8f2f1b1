"""The command line with somebody at the terminal: following, interrupting, a screen, a pipe; and a wrong password."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import trio

import continuum
from continuum.config import Settings
from continuum.db.dialect import SCHEMA_VERSION
from continuum.model import Completion, PartialOutput, Status
from tests.support.postgres import PostgresServer
from tests.support.workers import ROOT

DEADLINE = 60.0
WORKER = "the test"


@pytest.fixture
async def client(url: str) -> AsyncIterator[continuum.Client]:
    async with continuum.Client(Settings.model_validate({"database_url": url})) as opened:
        yield opened


def environment(url: str, **values: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return inherited | {"PYTHONPATH": str(ROOT), "DATABASE_URL": url} | values


@contextmanager
def started(url: str, *arguments: str, **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    """A running command, killed when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "continuum", *arguments],
        env=environment(url),
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def finished(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    output, errors = await trio.to_thread.run_sync(lambda: process.communicate(timeout=DEADLINE))
    return process.returncode, (output or b"").decode(), (errors or b"").decode()


async def run(url: str, *arguments: str) -> tuple[int, str, str]:
    with started(url, *arguments) as process:
        return await finished(process)


async def connections(server: PostgresServer, url: str) -> set[int]:
    """The server's processes for the database of `url`."""

    def ask() -> set[int]:
        with psycopg.connect(server.url_of("postgres")) as connection:
            asked = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
            return {int(pid) for (pid,) in connection.execute(asked, (url.rsplit("/", 1)[1],)).fetchall()}

    return await trio.to_thread.run_sync(ask)


@pytest.mark.parametrize("arguments", [["wait", "1"], ["logs", "1", "--follow"], ["status", "--watch"]])
async def test_ctrl_c_ends_what_watches_without_a_traceback(
    client: continuum.Client, url: str, shared_server: PostgresServer, arguments: list[str]
) -> None:
    await client.submit("pass")
    before = await connections(shared_server, url)
    with started(url, *arguments) as process:
        with trio.fail_after(DEADLINE):
            while await connections(shared_server, url) <= before:
                await trio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        code, _, errors = await finished(process)
    assert (code, errors) == (130, "")


async def test_a_running_task_is_followed_line_by_line(client: continuum.Client, url: str) -> None:
    task_id = await client.submit("pass")
    await client.database.claim(WORKER, 1, lease=60)
    with started(url, "logs", str(task_id), "--follow") as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        seen = ""
        written = ""
        for number in range(3):
            written += f"line {number}\n"
            await client.database.progress(WORKER, [PartialOutput(task_id, 1, written, "")])
            with trio.fail_after(DEADLINE):
                while seen != written:
                    await trio.lowlevel.wait_readable(process.stdout)
                    seen += (process.stdout.read() or b"").decode()
        done = Completion(task_id, 1, Status.COMPLETED, 0, written + "end", "", None)
        await client.database.complete(WORKER, [done])
        os.set_blocking(process.stdout.fileno(), True)
        code, rest, errors = await finished(process)
    assert (code, seen + rest, errors) == (0, "line 0\nline 1\nline 2\nend", "")


async def test_outputs_keep_their_streams_and_json_names_them(client: continuum.Client, url: str) -> None:
    task_id = await client.submit("pass")
    await client.database.claim(WORKER, 1, lease=60)
    await client.database.complete(
        WORKER, [Completion(task_id, 1, Status.FAILED, 3, "to stdout", "to stderr", "exit code 3\nmore")]
    )
    assert await run(url, "logs", str(task_id)) == (0, "to stdout", "to stderr")
    code, output, _ = await run(url, "logs", str(task_id), "--json")
    assert (code, [json.loads(line) for line in output.splitlines()]) == (
        0, [{"stream": "output", "text": "to stdout"}, {"stream": "error_output", "text": "to stderr"}],
    )  # fmt: skip
    code, output, errors = await run(url, "wait", str(task_id))
    assert (code, output) == (1, "to stdout")
    assert errors == f"to stderrcontinuum: task {task_id} failed: exit code 3; `continuum show {task_id}` tells more\n"


async def test_a_reader_that_goes_away_is_no_traceback(client: continuum.Client, url: str) -> None:
    task_id = await client.submit("pass")
    await client.database.claim(WORKER, 1, lease=60)
    output = "x" * 99 + "\n"
    await client.database.complete(WORKER, [Completion(task_id, 1, Status.COMPLETED, 0, output * 9000, "", None)])
    with started(url, "logs", str(task_id)) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, _, errors = await finished(process)
    assert "Traceback" not in errors


async def test_a_terminal_gets_a_table_that_refreshes(
    client: continuum.Client, url: str, shared_server: PostgresServer
) -> None:
    ours, theirs = pty.openpty()
    try:
        with started(url, "status", "--watch", stdout=theirs) as process:
            os.close(theirs)
            shown = ""
            for expected in ("0", "1"):
                with trio.fail_after(DEADLINE):
                    while not any(line.split()[:1] == [expected] for line in shown.replace("\r", "\n").split("\n")):
                        await trio.lowlevel.wait_readable(ours)
                        shown += os.read(ours, 65536).decode()
                if expected == "0":
                    await client.submit("pass")
            process.send_signal(signal.SIGINT)
            code, _, errors = await finished(process)
    finally:
        os.close(ours)
    assert (code, errors) == (130, "")
    assert "Tasks" in shown


async def test_migrating_says_the_version_and_may_be_repeated(empty_url: str) -> None:
    assert (await run(empty_url, "migrate", "--json"))[:2] == (0, f'{{"version": {SCHEMA_VERSION}}}\n')
    assert (await run(empty_url, "migrate"))[0] == 0


async def test_a_task_may_be_limited_with_a_unit_and_keyed(client: continuum.Client, url: str, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("print(1)")
    arguments = (
        "submit", str(script), "--task-timeout", "1m30s", "--priority", "-5", "--max-attempts", "7",
        "--tenant", "acme", "--idempotency-key", "k", "--json",
    )  # fmt: skip
    code, output, _ = await run(url, *arguments)
    task_id = json.loads(output)["id"]
    record = await client.fetch(task_id)
    assert (code, record.timeout, record.priority, record.max_attempts, record.name) == (0, 90.0, -5, 7, "job.py")
    assert json.loads((await run(url, *arguments))[1])["id"] == task_id


async def test_doctor_has_the_code_of_the_first_thing_that_is_wrong(empty_url: str, tmp_path: Path) -> None:
    no_docker = environment(empty_url, SANDBOX="docker", DOCKER_HOST=f"unix://{tmp_path}/docker.sock")

    async def examine(variables: dict[str, str]) -> tuple[int, str]:
        with subprocess.Popen(
            [sys.executable, "-m", "continuum", "doctor"],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            return (await finished(process))[:2]

    code, output = await examine(no_docker)
    assert (code, "FAIL  schema: " in output, "run `continuum migrate`" in output) == (3, True, True)
    assert (await run(empty_url, "migrate"))[0] == 0
    code, output = await examine(no_docker)
    assert (code, "ok    schema" in output, "FAIL  sandbox: no Docker daemon" in output) == (4, True, True)
    code, output = await examine(no_docker | {"SLOTS": "0"})
    assert (code, output[:22]) == (2, "continuum: SLOTS='0': ")


async def test_without_a_command_it_is_the_worker(url: str) -> None:
    variables = environment(url, SLOTS="none")
    for arguments in ([], ["worker"]):
        with subprocess.Popen(
            [sys.executable, "-m", "continuum", *arguments], env=variables, stderr=subprocess.PIPE
        ) as process:
            code, _, errors = await finished(process)
        assert (code, errors.splitlines()[0][:25]) == (2, "continuum: SLOTS='none': ")


class Bash:
    """An interactive bash at a terminal, with the completion of `continuum` loaded."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self.shown = ""

    async def read_until(self, expected: str) -> None:
        with trio.fail_after(DEADLINE):
            while expected not in self.shown:
                await trio.lowlevel.wait_readable(self._terminal)
                self.shown += os.read(self._terminal, 65536).decode()
        self.shown = self.shown.partition(expected)[2]


async def test_bash_completes_commands_options_statuses_and_ids(
    client: continuum.Client, url: str, tmp_path: Path
) -> None:
    first, second = [await client.submit("pass") for _ in range(2)]
    await client.cancel(first)
    program = tmp_path / "continuum"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m continuum "$@"\n')
    program.chmod(0o755)
    variables = environment(url, TERM="dumb", PS1="$ ")
    variables["PATH"] = f"{tmp_path}:{variables['PATH']}"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        env=variables,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=tmp_path,
    )
    try:
        os.close(theirs)
        bash = Bash(ours)
        os.write(
            ours, b'bind "set enable-bracketed-paste off"; eval "$(continuum --show-completion bash)"; echo loaded $?\n'
        )
        await bash.read_until("loaded 0\r\n")
        for line, completed in (
            ("continuum doc", "continuum doctor"),
            ("continuum codes sh", "continuum codes show"),
            ("continuum submit --idempotency-k", "continuum submit --idempotency-key"),
            ("continuum tasks --status canc", "continuum tasks --status cancelled"),
            ("continuum cancel ", f"continuum cancel {second}"),
            ("continuum retry ", f"continuum retry {first}"),
        ):
            os.write(ours, f"{line}\t".encode())
            await bash.read_until(f"{completed} ")
            os.write(ours, b"\x15")  # the line is taken away
    finally:
        process.kill()
        process.wait()
        os.close(ours)
