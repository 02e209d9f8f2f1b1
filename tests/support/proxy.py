"""A TCP proxy on Trio between a worker and its database, which can be told to misbehave."""

from __future__ import annotations

import enum
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

CHUNK = 65_536


class Fault(enum.Enum):
    """What the proxy does with connections and bytes."""

    NONE = "none"
    REFUSE = "refuse"
    """New connections are closed at once and existing ones are reset."""
    SWALLOW = "swallow"
    """Connections stay up, new ones are accepted, and no byte passes in either direction any more."""
    CUT_ANSWER = "cut answer"
    """What the client sends passes; in the middle of the server's next answer the connection is reset."""
    DELAY = "delay"
    """Every chunk waits for `delay` seconds."""


class FaultProxy:
    """Forwards 127.0.0.1:`port` to a server. `connections` counts all that were ever accepted."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._fault = Fault.NONE
        self._changed = trio.Event()
        self._open: set[trio.SocketStream] = set()
        self.delay = 0.0
        self.port = 0
        self.connections = 0

    def set(self, fault: Fault) -> None:
        """Misbehave so from now on; `Fault.NONE` heals. What was swallowed stays lost: its connections are reset."""
        healed_from = self._fault
        self._fault = fault
        self._changed.set()
        self._changed = trio.Event()
        if fault is Fault.REFUSE or healed_from is Fault.SWALLOW:
            self.reset_all()

    def reset_all(self) -> None:
        """Reset every open connection, on both sides."""
        for stream in list(self._open):
            _reset(stream)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        if self._fault is Fault.REFUSE:
            _reset(client)
            return
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self._target_port)
        except OSError:
            _reset(client)
            return
        self._open |= {client, server}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, server, False, nursery.cancel_scope)
                nursery.start_soon(self._pump, server, client, True, nursery.cancel_scope)
        finally:
            self._open -= {client, server}
            _reset(client)
            _reset(server)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, answers: bool, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(CHUNK):
                if self._fault is Fault.CUT_ANSWER and answers:
                    await sink.send_all(data[: len(data) // 2])
                    break
                while self._fault is Fault.SWALLOW:
                    await self._changed.wait()
                if self._fault is Fault.DELAY:
                    await trio.sleep(self.delay)
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


def _reset(stream: trio.SocketStream) -> None:
    """Close with a reset rather than a goodbye, as a machine that dies does."""
    with suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    stream.socket.close()


@asynccontextmanager
async def fault_proxy(target_port: int) -> AsyncIterator[FaultProxy]:
    """A running proxy, closed with all its connections when the block ends."""
    proxy = FaultProxy(target_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(proxy.run))
        yield proxy
        nursery.cancel_scope.cancel()
