"""What the HTTP API answers, as pydantic models: the OpenAPI document is made of them, too."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from continuum.model import Status
from continuum.status.api_inputs import AnyJson, CodeId, Id

IdText = Annotated[str, Field(pattern="^[0-9]+$")]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class Output(BaseModel):
    """Something that a client receives."""

    model_config = ConfigDict(
        json_schema_mode_override="serialization", json_schema_serialization_defaults_required=True
    )


class Sparse(BaseModel):
    """Something that a client receives, without the fields that are None."""


class Submitted(Output):
    """The id of a task. `id_str` is the same, for readers that have no integers beyond 2^53."""

    id: Id
    id_str: IdText


class SubmittedTasks(Output):
    """The ids of the tasks, in the order in which they were given."""

    tasks: list[Submitted]


class Attempt(Output):
    """An attempt that ended in anything but completion."""

    attempt: int
    worker: str | None
    started: Time | None
    ended: Time
    ending: str = Field(description="`failed`, `lost`, `released`, `cancelled` or `malicious`.")
    exit_code: int | None
    message: str | None


class TaskSummaryOutput(Output):
    """A task in a list."""

    model_config = ConfigDict(title="TaskSummary")

    id: Id
    id_str: IdText
    name: str
    status: str = Field(description=f"{', '.join(f'`{status}`' for status in Status)}.")
    priority: int
    tenant: str | None
    attempt: int
    max_attempts: int
    worker_id: str | None
    created_at: Time
    run_at: Time | None
    started: Time | None
    finished: Time | None
    exit_code: int | None
    error: str | None = Field(description="The first line of its last error.")


class TaskOutput(Output):
    """A task with all that there is of it."""

    model_config = ConfigDict(title="Task")

    id: Id
    id_str: IdText
    name: str
    description: str | None
    status: str = Field(description=f"{', '.join(f'`{status}`' for status in Status)}.")
    code_id: str | None
    priority: int
    attempt: int
    released: int = Field(description="Attempts that did not count, since their worker gave them back.")
    max_attempts: int
    worker_id: str | None
    created_at: Time
    run_at: Time | None
    expires_at: Time | None
    started: Time | None
    finished: Time | None
    lease_expires_at: Time | None
    timeout: float | None
    exit_code: int | None
    output: str | None = Field(description="What it wrote to stdout.")
    error_output: str | None = Field(description="What it wrote to stderr.")
    last_error: str | None
    tenant: str | None
    idempotency_key: str | None
    cancel_requested: bool
    traceparent: str | None
    webhook: str | None
    worker_tags: tuple[str, ...] = Field(description="What its worker must have.")
    retry_of: int | None = Field(description="The task of which this is a copy.")
    retry_of_str: str | None
    retried_as: int | None = Field(description="The copy of this task.")
    retried_as_str: str | None
    quarantined: bool = Field(
        description="It failed because it took its sandbox or its worker down, and is not tried again."
    )
    crashes: float = Field(description="How many it took down; a worker that ran others as well counts half.")
    sequence_key: str | None
    concurrency_key: str | None
    admitted: bool = Field(description="Whether a task with a key, or that depends on others, may begin.")
    depends_on: tuple[int, ...] = Field(description="Tasks that must have completed before.")
    depends_on_str: tuple[str, ...]
    depends_any: bool = Field(description="One of them is enough.")
    depends_ended: bool = Field(description="It is enough that they have ended, however.")
    batch: str | None = Field(description="The batch that it belongs to.")
    depends_batch: str | None = Field(description="A batch whose tasks must have completed before.")
    history: list[Attempt]
    retry: AnyJson | None = Field(description="Its retry policy, or its script's.")
    payload: AnyJson | None


class TaskPage(Output):
    """Tasks, the newest first. `next`, where there may be more, is `before` of the next page."""

    tasks: list[TaskSummaryOutput]
    next: IdText | None


class Cancelled(Output):
    """What became of the request."""

    id: Id
    id_str: IdText
    outcome: Literal["cancelled", "requested", "finished"] = Field(
        description="`cancelled`: it had not begun. `requested`: it runs, and its worker stops it. `finished`: it had ended."
    )


class RetriedOutput(Output):
    """The copy that is tried instead of a task that has ended."""

    model_config = ConfigDict(title="Retried")

    id: Id
    id_str: IdText
    retry_of: Id
    retry_of_str: IdText
    outcome: Literal["submitted", "already"] = Field(
        description="`already`: it had been tried again before, as this copy."
    )


class RetriedTasks(Output):
    """What was tried again. `next`, where there may be more, is `before` of the next request."""

    found: int = Field(description="Failed tasks that fitted, and had not been tried again.")
    retried: int = Field(description="Copies that were submitted.")
    newest: list[TaskSummaryOutput] = Field(description="The first of them; not the copies.")
    next: str | None


class StoredCode(Output):
    """The id of a script: of the first one, when it was stored before."""

    id: CodeId


class CodeOutput(Output):
    model_config = ConfigDict(title="Code")

    id: CodeId
    code: str
    requirements: str | None
    retry: AnyJson | None = Field(description="How its tasks are tried again.")


class CodeSummaryOutput(Output):
    model_config = ConfigDict(title="CodeSummary")

    id: CodeId
    lines: int
    size: int = Field(description="Characters.")
    first_line: str
    requirements: str | None


class CodePage(Output):
    """Scripts in the order of their ids. `next`, where there may be more, is `after` of the next page."""

    codes: list[CodeSummaryOutput]
    next: CodeId | None


class LogEvent(Sparse):
    """One line of a log in NDJSON; in an event stream, `type` is the event's name, too."""

    model_config = ConfigDict(title="LogEvent")

    type: Literal["output", "error_output", "heartbeat", "end"] = Field(
        description="`output`, `error_output`: what the task wrote. `heartbeat`: nothing came. `end`: the last one; a task "
        "with a `status` that is not terminal has not ended, and its log can be asked for again."
    )
    attempt: int | None = None
    text: str | None = None
    status: str | None = None
    exit_code: int | None = None
    reason: str | None = None


class Problem(Output):
    field: str = Field(description="`tasks[3].priority`, or empty for the whole.")
    given: str = Field(description="The start of what was given, as JSON.")
    allowed: str


class Failure(Sparse):
    """An answer that is none."""

    error: str = Field(description="What kind of failure it is, in a word or two.")
    message: str = Field(description="What is wrong, and what to do.")
    problems: list[Problem] | None = None
    repeat: bool | None = Field(
        default=None,
        description="After a submission of which nobody knows whether it was done: whether the same request again does no harm.",
    )


def values_of(record: object, model: type[BaseModel]) -> dict[str, Any]:
    """The values of a record for the fields of a model that it has: ids as texts as well, times as texts."""
    values: dict[str, Any] = {}
    for name in model.model_fields:
        value = getattr(record, name.removesuffix("_str"), None)
        if name.endswith("_str"):
            value = tuple(map(str, value)) if isinstance(value, tuple) else None if value is None else str(value)
        elif isinstance(value, dt.datetime):
            value = value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
        values[name] = value
    return values
