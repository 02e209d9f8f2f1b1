"""The whole life cycle of tasks, whatever happens in whatever order: a real database and the one in memory in lock step.

After each step both hold the same tasks in the same states, and what is true of every history (`DESIGN.md`, the laws) is: the
attempt of a task never falls, a terminal state stays as it is, and nothing begins that a limit, a key, a tag or a time forbids.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from continuum.model import (
    Completion,
    Lease,
    Limit,
    NewTask,
    PartialOutput,
    Scope,
    Status,
    TaskRecord,
    WorkerReport,
)
from continuum.retry import RetryPolicy
from continuum.tags import sets_of, written
from tests.db.lock_step import LockStep, lock_step

T = TypeVar("T")

EXAMPLES = int(os.environ.get("LIFE_CYCLES", "15"))
"""Histories that are tried, the same ones each time but for when more are asked for."""
STEPS = 50
LEASE = 45.0
# What happens within so many seconds is over when others have passed: these end in 5, and those in 0.
WAITS = (35.0, 65.0, 125.0)
PASSING = (10.0, 50.0, 100.0)
WORKERS = {"plain": (), "gpu": ("gpu",), "both": ("eu", "gpu")}
TENANTS = (None, "a", "b")
WINDOWS = {"l": 65.0}
"""Of idempotency keys: each has one, because of two in one submission it is not said which comes first."""
POLICY = RetryPolicy(delays=(35.0, 65.0), jitter=0.0)

few = st.sampled_from((None, None, None, "k", "l"))
new_tasks = st.builds(
    NewTask,
    name=st.just("task"),
    code=st.sampled_from(("print(1)", "print(2)")),
    payload=st.sampled_from((None, "1")),
    priority=st.integers(1, 3),
    max_attempts=st.integers(1, 3),
    tenant=st.sampled_from(TENANTS),
    idempotency_key=few,
    unique=st.sampled_from((False, False, True)),
    retry=st.just(POLICY),
    worker_tags=st.sampled_from(((), (), ("gpu",), ("gpu", "eu"))),
    sequence_key=few,
    concurrency_key=few,
    depends_any=st.booleans(),
    depends_ended=st.booleans(),
    batch=few,
    depends_batch=st.sampled_from((None, None, None, None, "k", "l")),
).map(lambda task: replace(task, depends_batch=None if task.depends_batch == task.batch else task.depends_batch))
times = st.sampled_from((None, None, None, *WAITS))
limits = st.one_of(
    st.builds(
        lambda name, most, rate, weight, paused: Limit(
            Scope.TENANT, name, weight, most, rate, rate and 95.0, paused=paused
        ),
        name=st.sampled_from(("", "a", "b", "*")),
        most=st.sampled_from((None, 0, 1, 2)),
        rate=st.sampled_from((None, None, 2)),  # of a lower one what began before it was is not counted
        weight=st.sampled_from((None, 0.5, 3.0)),
        paused=st.sampled_from((None, None, False, True)),
    ).filter(lambda limit: limit != Limit(Scope.TENANT, limit.name)),
    st.builds(lambda most: Limit(Scope.KEY, "k", max_running=most), most=st.integers(0, 3)),
    st.builds(lambda paused: Limit(Scope.TAG, "gpu", paused=paused), paused=st.booleans()),
    st.builds(lambda paused: Limit(Scope.QUEUE, "", paused=paused), paused=st.booleans()),
)


class Held(NamedTuple):
    """Which leases somebody speaks of: in numbers, because what a database grants is not the same each time."""

    worker: int
    which: list[int]
    lies: bool


which = st.integers(0, 999)
after: st.SearchStrategy[list[int]] = st.one_of(st.just([]), st.just([]), st.lists(which, max_size=3))
held = st.builds(
    Held, which, st.lists(which, min_size=1, max_size=4), st.sampled_from((False, False, False, False, True))
)


def pick(number: int, of: Sequence[T]) -> T | None:
    """One of them; None where there are none."""
    return of[number % len(of)] if of else None


class LifeCycle(RuleBasedStateMachine):
    """What producers, workers, janitors and operators do, one at a time."""

    def __init__(self, both: LockStep) -> None:
        super().__init__()
        self.both = both
        both.clear()
        self.leases: list[tuple[str, Lease]] = []
        """All that were ever granted, the newest last."""
        self.ended: dict[int, TaskRecord] = {}
        self.attempts: dict[int, int] = {}
        self.limits_changed = False

    # -- producers ---------------------------------------------------------------------------------------------------

    @rule(tasks=st.lists(st.tuples(new_tasks, times, times, after), min_size=1, max_size=6))
    def submit(self, tasks: list[tuple[NewTask, float | None, float | None, list[int]]]) -> None:
        real, model = [], []
        for task, run_in, expires_in, after in tasks:
            # Of one that has both it is not said which counts, where they stand for different tasks of one submission.
            key = None if task.unique else task.idempotency_key
            task = replace(task, idempotency_key=key, idempotency_window=WINDOWS.get(key or ""))
            task = replace(task, depends_on=self._there(task, after), depends_batch=self._batch_there(task))
            runs = (None, None) if run_in is None else self.both.in_seconds(run_in)
            expires = (None, None) if expires_in is None else self.both.in_seconds(expires_in)
            real.append(replace(task, run_at=runs[0], expires_at=expires[0]))
            model.append(replace(task, run_at=runs[1], expires_at=expires[1]))
        self.both.both_insert("submit", real, model)

    def _there(self, task: NewTask, after: list[int]) -> tuple[int, ...]:
        own = [each.id for each in self.both.model.tasks.values() if each.tenant == task.tenant]
        return tuple(pick(number, sorted(own)) or 0 for number in after if own)

    def _batch_there(self, task: NewTask) -> str | None:
        there = {(each.tenant, each.batch) for each in self.both.model.tasks.values()}
        return task.depends_batch if (task.tenant, task.depends_batch) in there else None

    @rule(which=which)
    def cancel(self, which: int) -> None:
        if task_id := pick(which, sorted(self.both.model.tasks)):
            self.both.both("cancel", task_id)

    @rule(which=which)
    def retry(self, which: int) -> None:
        if task_id := pick(which, sorted(self.both.model.tasks)):
            self.both.both_insert("retry", task_id, task_id)

    # -- workers -----------------------------------------------------------------------------------------------------

    @rule(worker=st.sampled_from(sorted(WORKERS)), limit=st.integers(1, 5), urgent=st.booleans())
    def claim(self, worker: str, limit: int, urgent: bool) -> None:
        tags = WORKERS[worker]
        claim = self.both.claim(worker, limit, LEASE, max_priority=1 if urgent else 0, tags=tags)
        self.leases += [(worker, task.lease) for task in claim]
        assert len(claim) <= limit
        for task in claim:
            assert not urgent or task.priority == 1
            assert written(self.both.model.tasks[task.id].worker_tags) in sets_of(tags)
        if len(claim) < limit and not self.limits_changed:
            left = [task for task in self.both.model.tasks.values() if self._claimable(task, tags, urgent)]
            assert not left, f"claimed {len(claim)} of {limit} and left {left}"

    def _claimable(self, task: TaskRecord, tags: tuple[str, ...], urgent: bool) -> bool:
        return (
            task.status == Status.PENDING
            and task.run_at is None
            and not task.gated
            and written(task.worker_tags) in sets_of(tags)
            and (not urgent or task.priority == 1)
            and self.both.may_begin(task)
        )

    @rule(held=held, how=st.sampled_from(("completed", "failed", "again", "again later", "crashed")))
    def complete(self, held: Held, how: str) -> None:
        worker, leases = self._leases(held)
        status = Status.PENDING if "again" in how else Status.COMPLETED if how == "completed" else Status.FAILED
        completions = [
            Completion(
                *lease,
                status,
                exit_code=0 if how == "completed" else 1,
                output=f"output of {lease}",
                error_output="",
                last_error=None if how == "completed" else how,
                retry_in=35.0 if how == "again later" else None,
                crashes=1.0 if how == "crashed" else 0.0,
                quarantined=how == "crashed",
            )
            for lease in leases
        ]
        self.both.both("complete", worker, completions)

    @rule(held=held, all_but=st.booleans())
    def release(self, held: Held, all_but: bool) -> None:
        worker, leases = self._leases(held)
        self.both.both("release_except" if all_but else "release", worker, leases)

    @rule(held=held)
    def heartbeat(self, held: Held) -> None:
        worker, leases = self._leases(held)
        self.both.both("heartbeat", worker, leases, lease=LEASE)

    @rule(held=held)
    def show_progress(self, held: Held) -> None:
        worker, leases = self._leases(held)
        self.both.both("progress", worker, [PartialOutput(*lease, "so far", "") for lease in leases])

    def _leases(self, held: Held) -> tuple[str, list[Lease]]:
        """Some leases of one worker, mostly new ones; they need not be its own any more, or ever have been."""
        if not self.leases:
            return "plain", []
        worker, _ = self.leases[-6:][held.worker % len(self.leases[-6:])]
        own = [lease for each, lease in self.leases if each == worker or held.lies][-8:]
        return worker, [*dict.fromkeys(own[number % len(own)] for number in held.which)]

    @rule(worker=st.sampled_from(sorted(WORKERS)), running=st.integers(0, 3), stops=st.booleans())
    def report(self, worker: str, running: int, stops: bool) -> None:
        self.both.both("report", WorkerReport(worker, "host", 1, "0", 4, running, "none"))
        if stops:
            self.both.both("sign_off", worker)

    # -- housekeeping, and time ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(PASSING))
    def time_passes(self, seconds: float) -> None:
        self.both.pass_time(seconds)

    @rule()
    def promote(self) -> None:
        real, model = (self.both.run(each.promote) for each in (self.both.real, self.both.model))
        assert real.count == model.count
        assert (real.next_in is None, real.expires_in is None) == (model.next_in is None, model.expires_in is None)

    @rule()
    def cancel_late(self) -> None:
        self.both.both("cancel_late", "janitor")

    @rule(after=st.lists(which, max_size=5))
    def admit(self, after: list[int]) -> None:
        if ended := [pick(number, sorted(self.ended)) for number in after if self.ended]:
            self.both.both_admit("admit_after", ended)
        else:
            self.both.both_admit("admit_page")

    @rule(which=which)
    def tell(self, which: int) -> None:
        if task_id := pick(which, sorted(self.both.model.tasks)):
            self.both.both("dependencies", task_id)

    @rule(tenant=st.sampled_from(TENANTS), name=st.sampled_from(("k", "l")))
    def progress_of_batch(self, tenant: str | None, name: str) -> None:
        self.both.both("batch", tenant, name)

    @rule(quarantine_after=st.integers(0, 2))
    def recover(self, quarantine_after: int) -> None:
        self.both.both("recover", "janitor", quarantine_after=quarantine_after)

    @rule(status=st.sampled_from(("completed", "failed", "cancelled")))
    def purge(self, status: str) -> None:
        self.both.both("purge", Status(status), 45.0)
        gone = self.ended.keys() - self.both.model.tasks.keys()
        for task_id in gone:
            del self.ended[task_id], self.attempts[task_id]

    # -- operators -----------------------------------------------------------------------------------------------------

    @rule(limit=limits)
    def set_limit(self, limit: Limit) -> None:
        self.limits_changed = True
        self.both.both("set_limit", limit)

    @rule(which=which)
    def clear_limit(self, which: int) -> None:
        if row := pick(which, self.both.both("limits")):
            self.both.both("clear_limit", row.scope, row.name)

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def both_hold_the_same(self) -> None:
        self.both.compare()

    @invariant()
    def the_laws_hold(self) -> None:
        for task in self.both.model.tasks.values():
            assert task.attempt >= self.attempts.get(task.id, 0)
            self.attempts[task.id] = task.attempt
            if task.id in self.ended:
                before = self.ended[task.id]
                assert (task.status, task.output, task.finished, task.attempt) == (
                    before.status,
                    before.output,
                    before.finished,
                    before.attempt,
                ), f"{before} was changed into {task}"
            elif task.finished_for_good:
                self.ended[task.id] = task


@pytest.fixture
def both(sql_url: str) -> Iterator[LockStep]:
    with lock_step(sql_url, WORKERS) as opened:
        yield opened


def test_a_database_and_the_one_in_memory_live_in_lock_step(both: LockStep) -> None:
    run_state_machine_as_test(
        partial(LifeCycle, both),  # type: ignore[arg-type]  # it takes whatever makes a machine
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="LIFE_CYCLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
