"""Tasks as producers write them down."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from continuum.client.results import NOT_GIVEN, NotGiven
from continuum.client.sources import Script, read_script
from continuum.db.errors import InvalidTask
from continuum.model import NewTask


class CommonOptions(TypedDict, total=False):
    """What may be said of each task beside its script and payload; see `continuum.model.NewTask`.

    timeout: seconds that one attempt may run. requirements: the packages that the script imports, each pinned: the text of a
    requirements file, or its path. webhook: a URL that is told when the task has ended.
    """

    name: str
    description: str | None
    requirements: str | Path | None
    priority: int
    max_attempts: int
    timeout: float | None
    run_at: dt.datetime | None
    tenant: str | None
    traceparent: str | None
    webhook: str | None


class TaskOptions(CommonOptions, total=False):
    """With what is one task's only. idempotency_key: the same key again, of the same tenant, yields the first task."""

    idempotency_key: str | None


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
