"""A whole worker: opens what the supervision tree needs, serves its status, and turns signals into a shutdown."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import structlog
import trio

from continuum.config import Settings
from continuum.db import open_database
from continuum.nursery.screening import open_screening
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState, new_worker_id
from continuum.nursery.supervisor import supervise
from continuum.sandbox import choose_backend
from continuum.status.server import serve_status
from continuum.telemetry import start_telemetry

log = structlog.get_logger(__name__)

COLLECT_AFTER = (10_000, 20, 20)
"""Thresholds of the garbage collector, as `gc.set_threshold` takes them: a task makes hundreds of objects and next to no cycles,
and with Python's own (the first is 700) a tenth of a worker's time went into looking for them."""


async def run_worker(
    settings: Settings,
    *,
    shutdown: Shutdown | None = None,
    on_started: Callable[[WorkerState, str], None] | None = None,
) -> None:
    """Run one worker until SIGTERM or SIGINT, or until `shutdown` is requested.

    on_started: called with the worker's state and its status address (`http://host:port`) once its services run.

    Raises what an operator can mend (`ConfigurationError`, `SchemaMismatch`, `DialectMismatch`, `BackendUnavailable`,
    `StatusServerError`) and, unexpected, anything else; in an exception group where several services failed.
    """
    shutdown = shutdown or Shutdown()
    state = WorkerState(id=new_worker_id(), slots=settings.slots)
    structlog.contextvars.bind_contextvars(worker=state.id)
    screening = await open_screening(settings)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        telemetry = await stack.enter_async_context(start_telemetry(settings, state.id))
        database = telemetry.timed_database(database)
        backend = telemetry.timed_backend(await choose_backend(settings, state.id))
        # Before anybody can ask, who would be told that it is ready.
        state.health.report("sandbox", f"{backend.name} is starting")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, shutdown)
            address = await nursery.start(serve_status, settings, state, database, telemetry)
            log.info("worker started", status=address, slots=settings.slots, database=settings.db_dialect)

            def report_start() -> None:
                if on_started is not None:
                    on_started(state, address)

            with _seldom_collecting():
                await supervise(settings, state, database, backend, telemetry, shutdown, report_start, screening)
            nursery.cancel_scope.cancel()


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """What is there by now stays for the life of the worker: the garbage collector need not look at it over and over."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _obey_signals(shutdown: Shutdown) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal received", signal=signal.Signals(number).name)
            shutdown.request()
