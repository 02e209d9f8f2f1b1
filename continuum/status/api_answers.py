"""From the models of `api_outputs` to responses."""

from __future__ import annotations

from pydantic import BaseModel
from quart import Response

from continuum.model import CodeRecord, TaskRecord
from continuum.status.api_operations import JSON
from continuum.status.api_outputs import Attempt, CodeOutput, TaskOutput, values_of


def answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, content_type=JSON)


def location(path: str) -> dict[str, str]:
    return {"Location": path}


def task_answer(record: TaskRecord) -> Response:
    """A task. Its payload and its policy are JSON already, and go into the answer as they are."""
    history = [Attempt(**values_of(attempt, Attempt)) for attempt in record.history]
    values = values_of(record, TaskOutput) | {"history": history}
    return _with_json(TaskOutput.model_construct(**values), retry=record.retry, payload=record.payload)


def code_answer(record: CodeRecord) -> Response:
    """A stored script."""
    return _with_json(CodeOutput.model_construct(**values_of(record, CodeOutput)), retry=record.retry)


def _with_json(model: BaseModel, **texts: str | None) -> Response:
    """An answer in which these fields are JSON texts."""
    rest = model.model_dump_json(exclude=set(texts))
    added = "".join(f',"{name}":{"null" if text is None else text}' for name, text in texts.items())
    return Response(f"{rest[:-1]}{added}}}", content_type=JSON)
