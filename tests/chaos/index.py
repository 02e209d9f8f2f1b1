"""A history arranged for the checker: by task, by worker, by key."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from continuum.model import Lease
from tests.chaos.history import (
    Accepted,
    Claimed,
    Counted,
    Extended,
    FaultBegan,
    FaultEnded,
    GivingBack,
    History,
    Kept,
    Looked,
    Offered,
    Row,
    Seen,
    Started,
    Stopped,
    Submitted,
    WorkerEnded,
    WorkerStarted,
    Written,
)


@dataclass(frozen=True, slots=True)
class Grant:
    """One lease that a claim's answer granted, at some moment from `began` to `at`."""

    worker: str
    lease: Lease
    began: float
    at: float
    seconds: float

    @property
    def attempt(self) -> int:
        return self.lease.attempt


@dataclass(slots=True)
class Story:
    """All that was said of one task, in order of time."""

    task_id: int
    grants: list[Grant] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)
    offers: list[Offered] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    given_back: list[GivingBack] = field(default_factory=list)
    extended: list[Extended] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    @property
    def records(self) -> list[tuple[float, Row]]:
        """What the record was seen to hold, each with a moment by which it did."""
        events: list[Seen | Kept] = [*self.seen, *self.kept]
        return [(event.at, event.row) for event in events]

    @property
    def standing(self) -> list[tuple[str, Accepted]]:
        """The outcomes that the database has confirmed, each with its worker."""
        offered = {(offer.worker, outcome.lease): outcome for offer in self.offers for outcome in offer.outcomes}
        confirmed = {(written.worker, lease) for written in self.written for lease in written.standing}
        return [(worker, offered[worker, lease]) for worker, lease in sorted(confirmed) if (worker, lease) in offered]

    def passed_on(self, lease: Lease) -> bool:
        """Whether anything tells that a lease ended without its holder's outcome."""
        return any(grant.attempt > lease.attempt for grant in self.grants) or any(
            row.attempt > lease.attempt
            or (row.attempt == lease.attempt and row.pending)
            or (row.attempt == lease.attempt and row.terminal and row.by_janitor)
            for _, row in self.records
        )


class Index:
    """A history by task, by worker, and by key."""

    def __init__(self, history: History) -> None:
        self.stories: dict[int, Story] = {}
        self.submits: defaultdict[str, list[Submitted]] = defaultdict(list)
        self.workers: dict[str, WorkerStarted] = {}
        self.ends: dict[str, WorkerEnded] = {}
        self.claims: list[Claimed] = []
        self.stops: list[Stopped] = []
        self.given_back: list[GivingBack] = []
        self.looks: list[Looked] = []
        self.faults: list[FaultBegan | FaultEnded] = []
        self.kept: list[Kept] = []
        self.kept_by_key: defaultdict[str, list[Kept]] = defaultdict(list)
        self.counted: list[Counted] = []
        self.ends_at = history[-1].at if history else 0.0
        for event in history:
            self._add(event)

    def was_killed(self, worker: str) -> bool:
        return worker in self.ends and self.ends[worker].killed

    def story(self, task_id: int) -> Story:
        return self.stories.setdefault(task_id, Story(task_id))

    def _add(self, event: object) -> None:
        match event:
            case Submitted():
                self.submits[event.key].append(event)
            case WorkerStarted():
                self.workers[event.worker] = event
            case WorkerEnded():
                self.ends[event.worker] = event
            case Claimed():
                self.claims.append(event)
                for lease in event.leases:
                    grant = Grant(event.worker, lease, event.began, event.at, event.seconds)
                    self.story(lease.task_id).grants.append(grant)
            case Started():
                self.story(event.lease.task_id).started.append(event)
            case Stopped():
                self.stops.append(event)
                self.story(event.lease.task_id).stopped.append(event)
            case Offered():
                for task_id in {outcome.task_id for outcome in event.outcomes}:
                    mine = tuple(outcome for outcome in event.outcomes if outcome.task_id == task_id)
                    self.story(task_id).offers.append(
                        Offered(at=event.at, wall=event.wall, worker=event.worker, outcomes=mine)
                    )
            case GivingBack():
                self.given_back.append(event)
                for lease in event.leases:
                    self.story(lease.task_id).given_back.append(event)
            case Written():
                for task_id, standing, lost in _by_task(event.standing, event.lost):
                    self.story(task_id).written.append(
                        Written(
                            at=event.at, wall=event.wall, worker=event.worker, began=event.began,
                            standing=standing, lost=lost,
                        )
                    )  # fmt: skip
            case Extended():
                for task_id, kept, lost in _by_task(event.kept, event.lost):
                    self.story(task_id).extended.append(
                        Extended(
                            at=event.at, wall=event.wall, worker=event.worker, began=event.began,
                            seconds=event.seconds, kept=kept, lost=lost,
                        )
                    )  # fmt: skip
            case FaultBegan() | FaultEnded():
                self.faults.append(event)
            case Seen():
                self.story(event.row.task_id).seen.append(event)
            case Looked():
                self.looks.append(event)
            case Kept():
                self.kept.append(event)
                self.story(event.row.task_id).kept.append(event)
                if event.row.key is not None:
                    self.kept_by_key[event.row.key].append(event)
            case Counted():
                self.counted.append(event)


Split = tuple[int, tuple[Lease, ...], tuple[Lease, ...]]


def _by_task(first: tuple[Lease, ...], second: tuple[Lease, ...]) -> list[Split]:
    """Two groups of leases, for each task those that concern it."""
    task_ids = {lease.task_id for lease in (*first, *second)}
    return [
        (
            task_id,
            tuple(lease for lease in first if lease.task_id == task_id),
            tuple(lease for lease in second if lease.task_id == task_id),
        )
        for task_id in task_ids
    ]
