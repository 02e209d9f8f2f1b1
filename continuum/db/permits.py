"""What LIMITS allows the tenants that a claim on CockroachDB comes to, and which permits are free for it."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from continuum.db.cockroach_ring import Place
from continuum.db.dialect import Read, Rows, Run
from continuum.db.fair import MOST_PERMITS

FIND_LIMITS = """
SELECT limits.scope, limits.name, weight, max_running, rate, rate_period_s, paused
FROM unnest(%(scopes)s::text[], %(names)s::text[]) AS w (scope, name)
INNER LOOKUP JOIN limits@limits_pkey ON limits.scope = w.scope AND limits.name = w.name
UNION ALL
SELECT scope, name, weight, max_running, rate, rate_period_s, paused FROM limits@limits_pkey WHERE scope = 'code'
"""
"""What holds for these, and for codes."""

FIND_PERMITS = """
SELECT w.resource, count(*) FILTER (WHERE p.number <= w.most),
       array_agg(p.number) FILTER (WHERE p.number <= w.most AND p.free_at <= now()),
       extract(epoch FROM min(p.free_at) FILTER (
           WHERE p.number <= w.most AND p.free_at > now() AND p.free_at < 'infinity') - now())::float8,
       bool_or(p.number > w.most AND p.task_id IS NOT NULL)
FROM unnest(%(resources)s::text[], %(mosts)s::int4[]) AS w (resource, most)
INNER LOOKUP JOIN permits@permits_pkey AS p ON p.resource = w.resource
GROUP BY w.resource
"""
"""How many permits there are, which of them are free, in how many seconds the next one is, and whether something runs still in
the place of one that does not count any more, because the limit was lowered."""

MAKE_PERMITS = """
INSERT INTO permits (resource, number)
SELECT w.resource, number
FROM unnest(%(resources)s::text[], %(haves)s::int4[], %(mosts)s::int4[]) AS w (resource, have, most),
     generate_series(w.have + 1, w.most) AS number
