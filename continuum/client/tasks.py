"""Tasks as producers write them down."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from continuum.client.results import NOT_GIVEN, NotGiven
from continuum.client.sources import Script, read_script
from continuum.db.errors import InvalidTask
from continuum.model import NewTask
from continuum.retry import RetryPolicy

X = TypeVar("X")

SUBMIT_BATCH = 1000
SUBMIT_SIZE = 16 * 1024 * 1024
"""Tasks in one transaction, and characters of payload and code in them; larger lists are split."""


class CommonOptions(TypedDict, total=False):
    """What may be said of each task beside its script and payload; see `continuum.model.NewTask`.

    timeout: seconds that one attempt may run. requirements: the packages that the script imports, each pinned: the text of a
    requirements file, or its path. webhook: a URL that is told when the task has ended. retry: whether and when it is tried
    again. sequence_key: in the order of submission, one after another. concurrency_key: so many at a time as LIMITS says, or one.
    depends_on: ids of tasks that must have completed before; one that fails cancels it. depends_any: one of them is enough.
    depends_ended: it is enough that they have ended. batch: the batch that it belongs to, any name. depends_batch: one that it
    depends on, with all tasks that are in it. worker_tags: what its worker must have (WORKER_TAGS).
    """

    name: str
    description: str | None
    requirements: str | Path | None
    priority: int
    max_attempts: int
    timeout: float | None
    run_at: dt.datetime | None
    expires_at: dt.datetime | None
    tenant: str | None
    traceparent: str | None
    webhook: str | None
    retry: RetryPolicy | None
    sequence_key: str | None
    concurrency_key: str | None
    depends_on: Sequence[int]
    depends_any: bool
    depends_ended: bool
    batch: str | None
    depends_batch: str | None
    worker_tags: tuple[str, ...]


class TaskOptions(CommonOptions, total=False):
    """With what is one task's only. idempotency_key: the same key again, of the same tenant, yields the first task, for so many
    seconds as idempotency_window says, or without end. unique: while an equal task has not begun, this one is that one."""

    idempotency_key: str | None
    idempotency_window: float | None
    unique: bool


class RunOptions(TaskOptions, total=False):
    """What else may be said of one that is waited for.

    seconds: how long to wait; without end by default. cancel_on_exit: whether a wait that is cancelled, or over, cancels the
    task. By default it does, as it ends a function that is called; a task with an `idempotency_key` goes on, because the next run
    with the same key finds it, and so does a `unique` one, which may be somebody else's, too.
    """

    seconds: float | None
    cancel_on_exit: bool | None


class MapOptions(CommonOptions, Generic[X], total=False):
    """What else may be said of many.

    in_flight: at most so many are submitted and have not ended. progress: shows a bar at a terminal or in a notebook.
    idempotency_key: makes a payload's key, by which a program that is started again finds the tasks of the first time.
    cancel_on_exit: as for one.
    """

    in_flight: int
    progress: bool
    idempotency_key: Callable[[X], str] | None
    cancel_on_exit: bool | None


def new_task(code: str | Path, payload: object = NOT_GIVEN, **options: Unpack[TaskOptions]) -> NewTask:
    """A task that runs a script with `payload` (anything that JSON can hold).

    code: the script's text, or the path of its file; a text of one line that ends in `.py` is a path. What its `# /// script`
    block requires is required, unless `requirements` are given.

    Raises `InvalidTask` for a payload that is no JSON, OSError for a file that cannot be read.
    """
    requirements = options.pop("requirements", None)
    script = read_script(code, requirements)
    return task_of(script, script.text, payload, options)


def task_of(script: Script, text: str, payload: object, options: Mapping[str, Any]) -> NewTask:
    """text: what is shipped of the script. options: `TaskOptions` without the requirements."""
    encoded = None if isinstance(payload, NotGiven) else json_of(payload, "payload")
    return NewTask(code=text, payload=encoded, requirements=script.requirements, **options)


def json_of(value: object, called: str) -> str:
    """Raises `InvalidTask`, which says what it is `called`, for what JSON cannot hold."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTask(f"{called} is not JSON: {error}") from None


def batches_of(tasks: Iterable[NewTask]) -> Iterator[list[NewTask]]:
    """Tasks in lists that are fit for one transaction each."""
    batch: list[NewTask] = []
    size = 0
    for task in tasks:
        added = sum(len(text) for text in (task.payload, task.code, task.requirements) if isinstance(text, str))
        if batch and (len(batch) == SUBMIT_BATCH or size + added > SUBMIT_SIZE):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += added
    if batch:
        yield batch
