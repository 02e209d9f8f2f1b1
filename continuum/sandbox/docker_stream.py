"""Byte streams through the Docker daemon: its socket, a request made by hand, and an attached container's streams.

docker-py hands such a stream out as a blocking socket, after its HTTP client may already have read the first bytes.
Here the request is sent over a Trio stream, which then simply goes on as the container's standard streams.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio

from continuum.sandbox.protocol import BackendUnavailable
from continuum.sandbox.streams import PromptSocketStream, PromptStream

DEFAULT_HOST = "unix:///var/run/docker.sock"
ANSWER_DEADLINE = 10.0
"""Seconds for the daemon to answer a request made here; all of them are answered at once or not at all."""
_LARGEST_HEAD = 64 * 1024
_READS_AT_ONCE = 8
"""Reads of what is there already, at most: who writes to stderr without end keeps nobody."""
_READ_SIZE = 64 * 1024
_DIAGNOSIS_SIZE = 4096
"""Bytes kept of what a container says on stderr: enough for the end of a traceback."""
_FRAME_HEADER = 8
_STDERR = 2


class EngineError(BackendUnavailable):
    """The Docker daemon did not do what it was asked to; the message says what and why."""


class EngineRefused(EngineError):
    """The daemon is well, and says no."""


class EngineNotFound(EngineRefused):
    """What a request named does not exist (any more)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the daemon listens: a Unix socket's path, or a TCP host and port."""

    url: str
    path: str | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Endpoint:
        """What DOCKER_HOST names. Raises `BackendUnavailable` for what is not a Unix socket or plain TCP."""
        url = environment.get("DOCKER_HOST") or DEFAULT_HOST
        parts = urlsplit(url)
        if environment.get("DOCKER_TLS_VERIFY"):
            raise BackendUnavailable(
                f"DOCKER_TLS_VERIFY is set, and a daemon behind TLS (DOCKER_HOST={url}) is not supported: "
                "use unix:///path/to/docker.sock"
            )
        if parts.scheme == "unix" and parts.path:
            return cls(url, path=parts.path)
        try:
            if parts.scheme in ("tcp", "http") and parts.hostname:
                return cls(url, host=parts.hostname, port=parts.port or 2375)
        except ValueError:
            pass
        raise BackendUnavailable(
            f"DOCKER_HOST={url} cannot be used: give unix:///path/to/docker.sock or tcp://host:port"
        )

    async def connect(self) -> trio.SocketStream:
        """A connection to the daemon. Raises `EngineError`, saying what to do."""
        try:
            with trio.fail_after(ANSWER_DEADLINE):
                if self.path is None:
                    stream = await trio.open_tcp_stream(self.host, self.port)
                    # A daemon's machine that vanishes says nothing; without this a sandbox there would look alive.
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    return stream
                return await trio.open_unix_socket(self.path)
        except FileNotFoundError:
            raise EngineError(
                f"no Docker daemon at {self.url}: start it, or set DOCKER_HOST to where it listens"
            ) from None
        except PermissionError:
            raise EngineError(
                f"no permission to use the Docker daemon at {self.url}: add this user to the socket's group "
                "(docker), or set DOCKER_HOST to a daemon of its own"
            ) from None
        except (OSError, trio.TooSlowError) as error:
            reason = str(error) or "no answer"
            raise EngineError(
                f"the Docker daemon at {self.url} cannot be reached ({reason}): start it, or set DOCKER_HOST"
            ) from None


async def ping(endpoint: Endpoint) -> None:
    """Raise `EngineError`, saying what to do, unless the daemon answers."""
    stream, _ = await _request(endpoint, "GET", "/_ping", {})
    await stream.aclose()


async def attach(endpoint: Endpoint, version: str, container: str, *, stdin: bool) -> ContainerStream:
    """Attach to a container that has not been started, so that none of its output is missed.

    Raises `EngineNotFound` and `EngineError`.
    """
    target = f"/v{version}/containers/{container}/attach?stream=1&stdout=1&stderr=1&stdin={int(stdin)}"
    stream, rest = await _request(endpoint, "POST", target, {"Connection": "Upgrade", "Upgrade": "tcp"})
    return ContainerStream(PromptSocketStream.of(stream), rest)


