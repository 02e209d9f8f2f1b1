"""The SDK's providers, from the environment to their end."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import metadata

import structlog
import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from continuum.config import NAMED_FILE, Settings
from continuum.telemetry.environment import (
    ExporterUnavailable,
    exporter_names,
    make_exporter,
    read_dotenv,
    sdk_disabled,
)
from continuum.telemetry.instruments import Instruments
from continuum.telemetry.push import push
from continuum.telemetry.recorder import Exposition, Telemetry
from continuum.telemetry.tracing import SCHEMA, SCOPE, Own, own

log = structlog.get_logger(__name__)

SHUTDOWN_DEADLINE = 2.0
"""Seconds at the end to push what is left; after that it is given up, in daemon threads that end with the process."""
PROMETHEUS_MISSING = "install the extra: pip install 'continuum-worker[prometheus]'"


class _Seldom(logging.Filter):
    """Lets one record of a logger pass each minute: a collector that is away is worth a line, not one per export."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + 60
        return True


_seldom = _Seldom()
_NOISY_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.sdk._shared_internal",
    "urllib3.connectionpool",
)


@asynccontextmanager
async def start_telemetry(settings: Settings, worker_id: str) -> AsyncIterator[Telemetry]:
    """Telemetry for the life of the block, as the OTEL_* variables ask for it. Never raises for a bad or absent
    exporter: it warns once and goes on without. Leaving takes at most `SHUTDOWN_DEADLINE`, however it is left."""
    read_dotenv(os.environ.get(NAMED_FILE) or settings.model_config.get("env_file"))
    if sdk_disabled():
        yield Telemetry(no_metrics="metrics are off: OTEL_SDK_DISABLED is true", contents=settings.log_payloads)
        return
    problems: list[str] = []
    resource = _resource(worker_id)
    tracer_provider = _tracer_provider(resource, problems)
    instruments = Instruments()
    meter_provider = _meter_provider(resource, problems)
    exposition = _exposition(instruments, resource)
    if problems:
        log.warning("some telemetry is off", problems=list(dict.fromkeys(problems)))
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_seldom)
    version = metadata.version("continuum-worker")
    if meter_provider is not None:
        push(instruments.all, meter_provider.get_meter(SCOPE, version, SCHEMA))
    telemetry = Telemetry(
        tracer=tracer_provider.get_tracer(SCOPE, version, schema_url=SCHEMA) if tracer_provider else None,
        instruments=instruments if meter_provider is not None or exposition is not None else None,
        exposition=exposition,
        no_metrics=PROMETHEUS_MISSING,
        contents=settings.log_payloads,
    )
    outside = own.get()
    own.set(Own(telemetry.tracer, telemetry.tasks_sent))
    try:
        yield telemetry
    finally:
        own.set(outside)
        telemetry.close()
        await _shut_down([provider.shutdown for provider in (tracer_provider, meter_provider) if provider])


def _resource(worker_id: str) -> Resource:
    attributes: dict[str, str | int] = {
        "service.version": metadata.version("continuum-worker"),
        "service.instance.id": worker_id,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:
        attributes["service.name"] = "continuum"
    return Resource.create(attributes)


def _tracer_provider(resource: Resource, problems: list[str]) -> TracerProvider | None:
    exporting = None
    with _noting(problems, "traces"):
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for name in exporter_names("traces"):
            with _noting(problems, f"traces exporter {name!r}"):
                provider.add_span_processor(BatchSpanProcessor(make_exporter("traces", name)))
                exporting = provider
    return exporting


def _meter_provider(resource: Resource, problems: list[str]) -> MeterProvider | None:
    readers: list[MetricReader] = []
    for name in exporter_names("metrics"):
        if name == "prometheus":
            continue  # served at /metrics in any case
        with _noting(problems, f"metrics exporter {name!r}"):
            readers.append(PeriodicExportingMetricReader(make_exporter("metrics", name)))
    return MeterProvider(readers, resource, shutdown_on_exit=False) if readers else None


def _exposition(instruments: Instruments, resource: Resource) -> Exposition | None:
    try:
        from continuum.telemetry.prometheus import PrometheusExposition
    except ImportError:
        return None
    return PrometheusExposition(instruments.all, resource.attributes)


@contextmanager
def _noting(problems: list[str], what: str) -> Iterator[None]:
    """Note why something could not be made, instead of raising: the SDK raises all sorts of things for bad values."""
    try:
        yield
    except ExporterUnavailable as error:
        problems.append(str(error))
    except Exception as error:
        problems.append(f"{what}: {error}")


async def _shut_down(shutdowns: list[Callable[[], object]]) -> None:
    """Push what is left, in threads that are abandoned at the deadline: a collector may never answer."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + SHUTDOWN_DEADLINE) as scope:
        async with trio.open_nursery() as nursery:
            for shutdown in shutdowns:
                nursery.start_soon(_run_abandonable, shutdown)
    if scope.cancelled_caught:
        log.warning("the collector took no telemetry within the deadline; what was left is dropped")


async def _run_abandonable(shutdown: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(shutdown, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
