"""From a board to lines of text, as many and as wide as the screen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from continuum.cli.formats import STYLES, at, span
from continuum.cli.output import for_terminal, one_line
from continuum.cli.top.board import Board, Snapshot
from continuum.model import QueueDepth, Statistics, TaskRecord, WorkerRecord

BARS = "▁▂▃▄▅▆▇█"
KEYS = "q quit   p pause   s sort   ↑↓ choose   enter look at its output"
KEYS_OF_TASK = "q or esc back   p pause"
STALE = 3.0
"""Seconds without an answer after which the figures are called old."""


def draw(board: Board, width: int, height: int, now: float) -> Group:
    """The whole screen. now: Trio's clock."""
    header = list(_header(board, width, now))
    room = max(0, height - len(header) - 1)
    if board.opened is not None:
        body, keys = list(_task(board.task, board.opened, room)), KEYS_OF_TASK
    else:
        body, keys = list(_body(board, room)), KEYS
    lines = [*header, *body[:room], *[Text()] * (room - len(body)), Text(keys, style="reverse")]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
        line.truncate(width, overflow="ellipsis")
    return Group(*lines[:height])


def _header(board: Board, width: int, now: float) -> Iterator[Text]:
    state = Text()
    snapshot = board.snapshot
    age = now - snapshot.at if snapshot else 0.0
    if board.away or (age > STALE and not board.paused):
        reason = f": {one_line(board.away)}" if board.away else ""
        state = Text(f"database away for {span(age)}, trying again{reason}", style="bold white on red")
    elif board.paused:
        state = Text(f"paused {span(age)} ago; p goes on", style="bold black on yellow")
    clock = f"{at(snapshot.now)} UTC" if snapshot else ""
    yield Text.assemble(("continuum top", "bold"), f"  {board.dialect}  {clock}  ", state)
    if snapshot is None:
        return
    counts = snapshot.statistics
    yield _counts(counts)
    rate = board.rates[-1] if board.rates else 0.0
    numbers = f"{rate:8.1f} tasks/s  "
    rest = f"  mean {span(counts.avg_execution_seconds)}"
    line = sparkline(board.rates, width - len(numbers) - len(rest))
    yield Text.assemble((numbers, "bold"), (line, "cyan"), rest)
    yield Text(_depths(snapshot.depths), style="dim")


def _counts(counts: Statistics) -> Text:
    line = Text()
    for name in ("pending", "scheduled", "running", "completed", "failed", "cancelled", "malicious"):
        number = getattr(counts, name)
        if name == "malicious" and not number:
            continue
        style = STYLES.get("processing" if name == "running" else name, "") if number else "dim"
        line.append(f"{number:>6} ", style=style)
        line.append(name, style="" if number else "dim")
    return line


def sparkline(values: Sequence[float], width: int) -> str:
    """The newest values as bars, the highest of them a whole one; right-aligned in `width` characters."""
    if width < 1:
        return ""
    shown = list(values)[-width:]
    most = max(shown, default=0.0)
    bars = "".join(BARS[min(7, int(value / most * 8))] if most and value else " " for value in shown)
    return bars.rjust(width)


def _depths(depths: list[QueueDepth]) -> str:
    parts = [f"{each.priority}: {each.pending + each.scheduled} waiting, {each.running} running" for each in depths[:8]]
    return "by priority  " + " | ".join(parts) if parts else "nothing waits"


