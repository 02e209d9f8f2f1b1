"""Admission in the in-memory database: what `continuum.db.admission` finds by SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from continuum.db.admission import PAGE, Key, Waiting, choose, limit_of
from continuum.model import Limit, Scope, Status, TaskRecord


@dataclass(frozen=True, slots=True)
class MemoryAdmission:
    """What waits, and what it waits for. limits: the rows of LIMITS."""

    tasks: Mapping[int, TaskRecord]
    limits: Mapping[tuple[Scope, str], Limit]

    def page(self, below: int | None) -> list[int]:
        """The newest tasks that wait to be admitted, with ids below one."""
        waiting = [each.id for each in self.tasks.values() if _waits(each) and (below is None or each.id < below)]
        return sorted(waiting, reverse=True)[:PAGE]

    def ready(self, seeds: Iterable[int]) -> list[int]:
        """Those that need not wait any more, of what has a key of the seeds, or is one."""
        chosen = [_waiting(self.tasks[task_id]) for task_id in seeds if task_id in self.tasks]
        sequences = {each.sequence for each in chosen if each.sequence}
        keys = {each.concurrency for each in chosen if each.concurrency}
        wanted = [
            each
            for each in map(_waiting, filter(_waits, self.tasks.values()))
            if each in chosen or each.sequence in sequences or each.concurrency in keys
        ]
        return choose(wanted, self._heads(), self._room(wanted))

    def _heads(self) -> dict[Key, int | None]:
        heads: dict[Key, int | None] = {}
        for task in sorted(self.tasks.values(), key=lambda task: (not task.admitted, task.id)):
            sequence = _waiting(task).sequence
            if sequence is not None and not task.finished_for_good:
                heads.setdefault(sequence, task.id if _waits(task) else None)
        return heads

    def _room(self, wanted: Iterable[Waiting]) -> dict[Key, int]:
        limits = {row.name: (row.max_running, row.paused) for row in self.limits.values() if row.scope is Scope.KEY}
        admitted = (task for task in self.tasks.values() if task.admitted and not task.finished_for_good)
        taken = Counter(_waiting(task).concurrency for task in admitted)
        keys = {each.concurrency for each in wanted if each.concurrency}
        return {key: limit_of(key[1], limits) - taken[key] for key in keys}


def _waits(task: TaskRecord) -> bool:
    return task.status == Status.PENDING and task.run_at is None and task.gated


def _waiting(task: TaskRecord) -> Waiting:
    return Waiting(task.id, task.tenant or "", task.sequence_key, task.concurrency_key, task.priority)
