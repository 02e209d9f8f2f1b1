"""Each service of the tree alone, on the virtual clock and a database in memory."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from continuum.db.errors import DatabaseUnavailable, OutcomeUnknown
from continuum.db.memory import MemoryDatabase
from continuum.db.protocol import Listener
from continuum.model import (
    Claim,
    ClaimedTask,
    Completion,
    Ending,
    HeartbeatAnswer,
    Lease,
    NewTask,
    Outcome,
    PartialOutput,
    Status,
    Stream,
    Wakeup,
    WorkerReport,
)
from continuum.nursery import completion as completion_module
from continuum.nursery.backoff import Backoff
from continuum.nursery.claim import GIVE_BACK_AGAIN, UNWRITTEN_LIMIT, Claims
from continuum.nursery.completion import BATCH_LIMIT, Completions, decide
from continuum.nursery.execution import time_for
from continuum.nursery.heartbeat import Heartbeat
from continuum.nursery.janitor import Janitor
from continuum.nursery.progress import Progress
from continuum.nursery.reaper import SWEEP_INTERVAL, Reaper
from continuum.nursery.retention import HELD, INTERVAL, Retention
from continuum.nursery.signals import Shutdown, Signal
from continuum.nursery.state import Running, StopReason, WorkerState
from continuum.nursery.wakeup import WakeUps
from continuum.retry import quarantine_note
from continuum.sandbox.pool import open_pool
from continuum.telemetry import Telemetry
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import settings

HELLO = NewTask(code="hello")


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
async def state() -> WorkerState:
    return WorkerState(id="worker", slots=4)


@pytest.fixture
async def completions(database: MemoryDatabase, state: WorkerState) -> Completions:
    return Completions(database, state, Telemetry(), Signal(), Signal())


@asynccontextmanager
async def running(service: object) -> AsyncIterator[None]:
    """A service's `run`, cancelled when the block ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)  # type: ignore[attr-defined]
        yield
        nursery.cancel_scope.cancel()


async def claimed(database: MemoryDatabase, count: int = 1, lease: float = 30, **values: object) -> list[ClaimedTask]:
    await database.submit([replace(HELLO, **values)] * count)  # type: ignore[arg-type]
    return await database.claim("worker", count, lease=lease)


def done(task: ClaimedTask) -> Completion:
    return decide(task, Outcome(Ending.COMPLETED, 0, "out"))


# -- what becomes of an outcome ----------------------------------------------------------------------


TASK = ClaimedTask(1, 1, 3, 0, "n", "code", "id", "null", 0, None, None, None, dt.datetime.now(dt.UTC))


def test_a_message_from_a_sandbox_is_written_as_a_database_can_hold_it() -> None:
    message = decide(TASK, Outcome(Ending.SANDBOX_LOST, message="NUL \x00 half \ud800" + "x" * 100_000)).last_error
    assert message is not None
    assert message.startswith("NUL \N{REPLACEMENT CHARACTER} half ?xxx")
    assert message.endswith("x\n[cut]")
    assert len(message) < 11_000


@pytest.mark.parametrize(
    ("ending", "task", "status"),
    [
        (Ending.COMPLETED, TASK, Status.COMPLETED),
        (Ending.CANCELLED, TASK, Status.CANCELLED),
        (Ending.INVALID, TASK, Status.FAILED),
        (Ending.FAILED, TASK, Status.PENDING),
        (Ending.TIMED_OUT, TASK, Status.PENDING),
        (Ending.SANDBOX_LOST, TASK, Status.PENDING),
        (Ending.FAILED, replace(TASK, attempt=3), Status.FAILED),
        (Ending.OUT_OF_MEMORY, replace(TASK, attempt=3), Status.FAILED),
        (Ending.FAILED, replace(TASK, attempt=3, released=1), Status.PENDING),
        (Ending.FAILED, replace(TASK, max_attempts=1), Status.FAILED),
    ],
)
def test_an_attempt_is_tried_again_as_long_as_counted_attempts_are_left(
    ending: Ending, task: ClaimedTask, status: Status
) -> None:
    decided = decide(task, Outcome(ending, message="why"))
    assert decided.status is status
    assert decided.last_error == "why"
    assert (decided.retry_in is not None) == (status is Status.PENDING)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [(5.0, 5.0), (None, 60.0), (500.0, 60.0), (math.nan, 60.0), (math.inf, 60.0), (0.0, 60.0), (-1.0, 60.0)],
)
def test_a_task_gets_the_time_that_it_wants_where_that_is_a_time(wanted: float | None, given: float) -> None:
    assert time_for(replace(TASK, timeout=wanted), 60.0) == given


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        (Outcome(Ending.FAILED, 75), True),
        (Outcome(Ending.FAILED, 1), False),
        (Outcome(Ending.FAILED, 70), True),
        (Outcome(Ending.FAILED, message="Requirements not installed"), True),
        (Outcome(Ending.SANDBOX_LOST), True),
        (Outcome(Ending.TIMED_OUT), False),
        (Outcome(Ending.OUT_OF_MEMORY), False),
    ],
)
def test_a_policy_says_which_outcomes_are_tried_again(outcome: Outcome, again: bool) -> None:
    task = replace(TASK, retry='{"on": [75, "64-70", "engine"], "delays": [7], "jitter": 0}')
    assert decide(task, outcome).retry_in == (7 if again else None)


