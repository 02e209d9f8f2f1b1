"""A progress bar where a person watches: at a terminal, or in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    def __call__(self, done: int, failed: int, total: int | None = None) -> None:
        """Show how many are done, how many of these failed, and how many there are, where that has changed."""


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Show]:
    """Within the block, a function that shows how many are done. total: None when not known.

    It goes to stderr, and nowhere when that is no terminal, or shows another bar already.
    """
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal or console.is_jupyter),
    )
    row = bar.add_task(description, total=total, failed="")
    try:
        bar.start()
    except LiveError:
        bar.disable = True

    def show(done: int, failed: int, total: int | None = None) -> None:
        bar.update(row, completed=done, total=total, failed=f"{failed} failed" if failed else "")

    try:
        yield show
    finally:
        bar.stop()
