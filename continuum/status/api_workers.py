"""What the HTTP API does with workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from quart import Response

from continuum.db.protocol import Database
from continuum.status.api_answers import answer
from continuum.status.api_errors import Refusal
from continuum.status.api_inputs import Input
from continuum.status.api_operations import Operation, Operations
from continuum.status.api_outputs import Output
from continuum.status.api_pressure import Pressure

WorkerId = Annotated[
    str,
    Field(pattern="^[A-Za-z0-9][A-Za-z0-9._:-]*$", max_length=300, description="As `/global-status` lists it."),
]


class WorkerPath(Input):
    id: WorkerId


class WorkerAsked(Output):
    """What a worker was asked, which it learns of at its next heartbeat; `/global-status` says when it is drained."""

    id: WorkerId
    draining: bool


DRAIN = Operation(
    "drainWorker",
    "POST",
    "/workers/{id}/drain",
    "Have a worker claim nothing more, and finish what runs",
    {200: WorkerAsked},
    path_model=WorkerPath,
    changes=True,
)
UNDRAIN = Operation(
    "undrainWorker",
    "POST",
    "/workers/{id}/undrain",
    "Have a worker claim again",
    {200: WorkerAsked},
    path_model=WorkerPath,
    changes=True,
)


class WorkerHandlers:
    """Each method answers one operation."""

    def __init__(self, database: Database, pressure: Pressure) -> None:
        self._database = database
        self._pressure = pressure

    def serve(self, operations: Operations) -> None:
        """Add all of them to the API."""
        operations.add(DRAIN, self.drain)
        operations.add(UNDRAIN, self.undrain)

    async def drain(self, worker_id: str) -> Response:
        return await self._ask(worker_id, draining=True)

    async def undrain(self, worker_id: str) -> Response:
        return await self._ask(worker_id, draining=False)

    async def _ask(self, worker_id: str, *, draining: bool) -> Response:
        async with self._pressure.turn():
            found = await self._database.drain(worker_id, draining)
        if not found:
            raise Refusal(404, "no such worker", f"no worker {worker_id} runs; GET /global-status lists those that do")
        return answer(WorkerAsked(id=worker_id, draining=draining))
