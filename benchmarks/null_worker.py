"""A whole worker, telemetry and status server included, whose sandboxes are none: a script ends when it starts.

    DATABASE_URL=... SLOTS=8 python -m benchmarks.null_worker

Prints its status address once it is up. What is left is the way of a task through the worker and the database. Other modules
take `NullBackend` from here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from functools import partial

import trio

from benchmarks.setting import quiet_logs
from continuum import worker
from continuum.config import Settings, load_settings
from continuum.model import Ending, Outcome, RunRequest
from continuum.nursery.state import WorkerState
from continuum.requirements import Requirements
from continuum.sandbox.protocol import Layer, OutputSink


class NullSandbox:
    """Runs nothing, in no time."""

    name = "none"
    reusable = True

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Outcome(Ending.COMPLETED, exit_code=0, output="hello\n")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class NullBackend:
    """Makes them."""

    name = "none"
    description = "none: a script ends when it starts"

    async def prepare(self) -> None:
        await trio.lowlevel.checkpoint()

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def layer(self, requirements: Requirements) -> AsyncIterator[Layer]:
        yield Layer("none", requirements.digest)

    async def start(self, layer: Layer | None = None) -> NullSandbox:
        await trio.lowlevel.checkpoint()
        return NullSandbox()

    async def sweep(self, live_workers: Set[str]) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def _choose_null(settings: Settings, worker_id: str) -> NullBackend:
    await trio.lowlevel.checkpoint()
    return NullBackend()


def announce(state: WorkerState, address: str) -> None:
    print(address, flush=True)


def main() -> None:
    quiet_logs()
    vars(worker)["choose_backend"] = _choose_null
    trio.run(partial(worker.run_worker, load_settings(api_port="0"), on_started=announce))


if __name__ == "__main__":
    main()
