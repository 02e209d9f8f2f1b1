"""The metrics of a worker: what is counted, timed and read, as the SDK would push it."""

from __future__ import annotations

import datetime as dt
import logging
import sys
import time
from dataclasses import replace
from typing import ClassVar

import pytest
import structlog
import trio
import trio.testing
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from continuum.db.errors import DatabaseUnavailable, InvalidTask
from continuum.db.memory import MemoryDatabase
from continuum.model import Ending, NewTask, Outcome, Recovered, Statistics, Status, Wakeup, WorkerReport
from continuum.nursery.queue_watch import INTERVAL, QueueWatch
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.telemetry import Telemetry, submission, tracing
from continuum.telemetry.instruments import Instruments
from continuum.telemetry.measures import OTHER, SERIES_LIMIT, Counter, Histogram
from continuum.telemetry.recorder import QUEUE_LATENESS
from continuum.telemetry.tracing import Own, own
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import settings
from tests.support.listener import listening
from tests.support.telemetry import TRACEPARENT, Recorded, claimed, completion, tell_a_whole_story


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_claims_runs_and_ends_are_counted_and_timed(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(1))
    tell_a_whole_story(recorded.telemetry, claimed(2), Outcome(Ending.TIMED_OUT))
    assert recorded.value("messaging.client.consumed.messages") == 2
    finished = "continuum.tasks.finished"
    assert recorded.value(finished, continuum__task__status="completed", continuum__task__ending="completed") == 1
    assert recorded.value(finished, continuum__task__status="failed", continuum__task__ending="timed_out") == 1
    runs = {
        (point.attributes["continuum.task.ending"], point.attributes.get("error.type")): point.sum
        for point in recorded.points("messaging.process.duration")
    }
    assert runs == {("completed", None): 2.0, ("timed_out", "timed_out"): 2.0}
    for name in ("continuum.tasks.queue_wait", "continuum.tasks.end_to_end"):
        (point,) = recorded.points(name)
        assert point.count == 2
        assert point.sum == pytest.approx(20, abs=2)


def test_a_task_that_is_tried_again_has_no_end_to_end_time_yet(recorded: Recorded) -> None:
    task = claimed()
    recorded.telemetry.tasks_claimed([task])
    recorded.telemetry.outcomes_written([completion(task, Status.PENDING, retry_in=1.0)], {task.lease})
    assert recorded.value("continuum.tasks.finished", continuum__task__status="pending") == 1
    assert recorded.points("continuum.tasks.end_to_end") == []


def test_a_database_clock_ahead_of_ours_gives_no_negative_wait(recorded: Recorded) -> None:
    recorded.telemetry.tasks_claimed([replace(claimed(), created_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))])
    assert recorded.points("continuum.tasks.queue_wait")[0].sum == 0


def test_recovered_leases_are_counted_by_what_became_of_them(recorded: Recorded) -> None:
    recorded.telemetry.leases_recovered(Recovered(retried=2, failed=1))
    assert recorded.value("continuum.leases.recovered", continuum__recovery__result="retried") == 2
    assert recorded.value("continuum.leases.recovered") == 3


class CountingDatabase(MemoryDatabase):
    """Counts how often it counts. takes: seconds for a count."""

    def __init__(self, takes: float = 0.0) -> None:
        super().__init__()
        self.counts = 0
        self._takes = takes

    async def statistics(self, *, latest: bool = False) -> Statistics:
        self.counts += 1
        await trio.sleep(self._takes)
        return await super().statistics()


class Pool:
    by_state: ClassVar = {"idle": 3, "busy": 1, "starting": 0, "removing": 0}


async def test_gauges_show_the_worker_as_it_is(recorded: Recorded) -> None:
    assert recorded.points("continuum.slots") == []
    state = WorkerState(id="w", slots=8)
    recorded.telemetry.observe(state, Pool(), [1, 2])
    names = ("slots", "tasks.running", "tasks.ahead", "outcomes.unwritten", "ready")
    assert [recorded.value(f"continuum.{name}") for name in names] == [8, 0, 0, 2, 1]
    assert recorded.value("continuum.sandboxes", continuum__sandbox__state="idle") == 3
    state.health.report("database", "away")
    assert recorded.value("continuum.ready") == 0
    assert recorded.value("continuum.health", continuum__component="database") == 0
    assert recorded.value("continuum.health", continuum__component="sandbox") == 1


async def test_what_the_services_count_is_read_from_where_they_count_it(recorded: Recorded) -> None:
    state = WorkerState(id="w", slots=8, database_failures=3, leases_lost=2, given_back=1)
    recorded.telemetry.observe(state, Pool())
    names = ("database.failures", "leases.lost", "tasks.given_back")
    assert [recorded.value(f"continuum.{name}") for name in names] == [3, 2, 1]


def test_the_process_is_measured_under_the_names_of_the_conventions(recorded: Recorded) -> None:
    assert recorded.value("process.cpu.time") > 0
    assert recorded.value("process.memory.usage") > 10_000_000
    assert recorded.value("process.thread.count") >= 1
    assert recorded.value("process.unix.file_descriptor.count") > 2
    assert recorded.value("process.uptime") > 0


