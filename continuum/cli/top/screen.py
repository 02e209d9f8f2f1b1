"""The screen of `continuum top`, and the tasks behind it. Whatever ends it, the terminal is as it was before."""

from __future__ import annotations

import datetime as dt
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial

import trio
from rich.console import Console
from rich.live import Live

from continuum.cli.errors import OK, USAGE, tell
from continuum.cli.top.board import FAILURES_SINCE, Board, Snapshot
from continuum.cli.top.drawing import draw
from continuum.cli.top.keyboard import key_by_key, keys, suspended
from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import Status, TaskFilter
from continuum.nursery.signals import Signal

REFRESH = 1.0
"""Seconds between two looks at the database, and at the latest between two drawings."""
RUNNING_SHOWN = 200
FAILURES_SHOWN = 20
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_top(database: Database) -> int:
    """Show the queue until q or a signal; return the exit code. Raises what the first look at the database raises; later the
    database may be away for any time."""
    console = Console()
    terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
    if terminal is None or not console.is_terminal or console.is_dumb_terminal:
        tell(
            "`continuum top` needs a terminal with a keyboard; `continuum status` prints the queue once, "
            "with --watch again and again"
        )
        return USAGE
    board = Board()
    board.take(await _look(database))
    board.dialect = database.dialect
    ask, changed = Signal(), Signal()
    ended_by: list[int] = []
    with (
        trio.open_signal_receiver(*ENDING, signal.SIGWINCH, signal.SIGTSTP) as signals,
        key_by_key(terminal),
        Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_looking, database, board, ask, changed)
            nursery.start_soon(_obey_keys, terminal, board, ask, changed)
            nursery.start_soon(_obey_signals, signals, board, ended_by, changed, partial(_suspend, live, terminal))
            while not board.done:
                live.update(draw(board, console.width, console.height, trio.current_time()), refresh=True)
                await changed.wait(REFRESH)
            nursery.cancel_scope.cancel()
    return 128 + ended_by[0] if ended_by else OK


async def _look(database: Database) -> Snapshot:
    now = dt.datetime.now(dt.UTC)
    statistics = await database.statistics()
    depths = await database.depths()
    workers = await database.workers()
    running = await database.search(TaskFilter(statuses=frozenset({Status.PROCESSING}), limit=RUNNING_SHOWN))
    failures = await database.failures(now - FAILURES_SINCE, FAILURES_SHOWN)
    return Snapshot(trio.current_time(), dt.datetime.now(dt.UTC), statistics, depths, workers, running, failures)


async def _keep_looking(database: Database, board: Board, ask: Signal, changed: Signal) -> None:
    while True:
        asked = await ask.wait(REFRESH)
        if board.paused and not asked:
            continue
        try:
            if (task_id := board.opened) is not None:
                found = await database.fetch([task_id])
                if board.opened == task_id and found:
                    board.task = found[0]
                    changed.notify()
            board.take(await _look(database))
        except DatabaseUnavailable as error:
            board.away = str(error)
        changed.notify()


async def _obey_keys(terminal: int, board: Board, ask: Signal, changed: Signal) -> None:
    async for key in keys(terminal):
        board.press(key)
        if board.opened is not None and board.task is None:
            ask.notify()
        changed.notify()
    board.done = True  # the terminal is gone
    changed.notify()


async def _obey_signals(
    signals: AsyncIterator[int], board: Board, ended_by: list[int], changed: Signal, suspend: Callable[[], None]
) -> None:
    async for number in signals:
        if number == signal.SIGTSTP:
            suspend()
        if number in ENDING:
            ended_by.append(number)
            board.done = True
        changed.notify()


def _suspend(live: Live, terminal: int) -> None:
    """Leave the terminal to the shell until it lets us go on (Ctrl-Z, and then `fg`)."""
    live.stop()
    with suspended(terminal):
        os.kill(os.getpid(), signal.SIGSTOP)
    live.start()