async def _request(
    endpoint: Endpoint, method: str, target: str, headers: Mapping[str, str]
) -> tuple[trio.SocketStream, bytes]:
    """Send a request without a body; return the stream behind the answer's head, and what was read of it."""
    stream = await endpoint.connect()
    try:
        with trio.fail_after(ANSWER_DEADLINE):
            lines = [f"{method} {target} HTTP/1.1", "Host: docker", "Content-Length: 0"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            await stream.send_all("\r\n".join([*lines, "", ""]).encode("ascii"))
            head, rest = await read_head(stream)
            status = _status(head)
            if status not in (101, 200):
                message = await _read_message(stream, head, rest)
                raise (EngineNotFound if status == 404 else EngineRefused)(f"Docker: {message}")
    except trio.TooSlowError:
        await trio.aclose_forcefully(stream)
        raise EngineError(f"the Docker daemon did not answer within {ANSWER_DEADLINE:g} s") from None
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise EngineError(f"the Docker daemon hung up: {error}") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream, rest


async def read_head(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    """The head of the daemon's answer, without the empty line at its end, and what came behind it. Raises `EngineError`."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some(_READ_SIZE)
        data += piece
        if not piece or len(data) > _LARGEST_HEAD:
            raise EngineError("the Docker daemon hung up, or does not speak HTTP")
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _status(head: bytes) -> int:
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise EngineError("what listens at DOCKER_HOST does not speak HTTP")
    return int(words[1])


async def _read_message(stream: trio.SocketStream, head: bytes, body: bytes) -> str:
    """The reason in an error's body: JSON with a `message`."""
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            length = min(int(value), _LARGEST_HEAD)
    while len(body) < length and (piece := await stream.receive_some(_READ_SIZE)):
        body += piece
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip() or head.split(b"\r\n")[0].decode(errors="replace")


class ContainerStream(PromptStream):
    """A container's standard streams: what is sent goes to its stdin, what is received comes from its stdout.

    What it writes to stderr is kept, up to a bound, as `diagnosis`.
    """

    def __init__(self, transport: PromptStream, received: bytes = b"") -> None:
        self._transport = transport
        self._buffer = bytearray(received)
        self._frame_is_stderr = False
        self._frame_left = 0
        self._stderr = bytearray()

    @property
    def diagnosis(self) -> str:
        """The end of what the container wrote to stderr so far."""
        return self._stderr.decode(errors="replace").strip()

    @property
    def last_words(self) -> str:
        """The last line of it, as the end of a sentence; empty when there is none."""
        lines = self.diagnosis.splitlines()
        return f"; it said: {lines[-1]}" if lines else ""

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return self._transport.send_nowait(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._transport.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next piece of stdout, `b""` once the container has closed it (it ended) or the daemon hung up."""
        if self._buffer:  # a piece is taken without waiting: being cancelled after that would lose it
            await trio.lowlevel.checkpoint()
        while (piece := self._next_piece(max_bytes)) is None:
            received = await self._transport.receive_some(_READ_SIZE)
            if not received:
                return b""
            self._buffer += received
        return piece

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        for _ in range(_READS_AT_ONCE):
            if (piece := self._next_piece(max_bytes)) is not None:
                return piece
            received = self._transport.receive_nowait(_READ_SIZE)
            if not received:
                return received
            self._buffer += received
        return self._next_piece(max_bytes)

    def _next_piece(self, max_bytes: int | None) -> bytes | None:
        """A piece of stdout that was received already; None when more must be received first."""
        while True:
            if not self._frame_left:
                if len(self._buffer) < _FRAME_HEADER:
                    return None
                self._frame_is_stderr = self._buffer[0] == _STDERR
                self._frame_left = int.from_bytes(self._buffer[4:_FRAME_HEADER], "big")
                del self._buffer[:_FRAME_HEADER]
            elif not self._buffer:
                return None
            else:
                size = self._frame_left if max_bytes is None else min(self._frame_left, max_bytes)
                piece = bytes(self._buffer[:size])
                del self._buffer[:size]
                self._frame_left -= len(piece)
                if not self._frame_is_stderr:
                    return piece
                self._stderr += piece
                del self._stderr[:-_DIAGNOSIS_SIZE]

    async def aclose(self) -> None:
        await self._transport.aclose()
