"""Long outputs: their beginnings stay in TASKS, the rest is in TASK_OUTPUTS, in parts that only those read who want the whole.

On CockroachDB whatever touches a row reads and writes all of it: with 1 MiB of output in each, heartbeats took twenty times as
long. A part belongs to one attempt, and is written together with the row that says how many there are: what an attempt left
behind that lost its lease is never seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from continuum.model import Completion, PartialOutput, Stream

Written = Completion | PartialOutput

PART = 65_536
"""Characters of an output that stay in TASKS, and of each part but the last."""


def whole(stream: Stream) -> str:
    """An output of a row of TASKS with what TASK_OUTPUTS has of it."""
    column = f"tasks.{stream.value}"
    return f"""CASE WHEN {column}_parts = 0 THEN {column} ELSE {column} || coalesce((
           SELECT string_agg(rest.part, '' ORDER BY rest.number) FROM task_outputs AS rest
           WHERE rest.task_id = tasks.id AND rest.attempt = tasks.attempt AND rest.stream = '{stream.value}'
             AND rest.number <= {column}_parts), '') END"""


def end(stream: Stream) -> str:
    """The last `tail` characters of an output, or fewer: it looks at no more than one part."""
    column = f"tasks.{stream.value}"
    return f"""right(CASE WHEN {column}_parts = 0 THEN {column} ELSE coalesce((
           SELECT rest.part FROM task_outputs AS rest
           WHERE rest.task_id = tasks.id AND rest.attempt = tasks.attempt AND rest.stream = '{stream.value}'
             AND rest.number = {column}_parts), {column}) END, %(tail)s::int4)"""


SIZE = f"""coalesce(octet_length(output), 0) + coalesce(octet_length(error_output), 0)
           + {PART}::int8 * (output_parts + error_output_parts)"""
"""About how many bytes both outputs of a row of TASKS have, without a look at the parts."""


LENGTH = f"coalesce(length(output), 0) + {PART} * output_parts"
"""How many characters an output of a row of TASKS has; of a long one, rounded up to whole parts."""


def keep(held: str) -> str:
    """Write the parts of those attempts that another part of the statement has found to be held: rows of an id and an attempt."""
    return f"""
        INSERT INTO task_outputs (task_id, attempt, stream, number, part)
        SELECT rest.task_id, rest.attempt, rest.stream, rest.number, rest.part
        FROM unnest(
            %(rest_ids)s::int8[], %(rest_attempts)s::int4[], %(rest_streams)s::text[], %(rest_numbers)s::int4[],
            %(rest_parts)b::text[]
        ) AS rest (task_id, attempt, stream, number, part)
        JOIN {held} AS held ON held.id = rest.task_id AND held.attempt = rest.attempt
        ON CONFLICT (task_id, attempt, stream, number) DO UPDATE SET part = excluded.part
            WHERE task_outputs.part <> excluded.part
        RETURNING 1
"""


FORGET = """
DELETE FROM task_outputs USING unnest(%(ids)s::int8[], %(attempts)s::int4[]) AS held (id, attempt)
WHERE task_outputs.task_id = held.id AND task_outputs.attempt < held.attempt
"""
"""Delete what earlier attempts left behind. Whoever was given an attempt may do so, its lease lost or not: attempts only grow."""


def is_long(each: Written) -> bool:
    """Whether not all of it fits into TASKS."""
    return len(each.output) > PART or len(each.error_output) > PART


def beginnings(written: Sequence[Written]) -> dict[str, list[Any]]:
    """What goes into TASKS. None: that beginning is there already."""
    return {
        "outputs": [_beginning(each, Stream.OUTPUT) for each in written],
        "error_outputs": [_beginning(each, Stream.ERROR) for each in written],
        "output_parts": [_parts(each.output) for each in written],
        "error_output_parts": [_parts(each.error_output) for each in written],
    }


def rests(written: Sequence[Written]) -> dict[str, list[Any]]:
    """What goes into TASK_OUTPUTS, but for what is there already."""
    rows = [row for each in written for stream in Stream for row in _rest(each, stream)]
    names = ("rest_ids", "rest_attempts", "rest_streams", "rest_numbers", "rest_parts")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _beginning(each: Written, stream: Stream) -> str | None:
    return None if _shown(each, stream) >= PART else _text(each, stream)[:PART]


def _parts(text: str) -> int:
    return max(0, len(text) - 1) // PART


def _rest(each: Written, stream: Stream) -> Iterator[tuple[int, int, str, int, str]]:
    text = _text(each, stream)
    if last := _parts(text):
        for number in range(max(1, _shown(each, stream) // PART), last + 1):
            yield each.task_id, each.attempt, stream.value, number, text[number * PART : (number + 1) * PART]


def _shown(each: Written, stream: Stream) -> int:
    """How many characters of an output are in the record."""
    return each.shown.get(stream, 0) if isinstance(each, PartialOutput) else 0


def _text(each: Written, stream: Stream) -> str:
    return each.output if stream is Stream.OUTPUT else each.error_output
