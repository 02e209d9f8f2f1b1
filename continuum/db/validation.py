"""What is wrong with a task that a producer wants to submit, found before any SQL is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from continuum.db.errors import InvalidTask
from continuum.model import NewTask

INTEGER = range(-(2**31), 2**31)


def check_new_tasks(tasks: Sequence[NewTask]) -> None:
    """Raise `InvalidTask` with a line for each field that the database could not hold, or a worker not run."""
    problems = [
        f"task {position}: {problem}" if len(tasks) > 1 else problem
        for position, task in enumerate(tasks)
        for problem in _problems(task)
    ]
    if problems:
        raise InvalidTask("\n".join(problems))


def _problems(task: NewTask) -> Iterator[str]:
    for name in ("name", "description", "code", "payload", "tenant", "idempotency_key"):
        text = getattr(task, name)
        if text is not None and "\x00" in text:
            yield f"{name} holds a NUL character at position {text.index(chr(0))}; a database text cannot"
        if text is not None and not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            yield f"{name} holds a lone surrogate; it is no valid Unicode text"
    if task.payload is not None and "\\u0000" in task.payload.replace("\\\\", ""):
        yield "payload holds the escape \\u0000, which JSONB cannot store"
    if task.code is not None and task.code_id is not None:
        yield "give code or code_id, not both"
    if task.code is None and task.code_id is None:
        yield "give code, the script's text, or code_id, the id of a row of CODES"
    if task.priority not in INTEGER:
        yield f"priority {task.priority} does not fit an INTEGER column ({INTEGER.start} to {INTEGER.stop - 1})"
    if not 1 <= task.max_attempts < INTEGER.stop:
        yield f"max_attempts {task.max_attempts} is out of range: at least 1"
    if task.timeout is not None and not 0 < task.timeout < float("inf"):
        yield f"timeout {task.timeout} is out of range: seconds, more than 0"
    if task.run_at is not None and task.run_at.tzinfo is None:
        yield "run_at has no time zone; use an aware datetime, such as datetime.now(timezone.utc)"
