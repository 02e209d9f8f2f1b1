"""Traces and metrics with OpenTelemetry: off unless configured, and never in the way of the work.

`start_telemetry` opens it for the life of a worker. Traces and pushed metrics follow the standard OTEL_* variables;
`/metrics` has its own registry and works whenever the extra `prometheus` is installed. Nothing process-wide is set,
so that it can be started and stopped many times in one process.

    environment.py    what the OTEL_* variables ask for
    providers.py      the SDK's providers built from that
    instruments.py    every metric: name, unit, meaning
    attempts.py       the spans of a task: claim, execute and complete, in one trace
    recorder.py       `Telemetry`, which the worker calls
    timing.py         measures a database's and a sandbox backend's calls from outside
    tracing.py        what producers need: `submission` and `current_traceparent`

The names below are imported when they are first used: a producer needs `submission`, and not the whole SDK.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from continuum.telemetry.providers import start_telemetry
    from continuum.telemetry.recorder import Telemetry
    from continuum.telemetry.tracing import current_traceparent, submission

__all__ = ["Telemetry", "current_traceparent", "start_telemetry", "submission"]

_MODULES = {"Telemetry": "recorder", "start_telemetry": "providers"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'continuum.telemetry' has no attribute {name!r}")
    module = importlib.import_module(f"continuum.telemetry.{_MODULES.get(name, 'tracing')}")
    return getattr(module, name)
