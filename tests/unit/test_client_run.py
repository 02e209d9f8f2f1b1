"""`run`: a script as a function that is called. On the in-memory database, with scripts that run for real."""

from __future__ import annotations

import datetime as dt
import pickle
import re
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import continuum
from continuum.client.trio_client import GIVE_UP_DEADLINE, Client
from continuum.client.waiting import PATIENCE
from continuum.db.errors import DatabaseUnavailable, InvalidTask
from continuum.db.memory import EPOCH, MemoryDatabase
from continuum.model import Completion, Status
from tests.support.harness import worker
from tests.support.scripts import ScriptBackend, ScriptHost, script_host


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptHost]:
    with script_host() as made:
        yield made


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
async def client(database: MemoryDatabase) -> AsyncIterator[Client]:
    """Without any worker."""
    async with Client(database=database) as made:
        yield made


@pytest.fixture
async def c(client: Client, database: MemoryDatabase, host: ScriptHost) -> AsyncIterator[Client]:
    """With a worker that runs scripts for real."""
    async with worker(database, ScriptBackend(host)):
        yield client


async def test_a_script_is_run_and_its_result_returned(
    autojump_clock: MockClock, c: Client, database: MemoryDatabase
) -> None:
    double = "import json\nresult = 2 * json.loads(payload)['n']"
    assert await c.run(double, {"n": 21}) == 42
    assert await c.run("print('[1, 2]')") == [1, 2]
    assert await c.run("print('Hello')") is None
    await c.run("result = 1", returns=None)
    assert await c.run("result = '2026-01-02'", returns=str) == "2026-01-02"
    shipped = await database.fetch_code(database.tasks[4].code_id or "")
    assert shipped is not None
    assert shipped.code == "result = 1", "as it is"


async def test_a_path_is_a_script_too(autojump_clock: MockClock, c: Client, tmp_path: Path) -> None:
    file = tmp_path / "report.py"
    file.write_text("result = payload", encoding="utf-8")
    assert await c.run(file, 1) == "1"
    assert await c.run(str(file), [2]) == "[2]"
    with pytest.raises(FileNotFoundError):
        await c.run(str(tmp_path / "missing.py"))
    file.write_bytes(b"# \xff")
    with pytest.raises(InvalidTask, match=r"report\.py is no text in UTF-8"):
        await c.run(file)


async def test_options_reach_the_task(autojump_clock: MockClock, client: Client, database: MemoryDatabase) -> None:
    with trio.move_on_after(0.1):
        await client.run(
            "result = 1", name="one", priority=3, tenant="acme", timeout=5, requirements="six==1.17.0",
            max_attempts=1, idempotency_key="k", description="d", webhook="https://x.example/", cancel_on_exit=False,
        )  # fmt: skip
    (task,) = await database.claim("worker", 1, lease=30)
    assert (task.name, task.priority, task.tenant, task.timeout) == ("one", 3, "acme", 5)
    assert (task.max_attempts, task.requirements, task.description) == (1, "six==1.17.0\n", "d")
    assert database.tasks[1].webhook == "https://x.example/"


async def test_what_a_scripts_block_requires_is_required(
    autojump_clock: MockClock, client: Client, database: MemoryDatabase
) -> None:
    script = "# /// script\n# dependencies = ['six==1.17.0']\n# ///\nresult = 1"
    await client.submit(script)
    await client.submit(script, requirements="")
    first, second = await database.claim("worker", 2, lease=30)
    assert (first.requirements, second.requirements) == ("six==1.17.0\n", None)


async def test_a_task_that_somebody_else_submitted_has_its_result_too(autojump_clock: MockClock, c: Client) -> None:
    task_id = await c.submit("print(5)")
    assert await c.result(task_id, returns=int) == 5
    with pytest.raises(continuum.TaskNotFound):
        await c.result(987654)


# -- failures ----------------------------------------------------------------------------------------------------------

BROKEN = """\
import json

def total(order):
    return order["price"] * order["quantity"]

result = total(json.loads(payload))
"""


async def test_a_failure_carries_the_scripts_own_traceback(
    autojump_clock: MockClock, c: Client, tmp_path: Path
) -> None:
    file = tmp_path / "total.py"
    file.write_text(BROKEN)
    with pytest.raises(continuum.TaskFailed) as caught:
        await c.run(file, {"price": 3}, name="total", max_attempts=1)
    error = caught.value
    assert str(error) == f"task 1 (total) failed: KeyError: 'quantity' [{file}, line 4]"
    assert (error.status, error.record.exit_code) == (Status.FAILED, 1)
    assert f'File "{file}", line 6, in <module>' in error.traceback
    assert 'return order["price"] * order["quantity"]' in error.traceback
    assert "/task/script.py" not in error.traceback
    shown = "".join(traceback.format_exception(error))
    assert shown.count("KeyError: 'quantity'") == 2
    assert f'In its sandbox:\nTraceback (most recent call last):\n  File "{file}", line 6' in shown


async def test_a_text_is_called_script_py_and_a_chain_is_shown_whole(autojump_clock: MockClock, c: Client) -> None:
    script = (
        "import sys\nsys.stderr.write('noise')\ntry:\n    1 / 0\nexcept Exception as e:\n    raise OSError('x') from e"
    )
    with pytest.raises(continuum.TaskFailed, match=r"OSError: x \[script\.py, line 6\]") as caught:
        await c.run(script, max_attempts=1)
    assert "ZeroDivisionError" in caught.value.traceback
    with pytest.raises(continuum.TaskFailed, match=r"SyntaxError: .* \[script\.py, line 2\]"):
        await c.run("x = 1\nx = = 2", max_attempts=1)


