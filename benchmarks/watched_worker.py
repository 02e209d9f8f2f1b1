"""A whole worker that notes how late its event loop is, and what held it up.

    DATABASE_URL=... SLOTS=16 python -m benchmarks.watched_worker FILE

Prints its status address once it is up. At its end it writes to FILE what `Watched` holds, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import trio

from benchmarks.null_worker import announce
from benchmarks.setting import quiet_logs
from continuum import worker
from continuum.config import load_settings

PAUSE = 0.01
"""Seconds between two questions."""
SHORTEST = 0.001
"""Seconds of a turn that is worth a note."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Times as `time.monotonic` has them.

    late: when the loop was asked, and by how many seconds it was late. held: when a task held the loop, for how many seconds of
    processor time, and which, in short; those of a millisecond and more.
    """

    late: list[tuple[float, float]] = field(default_factory=list)
    held: list[tuple[float, float, str]] = field(default_factory=list)


class Holding(trio.abc.Instrument):
    """Notes the turns of tasks that are long in processor time, which other programs do not lengthen as they do a lag."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        held = time.thread_time() - self._began
        if held >= SHORTEST:
            self._watched.held.append((time.monotonic(), held, task.name.removeprefix("continuum.")))


async def main(watched: Watched) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, watched)
        await worker.run_worker(load_settings(api_port="0"), on_started=announce)
        nursery.cancel_scope.cancel()


async def ask(watched: Watched) -> None:
    """Note how much longer than `PAUSE` a sleep of it takes, over and over."""
    while True:
        began = time.monotonic()
        await trio.sleep(PAUSE)
        watched.late.append((began, time.monotonic() - began - PAUSE))


if __name__ == "__main__":
    quiet_logs()
    watched = Watched()
    try:
        trio.run(main, watched, instruments=[Holding(watched)])
    finally:
        Path(sys.argv[1]).write_text(json.dumps(asdict(watched)))
