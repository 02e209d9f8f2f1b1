"""The fair claim and its limits for the database in memory; see `continuum.db.fair`, which says how it goes."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from continuum.model import HeldBack, HeldBackBy, Limit, LimitUse, Scope, TaskRecord
from continuum.tags import sets_of, written

Place = tuple[str, str]
"""Tags and tenant."""


@dataclass
class MemoryLimits:
    """LIMITS, what was started lately, and where each worker stands in its ring."""

    rows: dict[tuple[Scope, str], Limit] = field(default_factory=dict)
    _starts: dict[str, list[float]] = field(default_factory=dict)
    _places: dict[str, tuple[Place, int]] = field(default_factory=dict)

    def of(self, tenant: str) -> Limit:
        """What holds for a tenant."""
        own, every = (self.rows.get((Scope.TENANT, name)) or Limit(Scope.TENANT, name) for name in (tenant, "*"))
        names = ("weight", "max_running", "rate", "rate_period", "max_pending", "paused")
        found = {name: getattr(every, name) if getattr(own, name) is None else getattr(own, name) for name in names}
        return Limit(Scope.TENANT, tenant, **found)

    def choose(
        self,
        worker_id: str,
        tags: Iterable[str],
        due: list[TaskRecord],
        running: list[TaskRecord],
        limit: int,
        now: float,
    ) -> tuple[list[TaskRecord], float | None]:
        """Which of the due tasks, which are in order, a worker claims, and `Claim.again_in`. now: seconds."""
        allowed = [each for each in sets_of(tags) if not self._paused(each)]
        waiting: dict[Place, list[TaskRecord]] = {}
        for task in due:
            if self._code_paused(task.code_id):
                continue
            if (place := (written(task.worker_tags), task.tenant or ""))[0] in allowed:
                waiting.setdefault(place, []).append(task)
        room = {tenant: self._room(tenant, running, now) for tenant in {tenant for _, tenant in waiting}}
        chosen: list[TaskRecord] = []
        while len(chosen) < limit and (open_places := sorted(at for at in waiting if waiting[at] and room[at[1]] >= 1)):
            before = len(chosen)
            for place, quota in list(self._turns(worker_id, open_places)):
                take = min(quota, len(waiting[place]), room[place[1]], limit - len(chosen))
                chosen += waiting[place][:take]
                del waiting[place][:take]
                room[place[1]] -= take
                self._places[worker_id] = (place, quota - take)
                if len(chosen) == limit:
                    break
            if len(chosen) == before:
                continue  # shares below one that came to nothing this time
        for task in chosen:
            self.note_start(task, now)
        held_back = {tenant for (_, tenant), tasks in waiting.items() if tasks}
        later = [at for tenant in held_back if (at := self._next_start(tenant, now)) > 0]
        return chosen, min(later, default=None)

    def note_start(self, task: TaskRecord, now: float) -> None:
        """Learn that a task was claimed. now: seconds."""
        self._starts.setdefault(task.tenant or "", []).append(now)

    def may_begin(self, task: TaskRecord, running: list[TaskRecord], now: float) -> bool:
        """Whether LIMITS lets a task begin that waits."""
        return not self._paused(written(task.worker_tags)) and self._room(task.tenant or "", running, now) >= 1

    def _paused(self, tags: str) -> bool:
        queue = self.rows.get((Scope.QUEUE, ""))
        if queue is not None and queue.paused:
            return True
        return any((row := self.rows.get((Scope.TAG, tag))) is not None and row.paused for tag in tags.split(","))

    def uses(self, running: list[TaskRecord], now: float) -> list[LimitUse]:
        """All rows, each with how much of it is used."""
        uses = []
        for row in sorted(self.rows.values(), key=lambda row: (row.scope, row.name)):
            own = row.scope is Scope.TENANT and row.name != "*"
            taken = sum((task.tenant or "") == row.name for task in running)
            starts = len(self._lately(row.name, now))
            uses.append(
                LimitUse(
                    row,
                    taken if own and row.max_running is not None else None,
                    starts if own and row.rate is not None else None,
                )
            )
        return uses

    def held_back(self, waiting: list[TaskRecord], running: list[TaskRecord], now: float) -> list[HeldBack]:
        """What these tasks, which are due, wait for."""
        reasons: dict[HeldBackBy, list[str]] = {}
        for task in waiting:
            if (reason := self.reason(task, running, now)) is not None:
                reasons.setdefault(reason, []).append(task.tenant or "")
        return [HeldBack(reason, len(set(tenants)), len(tenants)) for reason, tenants in reasons.items()]

    def reason(self, task: TaskRecord, running: list[TaskRecord], now: float) -> HeldBackBy | None:
        """What a task waits for that is due; None where it is no more than a worker."""
        tenant = task.tenant or ""
        limits = self.of(tenant)
        queue = self.rows.get((Scope.QUEUE, ""))
        holds = {
            HeldBackBy.OTHER_TASKS: task.gated,
            HeldBackBy.QUEUE_PAUSED: queue is not None and queue.paused,
            HeldBackBy.CODE_PAUSED: self._code_paused(task.code_id),
            HeldBackBy.TENANT_PAUSED: limits.paused,
            HeldBackBy.TAG_PAUSED: self._paused(written(task.worker_tags)),
            HeldBackBy.MAX_RUNNING: limits.max_running is not None
            and sum((each.tenant or "") == tenant for each in running) >= limits.max_running,
            HeldBackBy.RATE: limits.rate is not None and len(self._lately(tenant, now)) >= limits.rate,
        }
        return next((reason for reason, holding in holds.items() if holding), None)

    def _code_paused(self, code_id: str | None) -> bool:
        row = self.rows.get((Scope.CODE, code_id or ""))
        return row is not None and bool(row.paused)

    def _turns(self, worker_id: str, places: list[Place]) -> Iterator[tuple[Place, int]]:
        """Once around the ring, with how many tasks each place may give."""
        at, credit = self._places.get(worker_id, (("", ""), 0))
        if credit > 0 and at in places:
            yield at, credit
        first = bisect.bisect_right(places, at)
        for place in places[first:] + places[:first]:
            weight = self.of(place[1]).weight or 1.0
            if quota := math.floor(weight + random.random()):  # noqa: S311 - a share
                yield place, quota

    def _room(self, tenant: str, running: list[TaskRecord], now: float) -> int:
        """How many tasks of a tenant may begin."""
        limits = self.of(tenant)
        if limits.paused:
            return 0
        room = 2**31
        if limits.max_running is not None:
            room = limits.max_running - sum((task.tenant or "") == tenant for task in running)
        if limits.rate is not None:
            room = min(room, limits.rate - len(self._lately(tenant, now)))
        return max(0, room)

    def _lately(self, tenant: str, now: float) -> list[float]:
        """When tasks of a tenant began that count against its rate."""
        period = self.of(tenant).rate_period or 0.0
        starts = self._starts[tenant] = [at for at in self._starts.get(tenant, []) if at > now - period]
        return starts

    def _next_start(self, tenant: str, now: float) -> float:
        """In how many seconds the rate of a tenant allows a start; 0 where it does now."""
        limits = self.of(tenant)
        if limits.rate is None or limits.rate_period is None or len(starts := self._lately(tenant, now)) < limits.rate:
            return 0.0
        return starts[-limits.rate] + limits.rate_period - now
