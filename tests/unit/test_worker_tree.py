"""The supervision tree as a whole, on the virtual clock, without any server."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
import structlog
import trio
from trio.testing import MockClock

from continuum.db.errors import SchemaMismatch
from continuum.db.memory import EPOCH, MemoryDatabase
from continuum.model import EXPIRED, Cancellation, NewTask, Status
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import worker


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


async def test_a_task_is_claimed_run_and_recorded(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database) as w:
        (task_id,) = await w.submit("hello", payload='{"a": 1}')
        (record,) = await w.wait_for(task_id)
    assert record.status == Status.COMPLETED
    assert record.output == 'hello {"a": 1}'
    assert record.exit_code == 0
    assert record.attempt == 1
    assert w.backend.alive == 0
    assert w.state.processed == w.state.successful == 1


async def test_an_idle_worker_starts_a_new_task_at_once(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database) as w:
        (first,) = await w.submit("hello")
        await w.wait_for(first)
        await trio.sleep(60)
        began = trio.current_time()
        (second,) = await w.submit("hello")
        await w.wait_for(second)
        assert trio.current_time() - began < 0.1


class Moments(trio.abc.Instrument):
    """At which moments of the test's clock anything ran at all."""

    def __init__(self) -> None:
        self.seen: set[float] = set()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen.add(trio.current_time())


