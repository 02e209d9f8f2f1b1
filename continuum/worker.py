"""A whole worker: opens what the supervision tree needs, serves its status, and turns signals into a shutdown."""

from __future__ import annotations

import gc
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import structlog
import trio

from continuum import systemd
from continuum.config import Settings, load_settings
from continuum.db import open_database
from continuum.logs import configure_logs
from continuum.nursery.screening import open_screening
from continuum.nursery.signals import Shutdown, Signal
from continuum.nursery.state import WorkerState, new_worker_id
from continuum.nursery.supervisor import supervise
from continuum.nursery.webhooks import Sender
from continuum.reload import Reloads
from continuum.sandbox import choose_backend
from continuum.sandbox.protocol import Backend
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
    load: Callable[[], Settings] = load_settings,
) -> None:
    """Run one worker until SIGTERM or SIGINT, or until `shutdown` is requested.

    on_started: called with the worker's state and its status address (`http://host:port`) once its services run.
    load: reads the settings anew on SIGHUP; raises `ConfigurationError`.

    Raises what an operator can mend (`ConfigurationError`, `SchemaMismatch`, `DialectMismatch`, `BackendUnavailable`,
    `StatusServerError`) and, unexpected, anything else; in an exception group where several services failed.
    """
    shutdown, reloaded = shutdown or Shutdown(), Signal()

    def settings_changed(names: frozenset[str]) -> None:
        if "log_level" in names:
            configure_logs(settings)
        reloaded.notify()

    reloads = Reloads(settings, load, shutdown.request, settings_changed, shutdown.requested.is_set)
    state = WorkerState(id=new_worker_id(), slots=settings.slots)
    structlog.contextvars.bind_contextvars(worker=state.id)
    async with trio.open_nursery() as listening, AsyncExitStack() as stack:
        # Before anything that may take long: a SIGHUP ends a process that does not expect it.
        await listening.start(reloads.run)
        screening = await open_screening(settings)
        database = await stack.enter_async_context(open_database(settings))
        telemetry = await stack.enter_async_context(start_telemetry(settings, state.id))
        database = telemetry.timed_database(database)
        chosen = await choose_backend(settings, state.id)
        sender = sender_of(settings, chosen)
        backend = telemetry.timed_backend(chosen)
        # Before anybody can ask, who would be told that it is ready.
        state.health.report("sandbox", f"{backend.name} is starting")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, shutdown)
            address = await nursery.start(serve_status, settings, state, database, telemetry)
            log.info("worker started", status=address, slots=settings.slots, database=settings.db_dialect)
            nursery.start_soon(_tell_systemd, state)

            def report_start() -> None:
                if on_started is not None:
                    on_started(state, address)

            with _seldom_collecting():
                await supervise(
                    settings, state, database, backend, telemetry, shutdown, report_start, screening, reloaded, sender
                )
            nursery.cancel_scope.cancel()
        listening.cancel_scope.cancel()


def sender_of(settings: Settings, backend: Backend) -> Sender | None:
    """What makes the deliveries of webhooks, where any are made; its imports take a tenth of a start."""
    if settings.webhook_secret is None:
        return None
    if settings.egress == "none":
        log.warning("this worker delivers no webhooks: EGRESS=none; name receivers with EGRESS=allowlist")
        return None
    from continuum.nursery.webhook_sender import open_sender
    from continuum.sandbox.docker import DockerBackend

    # A worker in a container has other addresses than the machine, which deliveries must not reach either.
    return open_sender(settings, lambda: backend.host_addresses if isinstance(backend, DockerBackend) else ())


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


async def _tell_systemd(state: WorkerState) -> None:
    """Say that the worker is started (a database that is away is waited for, and no reason to restart it), how it is, and, where
    a watchdog wants to know, that it lives; never return."""
    systemd.tell_ready()
    interval = systemd.watchdog_interval() or math.inf
    while True:
        problems = state.health.problems
        if state.stopping:
            systemd.tell_stopping()
        systemd.tell_status("; ".join(problems.values()) or f"ready, {state.slots} slots, {state.sandbox}")
        with trio.move_on_after(interval):
            await state.health.wait_for_change()
        systemd.tell_alive()
