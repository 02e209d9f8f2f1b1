"""The status server's lifetime: its sockets, the framework behind them, and its end."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from importlib import import_module

import trio

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.nursery.state import WorkerState
from continuum.status.errors import StatusServerError
from continuum.telemetry import Telemetry

HEAD_START = 1.0
"""Seconds that a worker gets to have its first sandbox, before the import of the web framework takes a processor from it."""


async def serve_status(
    settings: Settings,
    state: WorkerState,
    database: Database,
    telemetry: Telemetry,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; then end within about a second, with every socket closed.

    Reports its address, `http://127.0.0.1:8080`, once it listens. Raises `StatusServerError` when it cannot.
    """
    with ExitStack() as sockets:
        listening = [sockets.enter_context(one) for one in await listen_on(settings.api_host, settings.api_port)]
        task_status.started(_address(settings.api_host, listening[0]))
        with trio.move_on_after(HEAD_START):
            await state.health.wait_until_well("sandbox")
        # A third of all that a worker imports, and no task needs it: in a thread, and who connects meanwhile waits.
        await trio.to_thread.run_sync(import_module, "continuum.status.connections")
        from continuum.status.connections import serve_connections

        await serve_connections(listening, settings, state, database, telemetry)


async def listen_on(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of `host`, all on one port. Raises `StatusServerError`."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StatusServerError(f"API_HOST={host}: {error.strerror or error}") from error
    listening: list[socket.socket] = []
    with ExitStack() as undo:
        for family, kind, protocol, _, address in found:
            chosen = listening[0].getsockname()[1] if listening else port
            try:
                one = undo.enter_context(socket.socket(family, kind, protocol))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.setblocking(False)
                one.bind((address[0], chosen, *address[2:]))
                one.listen()
            except OSError as error:
                reason = error.strerror or str(error)
                raise StatusServerError(
                    f"the status server cannot listen on API_HOST={host} API_PORT={port}: {reason}; "
                    "choose another API_PORT, or 0 for any free one"
                ) from error
            listening.append(one)
        undo.pop_all()
    return listening


def _address(host: str, listening: socket.socket) -> str:
    """Where a person on this machine finds the server."""
    port = listening.getsockname()[1]
    if host in ("0.0.0.0", "::", "*"):  # noqa: S104 - compared, not bound
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
