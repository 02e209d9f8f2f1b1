"""A task until its end: what `continuum logs`, `run` and `wait` print."""

from __future__ import annotations

import json
import sys

import trio
import typer

from continuum.cli import views
from continuum.cli.errors import FAILED, OK
from continuum.cli.output import Printer, one_line
from continuum.client import Client, WaitTimeout
from continuum.client.progress import progress_bar
from continuum.client.waiting import PATIENCE
from continuum.db.errors import DatabaseUnavailable
from continuum.dependencies import progress_values
from continuum.model import BatchProgress, Status, Stream, TaskRecord
from continuum.waiting import A_WORKER, in_words

UNTAKEN = 3.0
"""Seconds for which a task is pending before those who watch it are told why that may be."""
RETRY_PAUSE = 1.0
"""Seconds between two looks while the database is away."""


async def follow_task(client: Client, task_id: int, as_json: bool = False, *, to_the_end: bool = True) -> TaskRecord:
    """Print what a task writes as it comes, until its end or until now; return it as it is then.

    What is worth a person's attention comes between, on stderr: another attempt, a task that nobody takes, a database that is
    away. Outages of up to PATIENCE are waited out.
    """
    printer = Printer(as_json)
    logs = client.logs(task_id, follow=to_the_end)
    began = trio.current_time()
    answered: float | None = None
    told: set[str | int] = set()
    before: TaskRecord | None = None
    while not logs.ended:
        try:
            record, pieces = await logs.look()
            if before is not None and before.attempt not in told and (news := _news(before, record)):
                told.add(before.attempt)
                printer.remark(news)
            if record.status == Status.PENDING and trio.current_time() - began > UNTAKEN and "why" not in told:
                told.add("why")
                printer.remark(await _why_it_waits(client, record))
        except DatabaseUnavailable as error:
            if answered is None or trio.current_time() - answered > PATIENCE:
                raise
            if "away" not in told:
                printer.remark(f"the database is away, trying again: {error}")
            told.add("away")
            await trio.sleep(RETRY_PAUSE)
            continue
        answered, before = trio.current_time(), record
        told.discard("away")
        for stream, text in pieces:
            printer.piece(stream, text)
    assert before is not None
    if to_the_end and not as_json and (before.status != Status.COMPLETED or sys.stderr.isatty()):
        printer.remark(ending(before))
    return before


def _news(before: TaskRecord, now: TaskRecord) -> str:
    """What became of an attempt that is over while the task goes on; empty when it is not."""
    over = now.attempt > before.attempt or (now.status, before.status) == (Status.PENDING, Status.PROCESSING)
    if before.attempt == 0 or not over:
        return ""
    if now.released > before.released:
        return f"attempt {before.attempt} was given back by its worker; another follows"
    return f"attempt {before.attempt} failed: {cause_of(now)}; another follows"


async def _why_it_waits(client: Client, record: TaskRecord) -> str:
    if record.run_at is not None:
        return f"task {record.id} is not due before {record.run_at:%Y-%m-%d %H:%M:%S} UTC"
    workers = await client.database.workers()
    if not any(worker.alive for worker in workers):
        return f"task {record.id} waits, and no worker is alive: start one with `continuum worker`"
    waits = in_words(record, await client.database.waits_for(record.id), workers) or A_WORKER
    hint = "; does MIN_PRIORITY or MAX_PRIORITY of theirs leave it out? `continuum status` shows them"
    return f"task {record.id} waits for {waits}{hint if waits == A_WORKER else ''}"


async def follow_batch(client: Client, name: str, tenant: str | None, seconds: float | None) -> BatchProgress:
    """How a batch stands once all of its tasks have ended, with a bar at a terminal until then. Outages of up to PATIENCE are
    waited out. Raises `WaitTimeout`, `TaskNotFound`."""
    answered = trio.current_time()
    progress = BatchProgress(name)
    with (
        progress_bar(one_line(name, 60), None) as show,
        trio.move_on_after(float("inf") if seconds is None else seconds),
    ):
        while not progress.ended:
            try:
                progress = await client.batch(name, tenant)
            except DatabaseUnavailable:
                if trio.current_time() - answered > PATIENCE:
                    raise
            else:
                answered = trio.current_time()
                ended = progress.total - progress.open
                show(ended, ended - progress.completed, progress.total)
            if not progress.ended:
                await trio.sleep(views.REFRESH)
    if not progress.ended:
        raise WaitTimeout(
            f"{progress.open} of {progress.total} tasks of the batch {name} had not ended in {seconds:g} s"
        )
    return progress


def print_batch(progress: BatchProgress, as_json: bool, *, waited: bool) -> int:
    """Print how a batch stands; return the exit code: of one that was waited for, whether all of its tasks completed."""
    if as_json:
        typer.echo(json.dumps(progress_values(progress) | {"ended": progress.ended}))
    else:
        counts = [f"{count} {status}" for status in Status if (count := getattr(progress, status))]
        typer.echo(f"{one_line(progress.name)}: {progress.total} tasks, {', '.join(counts)}")
    return FAILED if waited and progress.completed < progress.total else OK


def print_end(record: TaskRecord, as_json: bool) -> int:
    """Print what a task that has ended wrote, and how it ended; return the exit code that fits."""
    if as_json:
        typer.echo(json.dumps(views.task_as_json(record)))
    else:
        printer = Printer(as_json=False)
        printer.piece(Stream.OUTPUT, record.output or "")
        printer.piece(Stream.ERROR, record.error_output or "")
        if record.status != Status.COMPLETED:
            printer.remark(ending(record))
    return code_of(record)


def code_of(record: TaskRecord) -> int:
    """The exit code for a task that was followed to its end."""
    return OK if record.status == Status.COMPLETED else FAILED


def ending(record: TaskRecord) -> str:
    """One line on how a task ended."""
    if record.status == Status.COMPLETED:
        seconds = (record.finished - record.started).total_seconds() if record.finished and record.started else 0.0
        return f"task {record.id} completed in {seconds:.2f} s"
    return f"task {record.id} {record.status}: {cause_of(record)}; `continuum show {record.id}` tells more"


def cause_of(record: TaskRecord) -> str:
    """The first line of a task's last error."""
    return next(iter((record.last_error or "").splitlines()), "no reason given")