async def test_database_calls_are_timed_by_verb_and_failures_named(recorded: Recorded) -> None:
    database = MemoryDatabase()
    timed = recorded.telemetry.timed_database(database)
    assert timed.dialect == "memory"
    assert await timed.submit([NewTask(code="pass")]) == [1]
    await timed.ping()
    await timed.ping()
    database.unavailable = True
    with pytest.raises(DatabaseUnavailable):
        await timed.ping()
    counts = {
        (point.attributes["db.operation.name"], point.attributes.get("error.type")): point.count
        for point in recorded.points("db.client.operation.duration")
    }
    assert counts == {("submit", None): 1, ("ping", None): 2, ("ping", "DatabaseUnavailable"): 1}


async def test_claims_and_what_settles_tasks_are_operations_of_messaging_too(recorded: Recorded) -> None:
    database = MemoryDatabase()
    timed = recorded.telemetry.timed_database(database)
    assert await timed.claim("w", 1, lease=30) == []
    await timed.complete("w", [])
    database.unavailable = True
    with pytest.raises(DatabaseUnavailable):
        await timed.claim("w", 1, lease=30)
    names = ("messaging.operation.name", "messaging.operation.type", "error.type")
    assert [
        tuple(point.attributes.get(name) for name in names)
        for point in recorded.points("messaging.client.operation.duration")
    ] == [("claim", "receive", None), ("complete", "settle", None), ("claim", "receive", "DatabaseUnavailable")]


def test_what_is_submitted_through_a_worker_is_counted_and_timed(recorded: Recorded) -> None:
    own.set(Own(None, recorded.telemetry.tasks_sent))
    try:
        with submission(3):
            pass
        with pytest.raises(InvalidTask), submission(1):
            raise InvalidTask("no")
    finally:
        own.set(None)
    assert recorded.value("messaging.client.sent.messages") == 4
    assert recorded.value("messaging.client.sent.messages", error__type="InvalidTask") == 1
    assert sum(point.count for point in recorded.points("messaging.client.operation.duration")) == 2


