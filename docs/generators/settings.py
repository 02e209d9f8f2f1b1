"""Every variable, from the fields of `Settings` and the strings below them; sections and defaults are those of .env.example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from continuum.config import Settings
from docs.generators.source import attribute_docstrings

EXAMPLE = Path(__file__).parents[2] / ".env.example"

_KINDS = {
    "bool": "`true` or `false`",
    "int": "a whole number",
    "float": "a number",
    "Path": "a path",
    "Duration": "a duration: `90`, `90s`, `5m` or `1h30m`",
}
_LIMITS = {"gt": "more than {}", "ge": "at least {}", "le": "at most {}"}


def generate() -> str:
    """A section for each of .env.example's, and in it a heading for each variable."""
    parts = []
    for title, variables in sections().items():
        parts.append(f"## {title}\n")
        parts += [_variable(name, default) for name, default in variables.items()]
    return "\n".join(parts)


def sections() -> dict[str, dict[str, str]]:
    """The titles of .env.example, and under each its variables with the text of their defaults (empty where commented out)."""
    found: dict[str, dict[str, str]] = {}
    variables: dict[str, str] = {}
    for line in EXAMPLE.read_text().splitlines():
        if title := re.match(r"# -- (.+?) -+$", line):
            variables = found.setdefault(title[1], {})
        elif variable := re.match(r"(#?)([A-Z][A-Z_]+)=(.*)$", line):
            variables[variable[2]] = "" if variable[1] else variable[3]
    return found


def _variable(name: str, default: str) -> str:
    field = Settings.model_fields[name.lower()]
    meaning = _linked(attribute_docstrings(Settings).get(name.lower(), ""), name)
    facts = [f"Default: `{default}`" if default else "Not set by default"]
    if allowed := _allowed(name.lower()):
        facts.append(f"allowed: {allowed}")
    limits = {limit: getattr(each, limit) for each in field.metadata for limit in _LIMITS if hasattr(each, limit)}
    facts += [
        _LIMITS[limit].format(f"{value:,}" if isinstance(value, int) else value) for limit, value in limits.items()
    ]
    return f"### `{name}`\n\n{meaning}\n\n{'; '.join(facts)}.\n"


def _linked(text: str, own: str) -> str:
    """With a link wherever another variable is named, but for what is code."""
    parts = re.split(r"(`[^`]*`)", text)
    others = "|".join(name.upper() for name in Settings.model_fields if name.upper() != own)
    parts[::2] = [
        re.sub(rf"\b({others})\b", lambda found: f"[{found[1]}](#{found[1].lower()})", part) for part in parts[::2]
    ]
    return "".join(parts)


def _allowed(name: str) -> str:
    """What a variable may hold, in words; empty for texts, of which the meaning says more."""
    annotation = Settings.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    written = str(Settings.__annotations__[name])
    return next((words for kind, words in _KINDS.items() if re.match(rf"{kind}\b", written)), "")
