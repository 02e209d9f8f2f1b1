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
"""

from continuum.telemetry.providers import start_telemetry
from continuum.telemetry.recorder import Telemetry
from continuum.telemetry.tracing import current_traceparent, submission

__all__ = ["Telemetry", "current_traceparent", "start_telemetry", "submission"]
