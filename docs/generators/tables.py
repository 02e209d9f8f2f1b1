"""Every table and column, from sql/cockroach.sql: it has each table in one statement, and each column with a comment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from docs.generators.source import cell

SCHEMA = Path(__file__).parents[2] / "sql" / "cockroach.sql"
ONLY_COCKROACH = {"wakeup_feeds": (), "tasks": ("shard", "ring")}
"""Tables and columns that PostgreSQL does not need; no columns: the whole table."""

_TYPES = {"INT2": "smallint", "INT4": "integer", "INT8": "bigint", "FLOAT8": "double precision", "BOOL": "boolean"}
_INTRODUCTIONS = {
    "tasks": "One row for each task: what is to be done, who does it, and what came of it.",
    "task_outputs": "What follows the beginnings of long outputs. Each row is one part.",
    "codes": "Scripts, which tasks refer to.",
    "schedules": "What makes tasks at due times.",
    "workers": "One row for each worker that was ever started, and its totals. `/global-status` sums them.",
    "duties": "What one worker at a time does, and which one that is.",
    "continuum_schema": "Which versions of the schema were applied.",
    "wakeup_feeds": "CockroachDB only: which workers hold one of the cluster's few changefeeds.",
}


@dataclass(frozen=True, slots=True)
class Column:
    """kind: the type as both databases know it. rest: NOT NULL and the like, without the default."""

    name: str
    kind: str
    rest: str
    default: str
    meaning: str


def generate() -> str:
    """A heading for each table, the one of tasks first."""
    found = tables()
    return "\n".join(_table(name, found[name]) for name in _INTRODUCTIONS)


def tables() -> dict[str, list[Column]]:
    """The columns of each table."""
    schema = SCHEMA.read_text()
    return {
        name: _columns(body)
        for name, body in re.findall(
            r"^CREATE TABLE IF NOT EXISTS (\w+) \(\n(.*?)^\);", schema, re.MULTILINE | re.DOTALL
        )
    }


def _columns(body: str) -> list[Column]:
    columns = []
    above: list[str] = []
    for line in body.splitlines():
        definition, _, comment = line.partition("-- ")
        if not definition.strip():
            above.append(comment)
            continue
        if found := re.match(r" {4}([a-z_]+) +([A-Z]\w*(?:\(\d+\))?)(.*?),?\s*$", definition):
            name, kind, rest = found.groups()
            rest, _, default = rest.partition("DEFAULT ")
            columns.append(
                Column(name, _TYPES.get(kind, kind.lower()), rest.strip(), default, " ".join(above) or comment)
            )
        above = []
    return columns


def _table(name: str, columns: list[Column]) -> str:
    lines = [
        f"## {name.upper()}\n",
        _INTRODUCTIONS[name] + "\n",
        "| column | type | default | meaning |",
        "|---|---|---|---|",
    ]
    only = ONLY_COCKROACH.get(name, ())
    for column in sorted(columns, key=lambda column: column.name in only):
        kind = (
            f"`{column.kind}`"
            + (" not null" if "NOT NULL" in column.rest else "")
            + (" key" if "KEY" in column.rest else "")
        )
        default = f"`{column.default}`" if column.default and column.name != "id" else ""
        meaning = column.meaning[:1].upper() + column.meaning[1:].rstrip(".")
        if column.name in only:
            meaning = f"CockroachDB only. {meaning}"
        lines.append(f"| `{column.name}` | {kind} | {default} | {cell(meaning)} |")
    return "\n".join([*lines, ""])
