"""From a row of a result to a value of the model. `statements` selects the fields of each in their order."""

from __future__ import annotations

import datetime as dt
from typing import Any

from continuum.model import ClaimedTask, TaskRecord

Row = tuple[Any, ...]


def claimed_task(row: Row) -> ClaimedTask:
    """A row of the claim."""
    return ClaimedTask(*_in_utc(row))


def task_record(row: Row) -> TaskRecord:
    """A row of `FETCH`."""
    return TaskRecord(*_in_utc(row))


def _in_utc(row: Row) -> list[Any]:
    """The values, with times in UTC: the server gives them in the session's time zone."""
    return [value.astimezone(dt.UTC) if isinstance(value, dt.datetime) else value for value in row]
