"""Whether and when a task is tried again after an attempt that failed: its retry policy, which is JSON.

A task's own policy is in TASKS.retry, that of all tasks of a script in CODES.retry; the task's own is the one that counts. Rows
are written by anybody, so that a policy is read when it is needed, and one that cannot be read means that nothing is repeated.
"""

from __future__ import annotations

import enum
import json
import random
import re
from inspect import cleandoc
from typing import Annotated, Any, NamedTuple

import msgspec

LONGEST_DELAY = 30 * 86400.0
"""Seconds."""
MOST_DELAYS = 100
LONGEST_TEXT = 10_000
"""Characters of a policy."""

_Delay = Annotated[float, msgspec.Meta(ge=0, le=LONGEST_DELAY)]
_EXIT_CODES = re.compile(r"(\d{1,3})-(\d{1,3})", re.ASCII)
_CODE = "([1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])"


class Cause(enum.StrEnum):
    """What an attempt failed of, as `RetryPolicy.on` names it."""

    EXIT = "exit"
    """The script ended with an exit code other than 0, or by a signal."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    """It ran out of memory."""
    ENGINE = "engine"
    """Nothing that the script did, as far as is known: its sandbox or its worker was lost, or what it requires not installed."""


_ITEM = {
    "anyOf": [
        {"enum": list(Cause)},
        {"type": "integer", "minimum": 1, "maximum": 255},
        {"type": "string", "pattern": f"^{_CODE}-{_CODE}$"},
    ]
}
"""JSON Schema of an item of `RetryPolicy.on`, to the letter."""


class BadPolicy(ValueError):
    """A retry policy that cannot be read; the message names the field."""


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a task is tried again. Without any values it is how tasks are tried that have no policy.

    max_attempts: how often it is tried, over the task's own `max_attempts`; None leaves it to that.
    base, factor, cap: seconds before the second try, by what each wait is longer than the one before, the longest wait.
    delays: seconds before the second try, the third and so on, instead of these; the last one is used from there on.
    jitter: the part of a wait by which it is shortened or lengthened at random, so that what failed together does not come back
    together.
    on: what is tried again: `exit`, `timeout`, `memory`, `engine` (see `Cause`); single exit codes, and ranges of them ("64-78")
    where not each exit code is.
    """

    max_attempts: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None
    base: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_DELAY)] = 1.0
    factor: Annotated[float, msgspec.Meta(ge=1, le=100)] = 2.0
    cap: _Delay = 300.0
    delays: Annotated[tuple[_Delay, ...], msgspec.Meta(max_length=MOST_DELAYS)] = ()
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    on: tuple[int | str, ...] = tuple(Cause)

    def __post_init__(self) -> None:
        for each in self.on:
            _exit_codes(each)

    def delay(self, tried: int, luck: float) -> float:
        """Seconds to wait after `tried` tries (1 is the first) have failed.

        luck: from -1 to 1, where within the jitter to land.
        """
        if self.delays:
            wait = self.delays[min(tried, len(self.delays)) - 1]
        else:
            try:
                wait = min(self.cap, self.base * self.factor ** (tried - 1))
            except OverflowError:
                wait = self.cap
        return wait * (1 + self.jitter * luck)

    def covers(self, cause: Cause, exit_code: int | None = None) -> bool:
        """Whether what failed so is tried again."""
        if cause in self.on:
            return True
        return cause is Cause.EXIT and any(exit_code in _exit_codes(each) for each in self.on)


class Verdict(NamedTuple):
    """What is to become of a task after an attempt that failed. retry_in: seconds, None when it is not tried again. note: a line
    for `last_error`, where there is more to be said than what it failed of."""

    retry_in: float | None
    note: str = ""


def judge(policy: str | None, max_attempts: int, tried: int, cause: Cause, exit_code: int | None = None) -> Verdict:
    """What a policy, JSON text, says after `tried` tries. One that cannot be read says that nothing is tried again: it may have
    been written to keep just that from happening."""
    try:
        read = parse_policy(policy) if policy else _DEFAULT
    except BadPolicy as error:
        return Verdict(None, f"Not tried again: its retry policy cannot be read: {error}")
    if tried >= (read.max_attempts or max_attempts) or not read.covers(cause, exit_code):
        return Verdict(None)
    return Verdict(read.delay(tried, random.uniform(-1, 1)))  # noqa: S311 - jitter


