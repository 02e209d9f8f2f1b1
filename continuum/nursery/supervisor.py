"""The supervision tree of one worker, and the order in which it ends.

    supervise
    ├─ pool          the sandboxes, removed last
    └─ services      heartbeat, wake-up, schedules, janitor, retention, reaper, admission, progress, screening, webhooks,
        │            those who follow shutdowns and reloads: alive until the last outcome is written
        └─ completion   ends once nothing runs and everything is written
            └─ executions   one task each, until done or out of grace
                └─ claim       ends as soon as shutdown is requested

A transient error never gets here: each service outlives it by itself. Any other exception ends the whole tree, from
the inside out; what ran is given back to the queue in `_hand_back`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
import trio

from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.nursery.admission import Admissions
from continuum.nursery.backoff import until_available
from continuum.nursery.claim import Claims
from continuum.nursery.completion import Completions
from continuum.nursery.execution import Executions
from continuum.nursery.heartbeat import Heartbeat
from continuum.nursery.janitor import Janitor
from continuum.nursery.progress import Progress
from continuum.nursery.queue_watch import QueueWatch
from continuum.nursery.reaper import Reaper
from continuum.nursery.retention import Retention
from continuum.nursery.schedules import ScheduleFiring
from continuum.nursery.screening import Screening
from continuum.nursery.signals import Shutdown, Signal
from continuum.nursery.state import WorkerState
from continuum.nursery.strain import ROOT, StrainWatch
from continuum.nursery.wakeup import WakeUps
from continuum.nursery.webhooks import Sender, Webhooks
from continuum.sandbox.limits import sandbox_bounds
from continuum.sandbox.pool import SandboxPool, open_pool
from continuum.sandbox.protocol import Backend
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

HAND_BACK_DEADLINE = 5.0
"""Seconds for giving back what still ran, at the very end; whatever is not given back expires with its lease."""
WRITE_DEADLINE = 10.0
"""Seconds that outcomes get to be written after the last execution ended, when the grace is shorter than that."""


async def supervise(
    settings: Settings,
    state: WorkerState,
    database: Database,
    backend: Backend,
    telemetry: Telemetry,
    shutdown: Shutdown,
    on_up: Callable[[], None] = lambda: None,
    screening: Screening | None = None,
    reloaded: Signal | None = None,
    sender: Sender | None = None,
    root: Path = ROOT,
) -> None:
    """Run one worker until `shutdown` is requested and everything it holds is finished or given back.

    screening: looks at code before it runs; None lets all of it run.
    sender: makes the deliveries of webhooks; None leaves them to others.
    root: where /proc and /sys are, which tell how short the host is of memory.
    on_up: called once the schema is found to fit; sandboxes may still be starting then.
    reloaded: raised when `settings` have changed (`continuum.reload`). Services read them at each turn; who would not look by
    himself is told here.

    Raises `SchemaMismatch` or `DialectMismatch`, and whatever a service did not expect.
    """
    state.health.report("sandbox", f"{backend.name} is starting")
    if not await _schema_fits(state, database, shutdown):
        return
    work, heartbeat_now, schedule_changed, task_began, webhook_due, schedules_changed, gated = (
        Signal() for _ in range(7)
    )
    admissions = Admissions(database, state, settings, gated, work)
    completions = Completions(database, state, telemetry, schedule_changed, work, webhook_due, admissions.ended)
    webhooks: Webhooks | None = None
    if sender is not None:
        webhooks = Webhooks(database, state, telemetry, sender, settings.lease_seconds / 2, webhook_due)
    try:
        async with (
            open_pool(backend, settings.slots, settings.max_tasks_per_sandbox) as pool,
            trio.open_nursery() as services,
        ):
            heartbeat = Heartbeat(
                database,
                state,
                completions,
                settings.lease_seconds,
                settings.heartbeat_interval,
                heartbeat_now,
                work,
            )
            wakeups = WakeUps(
                database, state, settings, work, heartbeat_now, schedule_changed, schedules_changed, gated
            )
            firing = ScheduleFiring(database, state, telemetry, settings, work, schedules_changed)
            janitor = Janitor(
                database,
                state,
                telemetry,
                settings.lease_seconds / 2,
                settings.heartbeat_interval,
                settings,
                schedule_changed,
            )
            reaper = Reaper(backend, pool, database, state, work, settings)
            telemetry.observe(state, pool, completions)
            state.sandboxes = pool.view
            services.start_soon(heartbeat.run)
            services.start_soon(wakeups.run)
            services.start_soon(firing.run)
            services.start_soon(janitor.run)
            services.start_soon(Retention(database, state, settings).run)
            services.start_soon(reaper.run)
            services.start_soon(admissions.run)
            services.start_soon(StrainWatch(state, work, root).run)
            services.start_soon(Progress(database, state, task_began).run)
            if telemetry.has_metrics:
                services.start_soon(QueueWatch(database, telemetry).run)
            if screening is not None:
                services.start_soon(screening.run, state.health, work)
            if webhooks is not None:
                services.start_soon(webhooks.run)
            services.start_soon(_announce_shutdown, state, shutdown, work)
            if reloaded is not None:
                told = (work, schedule_changed, schedules_changed, heartbeat_now)
                services.start_soon(_follow_settings, settings, reloaded, state, pool, told)
            on_up()

            async with trio.open_nursery() as completing:
                completing.start_soon(completions.run)
                async with trio.open_nursery() as executing:
                    services.start_soon(_end_grace, shutdown, settings, executing.cancel_scope)
                    executions = Executions(
                        database,
                        state,
                        backend,
                        pool,
                        completions,
                        telemetry,
                        settings,
                        task_began,
                        screening,
                    )
                    claims = Claims(database, state, completions, telemetry, settings, work, shutdown)
                    await claims.run(executions.run, executing)
                completions.close()
                completing.cancel_scope.deadline = trio.current_time() + max(WRITE_DEADLINE, settings.shutdown_grace)
            if webhooks is not None:
                await webhooks.finish(shutdown)
            services.cancel_scope.cancel()
    finally:
        await _hand_back(state, database, completions)
        await backend.aclose()


async def _schema_fits(state: WorkerState, database: Database, shutdown: Shutdown) -> bool:
    """Wait for a database whose schema fits; False when shutdown came first."""
    fits = False
    async with trio.open_nursery() as nursery:

        async def check() -> None:
            nonlocal fits
            await until_available(state, "start", database.check_schema)
            fits = True
            if state.database_failures:
                state.steady_since = trio.current_time()  # an outage for others, too: their heartbeats come first
            nursery.cancel_scope.cancel()

        nursery.start_soon(check)
        await shutdown.requested.wait()
        nursery.cancel_scope.cancel()
    return fits


async def _announce_shutdown(state: WorkerState, shutdown: Shutdown, work: Signal) -> None:
    await shutdown.requested.wait()
    state.stopping = True
    state.health.report("worker", "shutting down")
    log.info("stopping: nothing new is claimed", running=len(state.running))
    state.give_back_waiting()
    work.notify()


async def _follow_settings(
    settings: Settings, reloaded: Signal, state: WorkerState, pool: SandboxPool, told: Iterable[Signal]
) -> None:
    """After each reload: have as many slots as there should be, let sandboxes with other limits give way, end the waits that
    were as long as an interval used to be, and let WORKERS know."""
    bounds = sandbox_bounds(settings)
    while True:
        await reloaded.wait(math.inf)
        pool.resize(settings.slots, settings.max_tasks_per_sandbox)
        if bounds != (bounds := sandbox_bounds(settings)):
            pool.renew()
        state.resize(settings.slots)
        for signal in told:
            signal.notify()


async def _end_grace(shutdown: Shutdown, settings: Settings, executions: trio.CancelScope) -> None:
    """End what still runs when the grace is over, or at once when asked a second time."""
    await shutdown.requested.wait()
    with trio.move_on_after(settings.shutdown_grace):
        await shutdown.urgent.wait()
    executions.cancel()


async def _hand_back(state: WorkerState, database: Database, completions: Completions) -> None:
    """Give back to the queue whatever the record still holds for this worker, write what is still unwritten (after
    an unexpected end), and sign off."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + HAND_BACK_DEADLINE):
        try:
            released = await database.release_except(state.id, list(completions.leases()))
            await database.sign_off(state.id)
        except DatabaseUnavailable as error:
            log.warning("could not sign off; what this worker held is recovered after its lease", error=str(error))
        else:
            log.info("signed off", given_back=released, processed=state.processed)
            completions.close()
            await completions.run()
    if len(completions):
        log.error("outcomes were not written before the end", leases=[tuple(lease) for lease in completions.leases()])
