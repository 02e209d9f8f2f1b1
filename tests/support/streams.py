"""Both ends of a stream between worker and sandbox, the far one in a test's hands."""

from __future__ import annotations

import socket

import trio

from continuum.sandbox.streams import PromptSocketStream


class CountingStream(PromptSocketStream):
    """A stream that counts how often it is asked to do something. waits: receives for which Trio was asked."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self.sends = self.receives = self.waits = 0

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        self.sends += 1
        return super().send_nowait(data)

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        self.receives += 1
        return super().receive_nowait(max_bytes)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self.waits += 1
        return await super().receive_some(max_bytes)


def stream_pair() -> tuple[CountingStream, trio.SocketStream]:
    """A worker's end and a sandbox's."""
    near, far = socket.socketpair()
    return CountingStream(near), trio.SocketStream(trio.socket.from_stdlib_socket(far))
