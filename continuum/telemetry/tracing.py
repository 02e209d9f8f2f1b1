"""What producers need of tracing: a span around a submit, and the text that lets a worker continue the trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SCOPE = "continuum"
COMMON = {"messaging.system": "continuum", "messaging.destination.name": "tasks"}
"""Attributes of every span and message metric."""

own_tracer: ContextVar[Tracer | None] = ContextVar("continuum_tracer", default=None)
"""The tracer of the `start_telemetry` block around us; None outside of one."""

_propagator = TraceContextTextMapPropagator()


def current_traceparent() -> str | None:
    """The W3C `traceparent` of the current span, to be stored with a task; None when no trace is being recorded."""
    return traceparent_of(None)


def traceparent_of(context: Context | None) -> str | None:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier.get("traceparent")


def context_of(traceparent: str | None) -> Context:
    """The context that a stored `traceparent` names; an empty one for None and for anything malformed."""
    return _propagator.extract({"traceparent": traceparent} if traceparent else {}, Context())


@contextmanager
def submission(tasks: int) -> Iterator[str | None]:
    """A span around submitting `tasks` tasks. Yields the `traceparent` to store with them, or None.

    The span goes to the `start_telemetry` block around it, else to the provider that the application has set with
    `opentelemetry.trace.set_tracer_provider`, as for any instrumented library.
    """
    tracer = own_tracer.get() or trace.get_tracer(SCOPE)
    attributes: dict[str, str | int] = {
        **COMMON,
        "messaging.operation.type": "send",
        "messaging.operation.name": "submit",
        "messaging.batch.message_count": tasks,
    }
    with tracer.start_as_current_span(
        "continuum.submit",
        kind=SpanKind.PRODUCER,
        attributes=attributes,
        # An exception's message may quote a payload.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield current_traceparent()
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR))
            raise
