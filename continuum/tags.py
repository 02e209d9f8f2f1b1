"""Tags: what a worker has that tasks may ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import combinations

MOST_TAGS = 6
"""A worker takes what asks for any set of its tags, and there are two to the power of their number."""
TAG = "^[A-Za-z0-9_.:-]{1,50}$"


def tag_problems(tags: object) -> Iterator[str]:
    """What is wrong with the tags of a task or a worker."""
    if not isinstance(tags, tuple | list):
        yield f"is of type {type(tags).__name__}; use a list of texts"
        return
    for tag in tags:
        if not isinstance(tag, str) or not re.fullmatch(TAG[1:-1], tag):
            yield f"{tag!r:.60} is no tag: use 1 to 50 letters, digits and any of _.:-"
    if len(set(tags)) > MOST_TAGS:
        yield f"{len(tags)} are too many: use at most {MOST_TAGS}"


def parse_tags(entries: Iterable[str]) -> tuple[str, ...]:
    """Read tags such as WORKER_TAGS lists. Raises ValueError, with a text that names the tag."""
    tags = tuple(sorted({entry.strip() for entry in entries}))
    for problem in tag_problems(tags):
        raise ValueError(problem)
    return tags


PAUSED = "!"
"""No tag begins so. While a code is paused, its tasks ask for a tag that no worker has: this and the code's id. So they are out
of the way of every claim, in the index where they were."""
AFTER_PAUSED = chr(ord(PAUSED) + 1)


def paused_tag(code_id: str) -> str:
    """What the tasks of a paused code ask for."""
    return PAUSED + code_id


def paused_code(worker_tags: str) -> str:
    """The id of the code for which tasks ask for these tags."""
    return worker_tags.removeprefix(PAUSED).partition(",")[0]


def behind(tag: str) -> str:
    """The first text behind what begins with a tag, alone or with others after it."""
    return tag + chr(ord(",") + 1)


def read_tags(worker_tags: str) -> tuple[str, ...]:
    """The tags that a task's worker must have, from what TASKS has."""
    return tuple(tag for tag in worker_tags.split(",") if tag and not tag.startswith(PAUSED))


def written(tags: Iterable[str]) -> str:
    """Tags as TASKS has them in `worker_tags`: sorted, with commas between them."""
    return ",".join(sorted(set(tags)))


def sets_of(tags: Iterable[str]) -> list[str]:
    """What tasks may ask of a worker with these tags, as TASKS has it: nothing, or any set of them."""
    known = sorted(set(tags))
    return [",".join(some) for size in range(len(known) + 1) for some in combinations(known, size)]
