"""`continuum show`: a task's whole story, the cause of its end first."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.text import Text

from continuum.cli.formats import at, between, print_table, span, styled
from continuum.cli.output import for_terminal, one_line
from continuum.db.protocol import Database
from continuum.model import OTHERS_NAMED, CodeRecord, Status, TaskRecord
from continuum.waiting import in_words

PLACE = re.compile(r'^ *File "[^"\n]*script\.py", line (\d+)', re.MULTILINE)
"""Where a traceback passes through the script."""
AROUND = 2
"""Lines of code shown before and after that place."""
LAST_LINES = 15
"""Lines shown of the end of each output."""


async def tell_story(database: Database, task: TaskRecord) -> None:
    """Print a task for people: what it is, how each attempt ended, its error and where in its code, what it wrote last."""
    code = await database.fetch_code(task.code_id) if task.code_id else None
    console = Console(soft_wrap=True, highlight=False)
    print_ = console.print
    print_(Text.assemble((f"task {task.id}", "bold"), f"  {one_line(task.name)}  ", styled(task.status)))
    waits: str | None = None
    if task.status == Status.PENDING:
        waits = in_words(task, await database.waits_for(task.id), await database.workers())
    for name, value in _facts(task, waits):
        print_(Text.assemble((f"  {name:<16}", "dim"), one_line(value)))
    if attempts := list(_attempts(task)):
        print_()
        print_table(
            ("attempt", "ended as", "began (UTC)", "took", "worker", "exit code", "why"), attempts, right=("attempt",)
        )
    if task.last_error and task.status != Status.COMPLETED:
        _heading(console, "error")
        _text(console, task.last_error)
    if place := _place(task, code):
        _heading(console, f"code, line {place[0]}")
        print_(Text("\n").join(place[1]))
    for name, text in (("stdout", task.output), ("stderr", task.error_output)):
        if text:
            _heading(console, name)
            _text(console, text)
    for line in _next_steps(task):
        typer.echo(f"continuum: {line}", err=True)


def _facts(task: TaskRecord, waits: str | None) -> Iterator[tuple[str, str]]:
    now = dt.datetime.now(dt.UTC)
    yield "created", f"{at(task.created_at)} UTC, {between(task.created_at, now)} ago"
    if task.run_at and task.status == Status.PENDING:
        yield "due", f"{at(task.run_at)} UTC"
    if task.expires_at and not task.finished:
        yield "expires", f"{at(task.expires_at)} UTC, unless it began before"
    if task.started and task.finished:
        waited = between(task.created_at, task.started)
        yield (
            "ended",
            f"{at(task.finished)} UTC, after {between(task.started, task.finished)}; began {waited} after it was created",
        )
    elif task.status == Status.PROCESSING:
        yield "running", f"since {at(task.started)} UTC, {between(task.started, now)}, on {task.worker_id}"
    limits = f"{task.max_attempts} attempt{'s' if task.max_attempts > 1 else ''}" + (
        f", {span(task.timeout)} each" if task.timeout else ""
    )
    yield "may have", limits
    if task.retry:
        yield "tried again", f"as {task.retry} says"
    if task.priority:
        yield "priority", str(task.priority)
    for name in ("tenant", "description", "webhook", "sequence_key", "concurrency_key", "batch"):
        if value := getattr(task, name):
            yield name.replace("_", " "), str(value)
    if task.worker_tags:
        yield "worker tags", ", ".join(task.worker_tags)
    if task.depends_on or task.depends_batch is not None:
        yield "depends on", _dependencies(task)
    if waits:
        yield "waits for", waits
    if task.retry_of:
        yield "a copy of", f"task {task.retry_of}"
    if task.retried_as:
        yield "tried again", f"as task {task.retried_as}"
    if task.payload is not None:
        yield "payload", task.payload
    if task.code_id:
        yield "code", task.code_id


def _dependencies(task: TaskRecord) -> str:
    named = ", ".join(str(each) for each in task.depends_on[:OTHERS_NAMED])
    more = f" and {len(task.depends_on) - OTHERS_NAMED} more" if len(task.depends_on) > OTHERS_NAMED else ""
    batch = "" if task.depends_batch is None else f"{', ' if named else ''}the batch {task.depends_batch}"
    any_one = "any one of " if task.depends_any else ""
    return f"{any_one}{named}{more}{batch}{', however they end' if task.depends_ended else ''}"


def _attempts(task: TaskRecord) -> Iterator[tuple[str | Text, ...]]:
    for each in task.history:
        yield (
            str(each.attempt),
            styled(each.ending),
            at(each.started),
            between(each.started, each.ended),
            each.worker or "",
            "" if each.exit_code is None else str(each.exit_code),
            one_line((each.message or "").split("\n", 1)[0], 120),
        )
    if task.attempt and task.status in (Status.COMPLETED, Status.PROCESSING):
        end = task.finished or dt.datetime.now(dt.UTC)
        code = "" if task.exit_code is None else str(task.exit_code)
        yield (
            str(task.attempt),
            styled(task.status),
            at(task.started),
            between(task.started, end),
            task.worker_id or "",
            code,
            "",
        )


def _place(task: TaskRecord, code: CodeRecord | None) -> tuple[int, list[Text]] | None:
    """The line of the script that the last traceback ends in, and its neighbours."""
    found = PLACE.findall(f"{task.last_error or ''}\n{task.error_output or ''}")
    if not found or code is None or task.status == Status.COMPLETED:
        return None
    lines, line = code.code.splitlines(), int(found[-1])
    if not 1 <= line <= len(lines):
        return None
    first = max(1, line - AROUND)
    shown = [
        Text(
            f"{'>' if number == line else ' '} {number:>4}  {for_terminal(text)}",
            style="bold" if number == line else "dim",
        )
        for number, text in enumerate(lines[first - 1 : line + AROUND], first)
    ]
    return line, shown


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _text(console: Console, text: str) -> None:
    """The end of a text, indented by two; a pipe gets it as it is, but for that."""
    lines = text.splitlines()
    left_out = len(lines) - LAST_LINES
    if left_out > 0:
        console.print(Text(f"  ... {left_out} lines before these", style="dim"))
    for line in lines[-LAST_LINES:]:
        console.print(Text.from_ansi(f"  {for_terminal(line)}") if console.is_terminal else Text(f"  {line}"))


def _next_steps(task: TaskRecord) -> Iterator[str]:
    if task.status in (Status.FAILED, Status.CANCELLED, Status.MALICIOUS) and not task.retried_as:
        yield f"`continuum retry {task.id}` tries it again, `continuum logs {task.id}` prints all that it wrote"
    elif task.status in (Status.PENDING, Status.PROCESSING):
        yield f"`continuum logs -f {task.id}` follows it, `continuum cancel {task.id}` stops it"
