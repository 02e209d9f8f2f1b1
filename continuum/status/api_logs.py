"""What a task writes, as a stream of events: NDJSON, or server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import trio

from continuum.db.errors import DatabaseError, DatabaseUnavailable
from continuum.following import PATIENCE, Transcript
from continuum.model import TaskRecord
from continuum.status.api_errors import Refusal
from continuum.status.api_outputs import LogEvent

NDJSON, EVENTS = "application/x-ndjson", "text/event-stream"
SHORTEST, LONGEST = 0.1, 0.5
"""Seconds between two looks at a task, while it writes and while it does not. Workers show new output once a second."""
HEARTBEAT = 15.0
"""Seconds without anything after which a client is told that the stream is alive."""
LONGEST_STREAM = 3600.0
"""Seconds after which a stream ends, whatever the task does; the client may ask again."""
PIECE = 64 * 1024
"""Characters of an output in one event."""


async def log_events(
    record: TaskRecord,
    look: Callable[[], Awaitable[TaskRecord | None]],
    follow: bool,
    ending: trio.Event,
) -> AsyncIterator[LogEvent]:
    """What there is in `record`, and then what comes, until the task has ended. The last event is always an `end`.

    look: reads the task again. ending: set when the server is about to end.
    """
    transcript = Transcript()
    began = said = answered = trio.current_time()
    pause, reason = SHORTEST, None
    while True:
        news = list(_pieces(transcript, record))
        for event in news:
            yield event
        now = trio.current_time()
        if reason is None and now - began >= LONGEST_STREAM:
            reason = f"a stream ends after {LONGEST_STREAM:g} s; ask again"
        if reason is not None or record.finished_for_good or not follow:
            yield LogEvent(type="end", status=record.status, exit_code=record.exit_code, reason=reason)
            return
        if news:
            pause, said = SHORTEST, now
        elif now - said >= HEARTBEAT:
            said = now
            yield LogEvent(type="heartbeat")
        with trio.move_on_after(pause):
            await ending.wait()
            reason = "this server is ending; ask again"
            continue
        pause = min(LONGEST, 1.5 * pause)
        try:
            newer = await look()
        except (DatabaseUnavailable, Refusal) as error:
            if trio.current_time() - answered > PATIENCE:
                reason = f"the database is unavailable: {error}"
        except DatabaseError as error:
            reason = str(error)
        else:
            answered = trio.current_time()
            if newer is None:
                reason = "the task was deleted"
            record = newer or record


def _pieces(transcript: Transcript, record: TaskRecord) -> Iterator[LogEvent]:
    for stream, text in transcript.news(record):
        for at in range(0, len(text), PIECE):
            yield LogEvent(type=stream.value, attempt=record.attempt, text=text[at : at + PIECE])


async def encoded(events: AsyncIterator[LogEvent], media_type: str) -> AsyncIterator[bytes]:
    """The events as one of the two media types has them."""
    async for event in events:
        text = event.model_dump_json(exclude_none=True)
        if media_type == EVENTS:
            yield b": heartbeat\n\n" if event.type == "heartbeat" else f"event: {event.type}\ndata: {text}\n\n".encode()
        else:
            yield f"{text}\n".encode()
