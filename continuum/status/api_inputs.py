"""What the HTTP API takes, as pydantic models: the OpenAPI document is made of them, too."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    Strict,
    WithJsonSchema,
    model_validator,
)

from continuum.db.validation import INTEGER, LARGEST, LONGEST, LONGEST_WINDOW
from continuum.dependencies import MOST_DEPENDENCIES
from continuum.model import NewTask
from continuum.requirements import BadRequirements, parse_requirements
from continuum.retry import BadPolicy, RetryPolicy, parse_policy, policy_schema
from continuum.tags import MOST_TAGS, TAG
from continuum.webhook import LONGEST_URL, parse_url

MOST_TASKS = 1000
"""Tasks in one request, which is one transaction."""
LATEST = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
"""Times from here on do not survive the way through every time zone."""
LONGEST_TIMEOUT = 1e9
SHORT = LONGEST["tenant"]
LARGEST_ID = 2**63 - 1
MOST_LISTED = 200
LONGEST_WAIT = 60.0

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
UUID = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
_TRACEPARENT = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
_AGO = "^[0-9]{1,5}[smhd]$"
_UNITS = {
    "s": dt.timedelta(seconds=1),
    "m": dt.timedelta(minutes=1),
    "h": dt.timedelta(hours=1),
    "d": dt.timedelta(days=1),
}
_NO_NUL: dict[str, Any] = {"pattern": "^[^\\u0000]*$"}


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError(f"a text without the character NUL, which is at position {text.index(chr(0))}")
    return text


def parse_time(value: object) -> dt.datetime:
    """Read `2026-01-31T12:00:00Z`. Raises ValueError for anything without a zone, and for years beyond `LATEST`."""
    allowed = "a time with its zone, such as 2026-01-31T12:00:00Z"
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError(allowed)
    try:
        time = dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value.upper()))
    except ValueError:
        raise ValueError(allowed) from None
    if time >= LATEST:
        raise ValueError(f"{allowed}, before the year {LATEST.year}")
    return time


def _not_before(value: object) -> dt.datetime:
    """A time to run at; one that is long past is as good as now, and would not survive the way through every time zone."""
    return max(parse_time(value), dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).astimezone(dt.UTC)


def _since(value: object) -> dt.datetime:
    """A time, or a length of time before now."""
    try:
        return max(parse_time(value), dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).astimezone(dt.UTC)
    except ValueError:
        pass
    if not isinstance(value, str) or not re.fullmatch(_AGO, value):
        raise ValueError("a time with its zone, such as 2026-01-31T12:00:00Z, or how long ago: 90s, 5m, 1h, 7d")
    return dt.datetime.now(dt.UTC) - _UNITS[value[-1]] * int(value[:-1])


def _number(kind: type[int] | type[float], pattern: str) -> BeforeValidator:
    """A number in a URL."""

    def read(value: object) -> object:
        return kind(value) if isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) else value

    return BeforeValidator(read)


def _whole(value: object) -> object:
    """JSON has one kind of numbers: 5.0 is a whole one, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: object) -> object:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _deliverable(text: str) -> str:
    try:
        parse_url(text)
    except ValueError as error:
        raise ValueError(f"a URL to deliver to; this {error}") from None
    return text


