"""Every metric of a worker. Names follow the semantic conventions where those have one, else `continuum.*`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

_TASK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10)
_COLD_START_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200)


class ObservedHealth(Protocol):
    @property
    def ready(self) -> bool: ...


class ObservedState(Protocol):
    """What the gauges read of a worker's state, at any time and from the exporter's thread."""

    @property
    def slots(self) -> int: ...
    @property
    def running(self) -> Sized: ...
    @property
    def health(self) -> ObservedHealth: ...


class ObservedPool(Protocol):
    """What the gauges read of a pool of sandboxes."""

    @property
    def idle(self) -> int: ...


class Instruments:
    """The instruments of one worker on one meter."""

    def __init__(self, meter: Meter) -> None:
        self.claimed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Tasks claimed by this worker"
        )
        self.finished = meter.create_counter(
            "continuum.tasks.finished",
            "{task}",
            "Attempts whose end was written, by the status written (pending: tried again) and by how they ended",
        )
        self.recovered = meter.create_counter(
            "continuum.leases.recovered", "{lease}", "Expired leases recovered, by what became of the task"
        )
        self.run_time = _histogram(
            meter, "messaging.process.duration", "Time a script ran, its sandbox's start included", _TASK_BUCKETS
        )
        self.queue_wait = _histogram(
            meter, "continuum.tasks.queue_wait", "Time from a task's creation to its claim", _TASK_BUCKETS
        )
        self.end_to_end = _histogram(
            meter, "continuum.tasks.end_to_end", "Time from a task's creation to its written outcome", _TASK_BUCKETS
        )
        self.cold_start = _histogram(
            meter, "continuum.sandbox.cold_start", "Time to start a sandbox", _COLD_START_BUCKETS
        )
        self.database_call = _histogram(
            meter, "db.client.operation.duration", "Time of a call to the database, by verb", _CALL_BUCKETS
        )
        self.batch_size = _histogram(
            meter, "continuum.completion.batch_size", "Outcomes written together", _SIZE_BUCKETS, unit="{task}"
        )
        self._state: ObservedState | None = None
        self._pool: ObservedPool | None = None
        gauges: dict[str, tuple[str, str, Callable[[], int | None]]] = {
            "continuum.tasks.running": ("{task}", "Tasks that hold a slot", self._running),
            "continuum.slots": ("{slot}", "Tasks that may run at once", self._slots),
            "continuum.sandboxes.idle": ("{sandbox}", "Started sandboxes that run nothing", self._idle),
            "continuum.ready": ("1", "1 when nothing keeps this worker from useful work, else 0", self._ready),
        }
        for name, (unit, description, read) in gauges.items():
            meter.create_observable_gauge(name, [_observer(read)], unit, description)

    def observe(self, state: ObservedState, pool: ObservedPool) -> None:
        """Read the gauges from these from now on."""
        self._state, self._pool = state, pool

    def _running(self) -> int | None:
        return len(self._state.running) if self._state is not None else None

    def _slots(self) -> int | None:
        return self._state.slots if self._state is not None else None

    def _idle(self) -> int | None:
        return self._pool.idle if self._pool is not None else None

    def _ready(self) -> int | None:
        return int(self._state.health.ready) if self._state is not None else None


def _observer(read: Callable[[], int | None]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observations(_: CallbackOptions) -> Iterable[Observation]:
        value = read()
        return [] if value is None else [Observation(value)]

    return observations


def _histogram(meter: Meter, name: str, description: str, buckets: tuple[float, ...], *, unit: str = "s") -> Histogram:
    return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=list(buckets))
