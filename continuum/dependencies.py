"""Dependencies: when a task that waits for others may begin, when it never will, and what it is told of them.

A dependency is good once it has completed; with `depends_ended`, once it has ended, however. A task waits until all of them are
good; with `depends_any`, until one is. Where that cannot come any more, it is cancelled. One that is not there, or is another
tenant's, has ended, and was not completed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from continuum.model import TERMINAL, Dependency, Status

MOST_DEPENDENCIES = 1000
"""Tasks that one may depend on."""
OUTPUTS = 4 * 1024 * 1024
"""Characters of output, of all its dependencies together, that a task is given."""

FAILED = TERMINAL - {Status.COMPLETED}

Verdict = Literal[True] | str | None
"""Of a task that waits: True, it may begin; a text, it never may, and why; None, it must wait."""


def judge(others: Mapping[int | None, str | None], *, any_one: bool, ended_enough: bool) -> Verdict:
    """Whether a task may begin.

    others: those that it depends on, with their statuses; None for one that is not there. any_one, ended_enough: as
    `NewTask.depends_any` and `depends_ended`.
    """
    unfinished = [each for each, status in others.items() if status is not None and status not in TERMINAL]
    good = [
        each
        for each, status in others.items()
        if status == Status.COMPLETED or (ended_enough and each not in unfinished)
    ]
    bad = len(others) - len(good) - len(unfinished)
    if not others or (good if any_one else not bad and not unfinished):
        return True
    if unfinished and (any_one or not bad):
        return None
    culprit = min((each for each, status in others.items() if status in FAILED and each is not None), default=None)
    if culprit is not None:
        return f"Not run: task {culprit}, which it depends on, {_ENDS[others[culprit] or '']}"
    absent = min((each for each, status in others.items() if status is None and each is not None), default=None)
    return f"Not run: {'a task' if absent is None else f'task {absent}'}, which it depends on, is not there"


_ENDS = {"failed": "failed", "cancelled": "was cancelled", "malicious": "was refused as malicious"}


def is_later(other: int | None, task_id: int, status: str | None) -> bool:
    """Whether a task waits for one with an id that is not below its own, as one does in each circle."""
    return other is not None and other >= task_id and status is not None and status not in TERMINAL


def circle(later: int) -> str:
    """Why a task of a circle is cancelled; which of those that it waits for waits for it."""
    return f"Not run: it depends on task {later}, which waits for this one"


def fitting(ids: Iterable[int], sizes: Mapping[int, int]) -> list[int]:
    """Of which dependencies a task is given the outputs. ids: in order. sizes: of the outputs of those that have ended, in
    characters."""
    room, fit = OUTPUTS, []
    for each in dict.fromkeys(ids):
        room -= sizes.get(each, 0)
        if room < 0:
            break
        if each in sizes:
            fit.append(each)
    return fit


def told(
    ids: Iterable[int], found: Mapping[int, tuple[str, str, int | None]], outputs: Mapping[int, str | None]
) -> list[Dependency]:
    """What a task is told. found: name, status and exit code of those that are there. outputs: those that fit."""
    return [
        Dependency(each, *found[each], outputs.get(each), found[each][1] in TERMINAL and each not in outputs)
        if each in found
        else Dependency(each, "", "missing")
        for each in ids
    ]


def payload_with(payload: str, dependencies: Sequence[Dependency]) -> str:
    """The payload of a task that depends on others, as its script gets it: with them under `dependencies`, over what the payload
    has there; one that is no object stands under `payload`.

    payload: JSON text, which is not read: it may be long. Of two equal keys of an object, readers take the last.
    """
    told = f'"dependencies": {json.dumps([asdict(each) for each in dependencies])}'
    text = payload.strip()
    if text == "null":
        return f"{{{told}}}"
    if not text.startswith("{"):
        return f'{{"payload": {text}, {told}}}'
    inside = text[1:-1].strip()
    return f"{{{inside}, {told}}}" if inside else f"{{{told}}}"
