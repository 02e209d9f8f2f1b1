"""What telemetry records, with the SDK's exporters in memory."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable, InvalidTask
from continuum.db.memory import MemoryDatabase
from continuum.model import ClaimedTask, Completion, Ending, Lease, NewTask, Outcome, Recovered, Status, Wakeup
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.telemetry import Telemetry, current_traceparent, start_telemetry, submission
from continuum.telemetry import environment as environment_module
from continuum.telemetry.attempts import REMEMBERED
from continuum.telemetry.instruments import Instruments
from continuum.telemetry.tracing import own_tracer
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import settings
from tests.support.listener import listening

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recorded:
    """Telemetry that keeps what it records."""

    def __init__(self, contents: bool = False) -> None:
        self._spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self._metrics = InMemoryMetricReader()
        meters = MeterProvider([self._metrics], shutdown_on_exit=False)
        self.tracer = provider.get_tracer("test")
        self.telemetry = Telemetry(self.tracer, Instruments(meters.get_meter("test")), contents=contents)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._spans.get_finished_spans()}

    def points(self, name: str) -> list[Any]:
        data = self._metrics.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def value(self, name: str, **attributes: str) -> float:
        """The sum of a counter's or a gauge's points with these attributes (dots written as `__`)."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return float(
            sum(point.value for point in self.points(name) if wanted.items() <= dict(point.attributes).items())
        )


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]


def claimed(task_id: int = 7, *, traceparent: str | None = TRACEPARENT, attempt: int = 1) -> ClaimedTask:
    return ClaimedTask(
        id=task_id, attempt=attempt, max_attempts=3, released=0, name="report", code="pass", code_id=None,
        payload="null", priority=5, timeout=None, tenant=None, traceparent=traceparent,
        created_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=10),
    )  # fmt: skip


def completion(task: ClaimedTask, status: Status = Status.COMPLETED, retry_in: float | None = None) -> Completion:
    return Completion(task.id, task.attempt, status, 0, "", "", None, retry_in)


@pytest.mark.parametrize("contents", [False, True])
def test_what_a_task_holds_is_told_only_where_it_may_be(contents: bool) -> None:
    recorded = Recorded(contents=contents)
    task = replace(claimed(), payload='"canary-payload"')
    outcome = Outcome(Ending.FAILED, 1, "canary-output" + "." * 5000, "canary-error", "ValueError: canary-message")
    with structlog.testing.capture_logs() as logs:
        tell_a_whole_story(recorded.telemetry, task, outcome)
    (line,) = logs
    assert (line["log_level"], line["task_id"], line["ending"]) == ("debug", 7, "failed")
    attributes = recorded.spans["continuum.execute"].attributes or {}
    for told in (line, {name.removeprefix("continuum.task."): text for name, text in attributes.items()}):
        assert ("canary" in str(told)) is contents
        if contents:
            assert (told["payload"], told["error_output"]) == ('"canary-payload"', "canary-error")
            assert told["message"] == "ValueError: canary-message"
            assert len(str(told["output"])) == 2000
    assert "canary" not in repr((task, outcome)), "not even where somebody logs the whole of it"


def test_a_submission_that_fails_tells_the_kind_of_its_error_and_not_what_it_quotes(recorded: Recorded) -> None:
    own_tracer.set(recorded.tracer)
    try:
        with pytest.raises(InvalidTask), submission(1):
            raise InvalidTask("canary")
    finally:
        own_tracer.set(None)
    span = recorded.spans["continuum.submit"]
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "InvalidTask"
    assert "canary" not in span.to_json()


def tell_a_whole_story(telemetry: Telemetry, task: ClaimedTask, outcome: Outcome | None = None) -> None:
    outcome = outcome or Outcome(Ending.COMPLETED, 0)
    telemetry.tasks_claimed([task], 0.5)
    with telemetry.execution(task):
        pass
    telemetry.task_ended(task, outcome, 2.0)
    status = Status.COMPLETED if outcome.ending is Ending.COMPLETED else Status.FAILED
    telemetry.outcomes_written([completion(task, status)], {task.lease}, 0.25)


# -- spans -------------------------------------------------------------------------------------------------------------