def test_a_task_that_took_its_sandbox_down_twice_is_quarantined_whatever_its_attempts() -> None:
    lost, task = Outcome(Ending.SANDBOX_LOST, message="Sandbox lost: gone"), replace(TASK, max_attempts=99)
    first = decide(task, lost, quarantine_after=2)
    assert (first.status, first.crashes, first.quarantined) == (Status.PENDING, 1, False)
    second = decide(replace(task, attempt=2, crashes=1.0), lost, quarantine_after=2)
    assert (second.status, second.crashes, second.quarantined) == (Status.FAILED, 1, True)
    assert (second.last_error or "").splitlines() == ["Quarantined: Sandbox lost: gone", quarantine_note(task.id)]
    assert decide(replace(task, crashes=9.0), lost, quarantine_after=0).status is Status.PENDING
    exited = decide(replace(task, crashes=9.0), Outcome(Ending.FAILED, 1), quarantine_after=2)
    assert (exited.status, exited.quarantined) == (Status.PENDING, False)


def test_a_policy_that_cannot_be_read_has_a_task_fail_and_names_the_field() -> None:
    decided = decide(replace(TASK, retry='{"jitter": 2}'), Outcome(Ending.FAILED, 1, message="ValueError: no"))
    assert decided.status is Status.FAILED
    first, second = (decided.last_error or "").splitlines()
    assert first == "ValueError: no"
    assert second == "Not tried again: its retry policy cannot be read: jitter: Expected `float` <= 1.0"
    assert decide(replace(TASK, retry="[]"), Outcome(Ending.COMPLETED, 0)).status is Status.COMPLETED


def test_a_backoff_grows_and_starts_again_after_a_success() -> None:
    backoff = Backoff(first=1, longest=8)
    delays = [backoff.next_delay() for _ in range(6)]
    assert all(
        low <= delay <= high
        for delay, (low, high) in zip(delays, [(0.5, 1), (1, 2), (2, 4), *[(4, 8)] * 3], strict=True)
    )
    backoff.reset()
    assert backoff.next_delay() <= 1


# -- completion --------------------------------------------------------------------------------------


