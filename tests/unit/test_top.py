"""The board of `continuum top`, its drawing for screens of any size, and keys as a terminal sends them."""

from __future__ import annotations

import datetime as dt
import os
import pty

import pytest
import trio
from rich.console import Console

from continuum.cli.top.board import ORDERS, Board, Snapshot
from continuum.cli.top.drawing import BARS, draw, sparkline
from continuum.cli.top.keyboard import key_by_key, keys, split
from continuum.model import FailureGroup, QueueDepth, Statistics, TaskSummary, WorkerRecord
from tests.unit.test_cli import record, worker

NOW = dt.datetime(2026, 11, 29, 12, tzinfo=dt.UTC)


def running(number: int, seconds: float, name: str = "") -> TaskSummary:
    return TaskSummary(
        number, name or f"task {number}", "processing", 0, None, 1, 3, f"host-{number % 2}", NOW, None,
        NOW - dt.timedelta(seconds=seconds), None, None, None,
    )  # fmt: skip


def snapshot(
    at: float = 0.0,
    completed: int = 0,
    tasks: list[TaskSummary] | None = None,
    failures: list[FailureGroup] | None = None,
    workers: list[WorkerRecord] | None = None,
) -> Snapshot:
    statistics = Statistics(1, 0, len(tasks or []), completed, 0, 0, 0, 0.25, 1000.0, 1)
    return Snapshot(at, NOW, statistics, [QueueDepth(5, 1, 0, 2)], workers or [], tasks or [], failures or [])


def lines(board: Board, width: int = 100, height: int = 24, now: float = 0.0) -> list[str]:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(draw(board, width, height, now))
    return captured.get().splitlines()


def test_throughput_is_what_ended_between_two_looks() -> None:
    board = Board()
    for at, completed in ((0.0, 100), (2.0, 120), (3.0, 120), (4.0, 90)):
        board.take(snapshot(at, completed))
    assert list(board.rates) == [10.0, 0.0, 0.0]


def test_a_sparkline_is_as_wide_as_asked_for_and_as_high_as_its_highest() -> None:
    assert sparkline([1, 2, 4, 8, 0], 7) == f"  {BARS[1]}{BARS[2]}{BARS[4]}{BARS[7]} "
    assert sparkline(range(100), 5)[-1] == BARS[7]
    assert (sparkline([], 3), sparkline([0, 0], 3), sparkline([1], 0)) == ("   ", "   ", "")


def test_running_tasks_are_sorted_and_chosen_and_failures_after_them() -> None:
    board = Board()
    failure = FailureGroup("ValueError: #", 2, 77, NOW, ("a", "b"))
    board.take(snapshot(tasks=[running(1, 5, "b"), running(2, 60, "a")], failures=[failure]))
    assert board.choices == [2, 1, 77]
    for order, ids in zip([*ORDERS[1:], ORDERS[0]], ([1, 2], [2, 1], [2, 1], [2, 1]), strict=True):
        board.press("s")
        assert (board.order, [task.id for task in board.running]) == (order, ids)
    for key, chosen in (("down", 1), ("end", 2), ("down", 2), ("page up", 0), ("up", 0)):
        board.press(key)
        assert board.selected == chosen
    board.press("end")
    board.press("enter")
    board.press("down")
    assert state(board) == (77, 2, False)
    board.press("q")
    assert state(board) == (None, 2, False)
    board.take(snapshot(tasks=[running(1, 5)]))
    assert state(board) == (None, 0, False)
    board.take(snapshot())
    board.press("enter")
    assert state(board) == (None, 0, False)
    board.press("q")
    assert state(board) == (None, 0, True)


def state(board: Board) -> tuple[int | None, int, bool]:
    return board.opened, board.selected, board.done


@pytest.mark.parametrize(("width", "height"), [(200, 60), (100, 24), (40, 10), (12, 3), (1, 1)])
def test_the_screen_is_filled_and_never_overfilled(width: int, height: int) -> None:
    board = Board("postgres")
    failures = [FailureGroup(f"error {n} " + "x" * 300, 1, 100 + n, NOW, ("a",)) for n in range(20)]
    crew = [worker(id=f"host-{n}") for n in range(30)]
    board.take(snapshot(tasks=[running(n, n, "漢字 " * 50) for n in range(50)], failures=failures, workers=crew))
    for _ in range(2):
        shown = lines(board, width, height)
        assert len(shown) == height
        assert all(len(line) <= width for line in shown)
        board.opened, board.task = (
            1,
            record(id=1, output="line\n" * 500, error_output="bad\n" * 500, attempt=1, started=NOW),
        )


def test_what_is_chosen_is_always_seen() -> None:
    board = Board()
    board.take(snapshot(tasks=[running(n, 1000 - n) for n in range(100)]))
    for chosen in (0, 50, 99):
        board.selected = chosen
        assert any(f"task {chosen}" in line for line in lines(board))


def test_nothing_that_a_task_says_steers_the_terminal_or_is_markup() -> None:
    board = Board()
    board.take(snapshot(tasks=[running(1, 5, "\x1b]0;x\x07[red]name[/red]")]))
    assert any("\\x1b]0;x\\x07[red]name[/red]" in line for line in lines(board))
    board.opened = 1
    board.task = record(id=1, output="\x1b[2Jgone\nend", attempt=1, started=NOW)
    assert [line for line in lines(board) if "gone" in line] == ["\\x1b[2Jgone"]


def test_old_figures_and_a_pause_are_told() -> None:
    board = Board()
    board.take(snapshot(at=100.0))
    assert "database away" not in lines(board, now=102.0)[0]
    assert "database away for 10 s, trying again" in lines(board, now=110.0)[0]
    board.press("p")
    assert "paused 10 s ago" in lines(board, now=110.0)[0]
    board.away = "connection refused"
    assert "database away for 10 s, trying again: connection refused" in lines(board, now=110.0)[0]
    assert any("none is alive: start one with `continuum worker`" in line for line in lines(board))


def test_keys_that_came_at_once_are_told_apart() -> None:
    assert split(b"\x1b[A\x1bOBq\x1b[5~\x1b") == [b"\x1b[A", b"\x1bOB", b"q", b"\x1b[5~", b"\x1b"]


async def test_a_key_may_come_in_pieces_and_the_end_of_the_terminal_is_the_end() -> None:
    ours, theirs = pty.openpty()
    pressed: list[str] = []
    with key_by_key(theirs):
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for key in keys(theirs):
                    pressed.append(key)  # noqa: PERF401 - those that came before it was cancelled count, too

            nursery.start_soon(listen)
            for piece in (b"\x1b", b"[A", b"q\xc3\xa4"):
                os.write(ours, piece)
                await trio.sleep(0.01)
            await trio.sleep(0.1)
            os.write(ours, b"\x1b")
            await trio.sleep(0.2)
            os.close(ours)
    os.close(theirs)
    assert pressed[:2] == ["up", "q"]
    assert pressed[-1] == "back"
