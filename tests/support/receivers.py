"""Receivers of webhooks: an internet in memory with hosts that answer as a test wants, and a verifier of its own."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpcore
import trio
from httpcore._backends.trio import TrioStream

from continuum.model import WebhookDelivery

Host = Callable[[trio.abc.Stream], Awaitable[None]]


def delivery(url: str = "https://hooks.example/done", **values: Any) -> WebhookDelivery:
    """A delivery that is due."""
    moment = dt.datetime(2026, 11, 29, 12, 0, 0, 250_000, tzinfo=dt.UTC)
    defaults: dict[str, Any] = {
        "task_id": 7,
        "tries": 1,
        "name": "nightly report",
        "status": "completed",
        "tenant": None,
        "attempt": 2,
        "exit_code": 0,
        "error": None,
        "created_at": moment,
        "started": moment,
        "finished": moment,
    }
    return WebhookDelivery(url=url, **(defaults | values))


def verify(secret: str, headers: dict[str, str], body: bytes, now: float, tolerance: float = 300) -> dict[str, Any]:
    """What a receiver does, written from the text of the specification and with none of our code; the event, verified.
    Raises AssertionError."""
    assert secret.startswith("whsec_")
    key = base64.b64decode(secret[len("whsec_") :])
    sent = headers["webhook-timestamp"]
    assert sent.isdecimal()
    assert abs(now - int(sent)) <= tolerance, "too old or too new"
    signed = headers["webhook-id"].encode() + b"." + sent.encode() + b"." + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    candidates = [each.split(",", 1) for each in headers["webhook-signature"].split(" ")]
    assert any(version == "v1" and hmac.compare_digest(text, expected) for version, text in candidates), "forged"
    event: dict[str, Any] = json.loads(body)
    return event


@dataclass
class Internet(httpcore.AsyncNetworkBackend):
    """Hosts by address and port. `connections` lists what was connected to."""

    hosts: dict[tuple[str, int], Host] = field(default_factory=dict)
    connections: list[tuple[str, int]] = field(default_factory=list)
    nursery: trio.Nursery | None = None
    ends: list[trio.SocketStream] = field(default_factory=list)
    """Those of connections that somebody may have left open."""

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.connections.append((host, port))
        if (host, port) not in self.hosts:
            raise httpcore.ConnectError(f"nothing listens on {host}, port {port}")
        # A pair of sockets, on which all that was sent is there at once: it works on a virtual clock.
        ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
        self.ends.append(ours)
        assert self.nursery is not None
        self.nursery.start_soon(self._serve, self.hosts[host, port], theirs)
        return TrioStream(ours)

    @staticmethod
    async def _serve(host: Host, stream: trio.abc.Stream) -> None:
        try:
            async with stream:
                await host(stream)
        except trio.BrokenResourceError:
            pass  # the client went away


@asynccontextmanager
async def internet() -> AsyncIterator[Internet]:
    async with trio.open_nursery() as nursery:
        made = Internet(nursery=nursery)
        yield made
        for end in made.ends:
            await end.aclose()
        nursery.cancel_scope.cancel()


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


async def read_request(stream: trio.abc.Stream) -> Request:
    """One request with a Content-Length. Raises EOFError where none comes."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await _some(stream)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    headers = {name.lower(): value for name, _, value in pairs}
    while len(body) < int(headers["content-length"]):
        body += await _some(stream)
    method, target, _ = first.split(" ")
    return Request(method, target, headers, body)


async def _some(stream: trio.abc.Stream) -> bytes:
    received = bytes(await stream.receive_some())
    if not received:
        raise EOFError
    return received


@dataclass
class Receiver:
    """A host that keeps what it is sent and gives these answers in turn, the last one for ever."""

    answers: list[bytes] = field(default_factory=lambda: [ok()])
    requests: list[Request] = field(default_factory=list)

    async def __call__(self, stream: trio.abc.Stream) -> None:
        while True:
            try:
                self.requests.append(await read_request(stream))
            except EOFError:
                return
            await stream.send_all(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


def ok(body: bytes = b"") -> bytes:
    return answer("200 OK", body=body)


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def over_tls(host: Host, context: ssl.SSLContext) -> Host:
    """A host behind TLS."""

    async def serve(stream: trio.abc.Stream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await secure.do_handshake()
        await host(secure)

    return serve