def _policy(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return parse_policy(text)
    except BadPolicy as error:
        raise ValueError(f"a retry policy; {error}") from None


def _pinned(text: str) -> str:
    try:
        parse_requirements(text)
    except BadRequirements as error:
        raise ValueError(str(error)) from None
    return text


Id = Annotated[int, Field(ge=1, le=LARGEST_ID), _number(int, r"\d{1,19}")]
Limit = Annotated[int, Field(ge=1, le=MOST_LISTED), _number(int, r"\d{1,9}")]
Seconds = Annotated[float, Field(ge=0, le=LONGEST_WAIT), _number(float, r"\d{1,9}(\.\d{0,99})?([eE]-?\d{1,3})?")]
Flag = Annotated[bool, BeforeValidator(_flag)]
StatusName = Literal["pending", "processing", "completed", "failed", "cancelled", "malicious"]
CodeId = Annotated[str, Field(pattern=UUID, json_schema_extra={"format": "uuid"})]
Short = Annotated[str, Field(max_length=SHORT, json_schema_extra=_NO_NUL), AfterValidator(_without_nul)]
Long = Annotated[str, Field(max_length=LARGEST, json_schema_extra=_NO_NUL), AfterValidator(_without_nul)]
Whole = Annotated[int, BeforeValidator(_whole)]
Key = Annotated[str, Field(min_length=1, max_length=SHORT, json_schema_extra=_NO_NUL), AfterValidator(_without_nul)]
Requirements = Annotated[
    str,
    Field(max_length=LARGEST, json_schema_extra=_NO_NUL | {"format": "requirements"}),
    AfterValidator(_without_nul),
    AfterValidator(_pinned),
]
Webhook = Annotated[
    str, Field(max_length=LONGEST_URL, json_schema_extra={"format": "webhook"}), AfterValidator(_deliverable)
]
RunAt = Annotated[dt.datetime, BeforeValidator(_not_before), WithJsonSchema({"type": "string", "format": "date-time"})]
Policy = Annotated[InstanceOf[RetryPolicy], BeforeValidator(_policy), WithJsonSchema(policy_schema())]
Since = Annotated[
    dt.datetime,
    BeforeValidator(_since),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "pattern": _AGO}]}),
]
Tags = Annotated[tuple[Annotated[str, Field(pattern=TAG)], ...], Strict(False), Field(max_length=MOST_TAGS)]
Dependencies = Annotated[
    tuple[Annotated[Id, BeforeValidator(_whole)], ...], Strict(False), Field(max_length=MOST_DEPENDENCIES)
]
AnyJson = Annotated[str, WithJsonSchema({"description": "Any JSON value."})]
"""A JSON value as its text. In the document it is the value."""


