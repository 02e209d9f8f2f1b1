"""From what somebody looks for to the conditions and parameters of `statements.search`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from continuum.model import DeadLetterFilter, DeadLetterPlace, TaskFilter

LARGEST_ID = 2**63 - 1
NEWEST = DeadLetterPlace(dt.datetime(9999, 1, 1, tzinfo=dt.UTC), LARGEST_ID)
"""Where a look at failed tasks begins."""
MOST = 1000
"""Tasks on one page at most."""

Parameters = dict[str, Any]


def conditions(wanted: TaskFilter) -> Iterator[Parameters]:
    """The conditions to try one after the other until something is found, each with its value: digits are an id first, and then a
    part of a name."""
    common = {
        "statuses": sorted(wanted.statuses) or None,
        "tenant": wanted.tenant,
        "worker_id": wanted.worker_id,
        "error": wanted.error,
        "since": wanted.since,
        "quarantined": wanted.quarantined or None,
        "batch": wanted.batch,
    }
    given = {name: value for name, value in common.items() if value is not None}
    text = wanted.text.strip()
    if text.isascii() and text.isdecimal() and int(text) <= LARGEST_ID:
        yield given | {"id": int(text)}
    yield given | ({"name": part_of(text)} if text else {})


def dead_letter_conditions(wanted: DeadLetterFilter) -> Parameters:
    """The conditions of `statements.dead_letters`, each with its value."""
    values = {
        "tenant": wanted.tenant,
        "name": None if wanted.name is None else f"%{_literally(wanted.name)}%",
        "error": wanted.error,
        "code_id": wanted.code_id,
        "since": wanted.since,
    }
    return {name: value for name, value in values.items() if value is not None}


def bounds(wanted: TaskFilter) -> Parameters:
    """Where a page begins and how long it is."""
    return {
        "before": LARGEST_ID if wanted.before is None else wanted.before,
        "limit": max(1, min(wanted.limit, MOST)),
    }


def part_of(text: str) -> str:
    """A pattern for ILIKE that finds a text anywhere."""
    return f"%{_literally(text)}%"


def _literally(text: str) -> str:
    """A text for LIKE in which nothing stands for anything else."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("\0", "")
