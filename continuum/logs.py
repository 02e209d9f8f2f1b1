"""Structured logs on stderr: lines that people read at a terminal, JSON elsewhere; never a payload, an output or a secret.

In JSON each line is one object, whatever it holds. Lines about an attempt have `task_id`, `attempt` and, where the task is
traced, `trace_id`, `span_id` and `trace_flags`. A line is written when it is logged and not later: none waits in a queue that
an end, `kill -9` included, could lose.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from continuum.config import Settings

# Local variables of the frames would show payloads, code and the database's password.
_WITHOUT_LOCALS = ExceptionDictTransformer(show_locals=False)
_TRACEPARENT = re.compile(r"00-(?P<trace_id>[0-9a-f]{32})-(?P<span_id>[0-9a-f]{16})-(?P<trace_flags>[0-9a-f]{2})")

_attempt: ContextVar[tuple[int, int, str | None] | None] = ContextVar("continuum_attempt", default=None)


def tell_attempt(task_id: int, attempt: int, traceparent: str | None) -> None:
    """Have every line that this task of Trio's logs from now on, and those that it starts, tell which attempt it is about."""
    _attempt.set((task_id, attempt, traceparent))


def trace_fields(traceparent: str | None) -> dict[str, str]:
    """What a line tells of a trace; nothing for None and for what is malformed."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found.groupdict() if found else {}


def _add_attempt(_: object, __: str, event: EventDict) -> EventDict:
    told = _attempt.get()
    if told is not None and event.setdefault("task_id", told[0]) == told[0]:
        event.setdefault("attempt", told[1])
        event.update(trace_fields(told[2]))
    return event


class _Lines:
    """Writes each line at once and whole. A reader that has gone costs its lines, and not the work."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(line + "\n")
            self._file.flush()

    debug = info = warning = error = critical = exception = log = msg = write


class _Handler(logging.Handler):
    """Sends what libraries log the same way."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.write(self.format(record))
        except Exception:
            self.handleError(record)


def configure_logs(settings: Settings) -> None:
    """Send structlog's and the standard library's logs, and Python's warnings, to stderr, as LOG_FORMAT and LOG_LEVEL say."""
    level = getattr(logging, settings.log_level.upper())
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_attempt,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Processor] = (
        [structlog.processors.ExceptionRenderer(_WITHOUT_LOCALS), structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )
    handler = _Handler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


def log_what_nobody_caught() -> None:
    """Have exceptions that end the program or one of its threads logged as well, instead of written as a traceback of many
    lines: for a program whose output is its log."""
    log = structlog.get_logger(__name__)

    def ended(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        log.critical("an unexpected error ended the program", exc_info=(kind, error, traceback))

    def thread_ended(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None:
            log.error(
                "an unexpected error ended a thread",
                thread=what.thread.name if what.thread else None,
                exc_info=(what.exc_type, what.exc_value, what.exc_traceback),
            )

    sys.excepthook = ended
    threading.excepthook = thread_ended
