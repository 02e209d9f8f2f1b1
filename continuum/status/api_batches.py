"""What the HTTP API tells of batches."""

from __future__ import annotations

from pydantic import Field
from quart import Response

from continuum.db.protocol import Database
from continuum.status.api_answers import answer
from continuum.status.api_errors import Refusal
from continuum.status.api_inputs import Input, Key, Short
from continuum.status.api_operations import Operation, Operations
from continuum.status.api_outputs import Output, values_of
from continuum.status.api_pressure import Pressure


class BatchPath(Input):
    name: Key


class BatchQuery(Input):
    """Whose batch it is."""

    tenant: Short | None = None


class BatchOutput(Output):
    """How many tasks of a batch are in each state. One that was tried again by a copy does not count, the copy does."""

    name: str
    total: int
    pending: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    malicious: int
    ended: bool = Field(description="Whether all of them have ended.")


FETCH = Operation(
    "getBatch",
    "GET",
    "/batches/{name}",
    "Say how a batch stands",
    {200: BatchOutput},
    path_model=BatchPath,
    query=BatchQuery,
)


class BatchHandlers:
    """Each method answers one operation."""

    def __init__(self, database: Database, pressure: Pressure) -> None:
        self._database = database
        self._pressure = pressure

    def serve(self, operations: Operations) -> None:
        """Add all of them to the API."""
        operations.add(FETCH, self.fetch)

    async def fetch(self, name: str, query: BatchQuery) -> Response:
        async with self._pressure.turn():
            progress = await self._database.batch(query.tenant, name)
        if not progress.total:
            raise Refusal(404, "no such batch", f"there is no task of the batch {name!r} of this tenant")
        return answer(BatchOutput(**values_of(progress, BatchOutput)))
