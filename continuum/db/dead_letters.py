"""Trying many failed tasks again: page after page, each in one statement, and safe to repeat at any time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from continuum.db.protocol import Database
from continuum.model import DeadLetterFilter, DeadLetterPlace, TaskSummary

SHOWN = 20
"""Tasks that are named."""


@dataclass(slots=True)
class DeadLetters:
    """What was done. found: tasks that fitted. retried: copies that were submitted; fewer where somebody else was quicker.

    newest: the first `SHOWN` of them. next: where to go on; None when all were looked at.
    """

    found: int = 0
    retried: int = 0
    newest: list[TaskSummary] = field(default_factory=list)
    next: DeadLetterPlace | None = None


async def retry_failed(
    database: Database,
    wanted: DeadLetterFilter,
    *,
    before: DeadLetterPlace | None = None,
    dry_run: bool = False,
    seconds: float = math.inf,
) -> DeadLetters:
    """Submit a copy of every failed task that fits, once. What fails after this has begun is left alone, copies too.

    dry_run: only look. seconds: after so long no further page is begun. Raises what the database raises, after which it may be
    called again.
    """
    done = DeadLetters(next=before)
    until = trio.current_time() + seconds
    while True:
        page = await database.dead_letters(wanted, done.next)
        if page.tasks and not dry_run:
            done.retried += len(await database.retry_many([task.id for task in page.tasks]))
        done.found += len(page.tasks)
        done.newest += page.tasks[: SHOWN - len(done.newest)]
        done.next = page.next
        if done.next is None or trio.current_time() >= until:
            return done