def _body(board: Board, room: int) -> Iterator[Text]:
    snapshot = board.snapshot
    if snapshot is None:
        return
    workers = _workers(snapshot)
    failures = list(_failures(board, snapshot))
    for_workers = min(len(workers), max(1, room // 5))
    for_failures = min(len(failures), max(1, room // 3))
    for_running = max(0, room - for_workers - for_failures - 3)
    yield _title(f"workers  {_slots(snapshot.workers)}")
    yield from workers[:for_workers]
    running = list(_running(board, snapshot))
    yield _title(f"running  {len(running)}, sorted by {board.order}")
    first = _first_shown(board.selected, len(running), for_running)
    yield from running[first : first + for_running]
    yield from [Text()] * (for_running - len(running[first : first + for_running]))
    yield _title("failures of the last hour")
    first = _first_shown(board.selected - len(running), len(failures), for_failures)
    yield from failures[first : first + for_failures]


def _first_shown(selected: int, count: int, room: int) -> int:
    """Where a list begins so that its selected line is seen."""
    return max(0, min(selected - room // 2, count - room)) if 0 <= selected < count else 0


def _title(text: str) -> Text:
    return Text(text, style="bold underline")


def _slots(workers: list[WorkerRecord]) -> str:
    alive = [each for each in workers if each.alive]
    if not alive:
        return "none is alive: start one with `continuum worker`"
    return (
        f"{len(alive)} alive, {sum(each.running for each in alive)} of {sum(each.slots for each in alive)} slots in use"
    )


def _workers(snapshot: Snapshot) -> list[Text]:
    living = sorted(snapshot.workers, key=lambda each: (not each.alive, each.id))
    lines = []
    for each in living:
        used, state = f"{each.running}/{each.slots}", each.state if each.alive else "gone"
        counts = f"{state:<9}{used:>8}{each.completed:>9} done{each.failed:>7} failed"
        about = f"  {one_line(each.id)}  {one_line(each.version)}  {one_line(each.sandbox)}"
        lines.append(Text(counts + about, style="" if each.alive else "dim"))
    return lines


def _running(board: Board, snapshot: Snapshot) -> Iterator[Text]:
    for number, task in enumerate(board.running):
        began = task.started or task.created_at
        elapsed = span((snapshot.now - began).total_seconds())
        tries = f"{task.attempt}/{task.max_attempts}"
        text = f"{task.id:>10}{elapsed:>9}{tries:>7}  {one_line(task.worker_id or '', 24):<24}  {one_line(task.name)}"
        yield Text(text, style="reverse" if number == board.selected else "")


def _failures(board: Board, snapshot: Snapshot) -> Iterator[Text]:
    before = len(snapshot.running)
    for number, group in enumerate(snapshot.failures, before):
        ago = span((snapshot.now - group.newest_at).total_seconds())
        names = " .. ".join(one_line(name, 20) for name in group.names)
        text = f"{group.newest_id:>10}{ago:>7} ago{group.count:>6}x  {one_line(group.error)}  ({names})"
        yield Text(text, style="reverse" if number == board.selected else "red")


def _task(task: TaskRecord | None, task_id: int, room: int) -> Iterator[Text]:
    """One task and the end of what it wrote."""
    if task is None:
        yield Text(f"task {task_id} ...")
        return
    took = ""
    if task.started:
        end = task.finished or dt.datetime.now(dt.UTC)
        took = f" {'after' if task.finished else 'for'} {span((end - task.started).total_seconds())}"
    yield Text.assemble(
        (f"task {task.id}", "bold"), f"  {one_line(task.name)}  ", (task.status, STYLES.get(task.status, "")), took,
        f"  attempt {task.attempt} of {task.max_attempts}  {one_line(task.worker_id or '')}",
    )  # fmt: skip
    if task.last_error and task.status != "completed":
        yield Text(one_line(task.last_error), style="red")
    room = max(2, room - 4)
    output, errors = (task.output or "").splitlines(), (task.error_output or "").splitlines()
    for_errors = min(len(errors), max(room // 2, room - len(output)))
    yield _title(f"stdout, {len(output)} lines")
    yield from (Text.from_ansi(for_terminal(line)) for line in output[-max(1, room - for_errors) :])
    if errors:
        yield _title(f"stderr, {len(errors)} lines")
        yield from (Text(for_terminal(line), style="red") for line in errors[-for_errors:])