async def test_an_idle_worker_sleeps_and_asks_the_database_for_little(
    autojump_clock: MockClock, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = 0
    answer = MemoryDatabase._answer

    async def count(self: MemoryDatabase) -> None:
        nonlocal statements
        statements += 1
        await answer(self)

    monkeypatch.setattr(MemoryDatabase, "_answer", count)
    moments, seconds = Moments(), 600
    async with worker(database) as w:
        (task,) = await w.submit("hello")
        await w.wait_for(task)
        await trio.sleep(60)
        statements = 0
        trio.lowlevel.add_instrument(moments)
        await trio.sleep(seconds)
        trio.lowlevel.remove_instrument(moments)
        # Poll, scheduled tasks, schedules and admission every 5 s, the heartbeat every 10,
        # the janitor about every 15, the reaper every 60.
        assert statements / seconds < 0.2 + 0.2 + 0.2 + 0.2 + 0.1 + 0.08 + 0.02
        assert len(moments.seen) / seconds < 0.2 + 0.2 + 0.2 + 0.2 + 0.1 + 0.08 + 0.08


async def test_no_more_tasks_run_at_once_than_there_are_slots(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, slots=3) as w:
        began = trio.current_time()
        ids = await w.submit(*["sleep 10"] * 9)
        await w.wait_for(*ids)
        assert w.backend.most_running == 3
        assert trio.current_time() - began == pytest.approx(30, abs=2)


async def test_a_failed_attempt_is_tried_again_after_a_backoff_that_holds_no_slot(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, slots=1) as w:
        (failing,) = await w.submit("exit 3", max_attempts=3)
        await w.wait_for(failing, status="pending")
        (other,) = await w.submit("hello")
        await w.wait_for(other)
        assert (await w.record(failing)).status == "pending"
        (record,) = await w.wait_for(failing)
    assert record.status == Status.FAILED
    assert record.attempt == 3
    assert record.exit_code == 3
    assert record.last_error == "exit code 3"


async def test_what_has_not_begun_in_time_is_cancelled_whether_or_not_it_was_claimed_by_then(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    def after(seconds: float) -> dt.datetime:
        return EPOCH + dt.timedelta(seconds=trio.current_time() + seconds)

    async with worker(database, slots=1, polling_interval=5) as w:
        (busy,) = await w.submit("sleep 30")
        await w.wait_for(busy, status="processing")
        (late,) = await w.submit("hello", expires_at=after(7))
        (in_time,) = await w.submit("hello", expires_at=after(70))
        (record,) = await w.wait_for(late, seconds=13)
        assert (record.status, record.last_error) == (Status.CANCELLED, EXPIRED)
        assert (await w.record(busy)).status == Status.PROCESSING
        (record,) = await w.wait_for(in_time)
        assert record.status == Status.COMPLETED
        (claimed_late,) = await w.submit("hello", expires_at=after(-1))
        (record,) = await w.wait_for(claimed_late)
        assert (record.status, record.last_error) == (Status.CANCELLED, EXPIRED)
    assert [request.task_id for request in w.backend.ran] == [busy, in_time]
    assert (await database.statistics()).cancelled == 2


async def test_what_takes_down_two_sandboxes_is_not_tried_a_third_time(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database) as w:
        (deadly,) = await w.submit("lost", max_attempts=50)
        (record,) = await w.wait_for(deadly)
        assert (record.status, record.attempt, record.quarantined, record.crashes) == (Status.FAILED, 2, True, 2)
        assert (record.last_error or "").startswith("Quarantined: Sandbox lost: it died\n")
        copy = (await database.retry(deadly)).task_id
        assert copy is not None
        (again,) = await w.wait_for(copy, status="pending")
        assert not again.quarantined


async def test_code_that_does_not_exist_fails_without_another_try(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    missing = "00000000-0000-0000-0000-00000000dead"
    async with worker(database) as w:
        (task_id,) = await w.database.submit([NewTask(code_id=missing)])
        (record,) = await w.wait_for(task_id)
    assert record.status == Status.FAILED
    assert record.attempt == 1
    assert missing in (record.last_error or "")


async def test_a_timeout_is_the_tasks_own_but_never_longer_than_the_workers(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, task_timeout=60) as w:
        short, capped = (
            [*await w.submit("sleep 100", timeout=5.0, max_attempts=1)],
            await w.submit("sleep 100", timeout=500.0, max_attempts=1),
        )
        (first,), (second,) = await w.wait_for(*short), await w.wait_for(*capped)
    assert "5 s" in (first.last_error or "")
    assert "60 s" in (second.last_error or "")


async def test_a_running_task_is_cancelled_at_once(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database) as w:
        (task_id,) = await w.submit("say so-far")
        await w.wait_for(task_id, status="processing")
        await trio.sleep(2)
        began = trio.current_time()
        assert await database.cancel(task_id) is Cancellation.REQUESTED
        (record,) = await w.wait_for(task_id)
        assert trio.current_time() - began < 1
    assert record.status == Status.CANCELLED
    assert record.output == "so-far"
    assert w.backend.alive == 0


async def test_the_output_of_a_running_task_can_be_read(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database) as w:
        (task_id,) = await w.submit("say half-way")
        with trio.fail_after(5):
            while not (await w.record(task_id)).output:
                await trio.sleep(0.1)
        record = await w.record(task_id)
        assert (record.status, record.output) == ("processing", "half-way")


async def test_a_sandbox_lost_under_a_task_costs_an_attempt_and_is_never_used_again(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database) as w:
        (task_id,) = await w.submit("lost", max_attempts=1)
        (record,) = await w.wait_for(task_id)
    assert record.attempt == 1
    assert record.last_error == "Sandbox lost: it died"
    assert w.backend.started >= 1
    assert w.backend.alive == 0


async def test_a_sandbox_that_was_dead_before_the_script_began_costs_no_attempt(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    backend = FakeBackend(dead_on_arrival=2)
    async with worker(database, backend) as w:
        (task_id,) = await w.submit("hello")
        (record,) = await w.wait_for(task_id)
    assert (record.status, record.attempt) == (Status.COMPLETED, 1)


async def test_used_sandboxes_that_died_idle_are_passed_over_and_say_nothing_against_the_backend(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    backend = FakeBackend()
    async with worker(database, backend, slots=6) as w:
        await w.wait_for(*await w.submit(*["sleep 1"] * 6))
        started = backend.started
        backend.dead_sandboxes = {f"fake-{number}" for number in range(1, started + 1)}
        with structlog.testing.capture_logs() as logs:
            (record,) = await w.wait_for(*await w.submit("hello"))
        assert (record.status, record.attempt) == (Status.COMPLETED, 1)
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == []
        assert len([line for line in logs if "dead before" in line["event"]]) == started == 6


async def test_new_sandboxes_that_are_dead_one_after_the_other_speak_against_the_backend(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, FakeBackend(dead_on_arrival=3)) as w:
        with structlog.testing.capture_logs() as logs:
            (record,) = await w.wait_for(*await w.submit("hello"))
    assert record.status == Status.COMPLETED
    assert [line["error"] for line in logs if line["event"].startswith("no sandbox; the task goes back")] == [
        "sandbox after sandbox was dead before the script began"
    ]


async def test_a_request_that_ends_every_sandbox_costs_attempts_until_there_are_none(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    backend = FakeBackend(deadly_requests={"sleep 7"})
    async with worker(database, backend, quarantine_after=0) as w:
        (record,) = await w.wait_for(*await w.submit("sleep 7", max_attempts=2))
        assert w.state.health.ready
    assert (record.status, record.attempt) == (Status.FAILED, 2)
    assert record.last_error == "Sandbox lost, 3 in a row: it ended while it took the request"


async def test_while_no_sandbox_can_be_started_nothing_is_claimed_and_no_attempt_is_lost(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    backend = FakeBackend(unavailable="the daemon is away")
    async with worker(database, backend) as w:
        (task_id,) = await w.submit("hello")
        await trio.sleep(120)
        assert (await w.record(task_id)).status == "pending"
        assert w.state.health.problems["sandbox"] == "the daemon is away"
        backend.unavailable = None
        (record,) = await w.wait_for(task_id, seconds=30)
        assert record.attempt == 1
        assert w.state.health.ready


async def test_a_backend_that_fails_under_load_comes_back_and_every_task_completes(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    backend = FakeBackend()
    async with worker(database, backend, slots=2, container_idle_timeout=1) as w:
        ids = await w.submit(*["sleep 3"] * 20)
        await trio.sleep(4)
        backend.unavailable = "the daemon is away"
        await trio.sleep(60)
        backend.unavailable = None
        records = await w.wait_for(*ids)
    assert {r.status for r in records} == {Status.COMPLETED}


async def test_outcomes_survive_an_outage_and_nothing_runs_twice(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, slots=4) as w:
        ids = await w.submit(*["sleep 5"] * 4)
        await trio.sleep(2)
        database.unavailable = True
        await trio.sleep(20)
        assert "database" in w.state.health.problems
        database.unavailable = False
        records = await w.wait_for(*ids, seconds=10)
        with trio.fail_after(10):
            while not w.state.health.ready:
                await trio.sleep(0.1)
    assert [(r.status, r.attempt) for r in records] == [(Status.COMPLETED, 1)] * 4
    assert len(w.backend.ran) == 4


async def test_a_worker_that_lost_its_leases_stops_its_runs_and_changes_nothing(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database) as w:
        (task_id,) = await w.submit("sleep 100")
        await w.wait_for(task_id, status="processing")
        await trio.sleep(1)
        # Somebody took the task over, as after a long stop of this worker.
        database.tasks[task_id] = replace(await w.record(task_id), worker_id="thief", attempt=2, lease_expires_at=None)
        with trio.fail_after(w.settings.lease_seconds):
            while w.backend.running:
                await trio.sleep(0.1)
        await trio.sleep(100)
        record = await w.record(task_id)
    assert (record.status, record.worker_id, record.attempt) == ("processing", "thief", 2)
    assert w.state.processed == 0


async def test_shutdown_lets_running_tasks_finish_within_their_grace(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, slots=1, shutdown_grace=25) as w:
        running, waiting = await w.submit("sleep 10", "sleep 10")
        await w.wait_for(running, status="processing")
        began = trio.current_time()
        w.shutdown.request()
        await w.stopped.wait()
        assert trio.current_time() - began <= 11
    assert (await w.record(running)).status == Status.COMPLETED
    assert (await w.record(waiting)).status == Status.PENDING
    assert (await w.record(waiting)).attempt == 0
    assert w.backend.alive == 0


async def test_what_outlives_the_grace_goes_back_without_its_attempt_counted(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, shutdown_grace=5) as w:
        (task_id,) = await w.submit("sleep 100")
        await w.wait_for(task_id, status="processing")
        began = trio.current_time()
        w.shutdown.request()
        await w.stopped.wait()
        assert trio.current_time() - began == pytest.approx(5, abs=1)
    record = await w.record(task_id)
    assert (record.status, record.attempt, record.released) == ("pending", 1, 1)
    assert w.backend.alive == 0


async def test_a_second_signal_skips_the_grace(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, shutdown_grace=500) as w:
        (task_id,) = await w.submit("sleep 1000")
        await w.wait_for(task_id, status="processing")
        began = trio.current_time()
        w.shutdown.request()
        w.shutdown.request()
        await w.stopped.wait()
        assert trio.current_time() - began < 2
    assert (await w.record(task_id)).status == "pending"


async def test_an_idle_worker_stops_at_once(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, shutdown_grace=500) as w:
        await trio.sleep(30)
        began = trio.current_time()
        w.shutdown.request()
        await w.stopped.wait()
        assert trio.current_time() - began < 1


async def test_an_unexpected_error_ends_the_tree_and_gives_back_what_ran(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    backend = FakeBackend()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with worker(database, backend) as w:
            (slow,) = await w.submit("sleep 100")
            await w.wait_for(slow, status="processing")
            await w.submit("a bug in the backend")
            await w.stopped.wait()
    assert caught.group_contains(AssertionError, match="no such script")
    (record,) = await database.fetch([slow])
    assert (record.status, record.released) == ("pending", 1)
    assert backend.alive == 0


async def test_two_workers_share_the_work_and_none_of_it_runs_twice(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    backend = FakeBackend()
    async with worker(database, backend) as one, worker(database, backend) as two:
        ids = await one.submit(*["sleep 1"] * 40)
        records = await one.wait_for(*ids)
        assert {r.worker_id for r in records} == {one.state.id, two.state.id}
    assert len(backend.ran) == 40


async def test_a_task_of_a_worker_that_died_is_recovered_and_completed(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    (task_id,) = await database.submit([NewTask(code="hello")])
    await database.claim("dead worker", 1, lease=30)
    async with worker(database) as w:
        (record,) = await w.wait_for(task_id)
    assert (record.status, record.attempt, record.worker_id) == (Status.COMPLETED, 2, w.state.id)


async def test_a_missing_schema_ends_the_worker_with_the_command_to_run(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    database.schema_problem = "run `continuum migrate`"
    with pytest.raises(BaseExceptionGroup) as caught:
        async with worker(database) as w:
            await w.stopped.wait()
    assert caught.group_contains(SchemaMismatch, match="continuum migrate")


async def test_shutdown_while_the_database_has_never_answered_ends_at_once(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    database.unavailable = True
    async with worker(database) as w:
        await trio.sleep(100)
        w.shutdown.request()
        with trio.fail_after(10):
            await w.stopped.wait()