def test_a_producer_s_metrics_go_to_the_provider_of_its_application(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter", lambda name, schema_url: provider.get_meter(name, schema_url=schema_url))
    tracing._applications_own.cache_clear()
    try:
        with submission(5):
            pass
    finally:
        tracing._applications_own.cache_clear()
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    sent = {metric.name: metric.data.data_points[0] for metric in scope.metrics}
    assert sent["messaging.client.sent.messages"].value == 5  # type: ignore[union-attr]
    assert sent["messaging.client.operation.duration"].count == 1  # type: ignore[union-attr]


async def test_the_database_s_kind_is_told_once_it_is_known(recorded: Recorded) -> None:
    """DB_DIALECT=auto finds out at the first connection."""
    database = MemoryDatabase(dialect="auto")
    timed = recorded.telemetry.timed_database(database)
    await timed.ping()
    database.dialect = "cockroach"
    await timed.ping()
    systems = [point.attributes["db.system.name"] for point in recorded.points("db.client.operation.duration")]
    assert systems == ["other_sql", "cockroachdb"]


async def test_a_timed_database_still_wakes_its_listeners(recorded: Recorded) -> None:
    timed = recorded.telemetry.timed_database(MemoryDatabase())
    async with listening(timed) as listener:
        await timed.submit([NewTask(code="pass")])
        assert await listener.woken() is Wakeup.PENDING


async def test_cold_starts_are_timed_by_backend(recorded: Recorded, autojump_clock: trio.testing.MockClock) -> None:
    timed = recorded.telemetry.timed_backend(FakeBackend())
    await (await timed.start()).aclose()
    (point,) = recorded.points("continuum.sandbox.cold_start")
    assert (point.count, point.attributes["continuum.sandbox.backend"]) == (1, "fake")


def test_telemetry_that_is_off_hands_everything_back_untouched() -> None:
    database, backend = MemoryDatabase(), FakeBackend()
    assert Telemetry().timed_database(database) is database
    assert Telemetry().timed_backend(backend) is backend
    tell_a_whole_story(Telemetry(), claimed())


async def test_a_whole_worker_tells_one_story_for_each_task(
    recorded: Recorded, autojump_clock: trio.testing.MockClock
) -> None:
    database, backend, shutdown = MemoryDatabase(), FakeBackend(), Shutdown()
    state = WorkerState(id="w", slots=2)
    telemetry = recorded.telemetry
    ids = await database.submit(
        [NewTask(code="hello", traceparent=TRACEPARENT), NewTask(code="exit 3", max_attempts=1)]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            supervise, settings(slots=2), state, telemetry.timed_database(database), backend, telemetry, shutdown
        )
        with trio.fail_after(600):
            while not all(task.finished_for_good for task in await database.fetch(ids)):
                await trio.sleep(0.1)
        shutdown.request()
    assert recorded.value("continuum.tasks.finished") == 2
    assert recorded.value("messaging.client.consumed.messages") == 2
    assert recorded.value("continuum.slots") == 2
    traced = [span for span in recorded.all_spans if span.context.trace_id == int(TRACEPARENT[3:35], 16)]
    assert [span.name for span in traced] == ["execute tasks"]
    assert {"claim tasks", "complete tasks"} <= recorded.spans.keys()
    assert len(telemetry._attempts._attempts) == 0


def test_an_outcome_whose_lease_was_lost_counts_as_nothing_finished(recorded: Recorded) -> None:
    task = claimed()
    recorded.telemetry.tasks_claimed([task])
    recorded.telemetry.outcomes_written([completion(task)], frozenset(), 0.1)
    assert recorded.value("continuum.tasks.finished") == 0


def test_a_task_costs_telemetry_few_calls() -> None:
    """Where metrics are not pushed: the SDK's own instruments take some hundred."""
    tasks = [claimed(number) for number in range(50)]
    batch, leases = [completion(task) for task in tasks], frozenset(task.lease for task in tasks)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    try:
        telemetry = Telemetry(instruments=Instruments())
        sys.setprofile(count)
        telemetry.tasks_claimed(tasks, 0.1)
        for task in tasks:
            with telemetry.execution(task):
                pass
            telemetry.task_ended(task, Outcome(Ending.COMPLETED, 0), 0.1)
        telemetry.outcomes_written(batch, leases, 0.1)
    finally:
        sys.setprofile(None)
        structlog.reset_defaults()
    assert calls / len(tasks) < 60


def test_what_may_happen_is_there_from_the_start_as_zero(recorded: Recorded) -> None:
    """Prometheus sees no increase in what begins at 1."""
    for name in ("continuum.tasks.finished", "continuum.leases.recovered", "messaging.client.consumed.messages"):
        assert recorded.points(name)
        assert recorded.value(name) == 0


def test_a_value_at_a_bound_is_below_it() -> None:
    histogram = Histogram("h", "s", "", (1, 2))
    for value in (0.5, 1, 1.5, 2, 2.5):
        histogram.record(value)
    assert (histogram.series[()].counts, histogram.series[()].total) == ([2, 2, 1], 7.5)


@pytest.mark.parametrize("kind", ["counter", "histogram"])
def test_a_measure_keeps_only_so_many_series_apart(kind: str) -> None:
    """Whatever comes to stand in an attribute: memory and the collector's database do not pay for it."""
    counter, histogram = Counter("c", "1", "", ["a", "b"]), Histogram("h", "s", "", (1,), ["a", "b"])
    for number in range(SERIES_LIMIT + 50):
        counter.add(1, str(number), "x")
        histogram.record(1, str(number), "x")
    series = counter.read() if kind == "counter" else {key: one.total for key, one in histogram.series.items()}
    assert len(series) == SERIES_LIMIT + 1
    assert series[OTHER, OTHER] == 50
    assert series["0", "x"] == 1


# -- the whole queue ---------------------------------------------------------------------------------------------------


async def test_the_queue_is_counted_while_somebody_reads_it(
    recorded: Recorded, autojump_clock: trio.testing.MockClock
) -> None:
    database = CountingDatabase()
    await database.submit([NewTask(code="pass"), NewTask(code="pass", priority=7)])
    watch = QueueWatch(database, recorded.telemetry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(5 * INTERVAL - 1)
        assert database.counts == 1, "once for who comes first, and then not for nobody"
        assert recorded.value("continuum.queue.tasks", continuum__task__status="pending") == 2
        assert recorded.value("continuum.queue.oldest_pending") == 0, "as it was counted"
        await trio.sleep(2)
        assert database.counts == 2
        assert recorded.value("continuum.queue.oldest_pending") == pytest.approx(5 * INTERVAL)
        nursery.cancel_scope.cancel()


async def test_what_is_old_or_could_not_be_counted_is_not_told(
    recorded: Recorded, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = CountingDatabase()
    watch = QueueWatch(database, recorded.telemetry)
    assert await watch.look() == INTERVAL
    assert recorded.points("continuum.queue.tasks")
    assert recorded.value("continuum.queue.oldest_pending") == 0, "nobody waits"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * INTERVAL + QUEUE_LATENESS + 1)
    assert recorded.points("continuum.queue.tasks") == []
    monkeypatch.undo()
    assert recorded.points("continuum.queue.tasks")
    database.unavailable = True
    assert await watch.look() == INTERVAL
    assert recorded.points("continuum.queue.tasks") == []
    assert recorded.points("continuum.queue.workers") == []


async def test_many_workers_and_a_long_queue_are_counted_more_seldom(
    recorded: Recorded, autojump_clock: trio.testing.MockClock
) -> None:
    """All workers together keep the database busy with it for a twentieth of the time at most."""
    database = CountingDatabase(takes=0.5)
    for number in range(10):
        await database.report(WorkerReport(f"w{number}", "host", 1, "0", 4, 0, "fake"))
    assert await QueueWatch(database, recorded.telemetry).look() == pytest.approx(0.5 * 10 / 0.05)
