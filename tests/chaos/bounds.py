"""Whether limits, keys, dependencies and a schedule were kept to, on a recorded history.

Each look of the observer is one snapshot of the table, so that what it shows at a time was so at that time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from continuum.model import TERMINAL, Status
from tests.chaos.history import Bounded, History, Kept, Looked, Row, Scheduled, Seen

CLOCKS = 0.01
"""Seconds by which what the database says of two moments may be off."""

Claim = tuple[int | None, str]
"""A task, and what is wrong with it."""


def _snapshots(history: History) -> Iterator[dict[int, Row]]:
    """The table as each look found it."""
    rows: dict[int, Row] = {}
    for event in history:
        if isinstance(event, Seen):
            rows[event.row.task_id] = event.row
        elif isinstance(event, Looked):
            yield rows


def beyond_limits(history: History) -> Iterator[Claim]:
    """No more run, or began in a period, than a limit says."""
    bounds = [event for event in history if isinstance(event, Bounded)]
    for each in bounds:
        if each.period is None:
            most = max((_running(rows, each) for rows in _snapshots(history)), default=0)
            if most > each.most:
                yield None, f"{most} of the {each.scope} {each.name!r} ran at once, and {each.most} may"
            continue
        starts = sorted(
            {
                (row.started, row.attempt, row.task_id)
                for row in _rows(history)
                if row.tenant == each.name and row.started is not None
            }
        )
        for first, beyond in zip(starts, starts[each.most :], strict=False):
            if beyond[0] - first[0] < each.period - CLOCKS:
                within = f"within {beyond[0] - first[0]:.3f} s, and {each.most} may in {each.period} s"
                yield beyond[2], f"{each.most + 1} of {each.name!r} began {within}"


def _running(rows: dict[int, Row], bound: Bounded) -> int:
    names = (row.tenant if bound.scope == "tenant" else row.concurrency_key for row in rows.values() if row.processing)
    return Counter(names)[bound.name]


def _rows(history: History) -> Iterator[Row]:
    return (event.row for event in history if isinstance(event, Seen | Kept))


def out_of_order(history: History) -> Iterator[Claim]:
    """Of a sequence nothing begins before everything older has ended."""
    told: set[int] = set()
    for rows in _snapshots(history):
        open_of: dict[str, Row] = {}
        for row in sorted(rows.values(), key=lambda row: row.task_id):
            if row.sequence_key is None:
                continue
            older = open_of.get(row.sequence_key)
            if older is not None and row.attempt > 0 and row.task_id not in told:
                told.add(row.task_id)
                yield row.task_id, f"it began while task {older.task_id} of {row.sequence_key} was {older.status}"
            if not row.terminal:
                open_of.setdefault(row.sequence_key, row)


def before_others(history: History) -> Iterator[Claim]:
    """Nothing begins before what it depends on has ended, and well where it must; and it is cancelled for nothing else."""
    begun: set[int] = set()
    for rows in _snapshots(history):
        for row in [each for each in rows.values() if each.attempt > 0 and each.task_id not in begun]:
            begun.add(row.task_id)
            if others := _in_the_way(row, rows):
                yield row.task_id, f"it began although of what it depends on {others} are in the way"
    kept = {event.row.task_id: event.row for event in history if isinstance(event, Kept)}
    for row in kept.values():
        if row.in_vain != bool(_in_the_way(row, kept)):
            yield row.task_id, f"it was {'' if row.in_vain else 'not '}cancelled for what it depends on: {row}"


def _in_the_way(row: Row, rows: dict[int, Row]) -> list[int]:
    """Which of those that a task depends on do not let it begin."""
    others = {each: rows.get(each) for each in row.depends_on}
    if row.depends_batch is not None:
        others |= {other.task_id: other for other in rows.values() if other.batch == row.depends_batch}
    good = {Status.COMPLETED, *(TERMINAL if row.depends_ended else ())}
    return [each for each, other in others.items() if other is None or other.status not in good]


def misfired(history: History) -> Iterator[Claim]:
    """A schedule made one task for each due time."""
    schedules = [event for event in history if isinstance(event, Scheduled)]
    made: defaultdict[float, list[int]] = defaultdict(list)
    for event in history:
        if isinstance(event, Kept) and event.row.due_for is not None:
            made[event.row.due_for].append(event.row.task_id)
    for schedule in schedules:
        for due, task_ids in made.items():
            if len(task_ids) > 1:
                yield task_ids[1], f"the due time {due} was fired for {len(task_ids)} times: {task_ids}"
        for before, after in pairwise(sorted(made)):
            if after - before != schedule.every:
                yield made[after][0], f"nothing was fired for {after - before - schedule.every:g} s before {after}"
