"""What lets a worker tell its own story: its database and its sandboxes, with a witness beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence, Set
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from continuum.db.protocol import Database, Listener
from continuum.model import (
    Claim,
    Completion,
    Ending,
    HeartbeatAnswer,
    Lease,
    Outcome,
    RunRequest,
    Wakeup,
)
from continuum.requirements import Requirements
from continuum.sandbox.protocol import Layer, OutputSink, RequirementsFailed
from tests.chaos.history import (
    Accepted,
    Claimed,
    Extended,
    GivingBack,
    Offered,
    Recorder,
    Started,
    Stopped,
    Woken,
    Written,
)


class RecordedDatabase:
    """Stands in for a worker's database and writes down what the verbs that concern leases were answered."""

    def __init__(self, database: Database, worker: str, record: Recorder) -> None:
        self._database = database
        self._worker = worker
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def claim(self, worker_id: str, limit: int, *, lease: float, **bounds: Any) -> Claim:
        began = time.monotonic()
        tasks = await self._database.claim(worker_id, limit, lease=lease, **bounds)
        if tasks:
            leases = tuple(task.lease for task in tasks)
            self._record(Claimed(worker=self._worker, began=began, seconds=lease, wanted=limit, leases=leases))
        return tasks

    async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        outcomes = tuple(Accepted(each.task_id, each.attempt, each.status, each.output) for each in completions)
        self._record(Offered(worker=self._worker, outcomes=outcomes))
        began = time.monotonic()
        standing = await self._database.complete(worker_id, completions)
        lost = {each.lease for each in completions} - standing
        self._record(Written(worker=self._worker, began=began, standing=tuple(standing), lost=tuple(lost)))
        return standing

    async def release(self, worker_id: str, leases: Sequence[Lease]) -> int:
        self._record(GivingBack(worker=self._worker, leases=tuple(leases)))
        return await self._database.release(worker_id, leases)

    async def heartbeat(self, worker_id: str, held: Sequence[Lease], *, lease: float) -> HeartbeatAnswer:
        began = time.monotonic()
        answer = await self._database.heartbeat(worker_id, held, lease=lease)
        kept = tuple(each for each in held if each not in answer.lost)
        self._record(Extended(worker=self._worker, began=began, seconds=lease, kept=kept, lost=tuple(answer.lost)))
        return answer

    async def listen(self, listener: Listener) -> None:
        await self._database.listen(_RecordedListener(listener, self._record))


class _RecordedListener:
    """Passes wake-ups on."""

    def __init__(self, listener: Listener, record: Recorder) -> None:
        self._listener = listener
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def wake(self, wakeup: Wakeup) -> None:
        self._record(Woken(worker=self._listener.worker_id, wakeup=wakeup))
        self._listener.wake(wakeup)


class RecordingBackend:
    """Sandboxes in which a script is one number, the seconds that it takes, and the payload says how many attempts fail:
    `{"fails": 1}`. Its output names the attempt."""

    name = "recording"
    description = "none: a script is a number of seconds"

    def __init__(self, worker: str, record: Recorder) -> None:
        self._worker = worker
        self._record = record
        self._started = 0

    async def prepare(self) -> None:
        await trio.lowlevel.checkpoint()

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()

    def layer(self, requirements: Requirements) -> AbstractAsyncContextManager[Layer]:
        raise RequirementsFailed("there are none")

    async def start(self, layer: Layer | None = None) -> RecordingSandbox:
        await trio.lowlevel.checkpoint()
        self._started += 1
        return RecordingSandbox(f"{self._worker}-{self._started}", self._worker, self._record)

    async def sweep(self, live_workers: Set[str]) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class RecordingSandbox:
    """Writes down when a script begins and ends."""

    reusable = True

    def __init__(self, name: str, worker: str, record: Recorder) -> None:
        self.name = name
        self._worker = worker
        self._record = record

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        lease = Lease(request.task_id, request.attempt)
        output = f"attempt {request.attempt} of {request.task_id} on {self._worker}: {request.payload}"
        interrupted = True
        self._record(Started(worker=self._worker, lease=lease))
        try:
            await trio.sleep(float(request.code))
            interrupted = False
        finally:
            self._record(Stopped(worker=self._worker, lease=lease, interrupted=interrupted, output=output))
        if request.attempt <= json.loads(request.payload)["fails"]:
            return Outcome(Ending.FAILED, exit_code=1, output=output, message="meant to fail")
        return Outcome(Ending.COMPLETED, exit_code=0, output=output)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