@pytest.mark.parametrize(
    ("script", "message", "note"),
    [
        (
            "import sys\nsys.exit('no such customer')",
            "task 1 failed: no such customer",
            "In its sandbox:\nno such customer",
        ),
        ("import sys\nsys.exit(3)", "task 1 failed: exit code 3", None),
        ("import no_such_thing", r"ModuleNotFoundError: No module named 'no_such_thing'", "pinned packages are given"),
    ],
)
async def test_each_failure_is_told(
    autojump_clock: MockClock, c: Client, script: str, message: str, note: str | None
) -> None:
    with pytest.raises(continuum.TaskFailed) as caught:
        await c.run(script, max_attempts=1)
    if "exit code 3" in message:
        assert caught.value.record.exit_code == 3
    else:
        assert message in str(caught.value)
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert note in notes if note else not notes


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        (continuum.TaskTimedOut, Status.FAILED, "Timeout: ran longer than 5 s"),
        (continuum.TaskTimedOut, Status.FAILED, "CPU time: used more than 5 s"),
        (continuum.TaskOutOfMemory, Status.FAILED, "Out of memory: used more than 512 MB"),
        (continuum.TaskFailed, Status.FAILED, "Timeout/Crash: the lease of attempt 3 expired (worker w)"),
        (continuum.TaskFailed, Status.FAILED, "Timeout: said the script"),
        (continuum.TaskFailed, Status.FAILED, None),
        (continuum.TaskCancelled, Status.CANCELLED, "Cancelled while it ran"),
        (continuum.TaskRefused, Status.MALICIOUS, "Refused: B102 exec_used"),
    ],
)
async def test_each_kind_of_failure_has_its_own_exception(
    autojump_clock: MockClock,
    client: Client,
    database: MemoryDatabase,
    kind: type[Exception],
    status: Status,
    reason: str | None,
) -> None:
    async def end() -> None:
        while not (tasks := await database.claim("worker", 1, lease=30)):
            await trio.sleep(0.01)
        await database.complete("worker", [Completion(tasks[0].id, 1, status, None, "", "", reason)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        with pytest.raises(continuum.TaskFailed, match=re.escape(reason or "no reason given")) as caught:
            await client.run("pass")
    assert type(caught.value) is kind
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.record) == (kind, str(caught.value), caught.value.record)


async def test_a_long_traceback_keeps_its_end(autojump_clock: MockClock, c: Client) -> None:
    script = "def f(n):\n    g(n)\ndef g(n):\n    f(n + 1) if n < 400 else 1 / 0\n" + "f(0)  # " + "x" * 200
    with pytest.raises(continuum.TaskFailed, match="ZeroDivisionError") as caught:
        await c.run(script, max_attempts=1)
    assert len(caught.value.traceback) <= 4100
    assert caught.value.traceback.endswith("ZeroDivisionError: division by zero")


# -- who does not wait any more ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({}, Status.CANCELLED),
        ({"cancel_on_exit": True}, Status.CANCELLED),
        ({"cancel_on_exit": False}, Status.PENDING),
        ({"idempotency_key": "k"}, Status.PENDING),
        ({"idempotency_key": "k", "cancel_on_exit": True}, Status.CANCELLED),
    ],
)
async def test_a_wait_that_is_cancelled_cancels_its_task_unless_the_task_has_a_key(
    autojump_clock: MockClock, client: Client, database: MemoryDatabase, options: dict[str, Any], status: Status
) -> None:
    with trio.move_on_after(5):
        await client.run("pass", **options)
    assert [task.status for task in database.tasks.values()] == [status]


async def test_a_wait_that_is_over_cancels_its_task_too(
    autojump_clock: MockClock, client: Client, database: MemoryDatabase
) -> None:
    with pytest.raises(continuum.WaitTimeout, match="1 of 1 tasks had not ended in 2 s"):
        await client.run("pass", seconds=2)
    assert database.tasks[1].status == Status.CANCELLED


async def test_a_scope_that_is_cancelled_already_submits_nothing_that_stays(
    autojump_clock: MockClock, client: Client, database: MemoryDatabase
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.run("pass")
    assert [task.status for task in database.tasks.values()] in ([], [Status.CANCELLED])


async def test_giving_up_does_not_wait_for_a_database_that_is_away(
    autojump_clock: MockClock, client: Client, database: MemoryDatabase
) -> None:
    began = trio.current_time()
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:

            async def break_it() -> None:
                await trio.sleep(4)
                database.unavailable = True

            nursery.start_soon(break_it)
            await client.run("pass")
    assert trio.current_time() - began <= 5 + GIVE_UP_DEADLINE


async def test_an_outage_is_waited_out_and_a_long_one_is_told(
    autojump_clock: MockClock, c: Client, database: MemoryDatabase
) -> None:
    async with trio.open_nursery() as nursery:

        async def break_it(seconds: float) -> None:
            await trio.sleep(1)
            database.unavailable = True
            await trio.sleep(seconds)
            database.unavailable = False

        nursery.start_soon(break_it, 10)
        assert await c.run("result = 1", run_at=EPOCH + dt.timedelta(seconds=trio.current_time() + 5)) == 1
        nursery.start_soon(break_it, 2 * PATIENCE)
        with pytest.raises(DatabaseUnavailable):
            await c.run("result = 1", run_at=EPOCH + dt.timedelta(seconds=trio.current_time() + 5))


async def test_no_database_at_all_is_told_at_once(
    autojump_clock: MockClock, client: Client, database: MemoryDatabase
) -> None:
    database.unavailable = True
    with pytest.raises(DatabaseUnavailable):
        await client.run("pass")
