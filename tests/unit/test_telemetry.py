"""Telemetry as the environment asks for it, from its start to its end; and what `/metrics` shows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from continuum.config import Settings
from continuum.telemetry import Telemetry, start_telemetry
from continuum.telemetry import environment as environment_module
from continuum.telemetry.tracing import own
from tests.support.harness import settings
from tests.support.telemetry import TRACEPARENT, claimed, tell_a_whole_story


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]


async def test_nothing_configured_means_no_traces_and_still_metrics_to_ask_for() -> None:
    async with start_telemetry(settings(), "worker-1") as telemetry:
        assert isinstance(telemetry.execution(claimed()), type(Telemetry().execution(claimed())))
        tell_a_whole_story(telemetry, claimed())
        text, content_type = await telemetry.metrics_text() or (b"", "")
    assert content_type.startswith("text/plain; version=0.0.4")
    for line in (
        b'continuum_tasks_finished_total{continuum_task_ending="completed",continuum_task_status="completed"} 1.0',
        b"messaging_process_duration_seconds_bucket",
        b"continuum_completion_batch_size_sum 1.0",
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
    assert b"continuum_tasks_end_to_end_seconds_count 1.0" in first[0]
    assert b"continuum_tasks_end_to_end_seconds_count" not in second[0]


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
    assert own.get() is None


async def test_openmetrics_is_there_for_who_asks_and_has_exemplars_where_tasks_are_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    async with start_telemetry(settings(), "worker-1") as telemetry:
        tell_a_whole_story(telemetry, claimed())
        text, content_type = await telemetry.metrics_text("application/openmetrics-text; version=1.0.0") or (b"", "")
        plain, _ = await telemetry.metrics_text() or (b"", "")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}  # type: ignore[no-untyped-call]
    for name in ("messaging_process_duration_seconds", "continuum_tasks_end_to_end_seconds"):
        (exemplar,) = [sample.exemplar for sample in families[name].samples if sample.exemplar]
        assert exemplar.labels["trace_id"] == TRACEPARENT.split("-")[1]
        assert len(exemplar.labels["span_id"]) == 16
    assert b"trace_id" not in plain


async def test_without_traces_there_are_no_exemplars() -> None:
    async with start_telemetry(settings(), "worker-1") as telemetry:
        tell_a_whole_story(telemetry, claimed())
        text, _ = await telemetry.metrics_text("application/openmetrics-text; version=1.0.0") or (b"", "")
    assert b"trace_id" not in text
