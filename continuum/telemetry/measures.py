"""Counters, gauges and histograms: adding to one costs well under a microsecond, and all else is done when somebody asks.

The SDK's instruments take 6 to 17 µs for each value, most of it to hash its attributes, which for a short task was a tenth of
all that a worker does for it. So the values are kept here, by the values of their attributes alone; `prometheus.py` shows
them, and `push.py` hands them to the SDK where metrics are pushed.

Only the worker's own thread adds; any thread may read.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from opentelemetry.trace import SpanContext

Values = tuple[str, ...]
"""The values of a measure's attributes, in their order; an empty one is left out."""

SERIES_LIMIT = 200
"""Combinations of values that a measure keeps apart. All attributes have few values; should one have many after all, memory and
the collector's database do not pay for it: what comes later is added to `OTHER`."""
OTHER = "_OTHER"
NOTHING: Mapping[str, str] = MappingProxyType({})


class Measure:
    """What is measured: name, unit and attributes as the semantic conventions write them.

    attributes: names of those whose values vary. constant: those that are always the same.
    """

    kind = ""

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        attributes: Iterable[str] = (),
        constant: Mapping[str, str] = NOTHING,
    ) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.attributes = tuple(attributes)
        self.constant = constant

    def described(self, values: Values) -> dict[str, str]:
        """The attributes of a series by name."""
        return {**self.constant, **{name: value for name, value in zip(self.attributes, values, strict=True) if value}}


class Counter(Measure):
    """Something that only grows.

    expected: series that are there from the start, as 0: what begins at 1 is no increase to Prometheus.
    """

    kind = "counter"

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        attributes: Iterable[str] = (),
        constant: Mapping[str, str] = NOTHING,
        expected: Iterable[Values] = (),
    ) -> None:
        super().__init__(name, unit, description, attributes, constant)
        self._series: dict[Values, float] = dict.fromkeys(expected, 0)

    def add(self, count: float, *values: str) -> None:
        series = self._series
        if values not in series:
            values = _kept_apart(values, len(series))
        series[values] = series.get(values, 0) + count

    def read(self) -> Mapping[Values, float]:
        return dict(self._series)


class Observed(Measure):
    """Something that is there already, and read when somebody asks, in any thread: a gauge, or a counter."""

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        read: Callable[[], Mapping[Values, float]],
        attributes: Iterable[str] = (),
        *,
        kind: str = "gauge",
    ) -> None:
        super().__init__(name, unit, description, attributes)
        self.kind = kind
        self.read = read


class Exemplar(NamedTuple):
    """One value, and the span in which it was measured. at: seconds since 1970."""

    value: float
    span: SpanContext
    at: float


class Series:
    """One histogram: how many values each bucket has (not cumulated; the last is for all above), their sum, and the latest
    exemplar of each bucket."""

    __slots__ = ("counts", "exemplars", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}


class Histogram(Measure):
    """How values are distributed. buckets: their upper bounds, inclusive, without infinity."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        buckets: tuple[float, ...],
        attributes: Iterable[str] = (),
        constant: Mapping[str, str] = NOTHING,
    ) -> None:
        super().__init__(name, unit, description, attributes, constant)
        self.buckets = buckets
        self.series: dict[Values, Series] = {}
        self.forwards: list[Callable[[float, Values, SpanContext | None], None]] = []
        """Who else is told of each value."""

    def record(self, value: float, *values: str, span: SpanContext | None = None) -> None:
        """Add a value. span: in which it was measured, when that is sampled."""
        series = self.series.get(values)
        if series is None:
            values = _kept_apart(values, len(self.series))
            series = self.series.setdefault(values, Series(len(self.buckets)))
        bucket = bisect_left(self.buckets, value)
        series.counts[bucket] += 1
        series.total += value
        if span is not None:
            series.exemplars[bucket] = Exemplar(value, span, time.time())
        for forward in self.forwards:
            forward(value, values, span)


def _kept_apart(values: Values, series: int) -> Values:
    return values if series < SERIES_LIMIT else (OTHER,) * len(values)