class CountingDatabase(MemoryDatabase):
    """Remembers the batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
        written = await super().complete(worker_id, completions)
        self.batches.append(len(completions))
        await trio.sleep(0.01)  # a round trip, in which more outcomes gather
        return written


async def test_outcomes_that_come_while_one_batch_is_written_make_up_the_next(
    autojump_clock: MockClock, state: WorkerState
) -> None:
    database = CountingDatabase()
    completions = Completions(database, state, Telemetry(), Signal(), Signal())
    tasks = await claimed(database, BATCH_LIMIT + 101)
    async with running(completions):
        completions.put(done(tasks[0]))
        await trio.sleep(0.005)
        for task in tasks[1:]:
            completions.put(done(task))
        await trio.sleep(1)
    assert database.batches == [1, BATCH_LIMIT, 100]
    assert state.successful == len(tasks)


async def test_large_outputs_are_not_written_together(
    autojump_clock: MockClock, state: WorkerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion_module, "BATCH_BYTES", 100)
    database = CountingDatabase()
    completions = Completions(database, state, Telemetry(), Signal(), Signal())
    for task in await claimed(database, 3):
        completions.put(replace(done(task), output="x" * 60))
    async with running(completions):
        await trio.sleep(1)
    assert database.batches == [1, 1, 1]


async def test_outcomes_and_releases_wait_through_an_outage(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    finished, given_back = await claimed(database, 2)
    database.unavailable = True
    async with running(completions):
        completions.put(done(finished))
        completions.release(given_back.lease)
        await trio.sleep(600)
        assert set(completions.leases()) == {finished.lease, given_back.lease}
        assert "database" in state.health.problems
        database.unavailable = False
        await trio.sleep(10)
        assert len(completions) == 0
    assert [record.status for record in await database.fetch([finished.id, given_back.id])] == ["completed", "pending"]


async def test_an_outcome_whose_lease_was_lost_is_dropped_and_not_counted(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    (task,) = await claimed(database)
    database.tasks[task.id] = replace(database.tasks[task.id], worker_id="other", attempt=2)
    async with running(completions):
        completions.put(done(task))
        await trio.sleep(1)
    assert (len(completions), state.processed) == (0, 0)
    assert database.tasks[task.id].status == "processing"


async def test_an_outcome_that_cannot_be_written_keeps_no_other_one_for_long(
    autojump_clock: MockClock, state: WorkerState
) -> None:
    """As when somebody left a transaction open that has changed the task's row."""

    class Locked(MemoryDatabase):
        locked: Lease | None = None

        async def complete(self, worker_id: str, completions: Sequence[Completion]) -> frozenset[Lease]:
            if self.locked in {each.lease for each in completions}:
                await trio.sleep(5)
                raise OutcomeUnknown("the database did not answer in time")
            return await super().complete(worker_id, completions)

    database = Locked()
    completions = Completions(database, state, Telemetry(), Signal(), Signal())
    tasks = await claimed(database, 100)
    database.locked = tasks[50].lease
    async with running(completions):
        for task in tasks:
            completions.put(done(task))
        with trio.fail_after(60):
            while len(completions) > 1:
                await trio.sleep(0.1)
        assert list(completions.leases()) == [database.locked]
        database.locked = None
        with trio.fail_after(10):
            while len(completions):
                await trio.sleep(0.1)
    assert state.processed == 100


async def test_the_service_ends_once_it_was_closed_and_everything_is_written(
    autojump_clock: MockClock, database: MemoryDatabase, completions: Completions
) -> None:
    completions.put(done((await claimed(database))[0]))
    completions.close()
    with trio.fail_after(1):
        await completions.run()
    assert (await database.statistics()).completed == 1


# -- claim -------------------------------------------------------------------------------------------


def make_claims(database: MemoryDatabase, state: WorkerState, completions: Completions, shutdown: Shutdown) -> Claims:
    return Claims(database, state, completions, Telemetry(), settings(), Signal(), shutdown)


class Claimer:
    """A claim service whose executions wait until the test lets them end."""

    def __init__(self, claims: Claims, shutdown: Shutdown) -> None:
        self.claims, self.shutdown = claims, shutdown
        self.taken: list[ClaimedTask] = []
        self.finish = trio.Event()

    async def execute(self, task: ClaimedTask) -> None:
        self.taken.append(task)
        await self.finish.wait()

    async def run(self) -> None:
        async with trio.open_nursery() as executions:
            await self.claims.run(self.execute, executions)


