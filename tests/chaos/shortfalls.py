"""What keeps a run without a violation from proving anything: too little happened in it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import FaultBegan, History, Scheduled, WorkerEnded
from tests.chaos.plan import Fault, Plan
from tests.chaos.timeline import summarize

HEALING = "healing"
"""The one fault that breaks nothing: it is written down while everything is mended."""


def shortfalls(plan: Plan, fault: Fault, history: History, judged: float) -> list[str]:
    """What was planned and did not happen, a line each. `judged`: for how many seconds law 7 was."""
    return list(_shortfalls(plan, fault, history, judged))


def _shortfalls(plan: Plan, fault: Fault, history: History, judged: float) -> Iterator[str]:
    summary = summarize(history)
    for count, what in (
        (summary.submitted, "were acknowledged"),
        (summary.records, "are in the record"),
        (summary.terminal, "are terminal"),
    ):
        if count != plan.tasks:
            yield f"{count} tasks {what}, not {plan.tasks}"
    if not any(isinstance(event, FaultBegan) and event.name != HEALING for event in history):
        yield "nothing was broken"
    killed = sum(isinstance(event, WorkerEnded) and event.killed for event in history)
    if killed != plan.worker_kills:
        yield f"{killed} workers were killed, not {plan.worker_kills}"
    if any(isinstance(event, Scheduled) for event in history) and not summary.scheduled:
        yield "the schedule made no task"
    if fault.longest_pause is not None:
        if summary.longest_pause >= fault.longest_pause:
            yield (
                f"there was no outcome for {summary.longest_pause:.1f} s; "
                f"with the fault {fault.name} there may be none for {fault.longest_pause:g} s"
            )
    elif judged <= 0:
        yield "law 7 was never judged: no worker had a slot free for long enough; let the work last longer"
