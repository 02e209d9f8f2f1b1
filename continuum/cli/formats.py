"""How times, statuses and tables are written for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from continuum.cli.output import one_line
from continuum.model import Status

STYLES: dict[str, str] = {
    Status.PENDING: "",
    Status.PROCESSING: "cyan",
    Status.COMPLETED: "green",
    Status.FAILED: "red",
    Status.CANCELLED: "yellow",
    Status.MALICIOUS: "bold red",
    "lost": "yellow",
    "released": "yellow",
}
"""Colours of statuses, and of what else an attempt may end as."""
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def span(seconds: float) -> str:
    """A length of time in its largest unit: `0.12 s`, `3 min`, `2 d`."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0.0, seconds):.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def between(start: dt.datetime | None, end: dt.datetime | None) -> str:
    """How long it was from one time to another; empty where one of them is not known."""
    return span((end - start).total_seconds()) if start and end else ""


def at(time: dt.datetime | None) -> str:
    """A time to the second, in UTC; empty for None."""
    return f"{time.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}" if time else ""


def styled(status: str) -> Text:
    """A status in its colour."""
    return Text(one_line(status), style=STYLES.get(status, ""))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str | Text]], *, right: Sequence[str] = ()) -> None:
    """A table that fits a terminal, its last column cut where it must be; elsewhere plain columns with all that is in them.

    right: the headings of columns of numbers.
    """
    console = Console()
    if console.is_terminal:
        console.print(make_table(headings, rows, right=right))
        return
    cells = [list(headings), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        padded = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        typer.echo("  ".join(padded).rstrip())


def make_table(headings: Sequence[str], rows: Sequence[Sequence[str | Text]], *, right: Sequence[str] = ()) -> Table:
    """The table for a terminal: what is in a cell is text, and no markup."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if heading == headings[-1] else None,
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table
