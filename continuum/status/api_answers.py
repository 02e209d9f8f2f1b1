"""From the models of `api_outputs` to responses."""

from __future__ import annotations

from pydantic import BaseModel
from quart import Response

from continuum.model import TaskRecord
from continuum.status.api_operations import JSON
from continuum.status.api_outputs import Attempt, TaskOutput, values_of


def answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, content_type=JSON)


def location(path: str) -> dict[str, str]:
    return {"Location": path}


def task_answer(record: TaskRecord) -> Response:
    """A task. Its payload is JSON already, and goes into the answer as it is."""
    history = [Attempt(**values_of(attempt, Attempt)) for attempt in record.history]
    values = values_of(record, TaskOutput) | {"history": history, "payload": None}
    rest = TaskOutput.model_construct(**values).model_dump_json(exclude={"payload"})
    payload = "null" if record.payload is None else record.payload
    return Response(f'{rest[:-1]},"payload":{payload}}}', content_type=JSON)
