"""The demo's course: an embedded PostgreSQL, a worker, a real workload, live progress, and a table at the end."""

from __future__ import annotations

import secrets
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from continuum.client import Client
from continuum.config import Settings, load_settings
from continuum.demo.workload import FAILING, WORKING, Kind, make_workload
from continuum.logs import configure_logs
from continuum.model import TaskRecord
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.sandbox import prepared_backend
from continuum.sandbox.protocol import BackendUnavailable
from continuum.worker import run_worker

log = structlog.get_logger(__name__)

START_DEADLINE = 60.0
"""Seconds for the database, the worker and its first sandbox."""
RUN_DEADLINE = 300.0
"""Seconds for the whole workload; it takes a tenth of that on a small machine."""
DASHBOARD_PORT = 8080
NOT_KNOWN = -1
"""How many outcomes are wrong, before the run has ended."""
PLAIN_WIDTH = 120
PLAIN_STEP = 0.1
"""Part of the workload between two lines of progress where nobody watches."""


@dataclass(slots=True)
class _Up:
    """The worker of the demo, once it runs."""

    event: trio.Event = field(default_factory=trio.Event)
    state: WorkerState | None = None
    address: str = ""

    def __call__(self, state: WorkerState, address: str) -> None:
        self.state, self.address = state, address
        self.event.set()


async def run_demo(folder: Path, count: int, keep: bool) -> int:
    """Run the demo and return its exit code: 0 only if every outcome is the expected one.

    folder: where its database lives. count: tasks of mixed kinds. keep: leave the dashboard up until Ctrl-C.
    """
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    settings = _demo_settings(folder)
    configure_logs(settings)
    console.print(f"[bold]Continuum demo[/bold]: embedded PostgreSQL in {settings.embedded_dir}", highlight=False)
    settings = await _with_usable_sandbox(settings, console)
    up, shutdown = _Up(), Shutdown()
    missed = NOT_KNOWN
    async with trio.open_nursery() as nursery:

        async def run_until_done() -> None:
            await run_worker(settings, shutdown=shutdown, on_started=up, load=partial(_demo_settings, folder))
            nursery.cancel_scope.cancel()  # ended early, by Ctrl-C

        nursery.start_soon(run_until_done)
        await _until_ready(up, console)
        missed = await _run_workload(settings, count, console)
        if keep:
            console.print(f"The dashboard {up.address}/ stays up until Ctrl-C.", highlight=False)
            await trio.sleep_forever()
        console.print(f"The dashboard was at {up.address}/; `continuum demo --keep` leaves it up.", highlight=False)
        shutdown.request()
    if missed == NOT_KNOWN:
        console.print("The demo was stopped before its end.")
    return 0 if missed == 0 else 1


def _demo_settings(folder: Path) -> Settings:
    wanted = load_settings()
    return load_settings(
        db_dialect="embedded",
        database_url=None,
        embedded_dir=folder,
        min_priority=0,
        max_priority=0,
        api_port=wanted.api_port if "api_port" in wanted.model_fields_set else _free_port(),
        log_level="warning",
        log_format=wanted.log_format if "log_format" in wanted.model_fields_set else "console",
    )


async def _with_usable_sandbox(settings: Settings, console: Console) -> Settings:
    """With SANDBOX=auto: docker if it is ready soon, and otherwise bubblewrap, saying why. A worker would go on waiting
    for an image; a demo should not. Raises `BackendUnavailable`."""
    if settings.sandbox != "auto":
        return settings
    backend, no_docker = await prepared_backend(settings, f"demo-{secrets.token_hex(4)}")
    await backend.aclose()
    if no_docker:
        console.print(f"Tasks run in bubblewrap and not in Docker: {no_docker}", highlight=False)
    return settings.model_copy(update={"sandbox": backend.name})


def _free_port() -> int:
    """The usual port, or any when somebody else has it."""
    import socket

    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", DASHBOARD_PORT))
        except OSError:
            return 0
    return DASHBOARD_PORT


