"""Changes to a forged history, each of which breaks one law in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from continuum.model import Lease
from tests.chaos.forge import CRASH, DYING, LEASE, LIVING, SLOTS
from tests.chaos.history import (
    Accepted,
    Claimed,
    Counted,
    Event,
    Extended,
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

E = TypeVar("E", bound=Event)

Mutation = Callable[[list[Event], Random], list[Event]]


def one(events: Sequence[Event], kind: type[E], random: Random, **wanted: Any) -> E:
    """Some event of a kind, with these attributes."""
    found = [
        event for event in events
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in wanted.items())
    ]  # fmt: skip
    return random.choice(found)


def swap(events: Sequence[Event], old: Event, *new: Event) -> list[Event]:
    """The history with one event replaced, in order of time."""
    others = [event for event in events if event is not old]
    return sorted([*others, *new], key=lambda event: event.at)


def _kept(events: list[Event], random: Random) -> Kept:
    """Some completed task's record."""
    return one([e for e in events if isinstance(e, Kept) and e.row.status == "completed"], Kept, random)


def _claim(events: list[Event], random: Random) -> Claimed:
    """The claim that led to some task's record."""
    lease = _kept(events, random).row.lease
    return one(events, Claimed, random, leases=(lease,))


def _offer(events: list[Event], random: Random) -> Offered:
    """The outcome in some task's record."""
    lease = _kept(events, random).row.lease
    return one([e for e in events if isinstance(e, Offered) and e.outcomes[0].lease == lease], Offered, random)


