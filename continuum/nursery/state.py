"""What a worker knows of itself: read by the status server and reported to WORKERS, written by the services."""

from __future__ import annotations

import datetime as dt
import enum
import math
import os
import secrets
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata

import trio

from continuum.model import ClaimedTask, Lease, Status, Stream, WorkerReport
from continuum.nursery.pace import PATIENCE, Pace
from continuum.nursery.recent import Recent
from continuum.sandbox.pool import SandboxView

HOUR = 3600.0


def new_worker_id() -> str:
    """A name no other worker has or had: host, process id and eight random hex digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def version() -> str:
    """The installed version of Continuum."""
    return metadata.version("continuum-worker")


class Health:
    """What stands between this worker and useful work, by component. Empty means ready."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}
        self._changed = trio.Event()

    def report(self, component: str, problem: str | None) -> None:
        """Say what is wrong with a component (`database`, `sandbox`, `screening`), or None when it is well again."""
        if problem is None:
            self._problems.pop(component, None)
        else:
            self._problems[component] = problem
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for_change(self) -> None:
        """Return at the next report."""
        await self._changed.wait()

    async def wait_for_problem(self, component: str) -> None:
        """Return once there is something wrong with a component."""
        while component not in self._problems:
            await self._changed.wait()

    async def wait_until_well(self, component: str) -> None:
        """Return once there is nothing wrong with a component."""
        while component in self._problems:
            await self._changed.wait()

    @property
    def problems(self) -> dict[str, str]:
        return dict(self._problems)

    @property
    def ready(self) -> bool:
        return not self._problems


class Level(enum.IntEnum):
    """How short a worker is of something."""

    NONE = 0
    SOME = 1
    """It claims nothing ahead of its free slots."""
    SEVERE = 2
    """It claims no more than keeps one slot busy."""


class StopReason(enum.Enum):
    """Why a running task was stopped from outside."""

    CANCELLED = "cancelled"
    """Somebody asked for it: it ends as cancelled."""
    LOST = "lost"
    """Its lease passed to somebody else: nothing may be written."""
    GIVEN_BACK = "given back"
    """It will get no slot: somebody else may run it."""


class Transcript:
    """What a running script has written so far, for those who watch it."""

    def __init__(self) -> None:
        self._parts: defaultdict[Stream, list[str]] = defaultdict(list)
        self.size = 0
        """Characters written so far, both outputs together."""

    def write(self, stream: Stream, text: str) -> None:
        self._parts[stream].append(text)
        self.size += len(text)

    def text(self, stream: Stream) -> str:
        return "".join(self._parts[stream])


@dataclass(slots=True)
class Running:
    """A claimed task that has a slot, or waits for one. `since` is on Trio's clock: when it got it."""

    task: ClaimedTask
    since: float = field(default_factory=trio.current_time)
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Around all that is done for it. Its deadline is only for the wait: who gets no slot within PATIENCE is given back."""
    transcript: Transcript = field(default_factory=Transcript)
    granted: trio.Event = field(default_factory=trio.Event)
    """Set once it has a slot."""
    sandbox: str | None = None
    stop_reason: StopReason | None = None
    traceparent: str | None = None
    """The trace that the run is part of: where it is traced, its own span, otherwise what the producer stored with it."""
    expires: float = math.inf
    """When, on Trio's clock, it is too late to begin."""

    def __post_init__(self) -> None:
        self.traceparent = self.task.traceparent
        if self.task.expires_in is not None:
            self.expires = self.since + self.task.expires_in

    def begin(self) -> None:
        """It has a slot now."""
        self.since = trio.current_time()
        self.started_at = dt.datetime.now(dt.UTC)
        self.scope.deadline = math.inf
        self.granted.set()

    def stop(self, reason: StopReason) -> None:
        """End the run now. The first reason stands, but for a lost lease, which always does."""
        if self.stop_reason is None or reason is StopReason.LOST:
            self.stop_reason = reason
        self.scope.cancel()


