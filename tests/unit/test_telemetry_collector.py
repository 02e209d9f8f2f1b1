"""Collectors on real sockets: one that answers, one that swallows what it gets, and none at all."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from continuum.telemetry import start_telemetry, submission
from continuum.telemetry.providers import SHUTDOWN_DEADLINE
from continuum.telemetry.tracing import SCHEMA
from tests.support.harness import settings
from tests.support.telemetry import claimed, tell_a_whole_story
from tests.unit.test_telemetry import no_variables

__all__ = ["no_variables"]  # the fixture holds here as well


class Collector(http.server.ThreadingHTTPServer):
    """An OTLP collector on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            self.server.traces.append(ExportTraceServiceRequest.FromString(body))
        else:
            self.server.metrics.append(ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def swallowing_collector() -> Iterator[str]:
    """Takes connections and whatever comes over them, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_a_collector_receives_one_trace_for_each_task_and_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.address)
        async with start_telemetry(settings(), "worker-1") as telemetry:
            with submission(1) as traceparent:
                pass
            tell_a_whole_story(telemetry, claimed(traceparent=traceparent))
    resources = [one for request in server.traces for one in request.resource_spans]
    spans = [span for one in resources for scope in one.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == [
        "submit tasks",
        "claim tasks",
        "execute tasks",
        "complete tasks",
    ]
    submit, claim, execute, complete = spans
    assert execute.trace_id == submit.trace_id
    assert [link.span_id for link in execute.links] == [link.span_id for link in claim.links] == [submit.span_id]
    assert [link.span_id for link in complete.links] == [execute.span_id]
    assert {one.schema_url for resource in resources for one in resource.scope_spans} == {SCHEMA}
    described = {one.key: one.value.string_value for one in resources[0].resource.attributes}
    assert (described["service.name"], described["service.instance.id"]) == ("continuum", "worker-1")
    names = {
        metric.name
        for request in server.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"messaging.client.consumed.messages", "continuum.tasks.finished", "messaging.process.duration"} <= names


async def test_the_service_may_be_named_by_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.address + "/v1/traces")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "billing")
        async with start_telemetry(settings(), "worker-1") as telemetry:
            tell_a_whole_story(telemetry, claimed())
    described = server.traces[0].resource_spans[0].resource.attributes
    assert {one.key: one.value.string_value for one in described}["service.name"] == "billing"


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("away", [swallowing_collector, closed_port])
async def test_a_collector_that_is_away_neither_slows_the_work_nor_delays_the_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], away: object
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    assert callable(away)
    with away() as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        slowest = 0.0
        async with start_telemetry(settings(), "worker-1") as telemetry:
            for number in range(3000):  # three spans each: the bounded queue overflows several times
                began = time.perf_counter()
                tell_a_whole_story(telemetry, claimed(number))
                slowest = max(slowest, time.perf_counter() - began)
                await trio.lowlevel.checkpoint()
            assert await telemetry.metrics_text() is not None
            began = time.perf_counter()
        assert time.perf_counter() - began < SHUTDOWN_DEADLINE + 3
    assert slowest < 5, (
        "far less than a request to a collector that swallows it would take, far more than a busy machine needs"
    )
    assert len(capfd.readouterr().err.splitlines()) < 50


async def test_the_end_of_telemetry_is_bounded_when_the_worker_is_cancelled_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with swallowing_collector() as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with trio.CancelScope() as scope:
            async with start_telemetry(settings(), "worker-1") as telemetry:
                tell_a_whole_story(telemetry, claimed())
                began = time.perf_counter()
                scope.cancel()
                await trio.sleep_forever()
        assert time.perf_counter() - began < SHUTDOWN_DEADLINE + 3
