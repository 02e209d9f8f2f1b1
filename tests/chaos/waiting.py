"""Law 7 on a history: was there a task that nobody took although somebody could have?

A task waited for certain from when the observer saw it pending until its last look at which nothing had changed. A worker
could have taken it while it lived with a slot free, whatever it claimed meanwhile for others, nothing had cut it off from
the database, and the database answered: it did when it answered the observer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from typing import NamedTuple

from tests.chaos.history import FaultBegan
from tests.chaos.index import Index, Story

LONGEST_LOOK = 1.5
"""Seconds from one look to the next while the database answers as it should: they begin half a second apart."""


class Span(NamedTuple):
    """A stretch of time."""

    begin: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.begin

    def within(self, other: Span) -> Span:
        return Span(max(self.begin, other.begin), min(self.end, other.end))


def forgotten_tasks(index: Index, longest: float, recovery: float) -> Iterator[tuple[int, str]]:
    """Tasks that waited for more than `longest` seconds on end while one worker had a slot free all the time.

    recovery: seconds after the end of an outage during which nobody is held to anything.
    """
    able = _able(index, longest, recovery)
    for story in index.stories.values():
        for waited in _waits(story, index):
            if waited.length > longest:
                for worker, span in able:
                    together = span.within(waited).length
                    if together > longest:
                        yield story.task_id, f"it waited for {together:.1f} s while {worker} had a slot free"


def judged(index: Index, longest: float, recovery: float) -> float:
    """For how many seconds, of all workers together, a forgotten task would have been found out."""
    return sum(span.length - longest for _, span in _able(index, longest, recovery))


def _able(index: Index, longest: float, recovery: float) -> list[tuple[str, Span]]:
    """When each worker could have taken a task, as far as that lasted for more than `longest` on end."""
    outages = [*_declared_outages(index, recovery), *_witnessed_outages(index, recovery)]
    return [
        (worker, span)
        for worker in index.workers
        for free in _free_spans(index, worker)
        if free.length > longest  # of the many short ones none can hold a wait that is too long
        for span in _without(free, outages)
        if span.length > longest
    ]


def _waits(story: Story, index: Index) -> Iterator[Span]:
    """For how long, for certain, the task was due and pending."""
    for i, seen in enumerate(story.seen):
        if seen.row.pending and seen.row.due:
            changed = story.seen[i + 1].at if i + 1 < len(story.seen) else inf
            # Looks write down what they found before they say that they have ended: the last one that ended before the
            # change was written down still found the row as it was.
            unchanged = bisect_left(index.looks, changed, key=lambda look: look.at) - 1
            if unchanged >= 0:
                yield Span(seen.at, index.looks[unchanged].began)


def _free_spans(index: Index, worker: str) -> Iterator[Span]:
    """When a worker lived and had at least one slot free.

    Slots are taken from when the claim that fills them begins. One that was given all it asked for may have left others
    behind: until its answer no slot counts as free, although scripts may end meanwhile.
    """
    born = index.workers[worker]
    died = index.ends[worker].at if worker in index.ends else index.ends_at
    changes: list[tuple[float, int]] = []
    for claim in index.claims:
        if claim.worker == worker:
            taken = len(claim.leases)
            asked = born.slots if taken >= claim.wanted else taken
            changes += [(claim.began, -asked), (claim.at, asked - taken)]
    changes += [(stop.at, 1) for stop in index.stops if stop.worker == worker]
    ran = {stop.lease for stop in index.stops if stop.worker == worker}
    changes += [
        (event.at, 1) for event in index.given_back if event.worker == worker
        for lease in event.leases if lease not in ran
    ]  # fmt: skip
    slots, since = born.slots, born.at
    for at, change in sorted(changes):
        if slots > 0 >= slots + change:
            yield Span(since, min(at, died))
        elif slots <= 0 < slots + change:
            since = at
        slots += change
    if slots > 0:
        yield Span(since, died)


def _declared_outages(index: Index, recovery: float) -> Iterator[Span]:
    """While something was broken that may cut everybody off."""
    for i, fault in enumerate(index.faults):
        if isinstance(fault, FaultBegan) and fault.outage:
            later = index.faults[i + 1 :]
            ended = next((e.at for e in later if not isinstance(e, FaultBegan) and e.name == fault.name), inf)
            yield Span(fault.at, ended + recovery)


def _witnessed_outages(index: Index, recovery: float) -> Iterator[Span]:
    """While the observer had no answer for longer than it ever waits between two looks."""
    for before, after in pairwise(index.looks):
        if after.at - before.at > LONGEST_LOOK:
            yield Span(before.at, after.at + recovery)


def _without(span: Span, holes: list[Span]) -> Iterator[Span]:
    """What is left of a span."""
    begin = span.begin
    for hole in sorted(holes):
        if hole.begin < span.end and hole.end > begin:
            if hole.begin > begin:
                yield Span(begin, hole.begin)
            begin = max(begin, hole.end)
    if begin < span.end:
        yield Span(begin, span.end)
