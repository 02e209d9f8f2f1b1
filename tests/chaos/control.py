"""What decides in a run what runs when: limits, keys, dependencies and a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from continuum.db.protocol import Database
from continuum.model import Limit, NewTask, Scope
from continuum.schedules import CatchUp, NewSchedule
from tests.chaos.history import Bounded, Recorder, Scheduled
from tests.chaos.plan import Plan

SCHEDULE = "tick"
TICK = 2
"""Seconds from one due time of the schedule to the next."""
LIMITED, METERED, KEY = "limited", "metered", "some at a time"
PERIOD = 1.0


async def begin(plan: Plan, database: Database, record: Recorder) -> None:
    """Set limits, and a schedule."""
    bounds = [
        Bounded(scope="tenant", name=LIMITED, most=max(2, plan.tasks // 250)),
        Bounded(scope="tenant", name=METERED, most=max(1, plan.tasks // 100), period=PERIOD),
        Bounded(scope="key", name=KEY, most=max(2, plan.tasks // 250)),
    ]
    for each in bounds:
        if each.period is None:
            limit = Limit(Scope(each.scope), each.name, max_running=each.most)
        else:
            limit = Limit(Scope(each.scope), each.name, rate=each.most, rate_period=each.period)
        await database.set_limit(limit)
        record(each)
    tick = NewTask(code="0.05", payload='{"fails": 0}')
    await database.put_schedule(NewSchedule(SCHEDULE, f"*/{TICK} * * * * *", tick, catch_up=CatchUp.ALL))
    record(Scheduled(every=TICK))


async def end(database: Database) -> None:
    """No more due times."""
    await database.remove_schedule(SCHEDULE)


DEPENDENCIES = 5
OF_BATCH = 100
"""Tasks of which every tenth belongs to one batch, and the last waits for it."""


def bound(plan: Plan, number: int, task: NewTask, before: Sequence[int]) -> NewTask:
    """The task with the limits, keys and dependencies that one with this number has: six of ten have some.

    before: ids of tasks without a tenant that were submitted just before.
    """
    batch = f"batch-{number // OF_BATCH}"
    if number % OF_BATCH == OF_BATCH - 1:
        return replace(task, depends_batch=batch, depends_ended=number // OF_BATCH % 2 == 0)
    match number % 10:
        case 0:
            return replace(task, tenant=LIMITED)
        case 1:
            return replace(task, tenant=METERED)
        case 2:
            return replace(task, concurrency_key=KEY)
        case 3:  # ten with the same key
            return replace(task, sequence_key=f"sequence-{number // 10 % max(1, plan.tasks // 100)}")
        case 4:
            return replace(task, depends_on=tuple(before[:DEPENDENCIES]), depends_ended=number % 20 == 4)
        case 5:
            return replace(task, batch=batch)
        case _:
            return task