@dataclass(slots=True)
class WorkerState:
    """One worker's identity, counters and running tasks."""

    id: str
    slots: int
    sandbox: str = ""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    version: str = field(default_factory=version)
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    claimed: int = 0
    processed: int = 0
    successful: int = 0
    failed: int = 0
    database_failures: int = 0
    leases_lost: int = 0
    given_back: int = 0
    """Attempts that went back to the queue without counting."""
    stopping: bool = False
    draining: bool = False
    """Asked through WORKERS to claim nothing more."""
    drained: bool = False
    """It claims nothing more, and holds no task and no unwritten outcome."""
    strain: Mapping[str, tuple[Level, str]] = field(default_factory=dict)
    """What it is short of (`memory`, `cpu`), how much, and in words."""
    steady_since: float = -math.inf
    """When, on Trio's clock, heartbeats began to get through again after a failure; infinity while they fail."""
    running: dict[Lease, Running] = field(default_factory=dict)
    waiting: dict[Lease, Running] = field(default_factory=dict)
    """Claimed ahead: those that have no slot yet, in the order in which they get one."""
    pace: Pace = field(default_factory=Pace)
    health: Health = field(default_factory=Health)
    recent: Recent = field(default_factory=Recent)
    """The last minutes, for those who watch."""
    sandboxes: Callable[[], list[SandboxView]] = list
    """The sandboxes that there are now."""
    _finished_minutes: Counter[int] = field(default_factory=Counter)

    def count_finished(self, status: Status) -> None:
        """Count a task that this worker brought to a terminal state."""
        self.processed += 1
        if status is Status.COMPLETED:
            self.successful += 1
        else:
            self.failed += 1
        self.recent.finished(status)
        self._finished_minutes[int(trio.current_time() // 60)] += 1

    def admit(self, task: ClaimedTask) -> None:
        """Take a claimed task in: it has a slot at once when one is free, or waits for it."""
        running = self.waiting[task.lease] = Running(task)
        self._grant()
        if not running.granted.is_set():
            running.scope.deadline = trio.current_time() + PATIENCE

    def held(self, lease: Lease) -> Running | None:
        """What runs or waits under a lease; None when it has ended."""
        return self.running.get(lease) or self.waiting.get(lease)

    def leave(self, running: Running) -> None:
        """A task holds its slot no more, or waits for it no more."""
        lease = running.task.lease
        if self.running.pop(lease, None) is None:
            del self.waiting[lease]
            return
        seconds = trio.current_time() - running.since
        self.pace.note(seconds)
        self.recent.ran(seconds)
        self._grant()

    @property
    def most_running(self) -> int:
        """How many tasks it claims to have running at once."""
        severe = any(level is Level.SEVERE for level, _ in self.strain.values())
        return min(self.slots, 1) if severe else self.slots

    def notes(self) -> dict[str, str]:
        """What makes it claim less than it could, or more seldom, and is no failure: by what it is about."""
        notes = {
            resource: f"{said}: {'at most one task is begun at a time' if level is Level.SEVERE else 'nothing is claimed ahead'}"
            for resource, (level, said) in self.strain.items()
        }
        if self.pace.slow:
            notes["database"] = f"claims take {self.pace.claim_time:.2g} s: they are fewer and larger"
        if self.draining:
            held = len(self.running)
            notes["drain"] = (
                "drained" if self.drained else f"draining: {held} {'task runs' if held == 1 else 'tasks run'} on"
            )
        return notes

    @property
    def strain_levels(self) -> dict[str, int]:
        """How short it is of what, as numbers: see `Level`. A database that is slow is one of them."""
        levels = {"memory": 0, "cpu": 0, "database": int(self.pace.slow)}
        return levels | {resource: int(level) for resource, (level, _) in self.strain.items()}

    def give_back_waiting(self) -> None:
        """Let nothing begin that waits for a slot: somebody else may run it."""
        for waiting in self.waiting.values():
            waiting.stop(StopReason.GIVEN_BACK)

    def resize(self, slots: int) -> None:
        """Have so many slots from now on. Those who run, run on; who waits for a slot gets one when there are more."""
        self.slots = slots
        self._grant()

    def _grant(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            lease = next(iter(self.waiting))
            running = self.running[lease] = self.waiting.pop(lease)
            running.begin()
            if running.task.counted_attempt == 1:
                self.recent.waited((running.started_at - running.task.created_at).total_seconds())

    def ahead(self) -> int:
        """How many tasks to hold beyond those that have a slot."""
        if self.strain:
            return 0
        now = trio.current_time()
        return self.pace.ahead(self.slots, (now - running.since for running in self.running.values()))

    def finished_last_hour(self) -> int:
        oldest = int((trio.current_time() - HOUR) // 60)
        for minute in [minute for minute in self._finished_minutes if minute <= oldest]:
            del self._finished_minutes[minute]
        return self._finished_minutes.total()

    def report(self) -> WorkerReport:
        """What this worker says of itself in WORKERS."""
        return WorkerReport(
            id=self.id,
            host=self.host,
            pid=self.pid,
            version=self.version,
            slots=self.slots,
            running=len(self.running),
            sandbox=self.sandbox,
            finished_last_hour=self.finished_last_hour(),
            drained=self.drained,
        )
