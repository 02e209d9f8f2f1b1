"""A history as people read it: what was done each second, by whom, and what was broken meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from continuum.model import Status
from tests.chaos.history import (
    Claimed,
    Event,
    FaultBegan,
    FaultEnded,
    History,
    Kept,
    Row,
    Submitted,
    WorkerEnded,
    WorkerStarted,
    Written,
)

WIDTH = 40
"""Of the longest bar."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. Times in seconds."""

    submitted: int
    records: int
    terminal: int
    completed: int
    failed: int
    scheduled: int
    attempts: int
    longest_pause: float
    """Between two outcomes that the database accepted."""
    duration: float


def summarize(history: History) -> Summary:
    rows: list[Row] = [event.row for event in history if isinstance(event, Kept) and event.row.key is not None]
    keys = {event.key for event in history if isinstance(event, Submitted) and event.answer == "acknowledged"}
    began = min((event.began for event in history if isinstance(event, Submitted)), default=0.0)
    written = [event.at for event in history if isinstance(event, Written) and event.standing]
    return Summary(
        submitted=len(keys),
        records=len(rows),
        terminal=sum(row.terminal for row in rows),
        completed=sum(row.status == Status.COMPLETED for row in rows),
        failed=sum(row.status == Status.FAILED for row in rows),
        scheduled=sum(isinstance(event, Kept) and event.row.due_for is not None for event in history),
        attempts=sum(len(event.leases) for event in history if isinstance(event, Claimed)),
        longest_pause=max((after - before for before, after in pairwise([began, *written])), default=0.0),
        duration=max(written, default=began) - began,
    )


def timeline(history: History) -> Iterator[str]:
    """A line for each second, and one for each thing that broke or was mended."""
    if not history:
        return
    origin = history[0].at
    seconds: dict[int, list[Event]] = {}
    for event in history:
        seconds.setdefault(int(event.at - origin), []).append(event)
    done = {second: _outcomes(events) for second, events in seconds.items()}
    most = max((sum(each.values()) for each in done.values()), default=0) or 1
    for second in range(max(seconds) + 1):
        events = seconds.get(second, [])
        for event in events:
            if said := _said(event):
                yield f"{event.at - origin:7.2f} s  {said}"
        outcomes = done.get(second, Counter())
        total = sum(outcomes.values())
        claimed = sum(len(event.leases) for event in events if isinstance(event, Claimed))
        by_worker = "  ".join(f"{worker} {count}" for worker, count in sorted(outcomes.items()))
        bar = "#" * round(WIDTH * total / most)
        yield f"{second:4}     s  {claimed:4} claimed {total:4} written {bar:{WIDTH}} {by_worker}".rstrip()


def _outcomes(events: list[Event]) -> Counter[str]:
    return Counter(
        event.worker for event in events if isinstance(event, Written) for _ in event.standing
    )  # fmt: skip


def _said(event: Event) -> str:
    match event:
        case FaultBegan():
            return f"BROKEN  {event.name}"
        case FaultEnded():
            return f"mended  {event.name}"
        case WorkerStarted():
            return f"{event.worker} works (pid {event.pid})"
        case WorkerEnded():
            return f"{event.worker} killed -9" if event.killed else f"{event.worker} ended with {event.exit_code}"
        case _:
            return ""