def test_a_task_is_one_trace_from_its_submission_to_its_completion(recorded: Recorded) -> None:
    own_tracer.set(recorded.tracer)
    try:
        with submission(1) as traceparent:
            assert traceparent == current_traceparent() is not None
    finally:
        own_tracer.set(None)
    tell_a_whole_story(recorded.telemetry, claimed(traceparent=traceparent))
    spans = recorded.spans
    submit = spans.pop("continuum.submit")
    assert set(spans) == {"continuum.claim", "continuum.execute", "continuum.complete"}
    for span in spans.values():
        assert span.context.trace_id == submit.context.trace_id
        assert span.parent is not None
        assert span.parent.span_id == submit.context.span_id


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_task_without_a_usable_traceparent_begins_a_trace_with_its_claim(
    recorded: Recorded, traceparent: str | None
) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(traceparent=traceparent))
    claim = recorded.spans["continuum.claim"]
    assert claim.parent is None
    for name in ("continuum.execute", "continuum.complete"):
        parent = recorded.spans[name].parent
        assert parent is not None
        assert (parent.trace_id, parent.span_id) == (claim.context.trace_id, claim.context.span_id)


def test_a_producer_that_does_not_sample_is_respected(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(traceparent=TRACEPARENT[:-2] + "00"))
    assert recorded.spans == {}


def test_claim_and_complete_last_as_long_as_the_calls_they_shared(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed())
    for name, seconds in (("continuum.claim", 0.5), ("continuum.complete", 0.25)):
        span = recorded.spans[name]
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(seconds)


def test_a_failed_run_is_an_error_with_its_reason_and_exit_code(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(), Outcome(Ending.FAILED, 3, message="exit code 3"))
    execute = recorded.spans["continuum.execute"]
    assert not execute.status.is_ok
    assert execute.attributes is not None
    assert execute.attributes["continuum.task.ending"] == "failed"
    assert execute.attributes["process.exit.code"] == 3


def test_spans_hold_no_payload_code_or_output(recorded: Recorded) -> None:
    task = replace(claimed(), payload='"secret"', code="secret")
    tell_a_whole_story(recorded.telemetry, task, Outcome(Ending.FAILED, 1, "secret", "secret", "secret"))
    assert all("secret" not in span.to_json() for span in recorded.spans.values())


def test_inside_the_run_its_span_is_the_current_one(recorded: Recorded) -> None:
    recorded.telemetry.tasks_claimed([claimed()])
    with recorded.telemetry.execution(claimed()):
        inside = current_traceparent()
    assert inside is not None
    assert inside.split("-")[1] == TRACEPARENT.split("-")[1]
    assert inside != TRACEPARENT
    assert current_traceparent() is None


async def test_a_run_that_is_stopped_ends_its_span_as_an_error(recorded: Recorded) -> None:
    recorded.telemetry.tasks_claimed([claimed()])
    with trio.CancelScope() as scope, recorded.telemetry.execution(claimed()):
        scope.cancel()
        await trio.sleep_forever()
    assert recorded.spans["continuum.execute"].status.description == "abandoned"


def test_an_outcome_whose_lease_was_lost_is_an_error_and_counts_as_nothing_finished(recorded: Recorded) -> None:
    task = claimed()
    recorded.telemetry.tasks_claimed([task])
    recorded.telemetry.outcomes_written([completion(task)], frozenset[Lease](), 0.1)
    assert not recorded.spans["continuum.complete"].status.is_ok
    assert recorded.points("continuum.tasks.finished") == []


def test_attempts_that_never_end_do_not_fill_the_memory(recorded: Recorded) -> None:
    for number in range(REMEMBERED + 10):
        recorded.telemetry.tasks_claimed([claimed(number)])
    assert len(recorded.telemetry._attempts._attempts) == REMEMBERED


def test_without_a_provider_a_producer_stores_no_traceparent() -> None:
    with submission(1) as traceparent:
        assert traceparent is None
    assert current_traceparent() is None


