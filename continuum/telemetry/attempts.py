"""The spans of a worker: one for each attempt, and one for each claim and each batch of outcomes, which many tasks share.

The attempt's (`execute tasks`) is a child of the span that the task's `traceparent` names, the producer's submit, and links to
it as well; where it names none, it begins a trace. A claim and a batch of outcomes belong to no single task: they begin traces
of their own and link to the spans of their tasks. They are left out when no producer of theirs wants to be traced.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, use_span

from continuum.model import ClaimedTask, Completion, Ending, Lease, Outcome
from continuum.telemetry.tracing import COMMON, DESTINATION, context_of, current_traceparent, span_context_of

REMEMBERED = 8192
"""Attempts whose end is awaited, at most: one that is given back or lost is never written, so its entry would stay."""
EMPTY: Mapping[str, str] = MappingProxyType({})
NAME_LIMIT = 100
"""Characters of a task's name in a span."""


@dataclass(slots=True)
class Attempt:
    """What is remembered of an attempt from its claim until its outcome is written."""

    created_at: dt.datetime
    traceparent: str | None
    """The span of the run, or what the producer stored with the task."""
    parent: Context | None = None
    creation: SpanContext | None = None
    """The producer's span, when the task names one."""
    ending: Ending | None = None
    context: SpanContext | None = None
    """The span of the run, when there was one that is sampled."""
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

    @property
    def wants_no_trace(self) -> bool:
        """Whether the producer decided that this task is not traced."""
        return self.creation is not None and not self.creation.trace_flags.sampled


class Attempts:
    """Attempts on their way, oldest first; and their spans, when there is a tracer."""

    def __init__(self, tracer: Tracer | None) -> None:
        self._tracer = tracer
        self._attempts: OrderedDict[Lease, Attempt] = OrderedDict()

    def claimed(self, tasks: Sequence[ClaimedTask], seconds: float) -> None:
        """Remember tasks that were claimed just now, in one call that took so long."""
        attempts = [self._remember(task) for task in tasks]
        if self._tracer is not None:
            self._shared_span("claim", "receive", attempts, seconds)

    def _remember(self, task: ClaimedTask) -> Attempt:
        attempt = self._attempts[task.lease] = Attempt(task.created_at, task.traceparent)
        if self._tracer is not None:
            attempt.parent = context_of(task.traceparent)
            attempt.creation = span_context_of(attempt.parent)
        if len(self._attempts) > REMEMBERED:
            _, forgotten = self._attempts.popitem(last=False)
            forgotten.end_execution(None)
        return attempt

    @contextmanager
    def executing(self, task: ClaimedTask) -> Iterator[None]:
        """A span around a run, current inside; it is kept until `ended` tells the outcome, if the run had one."""
        assert self._tracer is not None
        attempt = self._attempts.get(task.lease) or self._remember(task)
        span = self._tracer.start_span(
            f"execute {DESTINATION}",
            attempt.parent,
            SpanKind.CONSUMER,
            _attributes(task),
            links=[Link(attempt.creation)] if attempt.creation is not None else None,
        )
        if span.is_recording():
            attempt.context = span.get_span_context()
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                attempt.traceparent = current_traceparent()
                yield
        except BaseException:
            attempt.executed = (span, time.time_ns())
            attempt.end_execution(None)
            raise
        attempt.executed = (span, time.time_ns())

    def ended(self, task: ClaimedTask, outcome: Outcome, contents: Mapping[str, str] = EMPTY) -> Attempt | None:
        """Tell how a run ended; return what is known of it. contents: what LOG_PAYLOADS lets into the span, by name."""
        attempt = self._attempts.get(task.lease)
        if attempt is not None:
            attempt.ending = outcome.ending
            attempt.end_execution(outcome, contents)
        return attempt

    def written(self, batch: Sequence[Completion], seconds: float) -> list[Attempt | None]:
        """Outcomes were written just now in a call that took so long, or had lost their leases. Returns what was known of each
        attempt, and forgets it."""
        attempts = [self._attempts.pop(completion.lease, None) for completion in batch]
        if self._tracer is not None:
            self._shared_span("complete", "settle", [attempt for attempt in attempts if attempt is not None], seconds)
        return attempts

    def traceparent(self, lease: Lease) -> str | None:
        """The trace that an attempt is part of."""
        attempt = self._attempts.get(lease)
        return attempt.traceparent if attempt is not None else None

    def _shared_span(self, name: str, kind: str, attempts: list[Attempt], seconds: float) -> None:
        """The span of a call for many tasks, which has ended just now."""
        assert self._tracer is not None
        traced = [attempt for attempt in attempts if attempt.context is not None or not attempt.wants_no_trace]
        if not traced:
            return
        now = time.time_ns()
        contexts = [attempt.context or attempt.creation for attempt in traced]
        span = self._tracer.start_span(
            f"{name} {DESTINATION}",
            Context(),
            SpanKind.CLIENT,
            {
                **COMMON,
                "messaging.operation.name": name,
                "messaging.operation.type": kind,
                "messaging.batch.message_count": len(attempts),
            },
            links=[Link(context) for context in contexts if context is not None],
            start_time=now - int(seconds * 1e9),
        )
        span.end(now)

    def close(self) -> None:
        """End what is still open."""
        while self._attempts:
            self._attempts.popitem()[1].end_execution(None)


def _attributes(task: ClaimedTask) -> dict[str, str | int]:
    return {
        **COMMON,
        "messaging.operation.name": "execute",
        "messaging.operation.type": "process",
        "messaging.message.id": str(task.id),
        "continuum.task.name": task.name[:NAME_LIMIT],
        "continuum.task.attempt": task.attempt,
        "continuum.task.priority": task.priority,
        **({"continuum.task.tenant": task.tenant[:NAME_LIMIT]} if task.tenant is not None else {}),
    }
