"""From a row of a result to a value of the model. `statements` selects the fields of each in their order."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from continuum.model import (
    AttemptRecord,
    ClaimedTask,
    DeadLetterPage,
    DeadLetterPlace,
    EndedTask,
    FailureGroup,
    RunningTask,
    TaskRecord,
    TaskSummary,
    WebhookDelivery,
)
from continuum.retry import attempts_of
from continuum.tags import read_tags

Row = tuple[Any, ...]


def claimed_task(row: Row) -> ClaimedTask:
    """A row of the claim."""
    return ClaimedTask(*in_utc(row))


def task_record(row: Row) -> TaskRecord:
    """A row of `FETCH`."""
    values = in_utc(row)
    record = TaskRecord(*values)
    return replace(
        record,
        history=tuple(_attempt(each) for each in record.history or ()),  # type: ignore[arg-type]
        worker_tags=read_tags(record.worker_tags),  # type: ignore[arg-type]
        max_attempts=attempts_of(record.retry, record.max_attempts),
        depends_on=tuple(each for each in record.depends_on or () if each is not None),
    )


def task_summary(row: Row) -> TaskSummary:
    """A row of a search."""
    *values, policy = in_utc(row)
    summary = TaskSummary(*values)
    return replace(summary, max_attempts=attempts_of(policy, summary.max_attempts))


def dead_letter_page(found: list[Row], most: int) -> DeadLetterPage:
    """The rows of `statements.dead_letters`, which looks at so many at most."""
    tasks = [(task_summary(row[:-1]), row[-1]) for row in found]
    last = tasks[-1][0] if len(tasks) == most else None
    place = DeadLetterPlace(last.finished, last.id) if last and last.finished else None
    return DeadLetterPage(tuple(task for task, fits in tasks if fits), place)


def running_task(row: Row) -> RunningTask:
    """A row of `RUNNING`."""
    return RunningTask(*in_utc(row))


def ended_task(row: Row) -> EndedTask:
    """A row of `ended`."""
    return EndedTask(*in_utc(row))


def failure_group(row: Row) -> FailureGroup:
    """A row of `FAILURES`."""
    error, count, newest_id, newest_at, first, last = in_utc(row)
    return FailureGroup(error, count, newest_id, newest_at, (first,) if first == last else (first, last))


def webhook_delivery(row: Row) -> WebhookDelivery:
    """A row of `CLAIM_WEBHOOKS`."""
    return WebhookDelivery(*in_utc(row))


def _attempt(values: dict[str, Any]) -> AttemptRecord:
    times = {
        name: dt.datetime.fromisoformat(values[name]).replace(tzinfo=dt.UTC) if values[name] else None
        for name in ("started", "ended")
    }
    return AttemptRecord(**(values | times))


def in_utc(row: Row) -> list[Any]:
    """The values, with times in UTC: the server gives them in the session's time zone."""
    return [value.astimezone(dt.UTC) if isinstance(value, dt.datetime) else value for value in row]
