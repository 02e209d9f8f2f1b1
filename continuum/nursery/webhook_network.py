"""Connections to where a webhook's URL says, and nowhere that a task could not go: the guard under the HTTP client.

A name is looked up once, here; all its addresses are judged; and the connection goes to an address that was judged. Whatever
a URL looks like, and whatever its name means a moment later, this is the only way out.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore
import trio

from continuum.egress import Address, Reach

ANSWER_LIMIT = 64 * 1024
"""Bytes of one answer, headers included, after which the connection is given up."""
MOST_ADDRESSES = 4
"""Addresses of a name that are tried, one after the other."""
MOST_LOOKUPS = 64
"""Threads that may ask name servers at once: those of deliveries that gave up on one live on for a while."""

Resolver = Callable[[str], Awaitable[list[Address]]]


class Refused(Exception):
    """A delivery would go where nothing may go; the message says why."""


_lookups = trio.CapacityLimiter(MOST_LOOKUPS)


async def system_resolver(name: str) -> list[Address]:
    """The addresses of a name, as the system has them, in the order to try them in. Raises `httpcore.ConnectError`."""
    try:
        # Not Trio's own: a name server that never answers would hold threads that all of the worker shares.
        found = await trio.to_thread.run_sync(
            lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM), limiter=_lookups, abandon_on_cancel=True
        )
    except OSError as error:
        raise httpcore.ConnectError(f"{name} cannot be resolved: {error.strerror or error}") from error
    # A zone makes an IPv6 address another one: those that may have one are never open.
    addresses = (ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found)
    return list(dict.fromkeys(addresses))


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """A network for httpcore within a reach.

    reach: what may be connected to, asked for each connection, since machines change their addresses. network: connects to
    addresses that were judged; Trio's, outside tests.
    """

    def __init__(
        self,
        reach: Callable[[], Reach],
        resolve: Resolver = system_resolver,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._reach = reach
        self._resolve = resolve
        self._network = network or httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of a host's addresses. Raises `Refused` if any of them is closed, and httpcore's errors."""
        try:
            name, addresses = None, [ipaddress.ip_address(host)]
        except ValueError:
            name, addresses = host, await self._resolve(host)
        reach = self._reach()
        for address in addresses:
            if refusal := reach.refusal(name, address, port):
                raise Refused(refusal if name is None else f"{name} may not be reached: {refusal}")
        failure: httpcore.NetworkError | httpcore.TimeoutException = httpcore.ConnectError(f"{host} has no address")
        for address in addresses[:MOST_ADDRESSES]:
            try:
                stream = await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Bounded(stream)
        raise failure

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """Never: no URL means a socket of this machine."""
        raise Refused("a webhook is delivered by TCP")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Bounded(httpcore.AsyncNetworkStream):
    """A connection of which only so much is read between one request and the next."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = ANSWER_LIMIT

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._left <= 0:
            raise httpcore.ReadError(f"the answer has more than {ANSWER_LIMIT} bytes")
        received = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(received)
        return received

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._left = ANSWER_LIMIT
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Bounded(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
