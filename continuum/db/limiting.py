"""Changing a limit and leaving the rest of it as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from continuum.db.protocol import Database
from continuum.model import Limit, Scope


async def change_limit(database: Database, scope: Scope, name: str, change: Callable[[Limit], Limit]) -> Limit:
    """Make a row of LIMITS, which may not be there yet, what `change` makes of it; return that. Raises `InvalidLimit`."""
    known = {(limit.scope, limit.name): limit for limit in await database.limits()}
    limit = change(known.get((scope, name)) or Limit(scope, name))
    await database.set_limit(limit)
    return limit


async def pause_limit(database: Database, scope: Scope, name: str, paused: bool) -> Limit:
    """Let nothing of it begin, or let it begin again; the latter is written down as well, since it stands against a `*` that is
    paused. Raises `InvalidLimit`."""
    return await change_limit(database, scope, name, lambda limit: replace(limit, paused=paused))
