"""The Python API: every name that the package `continuum` gives away, from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from typing import Any

import continuum
from docs.generators.source import attribute_docstrings, docstring


def generate() -> str:
    """Functions, then classes, then exceptions and plain values, each in the order of their names."""
    things = [(name, getattr(continuum, name)) for name in sorted(continuum.__all__)]
    return "\n".join(_thing(name, thing) for name, thing in sorted(things, key=lambda each: _rank(each[1])))


def _rank(thing: Any) -> int:
    if not inspect.isclass(thing):
        return 0
    return 2 if issubclass(thing, BaseException) else 3 if _is_value(thing) else 1


def _is_value(thing: type) -> bool:
    return dataclasses.is_dataclass(thing) or issubclass(thing, enum.Enum)


def _thing(name: str, thing: Any) -> str:
    if not inspect.isclass(thing):
        return _heading(2, name, thing) + docstring(thing) + "\n"
    if issubclass(thing, BaseException):
        parents = ", ".join(f"`{parent.__name__}`" for parent in thing.__bases__)
        return f"## `{name}`\n\n{docstring(thing)} An exception; also caught by {parents}.\n{_methods(thing)}"
    if issubclass(thing, enum.Enum):
        says = attribute_docstrings(thing)
        rows = [f"- `{member.value}`" + (f": {says[member.name]}" if member.name in says else "") for member in thing]
        return f"## `{name}`\n\n{docstring(thing)}\n\n" + "\n".join(rows) + "\n"
    if dataclasses.is_dataclass(thing):
        rows = [f"- `{field.name}: {field.type}{_default(field)}`" for field in dataclasses.fields(thing)]
        return f"## `{name}`\n\n{docstring(thing)}\n\nFields:\n\n" + "\n".join(rows) + "\n" + _methods(thing)
    return _heading(2, name, thing) + docstring(thing) + "\n" + _methods(thing)


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def _methods(kind: type) -> str:
    """The public methods and properties that a class has of its own or from a class of this package."""
    parts = []
    for base in (each for each in kind.__mro__ if each.__module__.startswith("continuum")):
        for name, member in vars(base).items():
            if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                continue
            if isinstance(member, property):
                parts.append(f"### `{kind.__name__}.{name}`\n\n{docstring(member)}\n")
            else:
                parts.append(_heading(3, f"{kind.__name__}.{name}", member) + docstring(member) + "\n")
    return "\n" + "\n".join(parts) if parts else ""


def _heading(level: int, name: str, thing: Any) -> str:
    """The name, and below it how it is called."""
    signature = inspect.signature(thing)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    returns = "" if inspect.isclass(thing) else signature.return_annotation
    shown = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    arrow = f" -> {returns}" if isinstance(returns, str) and returns not in ("", "None") else ""
    word = "async " if inspect.iscoroutinefunction(thing) else ""
    call = f"{word}{name.rsplit('.', 1)[-1]}{shown}{arrow}".replace("'", "")
    return f"{'#' * level} `{name}`\n\n```python\n{call}\n```\n\n"
