"""From what a client sent to the models of `api_inputs`, with problems that name the field, what was given and what is allowed.

A body is taken apart with msgspec, which leaves a payload as the text that it is: nothing of it is rounded, no object is
made for what only the script will read, and 16 MB take 20 ms where `json.loads` would hold the event loop for a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from werkzeug.datastructures import MultiDict

from continuum.db.validation import holds_nul
from continuum.status.api_errors import Refusal, bad_fields
from continuum.status.api_inputs import MOST_TASKS, UUID, Input, NewCode, NewTaskInput
from continuum.status.api_outputs import Problem
from continuum.status.api_schedule_models import NewScheduleInput, ScheduleInput

SHOWN = 60
"""Characters of what was given that are shown."""
PIECE = 256 * 1024
"""Characters that are looked through at a time: between two pieces, others may have the interpreter."""

LISTS = ("worker_tags", "depends_on")
"""Fields that hold a list of texts or numbers."""
LONGEST_LIST = 64 * 1024
"""Bytes of one that may be right."""

M = TypeVar("M", bound=Input)
Fields = dict[str, msgspec.Raw]

_UNKNOWN = re.compile("unknown field `(.*)`", re.DOTALL)
_LARGE_EXPONENT = re.compile(r"\d[eE]\+?0*[1-9]\d\d")
_STRING_OR_NUMBER = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|(\d+(?:\.\d+)?[eE]\+?\d+)|[^"\d]+|\d+', re.ASCII)


def _shape(names: Iterable[str], *, array: bool = False) -> msgspec.json.Decoder[msgspec.Struct]:
    """Takes an object with these fields apart, or an array with so many items, and leaves each as it is. It stops at what is too
    much, so that a million fields that nobody knows cost nothing."""
    fields = [(name, msgspec.Raw, msgspec.Raw()) for name in names]
    shape = msgspec.defstruct("Shape", fields, array_like=array, forbid_unknown_fields=True)
    return msgspec.json.Decoder(shape)


_TASK, _CODE = _shape(NewTaskInput.model_fields), _shape(NewCode.model_fields)
_NEW_SCHEDULE, _SCHEDULE = _shape(NewScheduleInput.model_fields), _shape(ScheduleInput.model_fields)
_TASK_OR_TASKS = _shape([*NewTaskInput.model_fields, "tasks"])
_LIST = msgspec.json.Decoder(list[str | int | float | bool | None])
_ITEMS = _shape((f"item_{number}" for number in range(MOST_TASKS)), array=True)


def parse_tasks(body: bytes, idempotency_key: str | None) -> tuple[list[NewTaskInput], bool]:
    """The tasks of a body, and whether it is a list of them. Raises `Refusal`."""
    if _kind(body) == "array":
        _refuse_key(idempotency_key)
        return _several(_items(body, ""), ""), True
    fields = _fields(body, "", _TASK_OR_TASKS)
    if "tasks" not in fields:
        if idempotency_key is not None:
            _put_key(fields, idempotency_key)
        return [_one(NewTaskInput, fields)], False
    if unknown := fields.keys() - {"tasks"}:
        raise bad_fields(
            [Problem(field=name, given=_shown(fields[name]), allowed="tasks alone") for name in sorted(unknown)]
        )
    if _kind(fields["tasks"]) != "array":
        raise bad_fields([Problem(field="tasks", given=_shown(fields["tasks"]), allowed="an array of tasks")])
    _refuse_key(idempotency_key)
    return _several(_items(fields["tasks"], "tasks"), "tasks"), True


def parse_code(body: bytes) -> NewCode:
    """The script of a body. Raises `Refusal`."""
    return _one(NewCode, _fields(body, "", _CODE))


def parse_new_schedule(body: bytes) -> NewScheduleInput:
    """The schedule of a body. Raises `Refusal`."""
    return _one(NewScheduleInput, _fields(body, "", _NEW_SCHEDULE))


def parse_schedule(body: bytes) -> ScheduleInput:
    """The schedule of a body, whose name is in the path. Raises `Refusal`."""
    return _one(ScheduleInput, _fields(body, "", _SCHEDULE))


def parse_query(given: MultiDict[str, str], model: type[M]) -> M:
    """The parameters of a URL. Raises `Refusal`."""
    lists = {name for name, field in model.model_fields.items() if str(field.annotation).startswith("list")}
    problems = [
        Problem(field=name, given=json.dumps(given.getlist(name))[:SHOWN], allowed="it once")
        for name in given
        if name not in lists and len(given.getlist(name)) > 1
    ]
    if problems:
        raise bad_fields(problems)
    values = {name: given.getlist(name) if name in lists else given[name] for name in given}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise bad_fields([_problem(each, model, "", values) for each in error.errors(include_url=False)]) from None


def _kind(text: bytes | msgspec.Raw) -> str:
    first = bytes(memoryview(text)[:64]).lstrip(b" \t\r\n")[:1]
    return {b"[": "array", b"{": "object"}.get(first, "other")


def _fields(text: bytes | msgspec.Raw, place: str, shape: msgspec.json.Decoder[msgspec.Struct]) -> Fields:
    """The fields of an object, undecoded."""
    if _kind(text) == "array":
        raise bad_fields([Problem(field=place, given=_shown(text), allowed="an object")])
    try:
        return _given(shape.decode(text))
    except msgspec.ValidationError as error:
        if unknown := _UNKNOWN.search(str(error)):
            known = ", ".join(shape.type.__struct_fields__)
            problem = Problem(field=_join(place, unknown[1][:SHOWN]), given="a value", allowed=f"only {known}")
        else:
            problem = Problem(field=place, given=_shown(text), allowed="an object")
        raise bad_fields([problem]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_json(error) from None


def _items(text: bytes | msgspec.Raw, place: str) -> list[msgspec.Raw]:
    """The items of an array, undecoded."""
    try:
        items = list(_given(_ITEMS.decode(text)).values())
    except msgspec.ValidationError:
        items = []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_json(error) from None
    if not items:
        allowed = f"from 1 to {MOST_TASKS} tasks in a request"
        raise bad_fields([Problem(field=place, given="none, or too many", allowed=allowed)])
    return items


def _given(decoded: msgspec.Struct) -> Fields:
    """What a shape found. Nothing that was given is empty."""
    found = {name: getattr(decoded, name) for name in decoded.__struct_fields__}
    return {name: raw for name, raw in found.items() if len(memoryview(raw))}


def _no_json(error: Exception) -> Refusal:
    if isinstance(error, RecursionError):
        return Refusal(422, "invalid", "the body is nested too deeply: at most some hundred levels are allowed")
    reason = (
        "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).removeprefix("JSON is malformed: ")
    )
    return Refusal(400, "no JSON", f"the body is no JSON: {reason}")


def _several(items: list[msgspec.Raw], place: str) -> list[NewTaskInput]:
    problems: list[Problem] = []
    places = [f"{place}[{at}]" for at in range(len(items))]
    tasks = [
        _validated(NewTaskInput, _fields(item, at, _TASK), at, problems) for item, at in zip(items, places, strict=True)
    ]
    if problems:
        raise bad_fields(problems)
    return [task for task in tasks if task is not None]


def _refuse_key(key: str | None) -> None:
    if key is not None:
        allowed = "a key in each task of several"
        raise bad_fields([Problem(field="Idempotency-Key", given=json.dumps(key)[:SHOWN], allowed=allowed)])


def _put_key(fields: Fields, key: str) -> None:
    """Take the key from the header, which the body must not contradict."""
    if "idempotency_key" in fields and _value(fields["idempotency_key"]) not in (None, key):
        allowed = "the same key as in the header Idempotency-Key, or one of them"
        raise bad_fields([Problem(field="idempotency_key", given=_shown(fields["idempotency_key"]), allowed=allowed)])
    fields["idempotency_key"] = msgspec.Raw(msgspec.json.encode(key))


def _one(model: type[M], fields: Fields) -> M:
    problems: list[Problem] = []
    made = _validated(model, fields, "", problems)
    if made is None or problems:
        raise bad_fields(problems)
    return made


def _validated(model: type[M], fields: Fields, place: str, problems: list[Problem]) -> M | None:
    """The model with these fields, or what is wrong with them added to the problems."""
    shown = {name: _shown(raw) for name, raw in fields.items()}
    payload = fields.pop("payload", None) if "payload" in model.model_fields else None
    policy = fields.pop("retry", None)
    values = {name: _list(raw) if name in LISTS else _value(raw) for name, raw in fields.items()}
    if policy is not None:
        values["retry"] = _policy(policy)
    if payload is not None:
        try:
            values["payload"] = text = bytes(payload).decode()
        except UnicodeDecodeError as error:
            raise _no_json(error) from None
        problems += [
            Problem(field=_join(place, "payload"), given=given, allowed=allowed)
            for given, allowed in _payload_problems(text)
        ]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems += [_problem(each, model, place, shown) for each in error.errors(include_url=False)]
        return None


def _value(raw: msgspec.Raw) -> object:
    """The value of a field. Few fields hold an object or an array, so that their contents are not even read."""
    match _kind(raw):
        case "array":
            return []
        case "object":
            return {}
    try:
        return msgspec.json.decode(raw)
    except msgspec.ValidationError:  # a number beyond all bounds
        return float("inf")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_json(error) from None


def _list(raw: msgspec.Raw) -> object:
    """The value of a field that may hold a list of texts or numbers; anything else is left to its model."""
    if _kind(raw) == "array" and len(memoryview(raw)) <= LONGEST_LIST:
        try:
            return _LIST.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {}
    return {} if _kind(raw) == "array" else _value(raw)


def _policy(raw: msgspec.Raw) -> object:
    """A retry policy as its text, which its model reads; whatever cannot be one is left to that as well."""
    return None if bytes(raw).strip() == b"null" else bytes(raw).decode(errors="replace")


def _payload_problems(payload: str) -> Iterator[tuple[str, str]]:
    """What JSON allows and a database, or the script that reads it, does not."""
    if holds_nul(payload):
        yield "the escape \\u0000", "JSON without it: a database cannot store it"
    # A number of eight characters could become one of 131,000 digits, in each worker that claims the task.
    if any(_LARGE_EXPONENT.search(payload, at, at + PIECE + 20) for at in range(0, len(payload), PIECE)):
        large = (each[1] for each in _STRING_OR_NUMBER.finditer(payload) if each[1])
        yield from ((number[:SHOWN], "numbers up to 1.7e308") for number in large if float(number) == float("inf"))


def _problem(error: ErrorDetails, model: type[Input], place: str, given: Mapping[str, Any]) -> Problem:
    name = str(error["loc"][0]) if error["loc"] else ""
    shown = given.get(name, "nothing") if name else ", ".join(given) or "nothing"
    return Problem(
        field=_join(place, name),
        given=shown if isinstance(shown, str) else json.dumps(shown)[:SHOWN],
        allowed=_allowed(error, model),
    )


def _allowed(error: ErrorDetails, model: type[Input]) -> str:
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "extra_forbidden":
            return f"only {', '.join(model.model_fields)}"
        case "missing":
            return "a value; it is required"
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == UUID:
            return "a UUID, such as 6f1d2a9c-0a52-5d7e-9a53-0f3d51c0de00"
    return re.sub("^(Input should be|String should have) ", "", error["msg"])


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place and name else place or name


def _shown(raw: bytes | msgspec.Raw) -> str:
    text = bytes(memoryview(raw)[: 4 * SHOWN]).decode(errors="replace")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
