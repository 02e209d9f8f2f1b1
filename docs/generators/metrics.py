"""Every metric, from the measures themselves."""

from __future__ import annotations

from continuum.telemetry.instruments import Instruments
from continuum.telemetry.measures import Histogram, Measure
from continuum.telemetry.prometheus import prometheus_name


def generate() -> str:
    """A table with a row for each metric."""
    rows = ["| metric | at `/metrics` | attributes | meaning |", "|---|---|---|---|"]
    rows += [_row(measure) for measure in Instruments().all]
    return "\n".join(rows) + "\n"


def _row(measure: Measure) -> str:
    name = prometheus_name(measure)
    shown = {"counter": f"{name}_total", "histogram": f"{name}_bucket`, `_count`, `_sum"}.get(measure.kind, name)
    attributes = ", ".join(f"`{attribute}`" for attribute in measure.attributes)
    meaning = measure.description
    if isinstance(measure, Histogram):
        meaning += f". Buckets: {', '.join(f'{bound:g}' for bound in measure.buckets)}"
    return f"| `{measure.name}` | `{shown}` | {attributes} | {meaning} |"
