"""What the OTEL_* variables ask for."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any, Literal

from dotenv import dotenv_values

SignalType = Literal["traces", "metrics"]

EXPORT_TIMEOUT = 3.0
"""Seconds for one export unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise: the SDK's own 10 s would let a collector
that answers nothing hold the exporter's thread for most of the time."""

_ENTRY_POINTS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_TO_INSTALL = {
    "otlp_proto_http": "pip install 'continuum-worker[otlp]'",
    "otlp_proto_grpc": "pip install opentelemetry-exporter-otlp-proto-grpc",
}


class ExporterUnavailable(Exception):
    """An exporter is configured that cannot be made; the message says what to do."""


def read_dotenv(path: object) -> None:
    """Let OTEL_* variables stand in the `.env` file like all others: the SDK itself reads only the environment, which
    wins."""
    for name, value in dotenv_values(path).items() if isinstance(path, str) else ():
        if name.startswith("OTEL_") and value:
            os.environ.setdefault(name, value)


def sdk_disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def exporter_names(signal: SignalType) -> list[str]:
    """The exporters to use: those that OTEL_*_EXPORTER lists; without it `otlp` when an endpoint is set, else none."""
    prefix = signal.upper()
    listed = os.environ.get(f"OTEL_{prefix}_EXPORTER", "").strip()
    if listed:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "none")]
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{prefix}_ENDPOINT")
    return ["otlp"] if any(os.environ.get(name) for name in endpoints) else []


def make_exporter(signal: SignalType, name: str) -> Any:
    """An exporter of the SDK, by the name that OTEL_*_EXPORTER gives it. Raises `ExporterUnavailable`, and whatever the
    exporter raises for bad values."""
    entry = _entry_point(signal, name)
    options: dict[str, Any] = {}
    timeouts = ("OTEL_EXPORTER_OTLP_TIMEOUT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_TIMEOUT")
    if entry in _TO_INSTALL and not any(os.environ.get(variable) for variable in timeouts):
        options["timeout"] = EXPORT_TIMEOUT
    for found in entry_points(group=f"opentelemetry_{signal}_exporter", name=entry):
        return found.load()(**options)
    to_do = _TO_INSTALL.get(entry, f"install the package that provides {name!r}, or use otlp, console or none")
    raise ExporterUnavailable(f"no {signal} exporter {name!r} is installed: {to_do}")


def _entry_point(signal: SignalType, name: str) -> str:
    if name != "otlp":
        return name
    protocol = (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    ).strip()
    if protocol not in _ENTRY_POINTS:
        allowed = " or ".join(_ENTRY_POINTS)
        raise ExporterUnavailable(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: use {allowed}")
    return _ENTRY_POINTS[protocol]
