"""Telemetry that keeps what it records, and the story of a task to tell it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from continuum.model import ClaimedTask, Completion, Ending, Outcome, Status
from continuum.telemetry import Telemetry
from continuum.telemetry.instruments import Instruments
from continuum.telemetry.push import push

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recorded:
    """Telemetry whose spans and pushed metrics stay in memory. contents: as LOG_PAYLOADS."""

    def __init__(self, contents: bool = False) -> None:
        self._spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self._metrics = InMemoryMetricReader()
        meters = MeterProvider([self._metrics], shutdown_on_exit=False)
        self.tracer = provider.get_tracer("test")
        self.instruments = Instruments()
        push(self.instruments.all, meters.get_meter("test"))
        self.telemetry = Telemetry(self.tracer, self.instruments, contents=contents)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that have ended, by name; of several with one name the last."""
        return {span.name: span for span in self.all_spans}

    @property
    def all_spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

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


def claimed(task_id: int = 7, *, traceparent: str | None = TRACEPARENT, attempt: int = 1) -> ClaimedTask:
    """A task that was created ten seconds ago."""
    return ClaimedTask(
        id=task_id, attempt=attempt, max_attempts=3, released=0, name="report", code="pass", code_id=None,
        payload="null", priority=5, timeout=None, tenant=None, traceparent=traceparent,
        created_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=10),
    )  # fmt: skip


def completion(task: ClaimedTask, status: Status = Status.COMPLETED, retry_in: float | None = None) -> Completion:
    return Completion(task.id, task.attempt, status, 0, "", "", None, retry_in)


def tell_a_whole_story(telemetry: Telemetry, task: ClaimedTask, outcome: Outcome | None = None) -> None:
    """From its claim, which took half a second, to its written outcome, which took a quarter; it ran for two."""
    outcome = outcome or Outcome(Ending.COMPLETED, 0)
    telemetry.tasks_claimed([task], 0.5)
    with telemetry.execution(task):
        pass
    telemetry.task_ended(task, outcome, 2.0)
    status = Status.COMPLETED if outcome.ending is Ending.COMPLETED else Status.FAILED
    telemetry.outcomes_written([completion(task, status)], {task.lease}, 0.25)