ALONE = 1.0
SHARED = 0.5
"""What a lost sandbox or worker counts against the task that it ran, and against each of several: of these most are innocent, and
nobody knows which one is not."""


def is_poison(crashes: float, quarantine_after: int) -> bool:
    """Whether a task that has so much against it is not to be tried again. quarantine_after: QUARANTINE_AFTER, 0 for never."""
    return 0 < quarantine_after <= crashes


class Loss(NamedTuple):
    """What is to become of a task whose worker was lost. crashes: by how much the task's grow."""

    verdict: Verdict
    crashes: float
    quarantined: bool


def judge_loss(
    task_id: int,
    policy: str | None,
    max_attempts: int,
    tried: int,
    crashes: float,
    held: int | None,
    quarantine_after: int,
) -> Loss:
    """crashes: what the task has against it already. held: how many tasks its worker ran; None where it ended in order."""
    more = 0.0 if held is None else ALONE if held <= 1 else SHARED
    if more and is_poison(crashes + more, quarantine_after):
        return Loss(Verdict(None, quarantine_note(task_id)), more, True)
    return Loss(judge(policy, max_attempts, tried, Cause.ENGINE), more, False)


QUARANTINED = "Quarantined: "
"""What `last_error` of a task in quarantine begins with: before what it failed of."""


def quarantine_note(task_id: int) -> str:
    """The line that explains it."""
    return f"It took down what ran it time and again, and is not tried again; `continuum retry {task_id}` lets it out."


def attempts_of(policy: str | None, max_attempts: int) -> int:
    """How often a task is tried under a policy, which may be none that can be read."""
    try:
        return (policy and parse_policy(policy).max_attempts) or max_attempts
    except BadPolicy:
        return max_attempts


def parse_policy(text: str) -> RetryPolicy:
    """Read a policy. Raises `BadPolicy`."""
    if len(text) > LONGEST_TEXT:
        raise BadPolicy(f"it has {len(text)} characters; at most {LONGEST_TEXT} are allowed")
    try:
        return msgspec.convert(json.loads(text, parse_float=_number), RetryPolicy)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        raise BadPolicy(f"{place.strip('.`')}: {problem}" if place.strip(".`") else problem) from None
    except (ValueError, RecursionError) as error:
        raise BadPolicy(f"it is no JSON: {error}") from None


def _number(text: str) -> float | int:
    """JSON has one kind of numbers: 5.0 is a whole one, too."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def policy_text(policy: RetryPolicy) -> str:
    """A policy as JSON text. Raises `BadPolicy` for values that it cannot have."""
    try:
        text = msgspec.json.encode(policy).decode()
    except (TypeError, ValueError, OverflowError) as error:
        raise BadPolicy(str(error)) from None
    parse_policy(text)
    return text


def _exit_codes(given: int | str) -> range:
    """The exit codes that an item of `on` names: none, where it is a word. Raises ValueError for what is neither."""
    if isinstance(given, int):
        found = range(given, given + 1)
    elif given in tuple(Cause):
        return range(0)
    elif ends := isinstance(given, str) and _EXIT_CODES.fullmatch(given):
        low, high = sorted(map(int, ends.groups()))
        found = range(low, high + 1)
    else:
        found = range(0)
    if not found or found.start < 1 or found.stop > 256:
        raise ValueError(
            f"on: {given!r:.40} is none of {', '.join(Cause)}, an exit code from 1 to 255, or a range such as '64-78'"
        )
    return found


def policy_schema() -> dict[str, Any]:
    """JSON Schema of a policy."""
    _, components = msgspec.json.schema_components([RetryPolicy])
    schema: dict[str, Any] = components["RetryPolicy"]
    schema["properties"]["on"]["items"] = _ITEM
    return schema | {"title": "RetryPolicy", "description": cleandoc(schema["description"])}


_DEFAULT = RetryPolicy()
