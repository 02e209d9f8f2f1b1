"""What a task wrote on its way to a terminal or a pipe, and what is told between."""

from __future__ import annotations

import io
import sys

import pytest
import trio
from trio.testing import MockClock

from continuum.cli.follow import UNTAKEN, code_of, ending, follow_task
from continuum.cli.output import Printer, for_terminal, one_line
from continuum.client import Client
from continuum.db.memory import MemoryDatabase
from continuum.model import Completion, NewTask, PartialOutput, Status, Stream

WORKER = "the test"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain\ttext\r\nand more\n", "plain\ttext\r\nand more\n"),
        ("\x1b[1;32mgreen\x1b[0m", "\x1b[1;32mgreen\x1b[0m"),
        ("\x1b]0;a title\x07", "\\x1b]0;a title\\x07"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x9b2J\x08\x7f", "\\x9b2J\\x08\\x7f"),
        ("ünïcödé \U0001f600", "ünïcödé \U0001f600"),
    ],
)
def test_a_terminal_obeys_nothing_but_colours(written: str, shown: str) -> None:
    assert for_terminal(written) == shown


def test_a_cell_is_one_line_without_control_characters() -> None:
    assert one_line("a\x1b[31m b\n\n\tc\x00") == "a\\x1b[31m b c\\x00"
    assert len(one_line("x" * 10**6)) == 300


def test_stderr_is_red_on_a_terminal_and_as_it_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, plain in ((Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        Printer(as_json=False).piece(Stream.ERROR, "oops \x1b]0;x\n")
        assert stream.getvalue() == ("oops \x1b]0;x\n" if plain else "\x1b[31moops \\x1b]0;x\n\x1b[0m")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    Printer(as_json=False).piece(Stream.ERROR, "oops\n")
    assert terminal.getvalue() == "oops\n"


class Memory(Client):
    """A client of a database in memory."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._opened = database


async def test_each_attempt_of_a_task_that_is_followed_is_told_of(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    database = MemoryDatabase()
    (task_id,) = await database.submit([NewTask(code="x", max_attempts=2)])
    client = Memory(database)
    codes = []

    async def follow() -> None:
        codes.append(code_of(await follow_task(client, task_id)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.sleep(UNTAKEN + 1)
        await database.claim(WORKER, 1, lease=30)
        await database.progress(WORKER, [PartialOutput(task_id, 1, "one", "")])
        await trio.sleep(1)
        database.unavailable = True
        await trio.sleep(5)
        database.unavailable = False
        await database.complete(WORKER, [Completion(task_id, 1, Status.PENDING, 3, "one", "", "exit code 3", 1.0)])
        await trio.sleep(2)
        await database.promote()
        await database.claim(WORKER, 1, lease=30)
        await trio.sleep(1)
        await database.complete(
            WORKER, [Completion(task_id, 2, Status.FAILED, 4, "two\n", "bad\n", "exit code 4\nmore")]
        )
    output, errors = capsys.readouterr()
    assert output == "onetwo\n"
    assert errors.splitlines() == [
        f"continuum: task {task_id} waits, and no worker is alive: start one with `continuum worker`",
        "continuum: the database is away, trying again: the in-memory database was made unavailable",
        "continuum: attempt 1 failed: exit code 3; another follows",
        "bad",
        f"continuum: task {task_id} failed: exit code 4; `continuum show {task_id}` tells more",
    ]
    assert codes == [1]


async def test_an_end_is_one_line(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    (task_id,) = await database.submit([NewTask(code="x")])
    await database.claim(WORKER, 1, lease=30)
    await trio.sleep(1.5)
    await database.complete(WORKER, [Completion(task_id, 1, Status.COMPLETED, 0, "", "", None)])
    (record,) = await database.fetch([task_id])
    assert (ending(record), code_of(record)) == (f"task {task_id} completed in 1.50 s", 0)
