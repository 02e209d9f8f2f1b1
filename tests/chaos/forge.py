"""Histories that nobody lived through, of a random shape, in which no law is broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from continuum.model import Lease
from tests.chaos.bounds import CLOCKS
from tests.chaos.history import (
    Accepted,
    Bounded,
    Claimed,
    Counted,
    Event,
    Extended,
    FaultBegan,
    FaultEnded,
    GivingBack,
    Kept,
    Looked,
    Offered,
    Row,
    Scheduled,
    Seen,
    Started,
    Stopped,
    Submitted,
    WorkerEnded,
    WorkerStarted,
    Written,
)

E = TypeVar("E", bound=Event)

LEASE = 10.0
SLOTS = 4
CRASH = "Timeout/Crash: worker"
SAME = "same"
"""The tenant and the keys of all tasks, of which one runs at a time."""
PERIOD = 0.001 + CLOCKS
TICK = 2.0
LIVING, DYING = "living", "dying"
DEATH = 1_000.0
"""When `DYING` is killed, long after its last claim; the other one lives to the end."""


@dataclass
class _Forgery:
    """One task after another on one clock, each with attempts that end in one of the ways that there are."""

    random: Random
    events: list[Event] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)
    now: float = 0.0

    def tell(self, kind: type[E], **values: Any) -> E:
        self.now += self.random.uniform(0.001, 0.01)
        event = kind(at=self.now, wall=self.now, **values)
        self.events.append(event)
        return event

    def look(self, *changed: Row) -> None:
        began = self.now
        for row in changed:
            self.rows[row.task_id] = row
            self.tell(Seen, row=row)
        self.tell(Looked, began=began, terminal=sum(row.terminal for row in self.rows.values()))

    def task(self, task_id: int) -> None:
        key = f"key-{task_id}"
        if self.random.random() < 0.3:
            self.tell(Submitted, key=key, payload="{}", began=self.now, answer="unknown")
        self.tell(Submitted, key=key, payload="{}", began=self.now, answer="acknowledged", task_id=task_id)
        row = Row(
            task_id, key, "pending", 0, 0, None, None, None, None, True,
            tenant=SAME, sequence_key=SAME, concurrency_key=SAME, due_for=TICK * task_id,
            depends_on=tuple(range(1, task_id, 2)), depends_ended=True,
            batch=f"batch-{task_id}", depends_batch=f"batch-{task_id - 1}",
        )  # fmt: skip
        self.look(row)
        while not self.rows[task_id].terminal:
            self.attempt(self.rows[task_id])

    def attempt(self, before: Row) -> None:
        worker = self.random.choice([LIVING, LIVING, DYING])
        lease = Lease(before.task_id, before.attempt + 1)
        self.tell(Claimed, worker=worker, began=self.now, seconds=LEASE, wanted=SLOTS, leases=(lease,))
        row = before._replace(
            status="processing", attempt=lease.attempt, worker=worker, due=False, started=self.now
        )  # fmt: skip
        self.look(row)
        ways = [self.complete, self.complete, self.give_back, self.retry, self.lose]
        if before.task_id > 1:  # at least one task is completed
            ways.append(self.crash)
        self.random.choice(ways)(row, worker)

    def run(self, row: Row, worker: str, *, interrupted: bool = False) -> str:
        output = f"output of {row.task_id} {row.attempt}"
        self.tell(Started, worker=worker, lease=row.lease)
        self.tell(Extended, worker=worker, began=self.now, seconds=LEASE, kept=(row.lease,), lost=())
        self.tell(Stopped, worker=worker, lease=row.lease, interrupted=interrupted, output=output)
        return output

    def offer(self, row: Row, worker: str, status: str, output: str) -> None:
        self.tell(Offered, worker=worker, outcomes=(Accepted(*row.lease, status, output),))

    def answer(self, row: Row, worker: str, *, stands: bool) -> None:
        leases = (row.lease,)
        self.tell(
            Written, worker=worker, began=self.now,
            standing=leases if stands else (), lost=() if stands else leases,
        )  # fmt: skip

    def complete(self, row: Row, worker: str) -> None:
        output = self.run(row, worker)
        self.offer(row, worker, "completed", output)
        if worker == LIVING or self.random.random() < 0.5:
            self.answer(row, worker, stands=True)
        self.look(row._replace(status="completed", output=output, finished=str(self.now), last_error=None))

    def retry(self, row: Row, worker: str) -> None:
        output = self.run(row, worker)
        self.offer(row, worker, "pending", output)
        self.answer(row, worker, stands=True)
        self.look(row._replace(status="pending", output=output, worker=None, due=False))

    def give_back(self, row: Row, worker: str) -> None:
        self.run(row, worker, interrupted=True)
        self.tell(GivingBack, worker=worker, leases=(row.lease,))
        self.look(row._replace(status="pending", worker=None, released=row.released + 1, due=True))

    def lose(self, row: Row, worker: str) -> None:
        """The lease expires while the script runs, and another attempt begins before it ends."""
        self.tell(Started, worker=worker, lease=row.lease)
        self.expire()
        self.look(row._replace(status="pending", worker=None, last_error=CRASH, due=False))
        self.attempt(self.rows[row.task_id])
        output = f"output of {row.task_id} {row.attempt}"
        self.tell(Stopped, worker=worker, lease=row.lease, interrupted=False, output=output)
        self.offer(row, worker, "completed", output)
        self.answer(row, worker, stands=False)

    def crash(self, row: Row, worker: str) -> None:
        """The lease of the last attempt expires, and its worker hears of it."""
        self.tell(Started, worker=worker, lease=row.lease)
        self.expire()
        self.look(row._replace(status="failed", finished=str(self.now), last_error=CRASH))
        self.tell(Extended, worker=worker, began=self.now, seconds=LEASE, kept=(), lost=(row.lease,))
        self.tell(Stopped, worker=worker, lease=row.lease, interrupted=True)

    def expire(self) -> None:
        """Let the time of a lease pass with the database away."""
        self.tell(FaultBegan, name="away", outage=True)
        self.now += LEASE
        self.tell(FaultEnded, name="away")

    def end(self) -> None:
        self.now = max(self.now, DEATH)
        self.tell(WorkerEnded, worker=DYING, killed=True)
        self.look()
        for row in self.rows.values():
            self.tell(Kept, row=row, payload="{}")
        ended = Counter(row.status for row in self.rows.values())
        self.tell(Counted, completed=ended["completed"], failed=ended["failed"], cancelled=0)
        self.tell(WorkerEnded, worker=LIVING, killed=False, exit_code=0)


def forge(random: Random, tasks: int = 5) -> list[Event]:
    """A history in which no law was broken."""
    forgery = _Forgery(random)
    for worker in (LIVING, DYING):
        forgery.tell(WorkerStarted, worker=worker, pid=1, slots=SLOTS)
    forgery.tell(Bounded, scope="tenant", name=SAME, most=1)
    forgery.tell(Bounded, scope="key", name=SAME, most=1)
    forgery.tell(Bounded, scope="tenant", name=SAME, most=1, period=PERIOD)
    forgery.tell(Scheduled, every=TICK)
    for task_id in range(1, tasks + 1):
        forgery.task(task_id)
    forgery.tell(Submitted, key="nowhere", payload="{}", began=forgery.now, answer="unknown")
    forgery.end()
    return forgery.events