ON CONFLICT DO NOTHING
"""
"""Make what a limit is kept by, beyond what is there: who makes it again would wait for whoever is taking it."""

SPARE = 16
"""Permits of a tenant that are free before more are made, at least: as many as are ever needed at once, not as many as its limit
allows, which may be ten thousand."""

_OWN = ("weight", "max_running", "rate", "rate_period", "paused")


class Permit(NamedTuple):
    """A row of PERMITS."""

    resource: str
    number: int


@dataclass(slots=True)
class Allowance:
    """What a tenant may have now.

    period: seconds for which a start takes a permit. again_in: seconds until a rate allows the next start.
    """

    weight: float = 1.0
    paused: bool = False
    max_running: int | None = None
    rate: int | None = None
    period: float | None = None
    again_in: float = math.inf
    running: list[Permit] = field(default_factory=list)
    starts: list[Permit] = field(default_factory=list)

    @property
    def limited(self) -> bool:
        return self.max_running is not None or self.rate is not None

    @property
    def room(self) -> float:
        """How many tasks may begin, unless it is paused."""
        most = math.inf if self.max_running is None else len(self.running)
        return most if self.rate is None else min(most, len(self.starts))

    def take(self) -> tuple[Permit | None, Permit | None]:
        """The permits for one task: to run, and to start."""
        return (
            None if self.max_running is None else self.running.pop(),
            None if self.rate is None else self.starts.pop(),
        )


class Limits:
    """LIMITS as one call finds it. Tenants are asked for by `learn` before they are looked at.

    tags: those of the worker. wanted: how many tasks the call is for.
    """

    def __init__(self, run: Run, read: Read, tags: Collection[str], wanted: int) -> None:
        self._run = run
        self._read = read
        self._spare = max(SPARE, wanted)
        self._keys = [("queue", ""), ("tenant", "*"), *(("tag", tag) for tag in tags)]
        self._of: dict[str, Allowance] = {}
        self._paused_tags: frozenset[str] = frozenset()
        self.paused_codes: list[str] = []
        self._all_paused = False

    def of(self, tenant: str | None) -> Allowance:
        return self._of[tenant or ""]

    def quota(self, tenant: str | None) -> int:
        """How many tasks the tenant may give in one round: its weight, on average."""
        return math.floor(self.of(tenant).weight + random.random())  # noqa: S311 - a share

    def paused(self, place: Place) -> bool:
        tags, tenant = place
        return self._all_paused or self.of(tenant).paused or not self._paused_tags.isdisjoint(tags.split(","))

    def room(self, place: Place) -> float:
        """How many tasks of a place may begin."""
        return 0 if self.paused(place) else self.of(place[1]).room

    async def learn(self, tenants: Collection[str | None]) -> None:
        """Learn what these tenants may have, unless it is known."""
        names = sorted({tenant or "" for tenant in tenants} - self._of.keys())
        if not names:
            return
        keys = [*self._keys, *(("tenant", name) for name in names)]
        where = {"scopes": [scope for scope, _ in keys], "names": [name for _, name in keys]}
        rows = await self._read(FIND_LIMITS, where)
        found = {(scope, name): dict(zip(_OWN, values, strict=True)) for scope, name, *values in rows}
        self._paused_tags = frozenset(name for (scope, name), row in found.items() if scope == "tag" and row["paused"])
        self.paused_codes = [name for (scope, name), row in found.items() if scope == "code" and row["paused"]]
        self._all_paused = bool(found.get(("queue", ""), {}).get("paused"))
        for name in names:
            self._of[name] = _allowance(found.get(("tenant", name), {}), found.get(("tenant", "*"), {}))
        await self._find_permits([name for name in names if self._of[name].limited and not self._of[name].paused])

    async def _find_permits(self, names: list[str]) -> None:
        wanted: dict[str, int] = {}
        for name in names:
            allowance = self._of[name]
            if allowance.max_running is not None:
                wanted[f"running:{name}"] = allowance.max_running
            if allowance.rate is not None:
                wanted[f"rate:{name}"] = allowance.rate
        if not wanted:
            return
        found = await self._permits(wanted)
        few: dict[str, tuple[int, int]] = {}
        for resource, most in wanted.items():
            have, free = _count(found.get(resource))
            if have < most and free < self._spare:
                few[resource] = have, have + min(most - have, self._spare + min(have, 500))
        if few:
            haves, mosts = zip(*few.values(), strict=True)
            await self._run(MAKE_PERMITS, {"resources": list(few), "haves": list(haves), "mosts": list(mosts)})
            found |= await self._permits({resource: wanted[resource] for resource in few})
        for name in names:
            allowance = self._of[name]
            allowance.running = _free(found.get(f"running:{name}"))
            rate = found.get(f"rate:{name}")
            allowance.starts = _free(rate)
            allowance.again_in = allowance.period or math.inf
            if rate is not None and rate[3] is not None:
                allowance.again_in = max(0.0, rate[3])

    async def _permits(self, wanted: Mapping[str, int]) -> dict[str, tuple[Any, ...]]:
        rows: Rows = await self._read(FIND_PERMITS, {"resources": list(wanted), "mosts": list(wanted.values())})
        return {row[0]: row for row in rows}


def _allowance(own: Mapping[str, Any], every: Mapping[str, Any]) -> Allowance:
    """What a tenant's own row says, or else that of all."""
    limit = {name: own.get(name) if own.get(name) is not None else every.get(name) for name in _OWN}
    allowance = Allowance(
        weight=1.0 if limit["weight"] is None else limit["weight"],
        paused=bool(limit["paused"]),
        max_running=limit["max_running"],
    )
    if limit["rate"] is not None and limit["rate_period"] is not None:
        parts = math.ceil(limit["rate"] / MOST_PERMITS)
        allowance.rate, allowance.period = limit["rate"] // parts, limit["rate_period"] / parts
    return allowance


def _count(row: tuple[Any, ...] | None) -> tuple[int, int]:
    """How many permits there are, and how many of them are free."""
    return (0, 0) if row is None else (row[1], len(row[2] or ()))


def _free(row: tuple[Any, ...] | None) -> list[Permit]:
    """The free permits of a row of `FIND_PERMITS`, in no order, so that claims at the same time take different ones. None are
    before `statements.MOVE_PERMIT` has made places count again that do not."""
    if row is None or row[4]:
        return []
    free = [Permit(row[0], number) for number in row[2] or ()]
    random.shuffle(free)
    return free
