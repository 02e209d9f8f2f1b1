"""The comparison of what a request to Docker says with what it should say."""

from __future__ import annotations

import json
from typing import Any


class Refused(Exception):
    """A request that no worker with these settings makes; the message says what is wrong with it."""


def text(value: object) -> str:
    """A value that is text. Raises `Refused` when it is not."""
    if not isinstance(value, str):
        raise Refused(f"{value!r} is no text")
    return value


def must_be_json(given: str, expected: object) -> None:
    """Raise `Refused` unless a filter, as JSON, is the expected one."""
    try:
        found = json.loads(given)
    except ValueError:
        found = given
    if found != expected:
        raise Refused(f"workers list with the filter {json.dumps(expected)} alone")


def same(expected: Any, found: Any) -> Any:
    """What was expected, when that is what was found. Raises `Refused` naming the first difference."""
    expected = json.loads(json.dumps(expected))
    if difference := _difference("", expected, found):
        raise Refused(difference)
    return expected


def _difference(where: str, expected: Any, found: Any) -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys(), key=str):
            place = f"{where}.{key}" if where else str(key)
            if key not in expected:
                return f"{place} is not part of what a worker asks for"
            if key not in found:
                return f"{place} is missing"
            if difference := _difference(place, expected[key], found[key]):
                return difference
        return ""
    if type(expected) is type(found) and expected == found:
        return ""
    return f"{where or 'the body'} is {json.dumps(found)[:200]} where {json.dumps(expected)[:200]} should be"
