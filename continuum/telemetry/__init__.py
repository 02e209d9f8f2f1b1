"""Traces and metrics with OpenTelemetry: off unless configured, and never in the way of the work.

`start_telemetry` opens it for the life of a worker. Traces and pushed metrics follow the standard OTEL_* variables;
`/metrics` is made of the same measures and works whenever the extra `prometheus` is installed. Nothing process-wide is set,
so that it can be started and stopped many times in one process.

    environment.py    what the OTEL_* variables ask for
    providers.py      the SDK's providers built from that
    measures.py       counters, gauges and histograms that cost the work next to nothing
    instruments.py    every metric: name, unit, meaning, attributes
    process.py        those of the worker's process
    prometheus.py     shows them at `/metrics`
    push.py           hands them to the SDK, where they are pushed
    attempts.py       the spans: one for each attempt, one for each claim and each batch of outcomes
    recorder.py       `Telemetry`, which the worker calls
    timing.py         measures a database's and a sandbox backend's calls from outside
    tracing.py        what producers need: `submission`, `submitted` and `current_traceparent`

The names below are imported when they are first used: a producer needs `submission`, and not the whole SDK.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continuum.telemetry.providers import start_telemetry
    from continuum.telemetry.recorder import Telemetry
    from continuum.telemetry.tracing import current_traceparent, submission, submitted

__all__ = ["Telemetry", "current_traceparent", "start_telemetry", "submission", "submitted"]

_MODULES = {"Telemetry": "recorder", "start_telemetry": "providers"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'continuum.telemetry' has no attribute {name!r}")
    module = importlib.import_module(f"continuum.telemetry.{_MODULES.get(name, 'tracing')}")
    return getattr(module, name)