class Input(BaseModel):
    """Something that a client sends: no conversions, and no fields that are not known."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _rules(schema: dict[str, Any]) -> None:
    """JSON Schema for the rules of `NewTaskInput.holds_together`."""
    null, text = {"type": "null"}, {"type": "string"}
    schema["oneOf"] = [
        {"required": ["code"], "properties": {"code": text, "code_id": null}},
        {"required": ["code_id"], "properties": {"code_id": text, "code": null, "requirements": null}},
    ]
    schema["anyOf"] = [
        {"properties": {"idempotency_window": null}},
        {"required": ["idempotency_key"], "properties": {"idempotency_key": text}},
    ]


class NewTaskInput(Input):
    """A task to submit. It needs `code` or `code_id`."""

    model_config = ConfigDict(json_schema_extra=_rules, title="NewTask")

    name: Long = ""
    description: Long | None = None
    code: Long | None = Field(default=None, description="The text of a Python script.")
    code_id: CodeId | None = Field(default=None, description="A script that `POST /codes` stored.")
    requirements: Requirements | None = Field(
        default=None, description="What `code` imports beside the standard library: lines of `NAME==VERSION`."
    )
    payload: AnyJson | None = Field(default=None, description="Any JSON value; the script gets it.")
    priority: Whole = Field(default=0, ge=INTEGER.start, lt=INTEGER.stop, description="Lower numbers run first.")
    max_attempts: Whole = Field(default=3, ge=1, lt=INTEGER.stop)
    timeout: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_TIMEOUT,
        allow_inf_nan=False,
        description="Seconds; null is the worker's TASK_TIMEOUT.",
    )
    run_at: RunAt | None = Field(default=None, description="Not before this time.")
    expires_at: RunAt | None = Field(
        default=None, description="Not after this time: what has not begun by then is cancelled, with the reason."
    )
    tenant: Short | None = None
    idempotency_key: Key | None = Field(
        default=None,
        description="The same key of the same tenant again yields the first task. For one task, the header `Idempotency-Key` "
        "says the same.",
    )
    idempotency_window: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_WINDOW,
        allow_inf_nan=False,
        description="Seconds since the first task, after which the key begins anew; null is without end.",
    )
    unique: bool = Field(
        default=False,
        description="While a task of the tenant with the same code and payload has not begun, this is that one.",
    )
    sequence_key: Short | None = Field(
        default=None,
        description="Tasks of a tenant with the same key run one after another, in the order of their ids.",
    )
    concurrency_key: Short | None = Field(
        default=None,
        description="At most so many tasks of a tenant with the same key run at a time as LIMITS says, or one.",
    )
    depends_on: Dependencies = Field(
        default=(),
        description="Ids of tasks of the tenant that must have completed before; it finds their outputs in its payload.",
    )
    depends_any: bool = Field(default=False, description="One of those in `depends_on` and `depends_batch` is enough.")
    depends_ended: bool = Field(
        default=False, description="It is enough that those have ended, however; else it is cancelled."
    )
    batch: Key | None = Field(default=None, description="The batch that it belongs to: any name, of its tenant.")
    depends_batch: Key | None = Field(
        default=None,
        description="A batch of the tenant whose tasks must have completed before; it finds in its payload how that ended.",
    )
    webhook: Webhook | None = Field(default=None, description="A URL that is told, signed, when the task has ended.")
    worker_tags: Tags = Field(default=(), description="What its worker must have, such as `gpu`.")
    retry: Policy | None = Field(
        default=None,
        description="How it is tried again; null leaves it to its script, or to the default. See the guide to retries.",
    )
    traceparent: Annotated[str, Field(pattern=_TRACEPARENT)] | None = Field(
        default=None, description="W3C Trace Context; the header of this name says the same for all tasks of a request."
    )

    @model_validator(mode="after")
    def holds_together(self) -> Self:
        if (self.code is None) == (self.code_id is None):
            raise ValueError("code, the text of a script, or code_id, the id of a stored one; one of the two")
        if self.code_id is not None and self.requirements is not None:
            raise ValueError("requirements only with code; those of a stored script are stored with it")
        if self.idempotency_window is not None and self.idempotency_key is None:
            raise ValueError("idempotency_window only with an idempotency_key, for which it counts")
        if self.depends_batch is not None and self.depends_batch == self.batch:
            raise ValueError("depends_batch other than its own batch; a task cannot wait for itself")
        return self

    def task(self, traceparent: str | None) -> NewTask:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return NewTask(**values | {"traceparent": self.traceparent or traceparent})


TaskList = Annotated[list[NewTaskInput], Field(min_length=1, max_length=MOST_TASKS)]


class NewTasks(Input):
    """Several tasks, submitted together or not at all."""

    tasks: TaskList


class NewCode(Input):
    """A script to store."""

    code: Long
    requirements: Requirements | None = Field(
        default=None, description="What it imports beside the standard library: lines of `NAME==VERSION`."
    )
    retry: Policy | None = Field(
        default=None,
        description="How its tasks are tried again that say nothing themselves; null leaves what was said before.",
    )


class TaskPath(Input):
    id: Id


class CodePath(Input):
    id: CodeId


class SearchQuery(Input):
    """Which tasks to list."""

    text: Short = Field(default="", description="An id, or a part of a name in any case.")
    status: list[StatusName] = Field(default=[], description="Any of these; repeat the parameter for several.")
    tenant: Short | None = None
    worker: Short | None = Field(default=None, description="The id of the worker that has, or had, the task.")
    error: Short | None = Field(default=None, description="The first line of an error, with `#` for its numbers.")
    since: Since | None = Field(
        default=None, description="Created since this time, or within this time: `2026-01-31T12:00:00Z`, `1h`, `7d`."
    )
    quarantined: Flag = Field(default=False, description="Only those in quarantine.")
    batch: Key | None = Field(default=None, description="Only those of this batch.")
    before: Id | None = Field(default=None, description="Only ids below this one: `next` of the page before.")
    limit: Limit = 50


class RetryQuery(Input):
    """Which failed tasks to try again."""

    tenant: Short | None = None
    name: Short | None = Field(default=None, description="A part of a name in any case.")
    error: Short | None = Field(default=None, description="The first line of an error, with `#` for its numbers.")
    code_id: CodeId | None = Field(default=None, description="Those of this script.")
    since: Since | None = Field(
        default=None, description="Failed since this time, or within this time: `2026-01-31T12:00:00Z`, `1h`, `7d`."
    )
    dry_run: Flag = Field(default=False, description="Only say how many and which.")
    before: Annotated[str, Field(pattern="^[0-9]{1,18}-[0-9]{1,19}$")] | None = Field(
        default=None, description="Where to go on: `next` of the answer before."
    )


class WaitQuery(Input):
    seconds: Seconds = Field(default=30.0, description="How long to wait.")


class LogsQuery(Input):
    follow: Flag = Field(default=True, description="Go on until the task has ended; else what there is now.")


class CodesQuery(Input):
    limit: Limit = 50
    after: CodeId | None = Field(default=None, description="Only ids after this one: `next` of the page before.")
