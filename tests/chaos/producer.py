"""Submits the tasks of a run, and says what it was answered."""

from __future__ import annotations

import json
import random
import time
from typing import Literal

import trio

from continuum.config import Settings
from continuum.db import open_database
from continuum.db.errors import DatabaseUnavailable, OutcomeUnknown
from continuum.db.protocol import Database
from continuum.model import NewTask
from tests.chaos.control import bound
from tests.chaos.history import Recorder, Submitted
from tests.chaos.plan import Plan

BATCH = 25
PAUSE = 0.2
"""Seconds between two tries."""


def invent(plan: Plan) -> list[NewTask]:
    """Tasks that take a moment each; a few fail once, and fewer fail for good."""
    return [
        NewTask(
            name=f"chaos {number}",
            code=f"{random.uniform(*plan.script):.2f}",
            payload=json.dumps({"fails": random.choices([0, 1, 100], [90, 7, 3])[0], "number": number}),
            idempotency_key=f"task-{number}",
        )
        for number in range(plan.tasks)
    ]


async def produce(plan: Plan, url: str, record: Recorder) -> None:
    """Submit everything, each batch until it is acknowledged: the idempotency keys make that safe."""
    tasks = invent(plan)
    async with open_database(Settings.model_validate({"database_url": url}), pool_size=1) as database:
        started = trio.current_time()
        before: list[int] = []
        for first in range(0, len(tasks), BATCH):
            await trio.sleep_until(started + plan.submitting * first / plan.tasks)
            batch = [
                bound(plan, first + place, task, before) for place, task in enumerate(tasks[first : first + BATCH])
            ]
            while (ids := await _submit(database, batch, record)) is None:
                await trio.sleep(PAUSE)
            before = [task_id for task_id, task in zip(ids, batch, strict=True) if task.tenant is None]


async def _submit(database: Database, tasks: list[NewTask], record: Recorder) -> list[int] | None:
    """The ids of the tasks; None unless the database acknowledged them."""
    began = time.monotonic()
    ids: list[int] | None = None
    answer: Literal["acknowledged", "unknown", "refused"] = "acknowledged"
    try:
        ids = await database.submit(tasks)
    except OutcomeUnknown:
        answer = "unknown"
    except DatabaseUnavailable:
        answer = "refused"
    for number, task in enumerate(tasks):
        record(
            Submitted(
                key=str(task.idempotency_key),
                payload=str(task.payload),
                began=began,
                answer=answer,
                task_id=ids[number] if ids else None,
            )
        )
    return ids
