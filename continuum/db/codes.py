"""The rows of CODES that submitted tasks bring along: equal scripts that require the same share one."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from continuum.model import NewTask
from continuum.requirements import parse_requirements

CODE_NAMESPACE = uuid.UUID("6f1d2a9c-0a52-5d7e-9a53-0f3d51c0de00")
"""For the UUIDv5 that is a row's id."""


@dataclass(frozen=True, slots=True)
class Code:
    """One row. requirements: in their normal form, so that equal lists make equal rows; None when there are none."""

    id: str
    text: str
    requirements: str | None


def code_of(task: NewTask) -> Code | None:
    """The row for a task that was found to be valid; None for one that names a row itself."""
    if task.code is None:
        return None
    requirements = parse_requirements(task.requirements or "").text or None
    # Neither text can hold a NUL, so that no two different pairs make the same name.
    name = task.code if requirements is None else f"{task.code}\0{requirements}"
    return Code(str(uuid.uuid5(CODE_NAMESPACE, name)), task.code, requirements)
