"""A Docker socket that understands workers alone: `continuum socket-proxy`.

Each connection carries one request. It is read to its end and judged, then written anew, from what was understood of it and
nothing else, so that the daemon cannot read it in another way than the judge did. The answer is passed on as it comes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import h11
import structlog
import trio

from continuum import systemd
from continuum.config import Settings, load_settings
from continuum.reload import Reloads
from continuum.sandbox.docker_calls import VERSION, Call, check
from continuum.sandbox.docker_comparison import Refused
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_judge import Judge, Request
from continuum.sandbox.docker_stream import Endpoint, EngineError, read_head
from continuum.sandbox.protocol import BackendUnavailable

log = structlog.get_logger(__name__)

REQUEST_DEADLINE = 20.0
"""Seconds for a request to have come; workers send theirs at once."""
ANSWER_DEADLINE = 5.0
"""Seconds for a refusal to be taken by who goes on sending."""
LARGEST_BODY = 256 * 1024
"""Bytes. The specification of a sandbox has about 3 kB."""
LARGEST_UPLOAD = 128 * 1024 * 1024
"""Bytes. The program uv has some 50 MB."""
LARGEST_HEAD = 16 * 1024
_CHUNK = 65_536
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
_LONGEST_REASON = 500
_REASONS = {400: "Bad Request", 403: "Forbidden", 500: "Internal Server Error", 502: "Bad Gateway"}


async def run_proxy(settings: Settings, path: Path) -> None:
    """Serve the socket `path` until SIGTERM or SIGINT; read the limits of sandboxes anew on SIGHUP. Raises
    `BackendUnavailable` when there can be no such socket."""
    endpoint = Endpoint.from_environment(os.environ)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            reloads = Reloads(settings, load_settings, stop=nursery.cancel_scope.cancel)
            await nursery.start(reloads.run)
            try:
                await nursery.start(serve_proxy, settings, endpoint, path)
            except OSError as error:
                raise BackendUnavailable(f"no socket can be made at {path} (--listen): {error}") from error
            systemd.tell_ready()
            log.info("the socket proxy listens", listen=f"unix://{path}", daemon=endpoint.url)
            async for _ in signals:
                nursery.cancel_scope.cancel()


async def serve_proxy(
    settings: Settings, endpoint: Endpoint, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the socket `path` until cancelled, in front of the daemon at `endpoint`; a socket left there is replaced.

    settings: those of the workers. Raises OSError when there can be no socket.
    """
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen(path)))
    engine = Engine(endpoint)
    try:
        task_status.started()
        await trio.serve_listeners(SocketProxy(endpoint, Judge(settings, engine)).serve, [listener])
    finally:
        _remove(path)
        engine.close()


