"""Admission in the in-memory database: what `continuum.db.admission` finds by SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass

from continuum.db.admission import AT_ONCE, PAGE, Key, Waiting, choose, decidable, limit_of
from continuum.db.circles import Ahead, depends_on_later
from continuum.dependencies import Standing, Verdict
from continuum.model import OTHERS_NAMED, TERMINAL, Limit, Scope, Status, TaskRecord


@dataclass(frozen=True, slots=True)
class MemoryAdmission:
    """What waits, and what it waits for. limits: the rows of LIMITS. superseded: tasks in whose place copies count in their
    batches."""

    tasks: Mapping[int, TaskRecord]
    limits: Mapping[tuple[Scope, str], Limit]
    superseded: Set[int]

    def page(self, below: int | None) -> list[int]:
        """The newest tasks that wait to be admitted, with ids below one."""
        waiting = [each.id for each in self.tasks.values() if _waits(each) and (below is None or each.id < below)]
        return sorted(waiting, reverse=True)[:PAGE]

    def dependents(self, ended: Iterable[int]) -> list[int]:
        """Who depends on these, and may be told now whether to begin."""
        gone = {*ended}
        bad = {each for each in gone if each in self.tasks and self.tasks[each].status != Status.COMPLETED}
        return self._decided(
            each
            for each in self._all_waiting()
            if not gone.isdisjoint(each.depends_on)
            and (each.depends_any or not bad.isdisjoint(each.depends_on) or not self._is_open(each.depends_on[-1]))
        )

    def batches_of(self, ended: Iterable[int]) -> list[tuple[Key, list[tuple[bool, bool]]]]:
        """The batches that these belong to, and which kinds of those that wait for each may be told now."""
        keys = {_waiting(self.tasks[each]).belongs_to for each in ended if each in self.tasks}
        return [(key, decidable(self.standing(key))) for key in sorted(key for key in keys if key)]

    def dependents_of_batch(self, key: Key, kinds: Container[tuple[bool, bool]]) -> list[int]:
        """Who of these kinds waits for a batch."""
        waiting = (each for each in self._all_waiting() if each.waits_for == key)
        return self._decided(each for each in waiting if (each.depends_any, each.depends_ended) in kinds)

    def _decided(self, tasks: Iterable[Waiting]) -> list[int]:
        return [each.id for each in tasks if self._verdict(each) is not None]

    def _is_open(self, task_id: int | None) -> bool:
        return task_id is not None and task_id in self.tasks and not self.tasks[task_id].finished_for_good

    def _all_waiting(self) -> list[Waiting]:
        return [_waiting(each) for each in self.tasks.values() if _waits(each)]

    def look(self, seeds: Iterable[int], candidates: Iterable[int]) -> tuple[list[int], dict[int, str]]:
        """As `admission.admit`: those that may begin, and those that wait in vain, and why."""
        keyed = [_waiting(self.tasks[task_id]) for task_id in seeds if task_id in self.tasks]
        waiting = sorted(self._all_waiting(), key=lambda one: (one.priority, one.id))
        wanted = [_waiting(self.tasks[task_id]) for task_id in candidates]
        for key in {each.concurrency for each in keyed if each.concurrency}:
            wanted += [each for each in waiting if each.concurrency == key][:AT_ONCE]
        heads = self._heads()
        turns = {heads.get(each.sequence) for each in [*keyed, *wanted] if each.sequence}
        wanted += [each for each in waiting if each.id in turns]
        verdicts = {each.id: self._verdict(each) for each in wanted}
        ready = [each for each in wanted if verdicts[each.id] is True]
        refused = {task_id: verdict for task_id, verdict in verdicts.items() if isinstance(verdict, str)}
        return choose(ready, heads, self._room(ready)), refused

    def others(self, task: TaskRecord) -> tuple[int, ...]:
        """Which tasks one waits for: those that it depends on, those of its batch, and whose turn it is in its sequence."""
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
        batch = _waiting(task).waits_for
        of_batch = [each.id for each in (self.members(batch) if batch else []) if not each.finished_for_good]
        return tuple(sorted({*open_ones[:OTHERS_NAMED], *of_batch[:OTHERS_NAMED], *(each.id for each in turn)}))

    def members(self, key: Key) -> list[TaskRecord]:
        """The tasks of a batch that count, in the order of their ids."""
        return [
            self.tasks[each]
            for each in sorted(self.tasks)
            if _waiting(self.tasks[each]).belongs_to == key and each not in self.superseded
        ]

    def standing(self, key: Key) -> Standing:
        """How a batch stands."""
        members = self.members(key)
        return Standing(key[1], {str(each.status): each.id for each in reversed(members)})

    def _verdict(self, task: Waiting) -> Verdict:
        statuses = {(each.tenant or "", each.id): str(each.status) for each in self.tasks.values()}
        return task.judged(statuses, {task.waits_for: self.standing(task.waits_for)} if task.waits_for else {})

    def in_circles(self, page: Iterable[int]) -> dict[int, str]:
        """Which tasks are to be cancelled so that those of a page do not wait for ever, and why."""
        blocked = {each.id: _waiting(each) for each in self.tasks.values() if _waits(each) and _is_blocked(each)}
        ahead = Ahead(
            statuses={(each.tenant or "", each.id): str(each.status) for each in self.tasks.values()},
            waiting={task_id: (task, self._before(task)) for task_id, task in blocked.items()},
        )
        for key in {task.waits_for for task in blocked.values() if task.waits_for}:
            ahead.standings[key] = self.standing(key)
            ahead.members[key] = [each.id for each in self.members(key) if each.id in blocked]
            if any(each.status not in TERMINAL and each.id not in blocked for each in self.members(key)):
                ahead.free.add(key)
        return ahead.refused(
            each
            for each in page
            if each in blocked and (depends_on_later(blocked[each]) or self._may_be_in_circle(blocked[each], ahead))
        )

    def _may_be_in_circle(self, task: Waiting, ahead: Ahead) -> bool:
        key = task.waits_for
        return key is not None and bool(ahead.members[key]) and Status.PROCESSING not in ahead.standings[key].one_of

    def _before(self, task: Waiting) -> int | None:
        """The one before a task in its sequence, of those that wait."""
        return max(
            (
                each.id
                for each in self.tasks.values()
                if task.sequence and not each.finished_for_good and not each.admitted and each.id < task.id
                if _waiting(each).sequence == task.sequence
            ),
            default=None,
        )

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


def _is_blocked(task: TaskRecord) -> bool:
    return task.sequence_key is not None or bool(task.depends_on) or task.depends_batch is not None


def _waiting(task: TaskRecord) -> Waiting:
    return Waiting(
        task.id,
        task.tenant or "",
        task.sequence_key,
        task.concurrency_key,
        task.priority,
        task.depends_on,
        task.depends_any,
        task.depends_ended,
        task.batch,
        task.depends_batch,
    )
