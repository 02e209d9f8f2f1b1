"""The view over all workers that `/global-status` gives."""

from __future__ import annotations

from continuum.db.protocol import Database
from continuum.status.shared import Shared
from continuum.status.views import Json, global_status


class Overview:
    """What `/global-status` answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shared = Shared(self._ask)

    async def read(self) -> Json:
        """The totals and the workers, about a second old at most. Raises `Unavailable`."""
        return await self._shared.get()

    async def _ask(self) -> Json:
        return global_status(await self._database.statistics(), await self._database.workers())