class SocketProxy:
    """What becomes of each connection."""

    def __init__(self, endpoint: Endpoint, judge: Judge) -> None:
        self._endpoint = endpoint
        self._judge = judge

    async def serve(self, client: trio.SocketStream) -> None:
        """Answer the one request of a connection. Never raises for what a client or the daemon does."""
        target = "what is no request"
        try:
            with trio.fail_after(REQUEST_DEADLINE):
                received = await _receive(client)
                if received is None:
                    return
                head, body, rest = received
            target = f"{head.method.decode()} {head.target.decode()}"
            version, request = _understand(head, body)
            call, content = await check(self._judge, request)
            if call.versioned != bool(version):
                raise Refused("workers name a version of the API in every call but the first two")
            encoded = _encode(content)
            await self._pass_on(client, _head(version, request, call, len(encoded)), encoded, rest, call.streams)
        except Refused as refusal:
            because = str(refusal)[:_LONGEST_REASON]
            log.warning("a request was refused", request=target[:_LONGEST_REASON], because=because)
            await _answer(client, 403, f"refused by continuum socket-proxy: {because}")
        except EngineError as error:
            await _answer(client, 502, str(error))
        except (h11.RemoteProtocolError, ValueError, RecursionError, trio.TooSlowError) as error:
            await _answer(client, 400, f"continuum socket-proxy cannot read the request: {error!r}")
        except _GONE:
            pass
        except Exception:  # a bug of the proxy's must not end the sandboxes of all workers
            log.exception("a request could not be judged", request=target[:_LONGEST_REASON])
            await _answer(client, 500, "continuum socket-proxy failed; its log says why")
        finally:
            await trio.aclose_forcefully(client)

    async def _pass_on(self, client: trio.SocketStream, head: bytes, body: bytes, rest: bytes, streams: bool) -> None:
        upstream = await self._endpoint.connect()
        try:
            with trio.fail_after(REQUEST_DEADLINE):
                await upstream.send_all(head + body)
                if streams:
                    # Until the daemon has agreed, it takes whatever else it gets for requests.
                    answer, begun = await read_head(upstream)
                    await client.send_all(answer + b"\r\n\r\n" + begun)
                    streams = re.match(rb"HTTP/1\.1 101 ", answer) is not None
                    if streams:
                        await upstream.send_all(rest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump_until_hung_up, client, upstream, streams, nursery.cancel_scope)
                await _pump(upstream, client)
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(upstream)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _receive(client: trio.SocketStream) -> tuple[h11.Request, bytes, bytes] | None:
    """A request's head and body, and what came behind it; None when the client hung up before one. Of an upload nothing
    is kept but its SHA-256, in place of the body: what goes on is the proxy's own."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
    head: h11.Request | None = None
    body, digest, length = bytearray(), hashlib.sha256(), 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await client.receive_some(_CHUNK))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            length += len(event.data)
            uploads = head is not None and head.method == b"PUT"
            if length > (largest := LARGEST_UPLOAD if uploads else LARGEST_BODY):
                raise Refused(f"workers send at most {largest} bytes")
            if uploads:
                digest.update(event.data)
            else:
                body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            kept = digest.hexdigest().encode() if head.method == b"PUT" else bytes(body)
            return head, kept, connection.trailing_data[0]
        else:
            return None


def _understand(head: h11.Request, body: bytes) -> tuple[str, Request]:
    """The version in a request's path, and the request without it. Raises ValueError."""
    parts = urlsplit(head.target.decode("ascii"))
    version = re.match(rf"{VERSION}(?=/)", parts.path)
    prefix = version[0] if version else ""
    query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    content = body.decode() if head.method == b"PUT" else json.loads(body) if body else None
    return prefix, Request(head.method.decode("ascii"), unquote(parts.path[len(prefix) :]), query, content)


def _encode(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return b"" if content is None else json.dumps(content).encode()


def _head(version: str, request: Request, call: Call, length: int) -> bytes:
    query = urlencode(request.query, doseq=True)
    target = version + quote(request.path, safe="/:") + (f"?{query}" if query else "")
    kind = "application/x-tar" if call.uploads else "application/json"
    lines = [f"{request.method} {target} HTTP/1.1", "Host: docker", f"Content-Length: {length}"]
    lines += [f"Content-Type: {kind}"] if length else []
    lines += ["Connection: Upgrade", "Upgrade: tcp"] if call.streams else ["Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with suppress(*_GONE):
        while data := await source.receive_some(_CHUNK):
            await sink.send_all(data)


async def _pump_until_hung_up(
    client: trio.SocketStream, upstream: trio.SocketStream, streams: bool, scope: trio.CancelScope
) -> None:
    """Pass on what a client sends after its request, if it may send any; when it is gone, so is its request."""
    if streams:
        await _pump(client, upstream)
        with suppress(*_GONE):
            # The daemon closes the sandbox's stdin, which ends it, and then this connection.
            await upstream.send_eof()
        return
    with suppress(*_GONE):
        await client.receive_some(1)
    scope.cancel()


async def _answer(client: trio.SocketStream, status: int, message: str) -> None:
    body = json.dumps({"message": message}).encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with trio.move_on_after(ANSWER_DEADLINE), suppress(*_GONE):
        await client.send_all(head.encode("ascii") + body)
        await client.send_eof()
        # Closed with something unread, a socket takes the answer back from who has not read it yet.
        while await client.receive_some(_CHUNK):
            pass
