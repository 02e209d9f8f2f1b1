"""Inserting tasks, but for those that others stand for: the first one with their idempotency key, or an equal one that has not
begun."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from continuum.db import statements
from continuum.db.codes import Code
from continuum.db.connection import TrioConnection
from continuum.db.errors import DatabaseUnavailable, InvalidTask
from continuum.model import NewTask
from continuum.retry import policy_text
from continuum.tags import written

ROUNDS = 8
"""How often tasks are inserted that others kept out which had gone when they were looked for."""
COMPARED_BY_VALUE = 256 * 1024
"""Characters of a payload up to which `{"a": 1, "b": 2}` equals `{"b":2,"a":1}`. To read a larger one would hold up others for
too long: it is compared as it is written."""


class Insertion(NamedTuple):
    """A task on its way. unique_key: as the column."""

    task: NewTask
    code: Code | None
    unique_key: str | None

    def labels(self) -> Iterator[tuple[str, str, str]]:
        """What it has in common with a task that stands for it."""
        tenant = self.task.tenant or ""
        if self.task.idempotency_key is not None:
            yield "idempotency_key", tenant, self.task.idempotency_key
        if self.unique_key is not None:
            yield "unique_key", tenant, self.unique_key


def unique_key_of(task: NewTask, code: Code | None) -> str | None:
    """The same for all tasks that are equal in the sense of `NewTask.unique`; None for one that asks for nothing of that kind.
    Raises `InvalidTask` for a payload that is no JSON."""
    if not task.unique:
        return None
    payload = "null" if task.payload is None else task.payload
    if len(payload) <= COMPARED_BY_VALUE:
        try:
            payload = json.dumps(json.loads(payload), sort_keys=True)
        except (ValueError, RecursionError) as error:
            raise InvalidTask(f"payload is not JSON: {error}") from None
    code_id = str(uuid.UUID(task.code_id)) if code is None else code.id
    return hashlib.sha256(f"{code_id}\n{payload}".encode()).hexdigest()


async def insert_tasks(connection: TrioConnection, insertions: Sequence[Insertion]) -> list[int]:
    """Insert tasks and return their ids in order, those of others that stand for them included. Wants a transaction where one of
    them has a label."""
    await _free_keys(connection, insertions)
    ids: dict[int, int] = {}
    for _ in range(ROUNDS):
        left = {place: each for place, each in enumerate(insertions) if place not in ids}
        cursor = await connection.execute(statements.INSERT_TASKS.encode(), _parameters(list(left.values())))
        inserted = await cursor.fetchall()
        unlabelled = iter(sorted(task_id for task_id, _, key, same in inserted if key is None and same is None))
        ids |= {place: next(unlabelled) for place, each in left.items() if not any(each.labels())}
        ids |= _standing_for(left, inserted)
        missing = [each for place, each in left.items() if place not in ids]
        if missing:
            ids |= _standing_for(left, await _find_earlier(connection, missing))
        if len(ids) == len(insertions):
            return [ids[place] for place in range(len(insertions))]
    raise DatabaseUnavailable("equal tasks came and went too quickly to be found")


def _standing_for(left: dict[int, Insertion], rows: Sequence[tuple[Any, ...]]) -> dict[int, int]:
    """Which of these tasks stand for which of those."""
    known = {("idempotency_key", tenant, key): task_id for task_id, tenant, key, _ in rows if key is not None}
    known |= {("unique_key", tenant, same): task_id for task_id, tenant, _, same in rows if same is not None}
    return {
        place: known[label]
        for place, each in left.items()
        for label in reversed([*each.labels()])  # the first label counts
        if label in known
    }


async def _free_keys(connection: TrioConnection, insertions: Sequence[Insertion]) -> None:
    windows = [
        (task.tenant or "", task.idempotency_key, task.idempotency_window)
        for task, _, _ in insertions
        if task.idempotency_window is not None
    ]
    if windows:
        tenants, keys, seconds = map(list, zip(*windows, strict=True))
        await connection.execute(statements.FREE_KEYS.encode(), {"tenants": tenants, "keys": keys, "windows": seconds})


async def _find_earlier(connection: TrioConnection, missing: Sequence[Insertion]) -> list[tuple[Any, ...]]:
    labels = [label for each in missing for label in each.labels()]
    parameters = {
        "kinds": [kind for kind, _, _ in labels],
        "tenants": [tenant for _, tenant, _ in labels],
        "keys": [key for _, _, key in labels],
    }
    cursor = await connection.execute(statements.FIND_EARLIER.encode(), parameters)
    return await cursor.fetchall()


async def check_dependencies(connection: TrioConnection, tasks: Sequence[NewTask]) -> None:
    """Raise `InvalidTask` where a task depends on one, or on a batch, that is not there, or is another tenant's."""
    wanted = {(task.tenant or "", each) for task in tasks for each in task.depends_on}
    if wanted:
        cursor = await connection.execute(statements.FIND_TASKS.encode(), {"ids": [each for _, each in wanted]})
        if missing := sorted(each for _, each in wanted.difference(await cursor.fetchall())):
            raise InvalidTask(absent(missing[0]))
    if batches := sorted(batches_elsewhere(tasks)):
        parameters = {"tenants": [tenant for tenant, _ in batches], "names": [name for _, name in batches]}
        cursor = await connection.execute(statements.FIND_BATCHES.encode(), parameters)
        if unknown := sorted(set(batches).difference(await cursor.fetchall())):
            raise InvalidTask(empty(unknown[0][1]))


