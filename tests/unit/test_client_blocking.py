"""The blocking twin: in scripts, under Ctrl-C, inside a running asyncio loop, in threads of asyncio's."""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import assert_type

import pytest
import trio

import continuum
from continuum.client.blocking import BlockingClient, BlockingResults
from continuum.client.trio_client import Client
from continuum.db import connection
from continuum.db.memory import MemoryDatabase
from continuum.model import Status
from tests.support.harness import worker
from tests.support.scripts import ScriptBackend, ScriptHost, script_host

DEADLINE = 20.0


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptHost]:
    with script_host() as made:
        yield made


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


def blocking(database: MemoryDatabase, host: ScriptHost | None = None) -> BlockingClient:
    """A client of a database in memory, with a worker on it where there is a host for its scripts."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[Client]:
        async with Client(database=database) as client:
            if host is None:
                yield client
                return
            async with worker(database, ScriptBackend(host)):
                yield client

    return BlockingClient(opening=opening)


def test_it_does_the_same(database: MemoryDatabase, host: ScriptHost) -> None:
    with blocking(database, host) as c:
        assert c.run("import json\nresult = json.loads(payload) + 1", 41) == 42
        assert c.run("print('[1]')", returns=list[int]) == [1]
        with pytest.raises(continuum.TaskFailed, match="ZeroDivisionError") as caught:
            c.run("1 / 0", max_attempts=1)
        assert "line 1" in caught.value.traceback
        assert c.result(c.submit("print(3)"), returns=int) == 3
    with pytest.raises(RuntimeError, match="connect_blocking"):
        c.run("pass")


def test_a_program_keeps_its_own_asyncio_when_the_client_connects() -> None:
    before = asyncio.get_event_loop_policy()
    connection.bridge()

    async def kind() -> tuple[str, bool]:
        return type(asyncio.get_running_loop()).__module__, trio.lowlevel.in_trio_run()

    assert asyncio.run(kind()) == ("asyncio.unix_events", False)
    assert asyncio.get_event_loop_policy() is before


def test_it_works_inside_a_running_asyncio_loop_as_in_a_notebook(database: MemoryDatabase, host: ScriptHost) -> None:
    async def cell() -> object:
        with blocking(database, host) as c:
            return c.run("result = 1")

    assert asyncio.run(cell()) == 1


def test_asyncio_programs_call_it_in_threads(database: MemoryDatabase, host: ScriptHost) -> None:
    async def main() -> list[object]:
        with blocking(database, host) as c:
            script = "import json\nresult = json.loads(payload)"
            return list(await asyncio.gather(*(asyncio.to_thread(c.run, script, n) for n in range(5))))

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


async def test_within_trio_it_says_what_to_use_instead(database: MemoryDatabase) -> None:
    with blocking(database) as c, pytest.raises(RuntimeError, match=r"in Trio's thread; use `continuum\.connect\(\)`"):
        c.run("pass")


class Interrupter:
    """Sends Ctrl-C to this process once so many tasks are there."""

    def __init__(self, database: MemoryDatabase, tasks: int = 1) -> None:
        self.thread = threading.Thread(target=self._interrupt, args=(database, tasks))

    def _interrupt(self, database: MemoryDatabase, tasks: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while len(database.tasks) < tasks and time.monotonic() < deadline:
            time.sleep(0.005)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.thread.join()


@pytest.mark.parametrize(
    ("cancel_on_exit", "status"), [(None, Status.CANCELLED), (True, Status.CANCELLED), (False, Status.PENDING)]
)
def test_ctrl_c_ends_a_wait_and_cancels_its_task_unless_told_otherwise(
    database: MemoryDatabase, cancel_on_exit: bool | None, status: Status
) -> None:
    with blocking(database) as c:
        with Interrupter(database), pytest.raises(KeyboardInterrupt):
            c.run("pass", cancel_on_exit=cancel_on_exit)
        assert c.fetch(1).status == status
        assert c.submit("pass") == 2, "the client goes on"


def test_many_are_gone_through_and_a_loop_that_is_left_cancels_the_rest(
    database: MemoryDatabase, host: ScriptHost
) -> None:
    double = "import json\nresult = 2 * json.loads(payload)"
    with blocking(database, host) as c:
        results = c.map(double, range(5), returns=int)
        assert_type(results, BlockingResults[int, int])
        assert list(results) == [0, 2, 4, 6, 8]
        assert sorted(c.map(double, [1, 2]).as_completed()) == [(1, 2), (2, 4)]
        assert list(c.map(double, [])) == []
        with pytest.raises(continuum.TaskFailed):
            list(c.map("1 / 0", [1], max_attempts=1))
        assert len(database.tasks) == 8
    with blocking(database) as c:
        with Interrupter(database, tasks=10), pytest.raises(KeyboardInterrupt):
            list(c.map(double, [1, 2]))
        assert [database.tasks[number].status for number in (9, 10)] == [Status.CANCELLED] * 2


def test_a_loop_that_is_left_by_break_cancels_the_rest_at_once(database: MemoryDatabase, host: ScriptHost) -> None:
    with blocking(database, host) as c:
        later = dt.datetime.now(dt.UTC) + dt.timedelta(days=9999)
        c.submit("result = 1", idempotency_key="0")
        for _ in c.map("result = 1", range(3), idempotency_key=str, cancel_on_exit=True, run_at=later):
            break
        assert [database.tasks[number].status for number in (1, 2, 3)] == ["completed", "cancelled", "cancelled"]


def test_closing_ends_what_other_threads_wait_for(database: MemoryDatabase) -> None:
    client = blocking(database).open()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            client.run("pass")
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + DEADLINE
    while not database.tasks and time.monotonic() < deadline:
        time.sleep(0.005)
    client.close()
    thread.join(DEADLINE)
    assert [(type(error), str(error)) for error in ended] == [(RuntimeError, "this client was closed")]
    assert database.tasks[1].status == Status.CANCELLED


def test_what_ends_the_thread_is_told_to_those_who_call_it_and_who_close_it(database: MemoryDatabase) -> None:
    fail = trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    @asynccontextmanager
    async def opening() -> AsyncIterator[Client]:
        tokens.append(trio.lowlevel.current_trio_token())
        async with Client(database=database) as client:
            failure: Exception | None = None
            with trio.CancelScope() as scope:

                async def wait() -> None:
                    await fail.wait()
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    yield client
            if scope.cancelled_caught:
                failure = OSError("the worker died")
            if failure is not None:
                raise failure

    client = BlockingClient(opening=opening).open()
    tokens[0].run_sync_soon(fail.set)
    with pytest.raises(RuntimeError, match="this client was closed"):
        client.run("pass")
    with pytest.raises(OSError, match="the worker died"):
        client.close()
    client.close()


def test_ctrl_c_while_it_opens_leaves_no_thread() -> None:
    program = """
import signal, threading, trio
from contextlib import asynccontextmanager
from continuum.client.thread import ClientThread

@asynccontextmanager
async def opening():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    await trio.sleep_forever()
    yield

try:
    ClientThread(opening).open()
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "['MainThread']\n", done.stderr
