"""One claimed task from its slot to its outcome: one cancel scope, one sandbox, one plain value at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.dependencies import payload_with
from continuum.logs import tell_attempt
from continuum.model import EXPIRED, ClaimedTask, Ending, Outcome, RunRequest, Stream
from continuum.nursery.backoff import until_available
from continuum.nursery.completion import Completions, decide
from continuum.nursery.screening import Screening, ScreeningUnusable
from continuum.nursery.signals import Signal
from continuum.nursery.state import Running, StopReason, WorkerState
from continuum.requirements import BadRequirements, Requirements, parse_requirements
from continuum.sandbox.pool import SandboxPool
from continuum.sandbox.protocol import (
    Backend,
    BackendUnavailable,
    LayerGone,
    RequirementsFailed,
    Sandbox,
    SandboxLost,
)
from continuum.telemetry import Telemetry, current_traceparent

log = structlog.get_logger(__name__)

DEAD_IN_A_ROW = 3
"""How many sandboxes that ended before one task's script began are no accident any more. Those that had run nothing speak against
the backend; those that ended while they took the request, against the request. One that was used may have died idle, of
whatever its tenant left it with: it says nothing, and is passed over."""


@dataclass(slots=True)
class Executions:
    """Runs claimed tasks; what it needs is given once, so that a task's story is told by `run` alone."""

    database: Database
    state: WorkerState
    backend: Backend
    pool: SandboxPool
    completions: Completions
    telemetry: Telemetry
    settings: Settings
    task_began: Signal
    """Raised when there is a task to run."""
    screening: Screening | None = None

    async def run(self, task: ClaimedTask) -> None:
        """Run an admitted task once it has a slot, and hand its outcome to the completion service, or its lease back."""
        running = self.state.held(task.lease)
        assert running is not None
        self.task_began.notify()
        tell_attempt(task.id, task.attempt, task.traceparent)
        outcome: Outcome | None = None
        try:
            with running.scope:
                if not running.granted.is_set():  # a wait for what is set takes a turn of Trio's
                    await running.granted.wait()
                if trio.current_time() >= running.expires:
                    outcome = Outcome(Ending.CANCELLED, message="\n".join(filter(None, (EXPIRED, task.last_error))))
                else:
                    with self.telemetry.execution(task):
                        outcome = await self._run_in_sandbox(task, running)
            match running.stop_reason:
                case StopReason.CANCELLED if outcome is None:
                    outcome = _cut_short(running, Ending.CANCELLED, "Cancelled while it ran")
                case StopReason.LOST:
                    outcome = None
                    self.state.leases_lost += 1
                    log.warning("the lease passed to somebody else; the run was stopped", **task.lease._asdict())
                    return
        except BackendUnavailable as error:
            log.warning("no sandbox; the task goes back to the queue", task_id=task.id, error=str(error))
            self.state.health.report("sandbox", str(error))
        except ScreeningUnusable as error:
            log.warning("not screened; the task goes back to the queue", task_id=task.id, error=str(error))
            self.state.health.report("screening", str(error))
        finally:
            self.state.leave(running)
        if outcome is None:
            self.completions.release(task.lease)
        else:
            self.telemetry.task_ended(task, outcome, trio.current_time() - running.since)
            self.completions.put(decide(task, outcome, self.settings.quarantine_after))

    async def _run_in_sandbox(self, task: ClaimedTask, running: Running) -> Outcome:
        if (traceparent := current_traceparent()) is not None:
            running.traceparent = traceparent
            tell_attempt(task.id, task.attempt, traceparent)
        if task.code is None:
            return Outcome(Ending.INVALID, message=_missing_code(task))
        if self.screening is not None and (refusal := await self.screening.refuse(task)) is not None:
            return refusal
        request = RunRequest(
            task_id=task.id,
            attempt=task.attempt,
            code=task.code,
            payload=await self._payload_of(task),
            timeout=time_for(task, self.settings.task_timeout),
            output_limit=self.settings.output_limit,
            environment={"TRACEPARENT": running.traceparent} if running.traceparent else {},
            tenant=task.tenant,
            requirements=task.requirements,
        )
        against_backend = against_request = 0
        # No more can be there, unless new ones keep dying. After SLOTS has shrunk, more than that may be.
        for _ in range(max(self.state.slots, self.pool.total) + 2 * DEAD_IN_A_ROW):
            try:
                async with self._sandbox(request) as sandbox:
                    running.sandbox = sandbox.name
                    return await sandbox.run(request, running.transcript.write)
            except SandboxLost as error:
                if error.started:
                    return _cut_short(running, Ending.SANDBOX_LOST, f"Sandbox lost: {error}")
                against_request = against_request + 1 if error.amid_request else 0
                if against_request == DEAD_IN_A_ROW:
                    return _cut_short(
                        running, Ending.SANDBOX_LOST, f"Sandbox lost, {against_request} in a row: {error}"
                    )
                against_backend += not error.used and not error.amid_request
                log.info("a sandbox was dead before the script began; taking another", error=str(error))
            except LayerGone as error:
                against_backend += 1
                log.info("what a script requires was removed before it began; taking it again", error=str(error))
            except BadRequirements as error:
                return Outcome(Ending.INVALID, message=f"Invalid requirements: {error}")
            except RequirementsFailed as error:
                return Outcome(Ending.FAILED, message=f"Requirements not installed: {error}")
            if against_backend == DEAD_IN_A_ROW:
                break
        raise BackendUnavailable("sandbox after sandbox was dead before the script began")

    async def _payload_of(self, task: ClaimedTask) -> str:
        if not task.depends:
            return task.payload
        told = await until_available(self.state, "execution", lambda: self.database.dependencies(task.id))
        return payload_with(task.payload, told)

    def _sandbox(self, request: RunRequest) -> AbstractAsyncContextManager[Sandbox]:
        """A sandbox of the script's tenant in which what it requires can be imported."""
        if request.requirements and (requirements := parse_requirements(request.requirements)).lines:
            return self._sandbox_with(requirements, request)
        return self.pool.sandbox(request.tenant)

    @asynccontextmanager
    async def _sandbox_with(self, requirements: Requirements, request: RunRequest) -> AsyncIterator[Sandbox]:
        async with self.backend.layer(requirements) as layer, self.pool.sandbox(request.tenant, layer) as sandbox:
            yield sandbox


def time_for(task: ClaimedTask, longest: float) -> float:
    """Seconds that a task may run: its own wish where that is a time and not the worker's longest. A row may hold anything,
    NaN included."""
    return task.timeout if task.timeout is not None and 0 < task.timeout < longest else longest


def _cut_short(running: Running, ending: Ending, message: str) -> Outcome:
    """The outcome of a run that did not end by itself: with what it had written until then."""
    return Outcome(
        ending,
        output=running.transcript.text(Stream.OUTPUT),
        error_output=running.transcript.text(Stream.ERROR),
        message=message,
    )


def _missing_code(task: ClaimedTask) -> str:
    if task.code_id is None:
        return "Invalid task: it names no code; set TASKS.code to the id of a row of CODES"
    return f"Invalid task: CODES holds no code with id {task.code_id}"
