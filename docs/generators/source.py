"""Reading what the source says: the strings below attributes, and docstrings as Markdown."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any


@cache
def attribute_docstrings(kind: type) -> dict[str, str]:
    """What the string below each attribute of a class says, its lines joined."""
    tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    (body,) = (node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    found: dict[str, str] = {}
    for node, below in itertools.pairwise(body):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            said = " ".join(str(below.value.value).split())
            found |= {target.id: said for target in targets if isinstance(target, ast.Name)}
    return found


def docstring(thing: Any, names: Iterable[str] = ()) -> str:
    """A docstring as Markdown. What it says of parameters or fields of these names, as `name: meaning`, becomes a list."""
    text = inspect.getdoc(thing) or ""
    if not (known := "|".join(sorted(names, key=len, reverse=True))):
        return text
    return re.sub(
        rf"(?:^|(?<=[.\n]) |(?<=\) ))((?:{known})(?:, (?:{known}))*): ", r"\n- **\1**: ", text, flags=re.MULTILINE
    )


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
