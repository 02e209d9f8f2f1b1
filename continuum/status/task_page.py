"""One task as its page shows it."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import dataclass

from continuum.model import CodeRecord, Status, TaskRecord
from continuum.nursery.progress import CHARACTERS_PER_SECOND, INTERVAL
from continuum.status.views import CONTENT_LIMIT

LINES = 3000
"""Lines of code that are shown."""
_LINE_BREAK = re.compile("\r\n|\r|\n")
_IN_SCRIPT = re.compile(r'File "[^"\n]*script\.py", line (\d+)')
"""Where a traceback names a line of the task's own code."""


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt in the timeline. ended: None while it runs. seconds: how long it took."""

    attempt: int
    worker: str | None
    started: dt.datetime | None
    ended: dt.datetime | None
    ending: str
    exit_code: int | None = None
    message: str = ""

    @property
    def seconds(self) -> float | None:
        return (self.ended - self.started).total_seconds() if self.ended and self.started else None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text, or what is shown of it. left_out: characters that are not."""

    text: str
    left_out: int = 0


def attempts(task: TaskRecord) -> list[Try]:
    """The attempts of a task, the newest first: those that its row remembers, and the one that it tells of itself."""
    told = [
        Try(one.attempt, one.worker, one.started, one.ended, one.ending, one.exit_code, one.message or "")
        for one in task.history
    ]
    if task.status == Status.PROCESSING:
        told.append(Try(task.attempt, task.worker_id, task.started, None, "running"))
    elif task.status == Status.COMPLETED:
        told.append(Try(task.attempt, task.worker_id, task.started, task.finished, "completed", task.exit_code))
    return told[::-1]


def pause_for(task: TaskRecord) -> float:
    """Seconds until it is worth while to read it again: workers show a longer output less often, too."""
    size = len(task.output or "") + len(task.error_output or "")
    return max(INTERVAL, size / CHARACTERS_PER_SECOND)


def start_of(text: str | None) -> Excerpt | None:
    """The first CONTENT_LIMIT characters."""
    if text is None:
        return None
    return Excerpt(text[:CONTENT_LIMIT], max(0, len(text) - CONTENT_LIMIT))


def end_of(text: str | None) -> Excerpt | None:
    """The last CONTENT_LIMIT characters: where what went wrong stands."""
    if not text:
        return None
    left_out = max(0, len(text) - CONTENT_LIMIT)
    return Excerpt(text[left_out:], left_out)


def payload_of(task: TaskRecord) -> Excerpt | None:
    """The payload, indented where it is short enough to be read."""
    if task.payload is None or len(task.payload) > CONTENT_LIMIT // 4:
        return start_of(task.payload)
    try:
        return Excerpt(json.dumps(json.loads(task.payload), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        return start_of(task.payload)


@dataclass(frozen=True, slots=True)
class Listing:
    """Code by lines. left_out: lines that are not shown. culprit: the line that the traceback names last, counted from 1."""

    lines: tuple[str, ...]
    left_out: int
    culprit: int | None
    requirements: str | None


def listing(task: TaskRecord, code: CodeRecord) -> Listing:
    total = len(_LINE_BREAK.findall(code.code)) + (not code.code.endswith(("\n", "\r")))
    shown = _LINE_BREAK.split(code.code[:CONTENT_LIMIT])[: min(total, LINES)]
    return Listing(tuple(shown), total - len(shown), culprit(task), code.requirements)


def culprit(task: TaskRecord) -> int | None:
    """The line of the task's code at which its last error was raised; None where none is known."""
    for text in (task.last_error, task.error_output):
        named = _IN_SCRIPT.findall((text or "")[-CONTENT_LIMIT:])
        if named:
            return int(named[-1][:9])
    return None
