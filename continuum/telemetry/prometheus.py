"""The Prometheus exposition. Importing this module needs the extra `prometheus`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from continuum.telemetry.measures import Counter, Histogram, Measure, Observed, Series

_UNITS = {"s": "_seconds", "By": "_bytes"}


def prometheus_name(measure: Measure) -> str:
    """The name of a measure's family, by the rules of OpenTelemetry: dots become underscores, the unit comes last. Counters
    have `_total` behind it, histograms `_bucket`, `_count` and `_sum`."""
    return _sanitized(measure.name) + _UNITS.get(measure.unit, "")


class PrometheusExposition:
    """A worker's measures, what it is (`target_info`), and its process's own figures, from a registry of its own."""

    def __init__(self, measures: Sequence[Measure], resource: Mapping[str, object]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Measures(measures, resource))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The text in the form that an `Accept` header asks for, and its content type. OpenMetrics has exemplars."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Measures(Collector):
    def __init__(self, measures: Sequence[Measure], resource: Mapping[str, object]) -> None:
        self._measures = measures
        self._resource = {_sanitized(name): str(value) for name, value in resource.items()}

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        about = InfoMetricFamily("target", "What this worker is")
        about.add_metric([], self._resource)
        yield about
        for measure in self._measures:
            if isinstance(measure, Histogram):
                yield _histogram(measure)
            elif isinstance(measure, (Counter, Observed)):
                yield _numbers(measure)


def _numbers(measure: Counter | Observed) -> Metric:
    make = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    family = make(prometheus_name(measure), measure.description, labels=_labels(measure))
    for values, number in measure.read().items():
        family.add_metric([*measure.constant.values(), *values], number)
    return family


def _histogram(measure: Histogram) -> Metric:
    family = HistogramMetricFamily(prometheus_name(measure), measure.description, labels=_labels(measure))
    bounds = [*map(str, map(float, measure.buckets)), "+Inf"]
    for values, series in list(measure.series.items()):
        family.add_metric([*measure.constant.values(), *values], list(_buckets(bounds, series)), series.total)
    return family


def _buckets(bounds: list[str], series: Series) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    exemplars = dict(series.exemplars)
    for number, (bound, count) in enumerate(zip(bounds, accumulate(list(series.counts)), strict=True)):
        if (found := exemplars.get(number)) is None:
            yield bound, count
        else:
            labels = {
                "trace_id": format_trace_id(found.span.trace_id),
                "span_id": format_span_id(found.span.span_id),
            }
            yield bound, count, Exemplar(labels, found.value, found.at)


def _labels(measure: Measure) -> list[str]:
    return [_sanitized(name) for name in (*measure.constant, *measure.attributes)]


def _sanitized(name: str) -> str:
    return name.replace(".", "_")
