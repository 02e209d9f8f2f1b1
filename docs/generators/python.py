"""The Python API: every name that the package `continuum` gives away, and what goes with them, from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from collections.abc import Iterable
from typing import Any

import continuum
from continuum import model
from continuum.client import mapping, tasks
from docs.generators.source import attribute_docstrings, docstring

OPTIONS = (tasks.CommonOptions, tasks.TaskOptions, tasks.RunOptions, tasks.MapOptions)
BESIDES = (mapping.Results, model.Stream, model.Statistics)
"""What methods take and return that the package itself does not give away."""
WIDE = 88
"""Characters of a call that stand in one line."""


def generate() -> str:
    """Functions, classes, options, exceptions and plain values, each in the order of their names."""
    things = {name: getattr(continuum, name) for name in continuum.__all__}
    things |= {each.__name__: each for each in (*OPTIONS, *BESIDES)}
    ordered = sorted(things.items(), key=lambda each: (_rank(each[1]), "Blocking" in each[0], each[0]))
    return "\n".join(_thing(name, thing) for name, thing in ordered)


def _rank(thing: Any) -> int:
    if not inspect.isclass(thing):
        return 0
    if thing in OPTIONS:
        return 2
    return 3 if issubclass(thing, BaseException) else 4 if _is_value(thing) else 1


def _is_value(thing: type) -> bool:
    return dataclasses.is_dataclass(thing) or issubclass(thing, enum.Enum)


def _thing(name: str, thing: Any) -> str:
    if not inspect.isclass(thing):
        return _heading(2, name, thing) + docstring(thing, _names(thing)) + "\n"
    if thing in OPTIONS:
        common = {} if thing is tasks.CommonOptions else tasks.CommonOptions.__annotations__
        own = {key: kind for key, kind in thing.__annotations__.items() if key not in common}
        also = "\n\nAnd all of [CommonOptions](#commonoptions).\n" if common else "\n"
        rows = [f"- `{key}: {getattr(kind, '__forward_arg__', kind)}`" for key, kind in own.items()]
        return f"## `{name}`\n\n{docstring(thing, own)}\n\n" + "\n".join(rows) + also
    if issubclass(thing, BaseException):
        parents = ", ".join(f"`{parent.__name__}`" for parent in thing.__bases__)
        return (
            f"## `{name}`\n\n{docstring(thing, ('record', 'traceback'))}\n\nAn exception: {parents}.\n{_methods(thing)}"
        )
    if issubclass(thing, enum.Enum):
        says = attribute_docstrings(thing)
        rows = [f"- `{member.value}`" + (f": {says[member.name]}" if member.name in says else "") for member in thing]
        return f"## `{name}`\n\n{docstring(thing)}\n\n" + "\n".join(rows) + "\n"
    if dataclasses.is_dataclass(thing):
        fields = dataclasses.fields(thing)
        rows = [f"- `{field.name}: {field.type}{_default(field)}`" for field in fields]
        meaning = docstring(thing, [field.name for field in fields])
        return f"## `{name}`\n\n{meaning}\n\nFields:\n\n" + "\n".join(rows) + "\n" + _methods(thing)
    return _heading(2, name, thing) + docstring(thing, _names(thing)) + "\n" + _methods(thing)


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def _methods(kind: type) -> str:
    """The public methods and properties that a class has of its own or from a class of this package. Those of which the
    docstring only names their likes in another class are told of in one line."""
    parts, likes = [], []
    for base in (each for each in kind.__mro__ if each.__module__.startswith("continuum")):
        for name, member in vars(base).items():
            if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                continue
            if re.fullmatch(r"See `\w+\.\w+`\.", inspect.getdoc(member) or ""):
                likes.append(f"`{name}`")
            elif isinstance(member, property):
                parts.append(f"### `{kind.__name__}.{name}`\n\n{docstring(member)}\n")
            else:
                heading = _heading(3, f"{kind.__name__}.{name}", member)
                parts.append(f"{heading}{docstring(member, _names(member))}\n")
    told = f"As those of [Client](#client), without `await`: {', '.join(likes)}.\n\n" if likes else ""
    return "\n" + told + "\n".join(parts)


def _names(thing: Any) -> Iterable[str]:
    return [name for name in inspect.signature(thing).parameters if name != "self"]


def _heading(level: int, name: str, thing: Any) -> str:
    """The name, and below it how it is called."""
    signature = inspect.signature(thing)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    shown = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    returns = "" if inspect.isclass(thing) else signature.return_annotation
    arrow = f" -> {returns}" if isinstance(returns, str) and returns not in ("", "None") else ""
    word = "async " if inspect.iscoroutinefunction(thing) else ""
    call = f"{word}{name.rsplit('.', 1)[-1]}{_plain(str(shown))}{arrow}"
    if len(call) > WIDE:
        each = "".join(f"    {_plain(part)},\n" for part in _parts(parameters))
        call = f"{word}{name.rsplit('.', 1)[-1]}(\n{each}){arrow}"
    return f"{'#' * level} `{name}`\n\n```python\n{call}\n```\n\n"


def _parts(parameters: list[inspect.Parameter]) -> list[str]:
    """The parameters one by one, with the star after which they go by name only."""
    parts: list[str] = []
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(str(each))
    return parts


def _plain(text: str) -> str:
    """Without quotes around annotations, and with `...` for a default that only says that nothing was given."""
    return re.sub(r"<[\w.]+ object at 0x\w+>", "...", text).replace("'", "")