async def _until_ready(up: _Up, console: Console) -> None:
    """Wait for the worker's first sandbox. Raises `BackendUnavailable` when there is none in time."""
    with trio.move_on_after(START_DEADLINE):
        await up.event.wait()
        assert up.state is not None
        await up.state.health.wait_until_well("sandbox")
        console.print(f"worker {up.state.id}: {up.state.slots} slots, sandbox {up.state.sandbox}", highlight=False)
        console.print(f"dashboard {up.address}/", highlight=False)
        return
    problem = up.state.health.problems.get("sandbox", "") if up.state else "the worker did not start"
    raise BackendUnavailable(f"the demo found no usable sandbox within {START_DEADLINE:g} s: {problem}")


async def _run_workload(settings: Settings, count: int, console: Console) -> int:
    """Submit, watch, check and report; return how many outcomes were not the expected ones."""
    workload = make_workload(count)
    async with Client(settings) as client:
        began = trio.current_time()
        ids = await client.submit_many([task for _, task in workload])
        with _progress(console, len(ids)) as show:
            records = await client.wait_many(ids, RUN_DEADLINE, show)
        seconds = trio.current_time() - began
    return _report([kind for kind, _ in workload], records, seconds, console)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar where a person watches, a line now and then where none does."""
    if console.is_terminal:
        columns = (TextColumn("tasks"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            row = bar.add_task("tasks", total=total)
            yield lambda done: bar.update(row, completed=done)
        return
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        if done - shown >= PLAIN_STEP * total or done == total:
            shown = done
            sys.stdout.write(f"{done}/{total} tasks done\n")
            sys.stdout.flush()

    yield show


def _report(kinds: Sequence[Kind], records: Sequence[TaskRecord], seconds: float, console: Console) -> int:
    """Print the table; return how many outcomes were not the expected ones."""
    table = Table(title="Outcomes", title_justify="left")
    for heading in ("kind", "tasks", "completed", "failed", "expected", "as expected", "p50", "p95"):
        table.add_column(heading, justify="left" if heading in ("kind", "expected") else "right")
    right = {kind.name: 0 for kind in kinds}
    by_kind: dict[str, list[TaskRecord]] = {kind.name: [] for kind in kinds}
    for kind, record in zip(kinds, records, strict=True):
        by_kind[kind.name].append(record)
        as_expected = record.status == kind.expected and kind.check(record)
        right[kind.name] += as_expected
        if not as_expected:
            console.print(f"not as expected: {kind.name}, task {record.id}: {record.status}, {record.last_error}")
    for kind in (each for each in (*WORKING, *FAILING) if each.name in by_kind):
        rows = by_kind[kind.name]
        waits = [latency(record) for record in rows]
        table.add_row(
            kind.name,
            str(len(rows)),
            str(sum(record.status == "completed" for record in rows)),
            str(sum(record.status == "failed" for record in rows)),
            kind.expected.value,
            f"{right[kind.name]}/{len(rows)}",
            f"{statistics.median(waits):.2f} s",
            f"{percentile(waits, 0.95):.2f} s",
        )
    console.print(table)
    waits = [latency(record) for record in records]
    console.print(
        f"{len(records)} tasks in {seconds:.1f} s: {len(records) / seconds:.1f} tasks/s, "
        f"from submit to done p50 {statistics.median(waits):.2f} s, p95 {percentile(waits, 0.95):.2f} s",
        highlight=False,
    )
    missed = len(records) - sum(right.values())
    verdict = (
        "[green]every outcome is the expected one[/green]" if not missed else f"[red]{missed} outcomes are wrong[/red]"
    )
    console.print(verdict)
    return missed


def latency(record: TaskRecord) -> float:
    """Seconds from submission to the end, both on the database's clock."""
    assert record.finished is not None
    return (record.finished - record.created_at).total_seconds()


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]
