"""What the SDK pushes to a collector: the same measures on a meter of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

from continuum.telemetry.measures import Counter, Histogram, Measure, Observed, Values


def push(measures: Iterable[Measure], meter: Meter) -> None:
    """Give every measure an instrument on the meter. Counters and gauges are read when the SDK collects; histograms pass each
    value on, since the SDK has none that could be read."""
    for measure in measures:
        match measure:
            case Histogram():
                instrument = meter.create_histogram(
                    measure.name,
                    measure.unit,
                    measure.description,
                    explicit_bucket_boundaries_advisory=list(measure.buckets),
                )
                measure.forwards.append(_forward(measure, instrument))
            case Counter():
                meter.create_observable_counter(measure.name, [_observer(measure)], measure.unit, measure.description)
            case Observed(kind="counter"):
                meter.create_observable_counter(measure.name, [_observer(measure)], measure.unit, measure.description)
            case Observed():
                meter.create_observable_gauge(measure.name, [_observer(measure)], measure.unit, measure.description)


def _observer(measure: Counter | Observed) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observations(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, measure.described(values)) for values, value in measure.read().items()]

    return observations


def _forward(measure: Histogram, instrument: metrics.Histogram) -> Callable[[float, Values, SpanContext | None], None]:
    described: dict[Values, dict[str, str]] = {}

    def forward(value: float, values: Values, span: SpanContext | None) -> None:
        attributes = described.get(values)
        if attributes is None:
            attributes = described[values] = measure.described(values)
        context = None if span is None else set_span_in_context(NonRecordingSpan(span))
        instrument.record(value, attributes, context)

    return forward
