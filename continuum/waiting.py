"""What a pending task waits for, in words."""

from __future__ import annotations

from collections.abc import Sequence

from continuum.model import OTHERS_NAMED, HeldBackBy, TaskRecord, WaitsFor, WorkerRecord

A_WORKER = "a worker to claim it"
"""What it waits for where nothing is known that keeps it from one."""

_HELD_BACK = {
    HeldBackBy.QUEUE_PAUSED: "the queue, which is paused",
    HeldBackBy.CODE_PAUSED: "its code, which is paused",
    HeldBackBy.TENANT_PAUSED: "its tenant, which is paused",
    HeldBackBy.TAG_PAUSED: "one of its tags, which is paused",
    HeldBackBy.MAX_RUNNING: "its tenant's limit: as many of its tasks run as may",
    HeldBackBy.RATE: "its tenant's rate: as many of its tasks began lately as may",
}


def in_words(task: TaskRecord, waits: WaitsFor | None, workers: Sequence[WorkerRecord]) -> str | None:
    """What a task waits for; None where that is nothing but its time, or it does not wait."""
    if waits is None:
        return None
    if waits.reason is HeldBackBy.OTHER_TASKS:
        return _others(task, waits.others)
    if waits.reason is not None:
        return _HELD_BACK[waits.reason]
    return _worker(task, [each for each in workers if each.alive])


def _others(task: TaskRecord, others: Sequence[int]) -> str:
    if not others and task.concurrency_key is not None:
        return f"a place among those with the key {task.concurrency_key}"
    if not others:
        return "a worker to see that it need wait for no other any more"
    names = ", ".join(map(str, others[:OTHERS_NAMED]))
    ends = "one of these to complete" if task.depends_any and not task.sequence_key else "others to end"
    return f"{ends}: {names}{' and more' if len(others) >= OTHERS_NAMED else ''}"


def _worker(task: TaskRecord, alive: Sequence[WorkerRecord]) -> str:
    claiming = [each for each in alive if not each.draining]
    slots, running = sum(each.slots for each in claiming), sum(each.running for each in claiming)
    if not alive:
        return "a worker: none is alive"
    if not claiming:
        return "a worker: all that are alive were asked to drain"
    if running >= slots:
        return f"a free slot: all {slots} are in use"
    if task.worker_tags:
        return f"a worker with the tags {', '.join(task.worker_tags)}"
    return A_WORKER
