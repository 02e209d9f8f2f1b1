"""Admission in the in-memory database: what `continuum.db.admission` finds by SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from continuum.db.admission import PAGE, Key, Waiting, choose, limit_of
from continuum.dependencies import Verdict, circle, is_later, judge
from continuum.model import OTHERS_NAMED, Limit, Scope, Status, TaskRecord


@dataclass(frozen=True, slots=True)
class MemoryAdmission:
    """What waits, and what it waits for. limits: the rows of LIMITS."""

    tasks: Mapping[int, TaskRecord]
    limits: Mapping[tuple[Scope, str], Limit]

    def page(self, below: int | None) -> list[int]:
        """The newest tasks that wait to be admitted, with ids below one."""
        waiting = [each.id for each in self.tasks.values() if _waits(each) and (below is None or each.id < below)]
        return sorted(waiting, reverse=True)[:PAGE]

    def look(self, seeds: Iterable[int]) -> tuple[list[int], dict[int, str]]:
        """Those that need not wait any more, of what has a key of the seeds, or is one; and those that wait in vain, and why."""
        chosen = [_waiting(self.tasks[task_id]) for task_id in seeds if task_id in self.tasks]
        sequences = {each.sequence for each in chosen if each.sequence}
        keys = {each.concurrency for each in chosen if each.concurrency}
        wanted = [
            each
            for each in map(_waiting, filter(_waits, self.tasks.values()))
            if each in chosen or each.sequence in sequences or each.concurrency in keys
        ]
        verdicts = {each.id: self._verdict(self.tasks[each.id]) for each in wanted}
        ready = [each for each in wanted if verdicts[each.id] is True]
        refused = {task_id: verdict for task_id, verdict in verdicts.items() if isinstance(verdict, str)}
        return choose(ready, self._heads(), self._room(ready)), refused

    def others(self, task: TaskRecord) -> tuple[int, ...]:
        """Which tasks one waits for: those that it depends on, and whose turn it is in its sequence."""
        needed = [other_of(self.tasks, task.tenant, each) for each in task.depends_on]
        open_ones = sorted({each.id for each in needed if each is not None and not each.finished_for_good})
        sequence = _waiting(task).sequence
        before = [
            each
            for each in self.tasks.values()
            if sequence and _waiting(each).sequence == sequence and not each.finished_for_good
            if each.id != task.id and (each.admitted or each.id < task.id)
        ]
        turn = sorted(before, key=lambda each: (not each.admitted, each.id))[:1]
        return tuple(sorted({*open_ones[:OTHERS_NAMED], *(each.id for each in turn)}))

    def _verdict(self, task: TaskRecord) -> Verdict:
        if not task.depends_on:
            return True
        found = {each: other_of(self.tasks, task.tenant, each) for each in task.depends_on}
        others: dict[int | None, str | None] = {each: other.status if other else None for each, other in found.items()}
        verdict = judge(others, any_one=task.depends_any, ended_enough=task.depends_ended)
        later = next((each for each in others if is_later(each, task.id, others[each])), None)
        return circle(later) if verdict is None and later is not None and self._in_circle(task) else verdict

    def _in_circle(self, task: TaskRecord) -> bool:
        ahead: set[int] = set()
        to_see = list(task.depends_on)
        while to_see:
            if (task_id := to_see.pop()) not in ahead:
                ahead.add(task_id)
                known = self.tasks.get(task_id)
                if known is not None and known.status == Status.PENDING and not known.admitted:
                    to_see += [*known.depends_on, *self._before(known)]
        return task.id in ahead

    def _before(self, task: TaskRecord) -> list[int]:
        sequence = _waiting(task).sequence
        return [
            each.id
            for each in self.tasks.values()
            if sequence and each.id < task.id and not each.finished_for_good and _waiting(each).sequence == sequence
        ]

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


def other_of(tasks: Mapping[int, TaskRecord], tenant: str | None, task_id: int) -> TaskRecord | None:
    """A task, if it is there and the tenant's."""
    other = tasks.get(task_id)
    return other if other is not None and (other.tenant or "") == (tenant or "") else None


def _waits(task: TaskRecord) -> bool:
    return task.status == Status.PENDING and task.run_at is None and task.gated


def _waiting(task: TaskRecord) -> Waiting:
    return Waiting(task.id, task.tenant or "", task.sequence_key, task.concurrency_key, task.priority)