def terminal_record_changes(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return swap(events, kept, replace(kept, row=kept.row._replace(finished="later")))


def terminal_record_is_left(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    look = [event for event in events if isinstance(event, Looked)][-1]
    seen = Seen(at=look.at - 1e-6, wall=0, row=kept.row._replace(status="pending", finished=None))
    return swap(events, look, seen, look)


def output_of_nobody(events: list[Event], random: Random) -> list[Event]:
    offer = _offer(events, random)
    other = offer.outcomes[0]._replace(output="another")
    return swap(events, offer, replace(offer, outcomes=(other,)))


def two_attempts_stand(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    lease = kept.row.lease._replace(attempt=kept.row.attempt + 1)
    at = events[-1].at
    return [
        *events,
        Offered(at=at, wall=0, worker=LIVING, outcomes=(Accepted(*lease, "completed", "again"),)),
        Written(at=at, wall=0, worker=LIVING, began=at, standing=(lease,), lost=()),
    ]


def stale_write_stands(events: list[Event], random: Random) -> list[Event]:
    offer = _offer(events, random)
    (outcome,) = offer.outcomes
    at = events[-1].at
    newer = outcome.lease._replace(attempt=outcome.attempt + 1)
    return [
        *events,
        Claimed(at=at, wall=0, worker="other", began=at, seconds=LEASE, leases=(newer,)),
        Written(at=at + 2, wall=0, worker=offer.worker, began=at + 1, standing=(outcome.lease,), lost=()),
    ]


def terminal_state_counted_twice(events: list[Event], random: Random) -> list[Event]:
    counted = one(events, Counted, random)
    return swap(events, counted, replace(counted, completed=counted.completed + 1))


def lease_granted_twice(events: list[Event], random: Random) -> list[Event]:
    claim = _claim(events, random)
    return swap(events, claim, claim, replace(claim, worker="other"))


def live_lease_taken(events: list[Event], random: Random) -> list[Event]:
    claim = _claim(events, random)
    (lease,) = claim.leases
    taken = replace(claim, worker="other", at=claim.at + 1e-6, leases=(lease._replace(attempt=lease.attempt + 1),))
    return swap(events, claim, claim, taken)


def lease_taken_from_who_offers_the_end(events: list[Event], random: Random) -> list[Event]:
    """A worker offers a task's end in time, is told that its lease was lost, and another is granted the task at once."""
    offer = _offer(events, random)
    lease = offer.outcomes[0].lease
    newer = lease._replace(attempt=lease.attempt + 1)
    began, at = offer.at + 1e-6, offer.at + 2e-6
    others = [e for e in events if not (isinstance(e, Written) and lease in e.standing)]
    taken = Claimed(at=at, wall=0, worker="other", began=began, seconds=LEASE, leases=(newer,))
    refused = Written(at=at, wall=0, worker=offer.worker, began=began, standing=(), lost=(lease,))
    return swap(others, offer, offer, taken, refused)


def live_attempt_is_retried(events: list[Event], random: Random) -> list[Event]:
    """The janitor puts a task back into the queue whose lease is live."""
    claim = _claim(events, random)
    (lease,) = claim.leases
    before = [e.row for e in events if isinstance(e, Seen) and e.row.task_id == lease.task_id and e.at < claim.at][-1]
    row = before._replace(status="pending", attempt=lease.attempt, last_error=CRASH, due=False)
    return swap(events, claim, claim, Seen(at=claim.at + 1e-6, wall=0, row=row))


def live_attempt_is_failed(events: list[Event], random: Random) -> list[Event]:
    """The janitor ends a task for good whose lease is live; its worker hears of it and keeps quiet."""
    kept = _kept(events, random)
    lease = kept.row.lease
    counted = one(events, Counted, random)
    stopped = one(events, Stopped, random, lease=lease)
    others = [
        replace(e, row=e.row._replace(status="failed", output=None, last_error=CRASH))
        if isinstance(e, Seen | Kept) and e.row.lease == lease and e.row.terminal
        else e
        for e in events
        if not (
            (isinstance(e, Offered) and e.outcomes[0].lease == lease)
            or (isinstance(e, Written) and lease in e.standing)
        )
    ]
    lost = Extended(
        at=stopped.at + 1e-6, wall=0, worker=stopped.worker, began=stopped.at, seconds=LEASE, kept=(), lost=(lease,)
    )
    others = swap(others, counted, replace(counted, completed=counted.completed - 1, failed=counted.failed + 1))
    return swap(others, stopped, stopped, lost)


def attempt_falls(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return swap(events, kept, replace(kept, row=kept.row._replace(attempt=kept.row.attempt - 1)))


def runs_twice(events: list[Event], random: Random) -> list[Event]:
    started = one(events, Started, random)
    return swap(events, started, started, replace(started, at=started.at + 1e-6))


def runs_unclaimed(events: list[Event], random: Random) -> list[Event]:
    started = one(events, Started, random)
    return swap(events, started, replace(started, worker="other"))


def runs_beside_a_live_lease(events: list[Event], random: Random) -> list[Event]:
    claim = _claim(events, random)
    (lease,) = claim.leases
    started = one(events, Started, random, lease=lease)
    beside = replace(started, at=started.at + 1e-6, lease=lease._replace(attempt=lease.attempt + 1))
    return swap(events, started, started, beside)


def later_lease_is_extended_past(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    at = events[-1].at
    stale = kept.row.lease._replace(attempt=kept.row.attempt - 1)
    return [*events, Extended(at=at, wall=0, worker="other", began=at, seconds=LEASE, kept=(stale,), lost=())]


def outcome_never_offered(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    stopped = one(events, Stopped, random, lease=kept.row.lease)
    return swap(events, stopped, replace(stopped, worker=LIVING, lease=Lease(kept.row.task_id, 99)))


def outcome_never_answered(events: list[Event], random: Random) -> list[Event]:
    at = events[-1].at
    kept = _kept(events, random)
    return [*events, Offered(at=at, wall=0, worker=LIVING, outcomes=(Accepted(kept.row.task_id, 99, "pending", ""),))]


def outcome_thrown_away(events: list[Event], random: Random) -> list[Event]:
    offer = _offer(events, random)
    at = offer.at + 1e-6
    lost = Written(at=at, wall=0, worker=offer.worker, began=at, standing=(), lost=(offer.outcomes[0].lease,))
    return swap(events, offer, offer, lost)


def standing_outcome_vanishes(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    at = events[-1].at
    newer = kept.row.lease._replace(attempt=kept.row.attempt + 1)
    return [
        *events,
        Offered(at=at, wall=0, worker=LIVING, outcomes=(Accepted(*newer, "pending", "x"),)),
        Written(at=at, wall=0, worker=LIVING, began=at, standing=(newer,), lost=()),
    ]


def _later(event: E, seconds: float) -> E:
    moments: dict[str, Any] = {
        name: getattr(event, name) + seconds for name in ("at", "began") if hasattr(event, name)
    }  # fmt: skip
    return replace(event, **moments)


def task_is_forgotten(events: list[Event], random: Random) -> list[Event]:
    """A worker with free slots leaves a task pending for 100 s, and the observer sees it."""
    claim = one(events, Claimed, random)
    first = [event for event in events if event.at < claim.at]
    rest = [_later(event, 100) for event in events if event.at >= claim.at]
    (lease,) = claim.leases
    row = Row(lease.task_id, f"key-{lease.task_id}", "pending", lease.attempt - 1, 0, None, None, None, None, True)
    at = claim.at
    looks = [Looked(at=at + tick, wall=0, began=at + tick - 0.1, terminal=0) for tick in range(1, 100)]
    return [*first, Seen(at=at, wall=0, row=row), *looks, *rest]


def busy_worker_forgets_a_task(events: list[Event], random: Random) -> list[Event]:
    """As above, while the worker, which is the only one, takes and ends other tasks all the time."""
    other = one(events, WorkerStarted, random, worker=DYING)
    forgotten = task_is_forgotten(swap(events, other, replace(other, slots=0)), random)
    others: list[Event] = []
    for number, look in enumerate([e for e in forgotten if isinstance(e, Looked) and e.terminal == 0][:-1]):
        lease = Lease(1_000 + number, 1)
        at = look.at
        others += [
            Claimed(at=at, wall=0, worker=LIVING, began=at, seconds=LEASE, wanted=SLOTS, leases=(lease,)),
            Started(at=at, wall=0, worker=LIVING, lease=lease),
            Stopped(at=at + 0.1, wall=0, worker=LIVING, lease=lease, interrupted=True),
        ]
    return sorted([*forgotten, *others], key=lambda event: event.at)


def acknowledged_task_is_absent(events: list[Event], random: Random) -> list[Event]:
    at = events[-1].at
    return [*events, Submitted(at=at, wall=0, key="gone", payload="{}", began=at, answer="acknowledged", task_id=77)]


def task_is_there_twice(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return swap(events, kept, kept, replace(kept, row=kept.row._replace(task_id=88, status="failed",
                                                                       last_error="Timeout/Crash: x")))  # fmt: skip


def task_of_nobody(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return [e for e in events if not (isinstance(e, Submitted) and e.key == kept.row.key)]


def task_is_unfinished(events: list[Event], random: Random) -> list[Event]:
    at = events[-1].at
    row = Row(77, "open", "processing", 1, 0, "other", None, None, None, False)
    submitted = Submitted(at=at, wall=0, key="open", payload="{}", began=at, answer="unknown")
    return [*events, submitted, Kept(at=at, wall=0, row=row, payload="{}")]


def payload_differs(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return swap(events, kept, replace(kept, payload="[]"))


def refused_task_is_there(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return [replace(e, answer="refused") if isinstance(e, Submitted) and e.key == kept.row.key else e for e in events]


def worker_breaks(events: list[Event], random: Random) -> list[Event]:
    ended = one(events, WorkerEnded, random, worker=LIVING)
    return swap(events, ended, replace(ended, exit_code=1))


def _beside(events: list[Event], seen: Seen, **values: Any) -> list[Event]:
    """Another task is seen together with one."""
    other = Seen(at=seen.at + 1e-7, wall=0, row=seen.row._replace(task_id=999, key=None, due_for=None, **values))
    look = Looked(at=seen.at + 2e-7, wall=0, began=seen.at, terminal=0)
    return swap(events, seen, seen, other, look)


def _running(events: list[Event], random: Random) -> Seen:
    return one([e for e in events if isinstance(e, Seen) and e.row.processing], Seen, random)


def more_of_a_tenant_run(events: list[Event], random: Random) -> list[Event]:
    return _beside(events, _running(events, random), started=None, concurrency_key=None)


def more_of_a_key_run(events: list[Event], random: Random) -> list[Event]:
    return _beside(events, _running(events, random), started=None, tenant=None)


def more_begin_in_a_period(events: list[Event], random: Random) -> list[Event]:
    seen = _running(events, random)
    return _beside(events, seen, status="completed", started=(seen.row.started or 0.0) + 1e-4)


def a_sequence_is_overtaken(events: list[Event], random: Random) -> list[Event]:
    """A task begins while an older one waits."""
    seen = _running(events, random)
    older = Seen(at=seen.at - 1e-7, wall=0, row=seen.row._replace(task_id=0, status="pending", attempt=0))
    return swap(events, seen, older, seen)


def a_due_time_is_fired_twice(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return swap(events, kept, kept, replace(kept, row=kept.row._replace(task_id=999)))


def a_due_time_is_left_out(events: list[Event], random: Random) -> list[Event]:
    last = max((e for e in events if isinstance(e, Kept)), key=lambda kept: kept.row.due_for or 0.0)
    return swap(
        events, last, last, replace(last, row=last.row._replace(task_id=999, due_for=(last.row.due_for or 0.0) + 4))
    )


def _begun(events: list[Event], random: Random) -> Seen:
    return one([e for e in events if isinstance(e, Seen) and e.row.processing and e.row.attempt == 1], Seen, random)


def a_dependency_is_not_waited_for(events: list[Event], random: Random) -> list[Event]:
    seen = _begun(events, random)
    other = Seen(at=seen.at - 1e-7, wall=0, row=seen.row._replace(task_id=999, status="processing", sequence_key=None))
    return swap(events, seen, other, replace(seen, row=seen.row._replace(depends_on=(999,))))


def a_batch_is_not_waited_for(events: list[Event], random: Random) -> list[Event]:
    seen = _begun(events, random)
    row = seen.row._replace(task_id=999, status="pending", batch=seen.row.depends_batch, attempt=0, sequence_key=None)
    return swap(events, seen, Seen(at=seen.at - 1e-7, wall=0, row=row), seen)


def a_failed_dependency_is_good_enough(events: list[Event], random: Random) -> list[Event]:
    seen = _begun(events, random)
    other = Seen(at=seen.at - 1e-7, wall=0, row=seen.row._replace(task_id=999, status="failed", sequence_key=None))
    return swap(events, seen, other, replace(seen, row=seen.row._replace(depends_on=(999,), depends_ended=False)))


def cancelled_for_a_dependency_that_completed(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    row = kept.row._replace(status="cancelled", last_error="Not run: task 1, which it depends on, failed")
    return swap(events, kept, replace(kept, row=row))


def not_cancelled_for_a_dependency_that_failed(events: list[Event], random: Random) -> list[Event]:
    kept = _kept(events, random)
    return swap(events, kept, replace(kept, row=kept.row._replace(depends_on=(998,))))


LIMITS = (more_of_a_tenant_run, more_of_a_key_run, more_begin_in_a_period)
ORDER = (
    a_sequence_is_overtaken,
    a_dependency_is_not_waited_for,
    a_batch_is_not_waited_for,
    a_failed_dependency_is_good_enough,
    cancelled_for_a_dependency_that_completed,
    not_cancelled_for_a_dependency_that_failed,
)
SCHEDULES = (a_due_time_is_fired_twice, a_due_time_is_left_out)
LAW_1 = (
    terminal_record_changes,
    terminal_record_is_left,
    output_of_nobody,
    two_attempts_stand,
    stale_write_stands,
    terminal_state_counted_twice,
)
LAW_2 = (
    lease_granted_twice,
    live_lease_taken,
    lease_taken_from_who_offers_the_end,
    live_attempt_is_retried,
    live_attempt_is_failed,
    attempt_falls,
    runs_twice,
    runs_unclaimed,
    runs_beside_a_live_lease,
    later_lease_is_extended_past,
)
LAW_3 = (outcome_never_offered, outcome_never_answered, outcome_thrown_away, standing_outcome_vanishes)
LAW_7 = (task_is_forgotten, busy_worker_forgets_a_task)
COMPLETENESS = (
    acknowledged_task_is_absent,
    task_is_there_twice,
    task_of_nobody,
    task_is_unfinished,
    payload_differs,
    refused_task_is_there,
)
SURVIVES = (worker_breaks,)