def test_a_producer_s_own_trace_is_continued(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request") as request, submission(3) as traceparent:
        assert traceparent is not None
        assert traceparent.split("-")[1] == trace.format_trace_id(request.get_span_context().trace_id)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_claims_runs_and_ends_are_counted_and_timed(recorded: Recorded) -> None:
    tell_a_whole_story(recorded.telemetry, claimed(1))
    tell_a_whole_story(recorded.telemetry, claimed(2), Outcome(Ending.TIMED_OUT))
    assert recorded.value("messaging.client.consumed.messages") == 2
    finished = "continuum.tasks.finished"
    assert recorded.value(finished, continuum__task__status="completed", continuum__task__ending="completed") == 1
    assert recorded.value(finished, continuum__task__status="failed", continuum__task__ending="timed_out") == 1
    assert sum(point.sum for point in recorded.points("messaging.process.duration")) == 4.0
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


def test_gauges_show_the_worker_as_it_is(recorded: Recorded) -> None:
    class Pool:
        idle = 3

    assert recorded.points("continuum.slots") == []
    state = WorkerState(id="w", slots=8)
    recorded.telemetry.observe(state, Pool())
    names = ("continuum.slots", "continuum.tasks.running", "continuum.sandboxes.idle", "continuum.ready")
    assert [recorded.value(name) for name in names] == [8, 0, 3, 1]
    state.health.report("database", "away")
    assert recorded.value("continuum.ready") == 0


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
    assert len(recorded.points("continuum.tasks.finished")) == 2
    assert recorded.value("messaging.client.consumed.messages") == 2
    assert recorded.value("continuum.slots") == 2
    traced = [
        span for span in recorded._spans.get_finished_spans() if span.context.trace_id == int(TRACEPARENT[3:35], 16)
    ]
    assert [span.name for span in traced] == ["continuum.claim", "continuum.execute", "continuum.complete"]
    assert len(telemetry._attempts._attempts) == 0


# -- from the environment ----------------------------------------------------------------------------------------------


async def test_nothing_configured_means_no_traces_and_still_metrics_to_ask_for() -> None:
    async with start_telemetry(settings(), "worker-1") as telemetry:
        assert isinstance(telemetry.execution(claimed()), type(Telemetry().execution(claimed())))
        tell_a_whole_story(telemetry, claimed())
        telemetry.batch_completed(12)
        text, content_type = await telemetry.metrics_text() or (b"", "")
    assert content_type.startswith("text/plain; version=0.0.4")
    for line in (
        b'continuum_tasks_finished_total{continuum_task_ending="completed",continuum_task_status="completed"} 1.0',
        b"messaging_process_duration_seconds_bucket",
        b"continuum_completion_batch_size_sum 12.0",
        b'service_instance_id="worker-1"',
        b"process_resident_memory_bytes",
    ):
        assert line in text


async def test_two_workers_in_one_process_keep_their_metrics_apart() -> None:
    async with start_telemetry(settings(), "one") as one, start_telemetry(settings(), "two") as two:
        tell_a_whole_story(one, claimed())
        first, second = await one.metrics_text(), await two.metrics_text()
    assert first is not None
    assert second is not None
    assert b"continuum_tasks_finished_total" in first[0]
    assert b"continuum_tasks_finished_total" not in second[0]


async def test_a_disabled_sdk_records_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    async with start_telemetry(settings(), "worker-1") as telemetry:
        assert await telemetry.metrics_text() is None
        assert "OTEL_SDK_DISABLED" in telemetry.no_metrics


@pytest.mark.parametrize(
    ("variables", "traces", "metrics"),
    [
        ({}, [], []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ["otlp"], ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, ["otlp"], []),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, [], ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, [], ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp", "console"], []),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, [], ["prometheus"]),
    ],
)
def test_the_standard_variables_choose_the_exporters(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], traces: list[str], metrics: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment_module.exporter_names("traces") == traces
    assert environment_module.exporter_names("metrics") == metrics


async def test_an_exporter_that_is_not_installed_is_one_warning_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment_module, "entry_points", lambda **_: [])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with structlog.testing.capture_logs() as logs:
        async with start_telemetry(settings(), "worker-1") as telemetry:
            tell_a_whole_story(telemetry, claimed())
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert "pip install 'continuum-worker[otlp]'" in str(warning["problems"])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "use http/protobuf or grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "no traces exporter 'zipkin' is installed"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size must be a positive integer"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
    ],
)
async def test_a_bad_value_turns_telemetry_off_with_a_warning_and_never_stops_the_worker(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with structlog.testing.capture_logs() as logs:
        async with start_telemetry(settings(), "worker-1") as telemetry:
            tell_a_whole_story(telemetry, claimed())
    assert said in str(logs[0]["problems"])


async def test_the_variables_may_stand_in_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    (tmp_path / ".env").write_text("OTEL_SDK_DISABLED=true\nDB_HOST=elsewhere\n")
    async with start_telemetry(settings(), "worker-1") as telemetry:
        assert "OTEL_SDK_DISABLED" in telemetry.no_metrics
    import os

    assert os.environ.get("DB_HOST") != "elsewhere"


async def test_started_and_stopped_many_times_it_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")

    def sdk_threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")]

    for _ in range(10):
        async with start_telemetry(settings(), "worker-1") as telemetry:
            tell_a_whole_story(telemetry, claimed())
            assert len(sdk_threads()) == 2
        assert sdk_threads() == []
    assert own_tracer.get() is None
