"""Dependencies: when a task that waits for others, or for a batch, may begin, when it never will, and what it is told of them.

A dependency is good once it has completed; with `depends_ended`, once it has ended, however. A task waits until all of them are
good; with `depends_any`, until one is. Where that cannot come any more, it is cancelled. One that is not there, or is another
tenant's, has ended, and was not completed; and so has a batch without tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Literal, NamedTuple

from continuum.model import TERMINAL, BatchProgress, Dependency, Status, Told

MOST_DEPENDENCIES = 1000
"""Tasks that one may depend on by their ids, and those of a batch that it is told of."""
OUTPUTS = 4 * 1024 * 1024
"""Characters of output, of all its dependencies together, that a task is given."""

FAILED = TERMINAL - {Status.COMPLETED}

Verdict = Literal[True] | str | None
"""Of a task that waits: True, it may begin; a text, it never may, and why; None, it must wait."""


class Standing(NamedTuple):
    """How a batch stands: for each state that some of its tasks are in the id of one of these; of those that failed, were
    cancelled or refused, the lowest."""

    name: str
    one_of: Mapping[str, int] = {}

    @property
    def unfinished(self) -> bool:
        """Whether some of its tasks have not ended."""
        return not TERMINAL.issuperset(self.one_of)


def judge(
    others: Mapping[int | None, str | None], batch: Standing | None = None, *, any_one: bool, ended_enough: bool
) -> Verdict:
    """Whether a task may begin.

    others: those that it depends on, with their statuses; None for one that is not there. batch: how the batch stands that it
    depends on, if any. any_one, ended_enough: as `NewTask.depends_any` and `depends_ended`.
    """
    statuses: list[str | None] = [*others.values()]
    if batch is not None:
        statuses += [*batch.one_of] or [None]
    unfinished = [each for each in statuses if each is not None and each not in TERMINAL]
    good = [each for each in statuses if each == Status.COMPLETED or (ended_enough and each not in unfinished)]
    bad = len(statuses) - len(good) - len(unfinished)
    if not statuses or (good if any_one else not bad and not unfinished):
        return True
    if unfinished and (any_one or not bad):
        return None
    return f"Not run: {_culprit(others, batch)}"


def _culprit(others: Mapping[int | None, str | None], batch: Standing | None) -> str:
    """What is the matter with those that a task depends on in vain."""
    failed = min((each for each, status in others.items() if status in FAILED and each is not None), default=None)
    if failed is not None:
        return f"task {failed}, which it depends on, {_ENDS[others[failed] or '']}"
    if batch is not None and (members := [(each, status) for status, each in batch.one_of.items() if status in FAILED]):
        member, status = min(members)
        return f"task {member} of the batch {batch.name}, which it depends on, {_ENDS[status]}"
    absent = min((each for each, status in others.items() if status is None and each is not None), default=None)
    if absent is None and None not in others and batch is not None:
        return f"the batch {batch.name}, which it depends on, has no tasks"
    return f"{'a task' if absent is None else f'task {absent}'}, which it depends on, is not there"


_ENDS = {"failed": "failed", "cancelled": "was cancelled", "malicious": "was refused as malicious"}


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


def payload_with(payload: str, told: Told) -> str:
    """The payload of a task that depends on others, as its script gets it: with them under `dependencies`, and how its batch
    stands under `batch`, over what the payload has there; one that is no object stands under `payload`.

    payload: JSON text, which is not read: it may be long. Of two equal keys of an object, readers take the last.
    """
    added = f'"dependencies": {json.dumps([asdict(each) for each in told.dependencies])}'
    if told.batch is not None:
        added += f', "batch": {json.dumps(progress_values(told.batch))}'
    text = payload.strip()
    if text == "null":
        return f"{{{added}}}"
    if not text.startswith("{"):
        return f'{{"payload": {text}, {added}}}'
    inside = text[1:-1].strip()
    return f"{{{inside}, {added}}}" if inside else f"{{{added}}}"


def progress_values(batch: BatchProgress) -> dict[str, str | int]:
    """What is told of a batch, as JSON has it."""
    return {"name": batch.name, "total": batch.total, **asdict(batch)}
