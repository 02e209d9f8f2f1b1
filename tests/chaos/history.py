"""What happened in a run, as told by everybody who took part: plain values, one per line of a file.

Each witness (producer, worker, observer, the run itself) writes a file of its own, an event at a time, so that what a killed
process had said until then stays. `at` and `began` are seconds on this machine's monotonic clock, which all of its
processes share: a call took place at some moment from `began` to `at`. `wall` is for people.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from continuum.model import Lease, Status, Wakeup
from continuum.retry import QUARANTINED


class Accepted(NamedTuple):
    """An outcome that a worker has accepted and now offers to the database."""

    task_id: int
    attempt: int
    status: str
    output: str

    @property
    def lease(self) -> Lease:
        return Lease(self.task_id, self.attempt)


class Row(NamedTuple):
    """One row of TASKS as somebody read it.

    due: nothing but a free slot stands between it and a claim. started: seconds on the database's clock. due_for: the due time of
    its schedule, in the same.
    """

    task_id: int
    key: str | None
    status: str
    attempt: int
    released: int
    worker: str | None
    output: str | None
    finished: str | None
    last_error: str | None
    due: bool
    tenant: str | None = None
    sequence_key: str | None = None
    concurrency_key: str | None = None
    started: float | None = None
    due_for: float | None = None
    depends_on: tuple[int, ...] = ()
    depends_ended: bool = False
    batch: str | None = None
    depends_batch: str | None = None

    @property
    def lease(self) -> Lease:
        return Lease(self.task_id, self.attempt)

    @property
    def pending(self) -> bool:
        return self.status == Status.PENDING

    @property
    def processing(self) -> bool:
        return self.status == Status.PROCESSING

    @property
    def terminal(self) -> bool:
        return self.status not in (Status.PENDING, Status.PROCESSING)

    @property
    def in_vain(self) -> bool:
        """Whether it was ended because what it depends on did not complete."""
        return self.status == Status.CANCELLED and (self.last_error or "").startswith("Not run: ")

    @property
    def by_janitor(self) -> bool:
        """Whether it is over, and the last that was said of it is that somebody's worker was gone."""
        message = (self.last_error or "").removeprefix(QUARANTINED)
        return self.status != Status.PROCESSING and message.startswith("Timeout/Crash: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When an event was written down."""

    at: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded(Moment):
    """From before the first task on, no more of this are at a time, or start in any `period` of so many seconds: `tenant`
    or `key` with this name."""

    kind: Literal["bounded"] = "bounded"
    scope: Literal["tenant", "key"]
    name: str
    most: int
    period: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled(Moment):
    """From before the first task until everything has ended, a task is due every so many seconds."""

    kind: Literal["scheduled"] = "scheduled"
    every: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Moment):
    """The producer asked for a task. Unknown: it may be there or not. Refused: it is not there."""

    kind: Literal["submitted"] = "submitted"
    key: str
    payload: str
    began: float
    answer: Literal["acknowledged", "unknown", "refused"]
    task_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Moment):
    """A worker's services run."""

    kind: Literal["worker started"] = "worker started"
    worker: str
    pid: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnded(Moment):
    """A worker was killed, at this moment or later, or it ended by itself with this exit code."""

    kind: Literal["worker ended"] = "worker ended"
    worker: str
    killed: bool
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(Moment):
    """The database granted leases of so many seconds. `wanted`: how many the worker asked for, as many as it had slots
    free; 0 where nobody wrote it down."""

    kind: Literal["claimed"] = "claimed"
    worker: str
    began: float
    seconds: float
    wanted: int = 0
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Moment):
    """A script begins."""

    kind: Literal["started"] = "started"
    worker: str
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Moment):
    """A script ended; interrupted, when the worker ended it and there is no outcome."""

    kind: Literal["stopped"] = "stopped"
    worker: str
    lease: Lease
    interrupted: bool
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered(Moment):
    """A worker is about to send outcomes to the database; from here on they may be in the record."""

    kind: Literal["offered"] = "offered"
    worker: str
    outcomes: tuple[Accepted, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written(Moment):
    """The database's answer to an offer: these outcomes stand, those had lost their lease."""

    kind: Literal["written"] = "written"
    worker: str
    began: float
    standing: tuple[Lease, ...]
    lost: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivingBack(Moment):
    """A worker is about to give leases back to the queue."""

    kind: Literal["giving back"] = "giving back"
    worker: str
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended(Moment):
    """A heartbeat's answer: these leases last so many seconds more, those are lost."""

    kind: Literal["extended"] = "extended"
    worker: str
    began: float
    seconds: float
    kept: tuple[Lease, ...]
    lost: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken(Moment):
    """The database woke a worker."""

    kind: Literal["woken"] = "woken"
    worker: str
    wakeup: Wakeup


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultBegan(Moment):
    """Something was broken. `outage`: the workers may be unable to use the database until it ends."""

    kind: Literal["fault began"] = "fault began"
    name: str
    outage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultEnded(Moment):
    """It was mended."""

    kind: Literal["fault ended"] = "fault ended"
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Moment):
    """The observer found a row that it had not seen before, or that had changed."""

    kind: Literal["seen"] = "seen"
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked(Moment):
    """The observer has read the whole table as it was at one moment from `began` to `at`; what was not `Seen` in between
    was as before."""

    kind: Literal["looked"] = "looked"
    began: float
    terminal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Moment):
    """A row of TASKS after everything was healed and finished."""

    kind: Literal["kept"] = "kept"
    row: Row
    payload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(Moment):
    """How many terminal states WORKERS has counted, at the end."""

    kind: Literal["counted"] = "counted"
    completed: int
    failed: int
    cancelled: int


Event = Annotated[
    Bounded
    | Scheduled
    | Submitted
    | WorkerStarted
    | WorkerEnded
    | Claimed
    | Started
    | Stopped
    | Offered
    | Written
    | GivingBack
    | Extended
    | Woken
    | FaultBegan
    | FaultEnded
    | Seen
    | Looked
    | Kept
    | Counted,
    Field(discriminator="kind"),
]
History = Sequence[Event]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


class Recorder:
    """Writes one witness's events to a file, each with one system call: a process that is killed loses none."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, event: Event) -> None:
        os.write(self._file, _ADAPTER.dump_json(event) + b"\n")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def write(path: Path, events: Iterable[Event]) -> None:
    """Write a whole history to one file."""
    with Recorder(path) as record:
        for event in events:
            record(event)


def read(folder: Path) -> list[Event]:
    """All that the witnesses of a folder have written, in order of time."""
    events = [
        _ADAPTER.validate_json(line) for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()
    ]
    return sorted(events, key=lambda event: event.at)
