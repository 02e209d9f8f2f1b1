"""What is wrong with a task that a producer wants to submit, found before any SQL is sent."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from types import NoneType

from continuum.db.errors import InvalidLimit, InvalidSchedule, InvalidTask
from continuum.dependencies import MOST_DEPENDENCIES
from continuum.model import Limit, NewTask, Scope
from continuum.requirements import BadRequirements, parse_requirements
from continuum.retry import BadPolicy, RetryPolicy, policy_text
from continuum.schedules import NewSchedule, problems_of
from continuum.tags import tag_problems
from continuum.webhook import LONGEST_URL, parse_url

INTEGER = range(-(2**31), 2**31)
LARGEST = 64 * 1024 * 1024
"""Characters of a text that a worker could still move about: databases would take up to 1 GB, and take their time."""
LONGEST = {
    "name": LARGEST,
    "description": LARGEST,
    "code": LARGEST,
    "payload": LARGEST,
    "tenant": 255,
    "idempotency_key": 255,
    "traceparent": 255,
    "webhook": LONGEST_URL,
    "sequence_key": 255,
    "concurrency_key": 255,
    "batch": 255,
    "depends_batch": 255,
}
"""The texts of a task, with the most characters that each may have; the shorter ones are in indexes."""
NUMBERS: dict[str, tuple[type, ...]] = {
    "priority": (int,),
    "max_attempts": (int,),
    "timeout": (int, float, NoneType),
    "idempotency_window": (int, float, NoneType),
}
FLAGS = ("unique", "depends_any", "depends_ended")
LONGEST_WINDOW = 1e9
"""Seconds."""


def check_new_tasks(tasks: Sequence[NewTask]) -> None:
    """Raise `InvalidTask` with a line for each field that the database could not hold, or a worker not run."""
    problems = [
        f"task {position}: {problem}" if len(tasks) > 1 else problem
        for position, task in enumerate(tasks)
        for problem in _problems(task)
    ]
    if problems:
        raise InvalidTask("\n".join(problems))


def check_new_schedule(schedule: NewSchedule) -> None:
    """Raise `InvalidSchedule` with a line for each field that cannot be used."""
    problems = [*problems_of(schedule), *_problems(schedule.task)]
    if problems:
        raise InvalidSchedule("\n".join(problems))


def _problems(task: NewTask) -> Iterator[str]:
    for name, limit in LONGEST.items():
        yield from (f"{name} {problem}" for problem in _text_problems(getattr(task, name), limit))
    for name, kinds in NUMBERS.items():
        if not isinstance(getattr(task, name), kinds):
            yield f"{name} is of type {type(getattr(task, name)).__name__}; use a {'whole ' if kinds == (int,) else ''}number"
            return
    for name in FLAGS:
        if not isinstance(getattr(task, name), bool):
            yield f"{name} is of type {type(getattr(task, name)).__name__}; use True or False"
    if isinstance(task.payload, str) and holds_nul(task.payload):
        yield "payload holds the escape \\u0000, which JSONB cannot store"
    if task.code is not None and task.code_id is not None:
        yield "give code or code_id, not both"
    if task.code is None and task.code_id is None:
        yield "give code, the script's text, or code_id, the id of a row of CODES"
    if task.code_id is not None and task.requirements is not None:
        yield "requirements belong to the row of CODES that code_id names; give them with code"
    yield from (f"worker_tags: {problem}" for problem in tag_problems(task.worker_tags))
    yield from (f"depends_on {problem}" for problem in _dependency_problems(task))
    yield from _batch_problems(task)
    yield from (f"webhook {problem}" for problem in _url_problems(task.webhook))
    yield from (f"retry {problem}" for problem in _policy_problems(task.retry))
    yield from (f"requirements: {problem}" for problem in _requirements_problems(task.requirements))
    if task.code_id is not None and not is_uuid(task.code_id):
        yield f"code_id {task.code_id!r:.60} is no UUID"
    if task.priority not in INTEGER:
        yield f"priority {task.priority} does not fit an INTEGER column ({INTEGER.start} to {INTEGER.stop - 1})"
    if not 1 <= task.max_attempts < INTEGER.stop:
        yield f"max_attempts {task.max_attempts} is out of range: at least 1"
    if task.timeout is not None and not 0 < task.timeout < float("inf"):
        yield f"timeout {task.timeout} is out of range: seconds, more than 0"
    if task.idempotency_window is not None:
        if not 0 < task.idempotency_window <= LONGEST_WINDOW:
            yield f"idempotency_window {task.idempotency_window} is out of range: seconds, more than 0, at most 1e9"
        if task.idempotency_key is None:
            yield "idempotency_window says for how long an idempotency_key counts; give one"
    for name in ("run_at", "expires_at"):
        if (time := getattr(task, name)) is not None and time.tzinfo is None:
            yield f"{name} has no time zone; use an aware datetime, such as datetime.now(timezone.utc)"


def check_limit(limit: Limit) -> None:
    """Raise `InvalidLimit` with a line for each value that LIMITS cannot hold, or that its scope does not know."""
    problems = [*_limit_problems(limit)]
    if problems:
        raise InvalidLimit("\n".join(problems))


LIMITED = {
    Scope.TENANT: {"weight", "max_running", "rate", "rate_period", "max_pending", "paused"},
    Scope.KEY: {"max_running", "paused"},
    Scope.TAG: {"paused"},
    Scope.CODE: {"paused"},
    Scope.QUEUE: {"max_pending", "paused"},
}
"""What a limit of each scope may say."""


def _limit_problems(limit: Limit) -> Iterator[str]:
    names = ("weight", "max_running", "rate", "rate_period", "max_pending", "paused")
    given = {name for name in names if getattr(limit, name) is not None}
    for name in sorted(given - LIMITED[limit.scope]):
        yield f"{name} is no limit of a {limit.scope}; it may have {', '.join(sorted(LIMITED[limit.scope]))}"
    if not given:
        yield f"it limits nothing: give {' or '.join(sorted(LIMITED[limit.scope]))}"
    yield from (f"name {problem}" for problem in _text_problems(limit.name, 255))
    if (limit.scope is Scope.QUEUE) != (limit.name == "") and not (limit.scope is Scope.TENANT and limit.name == ""):
        yield "name the tenant, key, tag or code; the queue has no name"
    elif limit.scope is Scope.CODE and not is_code_id(limit.name):
        yield f"name {limit.name!r:.60} is no id of a code; `continuum codes list` lists them"
    if limit.weight is not None and not 0 < limit.weight <= 1000:
        yield f"weight {limit.weight:g} is out of range: more than 0, at most 1000"
    if limit.max_running is not None and limit.max_running not in range(10_001):
        yield f"max_running {limit.max_running} is out of range: 0 to 10000"
    if (limit.rate is None) != (limit.rate_period is None):
        yield "a rate is a number of starts in a period: give both"
    if limit.rate is not None and not 0 < limit.rate < INTEGER.stop:
        yield f"rate {limit.rate} is out of range: at least 1"
    if limit.rate_period is not None and not 0 < limit.rate_period <= 604_800:
        yield f"rate_period {limit.rate_period:g} is out of range: more than 0 s, at most a week"
    if limit.max_pending is not None and limit.max_pending not in range(INTEGER.stop):
        yield f"max_pending {limit.max_pending} is out of range: at least 0"


def holds_nul(payload: str) -> bool:
    """Whether a JSON text has a NUL in one of its texts."""
    return "\\u0000" in payload and "\\u0000" in payload.replace("\\\\", "")


def _text_problems(text: object, limit: int) -> Iterator[str]:
    if text is None:
        return
    if not isinstance(text, str):
        yield f"is of type {type(text).__name__}; use a text"
        return
    if len(text) > limit:
        yield f"has {len(text)} characters; at most {limit} are allowed"
    if "\x00" in text:
        yield f"holds a NUL character at position {text.index(chr(0))}; a database text cannot"
    try:
        text.encode()  # at once: a look at each character of a large text would hold the event loop for a second
    except UnicodeEncodeError:
        yield "holds a lone surrogate; it is no valid Unicode text"


def _dependency_problems(task: NewTask) -> Iterator[str]:
    ids = task.depends_on
    if not isinstance(ids, tuple | list) or not all(type(each) is int for each in ids):
        yield f"is {ids!r:.60}; use a tuple of ids"
        return
    if len(ids) > MOST_DEPENDENCIES:
        yield f"has {len(ids)} ids; at most {MOST_DEPENDENCIES} are allowed"
    if unknown := [each for each in ids if not 0 < each < 2**63]:
        yield f"names {unknown[0]}, which is no id of a task"


def _batch_problems(task: NewTask) -> Iterator[str]:
    for name in ("batch", "depends_batch"):
        if getattr(task, name) == "":
            yield f"{name} is empty; give a name, or None"
    if task.depends_batch is not None and task.depends_batch == task.batch:
        yield f"depends_batch names its own batch {task.batch!r:.60}; a task cannot wait for itself"


def _url_problems(url: object) -> Iterator[str]:
    if isinstance(url, str) and len(url) <= LONGEST_URL:  # what is none has been told
        try:
            parse_url(url)
        except ValueError as error:
            yield str(error)


def _requirements_problems(requirements: object) -> Iterator[str]:
    if requirements is None:
        return
    if not isinstance(requirements, str):
        yield f"are of type {type(requirements).__name__}; use a text, one requirement a line"
        return
    try:
        parse_requirements(requirements)
    except BadRequirements as error:
        yield str(error)


def _policy_problems(policy: object) -> Iterator[str]:
    if policy is None:
        return
    if not isinstance(policy, RetryPolicy):
        yield f"is of type {type(policy).__name__}; use a RetryPolicy"
        return
    try:
        policy_text(policy)
    except BadPolicy as error:
        yield f"cannot be used: {error}"


def is_code_id(text: str) -> bool:
    """Whether a text is an id of CODES as the database writes it: two that differ in letters' case would be one code."""
    return is_uuid(text) and str(uuid.UUID(text)) == text


def is_uuid(text: str) -> bool:
    """Whether a text can stand for an id of CODES."""
    try:
        uuid.UUID(text)
    except (ValueError, AttributeError, TypeError):
        return False
    return True
