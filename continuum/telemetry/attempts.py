"""The spans of a task's attempts: claim, execute and complete, each one's own although the worker batches them.

All three are children of the span that the task's `traceparent` names (the producer's submit); where it names none,
the claim begins a new trace and the other two are its children.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context, use_span

from continuum.model import ClaimedTask, Completion, Ending, Lease, Outcome
from continuum.telemetry.tracing import COMMON, context_of, traceparent_of

REMEMBERED = 8192
"""Attempts whose end is awaited, at most: one that is given back or lost is never written, so its entry would stay."""
EMPTY: Mapping[str, str] = MappingProxyType({})
NAME_LIMIT = 100
"""Characters of a task's name in a span."""


@dataclass(slots=True)
class Attempt:
    """What is remembered of an attempt from its claim until its outcome is written."""

    created_at: dt.datetime
    parent: Context | None = None
    ending: Ending | None = None
    executed: tuple[Span, int] | None = None
    """The span of a run that has ended, kept open until its outcome is told; and when it ended, in ns."""

    def end_execution(self, outcome: Outcome | None, contents: Mapping[str, str] = EMPTY) -> None:
        """End the span of the run; None when no outcome came of it. contents: more attributes."""
        if self.executed is None:
            return
        span, ended = self.executed
        self.executed = None
        for name, text in contents.items():
            span.set_attribute(f"continuum.task.{name}", text)
        if outcome is not None:
            span.set_attribute("continuum.task.ending", outcome.ending.value)
            if outcome.exit_code is not None:
                span.set_attribute("process.exit.code", outcome.exit_code)
        if outcome is None or outcome.ending is not Ending.COMPLETED:
            reason = outcome.ending.value if outcome is not None else "abandoned"
            span.set_attribute("error.type", reason)
            span.set_status(Status(StatusCode.ERROR, reason))
        span.end(ended)


class Attempts:
    """Attempts on their way, oldest first; and their spans, when there is a tracer."""

    def __init__(self, tracer: Tracer | None) -> None:
        self._tracer = tracer
        self._attempts: OrderedDict[Lease, Attempt] = OrderedDict()

    def claimed(self, task: ClaimedTask, seconds: float) -> None:
        """Remember a task that was claimed just now, in a call that took so long."""
        attempt = self._attempts[task.lease] = Attempt(task.created_at)
        if len(self._attempts) > REMEMBERED:
            _, forgotten = self._attempts.popitem(last=False)
            forgotten.end_execution(None)
        if self._tracer is None:
            return
        now = time.time_ns()
        parent = context_of(task.traceparent)
        span = self._tracer.start_span(
            "continuum.claim",
            parent,
            SpanKind.CLIENT,
            {**_attributes(task), "messaging.operation.type": "receive", "messaging.operation.name": "claim"},
            start_time=now - _nanoseconds(seconds),
        )
        span.end(now)
        attempt.parent = parent if traceparent_of(parent) else set_span_in_context(span, Context())

    @contextmanager
    def executing(self, task: ClaimedTask) -> Iterator[None]:
        """A span around a run, current inside; it is kept until `ended` tells the outcome, if the run had one."""
        assert self._tracer is not None
        attempt = self._attempts.get(task.lease)
        if attempt is None:
            attempt = self._attempts[task.lease] = Attempt(task.created_at, context_of(task.traceparent))
        span = self._tracer.start_span(
            "continuum.execute",
            attempt.parent,
            SpanKind.CONSUMER,
            {**_attributes(task), "messaging.operation.type": "process", "messaging.operation.name": "execute"},
        )
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException:
            attempt.executed = (span, time.time_ns())
            attempt.end_execution(None)
            raise
        attempt.executed = (span, time.time_ns())

    def ended(self, task: ClaimedTask, outcome: Outcome, contents: Mapping[str, str] = EMPTY) -> None:
        """Tell how a run ended. contents: what LOG_PAYLOADS lets into the span, by name."""
        attempt = self._attempts.get(task.lease)
        if attempt is not None:
            attempt.ending = outcome.ending
            attempt.end_execution(outcome, contents)

    def written(self, completion: Completion, stands: bool, seconds: float) -> Attempt | None:
        """An outcome was written just now in a call that took so long, or (`stands` is False) its lease had passed
        to somebody else. Returns what was known of the attempt, and forgets it."""
        attempt = self._attempts.pop(completion.lease, None)
        if attempt is not None and attempt.parent is not None and self._tracer is not None:
            now = time.time_ns()
            span = self._tracer.start_span(
                "continuum.complete",
                attempt.parent,
                SpanKind.CLIENT,
                {
                    **COMMON,
                    "messaging.message.id": str(completion.task_id),
                    "messaging.operation.type": "settle",
                    "messaging.operation.name": "complete",
                    "continuum.task.attempt": completion.attempt,
                    "continuum.task.status": completion.status.value,
                },
                start_time=now - _nanoseconds(seconds),
            )
            if not stands:
                span.set_attribute("error.type", "lease_lost")
                span.set_status(Status(StatusCode.ERROR, "the lease had passed to somebody else"))
            span.end(now)
        return attempt

    def close(self) -> None:
        """End what is still open."""
        while self._attempts:
            self._attempts.popitem()[1].end_execution(None)


def _attributes(task: ClaimedTask) -> dict[str, str | int]:
    return {
        **COMMON,
        "messaging.message.id": str(task.id),
        "continuum.task.name": task.name[:NAME_LIMIT],
        "continuum.task.attempt": task.attempt,
        "continuum.task.priority": task.priority,
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
