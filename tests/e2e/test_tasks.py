"""What producers may send: each kind of task, good and bad, has a clear outcome, and the worker lives."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import psycopg
import pytest
import trio

from continuum.model import Cancellation, NewTask, Status, TaskRecord
from continuum.sandbox.docker_owner import WORKER_LABEL
from tests.e2e.test_failures import wait_for_all, wait_until_running
from tests.support.installation import Installation
from tests.support.workers import start_worker

MIB = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """A script, and what must come of it. `error` is in last_error, `output` is the whole output where given."""

    name: str
    code: str
    status: Status = Status.FAILED
    error: str = ""
    output: str | None = None
    exit_code: int | None = None
    payload: str | None = None
    values: dict[str, object] = field(default_factory=dict)


CASES = [
    Case("hello", "print('hello')", Status.COMPLETED, output="hello\n", exit_code=0),
    Case("an empty script", "", Status.COMPLETED, output="", exit_code=0),
    Case("broken code", "undefined_name", error="NameError: name 'undefined_name' is not defined", exit_code=1),
    Case("a syntax error", "if x", error="SyntaxError: ", exit_code=1),
    Case("an exit code", "raise SystemExit(3)", error="exit code 3", exit_code=3),
    Case("an exit message", "raise SystemExit('bad order')", error="bad order", exit_code=1),
    Case("a signal", "import os; os.kill(os.getpid(), 11)", error="Killed by signal 11 (SIGSEGV)", exit_code=139),
    Case(
        "a payload of 10 MB",
        "import json, sys; print(len(json.load(open(sys.argv[1]))['text']), len(payload))",
        Status.COMPLETED,
        payload=json.dumps({"text": "x" * 10_000_000}),
        output=f"10000000 {10_000_000 + len(json.dumps({'text': ''}))}\n",
    ),
    Case(
        "binary output", r"import os; os.write(1, b'a\xff\xfe\x00b')", Status.COMPLETED, output="a\ufffd\ufffd\ufffdb"
    ),
    Case("output without a newline", "print('end', end='')", Status.COMPLETED, output="end"),
    Case("a closed stdout", "import sys; print('one'); sys.stdout.close()", Status.COMPLETED, output="one\n"),
    Case("a closed descriptor", "import os; print('one', flush=True); os.close(1)", Status.COMPLETED, output="one\n"),
    Case(
        "a child that outlives its parent",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nprint('parent')",
        Status.COMPLETED,
        output="parent\n",
    ),
    Case("a timeout", "while True: pass", error="Timeout: ran longer than 1 s", values={"timeout": 1.0}),
    Case("a memory hog", "x = []\nwhile True: x.append(bytearray(2**24))", error="Out of memory"),
    Case("text of all sorts", "print('äöü ☃ \U0001f600')", Status.COMPLETED, output="äöü ☃ \U0001f600\n"),
    Case(
        "a traceback that speaks",
        "def f():\n    raise ValueError('no such order')\nf()",
        error="ValueError: no such order",
    ),
]


async def submit(installation: Installation, *cases: Case) -> list[int]:
    tasks = [
        NewTask(name=case.name, code=case.code, payload=case.payload, max_attempts=1, **case.values)  # type: ignore[arg-type]
        for case in cases
    ]
    return await installation.database.submit(tasks)


def check(case: Case, record: TaskRecord) -> None:
    seen = (record.output or "")[-500:], record.error_output, record.last_error
    assert record.status == case.status, (case.name, seen)
    assert case.error in (record.last_error or ""), (case.name, seen)
    if case.output is not None:
        assert record.output == case.output, (case.name, seen)
    if case.exit_code is not None:
        assert record.exit_code == case.exit_code, (case.name, seen)
    if case.status is Status.COMPLETED:
        assert not record.last_error


async def all_kinds(installation: Installation) -> None:
    environment = installation.environment | {"SLOTS": "4", "CONTAINER_MEMORY_MB": "128"}
    async with start_worker(environment) as worker:
        ids = await submit(installation, *CASES)
        for case, record in zip(CASES, await wait_for_all(installation.database, ids, 90), strict=True):
            check(case, record)
        (after,) = await wait_for_all(installation.database, await submit(installation, CASES[0]), 20)
        check(CASES[0], after)
        assert (await worker.get("/status")).json()["tasks_processed"] == len(CASES) + 1
    await installation.no_sandbox_left()


async def test_every_kind_of_task_has_a_clear_outcome_in_docker(full: Installation) -> None:
    await all_kinds(full)


async def test_every_kind_of_task_has_a_clear_outcome_in_bubblewrap(light: Installation) -> None:
    await all_kinds(light)


async def test_an_output_of_100_megabytes_is_cut_with_a_mark(light: Installation) -> None:
    code = "line = 'x' * 99 + '\\n'\nfor _ in range(1_000_000): print(line, end='')"
    async with start_worker(light.environment):
        (record,) = await wait_for_all(light.database, await submit(light, Case("flood", code)), 60)
    assert record.status == Status.COMPLETED
    assert record.output is not None
    assert record.output.endswith(f"\n[output cut: the first {MIB} of 100000000 bytes are kept]\n")
    assert len(record.output) < MIB + 100


async def test_a_row_that_names_no_code_fails_at_once_and_says_so(light: Installation) -> None:
    def insert() -> int:
        with psycopg.connect(light.url, autocommit=True) as connection:
            found = connection.execute("INSERT INTO tasks (name) VALUES ('no code') RETURNING id").fetchone()
            assert found is not None
            return int(found[0])

    async with start_worker(light.environment):
        (record,) = await wait_for_all(light.database, [await trio.to_thread.run_sync(insert)], 20)
    assert (record.status, record.attempt) == (Status.FAILED, 1)
    assert "names no code" in (record.last_error or "")


async def test_a_code_that_does_not_exist_fails_at_once_and_says_so(light: Installation) -> None:
    missing = "00000000-0000-0000-0000-00000000dead"

    def insert() -> int:
        with psycopg.connect(light.url, autocommit=True) as connection:
            connection.execute("ALTER TABLE tasks DROP CONSTRAINT tasks_code_fkey")
            found = connection.execute(
                "INSERT INTO tasks (name, code) VALUES ('n', %s) RETURNING id", [missing]
            ).fetchone()
            assert found is not None
            return int(found[0])

    async with start_worker(light.environment):
        (record,) = await wait_for_all(light.database, [await trio.to_thread.run_sync(insert)], 20)
    assert (record.status, record.attempt) == (Status.FAILED, 1)
    assert missing in (record.last_error or "")


async def test_a_row_with_an_unknown_status_is_left_alone(light: Installation) -> None:
    def insert() -> None:
        with psycopg.connect(light.url, autocommit=True) as connection:
            connection.execute("ALTER TABLE tasks DROP CONSTRAINT tasks_status_known")
            connection.execute("INSERT INTO tasks (name, status) VALUES ('strange', 'not_started')")

    await trio.to_thread.run_sync(insert)
    async with start_worker(light.environment) as worker:
        check(CASES[0], (await wait_for_all(light.database, await submit(light, CASES[0]), 20))[0])
        assert (await worker.get("/global-status")).status_code == 200
    (record,) = await light.database.fetch([1])
    assert record.status == "not_started"


async def test_plain_sql_as_for_the_first_version_is_all_a_producer_needs(light: Installation) -> None:
    def insert() -> list[int]:
        with psycopg.connect(light.url, autocommit=True) as connection:
            code = connection.execute(
                "INSERT INTO codes (code) VALUES ('import json, sys; print(json.load(open(sys.argv[1]))[\"n\"])') RETURNING id"
            ).fetchone()
            assert code is not None
            found = connection.execute(
                "INSERT INTO tasks (name, description, status, payload, code) "
                "SELECT 'n', 'd', 'pending', jsonb_build_object('n', n), %s FROM generate_series(1, 20) AS n RETURNING id",
                code,
            ).fetchall()
            return [row[0] for row in found]

    async with start_worker(light.environment):
        records = await wait_for_all(light.database, await trio.to_thread.run_sync(insert), 20)
    assert [record.output for record in records] == [f"{n}\n" for n in range(1, 21)]


async def test_a_running_task_can_be_watched_and_cancelled(light: Installation) -> None:
    code = "import time\nprint('began', flush=True)\ntime.sleep(600)"
    async with start_worker(light.environment):
        (task_id,) = await submit(light, Case("long", code))
        record = await wait_until_running(light.database, task_id)
        assert record.output == "began\n"
        began = trio.current_time()
        assert await light.database.cancel(task_id) is Cancellation.REQUESTED
        (record,) = await wait_for_all(light.database, [task_id], 10)
        assert trio.current_time() - began < 5, "a notification, not the next heartbeat, brought it"
    assert (record.status, record.output) == (Status.CANCELLED, "began\n")


async def test_a_failing_task_is_tried_again_until_it_succeeds(light: Installation) -> None:
    code = "import os, sys\nif os.environ['CONTINUUM_ATTEMPT'] != '3': sys.exit('not yet')\nprint('third time')"
    async with start_worker(light.environment):
        (record,) = await wait_for_all(light.database, await light.database.submit([NewTask(code=code)]), 30)
    assert (record.status, record.attempt, record.output) == (Status.COMPLETED, 3, "third time\n")


async def test_a_container_removed_under_a_task_costs_an_attempt_and_the_pool_heals(full: Installation) -> None:
    code = (
        "import os, time\nprint('began', flush=True)\n"
        "time.sleep(600 if os.environ['CONTINUUM_ATTEMPT'] == '1' else 0)\nprint('done')"
    )
    async with start_worker(full.environment | {"SLOTS": "1"}) as worker:
        ids = await full.database.submit([NewTask(code=code)])
        await wait_until_running(full.database, ids[0])
        running = (await worker.get("/status")).json()["id"]
        command = ["docker", "ps", "-q", "--filter", f"label={WORKER_LABEL}={running}"]
        containers = (await trio.run_process(command, capture_stdout=True)).stdout.decode().split()
        # The daemon may answer that it removes it already: the container removes itself as soon as it is killed.
        await trio.run_process(
            ["docker", "rm", "-f", *containers], capture_stdout=True, capture_stderr=True, check=False
        )
        (record,) = await wait_for_all(full.database, ids, 30)
        assert (record.status, record.attempt, record.output) == (Status.COMPLETED, 2, "began\ndone\n")
        await worker.ready(5)


@pytest.mark.parametrize("count", [1, 2])
async def test_signals_drain_the_worker_and_a_second_one_skips_the_grace(light: Installation, count: int) -> None:
    import signal

    seconds = 3 if count == 1 else 10
    code = f"import time\nprint('began', flush=True)\ntime.sleep({seconds})\nprint('done')"
    async with start_worker(light.environment | {"SHUTDOWN_GRACE": "60"}) as worker:
        (task_id,) = await submit(light, Case("some seconds", code))
        await wait_until_running(light.database, task_id)
        for _ in range(count):
            worker.send(signal.SIGTERM)
            await trio.sleep(0.3)  # two signals at the same instant are one to the kernel
        assert await worker.wait(30) == 0, worker.output
    (record,) = await light.database.fetch([task_id])
    if count == 1:
        assert (record.status, record.output) == (Status.COMPLETED, "began\ndone\n")
    else:
        assert (record.status, record.attempt, record.released) == (Status.PENDING, 1, 1)
