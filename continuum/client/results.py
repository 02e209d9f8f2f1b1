"""The result of a task: the JSON in the last line of its output that is not empty."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from continuum.client.errors import BadResult, failure_of
from continuum.client.sources import COMPLAINT, Script
from continuum.model import Status, TaskRecord

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LONGEST_SHOWN = 200
"""Characters of a line that is no result which a message quotes."""
_CUT = "[output cut: "


class NotGiven:
    """Tells a None that was given from nothing at all."""


NOT_GIVEN = NotGiven()


def decoder(returns: object = NOT_GIVEN, script: Script | None = None) -> Callable[[TaskRecord], Any]:
    """A function that takes a task that has ended for its result, or raises `TaskError`.

    returns: NOT_GIVEN takes whatever JSON there is, and None where there is none; None looks for nothing; a type (anything that
    pydantic's TypeAdapter takes) is what the result must be, and becomes. Raises TypeError for what is no such type.
    """
    adapter = None if returns is None or isinstance(returns, NotGiven) else adapter_for(returns)

    def decode(record: TaskRecord) -> Any:
        if record.status != Status.COMPLETED:
            raise failure_of(record, script)
        if returns is None:
            return None
        line = last_line(record.output or "")
        _look_for_complaints(record, line)
        if adapter is not None:
            return _validated(record, line, adapter, returns)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return None

    return decode


def last_line(text: str) -> str:
    """The last line with something in it. JSON may hold what else counts as the end of a line."""
    return text.rstrip(" \t\r\n").rpartition("\n")[2]


def adapter_for(kind: object) -> TypeAdapter[Any]:
    """What validates values of a type. Raises TypeError, with pydantic's reason, for what it cannot validate."""
    try:
        return _cached_adapter(kind)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _new_adapter(kind)


def _new_adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

    try:
        return TypeAdapter(kind)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"{name_of(kind)} is no type that a result can be checked for: {reason}") from None


_cached_adapter = lru_cache(maxsize=64)(_new_adapter)


def name_of(kind: object) -> str:
    """A type as a person would write it."""
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


def _look_for_complaints(record: TaskRecord, line: str) -> None:
    if line.startswith(_CUT):
        raise BadResult(
            f"task {record.id} completed, but its result was lost: {line[1:-1]}; print less, or raise OUTPUT_LIMIT",
            record,
        )
    for complaint in reversed((record.error_output or "").rsplit("\n", 20)):
        if complaint.startswith(COMPLAINT):
            raise BadResult(
                f"task {record.id} completed, but its global `result` cannot be JSON: {complaint.removeprefix(COMPLAINT)}; "
                "make it plain, give it another name, or say returns=None",
                record,
            )


def _validated(record: TaskRecord, line: str, adapter: TypeAdapter[Any], returns: object) -> Any:
    from pydantic import ValidationError

    try:
        return adapter.validate_json(line)
    except ValidationError as error:
        if any(problem["type"] == "json_invalid" for problem in error.errors(include_url=False)):
            shown = f"its last line is {line[:LONGEST_SHOWN]!r}" if line else "it wrote nothing"
            reason = f"left no result, which is a global `result`, or JSON as the last line of its output; {shown}"
        else:
            problems = error.errors(include_url=False, include_context=False)
            first = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in problems[:5])
            reason = f"its result is no {name_of(returns)}: {first}"
        raise BadResult(f"task {record.id} completed, but {reason}", record) from error
