"""What the HTTP API tells of limits."""

from __future__ import annotations

from pydantic import Field
from quart import Response

from continuum.db.protocol import Database
from continuum.model import HeldBackBy, Scope
from continuum.status.api_answers import answer
from continuum.status.api_operations import Operation, Operations
from continuum.status.api_outputs import Output, values_of
from continuum.status.api_pressure import Pressure


class LimitOutput(Output):
    """A row of LIMITS. `running` and `starts` are how much of a tenant's own `max_running` and `rate` is used now."""

    scope: Scope
    name: str
    weight: float | None
    max_running: int | None
    rate: int | None
    rate_period: float | None = Field(description="Seconds.")
    max_pending: int | None
    paused: bool | None
    running: int | None
    starts: int | None


class HeldBackOutput(Output):
    """Due tasks that wait for something other than a worker, each counted for the first reason that holds."""

    reason: HeldBackBy
    tenants: int
    tasks: int


class LimitsOutput(Output):
    """The first 200 limits, and what waits for them and for pauses."""

    limits: list[LimitOutput]
    held_back: list[HeldBackOutput]


LIST = Operation("listLimits", "GET", "/limits", "List limits and what they hold back", {200: LimitsOutput})


class LimitHandlers:
    """Each method answers one operation."""

    def __init__(self, database: Database, pressure: Pressure) -> None:
        self._database = database
        self._pressure = pressure

    def serve(self, operations: Operations) -> None:
        """Add all of them to the API."""
        operations.add(LIST, self.list)

    async def list(self) -> Response:
        async with self._pressure.turn():
            uses, held = await self._database.limit_uses(), await self._database.held_back()
        limits = [
            LimitOutput(
                scope=use.limit.scope,
                name=use.limit.name,
                weight=use.limit.weight,
                max_running=use.limit.max_running,
                rate=use.limit.rate,
                rate_period=use.limit.rate_period,
                max_pending=use.limit.max_pending,
                paused=use.limit.paused,
                running=use.running,
                starts=use.starts,
            )
            for use in uses
        ]
        return answer(
            LimitsOutput(limits=limits, held_back=[HeldBackOutput(**values_of(each, HeldBackOutput)) for each in held])
        )
