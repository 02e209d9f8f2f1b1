"""Pages that stay true while somebody looks: what changes is rendered here and sent as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trio
from quart import Response

from continuum.status.shared import Unavailable

STREAMS = 32
"""Pages that are kept true at once."""
OPEN_TO_ALL = STREAMS // 2
"""Of these, how many may be held by those who may see no contents: they cannot keep others out."""
INTERVAL = 1.0
"""Seconds between two looks."""
HEARTBEAT = 15.0
"""Seconds of silence after which a stream says that it is still there; a client that has gone is noticed by that."""
LIFETIME = 600.0
"""Seconds after which a stream ends; a page that is still looked at asks anew by itself."""
RETRY = "retry: 2000\n\n"
"""How many milliseconds a page waits before it asks anew."""

Parts = dict[str, str]
"""HTML by the id of the element that it is the inside of."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a page shows now. pause: seconds until it is worth while to look again. last: nothing will change any more."""

    parts: Parts
    pause: float = INTERVAL
    last: bool = False


@dataclass(slots=True)
class Streams:
    """The streams that there are. ending: set when the server is about to end."""

    ending: trio.Event
    _open: set[object] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._open)

    def response(self, look: Callable[[], Awaitable[Look]], *, privileged: bool) -> Response:
        """A stream of what `look` finds: first all of it, then each part that differs from what was sent."""
        if len(self._open) >= (STREAMS if privileged else OPEN_TO_ALL) or self.ending.is_set():
            return Response("too many pages are kept up to date", 503, {"Retry-After": "30"}, content_type="text/plain")
        response = Response(self._events(look), content_type="text/event-stream")
        response.timeout = None
        response.headers["X-Accel-Buffering"] = "no"
        return response

    async def _events(self, look: Callable[[], Awaitable[Look]]) -> AsyncIterator[str]:
        me = object()
        self._open.add(me)
        try:
            yield RETRY
            sent: Parts = {}
            began = spoke = trio.current_time()
            while not self.ending.is_set() and trio.current_time() - began < LIFETIME:
                pause = INTERVAL
                try:
                    found = await look()
                except Unavailable as error:
                    yield _event("problem", {"text": str(error)})
                else:
                    pause = found.pause
                    changed = {name: html for name, html in found.parts.items() if sent.get(name) != html}
                    sent.update(changed)
                    if changed:
                        spoke = trio.current_time()
                        yield _event("parts", {"now": int(time.time() * 1000), "parts": changed})
                    if found.last:
                        yield _event("last", {})
                        return
                if trio.current_time() - spoke >= HEARTBEAT:
                    spoke = trio.current_time()
                    yield ": still here\n\n"
                with trio.move_on_after(pause):
                    await self.ending.wait()
        finally:
            self._open.discard(me)


def _event(name: str, data: dict[str, object]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
