"""Request bodies that are read only when a handler asks for them.

Quart reads a body as it comes, whoever sent it. Here it stays in the socket until the handler has looked at the head, so that
who may not submit, or comes while there is too much to do already, costs no memory.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge

LINGER = 2.0
"""Seconds that a body which nobody wants is read and dropped before its answer: who still sends would see a reset, and not
the answer, if the connection were closed."""


class LazyBody(TrioBody):
    """A body that is taken from the connection from its first `await` on."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._expected = expected_content_length
        self._wanted = trio.Event()
        self._ended = trio.Event()

    def allow(self, size: int) -> None:
        """Let it have up to `size` bytes, before it is read."""
        self._max_content_length = size
        self._must_raise = RequestEntityTooLarge() if (self._expected or 0) > size else None

    def __await__(self) -> Generator[None, None, bytes]:
        self._wanted.set()
        data: bytes = yield from super().__await__()
        return data

    async def __anext__(self) -> bytes:
        self._wanted.set()
        return await super().__anext__()

    async def take(self, data: bytes) -> None:
        """Take what has arrived, once somebody wants it."""
        if data:
            await self._wanted.wait()
            self.append(data)

    async def drop(self) -> None:
        """Read what is left of it, for `LINGER` seconds at most, and keep nothing."""
        self._must_raise = self._must_raise or RequestEntityTooLarge()
        self._data.clear()
        self._wanted.set()
        with trio.move_on_after(LINGER):
            await self._ended.wait()

    def end(self) -> None:
        """All of it has arrived."""
        self.set_complete()
        self._ended.set()


class LazyRequest(TrioRequest):
    body: LazyBody
    body_class = LazyBody


class LazyConnection(TrioASGIHTTPConnection):
    """One request: its body as it arrives, and its answer, which ends when the client leaves."""

    _answered = False

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        assert isinstance(request, LazyRequest)
        while (message := await receive())["type"] == "http.request":
            await request.body.take(message.get("body", b""))
            if not message.get("more_body", False):
                request.body.end()
        # Hypercorn calls it a disconnect, too, when it has sent the answer, and still has to close or reuse the connection.
        if not self._answered:
            nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        async def noting(message: Any) -> None:
            self._answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        await super().handle_request(nursery, request, noting)
