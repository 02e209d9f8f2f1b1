"""What the HTTP API takes and answers about schedules, as pydantic models: the OpenAPI document is made of them, too."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator

from continuum.db.validation import INTEGER
from continuum.model import NewTask
from continuum.schedules import LONGEST_CRON, LONGEST_JITTER, NAME, NewSchedule, ScheduleError, Timetable
from continuum.status.api_inputs import (
    LONGEST_TIMEOUT,
    CodeId,
    Input,
    Limit,
    Long,
    Policy,
    Requirements,
    Short,
    Webhook,
    Whole,
)
from continuum.status.api_outputs import Output, Time

NAME_PATTERN = f"^{NAME.pattern}$"


def _cron(text: str) -> str:
    return _readable(text, "UTC", text)


def _zone(text: str) -> str:
    return _readable("* * * * *", text, text)


def _readable(cron: str, time_zone: str, text: str) -> str:
    try:
        Timetable("", cron, time_zone).after(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except ScheduleError as error:
        raise ValueError(str(error).partition(": ")[2]) from None
    return text


def _object(text: str) -> str:
    if text.strip() != "null" and not text.lstrip().startswith("{"):
        raise ValueError("a JSON object; `schedule` and `due_at` are put into it")
    return text


ScheduleName = Annotated[str, Field(pattern=NAME_PATTERN)]
Cron = Annotated[str, Field(max_length=LONGEST_CRON, json_schema_extra={"format": "cron"}), AfterValidator(_cron)]
Zone = Annotated[str, Field(max_length=100, json_schema_extra={"format": "time-zone"}), AfterValidator(_zone)]
JsonObject = Annotated[str, WithJsonSchema({"type": "object"}), AfterValidator(_object)]
"""A JSON object as its text. In the document it is the object."""


def _rules(schema: dict[str, Any]) -> None:
    """JSON Schema for the rule of `ScheduleInput.names_its_code`."""
    null, text = {"type": "null"}, {"type": "string"}
    schema["oneOf"] = [
        {"required": ["code"], "properties": {"code": text, "code_id": null}},
        {"required": ["code_id"], "properties": {"code_id": text, "code": null, "requirements": null}},
    ]


class ScheduleInput(Input):
    """When tasks are made, and what each of them is. It needs `code` or `code_id`."""

    model_config = ConfigDict(json_schema_extra=_rules, title="ScheduleWithoutName")

    cron: Cron = Field(description="`30 2 * * *`; six fields begin with seconds.")
    time_zone: Zone = Field(default="UTC", description="Where the expression is read, such as `Europe/Berlin`.")
    catch_up: Literal["none", "one", "all"] = Field(
        default="one", description="What is fired of due times that passed while nobody could: none, the last, all."
    )
    overlap: Literal["allow", "skip"] = Field(
        default="allow", description="`skip`: no task while the one before is open."
    )
    jitter: float = Field(
        default=0.0, ge=0, le=LONGEST_JITTER, allow_inf_nan=False, description="Seconds up to which it is fired later."
    )
    paused: bool = Field(default=False, description="It makes no tasks.")
    task_name: Long = Field(default="", description="The tasks' name; empty: the schedule's.")
    description: Long | None = None
    code: Long | None = Field(default=None, description="The text of a Python script.")
    code_id: CodeId | None = Field(default=None, description="A script that `POST /codes` stored.")
    requirements: Requirements | None = Field(
        default=None, description="What `code` imports beside the standard library: lines of `NAME==VERSION`."
    )
    payload: JsonObject | None = Field(
        default=None, description="Each task gets it, with `schedule` and `due_at` in it."
    )
    priority: Whole = Field(default=0, ge=INTEGER.start, lt=INTEGER.stop, description="Lower numbers run first.")
    max_attempts: Whole = Field(default=3, ge=1, lt=INTEGER.stop)
    timeout: float | None = Field(
        default=None, gt=0, le=LONGEST_TIMEOUT, allow_inf_nan=False, description="Seconds; null is TASK_TIMEOUT."
    )
    tenant: Short | None = None
    webhook: Webhook | None = Field(default=None, description="A URL that is told, signed, when a task has ended.")
    retry: Policy | None = Field(default=None, description="How its tasks are tried again.")

    @model_validator(mode="after")
    def names_its_code(self) -> Self:
        if (self.code is None) == (self.code_id is None):
            raise ValueError("code, the text of a script, or code_id, the id of a stored one; one of the two")
        if self.code_id is not None and self.requirements is not None:
            raise ValueError("requirements only with code; those of a stored script are stored with it")
        return self

    def schedule(self, name: str) -> NewSchedule:
        task = NewTask(
            name=self.task_name,
            description=self.description,
            code=self.code,
            code_id=self.code_id,
            requirements=self.requirements,
            payload=None if self.payload is None or self.payload.strip() == "null" else self.payload,
            priority=self.priority,
            max_attempts=self.max_attempts,
            timeout=self.timeout,
            tenant=self.tenant,
            webhook=self.webhook,
            retry=self.retry,
        )
        return NewSchedule(name, self.cron, task, self.time_zone, self.catch_up, self.overlap, self.jitter, self.paused)


class NewScheduleInput(ScheduleInput):
    """A schedule to store."""

    model_config = ConfigDict(json_schema_extra=_rules, title="NewSchedule")

    name: ScheduleName


class SchedulePath(Input):
    id: ScheduleName


class SchedulesQuery(Input):
    limit: Limit = 50
    after: ScheduleName | None = Field(
        default=None, description="Only names after this one: `next` of the page before."
    )


class ScheduleOutput(Output):
    """A schedule, and what came of it so far."""

    model_config = ConfigDict(title="Schedule")

    name: ScheduleName
    cron: str
    time_zone: str
    catch_up: str
    overlap: str
    jitter: float
    paused: bool
    task_name: str
    description: str | None
    code_id: CodeId
    priority: int
    tenant: str | None
    max_attempts: int
    timeout: float | None
    webhook: str | None
    due_at: Time | None = Field(description="The due time that it is fired for next; null until a worker has seen it.")
    next_at: Time | None = Field(description="When that is, with the jitter.")
    last_due: Time | None = Field(description="The last due time that was dealt with.")
    last_fired_at: Time | None
    last_task_id: int | None
    last_task_id_str: str | None
    fired: int = Field(description="Tasks that it made.")
    skipped: int = Field(description="Due times without one, because the one before was open.")
    missed: int = Field(description="Due times that passed while nobody fired, and were left out.")
    last_error: str | None = Field(description="Why it cannot be fired as it stands.")
    created_at: Time
    updated_at: Time


class ScheduleNamed(Output):
    """The name of a schedule that was changed."""

    name: ScheduleName


class SchedulePage(Output):
    """Schedules in the order of their names. `next`, where there may be more, is `after` of the next page."""

    schedules: list[ScheduleOutput]
    next: ScheduleName | None