def batches_elsewhere(tasks: Sequence[NewTask]) -> set[tuple[str, str]]:
    """The batches, and whose they are, that tasks depend on and that none of these belongs to."""
    wanted = {(task.tenant or "", task.depends_batch) for task in tasks if task.depends_batch is not None}
    return wanted - {(task.tenant or "", task.batch) for task in tasks if task.batch is not None}


def absent(task_id: int) -> str:
    """What is wrong with a task that depends on one that is not there."""
    return f"depends_on: there is no task {task_id} of the same tenant"


def empty(batch: str) -> str:
    """What is wrong with a task that depends on a batch that has no tasks."""
    return f"depends_batch: there is no task of the batch {batch!r} of the same tenant"


def _array(ids: Sequence[int]) -> str:
    """An array as text: arrays of arrays are no lists of lists to a database."""
    return "{" + ",".join(map(str, dict.fromkeys(ids))) + "}"


def _parameters(insertions: Sequence[Insertion]) -> dict[str, list[Any]]:
    tasks = [each.task for each in insertions]
    distinct = {each.code.id: each.code for each in insertions if each.code is not None}.values()
    return {
        "code_ids": [code.id for code in distinct],
        "scripts": [code.text for code in distinct],
        "requirements": [code.requirements for code in distinct],
        "names": [task.name for task in tasks],
        "descriptions": [task.description for task in tasks],
        "codes": [each.task.code_id if each.code is None else each.code.id for each in insertions],
        "payloads": [task.payload for task in tasks],
        "priorities": [task.priority for task in tasks],
        "max_attempts": [task.max_attempts for task in tasks],
        "timeouts": [task.timeout for task in tasks],
        "run_ats": [task.run_at for task in tasks],
        "tenants": [task.tenant for task in tasks],
        "idempotency_keys": [task.idempotency_key for task in tasks],
        "unique_keys": [each.unique_key for each in insertions],
        "traceparents": [task.traceparent for task in tasks],
        "webhooks": [task.webhook for task in tasks],
        "retries": [task.retry and policy_text(task.retry) for task in tasks],
        "expiries": [task.expires_at for task in tasks],
        "worker_tags": [written(task.worker_tags) for task in tasks],
        "sequence_keys": [task.sequence_key for task in tasks],
        "concurrency_keys": [task.concurrency_key for task in tasks],
        "dependencies": [_array(task.depends_on) if task.depends_on else None for task in tasks],
        "depends_any": [task.depends_any for task in tasks],
        "depends_ended": [task.depends_ended for task in tasks],
        "batches": [task.batch for task in tasks],
        "depends_batch": [task.depends_batch for task in tasks],
    }
