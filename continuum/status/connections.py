"""The connections of the status server. Importing this imports the web framework.

Hypercorn's protocol code serves each connection, but the loop around it is ours. Hypercorn's own leaves sockets open
when it is cancelled, shields its sends without a deadline, so that one client that does not read could keep a worker
from stopping, and ends with the first exception of any connection.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.nursery.state import WorkerState
from continuum.status.app import create_app
from continuum.status.limits import CONNECTIONS
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

KEEP_ALIVE = 5.0
"""Seconds that a connection may be idle, which is also how long a request's head may take to arrive."""
SEND_DEADLINE = 10.0
"""Seconds for a client to take a piece of a response."""
GRACE = 0.5
"""Seconds at the end for responses under way, and once more for their handlers to notice that theirs is over."""


async def serve_connections(
    listening: Sequence[socket.socket],
    settings: Settings,
    state: WorkerState,
    database: Database,
    telemetry: Telemetry,
) -> None:
    """Serve those who connect to these sockets until cancelled; then end their connections within about a second."""
    ending = trio.Event()
    app = create_app(settings, state, database, telemetry, ending)
    connections = _Connections(ASGIWrapper(app), ending)
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(one)) for one in listening]
    async with trio.open_nursery() as nursery:
        for service in app.services:
            nursery.start_soon(service)
        try:
            await trio.serve_listeners(connections.serve, listeners, handler_nursery=nursery)
        finally:
            await connections.drain()


class _Stream:
    """A connection as Hypercorn uses it. Hypercorn shields its sends, so each has a deadline of its own here."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.receive_some = stream.receive_some
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(SEND_DEADLINE) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")


class _Connections:
    """The open connections. They are shielded, so that they end by `drain` and with their sockets closed."""

    def __init__(self, app: ASGIWrapper, ending: trio.Event) -> None:
        self._app = app
        self._ending = ending
        self._config = _hypercorn_config()
        self._context = WorkerContext(None)
        self._open: dict[_Stream, trio.CancelScope] = {}
        self._all_closed = trio.Event()
        self._all_closed.set()

    async def serve(self, accepted: trio.SocketStream) -> None:
        """Serve one connection to its end. Whatever goes wrong with it is its own affair."""
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SEND_DEADLINE))
        stream = _Stream(accepted)
        if len(self._open) >= CONNECTIONS or self._context.terminated.is_set():
            stream.socket.close()
            return
        with self._entered(stream) as scope, scope:
            try:
                state = ConnectionState(LifespanState({}))
                # A _Stream is all of a SocketStream that it uses.
                await TCPServer(self._app, self._config, self._context, state, stream)  # type: ignore[arg-type]
            except Exception:
                log.exception("a status connection failed")

    @contextmanager
    def _entered(self, stream: _Stream) -> Iterator[trio.CancelScope]:
        self._open[stream] = scope = trio.CancelScope(shield=True)
        self._all_closed = trio.Event()
        try:
            yield scope
        finally:
            stream.socket.close()
            del self._open[stream]
            if not self._open:
                self._all_closed.set()

    async def drain(self) -> None:
        """End every connection: the idle ones now, the others within their grace; what would go on for ever learns of it."""
        self._ending.set()
        with trio.CancelScope(shield=True):
            await self._context.terminated.set()
            await self._closed_within(GRACE)
            for stream in self._open:
                stream.socket.close()  # ends even a send that is shielded
            await self._closed_within(GRACE)
            for scope in self._open.values():
                scope.cancel()

    async def _closed_within(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while self._open:
                await self._all_closed.wait()


def _hypercorn_config() -> Config:
    config = Config()
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE
    config.read_timeout = None  # who follows something is silent: KEEP_ALIVE bounds a head, and the application a body
    config.accesslog = None
    config.errorlog = logging.getLogger("continuum.status.hypercorn")
    return config
