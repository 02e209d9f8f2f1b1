"""What producers need of tracing: a span around a submit, and the text that lets a worker continue the trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SCOPE = "continuum"
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that names of spans, metrics and attributes follow."""
DESTINATION = "tasks"
COMMON = {"messaging.system": "continuum", "messaging.destination.name": DESTINATION}
"""Attributes of every span and message metric."""
CALL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Seconds, as the conventions ask of `messaging.client.operation.duration`."""
SUBMIT = {**COMMON, "messaging.operation.name": "submit", "messaging.operation.type": "send"}

Sent = Callable[[int, float, str], None]
"""Called after a submit with the number of tasks, the seconds that it took, and the kind of error it ended with, or ''."""


@dataclass(frozen=True, slots=True)
class Own:
    """Where submits of this process are told, within a `start_telemetry` block."""

    tracer: Tracer | None
    sent: Sent | None


own: ContextVar[Own | None] = ContextVar("continuum_telemetry", default=None)
"""That of the `start_telemetry` block around us; None outside of one."""

_propagator = TraceContextTextMapPropagator()


def current_traceparent() -> str | None:
    """The W3C `traceparent` of the current span, to be stored with a task; None when no trace is being recorded."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def context_of(traceparent: str | None) -> Context:
    """The context that a stored `traceparent` names; an empty one for None and for anything malformed."""
    return _propagator.extract({"traceparent": traceparent} if traceparent else {}, Context())


def span_context_of(context: Context | None) -> SpanContext | None:
    """The span that a context names, if it names one."""
    found = trace.get_current_span(context).get_span_context()
    return found if found.is_valid else None


@contextmanager
def submission(tasks: int) -> Iterator[str | None]:
    """A span around submitting `tasks` tasks. Yields the `traceparent` to store with them, or None.

    Span and metrics go to the `start_telemetry` block around it, else to the providers that the application has set with
    `opentelemetry.trace.set_tracer_provider` and `opentelemetry.metrics.set_meter_provider`, as for any instrumented
    library.
    """
    telling = own.get()
    tracer = (telling.tracer if telling else None) or trace.get_tracer(SCOPE, schema_url=SCHEMA)
    sent = telling.sent if telling else _applications_own()
    attributes: dict[str, str | int] = {**SUBMIT}
    if tasks != 1:
        attributes["messaging.batch.message_count"] = tasks
    began = time.perf_counter()
    failure = ""
    with tracer.start_as_current_span(
        f"submit {DESTINATION}",
        kind=SpanKind.PRODUCER,
        attributes=attributes,
        # An exception's message may quote a payload.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield current_traceparent()
        except BaseException as error:
            failure = type(error).__qualname__
            span.set_attribute("error.type", failure)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            if sent is not None:
                sent(tasks, time.perf_counter() - began, failure)


def submitted(ids: Sequence[int]) -> None:
    """Tell, within a `submission`, the ids that its tasks have got: that of a single one goes into the span."""
    if len(ids) == 1:
        trace.get_current_span().set_attribute("messaging.message.id", str(ids[0]))


@cache
def _applications_own() -> Sent:
    meter = metrics.get_meter(SCOPE, schema_url=SCHEMA)
    messages = meter.create_counter("messaging.client.sent.messages", "{message}", "Tasks that were to be submitted")
    duration = meter.create_histogram(
        "messaging.client.operation.duration",
        "s",
        "Time of a submit, however many tasks it was for",
        explicit_bucket_boundaries_advisory=list(CALL_BUCKETS),
    )

    def sent(tasks: int, seconds: float, failure: str) -> None:
        attributes: Mapping[str, str] = {**SUBMIT, "error.type": failure} if failure else SUBMIT
        messages.add(tasks, attributes)
        duration.record(seconds, attributes)

    return sent
