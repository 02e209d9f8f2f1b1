"""Proves the laws of docs/explanation/architecture.md on a recorded history, or says where one was broken.

It doubts in favour of the system: a call took place at an unknown moment between its beginning and its end, and a call
without an answer may have happened or not. What it reports is therefore certain to be wrong; the invariants are those of
a work queue under test with Jepsen: mutual exclusion at all times, and completeness once everything is healed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from continuum.model import Status
from tests.chaos.bounds import before_others, beyond_limits, misfired, out_of_order
from tests.chaos.history import Accepted, History, Row
from tests.chaos.index import Grant, Index, Story
from tests.chaos.waiting import forgotten_tasks, judged


@dataclass(frozen=True, slots=True)
class Rules:
    """What the run was held to, in seconds.

    polling_interval: the workers' POLLING_INTERVAL.
    bound: what a claim may take beyond that.
    recovery: how long after an outage has ended the workers may need to find back.
    tolerance: how far the database's clock may run ahead within a lease.
    """

    polling_interval: float = 5.0
    bound: float = 5.0
    recovery: float = 8.0
    tolerance: float = 0.5

    @property
    def longest_wait(self) -> float:
        """Seconds that a task may wait while somebody could take it."""
        return self.polling_interval + self.bound


@dataclass(frozen=True, slots=True)
class Violation:
    """A law that was broken: by which task, if by one, and how."""

    law: str
    task_id: int | None
    message: str

    def __str__(self) -> str:
        about = "" if self.task_id is None else f"task {self.task_id}: "
        return f"{self.law}: {about}{self.message}"


ONE_STATE = "law 1, one terminal state"
ONE_LEASE = "law 2, one live lease"
NO_LOSS = "law 3, no outcome lost"
NO_WAIT = "law 7, no wake-up lost"
LIMITS = "limits"
ORDER = "order"
SCHEDULES = "schedules"
COMPLETE = "completeness"
SURVIVAL = "survival"


def check(history: History, rules: Rules | None = None) -> list[Violation]:
    """Every violation of a law, in the order of the laws. `history` is in order of time."""
    rules = rules or Rules()
    index = Index(history)
    found: list[Violation] = []
    for story in index.stories.values():
        for law, claims in (
            (ONE_STATE, _terminal_state(story)),
            (ONE_LEASE, _leases(story, index, rules)),
            (NO_LOSS, _outcomes(story, index)),
        ):
            found += [Violation(law, story.task_id, message) for message in claims]
    found += [Violation(ONE_STATE, None, message) for message in _counters(index)]
    found += [
        Violation(NO_WAIT, task_id, message)
        for task_id, message in forgotten_tasks(index, rules.longest_wait, rules.recovery)
    ]
    for law, judge in ((LIMITS, beyond_limits), (ORDER, out_of_order), (ORDER, before_others), (SCHEDULES, misfired)):
        found += [Violation(law, task_id, message) for task_id, message in judge(history)]
    found += [Violation(COMPLETE, task_id, message) for task_id, message in _completeness(index)]
    found += [
        Violation(SURVIVAL, None, f"worker {end.worker} ended by itself with exit code {end.exit_code}")
        for end in index.ends.values()
        if not end.killed and end.exit_code != 0
    ]
    return sorted(found, key=lambda violation: violation.law)


def seconds_judged(history: History, rules: Rules) -> float:
    """For how long law 7 was really judged: the time of workers in which a forgotten task would have been found out."""
    return judged(Index(history), rules.longest_wait, rules.recovery)


# -- law 1 -----------------------------------------------------------------------------------------------------------


def _terminal_state(story: Story) -> Iterator[str]:
    """One terminal state, written once, by the holder of the current lease, and unchanged from then on."""
    records = [row for _, row in story.records]
    for before, after in pairwise(records):
        if before.terminal and before != after:
            yield f"its terminal record changed from {before} to {after}"
    ended_by = {
        (worker, outcome.lease): outcome
        for worker, outcome in story.standing
        if outcome.status != Status.PENDING
    }  # fmt: skip
    if len(ended_by) > 1:
        yield f"the database accepted {len(ended_by)} terminal outcomes: {sorted(ended_by)}"
    for (worker, lease), outcome in ended_by.items():
        for kept in story.kept:
            row = kept.row
            if (row.worker, row.attempt) != (worker, lease.attempt):
                yield f"{worker} ended it with attempt {lease.attempt}, but the record names {row.worker}, {row.attempt}"
            elif (row.status, row.output or "") != (outcome.status, outcome.output):
                yield f"the record {row} is not what attempt {lease.attempt} produced: {outcome}"
    for written in story.written:
        for lease in written.standing:
            newer = [g for g in story.grants if g.attempt > lease.attempt and g.at < written.began]
            if newer:
                yield f"{written.worker} wrote under attempt {lease.attempt} after {newer[0].worker} held {newer[0].attempt}"
    for row in records[-1:]:
        if row.terminal and not _is_accounted_for(row, story):
            yield f"nobody produced what the record holds: {row}"


def _is_accounted_for(row: Row, story: Story) -> bool:
    """Whether a terminal record is an outcome that its worker offered, or the end of a task whose workers all died, or which
    never began."""
    if (row.status == Status.FAILED and row.by_janitor) or (row.in_vain and row.attempt == 0):
        return True
    wanted = Accepted(row.task_id, row.attempt, row.status, row.output or "")
    return any(offer.worker == row.worker and wanted in offer.outcomes for offer in story.offers)


def _counters(index: Index) -> Iterator[str]:
    """The counters in WORKERS are written together with each terminal state: one too many is a state written twice."""
    kept = Counter(kept.row.status for kept in index.kept)
    expected = [kept[status] for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)]
    for counted in index.counted:
        found = [counted.completed, counted.failed, counted.cancelled]
        if found != expected:
            yield f"completed, failed, cancelled: written {found} times, but in the record are {expected}"


# -- law 2 -----------------------------------------------------------------------------------------------------------


def _leases(story: Story, index: Index, rules: Rules) -> Iterator[str]:
    """Attempts only grow, no two live leases overlap, and none is ended by others while it is live; nor do two runs
    overlap under a live lease."""
    for (_, before), (_, after) in pairwise(story.records):
        if after.attempt < before.attempt:
            yield f"its attempt fell from {before.attempt} to {after.attempt}"
    grants = sorted(story.grants, key=lambda grant: (grant.attempt, grant.at))
    for i, earlier in enumerate(grants):
        live_until = _certainly_live_until(earlier, story, rules)
        for later in grants[i + 1 :]:
            if later.attempt == earlier.attempt:
                yield f"attempt {later.attempt} was granted to both {earlier.worker} and {later.worker}"
            elif later.at < earlier.began:
                yield f"attempt {later.attempt} was granted before attempt {earlier.attempt}"
            elif later.at < live_until:
                yield (
                    f"attempt {later.attempt} was granted to {later.worker} {live_until - later.at:.2f} s before the lease "
                    f"of attempt {earlier.attempt} of {earlier.worker} could have ended"
                )
    for extended in story.extended:
        for lease in extended.kept:
            if any(grant.attempt > lease.attempt and grant.at < extended.began for grant in grants):
                yield f"{extended.worker} extended attempt {lease.attempt} when a later one was granted already"
    yield from _ended_by_janitor(story, rules)
    yield from _runs(story, index, rules)


def _ended_by_janitor(story: Story, rules: Rules) -> Iterator[str]:
    """Attempts that the record says are over because their worker was gone, when their lease was still live."""
    grants: defaultdict[int, list[Grant]] = defaultdict(list)
    for grant in story.grants:
        grants[grant.attempt].append(grant)
    released = 0  # of the last record in which the attempt of the next was not over
    before: Row | None = None
    for at, row in story.records:
        if before is not None and (before.attempt < row.attempt or not (before.pending or before.terminal)):
            released = before.released
        before = row
        # A message from an earlier attempt stays in a record whose later attempt was given back.
        if row.by_janitor and (row.status == Status.FAILED or row.released == released):
            for grant in grants[row.attempt]:
                live_until = _certainly_live_until(grant, story, rules)
                if at < live_until:
                    yield (
                        f"attempt {row.attempt} of {grant.worker} was ended as if it had crashed {live_until - at:.2f} s "
                        f"before its lease could have ended"
                    )


def _certainly_live_until(grant: Grant, story: Story, rules: Rules) -> float:
    """Until when a lease cannot have ended: its holder had not let go of it, and its time was not up.

    Who offers an end does not let go: when it is accepted, nobody may be granted the task ever again, and else the lease
    is as it was. A heartbeat that keeps a lease extends it unless somebody has the row locked: the janitor may when the time
    was up before, and the holder itself may when it writes an outcome. Even then the lease was held when it began.
    """
    offered = [
        (offer.at, outcome.status)
        for offer in story.offers
        for outcome in offer.outcomes
        if offer.worker == grant.worker and outcome.lease == grant.lease
    ]
    given_back = [back.at for back in story.given_back if back.worker == grant.worker and grant.lease in back.leases]
    locked_from = min([at for at, _ in offered] + given_back, default=inf)
    time_is_up, held = grant.began + grant.seconds - rules.tolerance, -inf
    for extended in story.extended:
        if extended.worker == grant.worker and grant.lease in extended.kept:
            held = max(held, extended.began)
            if extended.at < min(time_is_up, locked_from):
                time_is_up = max(time_is_up, extended.began + extended.seconds - rules.tolerance)
    return max(held, min([time_is_up, *given_back, *(at for at, status in offered if status == Status.PENDING)]))


def _runs(story: Story, index: Index, rules: Rules) -> Iterator[str]:
    grants = {(grant.worker, grant.lease): grant for grant in story.grants}
    started = sorted(story.started, key=lambda event: (event.lease.attempt, event.at))
    for event in started:
        grant = grants.get((event.worker, event.lease))
        if grant is None or grant.at > event.at:
            yield f"{event.worker} ran attempt {event.lease.attempt} without having claimed it"
    stops = {(stop.worker, stop.lease): stop.at for stop in story.stopped}
    for i, earlier in enumerate(started):
        died = index.ends[earlier.worker].at if earlier.worker in index.ends else inf
        stopped = stops.get((earlier.worker, earlier.lease), died)
        grant = grants.get((earlier.worker, earlier.lease))
        live_until = _certainly_live_until(grant, story, rules) if grant else -inf
        for later in started[i + 1 :]:
            if later.lease == earlier.lease:
                yield f"attempt {later.lease.attempt} ran twice"
            elif later.at < min(stopped, live_until):
                yield f"attempt {later.lease.attempt} ran beside attempt {earlier.lease.attempt}, whose lease was live"


# -- law 3 -----------------------------------------------------------------------------------------------------------


def _outcomes(story: Story, index: Index) -> Iterator[str]:
    """Every outcome of a worker that lived on is in the record, or its lease had passed on."""
    offered = {(offer.worker, outcome.lease) for offer in story.offers for outcome in offer.outcomes}
    lost = {(e.worker, lease) for e in story.extended for lease in e.lost}
    lost_at_writing = {(w.worker, lease) for w in story.written for lease in w.lost}
    answered = lost_at_writing | {(w.worker, lease) for w in story.written for lease in w.standing}
    for stop in story.stopped:
        who = (stop.worker, stop.lease)
        if not stop.interrupted and who not in offered | lost and not index.was_killed(stop.worker):
            yield f"{stop.worker} never offered what attempt {stop.lease.attempt} produced"
    for worker, lease in sorted(offered - answered):
        if not index.was_killed(worker):
            yield f"{worker} never had an answer for what attempt {lease.attempt} produced"
    for worker, lease in sorted(lost_at_writing):
        if not story.passed_on(lease):
            yield f"{worker} was told that attempt {lease.attempt} had lost its lease, but nobody ever took it"
    for worker, outcome in story.standing:
        for kept in story.kept:
            if kept.row.attempt < outcome.attempt:
                yield f"the outcome of attempt {outcome.attempt} of {worker} was accepted, but is not in the record"


# -- completeness ----------------------------------------------------------------------------------------------------


def _completeness(index: Index) -> Iterator[tuple[int | None, str]]:
    """After healing, what was acknowledged is there exactly once and finished; what was not is absent or finished."""
    for key, submits in index.submits.items():
        kept = index.kept_by_key.get(key, [])
        answers = {submit.answer for submit in submits}
        ids = {submit.task_id for submit in submits if submit.task_id is not None}
        task_id = next(iter(ids), None)
        if len(ids) > 1:
            yield task_id, f"the producer was told several ids for {key}: {sorted(ids)}"
        if not kept and "acknowledged" in answers:
            yield task_id, f"{key} was acknowledged, but is not in the record"
        if kept and answers == {"refused"}:
            yield kept[0].row.task_id, f"{key} was refused, but is in the record"
        if len(kept) > 1:
            yield kept[0].row.task_id, f"{key} is in the record {len(kept)} times"
        for row in kept:
            if not row.row.terminal:
                yield row.row.task_id, f"{key} is still {row.row.status}"
            if row.payload != submits[0].payload:
                yield row.row.task_id, f"{key} was submitted with {submits[0].payload}, the record holds {row.payload}"
            if ids and row.row.task_id not in ids:
                yield row.row.task_id, f"the producer was told another id for {key}: {sorted(ids)}"
    for key in index.kept_by_key.keys() - index.submits.keys():
        yield index.kept_by_key[key][0].row.task_id, f"nobody submitted {key}"