async def test_exactly_the_free_slots_are_claimed(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    shutdown = Shutdown()
    claimer = Claimer(make_claims(database, state, completions, shutdown), shutdown)
    await database.submit([HELLO] * 10)
    async with running(claimer):
        await trio.sleep(60)
        assert len(claimer.taken) == 4
        claimer.finish.set()
        await trio.sleep(60)
        assert len(claimer.taken) == 10


@pytest.mark.parametrize("component", ["sandbox", "heartbeat"])
async def test_nothing_is_claimed_while_it_could_not_be_run_or_kept(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions, component: str
) -> None:
    shutdown = Shutdown()
    claimer = Claimer(make_claims(database, state, completions, shutdown), shutdown)
    await database.submit([HELLO])
    state.health.report(component, "broken")
    async with running(claimer):
        await trio.sleep(60)
        assert claimer.taken == []
        state.health.report(component, None)
        await trio.sleep(6)
        assert len(claimer.taken) == 1


async def test_nothing_is_claimed_while_too_many_outcomes_are_unwritten(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    shutdown = Shutdown()
    claimer = Claimer(make_claims(database, state, completions, shutdown), shutdown)
    for task in await claimed(database, UNWRITTEN_LIMIT * state.slots):
        completions.put(done(task))
    await database.submit([HELLO])
    async with running(claimer):
        await trio.sleep(60)
        assert claimer.taken == []


async def test_tasks_of_a_claim_that_was_never_answered_are_given_back_before_the_next(
    autojump_clock: MockClock, state: WorkerState
) -> None:
    class Deaf(MemoryDatabase):
        deaf = True

        async def claim(self, *arguments: object, **values: object) -> Claim:
            tasks = await super().claim(*arguments, **values)  # type: ignore[arg-type]
            if self.deaf:
                self.deaf = False
                raise OutcomeUnknown("the answer was lost")
            return tasks

    database = Deaf()
    shutdown = Shutdown()
    completions = Completions(database, state, Telemetry(), Signal(), Signal())
    claimer = Claimer(make_claims(database, state, completions, shutdown), shutdown)
    ids = await database.submit([HELLO] * 2)
    async with running(claimer):
        await trio.sleep(10)
        assert sorted(task.id for task in claimer.taken) == ids
        assert [task.released for task in claimer.taken] == [1, 1]


async def test_tasks_of_a_claim_that_took_effect_long_after_its_deadline_are_given_back_too(
    autojump_clock: MockClock, state: WorkerState
) -> None:
    """As by a node that hung with the claim, and went on with it when it came back."""
    late: list[tuple[tuple[object, ...], dict[str, object]]] = []

    class Hanging(MemoryDatabase):
        async def claim(self, *arguments: object, **values: object) -> Claim:
            if not late:
                late.append((arguments, values))
                raise OutcomeUnknown("the node hangs")
            return await super().claim(*arguments, **values)  # type: ignore[arg-type]

    database = Hanging()
    shutdown = Shutdown()
    claimer = Claimer(
        make_claims(database, state, Completions(database, state, Telemetry(), Signal(), Signal()), shutdown), shutdown
    )
    async with running(claimer):
        await trio.sleep(20)
        (task_id,) = await database.submit([HELLO])
        ((arguments, values),) = late
        assert len(await MemoryDatabase.claim(database, *arguments, **values)) == 1  # type: ignore[arg-type]
        with trio.fail_after(GIVE_BACK_AGAIN + 5):
            while not claimer.taken:
                await trio.sleep(0.5)
        assert [(task.id, task.released) for task in claimer.taken] == [(task_id, 1)]
        await trio.sleep(60)
        assert len(claimer.taken) == 1, "what runs is not given back"


async def test_what_a_claim_brings_after_shutdown_was_requested_goes_back(
    autojump_clock: MockClock, state: WorkerState
) -> None:
    shutdown = Shutdown()

    class Slow(MemoryDatabase):
        async def claim(self, *arguments: object, **values: object) -> Claim:
            tasks = await super().claim(*arguments, **values)  # type: ignore[arg-type]
            shutdown.request()
            return tasks

    database = Slow()
    completions = Completions(database, state, Telemetry(), Signal(), Signal())
    claimer = Claimer(make_claims(database, state, completions, shutdown), shutdown)
    await database.submit([HELLO])
    await claimer.run()
    assert claimer.taken == []
    assert list(completions.leases()) == [Lease(1, 1)]


# -- heartbeat ---------------------------------------------------------------------------------------


def make_heartbeat(database: MemoryDatabase, state: WorkerState, completions: Completions) -> Heartbeat:
    return Heartbeat(database, state, completions, 30.0, 10.0, Signal(), Signal())


async def test_leases_of_running_tasks_and_of_unwritten_outcomes_are_kept_alive(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    runs, waits = await claimed(database, 2)
    state.running[runs.lease] = Running(runs)
    completions.put(done(waits))
    async with running(make_heartbeat(database, state, completions)):
        await trio.sleep(300)
        assert (await database.recover("janitor")).total == 0
    assert [worker.running for worker in await database.workers()] == [1]


async def test_a_lost_lease_stops_its_run_and_a_cancelled_one_ends_as_cancelled(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    lost, cancelled, kept = await claimed(database, 3)
    runs = {task.lease: Running(task) for task in (lost, cancelled, kept)}
    state.running.update(runs)
    database.tasks[lost.id] = replace(database.tasks[lost.id], worker_id="other", attempt=2)
    await database.cancel(cancelled.id)
    await make_heartbeat(database, state, completions).beat()
    assert runs[lost.lease].stop_reason is StopReason.LOST
    assert runs[cancelled.lease].stop_reason is StopReason.CANCELLED
    assert runs[kept.lease].stop_reason is None
    assert runs[lost.lease].scope.cancel_called
    assert not runs[kept.lease].scope.cancel_called


async def test_a_run_that_was_cancelled_and_then_lost_counts_as_lost(autojump_clock: MockClock) -> None:
    run = Running(TASK)
    run.stop(StopReason.CANCELLED)
    run.stop(StopReason.LOST)
    run.stop(StopReason.CANCELLED)
    assert run.stop_reason is StopReason.LOST


async def test_a_heartbeat_that_fails_for_long_stops_claiming_and_one_that_works_again_resumes_it(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    heartbeat = make_heartbeat(database, state, completions)
    async with running(heartbeat):
        await trio.sleep(5)
        database.unavailable = True
        await trio.sleep(15)
        assert "heartbeat" not in state.health.problems, "two of three may fail"
        await trio.sleep(15)
        assert "heartbeat" in state.health.problems
        database.unavailable = False
        await trio.sleep(5)
        assert state.health.ready
        assert await heartbeat.work.wait(0), "the claim service is woken"


async def test_a_heartbeat_is_sent_at_once_when_asked_for(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    beats: list[float] = []

    class Counting(MemoryDatabase):
        async def report(self, worker: WorkerReport) -> bool:
            beats.append(trio.current_time())
            return False

        async def heartbeat(self, worker_id: str, held: Sequence[Lease], *, lease: float) -> HeartbeatAnswer:
            raise AssertionError("nothing is held")

    heartbeat = make_heartbeat(Counting(), state, completions)
    async with running(heartbeat):
        await trio.sleep(1)
        heartbeat.now.notify()
        await trio.sleep(1)
        assert beats == [0, 1]


# -- janitor and reaper ------------------------------------------------------------------------------


async def test_the_janitor_recovers_everything_that_expired_at_its_start_however_much(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    await claimed(database, 250, lease=1)
    await trio.sleep(2)
    scheduled = Signal()
    async with running(Janitor(database, state, Telemetry(), 15.0, 10.0, settings(), scheduled)):
        await trio.sleep(0.01)
        assert await scheduled.wait(0)
    assert (await database.statistics()).scheduled == 250


async def test_after_an_outage_every_worker_may_extend_its_leases_before_any_is_recovered(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, completions: Completions
) -> None:
    (task,) = await claimed(database)
    state.running[task.lease] = Running(task)
    janitor = Janitor(database, state, Telemetry(), 0.1, 10.0, settings(), Signal())
    async with running(make_heartbeat(database, state, completions)), running(janitor):
        await trio.sleep(9)
        database.unavailable = True
        await trio.sleep(100)
        database.unavailable = False
        await trio.sleep(100)
    assert database.tasks[task.id].attempt == 1
    assert database.tasks[task.id].status == "processing"


async def test_what_is_past_its_retention_is_deleted_and_nothing_without_one(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    await database.complete("worker", [done(task) for task in await claimed(database, 3)])
    async with running(Retention(database, state, settings())):
        await trio.sleep(3 * 86400)
        assert len(database.tasks) == 3
    async with running(Retention(database, state, settings(retention_days=1))):
        await trio.sleep(100)
        assert not database.tasks


async def test_failed_tasks_may_be_kept_for_longer(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    good, bad, stopped = await claimed(database, 3)
    failed = replace(done(bad), status=Status.FAILED, last_error="no")
    await database.complete("worker", [done(good), failed, replace(done(stopped), status=Status.CANCELLED)])
    kept = []
    async with running(Retention(database, state, settings(retention_days="2,failed=5,cancelled=0"))):
        for _ in range(7):
            kept.append(set(database.tasks))
            await trio.sleep(86400)
    everything = {good.id, bad.id, stopped.id}
    assert kept == [everything] * 3 + [everything - {good.id}] * 3 + [{stopped.id}]


async def test_retention_rests_between_batches_for_as_long_as_they_take_and_takes_less_at_once_when_they_take_long(
    autojump_clock: MockClock, state: WorkerState
) -> None:
    batches: list[tuple[float, int]] = []

    class Slow(MemoryDatabase):
        async def purge(self, status: Status, older_than: float, limit: int = 1000) -> int:
            began = trio.current_time()
            deleted = await super().purge(status, older_than, limit)
            await trio.sleep(deleted * 0.001)
            if deleted:
                batches.append((began, limit))
            return deleted

    database = Slow()
    await database.complete("worker", [done(task) for task in await claimed(database, 1500)])
    await trio.sleep(100)
    async with running(Retention(database, state, settings(retention_days=0.0001))):
        await trio.sleep(30)
    assert not database.tasks
    assert [limit for _, limit in batches[:3]] == [1000, 100, 100], "a batch should take a tenth of a second"
    assert [round(later - sooner, 2) for (sooner, _), (later, _) in itertools.pairwise(batches[:4])] == [2, 0.2, 0.2]


async def test_one_worker_at_a_time_applies_the_retention_and_another_follows_when_it_is_gone(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    await database.complete("worker", [done(task) for task in await claimed(database)])
    first = Retention(database, replace(state, id="first"), settings(retention_days=0.001))
    async with running(first):
        await trio.sleep(1)
    async with running(Retention(database, state, settings(retention_days=0.001))):
        await trio.sleep(HELD - 10)
        assert database.tasks, "past its retention, and another worker's to delete"
        await trio.sleep(10 + 2 * INTERVAL)
        assert not database.tasks


async def test_the_reaper_prepares_sweeps_and_warms_before_anything_is_claimed_and_sweeps_again(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    backend = FakeBackend()
    state.health.report("sandbox", "starting")
    await database.report(replace(state.report(), id="alive elsewhere"))
    async with open_pool(backend, 4) as pool, running(Reaper(backend, pool, database, state, Signal(), settings())):
        await trio.sleep(5)
        assert (backend.prepared, backend.started, len(backend.swept_with)) == (1, 1, 1)
        assert backend.swept_with[0] == {"worker", "alive elsewhere"}
        assert state.health.ready
        await trio.sleep(2 * SWEEP_INTERVAL)
        assert len(backend.swept_with) >= 2


async def test_the_reaper_removes_sandboxes_that_are_idle_for_too_long(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 4) as pool:
        await pool.warm(2)
        async with running(Reaper(backend, pool, database, state, Signal(), settings(container_idle_timeout=60))):
            await trio.sleep(50)
            assert pool.idle == 2
            await trio.sleep(60)
            assert (pool.idle, backend.alive) == (0, 0)


async def test_the_reaper_tries_until_a_failed_backend_is_back(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    backend = FakeBackend()
    work = Signal()
    async with open_pool(backend, 4) as pool, running(Reaper(backend, pool, database, state, work, settings())):
        await trio.sleep(1)
        backend.unavailable = "gone"
        state.health.report("sandbox", "a task met it")
        await trio.sleep(120)
        assert state.health.problems["sandbox"] == "gone"
        backend.unavailable = None
        await trio.sleep(15)
        assert state.health.ready
        assert await work.wait(0)


# -- wake-up and progress ----------------------------------------------------------------------------


def make_wakeups(database: MemoryDatabase, state: WorkerState) -> WakeUps:
    return WakeUps(database, state, settings(), Signal(), Signal(), Signal(), Signal())


async def test_each_wake_up_reaches_the_service_it_concerns(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    wakeups = make_wakeups(database, state)
    async with running(wakeups):
        await wait_all_tasks_blocked()
        for signal in (wakeups.work, wakeups.heartbeat_now):
            assert await signal.wait(0), "once for what may have been missed"
        (task,) = await claimed(database)
        assert await wakeups.work.wait(1)
        await database.cancel(task.id)
        assert await wakeups.heartbeat_now.wait(1)
        assert not await wakeups.work.wait(1)


async def test_a_listener_that_breaks_is_replaced_and_missed_work_is_looked_for(
    autojump_clock: MockClock, state: WorkerState
) -> None:
    class Breaking(MemoryDatabase):
        entered = 0

        async def listen(self, listener: Listener) -> None:
            self.entered += 1
            listener.wake(Wakeup.PENDING)
            await trio.sleep(30)
            raise DatabaseUnavailable("broken")

    database = Breaking()
    wakeups = make_wakeups(database, state)
    async with running(wakeups):
        await trio.sleep(1)
        assert await wakeups.work.wait(0)
        await trio.sleep(31)
        assert database.entered == 2
        assert await wakeups.work.wait(0)


async def test_a_scheduled_task_becomes_claimable_at_its_time_and_wakes_the_claim_service(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    now = (await database.fetch(await database.submit([HELLO])))[0].created_at
    wakeups = make_wakeups(database, state)
    async with running(wakeups):
        await trio.sleep(1)
        await wakeups.work.wait(0)
        await database.claim("other", 9, lease=30)
        began = trio.current_time()
        await database.submit([replace(HELLO, run_at=now + dt.timedelta(seconds=began + 7.5))])
        while not await database.claim("worker", 1, lease=30):
            await wakeups.work.wait(100)
        assert trio.current_time() - began == pytest.approx(7.5, abs=0.1)


async def test_growing_output_is_shown_and_a_long_one_less_often(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    (task,) = await claimed(database)
    run = state.running[task.lease] = Running(task)
    progress = Progress(database, state, Signal())
    run.transcript.write(Stream.OUTPUT, "a")
    assert await progress.show() == 0, "a task that has just begun may be over in a moment"
    await trio.sleep(2)
    assert await progress.show() == 1
    assert await progress.show() == 0, "nothing new"
    run.transcript.write(Stream.ERROR, "x" * 1_000_000)
    await trio.sleep(1)
    assert await progress.show() == 1
    run.transcript.write(Stream.OUTPUT, "b")
    await trio.sleep(5)
    assert await progress.show() == 0, "a megabyte is not written every second"
    await trio.sleep(15)
    assert await progress.show() == 1
    run.transcript.write(Stream.OUTPUT, "c")
    await trio.sleep(1)
    assert await progress.show() == 1, "a little more is"
    assert (database.tasks[task.id].output, len(database.tasks[task.id].error_output or "")) == ("abc", 1_000_000)


async def test_of_an_output_that_grows_the_database_is_told_what_it_was_told_before(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[PartialOutput] = []
    write = database.progress

    async def progress(worker_id: str, written: Sequence[PartialOutput]) -> None:
        told.extend(written)
        await write(worker_id, written)

    monkeypatch.setattr(database, "progress", progress)
    (task,) = await claimed(database)
    run = state.running[task.lease] = Running(task)
    async with running(Progress(database, state, Signal())):
        run.transcript.write(Stream.OUTPUT, "ab")
        await trio.sleep(3)
        database.unavailable = True
        run.transcript.write(Stream.ERROR, "c")
        await trio.sleep(3)
        database.unavailable = False
        await trio.sleep(3)
        run.transcript.write(Stream.OUTPUT, "d")
        await trio.sleep(3)
    first, *again, last = told
    assert first == PartialOutput(*task.lease, "ab", "")
    assert len(again) > 1, "what a failure kept back"
    assert all(each == PartialOutput(*task.lease, "ab", "c", {Stream.OUTPUT: 2, Stream.ERROR: 0}) for each in again)
    assert last == PartialOutput(*task.lease, "abd", "c", {Stream.OUTPUT: 2, Stream.ERROR: 1})


async def test_a_progress_that_cannot_be_written_is_shown_later(
    autojump_clock: MockClock, database: MemoryDatabase, state: WorkerState
) -> None:
    (task,) = await claimed(database)
    state.running[task.lease] = Running(task)
    state.running[task.lease].transcript.write(Stream.OUTPUT, "text")
    database.unavailable = True
    async with running(Progress(database, state, Signal())):
        await trio.sleep(10)
        database.unavailable = False
        await trio.sleep(2)
    assert database.tasks[task.id].output == "text"


# -- signals -----------------------------------------------------------------------------------------


async def test_a_signal_raised_while_nobody_waits_is_not_lost_and_wakes_once(autojump_clock: MockClock) -> None:
    signal = Signal()
    signal.notify()
    signal.notify()
    assert await signal.wait(10)
    began = trio.current_time()
    assert not await signal.wait(10)
    assert trio.current_time() - began == 10


async def test_a_second_request_is_urgent() -> None:
    shutdown = Shutdown()
    shutdown.request()
    assert shutdown.requested.is_set()
    assert not shutdown.urgent.is_set()
    shutdown.request()
    assert shutdown.urgent.is_set()
